
# The counters on servers of other kinds: a hot standby has its own, and sees the leases of the primary; a
# server that has not preloaded the library has them from PostgreSQL 17 on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemStat;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my @as_monitor = ('-U', 'monitor');
my @as_clerk = (extra_params => [ '-U', 'clerk' ]);
my $node = new_node('preloaded', streaming => 1, conf => $stat_conf);
my $version = $node->safe_psql('postgres', 'SHOW server_version_num');

$node->safe_psql('postgres', "$stat_functions; CREATE ROLE monitor LOGIN IN ROLE pg_monitor");

#
# A hot standby: counters of its own, the leases of the primary
#
my $standby = new_standby($node, conf => 'max_standby_streaming_delay = -1');
$node->safe_psql('postgres', "SELECT idem_begin('standby', lease => '1 hour')");
my $holder = $node->background_psql('postgres');
$holder->query_safe("BEGIN; SELECT idem_claim_many('{held}')");
# a commit, so that the row is replicated
$node->safe_psql('postgres', "SELECT idem_claim('committed')");
$node->wait_for_catchup($standby);
$last{standby} = counters($standby, 'postgres');
is(join(' ', values %{ $last{standby} }), join(' ', (0) x @counters), 'standby: counts from 0');
my $waiter = $standby->background_psql('postgres');
waiting($waiter, "SELECT state FROM idem_begin('held', wait => '1 hour')");
my $event = $version < 170000 ? 'Extension' : 'IdempotencyHolder';
ok( $standby->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Extension' AND wait_event = '$event'"), "standby: who waits for a holder waits for $event");
$holder->query_safe('COMMIT');
is($waiter->query_safe('SELECT 1'), "replayed\n1", 'standby: waited for the holder');
$standby->psql('postgres', "SELECT idem_begin('committed'); SELECT idem_begin('standby'); SELECT idem_claim('committed'); SELECT throttle('standby')");
is(changes($last{standby}, counters($standby, 'postgres')), 'replayed 2 in_progress 1 duplicates 1 throttle_allowed 1', 'standby: counts what it does');
sql_is($standby, 'postgres', "SELECT key, held_by FROM idem_in_flight WHERE key = 'standby'", 'standby|lease', 'standby: leases in flight', @as_monitor);
sql_is($standby, 'postgres', "SELECT (SELECT count(*) FROM idem_keys WHERE expires_at > clock_timestamp()) = live_keys, oldest_claim_age > '0' FROM idem_stat WHERE datname = 'postgres'", 't|t', 'standby: gauges');
sql_is($standby, 'postgres', "SELECT idem_stat_reset(); SELECT replayed FROM idem_stat WHERE datname = 'postgres'", "\n0", 'standby: reset');
$_->quit for $holder, $waiter;
$standby->stop;
$node->stop;

#
# Not preloaded
#
my $bare = new_node('bare', conf => "idempotency.throttle_entries = 16\n");
$bare->safe_psql('postgres', 'CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor; CREATE ROLE clerk LOGIN');
$bare->safe_psql('postgres', "$stat_functions; SELECT idem_grant('clerk')");
my $bare_row = "SELECT $columns, stats_reset IS NULL, live_keys, open_leases, oldest_claim_age IS NULL FROM idem_stat";
my $bare_events = "SELECT idem_claim('1'), idem_claim('1'); SELECT idem_begin('2', lease => '1 hour'); BEGIN; SELECT idem_begin('3'); ROLLBACK";
my $clerk = $bare->background_psql('postgres', @as_clerk);
my $clerk_pid = $clerk->query_safe('SELECT pg_backend_pid()');
$clerk->query_safe("BEGIN; SELECT idem_begin('held')");
my ($ret, $out, $err);
if ($version < 170000)
{
	($ret, $out, $err) = $bare->psql('postgres', "$bare_events; SELECT idem_stat_reset(); $bare_row");
	is("$ret$err", '0', 'no shared memory: no error, no warning');
	is((split /\n/, $out)[-1], '|' x @counters . 't|2|1|f', 'no shared memory: counters are NULL, gauges are there');
	sql_is($bare, 'postgres', "SELECT pid, role, key, scope, since < clock_timestamp(), held_by FROM idem_in_flight WHERE held_by = 'transaction'", "$clerk_pid|clerk|||t|transaction", 'no shared memory: a claim is listed, without its key', @as_monitor);
	my ($row) = exported($bare, exporter_queries()->{idem}{query}, @as_monitor);
	is("$row->{started_total} $row->{live_keys}", ' 2', 'no shared memory: exported without counters');
}
else
{
	$bare->safe_psql('postgres', $bare_events);
	is(changes({ map { $_ => 0 } @counters }, counters($bare, 'postgres')), 'started 2 claimed 1 duplicates 1', 'shared memory without preload: counts');
	sql_is($bare, 'postgres', "SELECT pid, role, key, scope, held_by FROM idem_in_flight WHERE held_by = 'transaction'", "$clerk_pid|clerk|held||transaction", 'shared memory without preload: the key is known', @as_monitor);
	sql_is($bare, 'postgres', "SELECT idem_stat_reset(); SELECT started + claimed, live_keys, open_leases FROM idem_stat", "\n0|2|1", 'shared memory without preload: reset');
	# the view may be the first that needs it, and the plan a parallel one
	$clerk->query_safe('ROLLBACK');
	$clerk->quit;
	$bare->safe_psql('postgres', "SELECT idem_claim('4')");
	$bare->restart;
	($ret, $out, $err) = $bare->psql('postgres', "SET debug_parallel_query = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SELECT count(*) > 0, min(claimed) FROM pg_class, idem_stat");
	is("$ret$out$err", '0t|0', 'shared memory without preload: from 0 after a restart');
	$clerk = $bare->background_psql('postgres', @as_clerk);
}
$clerk->quit;
$bare->stop;

done_testing();
