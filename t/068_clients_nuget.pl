
# The traps of doc/clients.md, as Npgsql, Dapper and EF Core show them, in the versions of
# t/lib/nuget/packages.lock.json.

use strict;
use warnings;

use File::Copy qw(copy);
use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IdemBouncer;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir() . '/nuget';
mkdir $folder or die "$folder: $!";
copy($_, $folder) or die "$_: $!" for glob "$FindBin::RealBin/lib/nuget/*";
local @ENV{qw(HOME DOTNET_CLI_HOME NUGET_PACKAGES)} = ($folder, $folder, "$folder/packages");
local @ENV{qw(DOTNET_CLI_TELEMETRY_OPTOUT DOTNET_NOLOGO MSBUILDDISABLENODEREUSE)} = (1, 1, 1);

# Its exit code, or undef if there is no such program, and what it printed.
sub run_dotnet
{
	my ($out, @arguments) = ('', @_);
	my $ran = eval { IPC::Run::run([ 'dotnet', @arguments ], '<', \undef, '>', \$out, '2>&1', IPC::Run::timeout(400)); 1 };

	return ($ran ? $? : undef, $out . ($@ // ''));
}

my ($rc, $out) = run_dotnet('--list-sdks');
plan skip_all => 'the SDK of .NET 10 is not installed' if !defined $rc || $out !~ /^1[0-9]\./m;
($rc, $out) = run_dotnet('restore', '--locked-mode', $folder);
if (!defined $rc || $rc)
{
	diag("dotnet restore: $out");
	plan skip_all => 'NuGet does not bring the clients here';
}
($rc, $out) = run_dotnet('publish', $folder, '--no-restore', '-c', 'Release', '-o', "$folder/out", '-p:UseSharedCompilation=false');
is($rc, 0, 'it builds') || diag($out);

my $node = new_node('main');
my %any = (autocommit => 'ID005', 'caught error' => 'no error', 'and the key' => 'free');
my %expected = (
	npgsql => { %any, 'no finish' => 'ID005', text => '42883', '::jsonb' => 'started', JsonDocument => 'started',
		SaveAsync => 'finished', 'DBNull, again' => 'replayed', 'JsonElement null' => 'mismatch',
		'NpgsqlDbType.Jsonb' => 'started', DBNull => 'started', 'interval as text' => '42883', '::interval' => 'started', int => 400,
		long => '42883', isolation => 'serializable', Complete => 'no error', TransactionScope => 'TransactionAbortedException ID005' },
	dapper => { %any, 'CAST, TimeSpan' => 'started', array => 2 },
	efcore => { autocommit => 'ID005', DbUpdateException => '23505 once',
		'raw SQL: caught error' => 'no error', 'raw SQL: and the key' => 'free',
		'SaveChanges: caught error' => 'no error', 'SaveChanges: and the key' => 'finished',
		'SaveChanges, no savepoints: caught error' => 'no error', 'SaveChanges, no savepoints: and the key' => 'free',
		'added before' => '2 attempts, 0 rows', 'added inside' => '2 attempts, 1 rows' });

local @ENV{qw(PGHOST PGPORT PGDATABASE PGUSER)} = ($node->host, $node->port, 'postgres', scalar getpwuid($<));
for my $client (sort keys %expected)
{
	($rc, $out) = run_dotnet("$folder/out/clients.dll", $client);
	my %said = map { split /\t/, $_, 2 } grep { /\t/ } split /\n/, $out;
	is_deeply(\%said, $expected{$client}, $client) || diag($out);
}

# Behind PgBouncer: with the page's setting all 40 transactions are stored, without it some fail.
my @bouncer = start_bouncer($node);
SKIP:
{
	skip 'PgBouncer is not installed', 1 if !@bouncer;
	for my $client (sort keys %expected)
	{
		for my $setting ('with', 'without', 'reset')
		{
			my $resolved = do
			{
				local %ENV = (%ENV, @bouncer);
				($rc, $out) = run_dotnet("$folder/out/clients.dll", $client, $setting);
				$out =~ /^resolved\t(\d+)$/m ? $1 : -1;
			};
			note("$client, $setting: of 40 transactions $resolved did not fail");
			is(stored($node, "$client $setting"), $resolved, "$client, $setting: what did not fail is stored") || diag($out);
			ok($setting eq 'without' ? $resolved < 40 : $resolved == 40, "$client behind PgBouncer, $setting");
		}
	}
}

done_testing();
