
# ALTER EXTENSION ... UPDATE in a database that is in use.  Before it, the library
# serves the definitions of 0.1.0; after it all that was there goes on: rows in every
# state, open claims, and what users have built on our functions and views.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', schema => undef, conf => "shared_preload_libraries = 'idempotency'\n");
my $host = $node->host;
my $port = $node->port;
my $dir = PostgreSQL::Test::Utils::tempdir();

$node->safe_psql('postgres', 'CREATE ROLE shop; CREATE ROLE clerk; CREATE ROLE worker; CREATE ROLE reader; CREATE ROLE hand; CREATE DATABASE old');

# Every function, once in its way.  "n" tells one run from the next.
my $everything = <<'SQL';
BEGIN;
SELECT state, attempt FROM idem_begin(:'n' || ' plain', request => '{"a": 1}');
SELECT idem_finish(:'n' || ' plain', '{"done": 1}');
COMMIT;
SELECT state, result FROM idem_begin(:'n' || ' plain', request => '{"a": 1.0}');
SELECT state, result FROM idem_begin(:'n' || ' plain', request => '{"a": 2}');
SELECT (idem_begin(:'n' || ' plain')).result;
SELECT left(idem_begin(:'n' || ' plain')::text, 9);
BEGIN;
SELECT state FROM idem_begin(:'n' || ' released');
SELECT idem_release(:'n' || ' released');
COMMIT;
SELECT state, fence AS old FROM idem_begin(:'n' || ' lease', lease => '1 hour') \gset
SELECT idem_checkpoint(:'n' || ' lease', 'charged', '{"at": 1}', fence => :old) > now() + interval '50 minutes';
SELECT idem_extend(:'n' || ' lease', '2 hours', fence => :old) > now() + interval '100 minutes';
SELECT state, retry_after > 3600 FROM idem_begin(:'n' || ' lease', lease => '1 hour');
SELECT state, phase, progress FROM idem_lookup(:'n' || ' lease');
UPDATE idem_keys SET lease_until = now() WHERE key = :'n' || ' lease';
SELECT fence AS new, state, attempt, phase, progress FROM idem_begin(:'n' || ' lease', lease => '1 hour') \gset
\echo :state :attempt :phase :progress
SELECT idem_finish(:'n' || ' lease', '"late"', fence => :old);
SELECT idem_finish(:'n' || ' lease', '"done"', fence => :new);
SELECT state, result, attempt FROM idem_lookup(:'n' || ' lease');
SELECT state, result, retry_after FROM idem_call(:'n' || ' call', 'work', '{"a": 1}');
SELECT s, r, w FROM idem_call(:'n' || ' call', 'work', '{"a": 1}') AS c (s, r, w);
SELECT state FROM idem_call(:'n' || ' call', 'work', '{"a": 2}');
SELECT idem_claim(:'n' || ' claim'), idem_claim(:'n' || ' claim');
SELECT count(*) FROM idem_claim_many(ARRAY[:'n' || ' claim', :'n' || ' many']);
INSERT INTO inbox VALUES (:'n');
INSERT INTO inbox VALUES (:'n');
SELECT idem_token_issue('login', '1 hour', '{"p": 1}', 'ann') AS token \gset
SELECT * FROM idem_token_peek('login', :'token');
SELECT * FROM idem_token_redeem('login', :'token');
SELECT state FROM idem_token_redeem('login', :'token');
SELECT idem_token_issue('login', '1 hour', subject => :'n') AS token \gset
SELECT idem_token_revoke('login', :'token'), idem_token_revoke_all('login', :'n');
SELECT idem_code_issue('otp', :'n', '1 hour', 6, 3) AS code \gset
SELECT * FROM idem_code_verify('otp', :'n', CASE :'code' WHEN '000000' THEN '111111' ELSE '000000' END);
SELECT * FROM idem_code_verify('otp', :'n', :'code');
SELECT allowed, remaining FROM idem_throttle(:'n', '1 hour', 2);
SELECT allowed, remaining FROM idem_throttle(:'n', '1 hour', 2, cost => 2);
SELECT idem_forget(:'n' || ' claim'), idem_forget_scope('no such scope');
BEGIN;
SELECT state FROM idem_begin(:'n' || ' in flight');
SELECT key, held_by FROM idem_in_flight WHERE held_by = 'transaction';
ROLLBACK;
BEGIN;
SELECT state FROM idem_begin(:'n' || ' open');
COMMIT;
SELECT started > 0, replayed > 0, codes_refused > 0, live_keys > 0, open_leases > 0 FROM idem_stat WHERE datname = current_database();
SELECT idem_grant('shop', '{claims,lookup}');
SET ROLE shop;
SELECT idem_claim(:'n' || ' shop');
SELECT count(*) FROM idem_lookup(:'n' || ' shop');
SELECT idem_call(:'n' || ' shop', 'work', '{"a": 1}');
RESET ROLE;
SQL

