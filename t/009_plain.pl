
# What a claim costs: one row inserted, never updated, nothing dead; a replay
# costs no WAL and no transaction id; nothing of it enters SERIALIZABLE's
# predicate locks.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

# a quiet server
my $node = new_node('main', conf => <<'CONF');
checkpoint_timeout = 1h
bgwriter_lru_maxpages = 0
CONF

$node->safe_psql('postgres', <<'SQL');
-- n requests, each a transaction
CREATE PROCEDURE requests(prefix text, n int, expected text) LANGUAGE plpgsql AS $$
DECLARE
	c record;
BEGIN
	FOR i IN 1..n LOOP
		c := idem_begin(prefix || i, request => to_jsonb(i));
		IF c.state <> expected THEN
			RAISE '% instead of %', c.state, expected;
		END IF;
		IF c.state = 'started' THEN
			PERFORM idem_finish(prefix || i, jsonb_build_object('order', i));
		END IF;
		COMMIT;
	END LOOP;
END $$;
SQL

#
# 1,000 first runs and 1,000 replays
#
# Line pointers of a page are given out in order, so one that is missing below
# the page's last belongs to something dead.
my $density = <<'SQL';
SELECT sum(tuples), sum(last) FROM (
	SELECT count(*) AS tuples, max((ctid::text::point)[1]) AS last
	FROM idem_keys GROUP BY (ctid::text::point)[0]) p
SQL

$node->safe_psql('postgres', "CALL requests('k', 1000, 'started')");
sql_is($node, 'postgres', $density, '1000|1000', '1000 first runs: 1000 line pointers');
$node->safe_psql('postgres', "CALL requests('k', 1000, 'replayed')");
sql_is($node, 'postgres', $density, '1000|1000', 'and 1000 replays: the same');

# Statistics are sent when a session ends, which psql does not wait for.
ok( $node->poll_query_until('postgres', "SELECT n_tup_ins >= 1000 FROM pg_stat_user_tables WHERE relname = 'idem_keys'"),
	'statistics have come');
sql_is($node, 'postgres',
	"SELECT n_tup_ins, n_tup_upd, n_tup_del, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'idem_keys'",
	'1000|0|0|0', '1000 inserted, none updated, deleted or dead');

# Begun and given up: nothing at all.
$node->safe_psql('postgres', "BEGIN; SELECT idem_begin('none $_'); ROLLBACK") for 1 .. 3;
$node->safe_psql('postgres', "BEGIN; SELECT idem_begin('none'); SELECT idem_release('none'); COMMIT");
$node->safe_psql('postgres', "SELECT idem_claim('k1'); SELECT idem_claim_many('{k1, k2, k3}')");
sql_is($node, 'postgres', $density, '1000|1000', 'rolled back, released, claimed again: the same');
sql_is($node, 'postgres', "SELECT idem_claim_many('{m1, m2, m3}'); $density", "m1\nm2\nm3\n1003|1003", 'a batch: a row each');
sql_is($node, 'postgres', "SELECT idem_claim('c1'); $density", "t\n1004|1004", 'a claim: a row');

#
# No WAL, no transaction id
#
# The first reader of a row sets its hint bits; with checksums that may cost
# WAL, as for any SELECT.  Here the rows have been read.
$node->safe_psql('postgres', 'VACUUM (FREEZE); SELECT count(*) FROM idem_keys; CHECKPOINT');

my $holder = $node->background_psql('postgres');
$holder->query_safe("BEGIN; SELECT state FROM idem_begin('busy'); SELECT idem_claim_many('{busy row}')");

