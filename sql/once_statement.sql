-- idem_once as a statement trigger: all rows of a statement in one batch.
SET client_encoding = 'UTF8';
SET timezone = 'UTC';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
CREATE SCHEMA once_statement;
SET search_path = once_statement, public;
RESET client_min_messages;
LOAD 'idempotency';
\set VERBOSITY sqlstate

CREATE TABLE orders (k text, total integer);
CREATE TRIGGER once AFTER INSERT ON orders REFERENCING NEW TABLE AS "any name"
	FOR EACH STATEMENT EXECUTE FUNCTION idem_once('k', '1 hour');
INSERT INTO orders VALUES ('a', 1);
\set VERBOSITY default
INSERT INTO orders VALUES ('a', 2);
INSERT INTO orders VALUES ('b', 3), ('c', 4), ('b', 5);
\set VERBOSITY sqlstate
INSERT INTO orders VALUES ('b', 6), ('c', 7);
INSERT INTO orders VALUES (NULL, 8), (NULL, 9);
INSERT INTO orders SELECT 'z', 10 WHERE false;
INSERT INTO orders VALUES ('d', 11), ('', 12);
INSERT INTO orders VALUES ('d', 13), (repeat('x', 1025), 14);
SELECT * FROM orders ORDER BY total;
SELECT scope, key, expires_at - created_at FROM idem_keys WHERE scope LIKE 'once_statement.%' ORDER BY key;
-- many rows, one of them a duplicate
INSERT INTO orders SELECT 'many ' || i, i FROM generate_series(1, 3000) i;
INSERT INTO orders SELECT 'more ' || i, i FROM generate_series(1, 3000) i UNION ALL SELECT 'many 1500', 0;
SELECT count(*) FROM orders;
SELECT count(*) FROM idem_keys WHERE scope LIKE 'once_statement.%';
\set VERBOSITY terse
-- the fields by which drivers know a unique violation, and the row that is the first in the order of digests
DO $$
DECLARE
	name text;
	relation text;
	detail text;
BEGIN
	INSERT INTO orders SELECT 'new ' || i, i FROM generate_series(1, 50) i UNION ALL SELECT 'many ' || i, i FROM generate_series(1, 50) i;
EXCEPTION WHEN unique_violation THEN
	GET STACKED DIAGNOSTICS name = CONSTRAINT_NAME, relation = TABLE_NAME, detail = PG_EXCEPTION_DETAIL;
	RAISE INFO '% % %', name, relation, detail = (SELECT format('Key (k)=(%s) already exists.', k)
		FROM generate_series(1, 50) i, concat('many ', i) k ORDER BY idem_digest(k, 'once_statement.orders') LIMIT 1);
END $$;
\set VERBOSITY sqlstate
-- a savepoint takes its keys with it
BEGIN;
SAVEPOINT a;
INSERT INTO orders SELECT 'saved ' || i, i FROM generate_series(1, 100) i;
ROLLBACK TO a;
INSERT INTO orders SELECT 'saved ' || i, i FROM generate_series(1, 100) i;
SAVEPOINT a;
INSERT INTO orders VALUES ('saved 7', 7);
ROLLBACK TO a;
COMMIT;
-- COPY
COPY orders FROM stdin;
copy 1	1
copy 2	2
\.
COPY orders FROM stdin;
copy 3	1
copy 2	2
\.
-- ON CONFLICT and MERGE: the rows that were inserted
CREATE UNIQUE INDEX ON orders (total) WHERE total > 100000;
INSERT INTO orders VALUES ('x', 100001);
INSERT INTO orders VALUES ('x', 100001), ('y', 100002) ON CONFLICT (total) WHERE total > 100000 DO NOTHING;
INSERT INTO orders VALUES ('x', 100001), ('w', 100003) ON CONFLICT (total) WHERE total > 100000 DO UPDATE SET k = excluded.k || '!';
MERGE INTO orders o USING (VALUES ('x', 100001), ('v', 100004)) n (k, total) ON o.total = n.total
	WHEN MATCHED THEN UPDATE SET k = 'matched' WHEN NOT MATCHED THEN INSERT VALUES (n.k, n.total);
