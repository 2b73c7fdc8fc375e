
# What operators see: each event moves its counter of idem_stat by one, whatever
# becomes of the transaction, and no other; each database has its own.
# The other tests of it are t/*_stat_*.pl.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemStat;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('preloaded', conf => $stat_conf);
$node->safe_psql('postgres', $stat_functions);
$last{postgres} = counters($node, 'postgres');
is(join(' ', values %{ $last{postgres} }), join(' ', (0) x @counters), 'all begin at 0');

#
# Each event moves its counter
#
my @events = (
	[ 'begin, finish', "BEGIN; SELECT idem_begin('k'); SELECT idem_finish('k'); COMMIT", 'started 1 finished 1' ],
	[ 'replay', "SELECT idem_begin('k')", 'replayed 1' ],
	[ 'replay in the same transaction', "BEGIN; SELECT idem_begin('same'); SELECT idem_finish('same'); SELECT idem_begin('same'); COMMIT", 'started 1 replayed 1 finished 1' ],
	[ 'another request', "BEGIN; SELECT idem_begin('m', request => '1'); SELECT idem_finish('m'); COMMIT; SELECT idem_begin('m', request => '2')", 'started 1 mismatched 1 finished 1' ],
	[ 'own second begin', "BEGIN; SELECT idem_begin('o'); SELECT idem_begin('o'); ROLLBACK", 'started 1 in_progress 1' ],
	[ 'expired, begun anew', "CALL expire('k'); BEGIN; SELECT idem_begin('k'); SELECT idem_finish('k'); COMMIT", 'started 1 finished 1' ],
	[ 'release', "BEGIN; SELECT idem_begin('r'); SELECT idem_release('r'); COMMIT", 'started 1 released 1' ],
	[ 'release of what is finished', "BEGIN; SELECT idem_begin('r'); SELECT idem_finish('r'); SELECT idem_release('r'); COMMIT", 'started 1 finished 1' ],
	[ 'what fails is not counted', <<'SQL', '', 'ID003 ID006 ID003 ID003 22023 22004' ],
SELECT idem_finish('nothing');
SELECT idem_finish('k');
SELECT idem_release('nothing');
SELECT idem_finish('nothing', fence => 1);
SELECT idem_begin('');
SELECT idem_claim(NULL);
SQL
	[ 'looking and forgetting', "SELECT idem_lookup('k'); SELECT idem_forget('k'); SELECT idem_forget_scope('x')", '' ],

	# leases
	[ 'lease', "SELECT idem_begin('l', lease => '1 hour')", 'started 1' ],
	[ 'under a lease', "SELECT idem_begin('l'); SELECT idem_begin('l', lease => '1 hour')", 'in_progress 2' ],
	[ 'extend, checkpoint', "SELECT idem_extend('l', '1 hour', fence => fence('l')); SELECT idem_checkpoint('l', 'x', fence => fence('l'))", '' ],
	[ 'superseded', "SELECT idem_finish('l', fence => 0), idem_release('l', fence => 0)", '', 'ID004' ],
	[ 'finish of a lease', "SELECT idem_finish('l', fence => fence('l'))", 'finished 1' ],
	[ 'finish of a lease once more', "SELECT idem_finish('l', fence => fence('l'))", '', 'ID006' ],
	[ 'replay of a lease', "SELECT idem_begin('l', lease => '1 hour')", 'replayed 1' ],
	[ 'lease, released', "SELECT idem_begin('lr', lease => '1 hour'); SELECT idem_release('lr', fence => fence('lr'))", 'started 1 released 1' ],
	[ 'released lease, taken over', "SELECT idem_begin('lr', lease => '1 hour')", 'started 1 taken_over 1' ],
	[ 'lapsed lease, taken over', "CALL lapse('lr'); SELECT idem_begin('lr', lease => '1 hour')", 'started 1 taken_over 1' ],
	[ 'lapsed lease, taken over by a transaction', "CALL lapse('lr'); BEGIN; SELECT idem_begin('lr'); SELECT idem_finish('lr'); COMMIT", 'started 1 finished 1 taken_over 1' ],
	[ 'own lapsed lease', "BEGIN; SELECT idem_begin('ol', lease => '1 hour'); CALL lapse('ol'); SELECT idem_begin('ol', lease => '1 hour'); COMMIT", 'started 1 in_progress 1' ],
	[ 'lease begun and finished in one transaction', "BEGIN; SELECT idem_begin('lf', lease => '1 hour'); SELECT idem_finish('lf'); COMMIT", 'started 1 finished 1' ],

	# idem_call
	[ 'call', q[SELECT idem_call('c', 'twice', '{"n": 1}')], 'started 1 finished 1' ],
	[ 'call, replayed', q[SELECT idem_call('c', 'twice', '{"n": 1}')], 'replayed 1' ],
	[ 'call, another request', q[SELECT idem_call('c', 'twice', '{"n": 2}')], 'mismatched 1' ],
	[ 'call under a lease', "SELECT idem_begin('cl', lease => '1 hour'); SELECT idem_call('cl', 'fails')", 'started 1 in_progress 1' ],
	[ 'call that fails', "SELECT idem_call('cf', 'fails')", 'started 1', '22012' ],
	[ 'call of nothing', "SELECT idem_call('cn', 'no_such_function')", '', '42883' ],

	# idem_claim
	[ 'claim', "SELECT idem_claim('q')", 'claimed 1' ],
	[ 'claim, known', "SELECT idem_claim('q'); BEGIN READ ONLY; SELECT idem_claim('q'); COMMIT", 'duplicates 2' ],
	[ 'claim, another request', "SELECT idem_claim('qm', request => '1'); SELECT idem_claim('qm', request => '2')", 'mismatched 1 claimed 1', 'ID002' ],
	[ 'claim, leased, or open, or read-only', "SELECT idem_claim('cl'); BEGIN; SELECT idem_begin('o'); SELECT idem_claim('o'); ROLLBACK; BEGIN READ ONLY; SELECT idem_claim('none'); COMMIT", 'started 1', '55P03 55P03 25006' ],
	[ 'batch', "SELECT idem_claim_many('{b1, b2, b1, q, b2, b1}')", 'claimed 2 duplicates 1' ],
	[ 'batch once more', "SELECT idem_claim_many('{b1, b2, b1, q, b3}'); SELECT idem_claim_many('{}')", 'claimed 1 duplicates 3' ],
	[ 'import', "SELECT idem_import('im1', '1'), idem_import('q'), idem_import_many('{im2, im1, im3}')", '' ],
	[ 'import, replayed', "SELECT idem_begin('im1', request => '1'), idem_claim('im2')", 'replayed 1 duplicates 1' ],

	# the trigger
	[ 'trigger', "INSERT INTO strict VALUES ('t1'), ('t2'), ('t3')", 'claimed 3' ],
	[ 'trigger, known', "INSERT INTO strict VALUES ('t1')", 'duplicates 1', '23505' ],
	[ 'trigger, new and known', "INSERT INTO strict VALUES ('t4'), ('t1'), ('t5')", 'claimed 1 duplicates 1', '23505' ],
	[ 'trigger, COPY', "COPY strict FROM STDIN;\nt4\nt5\n\\.\n", 'claimed 2' ],
	[ 'trigger, changed', "UPDATE strict SET k = 't6' WHERE k = 't5'; UPDATE strict SET k = k; DELETE FROM strict", 'claimed 1' ],
	[ 'trigger that skips', "INSERT INTO lax VALUES ('s1'), ('s2'), ('s1')", 'claimed 2 duplicates 1' ],
	[ 'trigger that skips, COPY', "COPY lax FROM STDIN;\ns1\ns3\ns2\n\\.\n", 'claimed 1 duplicates 2' ],

	# tokens
	[ 'token', "INSERT INTO secrets SELECT n, idem_token_issue('reset', '1 hour') FROM unnest('{token, expired, revoked, undone}'::text[]) n", 'tokens_issued 4' ],
	[ 'token, looked at', "SELECT idem_token_peek('reset', secret) FROM secrets", '' ],
	[ 'token, wrong purpose, garbage, unknown', "SELECT idem_token_redeem('login', secret), idem_token_redeem('reset', 'x'), idem_token_redeem('reset', repeat('A', length(secret))) FROM secrets WHERE name = 'token'", 'tokens_refused 3' ],
	[ 'token, redeemed', "SELECT redeem('token')", 'tokens_redeemed 1' ],
	[ 'token, used', "SELECT redeem('token')", 'tokens_refused 1' ],
	[ 'token, expired', "UPDATE idem_tokens SET expires_at = clock_timestamp() WHERE used_at IS NULL; SELECT redeem('expired')", 'tokens_refused 1' ],
	[ 'token, revoked', "INSERT INTO secrets SELECT 'again', idem_token_issue('reset', '1 hour'); SELECT idem_token_revoke('reset', secret) FROM secrets WHERE name = 'again'; SELECT redeem('again')", 'tokens_issued 1 tokens_refused 1' ],
	[ 'token, rolled back', "BEGIN; INSERT INTO secrets SELECT 'new', idem_token_issue('reset', '1 hour'); SELECT redeem('new'); ROLLBACK; SELECT idem_token_redeem('reset', 'new')", 'tokens_issued 1 tokens_redeemed 1 tokens_refused 1' ],
	[ 'token, read-only', "BEGIN READ ONLY; SELECT idem_token_redeem('reset', 'x'); COMMIT", '', '25006' ],

	# codes
	[ 'code', "INSERT INTO secrets SELECT n, idem_code_issue('otp', n, '1 hour', 10, 2) FROM unnest('{code, old, locked}'::text[]) n", 'codes_issued 3' ],
	[ 'code, wrong', "SELECT idem_code_verify('otp', 'code', 'x')", 'codes_refused 1' ],
	[ 'code, verified', "SELECT verify('code')", 'codes_verified 1' ],
	[ 'code, used', "SELECT verify('code')", 'codes_refused 1' ],
	[ 'code, locked', "SELECT idem_code_verify('otp', 'locked', 'x') FROM generate_series(1, 2); SELECT verify('locked')", 'codes_refused 3' ],
	[ 'code, expired', "UPDATE idem_codes SET valid_until = clock_timestamp(); SELECT verify('old')", 'codes_refused 1' ],
	[ 'code, unknown', "SELECT idem_code_verify('otp', 'nobody', 'x')", 'codes_refused 1' ],
	[ 'code, rolled back', "BEGIN; INSERT INTO secrets SELECT 'c', idem_code_issue('otp', 'c', '1 hour'); SELECT verify('c'); ROLLBACK", 'codes_issued 1 codes_verified 1' ],

	# the guard
	[ 'guard', "BEGIN; SELECT idem_begin('g'); COMMIT", 'started 1 guard_errors 1', 'ID005' ],
	[ 'guard, one commit of two claims', "BEGIN; SELECT idem_begin('g'); SELECT idem_begin('g2'); COMMIT", 'started 2 guard_errors 1', 'ID005' ],
	[ 'guard, a statement alone', "SELECT idem_begin('g')", 'started 1 guard_errors 1', 'ID005' ],
	[ 'guard, PREPARE', "BEGIN; SELECT idem_begin('g'); PREPARE TRANSACTION 'g'", 'started 1 guard_errors 1', 'ID005' ],
	[ 'guard, expired', "BEGIN; SELECT idem_claim('x', '1 millisecond'); CALL wait_until(clock_timestamp() + '2 milliseconds'); COMMIT", 'claimed 1 guard_errors 1', 'ID005' ],
	[ 'guard, expired at PREPARE', "BEGIN; SELECT idem_claim('x', '1 millisecond'); CALL wait_until(clock_timestamp() + '2 milliseconds'); PREPARE TRANSACTION 'x'", 'claimed 1 guard_errors 1', 'ID005' ],
	[ 'guard, rolled back', "BEGIN; SELECT idem_begin('g'); ROLLBACK", 'started 1' ],

	# the throttle, with a table of 16 limits
	[ 'throttle', "SELECT throttle('t1')", 'throttle_allowed 1' ],
	[ 'throttle, not allowed', "SELECT throttle('t1') FROM generate_series(1, 2)", 'throttle_rejected 2' ],
	[ 'throttle, full', "SELECT throttle('t' || i) FROM generate_series(2, 16) i", 'throttle_allowed 15' ],
	[ 'throttle, evicts', "SELECT throttle('t17'); SELECT throttle('t18')", 'throttle_allowed 2 throttle_evicted 2' ],
	[ 'throttle, read-only and rolled back', "BEGIN READ ONLY; SELECT throttle('t18'); ROLLBACK", 'throttle_rejected 1' ],

	# whatever becomes of the transaction
	[ 'rolled back', "BEGIN; SELECT idem_begin('z'); SELECT idem_finish('z'); SELECT idem_claim('z2'); ROLLBACK", 'started 1 finished 1 claimed 1' ],
	[ 'savepoint, rolled back', "BEGIN; SAVEPOINT s; SELECT idem_begin('z'); SELECT idem_finish('z'); ROLLBACK TO s; COMMIT", 'started 1 finished 1' ],
	[ 'savepoint, released', "BEGIN; SAVEPOINT s; SELECT idem_begin('z'); SELECT idem_finish('z'); RELEASE s; ROLLBACK", 'started 1 finished 1' ],
	[ 'begun again', "BEGIN; SAVEPOINT s; SELECT idem_begin('z'); ROLLBACK TO s; SELECT idem_begin('z'); SELECT idem_finish('z'); COMMIT", 'started 2 finished 1' ],
	[ 'an error after it', "SELECT idem_claim('e' || i), 1 / (3 - i) FROM generate_series(1, 5) i", 'claimed 3', '22012' ],
	[ 'a loop', "DO \$\$ BEGIN FOR i IN 1 .. 100 LOOP PERFORM idem_claim('loop ' || i / 2); END LOOP; END \$\$", 'claimed 51 duplicates 49' ],
	[ 'a loop that commits and rolls back', <<'SQL', 'started 20 finished 20' ],
DO $$
BEGIN
	FOR i IN 1 .. 20 LOOP
		PERFORM idem_begin('turn ' || i);
		PERFORM idem_finish('turn ' || i);
		IF i % 2 = 0 THEN
			COMMIT;
		ELSE
			ROLLBACK;
		END IF;
	END LOOP;
END $$
SQL
	[ 'a loop with EXCEPTION blocks', <<'SQL', 'started 10 claimed 10' ],
DO $$
BEGIN
	FOR i IN 1 .. 10 LOOP
		BEGIN
			PERFORM idem_begin('block ' || i);
			PERFORM idem_claim('block claim ' || i);
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END $$
SQL
	[ 'prepared, committed', "BEGIN; SELECT idem_claim('p1'); PREPARE TRANSACTION 'p1'; COMMIT PREPARED 'p1'", 'claimed 1' ],
	[ 'prepared, rolled back', "BEGIN; SELECT idem_claim('p2'); PREPARE TRANSACTION 'p2'; ROLLBACK PREPARED 'p2'", 'claimed 1' ],
	[ 'cancelled', "BEGIN; SELECT idem_claim('y'); SET LOCAL statement_timeout = '10ms'; SELECT pg_sleep(100); COMMIT", 'claimed 1', '57014' ],
	[ 'the client goes away', "BEGIN; SELECT idem_begin('y')", 'started 1' ],
	[ 'terminated', "BEGIN; SELECT idem_begin('y'); SELECT pg_terminate_backend(pg_backend_pid())", 'started 1', '57P01' ]);
