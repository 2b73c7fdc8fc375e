
# The gauges of idem_stat are right on small tables and cheap on large ones.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemStat;
use IdemTest;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('preloaded', conf => $stat_conf);

$node->safe_psql('postgres', 'CREATE DATABASE gauges TEMPLATE template0');
$node->safe_psql('gauges', "CREATE EXTENSION idempotency; $stat_functions");

sub gauges_are
{
	my ($expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($node, 'gauges', "SELECT live_keys, (SELECT string_agg(key, chr(32)) FROM idem_keys WHERE expires_at = oldest_expired), open_leases, extract(epoch FROM oldest_claim_age)::int / 3600, last_purge FROM idem_stat WHERE datname = 'gauges'", $expected, "gauges: $name");
}

# so many hours ago
sub begun
{
	my ($k, $hours) = @_;

	return "UPDATE idem_keys SET created_at = clock_timestamp() - interval '$hours hours 10 seconds' WHERE key = '$k';";
}

gauges_are('0||0||', 'an empty table');
$node->safe_psql('gauges', "SELECT idem_claim_many('{1, 2, 3, 4, 5}')");
gauges_are('5||0||', 'finished keys');
$node->safe_psql('gauges', "CALL expire('3'); CALL expire('2'); CALL expire('4')");
gauges_are('2|3|0||', 'expired ones');
$node->safe_psql('gauges', "SELECT idem_begin('long', lease => '1 hour'); SELECT idem_begin('lapsed', lease => '1 hour'); SELECT idem_begin('done', lease => '1 hour');" . begun('long', 5) . begun('lapsed', 7) . begun('done', 9));
gauges_are('5|3|3|9|', 'leases');
$node->safe_psql('gauges', "CALL lapse('lapsed'); SELECT idem_finish('done', fence => fence('done'))");
gauges_are('5|3|1|5|', 'a running lease, a lapsed one, a finished one');
$node->safe_psql('gauges', "SELECT idem_begin('new', lease => '1 hour')");
gauges_are('6|3|2|5|', 'the oldest of two leases');

# without leases, what transactions hold
$node->safe_psql('gauges', "SELECT idem_release('new', fence => fence('new')); SELECT idem_finish('long', fence => fence('long'))");
gauges_are('6|3|0||', 'no open claim');
my $age = "SELECT oldest_claim_age BETWEEN interval '0' AND clock_timestamp() - '%s' FROM idem_stat WHERE datname = 'gauges'";
my $holder = $node->background_psql('gauges');
my $before = $node->safe_psql('gauges', 'SELECT clock_timestamp()');
$holder->query_safe("BEGIN; SELECT idem_begin('t')");
my $after = $node->safe_psql('gauges', 'SELECT clock_timestamp()');
sql_is($node, 'gauges', sprintf($age, $before), 't', 'gauges: a transaction');
sql_is($node, 'gauges', sprintf($age, $after), 'f', 'gauges: since its claim');
$holder->query_safe("SELECT idem_finish('t'); PREPARE TRANSACTION 'gauge'");
sql_is($node, 'gauges', sprintf($age, $before), 't', 'gauges: a prepared transaction');
$holder->query_safe("COMMIT PREPARED 'gauge'");
sql_is($node, 'gauges', sprintf($age, $before), '', 'gauges: committed');
$holder->quit;

# A large table: a sample, whose cost does not grow.
my $nrows = 180_000;
$node->safe_psql('gauges', <<"SQL");
TRUNCATE idem_keys;
INSERT INTO idem_keys (digest, created_at, expires_at, finished_at, lease_until, attempt, scope, key)
SELECT md5(i::text)::uuid, now() - interval '3 hours', now() + CASE WHEN i % 4 = 0 THEN interval '-2 hours' ELSE interval '1 hour' END,
	CASE WHEN i % 5 > 0 THEN now() END, CASE WHEN i % 5 = 0 THEN now() + CASE WHEN i % 10 = 0 THEN interval '30 min' ELSE interval '-1 min' END END,
	1, '', 'key ' || i
FROM generate_series(1, $nrows) i;
SQL
my $pages = $node->safe_psql('gauges', "SELECT pg_relation_size('idem_keys') / current_setting('block_size')::int");
cmp_ok($pages, '>', 2000, "gauges: a table of $pages pages");
# what a page has of each kind is even; their number is within 5 deviations
my ($live, $leases, $expired, $oldest) = split /\|/, $node->safe_psql('gauges', "SELECT live_keys, open_leases, clock_timestamp() - oldest_expired > '2 hours', oldest_claim_age > '3 hours' FROM idem_stat WHERE datname = 'gauges'");
cmp_ok(abs($live / ($nrows * 3 / 4) - 1), '<', 0.16, "gauges: $live of " . $nrows * 3 / 4 . ' live keys');
cmp_ok(abs($leases / ($nrows / 10) - 1), '<', 0.16, "gauges: $leases of " . $nrows / 10 . ' leases');
is("$expired $oldest", 't t', 'gauges: the oldest of the sample');

sub sample_scans
{
	my ($plan) = @_;

	return (($plan->{'Node Type'} eq 'Sample Scan' ? $plan : ()), map { sample_scans($_) } @{ $plan->{Plans} // [] });
}
my $plan = decode_json($node->safe_psql('gauges', 'EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM idem_stat'));
my @scans = sample_scans($plan->[0]{Plan});
my $read = $plan->[0]{Plan}{'Shared Hit Blocks'} + $plan->[0]{Plan}{'Shared Read Blocks'};
is(scalar @scans, 1, 'gauges: one scan');
cmp_ok($read, '>', 800, "gauges: $read pages read");
cmp_ok($read, '<', 1300, 'gauges: and not all');
$node->stop;

done_testing();