my $answers = <<'SQL';
started|1
{"done": 1}
replayed|{"done": 1}
mismatch|
{"done": 1}
(replayed
started
t
t
t
in_progress|t
in_progress|charged|{"at": 1}
started 2 charged {"at": 1}
"done"
finished|"done"|2
finished|{"sum": 2}|
replayed|{"sum": 2}|
mismatch
t|f
1
valid|ann|{"p": 1}
redeemed|ann|{"p": 1}
used
t|0
wrong|2
verified|
t|1
f|1
t|0
started
N in flight|transaction
started
t|t|t|t|t

t
1
SQL

# Uses every function, and says the same as ever.
sub goes_on
{
	my ($db, $n, $when) = @_;
	my ($ret, $out, $err) = $node->psql($db, $everything,
		on_error_stop => 0, extra_params => [ '-v', "n=$n", '-v', 'VERBOSITY=sqlstate' ]);

	is("$out\n", $answers =~ s/^N /$n /mr, "$when: every function answers");
	is(join(' ', $err =~ /ERROR:\s+(\w+)/g), 'ID004 23505 ID005 42501', "$when: and refuses what it should");
	return;
}

$node->safe_psql('old', <<'SQL');
CREATE EXTENSION idempotency VERSION '0.1.0';
CREATE TABLE effects (key text, session integer);
CREATE FUNCTION work(a integer) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('sum', a + 1) $$;
CREATE TABLE inbox (id text);
CREATE TRIGGER once AFTER INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION idem_once('id');

-- what users build on it
CREATE VIEW v_lookup AS SELECT * FROM idem_lookup('finished');
CREATE VIEW v_ordinality AS SELECT * FROM idem_lookup('finished') WITH ORDINALITY;
CREATE VIEW v_both AS SELECT a, b FROM ROWS FROM (idem_lookup('finished'), generate_series(1, 2)) AS r (a, c, d, e, f, g, h, i, j, b);
CREATE VIEW v_begin AS SELECT * FROM idem_begin(key => 'finished', request => '{"a": 1}');
CREATE VIEW v_row AS SELECT (idem_begin('finished')).result, (idem_call('called', 'work', '{"a": 1}')).state;
CREATE VIEW v_counters AS SELECT c.* FROM idem_stat_counters() c;
CREATE VIEW v_stat AS SELECT * FROM idem_stat;
CREATE VIEW v_in_flight AS SELECT * FROM idem_in_flight;
CREATE VIEW v_keys AS SELECT * FROM idem_keys;
CREATE FUNCTION f_atomic(k text) RETURNS TABLE (begun text, called text, attempt integer, kept jsonb) LANGUAGE sql
BEGIN ATOMIC
	SELECT b.state, c.state, b.attempt, to_jsonb(l) - '{created_at,finished_at,expires_at}'::text[]
	FROM idem_begin(k, scope => 'no scope of mine') b, idem_call(k, 'work', '{"a": 1}', scope => 'calls') c,
		idem_lookup('finished') l;
END;
CREATE FUNCTION f_plpgsql(k text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	c record;
	d record;
BEGIN
	SELECT * INTO c FROM idem_begin(k);
	d := idem_begin(k || ' again');
	IF c.state = 'started' THEN
		PERFORM idem_finish(k, '1'), idem_finish(k || ' again', '2');
	END IF;
	RETURN c.state || ' ' || d.state;
END $$;
-- names that are like ours, but are not ours
CREATE FUNCTION idem_begin(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION idem_begin_0_2(integer) RETURNS integer LANGUAGE sql AS 'SELECT 2';

SELECT idem_grant('shop'), idem_grant('clerk', '{operate}');
GRANT EXECUTE ON FUNCTION idem_begin(text, interval, text, jsonb, interval, interval) TO hand WITH GRANT OPTION;
GRANT EXECUTE ON FUNCTION idem_finish TO hand WITH GRANT OPTION;
GRANT pg_monitor TO reader;
GRANT SELECT (key, scope) ON idem_keys TO reader;
SET ROLE hand;
GRANT EXECUTE ON FUNCTION idem_begin(text, interval, text, jsonb, interval, interval), idem_finish TO worker;
RESET ROLE;

-- rows of every state
BEGIN;
SELECT idem_begin('finished', request => '{"a": 1}'), idem_finish('finished', '{"order": 1}');
SELECT idem_begin('null'), idem_finish('null');
SELECT idem_begin('large'), idem_finish('large', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 3000) i));
COMMIT;
SELECT idem_call('called', 'work', '{"a": 1}');
SELECT idem_claim('expired'), idem_claim('forgotten'), idem_claim('scoped', scope => 'tenant');
SELECT idem_forget('forgotten');
BEGIN;
SELECT idem_claim('rolled back');
ROLLBACK;
SELECT idem_begin(k, lease => '1 hour') FROM unnest('{running,finishes late,abandoned,expired lease}'::text[]) k;
SELECT idem_checkpoint(key, 'charged', '{"charge": 7}', fence => fence, lease => '1 hour')
FROM idem_keys WHERE key IN ('finishes late', 'abandoned');
UPDATE idem_keys SET lease_until = now() WHERE key IN ('finishes late', 'abandoned', 'expired lease');
UPDATE idem_keys SET expires_at = now() WHERE key LIKE 'expired%';

CREATE TABLE tokens AS SELECT n, idem_token_issue('login', '1 hour', subject => n) AS token
FROM unnest('{valid,used,expired}'::text[]) n;
SELECT idem_token_redeem('login', token) FROM tokens WHERE n = 'used';
UPDATE idem_tokens SET expires_at = now() WHERE subject = 'expired';
CREATE TABLE codes AS SELECT n, idem_code_issue('otp', n, '1 hour', 6, 3) AS code
FROM unnest('{tried,locked,used,expired}'::text[]) n;
CREATE FUNCTION wrong(subject text) RETURNS text LANGUAGE sql AS $$
	SELECT state || ' ' || attempts_left FROM codes, idem_code_verify('otp', n, lpad(((code::integer + 1) % 1000000)::text, 6, '0')) WHERE n = subject
$$;
SELECT wrong('tried');
SELECT wrong('locked') FROM generate_series(1, 3);
SELECT idem_code_verify('otp', n, code) FROM codes WHERE n = 'used';
UPDATE idem_codes SET expires_at = now(), valid_until = now(), counted_until = now() WHERE subject = 'expired';
SQL

goes_on('old', 'before', 'before the update');

# What users have built on the extension.
sub users_objects_work
{
	my ($db, $n, $when) = @_;

	sql_is($node, $db, 'SELECT state, result, attempt FROM v_lookup', 'finished|{"order": 1}|1', "$when: view of idem_lookup");
	sql_is($node, $db, 'SELECT state, result, finished_at < expires_at FROM v_begin', 'replayed|{"order": 1}|t', "$when: of idem_begin");
	sql_is($node, $db, 'SELECT * FROM v_row', '{"order": 1}|replayed', "$when: of their columns");
	sql_is($node, $db, 'SELECT count(*) FROM v_counters c, v_stat s WHERE c.datid = s.datid AND c.started > 0 AND s.datname = current_database()',
		'1', "$when: of the statistics");
	sql_is($node, $db, q{SELECT count(*) FROM v_in_flight WHERE key = 'running'}, '1', "$when: of idem_in_flight");
	sql_is($node, $db, q{SELECT result FROM v_keys WHERE key = 'finished'}, '{"order": 1}', "$when: of idem_keys");
	sql_is($node, $db, "BEGIN; SELECT begun, called, attempt, kept->>'state' FROM f_atomic('$n'); SELECT idem_release('$n', 'no scope of mine'); COMMIT",
		"started|finished|1|finished\nt", "$when: function with a body of SQL");
	sql_is($node, $db, "SELECT f_plpgsql('$n p'), f_plpgsql('$n p')", 'started started|replayed replayed', "$when: function in PL/pgSQL");
	sql_is($node, $db, "SET ROLE worker; BEGIN; SELECT state FROM idem_begin('$n worker'); SELECT idem_finish('$n worker', '1'); COMMIT",
		"started\n1", "$when: a grant by a grantee");
	sql_is($node, $db, "SET ROLE shop; SELECT idem_claim('$n granted')", 't', "$when: a grant by idem_grant");
	sql_is($node, $db, 'SET ROLE reader; SELECT count(key) > 0 FROM idem_keys; SELECT count(*) > 0 FROM idem_stat', "t\nt", "$when: a grant of columns");
	sql_is($node, $db, 'SELECT idem_begin(1), idem_begin_0_2(1)', '1|2', "$when: a function of a like name");
	return;
}

users_objects_work('old', 'before', 'before the update');

# Views that the server itself does not dump right once a function has a column
# more: so the reference says, too.
sub views_by_place_work
{
	my ($when) = @_;

	sql_is($node, 'old', 'SELECT state, ordinality FROM v_ordinality', 'finished|1', "$when: with ordinality");
	sql_is($node, 'old', 'SELECT * FROM v_both', "finished|1\n|2", "$when: of idem_lookup and another");
	return;
}

views_by_place_work('before the update');

# Only what 0.1.0 has can be asked for.
sql_fails($node, 'old', q{SELECT idem_fail('k')}, '42883', 'before the update there is no idem_fail');
sql_fails($node, 'old', q{SELECT idem_begin('k', max_attempts => 1)}, '42883', 'nor max_attempts');

# Rows, grants and the sequence, as a dump is to keep them.  It leaves out what has expired.
my $kept = <<'SQL';
SELECT key, scope, digest, md5(result::text), attempt, fence, phase, progress, lease_until, created_at, finished_at, expires_at, ttl, fingerprint FROM idem_keys WHERE expires_at > now() ORDER BY digest;
SELECT * FROM idem_tokens WHERE expires_at > now() ORDER BY digest;
SELECT * FROM idem_codes WHERE expires_at > now() ORDER BY digest;
SELECT * FROM idem_secrets ORDER BY id;
SELECT last_value, is_called FROM idem_fence;
SELECT c.relname, a.item::text FROM pg_class c, unnest(relacl) a (item) WHERE relname LIKE 'idem%' ORDER BY 1, 2;
SELECT c.proname, a.item::text FROM pg_proc c, unnest(proacl) a (item) WHERE proname LIKE 'idem%' ORDER BY 1, 2;
SQL

# A dump of 0.1.0 is restored into 0.1.0.
sub dump_and_restore
{
	my ($from, $to, $create) = @_;
	my $file = "$dir/$to.sql";

	$node->command_ok([ 'pg_dump', '-f', $file, $node->connstr($from) ], "$to: dumped");
	$node->safe_psql('postgres', "CREATE DATABASE $to");
	$node->safe_psql($to, $create) if $create;
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $file, $node->connstr($to) ], "$to: restored");
	is($node->safe_psql($to, $kept), $node->safe_psql($from, $kept), "$to: every row and every grant is there");
	return;
}