my $wal = 'pg_current_wal_insert_lsn()';
my $next_xid = 'pg_snapshot_xmax(pg_current_snapshot())';
my %free = (
	'1000 replays' => "CALL requests('k', 1000, 'replayed')",
	'replay by SQL' => "SELECT state FROM idem_begin('k1')",
	'replay in a transaction' => "BEGIN; SELECT state FROM idem_begin('k1'); COMMIT",
	'replay, SERIALIZABLE' => "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT state FROM idem_begin('k1'); COMMIT",
	'mismatch' => "SELECT state FROM idem_begin('k1', request => '\"other\"')",
	'in progress' => "SELECT state FROM idem_begin('busy')",
	'in progress, held row' => "SELECT state FROM idem_begin('busy row')",
	'in progress after a wait' => "SELECT state FROM idem_begin('busy', wait => '20 milliseconds')",
	'in progress after a wait, held row' => "SELECT state FROM idem_begin('busy row', wait => '20 milliseconds')",
	'HTTP replay' => "SELECT status FROM idem_http_begin('k1')",
	'HTTP, another request' => "SELECT status FROM idem_http_begin('k1', 'other')",
	'HTTP, in progress' => "SELECT status FROM idem_http_begin('busy')",
	'HTTP, no key' => "SELECT status FROM idem_http_begin('')",
	'claim again' => "SELECT idem_claim('k1')",
	'batch again' => "SELECT idem_claim_many('{k1, k2, k3}')",
	'look-up' => "SELECT state FROM idem_lookup('k1')",
	'begin and rollback' => "BEGIN; SELECT idem_begin('new'); ROLLBACK",
	'begin and release' => "BEGIN; SELECT idem_begin('new'); SELECT idem_release('new'); COMMIT",
	'begin in a savepoint' => "BEGIN; SAVEPOINT a; SELECT idem_begin('new'); ROLLBACK TO a; COMMIT",
);

# Each call is made twice, for what the session reads of the catalogs first.
my $session = $node->background_psql('postgres');
for my $name (sort keys %free)
{
	$session->query_safe($free{$name});
	my $before = $session->query_safe("SELECT $wal, $next_xid");
	$session->query_safe($free{$name});
	is($session->query_safe("SELECT $wal, $next_xid"), $before, "$name: no WAL, no xid");
}
is($session->query_safe("BEGIN; SELECT state FROM idem_begin('new'); SELECT pg_current_xact_id_if_assigned() IS NULL; ROLLBACK"),
	"started\nt", 'no xid before the finish');
my $before = $session->query_safe("SELECT $wal");
$session->query_safe("BEGIN; SELECT FROM idem_begin('first'); SELECT FROM idem_finish('first'); COMMIT");
isnt($session->query_safe("SELECT $wal"), $before, 'control: a first run writes WAL');
$_->quit for $holder, $session;

#
# SERIALIZABLE
#
my $siread = "SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock' AND pid = pg_backend_pid()"
  . " AND relation IN ('idem_keys'::regclass, 'idem_keys_pkey'::regclass)";
my %calls = (
	'begin' => "SELECT FROM idem_begin('s new')",
	'replay' => "SELECT FROM idem_begin('k1')",
	'mismatch' => "SELECT FROM idem_begin('k1', request => '1234')",
	'lookup' => "SELECT FROM idem_lookup('k1')",
	'lookup of nothing' => "SELECT FROM idem_lookup('s none')",
	'begin and finish' => "SELECT FROM idem_begin('s new'); SELECT FROM idem_finish('s new')",
	'HTTP' => "SELECT FROM idem_http_begin('s new', 'r'); SELECT FROM idem_http_finish('s new', 200)",
	'HTTP replay' => "SELECT FROM idem_http_begin('k1')",
	'claim' => "SELECT FROM idem_claim('s new')",
	'claim again' => "SELECT FROM idem_claim('k1')",
	'batch' => "SELECT FROM idem_claim_many('{k1, s new, s newer}')",
	'forget' => "SELECT FROM idem_forget('k1')",
);
for my $name (sort keys %calls)
{
	my $out = $node->safe_psql('postgres', "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM pg_class; $calls{$name}; SELECT 'locks:' || ($siread); ROLLBACK");

	like($out, qr/^locks:0$/m, "SERIALIZABLE, $name: no predicate lock");
}
my $out = $node->safe_psql('postgres', "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM idem_keys WHERE key = 'k1'; SELECT 'locks:' || ($siread)");
unlike($out, qr/^locks:0$/m, 'SERIALIZABLE, control: a look-up by SQL takes some');

done_testing();
