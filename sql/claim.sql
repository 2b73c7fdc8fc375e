-- idem_claim and idem_claim_many: write a row once.
SET client_encoding = 'UTF8';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\set VERBOSITY sqlstate
CREATE TABLE inbox (message text);

SELECT idem_claim('m1');
SELECT idem_claim('m1');
SELECT idem_claim('m1', scope => 'other'), idem_claim('m1', NULL, 'other', NULL);
SELECT state, result, attempt, phase, progress, lease_until FROM idem_lookup('m1');
SELECT state, result, attempt FROM idem_begin('m1');
SELECT finished_at = created_at AS at_once, expires_at = finished_at + interval '24 hours' AS expires
FROM idem_keys WHERE key = 'm1' AND scope = '';
SELECT idem_finish('m1');

-- commits or vanishes with the work
BEGIN;
SELECT idem_claim('m2');
SELECT idem_claim('m2');
SELECT state FROM idem_begin('m2');
SELECT count(*) FROM idem_lookup('m2');
ROLLBACK;
SELECT idem_claim('m2');
BEGIN;
SAVEPOINT s;
SELECT idem_claim('m3');
ROLLBACK TO s;
SELECT idem_claim('m3');
COMMIT;
SELECT idem_claim('m3');
-- each message once, whatever is delivered
INSERT INTO inbox SELECT m FROM unnest('{a,b,a,c,b,a}'::text[]) m WHERE idem_claim(m, scope => 'inbox');
INSERT INTO inbox SELECT m FROM unnest('{c,d}'::text[]) m WHERE idem_claim(m, scope => 'inbox');
SELECT * FROM inbox ORDER BY message;
-- a repeat writes nothing, takes no xid and keeps no lock
BEGIN;
SELECT idem_claim('m1');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
COMMIT;

-- requests
SELECT idem_claim('r1', request => '{"a": 1}');
SELECT idem_claim('r1', request => '{"a": 1.0}');
SELECT idem_claim('r1');
SELECT idem_claim('r1', request => '{"a": 2}');
\set VERBOSITY default
SELECT idem_claim('r1', request => '{"a": 2}');
\set VERBOSITY sqlstate
SELECT idem_claim('r2');
SELECT idem_claim('r2', request => '1');

-- ttl
SELECT idem_claim('t1', '1000 years'), idem_claim('t2', '1 hour'), idem_claim('t3', '0 hours');
SELECT idem_claim('t1', '1000 years'), idem_claim('t2', '1 hour');
SELECT key, CASE WHEN expires_at = 'infinity' THEN 'for ever' ELSE (expires_at - finished_at)::text END AS kept
FROM idem_keys WHERE key LIKE 't%' ORDER BY key;
-- expired, not purged
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key = 't2';
BEGIN;
SELECT idem_claim('t2', '2 hours'), idem_claim('t2', '2 hours');
ROLLBACK;
SELECT idem_claim('t2', '2 hours'), idem_claim('t2', '2 hours');
SELECT expires_at - finished_at AS kept FROM idem_keys WHERE key = 't2';
-- expired within its transaction: its work would stay and the key be forgotten
BEGIN;
SELECT idem_claim('t4', '1 millisecond');
DO $$
BEGIN
	WHILE clock_timestamp() < (SELECT expires_at FROM idem_keys WHERE key = 't4') LOOP
		PERFORM pg_sleep(0.001);
	END LOOP;
END
$$;
COMMIT;
SELECT count(*) FROM idem_keys WHERE key = 't4';

-- an open claim of one's own would be waited for for ever
BEGIN;
SELECT state FROM idem_begin('o1');
SAVEPOINT s;
SELECT idem_claim('o1');
ROLLBACK TO s;
SELECT * FROM idem_claim_many('{o2,o1}');
ROLLBACK TO s;
\set VERBOSITY default
SELECT idem_claim('o1');
\set VERBOSITY sqlstate
ROLLBACK TO s;
SELECT idem_claim('o1', scope => 's');
SELECT idem_finish('o1', '1');
SELECT idem_claim('o1');
SELECT * FROM idem_claim_many('{o2,o1}');
COMMIT;