dump_and_restore('old', 'old_restored', q{CREATE EXTENSION idempotency VERSION '0.1.0'});

# A session that stays, with plans of the old definitions, and a claim that is
# open while the update wants the table.
my %old_oid = split /[|\n]/, $node->safe_psql('old', q{SELECT proname, oid FROM pg_proc WHERE proname IN ('idem_begin', 'idem_call', 'idem_lookup', 'idem_stat_counters') AND pronargs <> 1});
my $stays = $node->background_psql('old', on_error_stop => 0);
$stays->query_safe(<<'SQL');
SET plan_cache_mode = force_generic_plan;
PREPARE begin_it (text) AS SELECT state, result FROM idem_begin($1);
PREPARE begin_all (text) AS SELECT * FROM idem_begin($1);
PREPARE call_it (text) AS SELECT state, result FROM idem_call($1, 'work', '{"a": 1}');
PREPARE look (text) AS SELECT state FROM idem_lookup($1);
PREPARE count_it AS SELECT count(*) > 0 FROM idem_stat_counters() c WHERE c.started > 0;
SQL
sub stays
{
	my ($n) = @_;

	return $stays->query_safe("BEGIN; EXECUTE begin_it('$n stays'); SELECT idem_finish('$n stays', '1'); COMMIT; EXECUTE begin_it('$n stays'); EXECUTE call_it('$n called');"
		  . "EXECUTE look('$n stays'); EXECUTE count_it; SELECT f_plpgsql('$n stays p');");
}
my $stays_says = "started|\n1\nreplayed|1\nfinished|{\"sum\": 2}\nfinished\nt\nstarted started";
is(stays('before'), $stays_says, 'prepared statements before the update');
my $begin_all = $stays->query_safe(q{EXECUTE begin_all('finished')});

