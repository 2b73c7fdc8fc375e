
# idem_call where one session is not enough: as whom everything runs, under a
# hostile search_path as well; two-phase commit, killed backends, a standby; many
# sessions on few keys; and many calls in one session.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', schema => 'idem', streaming => 1);

#
# Who runs: whatever a call sets off says as whom
#
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE mallory LOGIN;
SELECT idem.idem_grant('app', '{call}'), idem.idem_grant('mallory', '{call}');
CREATE TABLE ran (what text, who name);
GRANT INSERT ON ran TO PUBLIC;
CREATE FUNCTION ran(what text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.ran VALUES (what, current_user);
	RETURN true;
END $$;

CREATE FUNCTION ran_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.ran(TG_ARGV[0]);
	RETURN NULL;
END $$;
CREATE TABLE orders (item text);
CREATE TRIGGER at_once AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION ran_trigger('trigger');
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION ran_trigger('deferred trigger');
ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_of_it ON orders USING (ran('policy')) WITH CHECK (ran('policy check'));
GRANT SELECT, INSERT ON orders TO app;

CREATE DOMAIN checked AS text CHECK (ran('domain check'));
CREATE TYPE receipt AS ENUM ('book', 'pen');
CREATE FUNCTION receipt_json(receipt) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.ran('cast to json');
	RETURN json_build_object('receipt', $1::text);
END $$;
CREATE CAST (receipt AS json) WITH FUNCTION receipt_json(receipt);
CREATE FUNCTION fallback() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.ran('default');
	RETURN 'book';
END $$;
CREATE FUNCTION constant() RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.ran('immutable default');
	RETURN 'constant';
END $$;
CREATE FUNCTION buy(note checked, item text DEFAULT public.fallback(), more text DEFAULT public.constant()) RETURNS receipt
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.ran('function');
	INSERT INTO public.orders VALUES (item);
	PERFORM FROM public.orders;
	RETURN item;
END $$;
CREATE FUNCTION buys(note checked, n int) RETURNS SETOF receipt
LANGUAGE sql AS $$ SELECT public.buy(note) FROM generate_series(1, n) $$;
SQL

sql_is($node, 'postgres', <<'SQL', "finished|{\"receipt\": \"book\"}\nreplayed|{\"receipt\": \"book\"}", 'a call', '-U', 'app');
SELECT state, result FROM idem.idem_call('who', 'buy', '{"note": "x"}');
SELECT state, result FROM idem.idem_call('who', 'buy', '{"note": "x"}');
SQL
sql_is($node, 'postgres', "SELECT string_agg(DISTINCT what, ', ' ORDER BY what) FROM ran",
	'cast to json, default, deferred trigger, domain check, function, immutable default, policy, policy check, trigger',
	'everything ran');
sql_is($node, 'postgres', "SELECT state, result FROM idem.idem_call('who set', 'buys', '{\"note\": \"x\", \"n\": 2}')",
	'finished|[{"receipt": "book"}, {"receipt": "book"}]', 'a set', '-U', 'app');
sql_is($node, 'postgres', "SELECT DISTINCT who FROM ran", 'app', 'all of it as the caller');

#
# A hostile search_path: types, functions and operators of mallory's in front of
# the server's.  None is used, whichever role calls.
#
my $evil = <<'SQL';
CREATE SCHEMA evil AUTHORIZATION mallory;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
SET ROLE mallory;
CREATE FUNCTION evil.ran(what pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS $$
BEGIN
	RAISE WARNING 'evil % as %', what, current_user;
	RETURN true;
END $$;
CREATE FUNCTION evil.to_jsonb(anyelement) RETURNS pg_catalog.jsonb LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('to_jsonb'); RETURN '"evil"'; END $$;
CREATE FUNCTION evil.jsonb_to_record(pg_catalog.jsonb) RETURNS record LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('jsonb_to_record'); RETURN ROW('evil'); END $$;
CREATE FUNCTION evil.jsonb_agg(anyelement) RETURNS pg_catalog.jsonb LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('jsonb_agg'); RETURN '"evil"'; END $$;
CREATE DOMAIN evil.text AS pg_catalog.text CHECK (evil.ran('text'));
CREATE DOMAIN evil.jsonb AS pg_catalog.jsonb CHECK (evil.ran('jsonb'));
CREATE DOMAIN evil.int4 AS pg_catalog.int4 CHECK (evil.ran('int4'));
CREATE DOMAIN evil.numeric AS pg_catalog.numeric CHECK (evil.ran('numeric'));
SQL
for my $type ('text', 'int4', 'numeric', 'jsonb', 'oid', 'name', 'uuid', 'timestamptz')
{
	for my $op ('=', '<>', '<', '>')
	{
		my $f = "op_${type}_" . ord($op) . length($op);

		$evil .= <<"SQL";
CREATE FUNCTION evil.$f(pg_catalog.$type, pg_catalog.$type) RETURNS pg_catalog.bool LANGUAGE plpgsql AS \$\$
BEGIN PERFORM evil.ran('$type $op'); RETURN true; END \$\$;
CREATE OPERATOR evil.$op (LEFTARG = pg_catalog.$type, RIGHTARG = pg_catalog.$type, FUNCTION = evil.$f);
SQL
	}
}
$node->safe_psql('postgres', $evil);
$node->safe_psql('postgres', <<'SQL');
CREATE TYPE pair AS (a int4, b text);
CREATE FUNCTION plain(a int4, b text, c numeric, d jsonb, e text[], f pair) RETURNS SETOF pair
LANGUAGE sql AS $$ SELECT f UNION ALL SELECT ROW(a, b)::public.pair $$;
GRANT USAGE ON SCHEMA public TO mallory;
SQL
my $call = <<'SQL';
SELECT state, result FROM idem.idem_call('path ' || :n, 'public.plain', '{"a": 1, "b": "x", "c": 1.0, "d": {"y": 1}, "e": ["z"], "f": {"a": 2, "b": "w"}}');
SELECT state, result FROM idem.idem_call('path ' || :n, 'public.plain', '{"a": 1, "b": "x", "c": 1, "d": {"y": 1}, "e": ["z"], "f": {"a": 2, "b": "w"}}');
SELECT state, result FROM idem.idem_call('path ' || :n, 'public.plain(pg_catalog.int4, pg_catalog.text, numeric, pg_catalog.jsonb, _text, public.pair)', '{"a": 1, "b": "x", "c": 1, "d": {"y": 1}, "e": ["z"], "f": {"a": 2, "b": "w"}}');
SQL
my $path = 'SET search_path = evil, pg_temp, pg_catalog;';
my $answer = qq(finished|[{"a": 2, "b": "w"}, {"a": 1, "b": "x"}]\nreplayed|[{"a": 2, "b": "w"}, {"a": 1, "b": "x"}]\n);

(undef, my $out, my $err) = $node->psql('postgres', "$path SELECT 'a'::pg_catalog.text = 'b'::pg_catalog.text, to_jsonb(1)");
is($out, 't|"evil"', 'control: what is not qualified does run');
like($err, qr/evil to_jsonb as /, 'control: and says so');
my $log_start = -s $node->logfile;
my $n = 0;
for my $who ('mallory', $node->safe_psql('postgres', 'SELECT current_user'))
{
	# a name without its schema finds evil.numeric, which the function does not take
	my $refused = 'function "public.plain(pg_catalog.int4, pg_catalog.text, numeric, pg_catalog.jsonb, _text, public.pair)" does not exist';
	$n++;
	my ($ret, $out, $err) = $node->psql('postgres', "\\set n '''$n a'''\n$path $call", extra_params => [ '-U', $who ], on_error_stop => 0);

	is("$out\n", $answer, "$who: bad path from the start");
	like($err, qr/\Q$refused\E/, "$who: types are found along the path");
	unlike($err, qr/evil \w+ as/, "$who: nothing of mallory's ran");
	($ret, $out, $err) = $node->psql('postgres', "\\set n '''$n b'''\n$call $path \\set n '''$n c'''\n$call", extra_params => [ '-U', $who ], on_error_stop => 0);
	is("$out\n", $answer . "mismatch|\n" . $answer, "$who: good path, then bad");
	unlike($err, qr/evil \w+ as/, "$who: nothing of mallory's ran");
}
unlike(slurp_file($node->logfile, $log_start), qr/WARNING: +evil/, 'nothing in the log');

#
# Two-phase commit, a killed backend
#
$node->safe_psql('postgres', <<'SQL');
CREATE SCHEMA work;
CREATE TABLE work.effects (n bigint GENERATED ALWAYS AS IDENTITY, k text, by text);
CREATE FUNCTION work.effect(k text, by text DEFAULT NULL) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	id bigint;
BEGIN
	INSERT INTO work.effects (k, by) VALUES (effect.k, effect.by) RETURNING n INTO id;
	RETURN id;
END $$;
CREATE FUNCTION work.slow(k text) RETURNS bigint LANGUAGE sql AS $$ SELECT work.effect(k) FROM pg_sleep(600) $$;
ALTER DATABASE postgres SET search_path = work, idem, public;
SQL
sql_is($node, 'postgres', <<'SQL', "finished\nin_progress", 'prepared');
BEGIN;
SELECT state FROM idem_call('prepared', 'effect', '{"k": "prepared"}');
PREPARE TRANSACTION 'p';
SELECT state FROM idem_call('prepared', 'effect', '{"k": "prepared"}');
SQL
sql_is($node, 'postgres', <<'SQL', "replayed\n1", 'prepared and committed');
COMMIT PREPARED 'p';
SELECT state FROM idem_call('prepared', 'effect', '{"k": "prepared"}');
SELECT count(*) FROM effects WHERE k = 'prepared';
SQL

my $victim = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $victim->query('SELECT pg_backend_pid()');
$victim->query_until(qr/running/, "\\echo running\nSELECT state FROM idem_call('killed', 'slow', '{\"k\": \"killed\"}');\n");
ok($node->poll_query_until('postgres', "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $pid"), 'a function runs');
sql_is($node, 'postgres', "SELECT state, retry_after FROM idem_call('killed', 'slow', '{\"k\": \"killed\"}')", 'in_progress|1', 'in progress');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
sql_is($node, 'postgres', "SELECT state FROM idem_call('killed', 'effect', '{\"k\": \"killed\"}', wait => '1 minute')", 'finished', 'its backend killed, the key is free');
sql_is($node, 'postgres', "SELECT count(*) FROM effects WHERE k = 'killed'", '1', 'one effect');
eval { $victim->quit };

#
# Many sessions, few keys; some fail, and the functions are replaced all the time
#
my $keys = 10;
my %scripts = (
	'plain@4' => "SELECT state FROM idem_call('storm :k', 'effect', '{\"k\": \"storm :k\"}');",
	'wait@4' => "SELECT state FROM idem_call('storm :k', 'effect', '{\"k\": \"storm :k\"}', wait => '100 ms');",
	'repeatable@2' => "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT count(*) FROM effects;\nSELECT state FROM idem_call('storm :k', 'effect', '{\"k\": \"storm :k\"}', wait => '100 ms');\nEND;",
	'serializable@2' => "BEGIN ISOLATION LEVEL SERIALIZABLE;\nSELECT state FROM idem_call('storm :k', 'effect', '{\"k\": \"storm :k\"}');\nEND;",
	'rollback@3' => "BEGIN;\nSELECT state FROM idem_call('storm :k', 'effect', '{\"k\": \"storm :k\"}');\nROLLBACK;",
	'savepoint@3' => "BEGIN;\nSAVEPOINT a;\nSELECT state FROM idem_call('storm :k', 'effect', '{\"k\": \"storm :k\"}');\nROLLBACK TO a;\nSELECT state FROM idem_call('storm :k', 'effect', '{\"k\": \"storm :k\"}');\nEND;",
	'failing@3' => "DO \$\$ BEGIN PERFORM idem_call('storm :k', 'fails', '{\"k\": \"storm :k\"}'); EXCEPTION WHEN division_by_zero THEN NULL; END \$\$;",
	# so that there is always something to run; a forgotten key has had its effect
	'forget@3' => "BEGIN;\nSELECT idem_forget('storm :k') AS forgot \\gset\n\\if :forgot\nDELETE FROM effects WHERE k = 'storm :k';\n\\endif\nEND;",);
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION work.fails(k text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN work.effect(k) / 0; END $$;
SQL
my $dir = PostgreSQL::Test::Utils::tempdir();
my @files;
for my $name (sort keys %scripts)
{
	my ($base, $weight) = split /@/, $name;

	append_to_file("$dir/$base", "\\set k random(1, $keys)\n$scripts{$name}\n");
	push @files, '-f', "$dir/$base\@$weight";
}
append_to_file("$dir/replace", <<'SQL');
\set r random(1, 1000)
CREATE OR REPLACE FUNCTION work.effect(k text, by text DEFAULT 'default :r') RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	id bigint;
BEGIN
	INSERT INTO work.effects (k, by) VALUES (effect.k, 'default :r = ' || effect.by) RETURNING n INTO id;
	RETURN id;
END $$;
\sleep 5 ms
SQL
my @pgbench = ('pgbench', '-n', '-h', $node->host, '-p', $node->port);
my ($replaced, $replace_err) = ('', '');
my $replacing = IPC::Run::start([ @pgbench, '-t', '300', '-f', "$dir/replace", 'postgres' ], '>', \$replaced, '2>', \$replace_err);
my ($stdout, $stderr) = ('', '');
ok( IPC::Run::run([ @pgbench, '-c', '8', '-t', '300', '--max-tries=10', @files, 'postgres' ], '>', \$stdout, '2>', \$stderr),
	'storm') or diag($stderr);
ok($replacing->finish, 'functions are replaced meanwhile') or diag($replace_err);
unlike($stderr, qr/ERROR(?!.*serializ)/, 'no other errors');
sql_is($node, 'postgres', <<'SQL', '', 'each key has one effect, and each effect a key, and its number is the result');
SELECT k, q.key, e.n, q.result FROM (SELECT k, array_agg(n) AS n FROM effects WHERE k LIKE 'storm%' GROUP BY k) e
FULL JOIN (SELECT key, result FROM idem_keys WHERE key LIKE 'storm%') q ON k = key
WHERE (ARRAY[(q.result #>> '{}')::bigint] = e.n) IS NOT TRUE
SQL
sql_is($node, 'postgres', "SELECT count(*) > 0, count(*) <= $keys FROM idem_keys WHERE key LIKE 'storm%'", 't|t', 'there are some');
my ($ran) = $stdout =~ /number of transactions actually processed: (\d+)/;
cmp_ok($ran // 0, '>', 100, "a storm it was: $ran transactions");

#
# Many calls in one session: memory stays
#
$node->safe_psql('postgres', <<'SQL');
CREATE TYPE work.line AS (item text, amounts numeric[]);
CREATE FUNCTION work.light(a int, b text DEFAULT 'b') RETURNS int LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION work.heavy(a int, b work.line, c timestamptz DEFAULT now(), d text DEFAULT concat('d', current_user))
RETURNS TABLE (a2 int, b2 text) LANGUAGE sql AS $$ SELECT a, d UNION ALL SELECT a + 1, (b).item $$;
CREATE PROCEDURE work.many(from_n int, to_n int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN from_n .. to_n LOOP
		PERFORM idem_call('many ' || i, 'light', '{"a": 1}');
		IF i % 50 = 0 THEN
			PERFORM idem_call('heavy ' || i, 'heavy', '{"a": 1, "b": {"item": "x", "amounts": [1.0, null]}}');
			BEGIN
				PERFORM idem_call('bad ' || i, 'light', '{"a": "x"}');
			EXCEPTION WHEN invalid_text_representation THEN
				NULL;
			END;
		END IF;
		-- makes stale what is remembered of functions
		IF i % 1000 = 0 THEN
			ALTER FUNCTION work.light COST 10;
		END IF;
		COMMIT;
	END LOOP;
END $$;
SQL
# what outlives a statement; asked twice, as the asking fills caches
my $memory = <<'SQL';
SELECT sum(used_bytes) AS used FROM pg_backend_memory_contexts
WHERE name IN ('TopMemoryContext', 'CacheMemoryContext', 'TopTransactionContext') OR name LIKE 'idempotency%'
SQL
$out = $node->safe_psql('postgres', <<SQL);
SET synchronous_commit = off;
CALL many(1, 2000);
$memory \\gset before_
$memory \\gset before_
CALL many(2001, 100000);
$memory \\gset after_
SELECT CASE WHEN :after_used - :before_used > 50000 THEN 'grown by ' || :after_used - :before_used ELSE 'flat' END;
SELECT count(*) FROM idem_keys WHERE key LIKE 'many %';
SQL
is($out, "flat\n100000", '100,000 calls in one session, and no more memory');

# A large set: its rows are not all kept in memory as they are converted.
SKIP:
{
	skip 'no /proc', 1 if !-r '/proc/self/status';
	$node->safe_psql('postgres', "CREATE FUNCTION work.series(n int) RETURNS SETOF int LANGUAGE sql AS 'SELECT generate_series(1, n)'");
	my $peak = "SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status') FROM 'VmHWM:\\s*(\\d+)')::int AS peak";

	$out = $node->safe_psql('postgres', <<SQL);
SELECT jsonb_array_length(result) FROM idem_call('series', 'series', '{"n": 1000}');
$peak \\gset before_
SELECT jsonb_array_length(result) FROM idem_call('series 2', 'series', '{"n": 200000}');
$peak \\gset after_
SELECT CASE WHEN :after_peak - :before_peak > 100000 THEN :after_peak - :before_peak || ' kB' ELSE 'little' END;
SQL
	is($out, "1000\n200000\nlittle", 'a large set');
}

#
# A standby replays
#
my $standby = new_standby($node);
$node->safe_psql('postgres', "GRANT USAGE ON SCHEMA work TO app; REVOKE EXECUTE ON FUNCTION effect FROM PUBLIC");
$node->wait_for_catchup($standby);
my $id = $node->safe_psql('postgres', "SELECT result FROM idem_call('prepared', 'effect', '{\"k\": \"prepared\"}')");
sql_is($standby, 'postgres', "SELECT state, result FROM idem_call('prepared', 'effect', '{\"k\": \"prepared\"}')", "replayed|$id", 'standby: replays');
sql_is($standby, 'postgres', "SELECT state, result FROM idem_call('prepared', 'effect', '{\"k\": \"other\"}')", 'mismatch|', 'standby: mismatch');
sql_fails($standby, 'postgres', "SELECT idem_call('new', 'effect', '{\"k\": \"new\"}')", '25006', 'standby: runs nothing');
sql_fails($standby, 'postgres', "SELECT idem_call('new', 'effect', '{\"k\": \"new\"}', wait => '1 s')", '25006', 'standby: runs nothing after a wait');
sql_fails($standby, 'postgres', "SELECT idem_call('prepared', 'effect', '{\"x\": \"prepared\"}')", '22023', 'standby: arguments are checked');
sql_fails($standby, 'postgres', "SELECT idem_call('prepared', 'effect', '{\"k\": \"prepared\"}')", '42501', 'standby: EXECUTE is checked', '-U', 'app');

done_testing();