-- batches: what is new, in the order given, each once
SELECT * FROM idem_claim_many('{b3,b1,b2}');
SELECT * FROM idem_claim_many('{b3,b1,b2}');
SELECT * FROM idem_claim_many('{c9,b1,c5,c9,b2,c7,c5,c1}');
SELECT * FROM idem_claim_many('{d1,d1,d1}');
SELECT * FROM idem_claim_many('{}');
SELECT * FROM idem_claim_many(ARRAY[]::text[], '1 hour', 's');
SELECT * FROM idem_claim_many('[5:7]={e1,e2,e3}');
SELECT * FROM idem_claim_many('{e1,e2}', NULL, 'scope'), idem_claim_many('{e1,e2}', scope => 'other scope') o;
SELECT * FROM idem_claim_many(ARRAY[U&'\8BA2\5355', U&'\+01F600', 'it''s \ "quoted"', U&'\0645\0641\062A\0627\062D', 'NULL', ' ']);
SELECT count(*) FROM idem_claim_many(ARRAY[U&'\8BA2\5355', U&'\+01F600', 'it''s \ "quoted"', U&'\0645\0641\062A\0627\062D', 'NULL', ' ']);
-- every place of a function
SELECT idem_claim_many('{f2,f1,b1}');
SELECT idem_claim_many('{f1,f4,f3}') AS new, generate_series(1, 3) AS i;
SELECT array_agg(key ORDER BY ord) FROM idem_claim_many('{f8,f7}') WITH ORDINALITY AS f (key, ord);
SELECT i, key FROM generate_series(1, 2) i, LATERAL idem_claim_many(ARRAY['g1', 'g2', 'g' || i + 2]) ORDER BY i, key;
INSERT INTO inbox SELECT 'batch ' || key FROM idem_claim_many('{h1,h2}');
SELECT * FROM inbox WHERE message LIKE 'batch%' ORDER BY 1;
-- however many rows are asked for, all are claimed
BEGIN;
SELECT * FROM idem_claim_many('{i3,i2,i1}') LIMIT 1;
SELECT * FROM idem_claim_many('{i3,i2,i1}');
COMMIT;

-- rows as those of idem_claim
SELECT count(*), bool_and(result IS NULL AND fingerprint IS NULL AND attempt = 1 AND finished_at = created_at
	AND expires_at = finished_at + interval '24 hours' AND digest = idem_digest(key, scope)) AS equal
FROM idem_keys WHERE key LIKE 'b_';
SELECT state, result FROM idem_begin('b1', request => '{"any": "request"}');
-- rolled back all or nothing
BEGIN;
SELECT * FROM idem_claim_many('{j1,j2}');
SAVEPOINT s;
SELECT * FROM idem_claim_many('{j2,j3}');
ROLLBACK TO s;
SELECT * FROM idem_claim_many('{j2,j3}');
ROLLBACK;
SELECT * FROM idem_claim_many('{j1,j2,j3}', '1 hour');
-- one bad key: none of them
SELECT * FROM idem_claim_many('{k1,"",k2}');
SELECT * FROM idem_claim_many(ARRAY['k1', NULL, 'k2']);
SELECT * FROM idem_claim_many('{{k1},{k2}}');
SELECT * FROM idem_claim_many(NULL);
SELECT * FROM idem_claim_many('{k1,k2}', '-1 hour');
SELECT count(*) FROM idem_keys WHERE key LIKE 'k_';
-- expired ones are new
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key IN ('j1', 'j3');
SELECT * FROM idem_claim_many('{j3,j2,j1,j4}');
SELECT * FROM idem_claim_many('{j3,j2,j1,j4}');
SELECT key, count(*) FROM idem_keys WHERE key LIKE 'j_' GROUP BY key ORDER BY key;

-- more keys than the lock table holds, without a lock for each
BEGIN;
SELECT count(*), count(DISTINCT key), min(key), max(key)
FROM idem_claim_many((SELECT array_agg('n' || i) FROM generate_series(1, 20000) i));
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
COMMIT;
SELECT array_agg(key) AS new
FROM idem_claim_many((SELECT array_agg('n' || i ORDER BY i % 7, i) FROM generate_series(19998, 20002) i));
SELECT count(*) FROM idem_keys WHERE key LIKE 'n%';

DROP TABLE inbox;
DELETE FROM idem_keys;

-- a condition that claims comes last, wherever it stands
CREATE TABLE jobs (id text, status text);
INSERT INTO jobs SELECT i, CASE WHEN i % 10 = 0 THEN 'new' ELSE 'done' END FROM generate_series(1, 1000) i;
SELECT count(*) FROM jobs WHERE idem_claim(id, scope => 'jobs') AND lower(btrim(status)) = 'new';
SELECT count(*) FROM idem_keys WHERE scope = 'jobs';
DROP TABLE jobs;

-- once its row is written, a claim needs no lock: more of them than the lock table holds
BEGIN;
SELECT count(*) FROM generate_series(1, 30000) i WHERE idem_claim('many ' || i);
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
ROLLBACK;