MERGE INTO orders o USING (VALUES ('x', 100001), ('v', 100005)) n (k, total) ON o.total = n.total
	WHEN MATCHED THEN UPDATE SET k = 'matched again' WHEN NOT MATCHED THEN INSERT VALUES (n.k, n.total);
SELECT * FROM orders WHERE total > 100000 ORDER BY total;
-- two INSERTs of one statement
WITH one AS (INSERT INTO orders VALUES ('with', 1)) INSERT INTO orders VALUES ('with', 2);
WITH one AS (INSERT INTO orders VALUES ('with', 1)) INSERT INTO orders VALUES ('without', 2);

-- UPDATE has the row trigger, with the same columns in the same scope
CREATE TRIGGER once_updated AFTER UPDATE OF k ON orders FOR EACH ROW EXECUTE FUNCTION idem_once('k');
UPDATE orders SET k = 'without' WHERE k = 'with';
UPDATE orders SET k = 'with it' WHERE k = 'with';
INSERT INTO orders VALUES ('with it', 1);

\set VERBOSITY terse
-- other triggers read the transition table as well, before ours and after it
CREATE FUNCTION count_new() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE INFO '% %', TG_NAME, (SELECT count(*) FROM new_rows);
	RETURN NULL;
END $$;
CREATE TRIGGER a AFTER INSERT ON orders REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_new();
CREATE TRIGGER z AFTER INSERT ON orders REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_new();
CREATE TRIGGER again AFTER INSERT ON orders REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
	EXECUTE FUNCTION idem_once('total', NULL, NULL, 'totals');
INSERT INTO orders VALUES ('e', 20), ('f', 21);
INSERT INTO orders VALUES ('g', 22), ('h', 21);
INSERT INTO orders VALUES ('i', 22), ('e', 23);

\set VERBOSITY sqlstate
-- several keys of a row
CREATE TABLE events (source text, id integer, message uuid);
CREATE TRIGGER once AFTER INSERT ON events REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
	EXECUTE FUNCTION idem_once('source, id; message', NULL, 'raise');
INSERT INTO events SELECT 's', i, md5(i::text)::uuid FROM generate_series(1, 20) i;
\set VERBOSITY default
INSERT INTO events VALUES ('t', 21, md5('21')::uuid), ('s', 22, md5('5')::uuid);
INSERT INTO events VALUES ('t', 21, md5('21')::uuid), ('s', 6, NULL);
\set VERBOSITY sqlstate
INSERT INTO events VALUES ('t', 21, NULL), (NULL, 22, md5('22')::uuid);
SELECT count(*), count(DISTINCT scope) FROM idem_keys WHERE scope LIKE 'once_statement.events%';

-- more keys than maintenance_work_mem: a repeated one is found all the same
SET maintenance_work_mem = '1MB';
CREATE TABLE large (k bigint);
CREATE TRIGGER once AFTER INSERT ON large REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION idem_once('k');
INSERT INTO large SELECT generate_series(1, 40000) UNION ALL SELECT 1;
INSERT INTO large SELECT generate_series(1, 40000);
SELECT count(*) FROM idem_keys WHERE scope = 'once_statement.large';
INSERT INTO large VALUES (39999);
RESET maintenance_work_mem;

