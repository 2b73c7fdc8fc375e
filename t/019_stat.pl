
# What operators see: each event moves its counter of idem_stat by one, whatever
# becomes of the transaction, and no other; gauges are right on small tables and
# cheap on large ones; idem_in_flight tells who holds what, and who waits for it.
# Both are for members of pg_monitor only.

use strict;
use warnings;

use CPAN::Meta::YAML;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @counters = qw(started replayed in_progress mismatched finished released taken_over claimed duplicates
  throttle_allowed throttle_rejected throttle_evicted tokens_issued tokens_redeemed tokens_refused
  codes_issued codes_verified codes_refused purged guard_errors);
my $columns = join ', ', @counters;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $node = new_node('preloaded', streaming => 1, conf => <<'CONF');
shared_preload_libraries = 'idempotency'
idempotency.purge_interval = 0
idempotency.throttle_entries = 16
restart_after_crash = on
max_connections = 50
CONF
my $version = $node->safe_psql('postgres', 'SHOW server_version_num');

my $functions = <<'SQL';
-- what a key's row would be when time has passed
CREATE PROCEDURE lapse(k text) LANGUAGE sql AS $$ UPDATE idem_keys SET lease_until = clock_timestamp() WHERE key = k $$;
CREATE PROCEDURE expire(k text) LANGUAGE sql AS $$ UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key = k $$;
CREATE FUNCTION fence(k text) RETURNS bigint LANGUAGE sql AS $$ SELECT fence FROM idem_keys WHERE key = k $$;
CREATE PROCEDURE wait_until(t timestamptz) LANGUAGE plpgsql AS $$
BEGIN
	WHILE clock_timestamp() <= t LOOP
		PERFORM pg_sleep(0.001);
	END LOOP;
END $$;
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS $$ SELECT 2 * n $$;
CREATE FUNCTION fails() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE division_by_zero; END $$;
CREATE TABLE secrets (name text PRIMARY KEY, secret text);
CREATE FUNCTION redeem(n text) RETURNS text LANGUAGE sql AS $$ SELECT state FROM secrets, idem_token_redeem('reset', secret) WHERE name = n $$;
CREATE FUNCTION verify(n text) RETURNS text LANGUAGE sql AS $$ SELECT state FROM secrets, idem_code_verify('otp', n, secret) WHERE name = n $$;
CREATE FUNCTION throttle(k text) RETURNS boolean LANGUAGE sql AS $$ SELECT allowed FROM idem_throttle(k, '1 hour') $$;
CREATE TABLE strict (k text);
CREATE TRIGGER once AFTER INSERT OR UPDATE OR DELETE ON strict FOR EACH ROW EXECUTE FUNCTION idem_once('k');
CREATE TABLE lax (k text);
CREATE TRIGGER once BEFORE INSERT ON lax FOR EACH ROW EXECUTE FUNCTION idem_once('k', '1 day', 'skip');
SQL
$node->safe_psql('postgres', $functions);

