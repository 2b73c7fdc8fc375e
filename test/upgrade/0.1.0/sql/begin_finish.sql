-- Transaction claims in one session: begin, finish, release, expiry.
SET client_encoding = 'UTF8';
-- how a caller may see a row of idem_begin, without its times
\set columns 'state, result, retry_after > 0 AS retry, fence, attempt, phase, progress, created_at IS NOT NULL AS created, finished_at IS NOT NULL AS finished, expires_at IS NOT NULL AS expires'

-- the first run
BEGIN;
SELECT :columns FROM idem_begin('order-1');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid, count(*) FROM idem_keys;
-- not among the locks of pg_advisory_lock()
SELECT locktype, mode, objsubid IN (1, 2) AS sql_space
FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
-- one claim, one begin
SELECT :columns FROM idem_begin('order-1');
SELECT :columns FROM idem_begin('order-1', wait => '1 hour');
SELECT count(*) FROM idem_lookup('order-1');
SELECT idem_finish('order-1', '{"id": 1, "total": 9.90}');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid, count(*) FROM idem_keys;
SELECT :columns FROM idem_begin('order-1');
-- not committed, so not told to others
SELECT count(*) FROM idem_lookup('order-1');
\set VERBOSITY sqlstate
SAVEPOINT s;
SELECT idem_finish('order-1', '{"id": 2}');
ROLLBACK TO s;
\set VERBOSITY default
COMMIT;

-- the retry
BEGIN;
SELECT :columns FROM idem_begin('order-1');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
SELECT count(*) AS key_locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
COMMIT;
SELECT :columns FROM idem_begin('order-1', wait => '1 hour');
SELECT state, result, attempt, phase, progress, lease_until FROM idem_lookup('order-1');
SELECT scope, key, digest = idem_digest('order-1') AS digest, fingerprint, result, fence, attempt, phase, progress, lease_until
FROM idem_keys;

-- neither a first begin nor a replay writes WAL
CREATE FUNCTION wal_records(query text) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
	plan json;
BEGIN
	EXECUTE 'EXPLAIN (ANALYZE, WAL, FORMAT JSON) ' || query INTO plan;
	RETURN plan->0->'Plan'->>'WAL Records';
END
$$;
SELECT wal_records($$SELECT idem_begin('order-1')$$) AS wal;
BEGIN;
SELECT wal_records($$SELECT idem_begin('order-wal')$$) AS begin_wal,
	wal_records($$SELECT idem_release('order-wal')$$) AS release_wal;
SELECT wal_records($$SELECT idem_begin('order-wal')$$) AS begin_wal,
	wal_records($$SELECT idem_finish('order-wal')$$) > 0 AS finish_wal;
ROLLBACK;

-- result, as given
BEGIN;
SELECT state FROM idem_begin('none');
SELECT idem_finish('none') IS NULL AS sql_null;
COMMIT;
SELECT state, result IS NULL AS sql_null FROM idem_begin('none');
SELECT state, result IS NULL AS sql_null FROM idem_lookup('none');
BEGIN;
SELECT state FROM idem_begin('null');
SELECT idem_finish('null', 'null');
COMMIT;
SELECT state, result, result IS NULL AS sql_null FROM idem_begin('null');
-- one that goes out of line
BEGIN;
SELECT state FROM idem_begin('large');
SELECT octet_length(idem_finish('large', to_jsonb(string_agg(md5(i::text), '' ORDER BY i)))::text)
FROM generate_series(1, 3000) i;
SELECT octet_length(result::text) FROM idem_begin('large');
COMMIT;
SELECT octet_length(b.result::text), b.result = l.result AS same
FROM idem_begin('large') b, idem_lookup('large') l;
SELECT result->>0 = string_agg(md5(i::text), '' ORDER BY i) AS same
FROM idem_begin('large'), generate_series(1, 3000) i GROUP BY result;

-- a function can return what finish returns
CREATE TABLE orders (id integer GENERATED ALWAYS AS IDENTITY, total numeric);
CREATE FUNCTION place_order(request_key text, amount numeric) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
	c record;
	o orders;
BEGIN
	SELECT * INTO c FROM idem_begin(request_key, scope => 'orders');
	IF c.state <> 'started' THEN
		RETURN c.result;
	END IF;
	INSERT INTO orders (total) VALUES (amount) RETURNING * INTO o;
	RETURN idem_finish(request_key, to_jsonb(o), scope => 'orders');
END
$$;
SELECT place_order('a', 10);
SELECT place_order('a', 10);
SELECT place_order('b', 20);
SELECT * FROM orders ORDER BY id;