moves($node, @$_) for @events;

#
# Another session
#
my $one = $node->background_psql('postgres');
my $two = $node->background_psql('postgres');
my $own = 'SELECT started, claimed FROM idem_stat WHERE datname = current_database()';
my @was = @{ counters($node, 'postgres') }{qw(started claimed)};

$one->query_safe("BEGIN; SELECT idem_begin('b'); SELECT idem_claim('own')");
moved($node, 'postgres', '', 'not seen while the transaction runs');
is($one->query_safe($own), ($was[0] + 1) . '|' . ($was[1] + 1), 'but by itself');
is($one->query_safe("SELECT idem_claim('own 2'); $own"), 't' . "\n" . ($was[0] + 1) . '|' . ($was[1] + 2), 'also what comes later');
is($two->query_safe("SELECT state FROM idem_begin('b')"), 'in_progress', 'another holds the key');
is($two->query_safe("SELECT state FROM idem_begin('b', wait => '10 milliseconds')"), 'in_progress', 'and still does');
$one->query_safe('ROLLBACK');
moved($node, 'postgres', 'started 1 in_progress 2 claimed 2', 'seen when it has ended, each once');
$one->query_safe("BEGIN; SELECT idem_begin('b'); SELECT idem_finish('b'); COMMIT");
moved($node, 'postgres', 'started 1 finished 1', 'committed, the session goes on');