my $holder = $node->background_psql('old');
$holder->query_safe(q{BEGIN; SELECT idem_begin('open'); SELECT idem_begin('open lease', lease => '1 hour')});
sql_fails($node, 'old', "SET lock_timeout = '100ms'; ALTER EXTENSION idempotency UPDATE", '55P03', 'the update waits no longer than lock_timeout for open claims');
sql_is($node, 'old', q{SELECT extversion FROM pg_extension WHERE extname = 'idempotency'}, '0.1.0', 'and has changed nothing');
my $updater = $node->background_psql('old');
waiting($updater, 'ALTER EXTENSION idempotency UPDATE');
$node->poll_query_until('old', q{SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'relation' AND relation = 'idem_keys'::regclass AND NOT granted})
  or die 'the update does not wait';
my $queued = $node->background_psql('old');
waiting($queued, q{SELECT state, result FROM idem_begin('finished')});
$node->poll_query_until('old', q{SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'relation' AND relation = 'idem_keys'::regclass AND NOT granted})
  or die 'the claim does not wait for the update';
my $monitor = $node->background_psql('old');
waiting($monitor, q{SELECT count(*) FROM idem_in_flight WHERE key = 'running'});
$node->poll_query_until('old', q{SELECT count(*) = 3 FROM pg_locks WHERE locktype = 'relation' AND NOT granted})
  or die 'the view does not wait for the update';