-- nothing of a rolled back transaction stays
BEGIN;
SELECT place_order('c', 30);
ROLLBACK;
SELECT count(*) FROM idem_lookup('c', 'orders');
SELECT place_order('c', 30)->'total' AS total;

-- all of it in one statement
\set request 'WITH c AS (SELECT * FROM idem_begin(''one'')), o AS (INSERT INTO orders (total) SELECT 40 FROM c WHERE c.state = ''started'' RETURNING *), f AS (SELECT idem_finish(''one'', to_jsonb(o) - ''id'') AS result FROM o) SELECT c.state, coalesce(f.result, c.result) AS result, c.retry_after FROM c LEFT JOIN f ON true;'
:request
:request
BEGIN;
:request
ROLLBACK;
SELECT count(*) FROM orders WHERE total = 40;

-- scopes
BEGIN;
SELECT state FROM idem_begin('k', scope => 'tenant 1');
SELECT idem_finish('k', '1', 'tenant 1');
SELECT state FROM idem_begin('k', scope => 'tenant 2');
SELECT idem_finish('k', '2', scope => 'tenant 2');
SELECT state FROM idem_begin('k');
SELECT idem_finish('k', '0');
COMMIT;
SELECT state, result FROM idem_begin('k', scope => 'tenant 1');
SELECT state, result FROM idem_begin('k', scope => 'tenant 2');
-- not given, NULL and empty are one
SELECT state, result FROM idem_begin('k');
SELECT state, result FROM idem_begin('k', scope => NULL);
SELECT state, result FROM idem_begin('k', scope => '');
-- no seam between scope and key
SELECT state FROM idem_lookup('2k', 'tenant ');
SELECT state FROM idem_lookup('tenant 2k');

-- the documented digest
SELECT left(scope, 8) AS scope, left(key, 8) AS key, octet_length(key) AS bytes, idem_digest(key, scope) =
	encode(substr(sha256(
		int4send(octet_length(convert_to(coalesce(scope, ''), 'UTF8'))) || convert_to(coalesce(scope, ''), 'UTF8') ||
		int4send(octet_length(convert_to(key, 'UTF8'))) || convert_to(key, 'UTF8')), 1, 16), 'hex')::uuid AS equal
FROM (VALUES (NULL, 'a'), ('', 'a'), ('a', 'bc'), ('ab', 'c'), ('tenant', 'order 1'),
	(U&'\0645\0633\062A\0623\062C\0631', U&'\8BA2\5355 \+01F6D2'), (repeat('s', 1024), repeat('k', 1024)),
	(repeat('s', 127), repeat('k', 127)), (repeat('s', 128), repeat('k', 128)), ('', repeat('k', 300))) v (scope, key)
ORDER BY octet_length(key), octet_length(scope), v.scope COLLATE "C";
SELECT count(DISTINCT d) FROM (VALUES (idem_digest('a')), (idem_digest('a', NULL)), (idem_digest('a', '')),
	(idem_digest('bc', 'a')), (idem_digest('c', 'ab')), (idem_digest('abc'))) v (d);

-- requests: equal as jsonb is equal as request
CREATE FUNCTION same_request(a jsonb, b jsonb) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	IF (SELECT state FROM idem_begin('req', request => a)) <> 'started' THEN
		RETURN 'not started';
	END IF;
	PERFORM idem_finish('req', '"result"');
	SELECT concat_ws(' ', state, result) INTO answer FROM idem_begin('req', request => b);
	PERFORM idem_forget('req');
	RETURN answer;
END
$$;
SELECT left(a::text, 40) AS a, left(b::text, 40) AS b, a = b AS equal, same_request(a, b)
FROM (VALUES
	('{"a": 1, "bb": 2}'::jsonb, '{"bb":2,"a":1}'::jsonb),
	('10', '10.0'), ('10', '1e1'), ('0', '-0.00'), ('0.00001', '1e-5'), ('1e400', ('1' || repeat('0', 400))::jsonb),
	('{"n": [10, {"x": 1.50}]}', '{"n":[1e1,{"x":1.5}]}'),
	('"\u00e9\ud83d\ude00"', '"é😀"'),
	('{"é": 1, "zz": 2, "日本": 3}', '{"\u65e5\u672c": 3, "\u00e9": 1.0, "zz": 2}'),
	('{"a": 1, "a": 2}', '{"a": 2}'),
	('null', 'null'), ('{}', '{ }'), ('[]', '[ ]'),
	-- and not
	('1', '2'), ('1', '"1"'), ('1', '1.0000000000000000000001'), ('1', '[1]'), ('[1]', '[[1]]'), ('[]', '{}'),
	('null', '[]'), ('null', 'false'), ('null', '"null"'), ('true', 'false'), ('true', '"t"'), ('""', 'null'),
	('[1, 2]', '[2, 1]'), ('[1, 2]', '[12]'), ('["a", "b"]', '["ab"]'), ('["ab", "c"]', '["a", "bc"]'),
	('[[1], 2]', '[[1, 2]]'), ('[{"a": 1}, {"b": 2}]', '[{"a": 1, "b": 2}]'),
	('{"a": null}', '{}'), ('{"a": 1}', '{"b": 1}'), ('{"a": 1}', '{"a": 2}'), ('{"a": 1}', '["a", 1]'),
	('{"a": {"b": 1}}', '{"a": 1, "b": 1}'), ('"é"', '"e\u0301"'), ('{"é": 1}', '{"É": 1}'),
	('1e400', '1e401'), ('-1', '1')) v (a, b);