$one->query_safe("BEGIN; SELECT idem_claim('prepared'); PREPARE TRANSACTION 'prepared'");
moved($node, 'postgres', 'claimed 1', 'prepared: it has ended');
$two->query_safe("COMMIT PREPARED 'prepared'");
moved($node, 'postgres', '', 'which is counted once');

# what was waited for
$one->query_safe("BEGIN; SELECT idem_claim('w')");
waiting($two, "SELECT idem_claim('w')");
wait_for_waiters($node, 'postgres', 1);
$one->query_safe('COMMIT');
is($two->query_safe('SELECT 1'), "f\n1", 'a claim waited');
moved($node, 'postgres', 'claimed 1 duplicates 1', 'a claim that waited is counted once');

# Of a row with two keys, the first in the order of digests, a9, is claimed after a wait in which
# the other one is taken: it is undone, and does not count as claimed.
$node->safe_psql('postgres', "CREATE TABLE lists (a text, b text); CREATE TRIGGER once BEFORE INSERT ON lists FOR EACH ROW EXECUTE FUNCTION idem_once('a; b', NULL, 'skip', 'public.events(a); public.events(b)')");
my $three = $node->background_psql('postgres');
my $xid = $three->query_safe("BEGIN; SELECT pg_current_xact_id()");
$one->query_safe("BEGIN; SELECT idem_claim('b9', scope => 'public.events(b)')");
waiting($two, "INSERT INTO lists VALUES ('a9', 'b9') RETURNING a");
wait_for_waiters($node, 'postgres', 1);
$three->query_safe("SELECT idem_claim('a9', scope => 'public.events(a)')");
$one->query_safe('ROLLBACK');
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE transactionid = '$xid' AND NOT granted") or die 'the trigger does not wait for the other key';
$node->safe_psql('postgres', "SELECT idem_claim('b9', scope => 'public.events(b)')");
$three->query_safe('ROLLBACK');
is($two->query_safe('SELECT 1'), '1', 'the row is dropped');
moved($node, 'postgres', 'claimed 3 duplicates 1', 'a claim that is taken back is not counted');
$three->quit;