$holder->query_safe(q{SELECT idem_finish('open', '"open"'); COMMIT});
is($updater->query_safe(q{SELECT extversion FROM pg_extension WHERE extname = 'idempotency'}),
	$node->safe_psql('old', q{SELECT default_version FROM pg_available_extensions WHERE name = 'idempotency'}),
	'the update waits for open claims, and then goes on');
is($queued->query_safe('SELECT 1'), "replayed|{\"order\": 1}\n1", 'a claim that waited for it goes on, too');
is($monitor->query_safe('SELECT 1'), "1\n1", 'and who reads a view');
is($holder->query_safe(q{SELECT state, result, failed FROM idem_begin('open')}), 'replayed|"open"|f', 'so does the session that had the claim');
my %new_oid = split /[|\n]/, $node->safe_psql('old', q{SELECT proname, oid FROM pg_proc WHERE proname IN ('idem_begin', 'idem_call', 'idem_lookup', 'idem_stat_counters') AND pronargs <> 1});
is_deeply(\%new_oid, \%old_oid, 'the functions keep their OIDs');

is(stays('after'), $stays_says, 'prepared statements of before, after the update');
# as with a table that gets a column, and as the reference says
my ($out, $ok) = $stays->query(q{EXECUTE begin_all('finished')});
like($stays->{stderr}, qr/cached plan must not change result type/, 'a prepared SELECT * must be prepared again');
$stays->{stderr} = '';
$_->quit for $stays, $holder, $updater, $queued, $monitor;