-- compared only where both sides gave one
BEGIN;
SELECT state FROM idem_begin('with', request => '{"amount": 10}');
SELECT idem_finish('with', '"with"');
SELECT state FROM idem_begin('without');
SELECT idem_finish('without', '"without"');
-- seen by this transaction already
SELECT :columns FROM idem_begin('with', request => '{"amount": 11}');
COMMIT;
SELECT :columns FROM idem_begin('with', request => '{"amount": 10.00}');
SELECT :columns FROM idem_begin('with', request => '{"amount": 11}');
SELECT state, result FROM idem_begin('with');
SELECT state, result FROM idem_begin('with', request => NULL);
SELECT state, result FROM idem_begin('without', request => '{"amount": 10}');
SELECT pg_column_size(fingerprint) > 0 AS has_fingerprint FROM idem_keys WHERE key IN ('with', 'without') ORDER BY key;

-- out of order
\set VERBOSITY sqlstate
SELECT idem_finish('unknown', '1');
SELECT idem_release('unknown');
SELECT idem_finish('order-1', '2');
SELECT idem_finish('order-1', '2', 'another scope');
SELECT idem_release('order-1');
BEGIN;
SELECT state FROM idem_begin('order-2');
SELECT idem_finish('order-2', '1', fence => 7);
ROLLBACK;
BEGIN;
SELECT state FROM idem_begin('order-2');
SELECT idem_release('order-2', fence => 7);
ROLLBACK;
-- a claim ends with its transaction
SELECT idem_finish('order-2', '1');
\set VERBOSITY default
SELECT idem_finish('unknown', '1');
SELECT idem_release('unknown');
SELECT idem_finish('order-1', '2');
SELECT state, result FROM idem_lookup('order-1');

-- the commit guard
SELECT idem_begin('forgotten');
SELECT idem_begin('forgotten'), idem_begin('forgotten as well'), idem_begin('and this');
\set VERBOSITY sqlstate
CREATE TABLE effects (i integer);
BEGIN;
INSERT INTO effects VALUES (1);
SELECT state FROM idem_begin('forgotten');
INSERT INTO effects VALUES (2);
COMMIT;
BEGIN;
SELECT state FROM idem_begin('forgotten');
INSERT INTO effects VALUES (3);
PREPARE TRANSACTION 'regress_idem';
ROLLBACK PREPARED 'regress_idem';
SELECT state FROM idem_begin('forgotten') \; INSERT INTO effects VALUES (4);
DO $$ BEGIN PERFORM idem_begin('forgotten'); INSERT INTO effects VALUES (5); END $$;
SELECT count(*) FROM effects;
-- of several claims one
BEGIN;
SELECT state FROM idem_begin('finished');
SELECT state FROM idem_begin('forgotten');
SELECT idem_finish('finished');
COMMIT;
SELECT count(*) FROM idem_lookup('finished');
-- to roll back is fine
BEGIN;
SELECT state FROM idem_begin('forgotten');
ROLLBACK;
-- so is a single statement that finishes
SELECT state, idem_finish('one statement', '1') FROM idem_begin('one statement');
SELECT state FROM idem_lookup('one statement');
\set VERBOSITY default

-- release
BEGIN;
SELECT state FROM idem_begin('released');
SELECT idem_release('released');
COMMIT;
SELECT count(*) FROM idem_lookup('released');
BEGIN;
INSERT INTO effects VALUES (6);
SELECT state FROM idem_begin('released');
SELECT count(*) FROM effects;
SELECT idem_release('released') AS quietly;
SELECT state FROM idem_begin('released');
INSERT INTO effects VALUES (7);
SELECT idem_release('released') AS with_warning;
\set VERBOSITY sqlstate
SAVEPOINT s;
SELECT idem_release('released') AS again;
ROLLBACK TO s;
SELECT idem_finish('released') AS after_release;
ROLLBACK TO s;
\set VERBOSITY default
SELECT state FROM idem_begin('released');
SELECT idem_finish('released', '"at last"');
SELECT idem_release('released') AS after_finish;
COMMIT;
SELECT state, result FROM idem_begin('released');
-- the scope counts
BEGIN;
SELECT state FROM idem_begin('released', scope => 's');
\set VERBOSITY sqlstate
SAVEPOINT s;
SELECT idem_release('released');
ROLLBACK TO s;
\set VERBOSITY default
SELECT idem_release('released', 's');
COMMIT;

