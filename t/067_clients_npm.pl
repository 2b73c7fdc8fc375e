
# The traps of doc/clients.md, as the clients of Node.js show them, in the versions of t/lib/npm/package-lock.json.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IdemNpm;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = npm_ci("$FindBin::RealBin/lib/npm") or plan skip_all => 'npm does not bring the clients here';
my $node = new_node('main');

my %any = ('no finish' => 'ID005', 'caught error' => 'no error', 'and the key' => 'free');
my %expected = (
	pg => { %any, 'caught error' => 'ROLLBACK', object => 'object', array => '22P02', 'array, JSON.stringify' => 'array',
		string => '22P02', 'string, JSON.stringify' => 'string', 'text[]' => 2, bigint => 'string' },
	postgres => { %any, 'caught error' => '22012', object => 'object', 'JSON.stringify' => 'string', 'sql.json(null)' => 'NULL',
		undefined => 'UNDEFINED_VALUE' },
	knex => { %any, 'trx.commit' => 'no error', executionPromise => 'ID005', object => 'object', array => 2, undefined => 'refused' },
	sequelize => { %any, ID005 => 'ID005', 'afterCommit of ID005' => 1, 'afterCommit of all' => 3, object => 'object',
		replacements => 'refused' },
	drizzle => { %any, object => 'object', 'sql.param' => 2, array => 'refused' },
	typeorm => { %any, nested => 'finished free' },
	kysely => { %any, 'caught error' => 'AbortedTransactionError' });

local @ENV{qw(PGHOST PGPORT PGDATABASE PGUSER)} = ($node->host, $node->port, 'postgres', scalar getpwuid($<));
for my $client (sort keys %expected)
{
	my ($out, $err) = ('', '');

	eval { IPC::Run::run([ 'node', "$folder/clients.js", $client ], '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(180)) };
	my %said = map { split /\t/, $_, 2 } grep { /\t/ } split /\n/, $out;
	is_deeply(\%said, $expected{$client}, $client) || diag("$@$err");
}

done_testing();