# What was there before.
sub old_rows_go_on
{
	my ($db) = @_;
	my $restored = $db =~ /restored/;
	my ($expired, $purged) = $restored ? ('unknown', '0') : ('expired', '1');

	sql_is($node, $db, 'SELECT count(*) FROM idem_keys WHERE failed IS NOT NULL', '0', "$db: no row has failed");
	sql_is($node, $db, q{SELECT state, result, failed FROM idem_begin('finished', request => '{"a": 1}')}, 'replayed|{"order": 1}|f', "$db: a result is replayed");
	sql_is($node, $db, q{SELECT state FROM idem_begin('finished', request => '{"a": 2}')}, 'mismatch', "$db: for its request only");
	sql_is($node, $db, q{SELECT state, result, failed FROM idem_begin('null')}, 'replayed||f', "$db: no result, too");
	sql_is($node, $db, q{SELECT state, jsonb_array_length(result) FROM idem_begin('large')}, 'replayed|3000', "$db: a large one, too");
	sql_is($node, $db, q{SELECT state, result, failed FROM idem_call('called', 'work', '{"a": 1}')}, 'replayed|{"sum": 2}|f', "$db: and that of a call");
	sql_is($node, $db, q{SELECT idem_claim('scoped', scope => 'tenant'), idem_claim('rolled back'), idem_claim('forgotten')}, 'f|t|t', "$db: claims");
	sql_is($node, $db, q{SELECT state FROM idem_begin('running', lease => '1 hour')}, 'in_progress', "$db: a lease runs");
	sql_is($node, $db, q{SELECT idem_finish('open lease', '1', fence => (SELECT fence FROM idem_keys WHERE key = 'open lease')); SELECT state, failed FROM idem_lookup('open lease')},
		"1\nfinished|f", "$db: one that was begun before ends");
	sql_is($node, $db, q{SELECT idem_finish('finishes late', '"late"', fence => (SELECT fence FROM idem_keys WHERE key = 'finishes late')); SELECT state, attempt, phase FROM idem_lookup('finishes late')},
		qq{"late"\nfinished|1|charged}, "$db: its holder may finish late");
	sql_is($node, $db, q{SELECT state, attempt, phase, progress FROM idem_begin('abandoned', lease => '1 hour', max_attempts => 1)}, 'exhausted|1|charged|{"charge": 7}', "$db: an abandoned one is exhausted");
	sql_is($node, $db, q{SELECT fence AS old FROM idem_keys WHERE key = 'abandoned' \gset
		SELECT state, attempt, phase, progress FROM idem_begin('abandoned', lease => '1 hour');
		SELECT idem_fail('abandoned', '"late"', fence => :old)}, qq{started|2|charged|{"charge": 7}psql:<stdin>:3: ERROR:  ID004}, "$db: or taken over, and the fence before is no good",
		'-v', 'VERBOSITY=sqlstate');
	sql_is($node, $db, q{SELECT idem_fail('abandoned', '{"no": 1}', fence => (SELECT fence FROM idem_keys WHERE key = 'abandoned')); SELECT state, result, failed FROM idem_begin('abandoned')},
		qq({"no": 1}\nreplayed|{"no": 1}|t), "$db: a claim of before can fail");
	sql_is($node, $db, q{SELECT state, attempt FROM idem_begin('expired lease', lease => '1 hour')}, 'started|1', "$db: an expired one begins anew");
	sql_is($node, $db, q{SELECT n, (idem_token_redeem('login', token)).state FROM tokens ORDER BY n}, "expired|$expired\nused|used\nvalid|redeemed", "$db: tokens");
	sql_is($node, $db, q{SELECT wrong('tried'), wrong('locked'), wrong('used')}, 'wrong 1|locked 0|', "$db: codes and their attempts");
	sql_is($node, $db, q{SELECT (idem_code_verify('otp', n, code)).state FROM codes WHERE n = 'tried'}, 'verified', "$db: a code of before");
	sql_fails($node, $db, q{INSERT INTO inbox VALUES ('before')}, '23505', "$db: the trigger remembers");
	is($node->safe_psql($db, q{CALL idem_purge()}) =~ s/^\d+\|/n|/r, "n|$purged|$purged", "$db: a purge finds what has expired");
	sql_is($node, $db, q{SELECT count(*) FILTER (WHERE key = 'expired'), count(*) FILTER (WHERE key = 'finished') FROM idem_keys}, '0|1', "$db: and no more");
	return;
}