# A session's own row, as a hash; none are NULL.
sub counters
{
	my ($db, $server) = @_;
	my %row;

	@row{@counters} = split /\|/, ($server // $node)->safe_psql($db, "SELECT $columns FROM idem_stat WHERE datname = current_database()"), -1;
	return \%row;
}

# "started 1 finished 1"
sub changes
{
	my ($before, $after) = @_;

	return join ' ', map { "$_ " . ($after->{$_} - $before->{$_}) } grep { $after->{$_} ne $before->{$_} } @counters;
}

# Since the last time that somebody asked, so nothing may come late either.
my %last;

sub moved
{
	my ($db, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $now = counters($db);

	is(changes($last{$db}, $now), $expected, $name);
	$last{$db} = $now;
}

# A script of a session, what it moves, and the SQLSTATEs of its errors.
sub moves
{
	my ($name, $sql, $expected, $errors) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, undef, $err) = $node->psql('postgres', $sql, on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	my $now = counters('postgres');

	is(changes($last{postgres}, $now) . ' / ' . join(' ', $err =~ /(?:ERROR|FATAL):\s+(\w{5})\s*$/mg), "$expected / " . ($errors // ''), $name)
	  || diag($err);
	$last{postgres} = $now;
}

$last{postgres} = counters('postgres');
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
	[ 'guard, expired', "BEGIN; SELECT idem_claim('x', '1 millisecond'); CALL wait_until(now() + '2 milliseconds'); COMMIT", 'claimed 1 guard_errors 1', 'ID005' ],
	[ 'guard, expired at PREPARE', "BEGIN; SELECT idem_claim('x', '1 millisecond'); CALL wait_until(now() + '2 milliseconds'); PREPARE TRANSACTION 'x'", 'claimed 1 guard_errors 1', 'ID005' ],
	[ 'guard, rolled back', "BEGIN; SELECT idem_begin('g'); ROLLBACK", 'started 1' ],

	# the throttle, with room for 16 limits
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
moves(@$_) for @events;

#
# Another session
#
my $one = $node->background_psql('postgres');
my $two = $node->background_psql('postgres');
my $own = 'SELECT started, claimed FROM idem_stat WHERE datname = current_database()';
my @was = @{ counters('postgres') }{qw(started claimed)};

$one->query_safe("BEGIN; SELECT idem_begin('b'); SELECT idem_claim('own')");
moved('postgres', '', 'not seen while the transaction runs');
is($one->query_safe($own), ($was[0] + 1) . '|' . ($was[1] + 1), 'but by itself');
is($one->query_safe("SELECT idem_claim('own 2'); $own"), 't' . "\n" . ($was[0] + 1) . '|' . ($was[1] + 2), 'also what comes later');
is($two->query_safe("SELECT state FROM idem_begin('b')"), 'in_progress', 'another holds the key');
is($two->query_safe("SELECT state FROM idem_begin('b', wait => '10 milliseconds')"), 'in_progress', 'and still does');
$one->query_safe('ROLLBACK');
moved('postgres', 'started 1 in_progress 2 claimed 2', 'seen when it has ended, each once');
$one->query_safe("BEGIN; SELECT idem_begin('b'); SELECT idem_finish('b'); COMMIT");
moved('postgres', 'started 1 finished 1', 'committed, the session goes on');

$one->query_safe("BEGIN; SELECT idem_claim('prepared'); PREPARE TRANSACTION 'prepared'");
moved('postgres', 'claimed 1', 'prepared: it has ended');
$two->query_safe("COMMIT PREPARED 'prepared'");
moved('postgres', '', 'which is counted once');

# what was waited for
sub waiting
{
	my ($session, $sql) = @_;

	$session->query_until(qr/^waiting/m, "\\echo waiting\n$sql;\n");
}

sub wait_for_waiters
{
	my ($db, $n) = @_;

	$node->poll_query_until($db, "SELECT count(*) = $n FROM pg_locks WHERE locktype IN ('advisory', 'transactionid') AND NOT granted")
	  or die "there are not $n waiters";
}

$one->query_safe("BEGIN; SELECT idem_claim('w')");
waiting($two, "SELECT idem_claim('w')");
wait_for_waiters('postgres', 1);
$one->query_safe('COMMIT');
is($two->query_safe('SELECT 1'), "f\n1", 'a claim waited');
moved('postgres', 'claimed 1 duplicates 1', 'a claim that waited is counted once');

# Of a row with two keys, the first in the order of digests, a9, is claimed after a wait in which
# the other one is taken: it is taken back, and nobody has claimed it.
$node->safe_psql('postgres', "CREATE TABLE lists (a text, b text); CREATE TRIGGER once BEFORE INSERT ON lists FOR EACH ROW EXECUTE FUNCTION idem_once('a; b', NULL, 'skip', 'public.events(a); public.events(b)')");
my $three = $node->background_psql('postgres');
my $xid = $three->query_safe("BEGIN; SELECT pg_current_xact_id()");
$one->query_safe("BEGIN; SELECT idem_claim('b9', scope => 'public.events(b)')");
waiting($two, "INSERT INTO lists VALUES ('a9', 'b9') RETURNING a");
wait_for_waiters('postgres', 1);
$three->query_safe("SELECT idem_claim('a9', scope => 'public.events(a)')");
$one->query_safe('ROLLBACK');
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE transactionid = '$xid' AND NOT granted") or die 'the trigger does not wait for the other key';
$node->safe_psql('postgres', "SELECT idem_claim('b9', scope => 'public.events(b)')");
$three->query_safe('ROLLBACK');
is($two->query_safe('SELECT 1'), '1', 'the row is dropped');
moved('postgres', 'claimed 3 duplicates 1', 'a claim that is taken back is not counted');
$three->quit;

# Reading counts what this transaction has done so far; that is not done again.
$one->query_safe("BEGIN; SELECT idem_claim('again'); $own; $own; SAVEPOINT s; SELECT idem_claim('again 2'); ROLLBACK TO s; $own; COMMIT");
moved('postgres', 'claimed 2', 'looked at in between');

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
append_to_file("$dir/storm.sql", $script);
my ($clients, $transactions) = (20, 30);
my ($stdout, $stderr) = ('', '');
IPC::Run::run([ 'pgbench', '-n', '-c', $clients, '-j', '2', '-t', $transactions, '-f', "$dir/storm.sql", $node->connstr('postgres') ], '>', \$stdout, '2>', \$stderr)
  or diag($stderr);
my $storm = counters('postgres');
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
cmp_ok($moved{throttle_allowed}, '<', 110, "$clients clients: and no more");
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
$last{other} = counters('other');
is("@{$last{other}}{qw(started claimed)}", '1 2', 'another database counts for itself');
moved('postgres', '', 'this one does not');
sql_is($node, 'postgres', $rows, 'other|2|t|t|t|t|f', 'its row is shown, without gauges');
sql_is($node, 'other', 'SELECT datname, datid = d.oid FROM idem_stat JOIN pg_database d USING (datname) ORDER BY 1', "other|t\npostgres|t", 'one row a database');

# A reset is of one database, and of what the session itself has not yet reported.
my $resets = 'SELECT string_agg(stats_reset::text, chr(32) ORDER BY datname) FROM idem_stat';
my ($other_reset, $postgres_reset) = split / (?=\d{4}-)/, $node->safe_psql('postgres', $resets);
$node->safe_psql('other', "BEGIN; SELECT idem_claim('4'); SELECT idem_stat_reset(); COMMIT; SELECT idem_claim('5')");
is(changes($last{other}, counters('other')), 'started -1 claimed -1', 'reset: from 0, with what came after');
is(counters('other')->{claimed}, 1, 'reset: only that');
moved('postgres', '', 'reset: the others stay');
my ($other_reset2, $postgres_reset2) = split / (?=\d{4}-)/, $node->safe_psql('postgres', $resets);
is($postgres_reset2, $postgres_reset, 'reset: nor their time');
sql_is($node, 'postgres', "SELECT '$other_reset2'::timestamptz > '$other_reset', '$other_reset2' > '$postgres_reset', '$other_reset2' <= clock_timestamp()", 't|t|t', 'reset: it has a new time');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE other; DROP DATABASE other');
sql_is($node, 'postgres', $rows, '', 'dropped: its row is gone; a copy has none yet');
is(counters('copy')->{claimed}, 0, 'a copy counts from 0');
$node->safe_psql('postgres', 'DROP DATABASE copy');

#
# Gauges
#
$node->safe_psql('postgres', 'CREATE DATABASE gauges TEMPLATE template0');
$node->safe_psql('gauges', "CREATE EXTENSION idempotency; $functions");

sub gauges_are
{
	my ($expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($node, 'gauges', "SELECT live_keys, (SELECT string_agg(key, chr(32)) FROM idem_keys WHERE expires_at = oldest_expired), open_leases, extract(epoch FROM oldest_claim_age)::int / 60, last_purge FROM idem_stat WHERE datname = 'gauges'", $expected, "gauges: $name");
}

# so many minutes ago
sub begun
{
	my ($k, $minutes) = @_;

	return "UPDATE idem_keys SET created_at = clock_timestamp() - interval '$minutes minutes 10 seconds' WHERE key = '$k';";
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

#
# Who holds what
#
$node->safe_psql('postgres', <<'SQL');
CREATE DATABASE flight TEMPLATE template0;
CREATE ROLE clerk LOGIN;
CREATE ROLE monitor LOGIN;
GRANT pg_monitor TO monitor;
SQL
$node->safe_psql('flight', "CREATE EXTENSION idempotency; $functions; SELECT idem_grant('clerk')");
$node->safe_psql('flight', 'CREATE TABLE note (t timestamptz)');

sub flight_is
{
	my ($select, $expected, $name, $where) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($node, 'flight', "SELECT $select FROM idem_in_flight WHERE " . ($where // 'true') . ' ORDER BY since, key', $expected, "in flight: $name");
}

sub clock
{
	return $node->safe_psql('flight', 'SELECT clock_timestamp()');
}

my @as_clerk = (extra_params => [ '-U', 'clerk' ]);
my $clerk = $node->background_psql('flight', @as_clerk);
my $boss = $node->background_psql('flight');
my ($first, $second, $third) = map { $node->background_psql('flight', @as_clerk) } 1 .. 3;
my ($clerk_pid, $first_pid, $second_pid, $third_pid) = map { $_->query_safe('SELECT pg_backend_pid()') } $clerk, $first, $second, $third;
my $all = 'pid, role, key, scope, held_by, lease_until, waiting';
my $superuser = $node->safe_psql('flight', 'SELECT current_user');

# open claims of another database
$one->query_safe("BEGIN; SELECT idem_begin('elsewhere'); SELECT idem_begin('elsewhere lease', lease => '1 hour')");
flight_is($all, '', 'nothing');
sql_is($node, 'flight', "SELECT oldest_claim_age, open_leases FROM idem_stat WHERE datname = 'flight'", '|0', 'gauges: nothing of other databases');
$clerk->query_safe('BEGIN');
$before = clock();
$clerk->query_safe("SELECT idem_begin('order', scope => 'shop')");
$after = clock();
flight_is($all, "$clerk_pid|clerk|order|shop|transaction||{}", 'a claim');
flight_is("since BETWEEN '$before' AND '$after'", 't', 'since it was begun');
# whoever asks first is first; the pids are in another order
waiting($second, "SELECT state FROM idem_begin('order', scope => 'shop', wait => '1 hour')");
wait_for_waiters('flight', 1);
waiting($third, "SELECT state FROM idem_begin('order', scope => 'shop', wait => '1 hour')");
wait_for_waiters('flight', 2);
waiting($first, "SELECT idem_claim('order', scope => 'shop')");
wait_for_waiters('flight', 3);
$boss->query_safe("BEGIN; SELECT idem_begin('order')");
my $boss_pid = $boss->query_safe('SELECT pg_backend_pid()');
flight_is($all, "$clerk_pid|clerk|order|shop|transaction||{$second_pid,$third_pid,$first_pid}\n$boss_pid|$superuser|order||transaction||{}", 'who waits for it; another scope is another key');
$boss->query_safe('ROLLBACK');
$clerk->query_safe("SELECT idem_finish('order', scope => 'shop')");
flight_is($all, "$clerk_pid|clerk|order|shop|transaction||{$second_pid,$third_pid,$first_pid}", 'finished, not committed');
$clerk->query_safe('COMMIT');
is(join(' ', map { $_->query_safe("SELECT '-'") } $second, $third, $first), "replayed\n- replayed\n- f\n-", 'who waited has an answer');
flight_is($all, '', 'committed');

# a claim hands over: who waited has it now, since then
$clerk->query_safe("BEGIN; SELECT idem_begin('next')");
$first->query_safe('BEGIN');
waiting($first, "SELECT state FROM idem_begin('next', wait => '1 hour')");
wait_for_waiters('flight', 1);
$before = clock();
$clerk->query_safe('ROLLBACK');
is($first->query_safe("SELECT '-'"), "started\n-", 'who waited has it');
flight_is("pid, key, since > '$before', waiting", "$first_pid|next|t|{}", 'handed over');
$first->query_safe('ROLLBACK');

# what a session has noted before is not shown with what it has now
$clerk->query_safe("BEGIN; SELECT idem_begin('order 2'); ROLLBACK");
flight_is($all, '', 'rolled back');
$clerk->query_safe("BEGIN; SAVEPOINT s; SELECT idem_begin('order 2')");
$before = clock();
$clerk->query_safe("ROLLBACK TO s; SELECT idem_begin('order 3')");
flight_is($all, "$clerk_pid|clerk|order 3||transaction||{}", 'rolled back to a savepoint');
$clerk->query_safe("SELECT idem_begin('order 2')");
flight_is("key, since > '$before'", "order 3|t\norder 2|t", 'claimed again: once, since the last time');
$first->query_safe("SELECT state FROM idem_begin('order 2')");
$clerk->query_safe("SELECT idem_release('order 2')");
flight_is('key', "order 3\norder 2", 'released: the lock stays until the transaction ends');
$clerk->query_safe('ROLLBACK');
$first->query_safe("BEGIN; SELECT idem_begin('order 2')");
flight_is($all, "$first_pid|clerk|order 2||transaction||{}", 'the same key, another session');
$first->query_safe('ROLLBACK');

# the last four are known, all are listed
$clerk->query_safe('BEGIN');
$before = clock();
$clerk->query_safe("SELECT idem_begin('k' || i) FROM generate_series(1, 6) i");
flight_is("pid = $clerk_pid, role, key, scope, since < '$before'", "t|clerk|||t\nt|clerk|||t\nt|clerk|k3||f\nt|clerk|k4||f\nt|clerk|k5||f\nt|clerk|k6||f", 'six claims');
sql_is($node, 'flight', "SELECT oldest_claim_age > clock_timestamp() - '$before' FROM idem_stat WHERE datname = 'flight'", 't', 'the oldest of them counts');
$clerk->query_safe('ROLLBACK');
$clerk->query_safe("BEGIN; SELECT idem_begin('k1')");
flight_is('key', 'k1', 'not mixed up with those of the last transaction');
$clerk->query_safe('ROLLBACK');

# 95 bytes, and no half of a character
$clerk->query_safe("BEGIN; SELECT idem_begin(repeat('\x{c3}\x{a4}', 60), scope => 's' || repeat('\x{c3}\x{a4}', 60)), idem_begin(repeat('x', 95)), idem_begin(repeat('x', 96), scope => repeat('\x{e2}\x{82}\x{ac}', 40))");
flight_is("key = repeat('\x{c3}\x{a4}', 47), scope = 's' || repeat('\x{c3}\x{a4}', 47), key = repeat('x', 95), scope = repeat('\x{e2}\x{82}\x{ac}', 31)", "t|t|f|f\nf|f|t|f\nf|f|t|t", 'long keys and scopes are cut');
$clerk->query_safe('ROLLBACK');

# A batch, and an application's own locks, which look alike but for their space.
$clerk->query_safe("BEGIN; SELECT idem_claim_many('{b1, b2}'); SELECT idem_claim('c'); SELECT idem_begin('mine')");
my ($classid, $objid) = split /\|/, $node->safe_psql('flight', "SELECT classid::bigint::bit(32)::int, objid::bigint::bit(32)::int FROM pg_locks WHERE locktype = 'advisory' AND pid = $clerk_pid");
$boss->query_safe("SELECT pg_advisory_lock(1), pg_advisory_lock($classid, $objid)");
waiting($first, "SELECT pg_advisory_lock($classid, $objid), pg_advisory_unlock_all()");
wait_for_waiters('flight', 1);
flight_is($all, "$clerk_pid|clerk|mine||transaction||{}", "neither a batch, nor a row that is written, nor an application's own locks");
$boss->query_safe('SELECT pg_advisory_unlock_all()');
$first->query_safe('SELECT 1');
flight_is($all, "$clerk_pid|clerk|mine||transaction||{}", 'nothing of other databases');
sql_is($node, 'postgres', "SELECT key, held_by FROM idem_in_flight WHERE key ~ 'elsewhere' AND held_by = 'transaction' ORDER BY since", "elsewhere|transaction\nelsewhere lease|transaction", 'in flight: there it is');
$one->query_safe('ROLLBACK');
# by numbers the same key as in the other database
$two->query_safe("BEGIN; SELECT idem_begin('mine')");
flight_is($all, "$clerk_pid|clerk|mine||transaction||{}", 'the same key in another database');
$_->query_safe('ROLLBACK') for $clerk, $two;

# A note of a session that has ended is nobody else's.
$second->query_safe("BEGIN; SELECT idem_begin('ended')");
$second->quit;
$node->poll_query_until('flight', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $second_pid");
$second = $node->background_psql('flight');
$second_pid = $second->query_safe('SELECT pg_backend_pid()');
$second->query_safe("BEGIN; SELECT idem_begin('ended', scope => 'new'); SELECT idem_begin('ended')");
flight_is('pid, key, scope', "$second_pid|ended|new\n$second_pid|ended|", 'after a session has ended');
$second->query_safe('ROLLBACK');
# nor does it say since when the same session has the lock for something else
$second->query_safe("SELECT idem_claim('forget')");
$before = clock();
$second->query_safe("BEGIN; SELECT idem_forget('forget')");
flight_is("pid, since > '$before'", "$second_pid|t", 'a key that is forgotten');
$second->query_safe('ROLLBACK');
# who was told, holds nothing
$second->query_safe("BEGIN; SELECT idem_begin('order', scope => 'shop'); SELECT idem_claim('order', scope => 'shop'); SELECT idem_claim_many('{b}')");
flight_is($all, '', 'replayed');
$second->query_safe('ROLLBACK');

# leases
$node->safe_psql('flight', "SELECT idem_begin('lease', lease => '1 hour', scope => 'l'); SELECT idem_begin('lapsed', lease => '1 hour'); CALL lapse('lapsed'); SELECT idem_begin('done', lease => '1 hour'); SELECT idem_finish('done', fence => fence('done')); SELECT idem_claim('claim')");
flight_is('pid, role, key, scope, held_by, waiting', '||lease|l|lease|{}', 'a running lease, no other row');
sql_is($node, 'flight', "SELECT f.lease_until = k.lease_until, since = created_at FROM idem_in_flight f JOIN idem_keys k USING (key)", 't|t', 'in flight: when the lease ends');
$node->safe_psql('flight', "SELECT idem_release('lease', 'l', fence('lease'))");
flight_is($all, '', 'a released lease');

# prepared transactions, also after a restart
$before = clock();
$clerk->query_safe("BEGIN; SELECT idem_begin('p'); SELECT idem_finish('p'); PREPARE TRANSACTION 'p'");
$after = clock();
waiting($first, "SELECT idem_claim('p')");
wait_for_waiters('flight', 1);
flight_is("pid, role, key, scope, since BETWEEN '$before' AND '$after', held_by, waiting", "|clerk|||t|transaction|{$first_pid}", 'a prepared transaction');
$_->quit for $clerk, $boss, $second, $third, $one, $two;
$node->safe_psql('flight', "SELECT pg_cancel_backend($first_pid)");
eval { $first->quit };

#
# A clean restart keeps the counters, of all databases
#
my $file = $node->data_dir . '/pg_stat/idempotency_stat.stat';
my $kept = "SELECT datname, $columns, stats_reset, last_purge FROM idem_stat ORDER BY 1";
my $rows_before = $node->safe_psql('postgres', $kept);
like($rows_before, qr/^flight\|.*^gauges\|.*^postgres\|/ms, 'several databases');
$node->stop;
ok(-s $file, 'stopped: a file keeps them');
$node->start;
is($node->safe_psql('postgres', $kept), $rows_before, 'started: they are what they were');
ok(!-e $file, 'and the file is gone');
flight_is("pid, role, key, scope, since BETWEEN '$before' AND '$after', held_by, waiting", '|clerk|||t|transaction|{}', 'a prepared transaction, after the restart');
$node->safe_psql('flight', "ROLLBACK PREPARED 'p'");
$last{postgres} = counters('postgres');
moves('after a restart', "SELECT idem_claim('restarted')", 'claimed 1');

# What a crash leaves: nothing.
sub from_zero
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($node, 'postgres', "SELECT datname, " . join(' + ', @counters) . ", stats_reset > '$before' FROM idem_stat", 'postgres|0|t', $name);
}

$before = clock();
my $victim = $node->background_psql('postgres');
my $pid = $victim->query_safe('SELECT pg_backend_pid()');
crash_by($node, $pid);
eval { $victim->quit };
from_zero('a crash: from 0');
$last{postgres} = counters('postgres');
moves('after a crash', "SELECT idem_claim('crashed')", 'claimed 1');

# An immediate stop is one.
$before = clock();
$node->stop('immediate');
$node->start;
ok(!-e $file, 'an immediate stop: no file');
from_zero('an immediate stop: from 0');

#
# The file is damaged, or of another database cluster
#

# The place in the log where the start begins; with what is made of the file.
sub start_with
{
	my ($name, $contents) = @_;

	$before = clock();
	$node->stop;
	my $bytes = $contents->(slurp_file($file));
	unlink $file;
	append_to_file($file, $bytes);
	my $log_start = -s $node->logfile;
	$node->start;
	ok(eventually(sub { !-e $file }), "$name: the server starts, and the file is gone");
	return $log_start;
}

for my $damage (
	[ 'garbage', sub { 'garbage' x 100 } ],
	[ 'cut', sub { substr($_[0], 0, -1) } ],
	[ 'longer', sub { $_[0] . 'x' } ],
	[ 'empty', sub { '' } ])
{
	my ($name, $contents) = @$damage;

	my $log_start = start_with($name, $contents);
	like(slurp_file($node->logfile, $log_start), qr/LOG:  ignoring invalid data in file "pg_stat\/idempotency_stat.stat"/, "$name: the log says so");
	from_zero("$name: from 0");
	$last{postgres} = counters('postgres');
	moves($name, "SELECT idem_claim('$name')", 'claimed 1');
}

# All places are taken: the file has a header, then records that begin with the database, and a checksum.
my $nplaces = 500;
sub full_of
{
	my ($oid, $contents) = @_;
	my $record = (length($contents) - 36) / $nplaces;

	substr($contents, 32 + $_ * $record, 4) = pack('L', $oid->($_)) for 0 .. $nplaces - 1;
	return seal(substr($contents, 0, -4));
}
start_with('full of dropped databases', sub { full_of(sub { 4_000_000_000 + $_[0] }, @_) });
from_zero('full of dropped databases: one gives way');
$last{postgres} = counters('postgres');
moves('full of dropped databases', "SELECT idem_claim('full')", 'claimed 1');
start_with('full', sub { full_of(sub { 1 }, @_) });
my ($ret, $out, $err) = $node->psql('postgres', "SELECT idem_claim('full'), idem_claim('full 2'); SELECT idem_stat_reset(); SELECT claimed IS NULL, live_keys > 0, stats_reset IS NULL FROM idem_stat WHERE datname = 'postgres'");
is("$ret $out$err", "0 f|t\n\nt|t|t", 'full of databases that exist: nothing is counted, nothing fails');
start_with('nothing of that', sub { '' });

#
# For whom it is
#
my @as_monitor = ('-U', 'monitor');
$node->safe_psql('postgres', 'CREATE ROLE somebody LOGIN; CREATE ROLE operator LOGIN; CREATE DATABASE own TEMPLATE template0');
$node->safe_psql('own', <<"SQL");
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO somebody;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO somebody;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO somebody;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO clerk, somebody, pg_monitor;
SELECT idem.idem_grant('clerk', '{claims, call, throttle, tokens, lookup}'), idem.idem_grant('operator', '{operate}');
SQL
$clerk = $node->background_psql('own', @as_clerk);
$clerk_pid = $clerk->query_safe('SELECT pg_backend_pid()');
$clerk->query_safe("BEGIN; SELECT idem.idem_begin('seen')");
sql_is($node, 'own', "SELECT pid, role, key, since < clock_timestamp() FROM idem.idem_in_flight", "$clerk_pid|clerk|seen|t", 'pg_monitor sees who holds what', @as_monitor);
$clerk->query_safe("SELECT state FROM generate_series(1, 4) i, idem.idem_begin('5' || i)");
sql_is($node, 'own', "SELECT pid, role, since < clock_timestamp() FROM idem.idem_in_flight WHERE key IS NULL", "$clerk_pid|clerk|t", 'and since when where that is not noted', @as_monitor);
sql_is($node, 'own', "SELECT started, live_keys, oldest_claim_age > '0' FROM idem.idem_stat WHERE datname = 'own'", '0|0|t', 'pg_monitor sees counters and gauges', @as_monitor);
$clerk->query_safe('ROLLBACK');
sql_is($node, 'own', "SELECT started FROM idem.idem_stat WHERE datname = 'own'", '5', 'pg_monitor sees what has ended', @as_monitor);
for my $sql ('SELECT FROM idem.idem_keys', 'SELECT FROM idem.idem_transaction_claims', 'SELECT idem.idem_stat_reset()', "SELECT idem.idem_claim('m')")
{
	sql_fails($node, 'own', $sql, '42501', "pg_monitor may not: $sql", @as_monitor);
}
for my $role (qw(clerk operator somebody))
{
	sql_fails($node, 'own', $_, '42501', "$role may not: $_", '-U', $role)
	  for map({ "SELECT FROM idem.$_" } qw(idem_stat idem_in_flight idem_transaction_claims)), 'SELECT idem.idem_stat_counters()', 'SELECT idem.idem_held_keys()';
}
$clerk->query_safe("SELECT idem.idem_claim('reset')");
sql_fails($node, 'own', 'SELECT idem.idem_stat_reset()', '42501', 'claims do not include the reset', '-U', 'clerk');
sql_is($node, 'own', 'SELECT idem.idem_stat_reset()', '', 'operate does', '-U', 'operator');
is($node->safe_psql('own', "SELECT started + claimed FROM idem.idem_stat WHERE datname = 'own'"), 0, 'and it is done');
$clerk->quit;

# what everybody has of it: nothing
my $privileges = <<'SQL';
SELECT c.relname, a.grantee::regrole, a.privilege_type
FROM pg_class c, aclexplode(c.relacl) a WHERE c.relname LIKE 'idem\_%' AND c.relkind = 'v' AND a.grantee <> c.relowner
UNION ALL
SELECT p.proname, a.grantee::regrole, a.privilege_type
FROM pg_proc p, aclexplode(p.proacl) a WHERE p.proname IN ('idem_stat_counters', 'idem_held_keys') AND a.grantee <> p.proowner
ORDER BY 1, 2, 3
SQL
# what CREATE EXTENSION grants on a schema that was there before, pg_dump would forget
sql_is($node, 'own', "SELECT count(*) FROM pg_init_privs WHERE classoid = 'pg_namespace'::regclass AND objoid = 'idem'::regnamespace", '0', 'privileges on the schema are not the extension\'s');
my $expected = "idem_held_keys|pg_monitor|EXECUTE\nidem_in_flight|pg_monitor|SELECT\nidem_stat|pg_monitor|SELECT\nidem_stat_counters|pg_monitor|EXECUTE";
sql_is($node, $_, $privileges, $expected, "privileges in $_: pg_monitor's, no others") for qw(own postgres);

# dumped and restored
my $dump = "$dir/own.sql";
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('own') ], 'pg_dump');
unlike(slurp_file($dump), qr/idem_(?:stat\b|in_flight|stat_counters|held_keys|transaction_claims)/, 'what the extension makes is not in a dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored TEMPLATE template0');
$node->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-o', "$dir/restore.log", '-f', $dump, $node->connstr('restored') ], 'restored');
sql_is($node, 'restored', $privileges, $expected, 'restored: the same privileges');
sql_is($node, 'restored', "SELECT claimed, live_keys > 0 FROM idem.idem_stat WHERE datname = 'restored'", '0|t', 'restored: pg_monitor reads it', @as_monitor);
sql_is($node, 'restored', 'SELECT count(*) FROM idem.idem_in_flight', '0', 'restored: both of it', @as_monitor);
sql_fails($node, 'restored', 'SELECT FROM idem.idem_stat', '42501', "restored: $_ may not", '-U', $_) for qw(clerk somebody);

#
# The query file of postgres_exporter
#
my $yaml = CPAN::Meta::YAML->read("$FindBin::RealBin/../doc/postgres_exporter.yaml");
ok($yaml, 'postgres_exporter.yaml is YAML') or diag(CPAN::Meta::YAML->errstr);
my $queries = $yaml->[0];
my @psql_header = ('--pset=tuples_only=off', '--pset=footer=off');

# One row, as a hash, and the columns in order.
sub exported
{
	my ($server, $sql, @extra) = @_;
	my ($ret, $out, $err) = $server->psql('postgres', $sql, extra_params => [ @psql_header, @extra ]);
	my ($names, @values) = split /\n/, $out;
	my (%row, @names);

	diag($err) if $ret;
	@names = split /\|/, $names;
	@row{@names} = map { split /\|/, $_, -1 } @values;
	return (\%row, \@names, scalar @values);
}

$node->safe_psql('postgres', "SELECT idem_begin('exported', lease => '1 hour'); SELECT idem_claim('exported 2'); CALL expire('exported 2')");
for my $name (sort keys %$queries)
{
	my $query = $queries->{$name};
	my %metrics = map { %$_ } @{ $query->{metrics} };
	my ($row, $names, $nrows) = exported($node, $query->{query}, @as_monitor);

	is($nrows, 1, "$name: one row");
	is(join(' ', @$names), join(' ', map { keys %$_ } @{ $query->{metrics} }), "$name: its columns are the metrics");
	like(join(' ', map { $_->{usage} } values %metrics), qr/^(?:(?:LABEL|COUNTER|GAUGE) ?)+$/, "$name: their kinds");
	is(scalar(grep { !length($_->{description} // '') } values %metrics), 0, "$name: their descriptions");
	is(join(' ', grep { $metrics{$_}{usage} ne 'LABEL' && $row->{$_} !~ /^\d+(?:\.\d+)?(?:e[-+]\d+)?$/ } @$names), '', "$name: all numbers");
	is(join(' ', grep { ($metrics{$_}{usage} eq 'COUNTER') != /_total$/ } @$names), '', "$name: counters, and nothing else, are totals");
	unlike($query->{query}, qr/idem_in_flight/, "$name: is cheap");
}
my ($exported) = exported($node, $queries->{idem}{query}, @as_monitor);
my $now = counters('postgres');
is(join(' ', map { $exported->{"${_}_total"} } @counters), join(' ', map { $now->{$_} } @counters), 'exported: all counters');
is("$exported->{datname} $exported->{open_leases}", 'postgres ' . $node->safe_psql('postgres', 'SELECT count(*) FROM idem_keys WHERE finished_at IS NULL AND lease_until > clock_timestamp()'), 'exported: gauges');
cmp_ok($exported->{oldest_expired_age_seconds}, '>', 0, 'exported: an age in seconds');
cmp_ok(abs($exported->{stats_reset_timestamp_seconds} - time), '<', 1000, 'exported: a time in seconds');

#
# A hot standby: counters of its own, the leases of the primary
#
$node->safe_psql('postgres', 'DROP DATABASE gauges');
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', 'max_standby_streaming_delay = -1');
$standby->start;
$node->safe_psql('postgres', "SELECT idem_begin('standby', lease => '1 hour')");
$holder = $node->background_psql('postgres');
$holder->query_safe("BEGIN; SELECT idem_claim_many('{held}')");
# a commit, so that the row is replicated
$node->safe_psql('postgres', "SELECT idem_claim('committed')");
$node->wait_for_catchup($standby);
$last{standby} = counters('postgres', $standby);
is(join(' ', values %{ $last{standby} }), join(' ', (0) x @counters), 'standby: counts from 0');
my $waiter = $standby->background_psql('postgres');
waiting($waiter, "SELECT state FROM idem_begin('held', wait => '1 hour')");
my $event = $version < 170000 ? 'Extension' : 'IdempotencyHolder';
ok( $standby->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Extension' AND wait_event = '$event'"), "standby: who waits for a holder waits for $event");
$holder->query_safe('COMMIT');
is($waiter->query_safe('SELECT 1'), "replayed\n1", 'standby: waited for the holder');
$standby->psql('postgres', "SELECT idem_begin('committed'); SELECT idem_begin('standby'); SELECT idem_claim('committed'); SELECT throttle('standby')");
is(changes($last{standby}, counters('postgres', $standby)), 'replayed 2 in_progress 1 duplicates 1 throttle_allowed 1', 'standby: counts what it does');
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
$bare->safe_psql('postgres', "$functions; SELECT idem_grant('clerk')");
my $bare_row = "SELECT $columns, stats_reset IS NULL, live_keys, open_leases, oldest_claim_age IS NULL FROM idem_stat";
my $bare_events = "SELECT idem_claim('1'), idem_claim('1'); SELECT idem_begin('2', lease => '1 hour'); BEGIN; SELECT idem_begin('3'); ROLLBACK";
$clerk = $bare->background_psql('postgres', @as_clerk);
$clerk_pid = $clerk->query_safe('SELECT pg_backend_pid()');
$clerk->query_safe("BEGIN; SELECT idem_begin('held')");
if ($version < 170000)
{
	($ret, $out, $err) = $bare->psql('postgres', "$bare_events; SELECT idem_stat_reset(); $bare_row");
	is("$ret$err", '0', 'no shared memory: no error, no warning');
	is((split /\n/, $out)[-1], '|' x @counters . 't|2|1|f', 'no shared memory: counters are NULL, gauges are there');
	sql_is($bare, 'postgres', "SELECT pid, role, key, scope, since < clock_timestamp(), held_by FROM idem_in_flight WHERE held_by = 'transaction'", "$clerk_pid|clerk|||t|transaction", 'no shared memory: a claim is listed, without its key', @as_monitor);
	my ($row) = exported($bare, $queries->{idem}{query}, @as_monitor);
	is("$row->{started_total} $row->{live_keys}", ' 2', 'no shared memory: exported without counters');
}
else
{
	$bare->safe_psql('postgres', $bare_events);
	is(changes({ map { $_ => 0 } @counters }, counters('postgres', $bare)), 'started 2 claimed 1 duplicates 1', 'shared memory without preload: counts');
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

# Operators that somebody has planted in the schema are not those of the views.
my $planted = new_node('planted', schema => undef);
$planted->safe_psql('postgres', <<'SQL');
CREATE ROLE eve;
GRANT CREATE ON SCHEMA public TO eve;
SET ROLE eve;
CREATE FUNCTION evil(numeric, integer) RETURNS numeric LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil ran as %', current_user; END $$;
CREATE FUNCTION evil(bigint, real) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil ran as %', current_user; END $$;
CREATE FUNCTION evil(numeric, bigint) RETURNS numeric LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil ran as %', current_user; END $$;
CREATE FUNCTION round(float8, integer) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil ran as %', current_user; END $$;
CREATE OPERATOR * (FUNCTION = evil, LEFTARG = numeric, RIGHTARG = integer);
CREATE OPERATOR / (FUNCTION = evil, LEFTARG = bigint, RIGHTARG = real);
CREATE OPERATOR / (FUNCTION = evil, LEFTARG = numeric, RIGHTARG = bigint);
RESET ROLE;
CREATE EXTENSION idempotency;
SQL
sql_is($planted, 'postgres', 'SELECT live_keys FROM idem_stat', '0', 'planted operators do not run');
sql_is($planted, 'postgres', 'BEGIN; SELECT state FROM idem_begin(\'k\'); SELECT held_by FROM idem_in_flight; ROLLBACK', "started\ntransaction", 'nor in the other view');
$planted->stop;

done_testing();