-- Partitions: the trigger of the table that the statement names fires, whatever the partition.  An UPDATE that moves a
-- row is no INSERT.
CREATE TABLE parts (k text, p integer) PARTITION BY LIST (p);
CREATE TABLE part_1 (p integer, k text);
ALTER TABLE parts ATTACH PARTITION part_1 FOR VALUES IN (1);
CREATE TABLE part_2 PARTITION OF parts FOR VALUES IN (2);
CREATE TRIGGER once AFTER INSERT ON parts REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION idem_once('k');
INSERT INTO parts VALUES ('a', 1), ('b', 2);
INSERT INTO parts VALUES ('c', 1), ('a', 2);
UPDATE parts SET p = 3 - p;
UPDATE parts SET p = 3 - p WHERE k = 'a';
INSERT INTO part_1 VALUES (1, 'b');
CREATE TRIGGER once AFTER INSERT ON part_1 REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION idem_once('k');
INSERT INTO part_1 VALUES (1, 'b');
INSERT INTO part_1 VALUES (1, 'd');
INSERT INTO parts VALUES ('d', 2);
INSERT INTO parts VALUES ('e', 1);
SELECT scope, key FROM idem_keys WHERE scope LIKE '%part%' ORDER BY key;

-- wrong use is refused by a message that names the trigger
CREATE TABLE wrong (k text);
INSERT INTO wrong VALUES ('k');
CREATE FUNCTION misuse(what text, arguments text, statement text DEFAULT $$INSERT INTO wrong VALUES ('k')$$) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	EXECUTE format('CREATE TRIGGER "My trigger" %s FOR EACH STATEMENT EXECUTE FUNCTION idem_once(%s)', what, arguments);
	EXECUTE statement;
	EXECUTE 'DROP TRIGGER "My trigger" ON wrong';
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(E'\n', SQLSTATE || ' ' || SQLERRM, hint);
END
$$;
\t on
\pset format unaligned
SELECT misuse('AFTER INSERT ON wrong', $$'k'$$);
SELECT misuse('BEFORE INSERT ON wrong', $$'k'$$);
SELECT misuse('BEFORE INSERT ON wrong', $$'k', NULL, 'skip'$$);
SELECT misuse('AFTER INSERT ON wrong REFERENCING NEW TABLE AS n', $$'k', NULL, 'skip'$$);
SELECT misuse('AFTER UPDATE ON wrong REFERENCING NEW TABLE AS n', $$'k'$$, $$UPDATE wrong SET k = 'l'$$);
SELECT misuse('AFTER DELETE ON wrong REFERENCING OLD TABLE AS n', $$'k'$$, 'DELETE FROM wrong');
SELECT misuse('AFTER TRUNCATE ON wrong', $$'k'$$, 'TRUNCATE wrong');
SELECT misuse('AFTER INSERT OR UPDATE ON wrong', $$'k'$$);
SELECT misuse('AFTER INSERT ON wrong REFERENCING NEW TABLE AS n', $$'nosuch'$$);
SELECT misuse('AFTER INSERT ON wrong REFERENCING NEW TABLE AS n', $$'k', '0'$$);
\pset format aligned
\t off

SET client_min_messages = warning;
DROP SCHEMA once_statement CASCADE;
DELETE FROM idem_keys;

-- A row in the transition table of a partitioned table may lack what only its partition computes
CREATE TABLE computed (id text, region text, k text GENERATED ALWAYS AS ('x' || id) STORED) PARTITION BY LIST (region);
CREATE TABLE computed_eu (junk int, region text, id text, k text GENERATED ALWAYS AS ('x' || id) STORED);
ALTER TABLE computed_eu DROP COLUMN junk;
ALTER TABLE computed ATTACH PARTITION computed_eu FOR VALUES IN ('eu');
CREATE TRIGGER computed_once AFTER INSERT ON computed REFERENCING NEW TABLE AS n
FOR EACH STATEMENT EXECUTE FUNCTION idem_once('k');
\set VERBOSITY default
INSERT INTO computed (id, region) VALUES ('a', 'eu');
DROP TABLE computed;
-- elsewhere it has it
CREATE TABLE computed (id text, k text GENERATED ALWAYS AS ('x' || id) STORED);
CREATE TRIGGER computed_once AFTER INSERT ON computed REFERENCING NEW TABLE AS n
FOR EACH STATEMENT EXECUTE FUNCTION idem_once('k');
INSERT INTO computed (id) VALUES ('a');
INSERT INTO computed (id) VALUES ('a');
DROP TABLE computed;