-- what was erased again cannot expire before the commit; what a rollback brings back can
BEGIN;
SELECT idem_claim('brief', '300 milliseconds'), idem_claim('brief', '300 milliseconds', 'brief'), idem_claim('long');
SELECT array_agg(key) FROM idem_claim_many(ARRAY['brief many'], '300 milliseconds');
SELECT state FROM idem_begin('brief finished', '300 milliseconds');
SELECT idem_finish('brief finished');
SELECT idem_forget('brief'), idem_forget('brief finished'), idem_forget_scope('brief');
DELETE FROM idem_keys WHERE key = 'brief many';
-- it was finished, and is not any more
SAVEPOINT s;
SELECT idem_finish('brief finished');
ROLLBACK TO s;
SELECT idem_release('brief finished');
ROLLBACK TO s;
RELEASE s;
SELECT pg_sleep(0.35);
COMMIT;
SELECT key, scope FROM idem_keys WHERE key LIKE 'brief%' OR key = 'long';
BEGIN;
SELECT idem_claim('brief', '300 milliseconds');
SAVEPOINT s;
SELECT idem_forget('brief');
ROLLBACK TO s;
SELECT pg_sleep(0.35);
COMMIT;
-- claimed anew, for longer
BEGIN;
SELECT idem_claim('brief', '300 milliseconds');
SELECT idem_forget('brief');
SELECT idem_claim('brief', '1 hour');
SELECT pg_sleep(0.35);
COMMIT;
SELECT idem_claim('brief');
-- of very many only the first to expire is known; erased or not, others may be such
BEGIN;
SELECT count(*) FROM idem_claim_many((SELECT array_agg('first ' || i) FROM generate_series(1, 1000) i));
SELECT count(*) FROM idem_claim_many((SELECT array_agg('brief ' || i) FROM generate_series(1, 1000) i), '1 second');
SELECT sum(idem_forget('brief ' || i)::int) FROM generate_series(1, 999) i;
SELECT pg_sleep(1.1);
COMMIT;

\set VERBOSITY terse
-- an element of a batch that is no key is named, and nothing is claimed
SELECT * FROM idem_claim_many(ARRAY['good', '', 'better'], scope => 'batch');
SELECT * FROM idem_claim_many(ARRAY['good', 'better', NULL], scope => 'batch');
SELECT * FROM idem_claim_many(ARRAY[repeat('x', 1025), 'good'], scope => 'batch');
SELECT * FROM idem_claim_many(ARRAY['good', 'better', repeat('ü', 513)], scope => 'batch');
SELECT count(*) FROM idem_keys WHERE scope = 'batch';
-- the way to go on
SELECT * FROM idem_claim_many(ARRAY(SELECT id FROM unnest(ARRAY['good', '', NULL, 'better']) id
	WHERE octet_length(id) BETWEEN 1 AND 1024), scope => 'batch');

DELETE FROM idem_keys;
\set VERBOSITY default
-- a large batch uses few subtransactions, and so does a transaction of many batches
SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'large ' || i FROM generate_series(1, 10000) i));
SELECT count(*), count(DISTINCT xmin::text) FROM idem_keys;
DELETE FROM idem_keys;
BEGIN;
SELECT sum(n) FROM generate_series(1, 100) i, LATERAL (SELECT count(*) AS n FROM idem_claim_many(ARRAY(SELECT i || ' ' || j FROM generate_series(1, 20) j))) b;
COMMIT;
SELECT count(*), count(DISTINCT xmin::text) FROM idem_keys;
-- of known keys, expired ones, an own one, leased ones and new ones among each other
BEGIN;
DELETE FROM idem_keys;
SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'mix ' || i FROM generate_series(1, 100, 3) i));
UPDATE idem_keys SET expires_at = now() WHERE right(key, 1) < '5';
SELECT count(*), sum(substr(key, 5)::int) FROM idem_claim_many(ARRAY(SELECT 'mix ' || i FROM generate_series(1, 100) i));
SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'mix ' || i FROM generate_series(1, 100) i));
SELECT count(*), count(DISTINCT digest) FROM idem_keys WHERE digest = idem_digest(key);
SELECT state FROM idem_begin('mix lease', lease => '1 hour');
SAVEPOINT a;
SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'more ' || i FROM generate_series(1, 100) i) || 'mix lease'::text);
ROLLBACK TO a;
SELECT state FROM idem_begin('mix open');
SAVEPOINT a;
SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'more ' || i FROM generate_series(1, 100) i) || 'mix open'::text);
ROLLBACK TO a;
SET LOCAL transaction_read_only = on;
SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'mix ' || i FROM generate_series(1, 100) i));
SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'mix ' || i FROM generate_series(1, 101) i));
ROLLBACK;

DELETE FROM idem_keys;
