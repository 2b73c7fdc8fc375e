
# The traps of doc/clients.md, as the clients of Node.js show them, in the versions of
# t/lib/npm/package-lock.json and t/lib/prisma/package-lock.json.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IdemBouncer;
use IdemNpm;
use File::Copy qw(copy);
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = npm_ci("$FindBin::RealBin/lib/npm") or plan skip_all => 'npm does not bring the clients here';
my $node = new_node('main');
my @bouncer = start_bouncer($node);

my %any = ('no finish' => 'ID005', 'caught error' => 'no error', 'and the key' => 'free');
my %expected = (
	pg => { %any, 'caught error' => 'ROLLBACK', object => 'object', array => '22P02', 'array, JSON.stringify' => 'array',
		string => '22P02', 'string, JSON.stringify' => 'string', raise => '23505 once', 'text[]' => 2, bigint => 'string' },
	postgres => { %any, 'caught error' => '22012', object => 'object', 'JSON.stringify' => 'string', 'sql.json(null)' => 'NULL',
		'::text::jsonb' => 'object', savepoint => 'finished free', raise => '23505 once',
		undefined => 'UNDEFINED_VALUE' },
	knex => { %any, 'trx.commit' => 'no error', executionPromise => 'ID005', object => 'object', array => 2, undefined => 'refused' },
	sequelize => { %any, ID005 => 'ID005', 'afterCommit of ID005' => 1, 'afterCommit of all' => 3, object => 'object',
		raise => 'SequelizeUniqueConstraintError 23505 once', replacements => 'refused' },
	drizzle => { %any, nested => 'finished free', object => 'object', 'sql.param' => 2, array => 'refused' },
	typeorm => { %any, object => 'object', nested => 'finished free' },
	kysely => { %any, object => 'object', 'caught error' => 'AbortedTransactionError' });

local @ENV{qw(PGHOST PGPORT PGDATABASE PGUSER)} = ($node->host, $node->port, 'postgres', scalar getpwuid($<));

# The lines "NAME<tab>RESULT" that it says.
sub said
{
	my ($client, $folder, @arguments) = @_;
	my ($out, $err) = ('', '');

	local %ENV = (%ENV, @arguments ? @bouncer : ());
	eval { IPC::Run::run([ 'node', "$folder/clients.js", $client, @arguments ], '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(180)) };
	note("$client @arguments: $@$err") if $@ || $err;
	return { map { split /\t/, $_, 2 } grep { /\t/ } split /\n/, $out };
}

# Alone, then behind PgBouncer: with the page's setting all 40 transactions are stored, without it some fail.
sub same_as_said
{
	my ($client, $folder, $expected) = @_;

	is_deeply(said($client, $folder), $expected, $client);
  SKIP:
	{
		skip 'PgBouncer is not installed', 1 if !@bouncer;
		my $said = said($client, $folder, 'with');

		is($said->{resolved}, 40, "$client behind PgBouncer");
		is($said->{committed}, '6 of 6, stored 6', 'postgres.js, after another client had its server connection') if $client eq 'postgres';
		is(stored($node, "$client with"), $client eq 'postgres' ? 46 : 40, "$client behind PgBouncer: what did not fail is stored");
		return if $client !~ /^(pg|postgres)$/;

		$said = said($client, $folder, 'without');
		note("$client, without: of 40 transactions $said->{resolved} did not fail");
		cmp_ok($said->{resolved}, '<', 40, "$client behind PgBouncer, without its setting");
		if ($client eq 'postgres')
		{
			my ($committed, $stored) = $said->{committed} =~ /^(\d) of 6, stored (\d)$/;
			cmp_ok($stored, '<', $committed, "postgres.js loses what it calls committed: $said->{committed}");
		}
		else
		{
			is(stored($node, "$client without"), $said->{resolved}, 'what did not fail is stored');
		}
	}
}

same_as_said($_, $folder, $expected{$_}) for sort keys %expected;

# Prisma's client is generated.  Its command line would first fetch the engine of its migrations, which
# "generate" does not run; any file that is there will do.
SKIP:
{
	$folder = npm_ci("$FindBin::RealBin/lib/prisma") or skip 'npm does not bring Prisma here', 1;
	copy("$FindBin::RealBin/lib/npm/clients.js", $folder) or die "clients.js: $!";
	local @ENV{qw(PRISMA_SCHEMA_ENGINE_BINARY CHECKPOINT_DISABLE HOME)} = ("$folder/package.json", 1, $folder);
	PostgreSQL::Test::Utils::system_or_bail('node', "$folder/node_modules/prisma/build/index.js", 'generate', '--schema', "$folder/schema.prisma");
	same_as_said('prisma', $folder, {
		%any, autocommit => 'P2010 ID005', record => 'UnsupportedNativeDataType', 'and the claim' => 'in_progress',
		void => 'UnsupportedNativeDataType', '$executeRaw' => 1, object => 'object', 'text[]' => 'bigint 2', raise => 'P2002 once', skip => 'null',
		'wait of 1 s' => 'in_progress', 'wait of 6 s' => 'P2028 5000', 'wait of 6 s, timeout' => 'in_progress',
		maxWait => 'P2028 Unable to start a transaction in the given time.' });
}

done_testing();
