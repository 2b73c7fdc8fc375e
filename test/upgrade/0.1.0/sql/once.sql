-- The row trigger idem_once on ordinary tables; once_partitions has the others.
SET client_encoding = 'UTF8';
SET timezone = 'UTC';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
CREATE SCHEMA once;
SET search_path = once, public;
RESET client_min_messages;
LOAD 'idempotency';
\set VERBOSITY sqlstate

-- How many rows, or the SQLSTATE: of our own messages also the text.
CREATE FUNCTION try(statement text, message boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
BEGIN
	EXECUTE statement;
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n;
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || CASE WHEN message THEN ' ' || SQLERRM ELSE '' END;
END
$$;

-- raise, the default
CREATE TABLE orders (k text, total integer);
CREATE TRIGGER once AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION idem_once('k');
INSERT INTO orders VALUES ('a', 1);
\set VERBOSITY default
INSERT INTO orders VALUES ('a', 2);
\set VERBOSITY sqlstate
INSERT INTO orders VALUES ('b', 3), ('c', 4), ('b', 5);
INSERT INTO orders VALUES ('b', 6), ('c', 7);
INSERT INTO orders VALUES (NULL, 8), (NULL, 9);
SELECT * FROM orders ORDER BY total;
-- the fields by which drivers know a unique violation
CREATE FUNCTION violated(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	s text;
	t text;
	c text;
BEGIN
	EXECUTE statement;
	RETURN 'nothing';
EXCEPTION WHEN unique_violation THEN
	GET STACKED DIAGNOSTICS s = SCHEMA_NAME, t = TABLE_NAME, c = CONSTRAINT_NAME;
	RETURN format('schema %s, table %s, constraint %s', s, t, c);
END
$$;
SELECT violated($$INSERT INTO orders VALUES ('a', 10)$$);

-- what operators see and do; DELETE and TRUNCATE free nothing
SELECT scope, key, result, expires_at = finished_at + interval '24 hours' AS kept FROM idem_keys WHERE scope LIKE 'once.%' ORDER BY key;
SELECT state, result FROM idem_lookup('a', 'once.orders');
DELETE FROM orders WHERE k = 'a';
INSERT INTO orders VALUES ('a', 10);
SELECT idem_forget('a', 'once.orders');
INSERT INTO orders VALUES ('a', 10);
TRUNCATE orders;
INSERT INTO orders VALUES ('a', 11);
SELECT idem_forget_scope('once.orders');
INSERT INTO orders VALUES ('a', 11);
-- other claims on the same key
SELECT idem_claim('a', scope => 'once.orders'), idem_claim('d', scope => 'once.orders');
INSERT INTO orders VALUES ('d', 12);
BEGIN;
SELECT state FROM idem_begin('e', scope => 'once.orders');
INSERT INTO orders VALUES ('e', 12);
ROLLBACK;
SELECT state FROM idem_begin('f', scope => 'once.orders', lease => '1 hour');
INSERT INTO orders VALUES ('f', 12);
INSERT INTO orders VALUES ('e', 12);

-- skip
CREATE TABLE inbox (k text, n integer);
CREATE TRIGGER once BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION idem_once('k', '', 'skip');
INSERT INTO inbox VALUES ('a', 1), ('b', 2), ('a', 3), (NULL, 4), (NULL, 5) RETURNING *;
INSERT INTO inbox VALUES ('a', 6), ('c', 7) RETURNING *;
SELECT * FROM inbox ORDER BY n;

-- COPY
COPY orders FROM stdin;
g	13
h	14
g	15
\.
COPY orders FROM stdin;
g	13
h	14
\N	15
\.
COPY inbox FROM stdin;
a	8
d	9
d	10
\.
SELECT count(*) FILTER (WHERE k IN ('g', 'h')) AS copied FROM orders;
SELECT * FROM inbox WHERE n >= 8;

-- ON CONFLICT: a key is claimed only for a row that was written
CREATE TABLE upserts (id integer PRIMARY KEY, k text, n integer DEFAULT 0);
CREATE TRIGGER once AFTER INSERT OR UPDATE ON upserts FOR EACH ROW EXECUTE FUNCTION idem_once('k');
INSERT INTO upserts VALUES (1, 'a');
INSERT INTO upserts VALUES (1, 'b') ON CONFLICT DO NOTHING;
INSERT INTO upserts VALUES (1, 'c') ON CONFLICT (id) DO UPDATE SET n = upserts.n + 1;
INSERT INTO upserts VALUES (2, 'b'), (3, 'c') ON CONFLICT DO NOTHING;
INSERT INTO upserts VALUES (1, 'd') ON CONFLICT (id) DO UPDATE SET k = excluded.k;
INSERT INTO upserts VALUES (4, 'd') ON CONFLICT DO NOTHING;
INSERT INTO upserts VALUES (1, 'b') ON CONFLICT (id) DO UPDATE SET k = excluded.k;
-- UPDATE: a changed key is claimed; one that was given up stays taken
UPDATE upserts SET n = n + 1, k = k;
UPDATE upserts SET k = 'a' WHERE id = 1;
UPDATE upserts SET k = CASE k WHEN 'b' THEN 'c' ELSE 'b' END WHERE k IN ('b', 'c');
UPDATE upserts SET k = NULL WHERE id = 1;
UPDATE upserts SET k = 'c' WHERE id = 1;
UPDATE upserts SET k = 'e' WHERE id = 1;
INSERT INTO upserts VALUES (4, 'e');
MERGE INTO upserts u USING (VALUES (1, 'f'), (5, 'g')) v (id, k) ON u.id = v.id
	WHEN MATCHED THEN UPDATE SET k = v.k WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.k);
MERGE INTO upserts u USING (VALUES (6, 'f')) v (id, k) ON u.id = v.id WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.k);
MERGE INTO upserts u USING (VALUES (1, 'g')) v (id, k) ON u.id = v.id WHEN MATCHED THEN UPDATE SET k = v.k;
SELECT * FROM upserts ORDER BY id;
-- skip leaves the row as it was
CREATE TABLE changes (id integer, k text);
CREATE TRIGGER once BEFORE INSERT OR UPDATE OR DELETE ON changes FOR EACH ROW EXECUTE FUNCTION idem_once('k', NULL, 'skip');
INSERT INTO changes VALUES (1, 'a'), (2, 'b'), (3, NULL);
UPDATE changes SET k = 'c' WHERE id = 1;
INSERT INTO changes VALUES (4, 'c');
UPDATE changes SET k = 'a';
UPDATE changes SET k = 'd' WHERE id = 3;
UPDATE changes SET k = 'd' WHERE id = 1;
UPDATE changes SET k = k, id = id + 10;
MERGE INTO changes c USING (VALUES (11, 'b'), (14, 'c'), (15, 'e')) v (id, k) ON c.id = v.id
	WHEN MATCHED THEN UPDATE SET k = v.k WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.k);