# Reading counts what this transaction has done so far; that is not done again.
$one->query_safe("BEGIN; SELECT idem_claim('again'); $own; $own; SAVEPOINT s; SELECT idem_claim('again 2'); ROLLBACK TO s; $own; COMMIT");
moved($node, 'postgres', 'claimed 2', 'looked at in between');

#
# 20 clients: nothing is lost
#
my $script = <<'SQL';
\set k random(1, 300)
\set r random(0, 2)
SELECT idem_claim('storm ' || :k);
BEGIN;
SELECT state = 'started' AS mine FROM idem_begin('storm begin ' || :k) \gset
\if :mine
\if :r = 0
ROLLBACK;
\else
SELECT idem_finish('storm begin ' || :k);
COMMIT;
\endif
\else
COMMIT;
\endif
SELECT allowed FROM idem_throttle('storm', '1 hour', 100);
SQL
my ($clients, $transactions) = (20, 30);
my $storm_began = time;
pgbench($node, $script, '-c', $clients, '-t', $transactions);
my $storm = counters($node, 'postgres');
my %moved = map { $_ => $storm->{$_} - $last{postgres}{$_} } @counters;
my $calls = $clients * $transactions;
my ($claimed, $finished) = split /\|/, $node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE key !~ 'begin'), count(*) FILTER (WHERE key ~ 'begin') FROM idem_keys WHERE key ~ '^storm '");
is("$moved{claimed} $moved{finished}", "$claimed $finished", "$clients clients: as many as there are rows");
is($moved{claimed} + $moved{duplicates}, $calls, "$clients clients: every claim is counted");
is($moved{started} + $moved{replayed} + $moved{in_progress}, $calls, "$clients clients: every begin is counted");
cmp_ok($moved{started}, '>', $moved{finished}, "$clients clients: rolled back ones among them");
is($moved{throttle_allowed} + $moved{throttle_rejected}, $calls, "$clients clients: every throttled call is counted");
# one comes back every 36 seconds
cmp_ok($moved{throttle_allowed}, '>=', 100, "$clients clients: $moved{throttle_allowed} calls allowed");
cmp_ok($moved{throttle_allowed}, '<=', 101 + (time - $storm_began) / 36, "$clients clients: and no more");
$last{postgres} = $storm;

