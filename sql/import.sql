-- idem_import and idem_import_many: answers of requests that were handled elsewhere.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
SET timezone = 'UTC';
\set VERBOSITY sqlstate
\pset null -

-- what is stored is what is replayed
SELECT idem_import('i1', '{"order": 1}', 'shop', '2001-02-03 04:05:06Z', 'infinity', '{"item": "book"}');
SELECT state, result, attempt, created_at, finished_at, expires_at, failed
FROM idem_begin('i1', scope => 'shop', request => '{"item": "book"}');
SELECT state, result FROM idem_begin('i1', scope => 'shop', request => '{"item": "lamp"}');
SELECT state, result FROM idem_begin('i1', scope => 'shop');
SELECT idem_claim('i1', scope => 'shop'), idem_claim('i1', scope => 'shop', request => '{"item": "book"}');
SELECT state, result, attempt, phase, progress, lease_until, created_at, finished_at, expires_at, failed
FROM idem_lookup('i1', 'shop');
-- by default: no result, no scope, now, the default ttl
SELECT idem_import('i2');
SELECT state, result, failed FROM idem_begin('i2');
SELECT created_at > now() - interval '1 minute' AS new, finished_at = created_at AS at_once,
	expires_at = created_at + interval '24 hours' AS expires
FROM idem_keys WHERE key = 'i2' AND scope = '';
SELECT idem_import('i3', '"failed"', failed => true), idem_import('i4', '"not failed"', failed => false);
SELECT state, result, failed FROM idem_begin('i3');
SELECT state, result, failed FROM idem_begin('i4');
SELECT key, failed FROM idem_keys WHERE key IN ('i3', 'i4') ORDER BY key;

-- without a request, the answer is that to any request, whichever function asks
CREATE FUNCTION greet(name text) RETURNS text LANGUAGE sql AS $$ SELECT 'hello, ' || name $$;
SELECT idem_import('a1', '"hello from before"');
SELECT state, result FROM idem_begin('a1', request => '{"any": 1}');
SELECT state, result FROM idem_call('a1', 'greet', '{"name": "x"}');
SELECT run, status, headers, body, replayed FROM idem_http_begin('a1', 'not even JSON');
SELECT idem_claim('a1', request => '2');
-- one that was claimed without a request is another matter
SELECT idem_claim('a2');
SELECT state FROM idem_call('a2', 'greet', '{"name": "x"}');
SELECT run, status FROM idem_http_begin('a2', '{"name": "x"}');
DROP FUNCTION greet;
-- HTTP: the request is compared as jsonb
SELECT idem_import('h1', jsonb_build_object('status', 201, 'headers', '{"Location": "/orders/1", "Date": "then"}'::jsonb,
	'body', '{"id":1, "amount":1e2}'), 'POST /orders', request => '{"amount": 100}');
SELECT run, status, headers, body, replayed FROM idem_http_begin('"h1"', '{"amount": 1e2}', 'POST /orders');
SELECT run, status FROM idem_http_begin('"h1"', '{"amount": 2}', 'POST /orders');
SELECT run, status FROM idem_http_begin('h1', NULL, 'POST /orders');

-- the moment that PostgreSQL counts from is one like any other, within a microsecond
SELECT idem_import('epoch', '1', created_at => '2000-01-01 00:00:00Z', expires_at => 'infinity'),
	idem_import_many('{epochs}', '{1}', created_at => '{2000-01-01 00:00:00Z}', expires_at => '{infinity}');
SELECT key, created_at, finished_at FROM idem_keys WHERE key LIKE 'epoch%' ORDER BY key;
SELECT state, result FROM idem_begin('epoch');