views_by_place_work('after the update');
$node->safe_psql('old', 'DROP VIEW v_ordinality, v_both');

# before it is used up: a dump of the updated one
dump_and_restore('old', 'new_restored');
$node->safe_psql('old_restored', 'ALTER EXTENSION idempotency UPDATE');
for my $db (qw(old new_restored))
{
	old_rows_go_on($db);
	goes_on($db, 'after', "$db: after the update");
	users_objects_work($db, 'after', "$db: after the update");
	sql_is($node, $db, q{SET ROLE shop; BEGIN; SELECT state FROM idem_begin('fails'); SELECT idem_fail('fails', '"no"'); COMMIT; SELECT state, result, failed FROM idem_begin('fails')},
		qq{started\n"no"\nreplayed|"no"|t}, "$db: who had the job has idem_fail");
	sql_is($node, $db, q{SET ROLE hand; GRANT EXECUTE ON FUNCTION idem_fail, idem_check TO reader; RESET ROLE; SET ROLE worker; SELECT idem_check()}, '', "$db: and the right to grant it");
	sql_is($node, $db, q{SET ROLE clerk; SELECT idem_import('imported', '1'), idem_import_many('{imported, imported too}')}, 't|1', "$db: who had that job can import");
	sql_is($node, $db, q{SELECT has_function_privilege('shop', oid, 'EXECUTE') FROM pg_proc WHERE proname LIKE 'idem_import%'}, "f\nf", "$db: and nobody else");
	is($node->safe_psql($db, q{SELECT state, result->>'sqlstate', failed FROM idem_call('keeps', 'work', '{"a": 2147483647}', keep_errors => '{22}')}),
		'finished|22003|t', "$db: an error is kept");
}
goes_on('old_restored', 'after', 'a dump of 0.1.0, restored and updated');
users_objects_work('old_restored', 'after', 'a dump of 0.1.0, restored and updated');

# No function of 0.1.0 can fail a claim, so its table needs no column for that.
$node->safe_psql('old', 'ALTER TABLE idem_keys DROP COLUMN failed');
sql_fails($node, 'old', q{BEGIN; SELECT idem_begin('no column'); SELECT idem_fail('no column')}, '55000', 'a column that was dropped by hand is missed');
sql_is($node, 'old', q{SELECT state FROM idem_begin('finished')}, 'replayed', 'only where it is needed');

# A role that got a new function by the update can be dropped.
$node->safe_psql($_, 'DROP OWNED BY worker, hand, reader, shop CASCADE') for qw(old new_restored old_restored);
sql_is($node, 'postgres', 'DROP ROLE shop', '', 'a role that got new functions can be dropped');

done_testing();
