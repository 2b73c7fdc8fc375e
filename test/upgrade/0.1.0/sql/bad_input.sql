-- Bad input: a clear error with its SQLSTATE, nothing written, the session usable.
SET client_encoding = 'UTF8';
SET timezone = 'UTC';
LOAD 'idempotency';

CREATE TABLE calls (
	id integer GENERATED ALWAYS AS IDENTITY,
	expected text NOT NULL,			-- SQLSTATE, or OK
	call text NOT NULL,
	claimed text,					-- key that is begun before
	setting text,					-- of idempotency.require_scope
	version integer DEFAULT 0,		-- the oldest server that knows the value
	got text,
	usable boolean
);

-- required arguments
INSERT INTO calls (expected, call)
SELECT '22004', replace(unnest('{idem_begin(?),idem_finish(?),idem_release(?),idem_claim(?),idem_claim_many(?),
	idem_lookup(?),idem_forget(?),idem_forget_scope(?),idem_digest(?),idem_grant(?),idem_revoke(?)}'::text[]), '?', 'NULL');
INSERT INTO calls (expected, call)
SELECT '22004', replace(unnest('{idem_begin(?),idem_finish(?),idem_release(?),idem_claim(?)}'::text[]), '?',
	'NULL, scope => ''s''');

-- keys and scopes are measured in bytes
INSERT INTO calls (expected, call, claimed)
SELECT CASE WHEN v.good THEN 'OK' ELSE '22023' END, format(f.call, v.value), CASE WHEN v.good AND f.ends THEN eval END
FROM (VALUES
	(false, $$''$$, NULL),
	(false, $$repeat('k', 1025)$$, NULL),
	(false, $$repeat('k', 1000000)$$, NULL),
	(false, $$repeat('é', 512) || 'k'$$, NULL),
	(false, $$repeat('😀', 256) || 'k'$$, NULL),
	(false, $$repeat('鍵', 342)$$, NULL),
	(true, $$' '$$, ' '),
	(true, $$repeat('k', 1024)$$, repeat('k', 1024)),
	(true, $$repeat('é', 512)$$, repeat('é', 512)),
	(true, $$repeat('😀', 256)$$, repeat('😀', 256)),
	(true, $$repeat('鍵', 341)$$, repeat('鍵', 341))) v (good, value, eval),
	(VALUES ('idem_begin(%s)', false), ('idem_finish(%s)', true), ('idem_release(%s)', true), ('idem_claim(%s)', false),
		('idem_claim_many(ARRAY[%s])', false), ('idem_claim_many(ARRAY[''k'', %s])', false), ('idem_lookup(%s)', false),
		('idem_forget(%s)', false), ('idem_digest(%s)', false)) f (call, ends);
INSERT INTO calls (expected, call)
SELECT v.expected, format(f.call, v.value)
FROM (VALUES
	('22023', $$repeat('s', 1025)$$), ('22023', $$repeat('é', 512) || 's'$$), ('22023', $$repeat('😀', 257)$$),
	('OK', $$''$$), ('OK', $$repeat('s', 1024)$$), ('OK', $$repeat('é', 512)$$), ('OK', $$repeat('😀', 256)$$)) v (expected, value),
	(VALUES ('idem_begin(''k'', scope => %s)'), ('idem_claim(''k'', scope => %s)'), ('idem_lookup(''k'', scope => %s)'),
		('idem_claim_many(''{k}'', scope => %s)'), ('idem_forget(''k'', scope => %s)'), ('idem_digest(''k'', scope => %s)')) f (call);
INSERT INTO calls (expected, call)
SELECT '22023', format(f.call, $$repeat('s', 1025)$$)
FROM (VALUES ('idem_finish(''k'', scope => %s)'), ('idem_release(''k'', scope => %s)')) f (call);

-- a ttl is taken or is 22023; overflows of the server's own arithmetic never come through
CREATE TABLE ttls (expected text, ttl text, version integer DEFAULT 0);
INSERT INTO ttls VALUES
	('22023', '0'), ('22023', '-1 second'), ('22023', '-1 microsecond'), ('22023', '0.0000004 seconds'),
	('22023', '-1 year'), ('22023', '1 year -12 mons'), ('22023', '-9000 years'), ('22023', '-178000000 years'),
	('22023', '-2147483648 months'), ('22023', '-2147483648 days'), ('22023', '-2147483648 days -2147483648 months'),
	('22023', '-2562047788 hours'), ('22023', '1 day -2562047788 hours'), ('22023', '-12000 years 1 day'),
	('22023', '10000 years -3660000 days'), ('22023', '2147483647 days -178000000 years'),
	('22023', '5000 years -1826000 days'), ('22023', '2147483647 days -2147483647 months -2562047788 hours'),
	('22023', '-999 years -365000 days -8766000 hours'), ('22023', '-1999 years -730000 days -17500000 hours'),
	('OK', '1 microsecond'), ('OK', '3000 years -35988 mons'), ('OK', '-1 day 25 hours'), ('OK', '999 years'),
	('OK', '1000 years'), ('OK', '9000 years'), ('OK', '300000 years'), ('OK', '178000000 years'),
	('OK', '3000 years -1 day'), ('OK', '2147483647 months'), ('OK', '2147483647 days'), ('OK', '2562047788 hours'),
	('OK', '2147483647 months 2147483647 days 2562047788 hours');
-- positive where a month has 30 days, but the calendar turns it backwards; and the other way round
INSERT INTO ttls VALUES ('22023', '-12 mon 361 days'), ('OK', '12 mon -364 days'),
	('22023', format('1 mon -%s days', (now() + interval '1 mon')::date - now()::date)),
	('OK', format('1 mon -%s days 1 hour', (now() + interval '1 mon')::date - now()::date));
-- where February is near, months that are shorter than so many times 30 days
INSERT INTO ttls
SELECT '22023', format('%s mon -%s days', m.n, (m.n * 30) - 1)
FROM generate_series(1, 12) m (n)
WHERE now() + make_interval(months => m.n) - make_interval(days => m.n * 30 - 1) <= now();
-- 17 and later
INSERT INTO ttls VALUES ('OK', 'infinity', 170000), ('22023', '-infinity', 170000);
INSERT INTO calls (expected, call, version)
SELECT expected, format(f.call, quote_literal(ttl)), version
FROM ttls, (VALUES ('idem_begin(''k'', %s)'), ('idem_claim(''k'', %s)'), ('idem_claim_many(''{k}'', %s)')) f (call);

-- lease, wait, fence
INSERT INTO calls (expected, call, version) VALUES
	('22023', $$idem_begin('k', lease => '0')$$, 0),
	('22023', $$idem_begin('k', lease => '-1 minute')$$, 0),
	('OK', $$idem_begin('k', lease => NULL)$$, 0),
	('OK', $$idem_begin('k', wait => NULL)$$, 0),
	('OK', $$idem_begin('k', wait => '0')$$, 0),
	('OK', $$idem_begin('k', wait => '1 hour')$$, 0),
	('OK', $$idem_begin('k', wait => '178000000 years')$$, 0),
	('OK', $$idem_begin('k', wait => '2562047788 hours')$$, 0),
	('OK', $$idem_begin('k', wait => 'infinity')$$, 170000),
	('22023', $$idem_begin('k', wait => '-1 microsecond')$$, 0),
	('22023', $$idem_begin('k', wait => '-1 second')$$, 0),
	('22023', $$idem_begin('k', wait => '-178000000 years')$$, 0),
	('22023', $$idem_begin('k', wait => '-2562047788 hours')$$, 0),
	('22023', $$idem_begin('k', wait => '-infinity')$$, 170000);
INSERT INTO calls (expected, call, claimed) VALUES
	('ID003', $$idem_finish('k', fence => 1)$$, 'k'),
	('ID003', $$idem_finish('k', fence => -1)$$, NULL),
	('ID003', $$idem_release('k', fence => 1)$$, 'k'),
	('OK', $$idem_finish('k', fence => NULL)$$, 'k'),
	('ID003', $$idem_finish('k', scope => 's')$$, 'k'),
	('ID003', $$idem_release('k', scope => 's')$$, 'k'),
	('55P03', $$idem_claim('k')$$, 'k'),
	('55P03', $$idem_claim_many('{j,k}')$$, 'k');

-- results
CREATE TABLE results (id integer, result jsonb);
INSERT INTO results VALUES (1, to_jsonb(repeat('x', 5 * 1024 * 1024))), (2, to_jsonb(repeat('x', 4 * 1024 * 1024 - 100)));
INSERT INTO calls (expected, call, claimed) VALUES
	('54000', $$idem_finish('k', to_jsonb(repeat('x', 5 * 1024 * 1024)))$$, 'k'),
	('54000', $$idem_finish('k', to_jsonb(repeat('x', 4 * 1024 * 1024)))$$, 'k'),
	-- measured before compression, wherever it comes from
	('54000', $$idem_finish('k', (SELECT result FROM results WHERE id = 1))$$, 'k'),
	('54000', $$idem_finish('k', (SELECT jsonb_agg(i) FROM generate_series(1, 500000) i))$$, 'k'),
	('OK', $$idem_finish('k', to_jsonb(repeat('x', 4 * 1024 * 1024 - 100)))$$, 'k'),
	('OK', $$idem_finish('k', (SELECT result FROM results WHERE id = 2))$$, 'k');

-- arrays
INSERT INTO calls (expected, call) VALUES
	('22004', $$idem_claim_many(ARRAY[NULL]::text[])$$),
	('22004', $$idem_claim_many(ARRAY['a', NULL, 'b'])$$),
	('22023', $$idem_claim_many(ARRAY[['a', 'b'], ['c', 'd']])$$),
	('22023', $$idem_claim_many(ARRAY[[['a']]])$$),
	('22023', $$idem_claim_many(ARRAY['a', 'b', ''])$$),
	('OK', $$idem_claim_many('{}')$$),
	('OK', $$idem_claim_many('[-1:0]={a,b}')$$);

-- idempotency.require_scope
INSERT INTO calls (expected, call, setting)
SELECT v.expected, format(f.call, v.scope), 'on'
FROM (VALUES ('22023', ''), ('22023', ', scope => NULL'), ('22023', ', scope => '''''), ('OK', ', scope => ''s''')) v (expected, scope),
	(VALUES ('idem_begin(''k''%s)'), ('idem_claim(''k''%s)'), ('idem_claim_many(''{k}''%s)')) f (call);
INSERT INTO calls (expected, call, setting) VALUES
	('22023', $$idem_finish('k')$$, 'on'), ('ID003', $$idem_finish('k', scope => 's')$$, 'on'),
	('22023', $$idem_release('k')$$, 'on'), ('ID003', $$idem_release('k', scope => 's')$$, 'on'),
	-- not for operators: keys without a scope are there from before
	('OK', $$idem_lookup('k')$$, 'on'), ('OK', $$idem_forget('k')$$, 'on'), ('OK', $$idem_forget_scope('')$$, 'on');

-- requests of every shape
INSERT INTO calls (expected, call) VALUES
	('OK', $$idem_begin('k', request => '{}')$$), ('OK', $$idem_begin('k', request => 'null')$$),
	('OK', $$idem_begin('k', request => (repeat('[', 500) || repeat(']', 500))::jsonb)$$),
	('OK', $$idem_begin('k', request => to_jsonb(repeat('x', 20000000)))$$),
	('OK', $$idem_begin('k', request => ('1' || repeat('0', 100000))::jsonb)$$);

/*
 * Runs the call and rolls it back, as a savepoint would; then asks whether the
 * session goes on: the same key, and another, claimed and finished.
 */
CREATE FUNCTION try(c calls, OUT got text, OUT usable boolean)
LANGUAGE plpgsql AS $$
BEGIN
	IF c.version > current_setting('server_version_num')::integer THEN
		got := c.expected;
		usable := true;
		RETURN;
	END IF;
	BEGIN
		PERFORM set_config('idempotency.require_scope', coalesce(c.setting, 'off'), true);
		IF c.claimed IS NOT NULL THEN
			PERFORM idem_begin(c.claimed);
		END IF;
		EXECUTE 'SELECT ' || c.call;
		RAISE SQLSTATE 'OK000';
	EXCEPTION
		WHEN SQLSTATE 'OK000' THEN got := 'OK';
		WHEN OTHERS THEN got := SQLSTATE;
	END;
	BEGIN
		usable := (SELECT count(*) FROM idem_keys) = 1 AND
			(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) = 0 AND
			(SELECT state FROM idem_begin('k')) = 'started' AND idem_finish('k', '1') = '1' AND
			(SELECT count(*) FROM idem_claim_many('{k,l}')) = 1;
		RAISE SQLSTATE 'OK000';
	EXCEPTION WHEN SQLSTATE 'OK000' THEN
		NULL;
	END;
END
$$;
SELECT idem_claim('there before');
UPDATE calls c SET (got, usable) = (SELECT t.got, t.usable FROM try(c) t);
-- what went wrong: nothing
SELECT expected, got, usable, left(call, 100) AS call
FROM calls WHERE got IS DISTINCT FROM expected OR usable IS DISTINCT FROM true ORDER BY id;
SELECT expected, count(*) > 0 AS seen FROM calls WHERE got = expected GROUP BY expected ORDER BY expected COLLATE "C";
SELECT key FROM idem_keys;
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();

-- without a savepoint
\set VERBOSITY sqlstate
BEGIN;
SELECT state FROM idem_begin('k');
SELECT idem_finish('k', to_jsonb(repeat('x', 5 * 1024 * 1024)));
SELECT idem_finish('k', '1');
COMMIT;
SELECT count(*) FROM idem_lookup('k');
-- too large, and then not
BEGIN;
SELECT state FROM idem_begin('k');
SAVEPOINT s;
SET LOCAL idempotency.max_result_size = '1kB';
SELECT idem_finish('k', to_jsonb(repeat('x', 1024)));
ROLLBACK TO s;
SELECT length(idem_finish('k', to_jsonb(repeat('x', 1024)))::text);
ROLLBACK;

-- keys in every script, as given
CREATE FUNCTION round_trip(the_key text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_begin(the_key, scope => the_key);
	PERFORM idem_finish(the_key, to_jsonb(the_key), the_key);
	RETURN (SELECT result->>0 FROM idem_begin(the_key, scope => the_key)) = the_key
		AND (SELECT count(*) FROM idem_keys
			WHERE digest = idem_digest(the_key, the_key) AND key = the_key AND scope = the_key) = 1;
END
$$;
SELECT name, round_trip(key) AS same
FROM (VALUES
	('Arabic', U&'\0637\0644\0628 \0661\0662\0663'), ('Hebrew', U&'\05D4\05D6\05DE\05E0\05D4'),
	('Chinese', U&'\8BA2\5355'), ('Japanese', U&'\3054\6CE8\6587'), ('Korean', U&'\C8FC\BB38'),
	('Cyrillic', U&'\0437\0430\043A\0430\0437'), ('Greek', U&'\03C0\03B1\03C1\03B1\03B3\03B3\03B5\03BB\03AF\03B1'),
	('Hindi', U&'\0906\0926\0947\0936'), ('Thai', U&'\0E04\0E33\0E2A\0E31\0E48\0E07'),
	('emoji', U&'\+01F6D2\+01F468\200D\+01F469\200D\+01F467'),
	('composed', U&'caf\00E9'), ('combining', U&'cafe\0301'),
	('right-to-left marks', U&'\202Eabc\202C\200F'), ('zero width', U&'\200B'), ('byte order mark', U&'\FEFF'),
	('beyond the BMP', U&'\+01D11E\+10FFFD'), ('control characters', U&'\0001\001B[31m\007F'),
	('quotes', '''"`'';--'), ('backslashes', '\\server\x\n\0'), ('newlines', E'a\nb\r\nc\td'),
	('percent signs', '%s%n%d%%%1$s%m'), ('braces', '{"a": [1]}'), ('blank', '   '), ('NULL', 'NULL')) v (name, key);
-- no normalization: composed and combining are two keys
SELECT count(*) FROM idem_keys WHERE key LIKE 'caf%';

-- messages: the key as given, cut at 64 characters
\set VERBOSITY terse
SELECT idem_finish('%s%n%d%%%1$s%m');
SELECT idem_finish('it''s "quoted" \ and ' || U&'\0645\0641\062A\0627\062D');
SELECT idem_finish(repeat('0123456789abcdef', 4));
SELECT idem_finish(repeat('0123456789abcdef', 4) || 'X');
SELECT idem_finish(repeat('é', 64));
SELECT idem_finish(repeat('é', 65));
SELECT idem_finish(repeat(U&'\+01F600', 256));
SELECT idem_begin('%s%n', '-1 day');
SELECT idem_begin(repeat('x', 2000));
\set VERBOSITY default
SELECT idem_begin(NULL);
SELECT idem_begin('');
SELECT idem_begin(repeat('é', 513));
SELECT idem_begin('k', scope => repeat('s', 1025));
SELECT idem_begin('k', '-1 day');
SELECT idem_begin('k', '-12 mon 361 days');
SELECT idem_begin('k', wait => '-1 second');
SELECT idem_begin('k', lease => '0');
SELECT * FROM idem_claim_many('{a,NULL}');
SELECT * FROM idem_claim_many('{{a},{b}}');
BEGIN;
SELECT state FROM idem_begin('k');
SAVEPOINT s;
SELECT idem_finish('k', (SELECT result FROM results WHERE id = 1));
ROLLBACK;
SET idempotency.require_scope = on;
SELECT idem_begin('k');
RESET idempotency.require_scope;

-- read only: what is finished replays, what is new cannot begin
SELECT state, idem_finish('done', '"done"') FROM idem_begin('done', request => '1');
\set VERBOSITY sqlstate
BEGIN READ ONLY;
SELECT state, result FROM idem_begin('done');
SELECT state, result FROM idem_begin('done', request => '2');
SELECT state, result FROM idem_lookup('done');
SELECT idem_claim('done');
SELECT * FROM idem_claim_many('{done}');
SAVEPOINT s;
SELECT idem_begin('new');
ROLLBACK TO s;
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SELECT idem_claim('new');
ROLLBACK TO s;
SELECT * FROM idem_claim_many('{done,new}');
ROLLBACK TO s;
SELECT idem_finish('new');
ROLLBACK TO s;
SELECT idem_forget('done');
ROLLBACK TO s;
SELECT idem_forget('new');
ROLLBACK TO s;
SELECT idem_forget_scope('');
ROLLBACK TO s;
SELECT state, result FROM idem_begin('done');
COMMIT;
-- read only from the middle on
BEGIN;
SELECT state FROM idem_begin('middle');
SAVEPOINT s;
SET TRANSACTION READ ONLY;
SELECT idem_finish('middle', '1');
ROLLBACK TO s;
SELECT idem_finish('middle', '2');
COMMIT;
BEGIN;
SELECT state FROM idem_begin('middle 2');
SET TRANSACTION READ ONLY;
SELECT idem_release('middle 2');
COMMIT;
\set VERBOSITY default
BEGIN READ ONLY;
SELECT idem_begin('new');
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM idem_claim_many('{done,new}');
ROLLBACK;
BEGIN;
SELECT state FROM idem_begin('new');
SET TRANSACTION READ ONLY;
SELECT idem_finish('new');
ROLLBACK;
SELECT key, result FROM idem_keys WHERE key IN ('done', 'middle', 'middle 2', 'new') ORDER BY key;

-- a full lock table
CREATE PROCEDURE fill_lock_table()
LANGUAGE plpgsql AS $$
DECLARE
	taken integer := 0;
	step integer := 10000;
BEGIN
	WHILE step > 0 LOOP
		BEGIN
			PERFORM pg_advisory_xact_lock(20240229, i) FROM generate_series(taken + 1, taken + step) i;
			taken := taken + step;
		EXCEPTION WHEN out_of_memory THEN
			step := step / 10;
		END;
	END LOOP;
END
$$;
-- others may end and make room for a few
CREATE PROCEDURE claim_until_it_fails(call text)
LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..1000 LOOP
		EXECUTE 'SELECT ' || call USING 'full ' || i;
	END LOOP;
END
$$;
\set SHOW_CONTEXT never
BEGIN;
SELECT state FROM idem_begin('before');
-- has taken the locks that a write needs
SELECT idem_claim('written');
SAVEPOINT s;
CALL fill_lock_table();
SAVEPOINT t;
\set VERBOSITY sqlstate
CALL claim_until_it_fails('idem_begin($1)');
ROLLBACK TO t;
CALL claim_until_it_fails('idem_claim($1)');
ROLLBACK TO s;
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SELECT idem_finish('before', '"after"');
SELECT state FROM idem_begin('full 1');
SELECT idem_release('full 1');
COMMIT;
SELECT key, result FROM idem_keys WHERE key IN ('before', 'written') OR key LIKE 'full%' ORDER BY key;
-- the hint, apart from the name of the key
CREATE FUNCTION lock_table_message(OUT message text, OUT hint text)
LANGUAGE plpgsql AS $$
BEGIN
	CALL fill_lock_table();
	CALL claim_until_it_fails('idem_begin($1)');
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
	message := regexp_replace(message, 'full \d+', 'full');
END
$$;
SELECT * FROM lock_table_message();

DROP FUNCTION try, round_trip, lock_table_message;
DROP TABLE calls, ttls, results;
DROP PROCEDURE fill_lock_table, claim_until_it_fails;
DELETE FROM idem_keys;