-- what has expired counts as absent
SELECT idem_import('e1', '1', expires_at => now() - interval '1 second');
SELECT idem_import('e1', '1', created_at => now() - interval '25 hours');
SELECT idem_import('e1', '1', expires_at => '-infinity');
SELECT count(*) FROM idem_keys WHERE key = 'e1';
BEGIN;
SELECT state FROM idem_begin('e1');
ROLLBACK;
-- how long a row is kept counts from its created_at
SET idempotency.default_ttl = '30d';
SELECT idem_import('e2', '1', created_at => now() - interval '29 days');
SELECT expires_at - created_at AS kept FROM idem_keys WHERE key = 'e2';
SET idempotency.default_ttl = -1;
SELECT idem_import('e3', '1', created_at => '0044-03-15 BC');
SELECT created_at, expires_at FROM idem_keys WHERE key = 'e3';
RESET idempotency.default_ttl;
-- the row of a key that has expired is no hindrance; it is replaced as a whole
SELECT idem_import('e4', '"old"', request => '1', failed => true);
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key = 'e4';
SELECT idem_import('e4', '"new"');
SELECT state, result, attempt, failed FROM idem_begin('e4', request => '2');

-- a row that exists stays
SELECT idem_import('s1', '"first"'), idem_import('s1', '"second"', failed => true);
SELECT state, result, failed FROM idem_begin('s1');
SELECT idem_claim('s2'), idem_import('s2', '1');
SELECT result FROM idem_lookup('s2');
BEGIN;
SELECT state FROM idem_begin('s3');
SELECT idem_finish('s3', '"mine"');
SELECT idem_import('s3', '"theirs"'), idem_import_many('{s3}', '{1}');
COMMIT;
SELECT state, result FROM idem_begin('s3');
-- a leased claim as well, running or abandoned: its fence and its recovery point
SELECT state, fence FROM idem_begin('s4', lease => '1 hour') \gset
SELECT idem_import('s4', '1'), idem_import_many('{s4}', '{1}');
SELECT idem_checkpoint('s4', 'charged', '{"charge": 1}', fence => :fence) IS NOT NULL AS recorded;
UPDATE idem_keys SET lease_until = clock_timestamp() WHERE key = 's4';
SELECT idem_import('s4', '1'), idem_import_many('{s4}', '{1}');
BEGIN;
SELECT state, phase, progress, attempt FROM idem_begin('s4');
ROLLBACK;
SELECT idem_finish('s4', '"by the holder"', fence => :fence);
BEGIN;
SELECT state FROM idem_begin('s5', lease => '1 hour');
SELECT idem_import('s5', '1');
UPDATE idem_keys SET lease_until = clock_timestamp() WHERE key = 's5';
SELECT idem_import('s5', '1');
ROLLBACK;
-- a key that this transaction has open
BEGIN;
SELECT state FROM idem_begin('s6');
SELECT idem_import('s6', '1');
ROLLBACK;

-- commits or vanishes with the transaction
BEGIN;
SELECT idem_import('t1', '1');
SELECT state, result FROM idem_begin('t1');
SAVEPOINT s;
SELECT idem_import('t2', '1');
ROLLBACK TO s;
SELECT state FROM idem_begin('t2');
SELECT idem_release('t2');
ROLLBACK;
SELECT count(*) FROM idem_keys WHERE key IN ('t1', 't2');
-- no work depends on it: the commit guard does not mind if it expires
BEGIN;
SELECT idem_import('t3', '1', expires_at => clock_timestamp() + interval '300 milliseconds');
DO $$ BEGIN WHILE EXISTS (SELECT FROM idem_keys WHERE key = 't3' AND expires_at > clock_timestamp()) LOOP END LOOP; END $$;
SELECT idem_check();
COMMIT;
SELECT count(*) FROM idem_keys WHERE key = 't3';
-- a transaction that cannot write
BEGIN READ ONLY;
SELECT idem_import('i1');
ROLLBACK;
BEGIN READ ONLY;
SELECT idem_import_many('{}');
ROLLBACK;