SELECT * FROM changes ORDER BY id;
DELETE FROM changes;
INSERT INTO changes VALUES (1, 'a');

-- A key holds for equal values, whatever the session's settings.  What is
-- stored as the key must never change, or old keys would not be known.
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN amount AS numeric CHECK (VALUE > 0);
CREATE DOMAIN price AS amount;
CREATE DOMAIN moment AS timestamptz;
CREATE TYPE pair AS (n integer, at timestamptz);
CREATE TABLE kinds (id integer GENERATED ALWAYS AS IDENTITY, type text, first text, second text, same text, key text);
INSERT INTO kinds (type, first, second) VALUES
	('smallint', '7', '7'), ('integer', '-7', '-7'), ('bigint', '7000000000', '7000000000'), ('oid', '7', '7'),
	('uuid', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{a0eebc999c0b4ef8bb6d6bb9bd380a11}'),
	('text', 'a', 'a'), ('text', 'a', 'A'), ('text', 'a', 'a '), ('varchar(5)', 'a', 'a'), ('name', 'a', 'a'), ('"char"', 'a', 'a'),
	('char(5)', 'a', 'a  '), ('char(5)', ' a', 'a'), ('boolean', 't', 'yes'), ('mood', 'sad', 'sad'), ('mood', 'sad', 'happy'),
	('numeric', '1.0', '1.00'), ('numeric', '100', '1e2'), ('numeric', '1.0', '1.01'), ('numeric', '0', '-0.000'), ('numeric', 'NaN', 'nan'),
	('numeric', '-Infinity', '-inf'), ('price', '1.50', '1.5'), ('numeric(10,2)', '5', '5.001'),
	('float8', '0', '-0'), ('float4', '-0', '0'), ('float8', '0.1', '0.1'), ('float8', '0.1', '0.10000000000000002'), ('float4', '0.1', '0.10000001'),
	('date', '2024-02-03', '2024-02-03'), ('date', 'infinity', 'infinity'), ('date', '0044-03-15 BC', '0044-03-15 BC'),
	('timestamp', '2024-02-03 04:05', '2024-02-03 04:05:00.000'), ('timestamp', '2024-02-03 04:05', '2024-02-03 04:05:00.000001'),
	('timestamptz', '2024-02-03 04:05+00', '2024-02-03 09:35+05:30'), ('timestamptz', '-infinity', '-infinity'),
	('moment', '2024-02-03 04:05+00', '2024-02-03 05:05+01'), ('time', '04:05', '04:05:00'), ('timetz', '04:05+01', '04:05+01'),
	('interval', '1 mon 2 days 03:04:05.6', '1 mon 2 days 03:04:05.6'), ('bytea', '\x0001ff', '\x0001ff'), ('money', '1234.5', '1234.50'),
	('jsonb', '{"b": 1, "a": [1, 2]}', '{"a":[1,2],"b":1}'), ('regclass', 'orders', 'once.orders'), ('regtype', 'mood', 'once.mood'),
	('timestamptz[]', '{2024-02-03 04:05+00,NULL}', '{2024-02-03 05:05+01,NULL}'), ('float8[]', '{0.1}', '{0.10000000000000002}'),
	('tstzrange', '[2024-02-03 04:05+00,)', '[2024-02-03 05:05+01,)'), ('pair', '(1,2024-02-03 04:05+00)', '(1,2024-02-03 05:05+01)'),
	('inet', '10.0.0.1', '10.0.0.1/32'), ('bit(3)', '101', '101');
DO $$
DECLARE
	kind kinds;
BEGIN
	FOR kind IN SELECT * FROM kinds ORDER BY id LOOP
		EXECUTE format('CREATE TABLE given AS SELECT %L::%s AS first, %L::%2$s AS second', kind.first, kind.type, kind.second);
		EXECUTE format('CREATE TABLE kind (v %s)', kind.type);
		CREATE TRIGGER once AFTER INSERT ON kind FOR EACH ROW EXECUTE FUNCTION idem_once('v');
		INSERT INTO kind SELECT first FROM given;
		UPDATE kinds SET key = i.key FROM idem_keys i WHERE i.scope = 'once.kind' AND id = kind.id;
		PERFORM set_config('timezone', 'Asia/Kolkata', true), set_config('datestyle', 'German', true),
			set_config('extra_float_digits', '-10', true), set_config('intervalstyle', 'iso_8601', true),
			set_config('bytea_output', 'escape', true);
		UPDATE kinds SET same = try('INSERT INTO kind SELECT second FROM given') WHERE id = kind.id;
		-- and neither is left changed
		ASSERT current_setting('timezone') = 'Asia/Kolkata' AND current_setting('extra_float_digits') = '-10';
		PERFORM set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO, MDY', true),
			set_config('extra_float_digits', '1', true), set_config('intervalstyle', 'postgres', true),
			set_config('bytea_output', 'hex', true);
		DROP TABLE kind, given;
		PERFORM idem_forget_scope('once.kind');
	END LOOP;
END
$$;
SELECT type, first, second, same = '23505' AS same, key FROM kinds ORDER BY id;
-- the search_path has a say in how a regclass looks
CREATE TABLE kind (v regclass);
CREATE TRIGGER once AFTER INSERT ON kind FOR EACH ROW EXECUTE FUNCTION idem_once('v');
INSERT INTO kind VALUES ('orders');
SET search_path = public;
INSERT INTO once.kind VALUES ('once.orders');
SET search_path = once, public;
DROP TABLE kind;

-- several columns: none runs into the next
CREATE TABLE pairs ("Tenant" text, b text, n numeric, "odd "" name" integer);
CREATE TRIGGER once AFTER INSERT ON pairs FOR EACH ROW EXECUTE FUNCTION idem_once('"Tenant", b,n');
SELECT try($$INSERT INTO pairs VALUES ('a', 'bc', 1)$$), try($$INSERT INTO pairs VALUES ('ab', 'c', 1.0)$$),
	try($$INSERT INTO pairs VALUES ('a', 'bc', 1.00)$$), try($$INSERT INTO pairs VALUES ('a', 'bc', 11)$$),
	try($$INSERT INTO pairs VALUES ('', '', 1), ('a,2:bc', '', 1), ('é', 'x', 1), ('', 'éx', 1)$$),
	try($$INSERT INTO pairs VALUES ('a', NULL, 1), ('a', NULL, 1), (NULL, NULL, NULL), (NULL, NULL, NULL)$$);
SELECT key FROM idem_keys WHERE scope = 'once.pairs' ORDER BY key COLLATE "C";
\set VERBOSITY terse
INSERT INTO pairs VALUES ('', '', 1);
\set VERBOSITY sqlstate
CREATE TRIGGER twice AFTER INSERT ON pairs FOR EACH ROW EXECUTE FUNCTION idem_once('"odd "" name"', '1 day', 'raise', 'other');
SELECT try($$INSERT INTO pairs VALUES ('x', 'x', 1, 1)$$), try($$INSERT INTO pairs VALUES ('y', 'y', 1, 1)$$);

-- scopes
CREATE SCHEMA "Shop";
CREATE TABLE "Shop"."Orders" (k text);
CREATE TRIGGER once AFTER INSERT ON "Shop"."Orders" FOR EACH ROW EXECUTE FUNCTION idem_once('k');
CREATE TABLE "Shop".orders (k text);
CREATE TRIGGER once AFTER INSERT ON "Shop".orders FOR EACH ROW EXECUTE FUNCTION idem_once('k');
INSERT INTO "Shop"."Orders" VALUES ('s');
INSERT INTO "Shop".orders VALUES ('s');
SELECT scope FROM idem_keys WHERE key = 's' ORDER BY scope COLLATE "C";
INSERT INTO "Shop"."Orders" VALUES ('s');
-- it is the same for a session that quotes everything
SET quote_all_identifiers = on;
INSERT INTO "Shop".orders VALUES ('s');
RESET quote_all_identifiers;
SELECT count(*) FROM idem_keys WHERE key = 's';
-- by default it is the table's name, so a renamed table starts anew
ALTER TABLE "Shop".orders RENAME TO purchases;
INSERT INTO "Shop".purchases VALUES ('s');
DROP TABLE "Shop"."Orders", "Shop".purchases;
DROP SCHEMA "Shop";
-- one that is given can be shared
CREATE TABLE one (k text);
CREATE TABLE two (k integer);
CREATE TRIGGER once AFTER INSERT ON one FOR EACH ROW EXECUTE FUNCTION idem_once('k', NULL, NULL, 'shared');
CREATE TRIGGER once BEFORE INSERT ON two FOR EACH ROW EXECUTE FUNCTION idem_once('k', NULL, 'skip', 'shared');
INSERT INTO one VALUES ('1');
INSERT INTO two VALUES (1), (2) RETURNING *;
INSERT INTO one VALUES ('2');
-- triggers on other columns of one table need scopes of their own
CREATE TABLE twice (k text, l text);
CREATE TRIGGER once_k AFTER INSERT ON twice FOR EACH ROW EXECUTE FUNCTION idem_once('k');
CREATE TRIGGER once_l AFTER INSERT ON twice FOR EACH ROW EXECUTE FUNCTION idem_once('l');
SELECT try($$INSERT INTO twice VALUES ('a', 'b')$$);
CREATE OR REPLACE TRIGGER once_l AFTER INSERT ON twice FOR EACH ROW EXECUTE FUNCTION idem_once('l', NULL, NULL, 'once.twice.l');
SELECT try($$INSERT INTO twice VALUES ('a', 'a')$$), try($$INSERT INTO twice VALUES ('b', 'a')$$), try($$INSERT INTO twice VALUES ('a', 'b')$$);
-- it is a scope as far as require_scope goes
SET idempotency.require_scope = on;
INSERT INTO orders VALUES ('scoped', 16);
RESET idempotency.require_scope;

-- existing rows are not known, unless their keys are claimed
CREATE TABLE old (k text);
INSERT INTO old VALUES ('a'), ('b');
CREATE TRIGGER once AFTER INSERT ON old FOR EACH ROW EXECUTE FUNCTION idem_once('k');
SELECT count(*) FROM (SELECT array_agg(k) AS ks FROM old) o, idem_claim_many(o.ks, scope => 'once.old');
INSERT INTO old VALUES ('a');
INSERT INTO old VALUES ('c');

-- ttl, and expiry: time passes by backdating
CREATE TABLE brief (k text, n integer);
CREATE TRIGGER once AFTER INSERT ON brief FOR EACH ROW EXECUTE FUNCTION idem_once('k', '2 hours');
CREATE TRIGGER once_too BEFORE INSERT ON brief FOR EACH ROW EXECUTE FUNCTION idem_once('n', '1000 years', 'skip', 'once.brief.n');
INSERT INTO brief VALUES ('a', 1);
SELECT key, CASE WHEN expires_at = 'infinity' THEN 'for ever' ELSE (expires_at - finished_at)::text END AS kept
FROM idem_keys WHERE scope LIKE 'once.brief%' ORDER BY key;
INSERT INTO brief VALUES ('a', 2);
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE scope = 'once.brief' AND key = 'a';
INSERT INTO brief VALUES ('a', 2);
INSERT INTO brief VALUES ('a', 3);
SELECT * FROM brief;
SET idempotency.default_ttl = '3h';
INSERT INTO inbox VALUES ('three', 3);
RESET idempotency.default_ttl;
SELECT expires_at - finished_at AS kept FROM idem_keys WHERE scope = 'once.inbox' AND key = 'three';

-- transactions: a key lives and dies with its row
BEGIN;
SAVEPOINT a;
INSERT INTO orders VALUES ('t', 1);
SAVEPOINT b;
INSERT INTO orders VALUES ('t', 2);
ROLLBACK TO b;
INSERT INTO orders VALUES ('u', 3);
ROLLBACK TO a;
INSERT INTO orders VALUES ('u', 3);
ROLLBACK;
BEGIN;
SAVEPOINT a;
INSERT INTO orders VALUES ('t', 4);
ROLLBACK TO a;
INSERT INTO orders VALUES ('t', 5);
COMMIT;
INSERT INTO orders VALUES ('t', 6);
DO $$
BEGIN
	INSERT INTO orders VALUES ('v', 7);
	BEGIN
		INSERT INTO orders VALUES ('w', 8), ('v', 9);
	EXCEPTION WHEN unique_violation THEN
		INSERT INTO orders VALUES ('w', 10);
	END;
END
$$;
SELECT * FROM orders WHERE k IN ('t', 'u', 'v', 'w') ORDER BY k;
BEGIN;
INSERT INTO orders VALUES ('p', 1);
PREPARE TRANSACTION 'once';
COMMIT PREPARED 'once';
INSERT INTO orders VALUES ('p', 2);
-- deferred, it speaks at the commit
CREATE TABLE late (k text);
CREATE CONSTRAINT TRIGGER once AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION idem_once('k');
BEGIN;
INSERT INTO late VALUES ('a'), ('b');
COMMIT;
BEGIN;
INSERT INTO late VALUES ('a');
INSERT INTO late VALUES ('c');
COMMIT;
BEGIN;
INSERT INTO late VALUES ('c');
SAVEPOINT s;
INSERT INTO late VALUES ('a');
SET CONSTRAINTS once IMMEDIATE;
ROLLBACK TO s;
SET CONSTRAINTS once IMMEDIATE;
COMMIT;
SELECT * FROM late ORDER BY k;
-- only rows that WHEN lets through
CREATE TABLE choosy (k text, live boolean);
CREATE TRIGGER once AFTER INSERT ON choosy FOR EACH ROW WHEN (NEW.live) EXECUTE FUNCTION idem_once('k');
SELECT try($$INSERT INTO choosy VALUES ('a', false), ('a', false), ('a', true)$$), try($$INSERT INTO choosy VALUES ('a', true)$$);

-- columns: renamed, dropped, added, of another type, generated
CREATE TABLE cols (gone integer, k integer, other text);
INSERT INTO cols VALUES (1, 1, 'x');
ALTER TABLE cols DROP COLUMN gone, ADD COLUMN added text DEFAULT 'd';
CREATE TRIGGER once AFTER INSERT OR UPDATE ON cols FOR EACH ROW EXECUTE FUNCTION idem_once('k,added');
SELECT try($$INSERT INTO cols VALUES (1, 'x')$$), try($$INSERT INTO cols VALUES (1, 'y')$$);
SELECT try($$UPDATE cols SET other = 'z'$$);
ALTER TABLE cols ALTER k TYPE numeric(10, 2);
SELECT try($$INSERT INTO cols VALUES (1.0, 'y')$$);
ALTER TABLE cols RENAME k TO renamed;
SELECT try($$INSERT INTO cols VALUES (2, 'y')$$, true);
ALTER TABLE cols DROP COLUMN renamed;
SELECT try($$INSERT INTO cols VALUES ('y')$$, true);
CREATE TABLE generated (k text, lowered text GENERATED ALWAYS AS (lower(k)) STORED);
CREATE TRIGGER once AFTER INSERT OR UPDATE ON generated FOR EACH ROW EXECUTE FUNCTION idem_once('lowered');
SELECT try($$INSERT INTO generated VALUES ('A')$$), try($$INSERT INTO generated VALUES ('a')$$), try($$UPDATE generated SET k = 'a'$$),
	try($$UPDATE generated SET k = 'b'$$), try($$INSERT INTO generated VALUES ('B')$$);
DROP TRIGGER once ON generated;
CREATE TRIGGER once BEFORE INSERT ON generated FOR EACH ROW EXECUTE FUNCTION idem_once('lowered', NULL, 'skip');
SELECT try($$INSERT INTO generated VALUES ('c')$$, true);

-- inheritance: as ever, a child's rows are the child's
CREATE TABLE parent (k text);
CREATE TABLE child () INHERITS (parent);
CREATE TRIGGER once AFTER INSERT ON parent FOR EACH ROW EXECUTE FUNCTION idem_once('k');
CREATE TRIGGER once AFTER INSERT ON child FOR EACH ROW EXECUTE FUNCTION idem_once('k');
SELECT try($$INSERT INTO parent VALUES ('a')$$), try($$INSERT INTO child VALUES ('a')$$), try($$INSERT INTO child VALUES ('a')$$);

-- other triggers: what they make of the row is what counts
CREATE TABLE others (k text, n integer);
CREATE FUNCTION upper_k() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.k = upper(NEW.k); RETURN NEW; END $$;
CREATE TRIGGER a_upper BEFORE INSERT ON others FOR EACH ROW EXECUTE FUNCTION upper_k();
CREATE TRIGGER once BEFORE INSERT ON others FOR EACH ROW EXECUTE FUNCTION idem_once('k', NULL, 'skip');
SELECT try($$INSERT INTO others VALUES ('a', 1), ('A', 2)$$);
-- one that inserts a duplicate itself
CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO others VALUES (NEW.k, NEW.n + 1);
	RETURN NULL;
END
$$;
CREATE TRIGGER again AFTER INSERT ON others FOR EACH ROW WHEN (NEW.n < 10) EXECUTE FUNCTION again();
SELECT try($$INSERT INTO others VALUES ('b', 1)$$);
SELECT * FROM others;

-- wrong use is refused at the first row, by a message that names the trigger
CREATE FUNCTION misuse(what text, arguments text, relation text DEFAULT 'wrong', each text DEFAULT 'ROW') RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	n integer;
BEGIN
	EXECUTE format('CREATE TRIGGER "My trigger" %s ON %s FOR EACH %s EXECUTE FUNCTION idem_once(%s)', what, relation, each, arguments);
	EXECUTE format('INSERT INTO %s SELECT WHERE false', relation);
	EXECUTE format('INSERT INTO %s VALUES (''k'')', relation);
	GET DIAGNOSTICS n = ROW_COUNT;
	EXECUTE format('DROP TRIGGER "My trigger" ON %s', relation);
	RETURN n || ' row';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;
CREATE TABLE wrong (k text);
CREATE VIEW wrong_view AS SELECT * FROM wrong;
CREATE TEMP TABLE wrong_temp (k text);
SELECT misuse(what, arguments) FROM (VALUES
	('BEFORE INSERT', $$'k'$$), ('BEFORE INSERT', $$'k', NULL, 'raise'$$), ('AFTER INSERT', $$'k', NULL, 'skip'$$),
	('AFTER INSERT', $$$$), ('AFTER INSERT', $$''$$), ('AFTER INSERT', $$NULL$$), ('AFTER INSERT', $$'k,'$$), ('AFTER INSERT', $$'"k'$$),
	('AFTER INSERT', $$'nosuch'$$), ('AFTER INSERT', $$'K'$$), ('AFTER INSERT', $$'"K"'$$), ('AFTER INSERT', $$'k, x.y'$$), ('AFTER INSERT', $$'ctid'$$),
	('AFTER INSERT', $$'k', 'soon'$$), ('AFTER INSERT', $$'k', '0'$$), ('AFTER INSERT', $$'k', '-1 day'$$), ('AFTER INSERT', $$'k', '1 day -24 hours'$$),
	('AFTER INSERT', $$'k', '999999999999 years'$$), ('AFTER INSERT', $$'k', NULL, 'Skip'$$), ('AFTER INSERT', $$'k', NULL, 'ignore'$$),
	('AFTER INSERT', $$'k', NULL, NULL, NULL, 'x'$$), ('AFTER INSERT', $$k, 3600, raise, x$$)) t (what, arguments);
SELECT misuse('AFTER INSERT', $$'k'$$, each => 'STATEMENT');
SELECT misuse('BEFORE INSERT', $$'k', NULL, 'skip'$$, each => 'STATEMENT');
SELECT misuse('INSTEAD OF INSERT', $$'k'$$, 'wrong_view');
SELECT misuse('INSTEAD OF INSERT', $$'k', NULL, 'skip'$$, 'wrong_view');
SELECT misuse('AFTER INSERT', $$'k'$$, 'wrong_temp');
SELECT misuse('BEFORE INSERT', $$'k', NULL, 'skip'$$, 'wrong_temp');
SELECT idem_once();
-- keys that are no keys
CREATE TRIGGER once AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION idem_once('k', NULL, NULL, 'wrong');
SELECT try($$INSERT INTO wrong VALUES ('')$$, true), try($$INSERT INTO wrong VALUES (repeat('k', 1024))$$, true);
SELECT try($$INSERT INTO wrong VALUES (repeat('k', 1025))$$, true);
SELECT count(*) FROM idem_keys WHERE scope = 'wrong';

-- Creating a trigger needs the job "claims"; inserting needs nothing.
CREATE ROLE regress_once_maker;
CREATE ROLE regress_once_app;
GRANT USAGE, CREATE ON SCHEMA once TO regress_once_maker;
GRANT USAGE ON SCHEMA once TO regress_once_app;
SET ROLE regress_once_maker;
CREATE TABLE guarded (k text, who text DEFAULT current_user);
GRANT INSERT ON guarded TO regress_once_app;
CREATE TRIGGER once AFTER INSERT ON guarded FOR EACH ROW EXECUTE FUNCTION public.idem_once('k');
RESET ROLE;
SELECT idem_grant('regress_once_maker', '{claims}');
SET ROLE regress_once_maker;
CREATE TRIGGER once AFTER INSERT ON guarded FOR EACH ROW EXECUTE FUNCTION public.idem_once('k');
SET ROLE regress_once_app;
INSERT INTO guarded VALUES ('a');
-- the error tells the key to those who could read it
\set VERBOSITY default
INSERT INTO guarded VALUES ('a');
RESET ROLE;
GRANT SELECT (k) ON guarded TO regress_once_app;
SET ROLE regress_once_app;
INSERT INTO guarded VALUES ('a');
\set VERBOSITY sqlstate
RESET ROLE;
SELECT idem_revoke('regress_once_maker');
-- row security lets a row in or not, and only then is its key claimed
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON guarded WITH CHECK (who = current_user);
SET ROLE regress_once_app;
INSERT INTO guarded VALUES ('b', 'another');
INSERT INTO guarded VALUES ('b');
\set VERBOSITY default
INSERT INTO guarded VALUES ('b');
\set VERBOSITY sqlstate
RESET ROLE;
SELECT * FROM guarded ORDER BY k;

-- the extension does not go while a trigger needs it
DROP EXTENSION idempotency;

SET client_min_messages = warning;
DELETE FROM idem_keys WHERE scope LIKE 'once.%';
DROP SCHEMA once CASCADE;
DROP TABLE wrong_temp;
REVOKE ALL ON SCHEMA public FROM regress_once_maker;
RESET client_min_messages;
DROP ROLE regress_once_maker, regress_once_app;
RESET search_path;