-- times: of the wall clock, the retention from the finish on
BEGIN;
SELECT created_at > now() AS later_than_transaction, created_at AS begun_at
FROM pg_sleep(0.001), idem_begin('times', '1 hour') \gset
\echo :later_than_transaction
SELECT pg_sleep(0.001), idem_finish('times');
COMMIT;
SELECT created_at = :'begun_at' AS created, finished_at > created_at AS finished,
	expires_at = finished_at + interval '1 hour' AS expires, finished_at <= clock_timestamp() AS past
FROM idem_keys WHERE key = 'times';
SELECT created_at = k.created_at AS created, finished_at = k.finished_at AS finished, expires_at = k.expires_at AS expires
FROM idem_begin('times', '2 hours') b JOIN idem_keys k USING (created_at, finished_at, expires_at) WHERE k.key = 'times';
SELECT count(*) FROM idem_lookup('times') l JOIN idem_keys k USING (created_at, finished_at, expires_at) WHERE k.key = 'times';

-- how long
CREATE FUNCTION kept(ttl interval) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	PERFORM idem_begin('kept', ttl);
	PERFORM idem_finish('kept');
	SELECT CASE WHEN expires_at = 'infinity' THEN 'for ever' ELSE (expires_at - finished_at)::text END INTO answer
	FROM idem_keys WHERE key = 'kept';
	PERFORM idem_forget('kept');
	RETURN answer;
END
$$;
SET timezone = 'UTC';
SELECT kept(NULL), kept('5 minutes'), kept('90 days'), kept('1000 years'), kept('999 years 12 months'),
	kept('178000000 years'), kept('9000000 hours');
SELECT kept('999 years') <> 'for ever' AS finite;
SET idempotency.default_ttl = '30min';
SELECT kept(NULL), kept('1 hour');
SET idempotency.default_ttl = -1;
SELECT kept(NULL), kept('1 hour');
RESET idempotency.default_ttl;
RESET timezone;

-- expired: absent at once, not only after a purge
CREATE PROCEDURE wait_until_expired(the_key text)
LANGUAGE plpgsql AS $$
BEGIN
	WHILE clock_timestamp() < (SELECT expires_at FROM idem_keys WHERE digest = idem_digest(the_key)) LOOP
		PERFORM pg_sleep(0.001);
	END LOOP;
END
$$;
SELECT state, idem_finish('short', '1') FROM idem_begin('short', '1 second', request => '{"n": 1}');
CALL wait_until_expired('short');
SELECT count(*) AS told FROM idem_lookup('short');
SELECT count(*) AS stored FROM idem_keys WHERE key = 'short';
BEGIN;
SELECT :columns FROM idem_begin('short', request => '{"n": 2}');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
ROLLBACK;
BEGIN;
SELECT :columns FROM idem_begin('short', request => '{"n": 2}');
SELECT idem_finish('short', '2');
COMMIT;
SELECT :columns FROM idem_begin('short', request => '{"n": 2}');
SELECT count(*), min(result::text), min(attempt), min(expires_at - finished_at) FROM idem_keys WHERE key = 'short';
-- expired is not finished
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key = 'short';
\set VERBOSITY sqlstate
SELECT idem_finish('short');
SELECT idem_release('short');
-- expired before the commit: the effect would stay, the key not
BEGIN;
SELECT state FROM idem_begin('brief', '1 millisecond');
SELECT idem_finish('brief', '1');
CALL wait_until_expired('brief');
SELECT state FROM idem_begin('brief', '1 hour');
SELECT idem_finish('brief', '2');
COMMIT;
BEGIN;
INSERT INTO effects VALUES (8);
SELECT state FROM idem_begin('brief', '1 millisecond');
SELECT idem_finish('brief', '1');
CALL wait_until_expired('brief');
\set VERBOSITY default
COMMIT;
SELECT count(*) FROM effects WHERE i = 8;
SELECT count(*) FROM idem_keys WHERE key = 'brief';

DROP FUNCTION wal_records, place_order, same_request, kept;
DROP PROCEDURE wait_until_expired;
DROP TABLE orders, effects;
DELETE FROM idem_keys;