-- what is refused
SELECT idem_import(NULL);
SELECT idem_import('');
SELECT idem_import('f1', created_at => 'infinity');
SELECT idem_import('f1', created_at => '-infinity');
SELECT idem_import('f1', created_at => now() + interval '1 hour');
SET idempotency.max_result_size = '1kB';
SELECT idem_import('f1', to_jsonb(repeat('x', 2000)));
SELECT idem_import_many('{f1,f2}', ARRAY['1', to_jsonb(repeat('x', 2000))]);
RESET idempotency.max_result_size;
\set VERBOSITY default
SELECT idem_import('f1', created_at => 'infinity');
SELECT idem_import_many('{f1,f2}', '{1}');
SELECT idem_import_many('{f1,f2}', failed => '{t,f,t}');
SELECT idem_import_many(NULL, '{1}');
SELECT idem_import_many('{{f1,f2},{f3,f4}}');
SELECT idem_import_many('{f1,f2}', '{{1},{2}}');
SELECT idem_import_many('{f1,NULL}');
SELECT idem_import_many('{f1,""}');
SELECT idem_import_many('{f1,f2}', created_at => '{now,infinity}');
\set VERBOSITY sqlstate
SELECT count(*) FROM idem_keys WHERE key LIKE 'f_';

-- a batch
SELECT idem_import_many('{b1,b2,b3}', '{"{\"order\": 1}",NULL,"\"no\""}', '{shop,NULL,shop}', '{2001-02-03Z,NULL,NULL}',
	'{infinity,NULL,infinity}', '{"{\"item\": 1}",NULL,1}', '{NULL,f,t}');
SELECT key, scope, result, failed, created_at = '2001-02-03Z' AS old, expires_at FROM idem_keys WHERE key LIKE 'b_' AND expires_at = 'infinity' ORDER BY key;
SELECT state, result, failed FROM idem_begin('b1', scope => 'shop', request => '{"item": 1.0}');
SELECT state FROM idem_begin('b1', scope => 'shop', request => '{"item": 2}');
SELECT state, result, failed FROM idem_begin('b2', request => '{"item": 2}');
-- rows that exist stay and are not counted; of equal keys the first one that has not expired is written
SELECT idem_import_many('{b4,b1,b4,b5,b4,b5}', '{1,2,3,4,5,6}', '{NULL,shop,NULL,NULL,NULL,NULL}',
	expires_at => '{-infinity,infinity,infinity,infinity,infinity,infinity}');
SELECT key, result FROM idem_keys WHERE key IN ('b1', 'b4', 'b5') ORDER BY key;
-- of no rows
SELECT idem_import_many('{}'), idem_import_many('{}', '{}'), idem_import_many(NULL);
SELECT idem_import_many(array_agg(k), array_agg(r)) FROM (SELECT 'x'::text AS k, '1'::jsonb AS r WHERE false) none;
-- the default scope
SET idempotency.default_scope = 'tenant';
SELECT idem_import('d1', '1'), idem_import_many('{d2,d3}', scopes => '{NULL,other}');
RESET idempotency.default_scope;
SELECT key, scope FROM idem_keys WHERE key LIKE 'd_' ORDER BY key;
SET idempotency.require_scope = on;
SELECT idem_import('d4');
SELECT idem_import_many('{d4,d5}', scopes => '{shop,NULL}');
RESET idempotency.require_scope;

-- more rows than the lock table has entries, without a lock on any
CREATE TABLE old_keys AS
SELECT 'n' || i AS key, 'tenant ' || i % 3 AS tenant, jsonb_build_object('order', i) AS response, now() - i * interval '1 s' AS created_at
FROM generate_series(1, 20000) i;
BEGIN;
SELECT idem_import_many(array_agg(key), array_agg(response), array_agg(tenant), array_agg(created_at)) FROM old_keys;
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
COMMIT;
SELECT count(*) FROM old_keys o JOIN idem_keys k ON k.digest = idem_digest(o.key, o.tenant) AND k.result = o.response AND k.created_at = o.created_at;
SELECT idem_import_many(array_agg(key), array_agg(response), array_agg(tenant), array_agg(created_at)) FROM old_keys;
DROP TABLE old_keys;

TRUNCATE idem_keys;