#
# Databases
#
$node->safe_psql('postgres', 'CREATE DATABASE other TEMPLATE template0');
$node->safe_psql('postgres', 'CREATE DATABASE empty TEMPLATE template0');
$node->safe_psql('other', 'CREATE EXTENSION idempotency');
my $rows = "SELECT datname, claimed, live_keys IS NULL, oldest_expired IS NULL, open_leases IS NULL, oldest_claim_age IS NULL, stats_reset IS NULL FROM idem_stat WHERE datid <> (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1";
sql_is($node, 'postgres', $rows, '', 'no row of a database that does not use it');
$node->safe_psql('other', "SELECT idem_claim('1'), idem_claim('2'); BEGIN; SELECT idem_begin('3'); ROLLBACK");
$last{other} = counters($node, 'other');
is("@{$last{other}}{qw(started claimed)}", '1 2', 'another database counts for itself');
moved($node, 'postgres', '', 'this one does not');
sql_is($node, 'postgres', $rows, 'other|2|t|t|t|t|f', 'its row is shown, without gauges');
sql_is($node, 'other', 'SELECT datname, datid = d.oid FROM idem_stat JOIN pg_database d USING (datname) ORDER BY 1', "other|t\npostgres|t", 'one row a database');

# A reset is of one database, and of what the session itself has not yet reported.
my $resets = 'SELECT string_agg(stats_reset::text, chr(32) ORDER BY datname) FROM idem_stat';
my ($other_reset, $postgres_reset) = split / (?=\d{4}-)/, $node->safe_psql('postgres', $resets);
$node->safe_psql('other', "BEGIN; SELECT idem_claim('4'); SELECT idem_stat_reset(); COMMIT; SELECT idem_claim('5')");
is(changes($last{other}, counters($node, 'other')), 'started -1 claimed -1', 'reset: from 0, with what came after');
is(counters($node, 'other')->{claimed}, 1, 'reset: only that');
moved($node, 'postgres', '', 'reset: the others stay');
my ($other_reset2, $postgres_reset2) = split / (?=\d{4}-)/, $node->safe_psql('postgres', $resets);
is($postgres_reset2, $postgres_reset, 'reset: nor their time');
sql_is($node, 'postgres', "SELECT '$other_reset2'::timestamptz > '$other_reset', '$other_reset2' > '$postgres_reset', '$other_reset2' <= clock_timestamp()", 't|t|t', 'reset: it has a new time');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE other; DROP DATABASE other');
sql_is($node, 'postgres', $rows, '', 'dropped: its row is gone; a copy has none yet');
is(counters($node, 'copy')->{claimed}, 0, 'a copy counts from 0');
$node->safe_psql('postgres', 'DROP DATABASE copy');
$_->quit for $one, $two;
$node->stop;

done_testing();
