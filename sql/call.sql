-- idem_call: a function run once, its arguments and its result as JSON.
SET client_encoding = 'UTF8';
SET timezone = 'UTC';
SET intervalstyle = 'postgres';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
LOAD 'idempotency';
CREATE SCHEMA call_test;
RESET client_min_messages;
SET search_path = call_test, public;
\set SHOW_CONTEXT never
\pset null -

-- what ran, and as whom
CREATE TABLE ran (n integer GENERATED ALWAYS AS IDENTITY, what text, who name DEFAULT current_user);
-- what did, since the last time
CREATE FUNCTION effects() RETURNS text LANGUAGE sql AS $$
	WITH d AS (DELETE FROM call_test.ran RETURNING n, what) SELECT string_agg(what, ', ' ORDER BY n) FROM d
$$;
CREATE FUNCTION f(a integer, b text DEFAULT 'b') RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO call_test.ran (what) VALUES (format('f(%s, %s)', a, b));
	RETURN a || b;
END $$;
CREATE FUNCTION g(a integer, b text DEFAULT 'b') RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO call_test.ran (what) VALUES (format('g(%s, %s)', a, b));
	RETURN a || b;
END $$;

/*
 * The result under a new key, or the SQLSTATE; and what it leaves behind then,
 * if anything: nothing should.
 */
CREATE SEQUENCE answers;
CREATE FUNCTION locks() RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
$$;
CREATE FUNCTION answer(function text, args jsonb DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	the_key text := 'answer ' || nextval('call_test.answers');
	locks bigint := call_test.locks();
	c record;
BEGIN
	c := public.idem_call(the_key, function, args);
	RETURN CASE c.state WHEN 'finished' THEN coalesce(c.result::text, 'NULL') ELSE c.state END;
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE
		|| CASE WHEN EXISTS (SELECT FROM public.idem_keys WHERE key = the_key) THEN ', a key' ELSE '' END
		|| CASE WHEN call_test.locks() <> locks THEN ', a lock' ELSE '' END
		|| CASE (public.idem_call(the_key, 'call_test.harmless')).state WHEN 'finished' THEN '' ELSE ', not free' END;
END $$;
CREATE FUNCTION harmless() RETURNS void LANGUAGE sql AS '';

-- the first run, and the retry
SELECT * FROM idem_call('k', 'f', '{"a": 1}');
SELECT * FROM idem_call('k', 'f', '{"a": 1}');
SELECT effects();
SELECT state, result, attempt, finished_at >= created_at AS finished FROM idem_lookup('k');
-- in one transaction; the guard has nothing to say at its end
BEGIN;
SELECT * FROM idem_call('two', 'f', '{"a": 2}');
SELECT * FROM idem_call('two', 'f', '{"a": 2}');
SELECT state, result FROM idem_begin('two');
SELECT idem_finish('two');
ROLLBACK;
SELECT effects();
BEGIN;
SELECT * FROM idem_call('two', 'f', '{"a": 2}');
SELECT * FROM idem_call('two', 'f', '{"a": 2}');
COMMIT;
SELECT effects();

-- the same request
SELECT state FROM idem_call('same', 'f', '{"a": 10, "b": "x"}');
SELECT state FROM idem_call('same', 'call_test.f', ' { "b":"\u0078",  "a" : 10.0 } ');
SELECT state FROM idem_call('same', ' F ', '{"a": 1e1, "b": "x"}');
SELECT state FROM idem_call('same', '"call_test" . "f"', '{"b": "x", "a": 10, "a": 10}');
SELECT state FROM idem_call('null', 'harmless');
SELECT state FROM idem_call('null', 'harmless', NULL);
SELECT state FROM idem_call('null', 'harmless', '{}');
SELECT effects();
-- another: nothing of the result is shown, and nothing runs
SELECT * FROM idem_call('same', 'f', '{"a": 11, "b": "x"}');
SELECT * FROM idem_call('same', 'f', '{"a": "10", "b": "x"}');
SELECT * FROM idem_call('same', 'f', '{"a": 10}');
SELECT * FROM idem_call('same', 'g', '{"a": 10, "b": "x"}');
SELECT * FROM idem_call('k', 'f', '{"a": 1, "b": "b"}');
SELECT * FROM idem_call('null', 'effects');
-- types that are given are part of the request, however they are spelt
SELECT state FROM idem_call('types', 'f(integer, text)', '{"a": 1}');
SELECT state FROM idem_call('types', 'call_test.f ( int4,pg_catalog."text" )', '{"a": 1}');
SELECT state FROM idem_call('types', 'f', '{"a": 1}');
SELECT effects();
-- one that was finished otherwise: compared only where both sides gave one
BEGIN;
SELECT state, idem_finish('begun', '"begun"') FROM idem_begin('begun');
SELECT state, idem_finish('begun too', '"begun"') FROM idem_begin('begun too', request => '{"a": 1}');
COMMIT;
SELECT state, result FROM idem_call('begun', 'f', '{"a": 1}');
SELECT state, result FROM idem_call('begun too', 'f', '{"a": 1}');
SELECT state, result FROM idem_begin('k');
SELECT state, result FROM idem_begin('k', request => '{"a": 1}');

-- scope, ttl, wait; NULL is not given
SELECT state FROM idem_call('k', 'f', '{"a": 1}', scope => 'tenant');
SELECT state FROM idem_call('k', 'f', '{"a": 1}', scope => 'tenant');
SELECT state FROM idem_call('k', 'f', '{"a": 1}', NULL, NULL, NULL);
SELECT state FROM idem_call('k', 'f', '{"a": 1}', scope => '');
SELECT state FROM idem_call('ttl', 'f', '{"a": 1}', '1000 years');
SELECT state FROM idem_call('ttl 2', 'f', '{"a": 1}', ttl => '2 days', wait => '1 hour');
SELECT key, CASE WHEN isfinite(expires_at) THEN expires_at - finished_at END AS kept
FROM idem_keys WHERE key IN ('k', 'ttl', 'ttl 2') AND scope = '' ORDER BY key;
-- a key that has expired by the commit
BEGIN;
SELECT state FROM idem_call('brief', 'harmless', ttl => '1 microsecond');
SELECT pg_sleep(0.001);
COMMIT;
SELECT count(*) FROM idem_keys WHERE key = 'brief';

-- the caller's own open claim, a running lease, an abandoned one
BEGIN;
SELECT state FROM idem_begin('mine');
SELECT * FROM idem_call('mine', 'f', '{"a": 1}');
SELECT * FROM idem_call('mine', 'f', '{"a": 1}', wait => '1 hour');
ROLLBACK;
SELECT state, fence FROM idem_begin('leased', lease => '1 hour') \gset leased_
SELECT state, result, retry_after BETWEEN 3500 AND 3600 AS retry FROM idem_call('leased', 'f', '{"a": 1}', wait => '50 ms');
SELECT idem_release('leased', fence => :leased_fence);
SELECT effects();
SELECT * FROM idem_call('leased', 'f', '{"a": 7}');
SELECT effects();

--
-- Arguments and results
--
CREATE TYPE colour AS ENUM ('red', 'green');
CREATE TYPE point2 AS (x integer, y numeric);
CREATE TABLE item (id integer, gone text, name text, tags text[], at point2);
ALTER TABLE item DROP COLUMN gone;
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE DOMAIN given AS integer NOT NULL;
CREATE DOMAIN right_half AS point2 CHECK ((VALUE).x > 0);
CREATE SEQUENCE numbers;
CREATE FUNCTION sub() RETURNS text LANGUAGE sql STABLE AS $$ SELECT 'sub' $$;

-- one function a type, which returns what it gets
DO $$
DECLARE
	t text;
BEGIN
	FOREACH t IN ARRAY '{smallint,integer,bigint,numeric,real,float8,boolean,text,varchar,char,name,uuid,date,time,timestamp,
		timestamptz,interval,bytea,json,jsonb,inet,int4range,int4multirange,bit,oid,regclass,pg_lsn,colour,point2,item,positive,given,
		right_half,integer[],text[],numeric[],jsonb[],colour[],point2[],item[],positive[],right_half[],int4range[]}'::text[] LOOP
		EXECUTE format('CREATE FUNCTION %I(v %s) RETURNS %s LANGUAGE sql AS ''SELECT v''', 'id ' || t, t, t);
		EXECUTE format('CREATE FUNCTION %I(v %s) RETURNS SETOF %s LANGUAGE sql AS ''SELECT v UNION ALL SELECT v''', 'twice ' || t, t, t);
	END LOOP;
END $$;
CREATE TABLE conversions (id integer GENERATED ALWAYS AS IDENTITY, type text, arg jsonb, expected text);
INSERT INTO conversions (type, arg, expected) VALUES
	('smallint', '-7', '-7'), ('integer', '2147483647', '2147483647'), ('integer', '"12"', '12'), ('integer', '1e2', '100'),
	('bigint', '9223372036854775807', '9223372036854775807'), ('bigint', '9223372036854775808', '22003'),
	('integer', '1.5', '22P02'), ('integer', '"x"', '22P02'), ('integer', '[1]', '22P02'), ('integer', 'true', '22P02'),
	-- without loss, and with its scale
	('numeric', '12345678901234567890123456789.1234567890123456789000', '12345678901234567890123456789.1234567890123456789000'),
	('numeric', '0.10', '0.10'), ('numeric', '"1e-30"', '0.000000000000000000000000000001'), ('numeric', '"NaN"', '"NaN"'),
	('real', '0.5', '0.5'), ('float8', '0.1', '0.1'), ('float8', '1e300', to_jsonb(1e300::float8)::text), ('float8', '"-Infinity"', '"-Infinity"'),
	('boolean', 'true', 'true'), ('boolean', '"no"', 'false'), ('boolean', '2', '22P02'),
	('text', '"\u00e9\"\\ \ud83d\ude00"', E'"é\\"\\\\ 😀"'), ('text', '""', '""'), ('text', '1.10', '"1.10"'), ('text', 'true', '"true"'),
	('text', '{"a": [1]}', '"{\"a\": [1]}"'), ('varchar', '"ab"', '"ab"'), ('name', '"ab"', '"ab"'),
	('uuid', '"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"', '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'), ('uuid', '"x"', '22P02'),
	('date', '"2024-02-29"', '"2024-02-29"'), ('date', '"2023-02-29"', '22008'), ('time', '"12:00"', '"12:00:00"'),
	('timestamp', '"2024-02-29 12:00"', '"2024-02-29T12:00:00"'),
	('timestamptz', '"2024-02-29T12:00:00+01:00"', '"2024-02-29T11:00:00+00:00"'), ('interval', '"36 hours"', '"36:00:00"'),
	('bytea', '"\\x0aff"', '"\\x0aff"'), ('json', '{"b": 1, "a": [null]}', '{"a": [null], "b": 1}'), ('json', '"x"', '"x"'),
	('jsonb', '{"b": 1, "a": [null]}', '{"a": [null], "b": 1}'), ('jsonb', '"x"', '"x"'), ('jsonb', '[]', '[]'), ('jsonb', '1.10', '1.10'),
	('inet', '"10.0.0.1/8"', '"10.0.0.1/8"'), ('int4range', '"[1,2]"', '"[1,3)"'), ('int4multirange', '"{[1,2],[2,3]}"', '"{[1,4)}"'),
	('regclass', '"call_test.item"', '"item"'), ('regclass', '"nosuch"', '42P01'), ('pg_lsn', '"FFFFFFFF/FFFFFFFF"', '"FFFFFFFF/FFFFFFFF"'),
	('colour', '"green"', '"green"'), ('colour', '"blue"', '22P02'),
	-- composite types: missing is null, what is not there is ignored, as jsonb_to_record does it
	('point2', '{"x": 1, "y": 2.50}', '{"x": 1, "y": 2.50}'), ('point2', '{"y": 1, "z": 3}', '{"x": null, "y": 1}'),
	('point2', '{}', '{"x": null, "y": null}'), ('point2', '"(1,2)"', '{"x": 1, "y": 2}'), ('point2', '[1, 2]', '22023'), ('point2', '{"x": "a"}', '22P02'),
	('item', '{"id": 1, "name": "n", "tags": ["a", null], "at": {"x": 1}, "gone": "g"}',
		'{"at": {"x": 1, "y": null}, "id": 1, "name": "n", "tags": ["a", null]}'),
	('positive', '1', '1'), ('positive', '0', '23514'), ('given', '1', '1'), ('given', 'null', '23502'), ('positive', '"x"', '22P02'),
	('right_half', '{"x": 1}', '{"x": 1, "y": null}'), ('right_half', '{"x": 0}', '23514'),
	('integer[]', '[1, null, 2]', '[1, null, 2]'), ('integer[]', '[]', '[]'), ('integer[]', '[[1, 2], [3, 4]]', '[[1, 2], [3, 4]]'),
	('integer[]', '[[1, 2], [3]]', '22P02'), ('integer[]', '"{1,2}"', '[1, 2]'), ('integer[]', '1', '22P02'), ('integer[]', '[1, "x"]', '22P02'),
	('text[]', '["a", "b,c", "{}", "", null, "NULL"]', '["a", "b,c", "{}", "", null, "NULL"]'), ('numeric[]', '[1.0, 2.00]', '[1.0, 2.00]'),
	('jsonb[]', '[{"a": 1}, "x", null]', '[{"a": 1}, "x", null]'), ('colour[]', '["red", "green"]', '["red", "green"]'),
	('point2[]', '[{"x": 1, "y": 2}, null, {}]', '[{"x": 1, "y": 2}, null, {"x": null, "y": null}]'),
	('item[]', '[{"id": 1, "at": {"y": 0.0}}]', '[{"at": {"x": null, "y": 0.0}, "id": 1, "name": null, "tags": null}]'),
	('positive[]', '[1, 2]', '[1, 2]'), ('positive[]', '[1, 0]', '23514'), ('right_half[]', '[{"x": 1}, {"x": 0}]', '23514'),
	('int4range[]', '["[1,2]"]', '["[1,3)"]');
-- jsonb null is NULL for all of them
INSERT INTO conversions (type, arg, expected)
SELECT DISTINCT type, 'null'::jsonb, 'NULL' FROM conversions WHERE type <> 'given';
-- what went wrong: nothing
SELECT type, arg, expected, got
FROM conversions, answer(quote_ident('id ' || type), jsonb_build_object('v', arg)) got
WHERE got IS DISTINCT FROM expected ORDER BY id;
-- a set of them is an array
SELECT type, arg, want, got
FROM conversions, answer(quote_ident('twice ' || type), jsonb_build_object('v', arg)) got,
	LATERAL (SELECT CASE WHEN expected ~ '^\d[0-9A-Z]{4}$' THEN expected
		ELSE format('[%1$s, %1$s]', coalesce(nullif(expected, 'NULL'), 'null')) END) w (want)
WHERE got IS DISTINCT FROM want AND NOT (arg = 'null' AND type IN ('point2', 'item', 'right_half')) ORDER BY id;
-- a row that is NULL counts as a row of NULLs, as in FROM
SELECT answer('"twice point2"', '{"v": null}');
SELECT count(*) > 150 AS many FROM idem_keys WHERE key LIKE 'answer %';

-- results of other kinds
CREATE FUNCTION nothing() RETURNS text LANGUAGE sql AS 'SELECT NULL::text';
CREATE FUNCTION json_null() RETURNS jsonb LANGUAGE sql AS $$ SELECT 'null'::jsonb $$;
CREATE FUNCTION out1(a integer, OUT b integer) LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION out2(a integer, OUT b integer, OUT "c D" text) LANGUAGE sql AS $$ SELECT a, 'x' $$;
CREATE FUNCTION outs_only(OUT b integer, OUT c numeric) LANGUAGE plpgsql AS 'BEGIN b := 1; c := 2.0; END';
-- IN and OUT in any order: defaults belong to the inputs
CREATE FUNCTION mixed(OUT o1 text, a integer, INOUT b integer, OUT o2 text, c text DEFAULT 'c', INOUT d text DEFAULT 'd')
LANGUAGE sql AS $$ SELECT 'o1' || a, b + 1, 'o2' || c, d || d $$;
CREATE FUNCTION table1(n integer) RETURNS TABLE (i integer) LANGUAGE sql AS 'SELECT generate_series(1, n)';
CREATE FUNCTION table2(n integer) RETURNS TABLE (i integer, t text) LANGUAGE plpgsql AS $$
BEGIN
	FOR k IN 1 .. n LOOP
		i := k;
		t := repeat('x', k);
		RETURN NEXT;
	END LOOP;
END $$;
CREATE FUNCTION set_of_out(n integer, OUT i integer, OUT j integer) RETURNS SETOF record LANGUAGE sql AS 'SELECT k, -k FROM generate_series(1, n) k';
CREATE FUNCTION set_of_json() RETURNS SETOF jsonb LANGUAGE sql AS $$ VALUES ('{"a": 1}'::jsonb), (NULL), ('[]') $$;
CREATE FUNCTION dropped() RETURNS item LANGUAGE plpgsql AS $$ DECLARE i item; BEGIN i.id := 1; i.name := 'n'; RETURN i; END $$;
CREATE FUNCTION any_record() RETURNS record LANGUAGE plpgsql AS $$ DECLARE r record; BEGIN SELECT 1 AS a, 'x' AS b INTO r; RETURN r; END $$;
CREATE FUNCTION strict_one(a integer, b integer DEFAULT NULL) RETURNS integer STRICT LANGUAGE plpgsql AS $$ BEGIN INSERT INTO call_test.ran (what) VALUES ('strict'); RETURN 1; END $$;
CREATE FUNCTION strict_set(a integer) RETURNS SETOF integer STRICT LANGUAGE plpgsql AS $$ BEGIN INSERT INTO call_test.ran (what) VALUES ('strict'); RETURN NEXT 1; END $$;
CREATE FUNCTION bad_domain() RETURNS positive LANGUAGE plpgsql AS 'BEGIN RETURN 0; END';
CREATE FUNCTION unnamed(a integer, integer DEFAULT 2, "B" text DEFAULT 'it''s') RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' ', $1, $2, $3) $$;
-- needs the collation that the parser would give it
CREATE FUNCTION lowers(a text) RETURNS text STRICT LANGUAGE internal AS 'lower';
CREATE TABLE results (id integer GENERATED ALWAYS AS IDENTITY, function text, args jsonb, expected text);
INSERT INTO results (function, args, expected) VALUES
	('harmless', NULL, 'NULL'), ('nothing', NULL, 'NULL'), ('json_null', NULL, 'null'),
	('out1', '{"a": 5}', '5'), ('out2', '{"a": 5}', '{"b": 5, "c D": "x"}'), ('outs_only', NULL, '{"b": 1, "c": 2.0}'),
	('mixed', '{"a": 1, "b": 2}', '{"b": 3, "d": "dd", "o1": "o11", "o2": "o2c"}'),
	('mixed', '{"d": "z", "b": 2, "a": 1}', '{"b": 3, "d": "zz", "o1": "o11", "o2": "o2c"}'),
	('mixed', '{"a": 1, "b": 2, "o1": "x"}', '22023'), ('mixed', '{"a": 1, "c": "x"}', '22023'),
	('table1', '{"n": 3}', '[1, 2, 3]'), ('table1', '{"n": 0}', '[]'), ('table2', '{"n": 2}', '[{"i": 1, "t": "x"}, {"i": 2, "t": "xx"}]'),
	('table2', '{"n": 0}', '[]'), ('set_of_out', '{"n": 2}', '[{"i": 1, "j": -1}, {"i": 2, "j": -2}]'), ('set_of_out', '{"n": 0}', '[]'),
	('set_of_json', NULL, '[{"a": 1}, null, []]'), ('dropped', NULL, '{"at": null, "id": 1, "name": "n", "tags": null}'),
	('any_record', NULL, '{"a": 1, "b": "x"}'), ('strict_one', '{"a": 1}', 'NULL'), ('strict_one', '{"a": 1, "b": null}', 'NULL'),
	('strict_set', '{"a": null}', '[]'), ('strict_set', '{"a": 1}', '[1]'), ('bad_domain', NULL, '23514'),
	('unnamed', '{"a": 1}', '"1 2 it''s"'), ('unnamed', '{"a": 1, "B": "x"}', '"1 2 x"'), ('unnamed', '{"a": 1, "b": "x"}', '22023'),
	('lowers', '{"a": "A"}', '"a"'), ('f', '{"a": null}', 'NULL'), ('f', '{"a": 1, "b": null}', 'NULL');
SELECT function, args, expected, got
FROM results, answer(function, args) got WHERE got IS DISTINCT FROM expected ORDER BY id;
SELECT effects();
-- SQL NULL stays one in the replay, and null stays null
SELECT state, result IS NULL AS sql_null FROM idem_call('sql null', 'nothing');
SELECT state, result IS NULL AS sql_null FROM idem_call('sql null', 'nothing');
SELECT state, result IS NULL AS sql_null FROM idem_call('json null', 'json_null');
SELECT state, result IS NULL AS sql_null FROM idem_call('json null', 'json_null');
-- a large set, and a large argument
SELECT state, jsonb_array_length(result) FROM idem_call('large', 'table1', '{"n": 10000}');
SELECT state, jsonb_array_length(result) FROM idem_call('large', 'table1', '{"n": 10000}');
SELECT state, length(result->>0) FROM idem_call('large text', '"id text"', jsonb_build_object('v', repeat('x', 1000000)));

-- defaults: evaluated in each run, and only there
CREATE TYPE pair AS (a integer, b text);
CREATE FUNCTION defaults(a text DEFAULT sub(), b bigint DEFAULT nextval('numbers'), c timestamptz DEFAULT now(),
	d integer[] DEFAULT '{1,2}', e pair DEFAULT ROW(1, 'n'), f name DEFAULT current_user) RETURNS text
LANGUAGE sql AS $$ SELECT concat_ws(' ', a, b, c = now(), d, e, f = current_user) $$;
SELECT answer('defaults');
SELECT answer('defaults');
SELECT answer('defaults', '{"a": "A", "c": "2024-01-01", "f": "x"}');
SELECT answer('defaults', '{"b": 0}');
SELECT answer('defaults');
SELECT state, result FROM idem_call('default', 'defaults');
SELECT state, result FROM idem_call('default', 'defaults');
-- ... and not where the argument is given
CREATE FUNCTION needs(a integer DEFAULT 1 / 0) RETURNS integer LANGUAGE sql AS 'SELECT a';
SELECT answer('needs', '{"a": 1}'), answer('needs');
SELECT answer('defaults');

--
-- What is refused: whatever the key's state, and nothing is left behind
--
CREATE FUNCTION poly(a anyelement) RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION poly_array(a anyarray DEFAULT '{1}'::integer[]) RETURNS anyarray LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION poly_compatible(a anycompatible) RETURNS anycompatible LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION many(VARIADIC a integer[]) RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION many_default(VARIADIC a integer[] DEFAULT '{}') RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION any_rows() RETURNS SETOF record LANGUAGE sql AS 'SELECT 1, 2';
CREATE FUNCTION takes_record(a record) RETURNS integer LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
CREATE FUNCTION fires() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE FUNCTION fires_on_event() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE PROCEDURE proc(a integer DEFAULT 1) LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE agg(integer) (SFUNC = int4pl, STYPE = integer);
CREATE FUNCTION only_unnamed(integer) RETURNS integer LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION amb(a integer) RETURNS text LANGUAGE sql AS $$ SELECT 'integer' $$;
CREATE FUNCTION amb(a text) RETURNS text LANGUAGE sql AS $$ SELECT 'text' $$;
CREATE FUNCTION amb(b integer, c integer DEFAULT 1) RETURNS text LANGUAGE sql AS $$ SELECT 'b, c' $$;
CREATE FUNCTION amb(b integer, d text DEFAULT 'd') RETURNS text LANGUAGE sql AS $$ SELECT 'b, d' $$;
CREATE TABLE refused (id integer GENERATED ALWAYS AS IDENTITY, expected text, function text, args jsonb);
INSERT INTO refused (expected, function, args) VALUES
	('0A000', 'poly', '{"a": 1}'), ('0A000', 'poly_array', NULL), ('0A000', 'poly_compatible', '{"a": 1}'),
	('0A000', 'many', '{"a": [1]}'), ('0A000', 'many_default', NULL), ('0A000', 'any_rows', NULL),
	('0A000', 'takes_record', '{"a": {}}'), ('0A000', 'fires', NULL), ('0A000', 'fires_on_event', NULL),
	('0A000', 'proc', '{"a": 1}'), ('0A000', 'agg', NULL), ('0A000', 'row_number', NULL), ('0A000', 'pg_catalog.sum(integer)', NULL),
	('22023', 'f', NULL), ('22023', 'f', '{}'), ('22023', 'f', '{"b": "x"}'), ('22023', 'f', '{"a": 1, "c": 1}'),
	('22023', 'f', '{"A": 1}'), ('22023', 'f', '{"a": 1, "": 1}'), ('22023', 'f', '{"a": 1, "a ": 1}'), ('22023', 'harmless', '{"a": 1}'),
	('22023', 'f', '[1]'), ('22023', 'f', '1'), ('22023', 'f', '"a"'), ('22023', 'f', 'null'),
	('22023', 'only_unnamed', '{"1": 1}'), ('22023', 'only_unnamed', NULL), ('22023', 'lower(text)', '{"a": "x"}'),
	('42883', 'nosuch', NULL), ('42883', 'nosuch.f', '{"a": 1}'), ('42883', 'call_test.nosuch', NULL), ('42883', '"F"', '{"a": 1}'),
	('42883', 'f(text)', '{"a": 1}'), ('42883', 'f()', NULL), ('42883', '"f(integer)"', '{"a": 1}'), ('42883', '1234', NULL),
	('42704', 'f(nosuch)', '{"a": 1}'), ('0A000', 'elsewhere.call_test.f', '{"a": 1}'), ('42601', 'a.b.c.f', '{"a": 1}'),
	('22023', '', NULL), ('22023', ' ', NULL), ('22023', 'f g', NULL), ('22023', 'f.', NULL), ('22023', '"f', NULL),
	('22004', NULL, NULL), ('22P02', 'f(', NULL), ('22P02', 'f(integer', '{"a": 1}'),
	('42725', 'amb', '{"a": 1}'), ('42725', 'amb', '{"a": "x"}'), ('42725', 'amb', NULL), ('42725', 'amb', '{"b": 1}'),
	('42725', 'amb', '{"z": 1}'), ('42725', 'generate_series', NULL);
SELECT expected, got, function, args
FROM refused r, answer(function, args) got WHERE got IS DISTINCT FROM expected ORDER BY id;
-- under a key that is finished
CREATE FUNCTION replay(function text, args jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (idem_call('k', function, args)).state;
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
SELECT expected, got, function, args
FROM refused r, replay(function, args) got WHERE got IS DISTINCT FROM expected ORDER BY id;
SELECT expected, count(*) > 0 AS seen FROM refused GROUP BY expected ORDER BY expected COLLATE "C";
SELECT effects();

-- the arguments' names decide which one it is, or the types
SELECT answer('amb', '{"b": 1, "c": 2}'), answer('amb', '{"d": "x", "b": 1}');
SELECT answer('amb(integer)', '{"a": 1}'), answer('amb(text)', '{"a": 1}'), answer('amb(int, int)', '{"b": 1}'), answer('amb(int, text)', '{"b": 1}');
SELECT state FROM idem_call('amb', 'amb(int)', '{"a": 1}');
SELECT state FROM idem_call('amb', 'call_test.amb(integer)', '{"a": 1}');
SELECT state FROM idem_call('amb', 'amb(text)', '{"a": 1}');

-- messages
SELECT idem_call('m', 'amb', '{"a": 1}');
SELECT idem_call('m', 'f', '{"a": 1, "colour": 1}');
SELECT idem_call('m', 'f', '{"b": "x"}');
SELECT idem_call('m', 'harmless', '{"a": 1}');
SELECT idem_call('m', 'unnamed', '{"a": 1, "c": 1}');
SELECT idem_call('m', 'only_unnamed', '{"a": 1}');
CREATE FUNCTION only_unnamed_default(integer DEFAULT 1) RETURNS integer LANGUAGE sql AS 'SELECT $1';
-- a hint that has nothing to name
CREATE FUNCTION hint(function text, args jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	PERFORM idem_call('m', function, args);
	RETURN NULL;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN SQLSTATE || ' ' || hint;
END $$;
SELECT hint('only_unnamed_default', '{"a": 1}') ~ '^22023 .*\w\.$' AS whole;
SELECT idem_call('m', 'f', '[1]');
SELECT idem_call('m', 'nosuch');
SELECT idem_call('m', '');
SELECT idem_call('m', NULL);
SELECT idem_call(NULL, 'f');
SELECT idem_call('', 'f');
SELECT idem_call('m', 'many', '{"a": 1}');
SELECT idem_call('m', 'poly', '{"a": 1}');
SELECT idem_call('m', 'proc', '{"a": 1}');
SELECT idem_call('m', 'agg', '{"a": 1}');
SELECT idem_call('m', 'any_rows');
SELECT idem_call('m', 'fires');
SELECT idem_call('m', 'f', '{"a": 1}', ttl => '-1 day');
SELECT idem_call('m', 'f', '{"a": 1}', wait => '-1 second');
SELECT idem_call('m', 'f', '{"a": 1}', scope => repeat('s', 1025));
-- a name that an error cuts
SELECT idem_call('m', 'f', jsonb_build_object('a', 1, repeat('é', 200), 1));
-- where it went wrong
\set SHOW_CONTEXT always
SELECT idem_call(repeat('k', 100), 'f', '{"a": "x"}');
CREATE FUNCTION fails(a text DEFAULT 'sure') RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO call_test.ran (what) VALUES ('fails'); RAISE EXCEPTION 'failed for %', a; END $$;
SELECT idem_call('m', 'fails');
\set SHOW_CONTEXT never
SET idempotency.require_scope = on;
SELECT idem_call('m', 'f', '{"a": 1}');
SELECT state FROM idem_call('m', 'f', '{"a": 1}', scope => 's');
RESET idempotency.require_scope;
SELECT count(*) FROM idem_keys WHERE key IN ('m', '', repeat('k', 100)) AND scope = '';
SELECT effects();

--
-- Failures: the claim goes with the function, and the session goes on
--
\set VERBOSITY sqlstate
CREATE TABLE switch AS SELECT true AS fails;
CREATE FUNCTION sometimes() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO call_test.ran (what) VALUES ('sometimes');
	IF (SELECT fails FROM call_test.switch) THEN
		RAISE SQLSTATE 'XX777';
	END IF;
	RETURN 'done';
END $$;
SELECT state FROM idem_call('once', 'sometimes');
SELECT locks();
BEGIN;
SAVEPOINT s;
SELECT state FROM idem_call('once', 'sometimes');
ROLLBACK TO s;
SELECT locks();
UPDATE switch SET fails = false;
SAVEPOINT s2;
SELECT state FROM idem_call('once', 'sometimes');
-- a finish that is rolled back to a savepoint is none
ROLLBACK TO s2;
SELECT state FROM idem_call('once', 'sometimes');
RELEASE s2;
SELECT state FROM idem_call('once', 'sometimes');
COMMIT;
SELECT effects();
DO $$
DECLARE
	states text[];
BEGIN
	UPDATE call_test.switch SET fails = true;
	FOR i IN 1 .. 4 LOOP
		BEGIN
			states := states || (idem_call('caught', 'sometimes')).state;
		EXCEPTION WHEN SQLSTATE 'XX777' THEN
			states := states || SQLSTATE;
			UPDATE call_test.switch SET fails = i < 2;
		END;
	END LOOP;
	PERFORM set_config('test.states', states::text, false);
END $$;
SELECT current_setting('test.states'), effects();
-- the function's own savepoints
CREATE FUNCTION catches() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		INSERT INTO call_test.ran (what) VALUES ('undone');
		RAISE SQLSTATE 'XX777';
	EXCEPTION WHEN SQLSTATE 'XX777' THEN
		INSERT INTO call_test.ran (what) VALUES ('caught');
	END;
	RETURN 'catches';
END $$;
SELECT * FROM idem_call('catches', 'catches');
SELECT * FROM idem_call('catches', 'catches');
SELECT effects();
-- what fails at the commit takes the key along
CREATE TABLE deferred (a integer PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
INSERT INTO deferred VALUES (1);
CREATE FUNCTION insert_deferred(a integer) RETURNS void LANGUAGE sql AS 'INSERT INTO call_test.deferred VALUES (a)';
SELECT state FROM idem_call('deferred', 'insert_deferred', '{"a": 1}');
SELECT state FROM idem_call('deferred', 'insert_deferred', '{"a": 2}');
-- a timeout
SET statement_timeout = '50ms';
CREATE FUNCTION sleeps() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(60)';
SELECT state FROM idem_call('sleeps', 'sleeps');
RESET statement_timeout;
SELECT state FROM idem_call('sleeps', 'harmless');

-- too large: the effect goes, too
CREATE FUNCTION large(n integer) RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO call_test.ran (what) VALUES ('large'); RETURN repeat('x', n); END $$;
CREATE FUNCTION large_set(n integer) RETURNS SETOF integer LANGUAGE sql AS 'SELECT generate_series(1, n)';
SET idempotency.max_result_size = '1kB';
SELECT state FROM idem_call('large 2', 'large', '{"n": 1024}');
SELECT state FROM idem_call('large 2', 'large_set', '{"n": 1000}');
SELECT state FROM idem_call('large 2', 'harmless');
SELECT state FROM idem_call('large 3', 'large', '{"n": 1000}');
SET idempotency.max_result_size = 0;
SELECT state FROM idem_call('large 4', 'large', '{"n": 0}');
-- what is stored already is replayed, and no result has no size
SELECT state FROM idem_call('large 3', 'large', '{"n": 1000}');
SELECT state FROM idem_call('large 4', 'harmless');
RESET idempotency.max_result_size;
SELECT effects();

-- the function's own hands on its key
CREATE FUNCTION again(k text, function text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	c record;
BEGIN
	c := idem_call(k, function, jsonb_build_object('k', k, 'function', 'again'), wait => '1 hour');
	RETURN c.state || coalesce(' ' || c.retry_after, '');
END $$;
CREATE FUNCTION finishes(k text) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN INSERT INTO call_test.ran (what) VALUES ('finishes'); RETURN idem_finish(k, '1'); END $$;
CREATE FUNCTION releases(k text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN idem_release(k); END $$;
CREATE FUNCTION leaves_open(k text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN (idem_begin(k || ' open')).state; END $$;
SELECT state, result FROM idem_call('again', 'again', '{"k": "again", "function": "again"}');
SELECT state, result FROM idem_call('finishes', 'finishes', '{"k": "finishes"}');
SELECT state, result FROM idem_call('releases', 'releases', '{"k": "releases"}');
SELECT state, result FROM idem_call('leaves open', 'leaves_open', '{"k": "leaves open"}');
SELECT count(*) FROM idem_keys WHERE key IN ('finishes', 'releases', 'leaves open', 'leaves open open');
SELECT effects();
-- a function that calls a function
SELECT state, result FROM idem_call('outer', 'idem_call', '{"key": "inner", "function": "f", "args": {"a": 5}}');
SELECT state, result FROM idem_call('inner', 'f', '{"a": 5}');
SELECT effects();

-- read only
BEGIN READ ONLY;
SELECT state, result FROM idem_call('k', 'f', '{"a": 1}');
SELECT state, result FROM idem_call('k', 'f', '{"a": 2}');
SAVEPOINT s;
SELECT idem_call('new', 'harmless');
ROLLBACK TO s;
SELECT idem_call('new', 'f');
ROLLBACK;
-- read only from the middle on: a write is a write
CREATE FUNCTION turns_read_only() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN set_config('transaction_read_only', 'on', true); END $$;
SELECT state FROM idem_call('read only', 'turns_read_only');

-- in FROM with others, in a cursor, more than once in a statement
SELECT i, state, result FROM generate_series(1, 4) i, idem_call('from ' || i % 2, 'f', jsonb_build_object('a', i % 2)) ORDER BY i;
BEGIN;
DECLARE c CURSOR FOR SELECT state, result FROM generate_series(1, 3) i, idem_call('cursor ' || i, 'f', jsonb_build_object('a', i));
FETCH 2 FROM c;
COMMIT;
SELECT effects();
-- its effects are seen by what comes later, and it sees what came before
WITH w AS (INSERT INTO ran (what) VALUES ('before') RETURNING what)
SELECT state, result FROM w, idem_call('sees', 'effects') c;
CREATE FUNCTION counts() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM call_test.ran';
BEGIN ISOLATION LEVEL REPEATABLE READ;
INSERT INTO ran (what) VALUES ('own');
SELECT state, result FROM idem_call('counts', 'counts');
DELETE FROM ran;
SELECT state, result FROM idem_call('counts 2', 'counts');
COMMIT;
\set VERBOSITY default

--
-- Changes between calls, all in this session
--
\set one 'SELECT answer(''changing'', ''{"a": 1}'')'
CREATE FUNCTION changing(a integer) RETURNS text LANGUAGE sql AS $$ SELECT 'first ' || a $$;
:one;
CREATE OR REPLACE FUNCTION changing(a integer) RETURNS text LANGUAGE sql AS $$ SELECT 'replaced ' || a $$;
:one;
CREATE OR REPLACE FUNCTION changing(a integer DEFAULT 5) RETURNS text LANGUAGE sql AS $$ SELECT 'default ' || a $$;
:one, answer('changing');
CREATE OR REPLACE FUNCTION changing(a integer DEFAULT 6) RETURNS text LANGUAGE sql AS $$ SELECT 'default ' || a $$;
:one, answer('changing');
ALTER FUNCTION changing(integer) STRICT;
:one, answer('changing', '{"a": null}');
DROP FUNCTION changing;
:one;
CREATE FUNCTION changing(b text, a text) RETURNS SETOF text LANGUAGE sql AS $$ SELECT unnest(ARRAY[b, a]) $$;
:one, answer('changing', '{"a": 1, "b": 2}');
ALTER FUNCTION changing RENAME TO changed;
:one, answer('changed', '{"a": 1, "b": 2}');
CREATE SCHEMA call_other;
ALTER FUNCTION changed SET SCHEMA call_other;
SELECT answer('changed', '{"a": 1, "b": 2}'), answer('call_other.changed', '{"a": 1, "b": 2}');
-- a renamed schema is another function under a key, and the same one elsewhere
SELECT state FROM idem_call('schema', 'call_other.changed', '{"a": 1, "b": 2}');
ALTER SCHEMA call_other RENAME TO call_else;
SELECT answer('call_other.changed', '{"a": 1, "b": 2}'), answer('call_else.changed', '{"a": 1, "b": 2}');
SELECT state FROM idem_call('schema', 'call_else.changed', '{"a": 1, "b": 2}');
CREATE OR REPLACE FUNCTION call_else.changed(b text, a text DEFAULT 'A') RETURNS SETOF text LANGUAGE sql AS $$ SELECT unnest(ARRAY[b, a]) $$;
SELECT answer('call_else.changed', '{"b": 2}');
-- one more parameter with a default, since: not another request
CREATE FUNCTION growing(a integer) RETURNS integer LANGUAGE sql AS 'SELECT a';
SELECT state FROM idem_call('growing', 'growing', '{"a": 1}');
DROP FUNCTION growing;
CREATE FUNCTION growing(a integer, b integer DEFAULT 1) RETURNS integer LANGUAGE sql AS 'SELECT a';
SELECT state FROM idem_call('growing', 'growing', '{"a": 1}');

-- the search_path
CREATE FUNCTION placed(a integer) RETURNS text LANGUAGE sql AS $$ SELECT 'call_test' $$;
CREATE FUNCTION call_else.placed(a integer, b integer DEFAULT 2) RETURNS text LANGUAGE sql AS $$ SELECT 'call_else' $$;
SELECT answer('placed', '{"a": 1}');
SET search_path = call_else, public;
SELECT call_test.answer('placed', '{"a": 1}'), call_test.answer('call_test.placed', '{"a": 1}'), call_test.answer('f', '{"a": 1}');
SELECT state FROM idem_call('placed', 'placed', '{"a": 1}');
SET search_path = call_test, public;
SELECT state FROM idem_call('placed', 'placed', '{"a": 1}');
SELECT state FROM idem_call('placed', 'call_else.placed', '{"a": 1}');
SET search_path = call_test, call_else, public;
SELECT answer('placed', '{"a": 1}'), answer('placed', '{"a": 1, "b": 1}'), answer('placed(int, int)', '{"a": 1}');
-- the same types: the first hides the second
DROP FUNCTION call_else.placed;
CREATE FUNCTION call_else.placed(a integer) RETURNS text LANGUAGE sql AS $$ SELECT 'call_else' $$;
SELECT answer('placed', '{"a": 1}'), answer('placed(integer)', '{"a": 1}');
SET search_path = call_else, call_test, public;
SELECT answer('placed', '{"a": 1}'), answer('placed(integer)', '{"a": 1}');
SET search_path = call_test, public;
-- a temporary function is one only if it is named so
CREATE FUNCTION pg_temp.temporary() RETURNS text LANGUAGE sql AS $$ SELECT 'temporary' $$;
SELECT answer('pg_temp.temporary'), answer('temporary');
-- what a default calls is found along the path as well
CREATE FUNCTION here() RETURNS text STABLE LANGUAGE sql AS $$ SELECT 'call_test' $$;
CREATE FUNCTION call_else.here() RETURNS text STABLE LANGUAGE sql AS $$ SELECT 'call_else' $$;
CREATE FUNCTION path_default() RETURNS text STABLE LANGUAGE sql AS $$ SELECT here() $$;
CREATE FUNCTION by_path(a text DEFAULT path_default()) RETURNS text LANGUAGE sql AS 'SELECT a';
SELECT answer('by_path');
SET search_path = call_else, call_test, public;
SELECT answer('by_path');
SET search_path = call_test, public;
SELECT answer('by_path');
-- even a system function may be called; a name of one's own hides it only where it would
SELECT answer('pg_catalog.pg_client_encoding'), answer('pg_client_encoding');

-- types
SELECT answer('"id colour"', '{"v": "blue"}'), answer('"id colour[]"', '{"v": ["blue"]}');
ALTER TYPE colour ADD VALUE 'blue';
SELECT answer('"id colour"', '{"v": "blue"}'), answer('"id colour[]"', '{"v": ["blue"]}');
ALTER TYPE colour RENAME VALUE 'blue' TO 'azure';
SELECT answer('"id colour"', '{"v": "blue"}'), answer('"id colour"', '{"v": "azure"}');
\set all_of_it 'SELECT answer(''"id point2"'', ''{"v": {"x": 1, "y": 2, "z": 3}}'') AS point, answer(''"twice point2"'', ''{"v": {"x": 1, "y": 2, "z": 3}}'') AS points, answer(''"id point2[]"'', ''{"v": [{"z": 3}]}'') AS array, answer(''"id right_half"'', ''{"v": {"x": 1, "z": 3}}'') AS domain, answer(''"id item"'', ''{"v": {"id": 1, "at": {"z": 3}, "more": 4}}'') AS item'
\x on
:all_of_it;
ALTER TYPE point2 ADD ATTRIBUTE z numeric;
ALTER TABLE item ADD COLUMN more integer DEFAULT 7;
:all_of_it;
ALTER TABLE item DROP COLUMN tags;
ALTER TYPE point2 RENAME ATTRIBUTE x TO xx;
:all_of_it;
\x off
SELECT answer('"id positive"', '{"v": 5}'), answer('"id positive[]"', '{"v": [5]}');
ALTER DOMAIN positive ADD CHECK (VALUE <> 5);
SELECT answer('"id positive"', '{"v": 5}'), answer('"id positive[]"', '{"v": [5]}');
ALTER DOMAIN positive DROP CONSTRAINT positive_check;
SELECT answer('"id positive"', '{"v": 0}'), answer('"id positive"', '{"v": 5}');
-- a default is checked as well
CREATE DOMAIN later AS integer;
CREATE FUNCTION default_domain(a later DEFAULT 7) RETURNS integer LANGUAGE sql AS 'SELECT a';
SELECT answer('default_domain');
ALTER DOMAIN later ADD CHECK (VALUE <> 7);
SELECT answer('default_domain');
-- what a default calls
CREATE FUNCTION deep_default(a text DEFAULT upper(sub())) RETURNS text LANGUAGE sql AS 'SELECT a';
SELECT answer('deep_default');
CREATE OR REPLACE FUNCTION sub() RETURNS text LANGUAGE sql STABLE AS $$ SELECT 'replaced' $$;
SELECT answer('deep_default');
CREATE OR REPLACE FUNCTION sub() RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN 'folded'; END $$;
SELECT answer('deep_default'), answer('deep_default');
CREATE OR REPLACE FUNCTION sub() RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN 'unfolded'; END $$;
SELECT answer('deep_default');
-- what was changed and rolled back
BEGIN;
CREATE OR REPLACE FUNCTION sub() RETURNS text LANGUAGE sql STABLE AS $$ SELECT 'uncommitted' $$;
SELECT answer('deep_default');
SAVEPOINT s;
CREATE OR REPLACE FUNCTION deep_default(a text DEFAULT 'savepoint') RETURNS text LANGUAGE sql AS 'SELECT a';
SELECT answer('deep_default');
ROLLBACK TO s;
SELECT answer('deep_default');
CREATE FUNCTION brief() RETURNS text LANGUAGE sql AS $$ SELECT 'brief' $$;
SELECT answer('brief');
ROLLBACK;
SELECT answer('deep_default'), answer('brief');
-- a function that replaces itself, or is gone when it returns
CREATE FUNCTION replaces_itself(a text DEFAULT 'old default') RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	CREATE OR REPLACE FUNCTION call_test.replaces_itself(a text DEFAULT 'new default') RETURNS text LANGUAGE sql AS 'SELECT a';
	RETURN a;
END $$;
SELECT answer('replaces_itself'), answer('replaces_itself');
CREATE FUNCTION drops_itself(a text DEFAULT 'old default') RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	DROP FUNCTION call_test.drops_itself;
	RETURN a;
END $$;
SELECT answer('drops_itself'), answer('drops_itself');

--
-- Inside a call, calls of the same function
--
-- from a conversion: a domain's check
CREATE FUNCTION checked(v integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	IF v < 10 THEN
		INSERT INTO call_test.ran (what) VALUES (format('check %s: %s', v, answer('reenters', jsonb_build_object('a', v + 10))));
	END IF;
	RETURN true;
END $$;
CREATE DOMAIN reentrant AS integer CHECK (call_test.checked(VALUE));
CREATE FUNCTION reenters(a reentrant, b text DEFAULT 'b') RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN a || b; END $$;
SELECT answer('reenters', '{"a": 1}'), effects();
SELECT answer('reenters', '{"a": 2}'), effects();
-- ... that fails inside, outside, and then not
CREATE OR REPLACE FUNCTION checked(v integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	IF v < 10 THEN
		INSERT INTO call_test.ran (what) VALUES (format('%s: %s %s', v, answer('reenters', '{"a": "x"}'), answer('reenters', '{"a": 10}')));
	END IF;
	IF v = 3 THEN
		RAISE SQLSTATE 'XX777';
	END IF;
	RETURN true;
END $$;
SELECT answer('reenters', '{"a": 1}'), effects();
SELECT answer('reenters', '{"a": 3}'), effects();
SELECT answer('reenters', '{"a": "x"}'), effects();
SELECT answer('reenters', '{"a": 1}'), effects();
-- ... that makes everything stale
CREATE OR REPLACE FUNCTION checked(v integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	IF v < 10 THEN
		CREATE OR REPLACE FUNCTION call_test.reenters(a reentrant, b text DEFAULT 'B') RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN a || b; END';
		INSERT INTO call_test.ran (what) VALUES (format('check %s: %s', v, answer('reenters', jsonb_build_object('a', v + 10))));
	END IF;
	RETURN true;
END $$;
SELECT answer('reenters', '{"a": 4}'), effects();
SELECT answer('reenters', '{"a": 14}'), effects();
-- from a default
CREATE FUNCTION default_reenters() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	CREATE OR REPLACE FUNCTION call_test.other() RETURNS text LANGUAGE sql AS 'SELECT NULL::text';
	RETURN answer('by_default', '{"a": "inner"}');
END $$;
CREATE FUNCTION by_default(b text DEFAULT 'a constant default', a text DEFAULT default_reenters(), c text DEFAULT 'another one') RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(', ', a, b, c) $$;
SELECT answer('by_default');
SELECT answer('by_default');
-- from the function: its arguments stay what they were
CREATE FUNCTION recurses(n integer, d text DEFAULT 'a default that is a constant') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	inner_one text;
BEGIN
	IF n > 0 THEN
		EXECUTE replace(pg_get_functiondef('call_test.recurses'::regproc), quote_literal(d), quote_literal(upper(d)));
		inner_one := answer('recurses', jsonb_build_object('n', n - 1));
	END IF;
	RETURN concat_ws(', ', n, d, inner_one);
END $$;
SELECT answer('recurses', '{"n": 1}');
-- a set, row by row
CREATE FUNCTION recurses_set(n integer, d text DEFAULT 'row') RETURNS TABLE (i integer, t text) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. n LOOP
		CREATE OR REPLACE FUNCTION call_test.other() RETURNS text LANGUAGE sql AS 'SELECT NULL::text';
		RETURN QUERY SELECT i, d || answer('recurses_set', jsonb_build_object('n', n - 1));
	END LOOP;
END $$;
SELECT answer('recurses_set', '{"n": 2}');

--
-- Rights: the caller's
--
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_call_1, regress_call_2;
RESET client_min_messages;
CREATE ROLE regress_call_1;
CREATE ROLE regress_call_2;
SELECT idem_grant('regress_call_1', '{call}'), idem_grant('regress_call_2', '{call}');
GRANT USAGE ON SCHEMA call_test, public TO regress_call_1, regress_call_2;
GRANT INSERT ON ran TO regress_call_1, regress_call_2;
CREATE FUNCTION whoami() RETURNS name LANGUAGE plpgsql AS $$ BEGIN INSERT INTO call_test.ran (what) VALUES ('whoami'); RETURN current_user; END $$;
CREATE FUNCTION definer() RETURNS boolean LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$ SELECT current_user = session_user AND current_setting('search_path') = 'pg_catalog' $$;
CREATE FUNCTION private(a integer) RETURNS integer LANGUAGE sql AS 'SELECT a';
REVOKE EXECUTE ON FUNCTION private FROM PUBLIC;
GRANT EXECUTE ON FUNCTION private TO regress_call_1;
CREATE TABLE tenants (tenant name, what text);
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON tenants USING (tenant = current_user);
GRANT SELECT ON tenants TO regress_call_1, regress_call_2;
INSERT INTO tenants VALUES ('regress_call_1', 'of 1'), ('regress_call_2', 'of 2');
CREATE FUNCTION mine() RETURNS SETOF text LANGUAGE sql AS 'SELECT what FROM call_test.tenants ORDER BY what';
CREATE FUNCTION mine_one(a text DEFAULT current_user) RETURNS text LANGUAGE sql AS 'SELECT a || what FROM call_test.tenants';
CREATE FUNCTION secret() RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN 'secret'; END $$;
CREATE FUNCTION secret_sql() RETURNS text LANGUAGE sql STABLE AS $$ SELECT 'secret' $$;
REVOKE EXECUTE ON FUNCTION secret, secret_sql FROM PUBLIC;
GRANT EXECUTE ON FUNCTION secret, secret_sql TO regress_call_1;
CREATE FUNCTION with_secret(a text DEFAULT secret()) RETURNS text LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION with_secret_sql(a text DEFAULT secret_sql()) RETURNS text LANGUAGE sql AS 'SELECT a';
CREATE SCHEMA call_closed;
CREATE FUNCTION call_closed.inside() RETURNS text LANGUAGE sql AS $$ SELECT 'inside' $$;
SELECT result FROM idem_call('closed answer', 'call_closed.inside');
\set VERBOSITY terse
SET ROLE regress_call_1;
SELECT result FROM idem_call('whoami 1', 'whoami');
SELECT result FROM idem_call('definer 1', 'definer');
SELECT result FROM idem_call('private', 'private', '{"a": 1}');
SELECT result FROM idem_call('mine 1', 'mine');
SELECT result FROM idem_call('mine one 1', 'mine_one');
SELECT result FROM idem_call('secret 1', 'with_secret');
SELECT result FROM idem_call('secret sql 1', 'with_secret_sql');
SELECT idem_call('closed', 'call_closed.inside');
-- what is there, and cannot be looked for, was not dropped
SET search_path = call_closed, call_test, public;
SELECT idem_call('closed answer', 'inside');
SELECT idem_call('closed answer', 'inside()');
SELECT idem_call('closed answer', 'call_closed.inside');
SET search_path = call_test, public;
SET ROLE regress_call_2;
SELECT result FROM idem_call('whoami 2', 'whoami');
SELECT result FROM idem_call('definer 2', 'definer');
SELECT result FROM idem_call('mine 2', 'mine');
SELECT result FROM idem_call('mine one 2', 'mine_one');
-- neither run, nor replayed, nor reported as another request
SELECT idem_call('private 2', 'private', '{"a": 1}');
SELECT idem_call('private', 'private', '{"a": 1}');
SELECT idem_call('private', 'private(integer)', '{"a": 2}');
SELECT idem_call('private', 'private', '{"x": 2}');
-- what a default calls is called by the caller as well, even if another role called it before
SELECT idem_call('secret 2', 'with_secret');
SELECT idem_call('secret sql 2', 'with_secret_sql');
SELECT result FROM idem_call('secret 2', 'with_secret', '{"a": "given"}');
-- the tables are not the caller's, by way of a function neither
CREATE FUNCTION pg_temp.peek() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.idem_keys';
SELECT idem_call('peek', 'pg_temp.peek');
RESET ROLE;
GRANT EXECUTE ON FUNCTION private TO regress_call_2;
REVOKE EXECUTE ON FUNCTION private FROM regress_call_1;
SET ROLE regress_call_2;
SELECT state, result FROM idem_call('private', 'private', '{"a": 1}');
SET ROLE regress_call_1;
SELECT state, result FROM idem_call('private', 'private', '{"a": 1}');
RESET ROLE;
SELECT what, who FROM ran WHERE what = 'whoami' ORDER BY n;
-- a caller that is a SECURITY DEFINER function
CREATE FUNCTION calls_as_owner(function text) RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ SELECT (idem_call('owner ' || function, function)).result = to_jsonb(current_user) $$;
SET ROLE regress_call_1;
SELECT calls_as_owner('call_test.whoami');
RESET ROLE;
-- the job
SELECT idem_revoke('regress_call_1', '{call}');
SET ROLE regress_call_1;
SELECT idem_call('whoami 1', 'whoami');
RESET ROLE;
DELETE FROM ran;
\set VERBOSITY default

--
-- One whose parameters have other names now: its answers are still there, for who asks the same
--
\set VERBOSITY terse
CREATE FUNCTION renamed(a integer) RETURNS integer LANGUAGE sql AS 'SELECT a';
SELECT state, result FROM idem_call('renamed', 'renamed', '{"a": 1}');
SELECT state, result FROM idem_call('renamed typed', 'renamed(integer)', '{"a": 2}');
DROP FUNCTION renamed;
CREATE FUNCTION renamed(amount integer) RETURNS integer LANGUAGE sql AS 'SELECT amount + 100';
SELECT state, result FROM idem_call('renamed', 'renamed', '{"a": 1}');
SELECT state, result FROM idem_call('renamed typed', 'renamed(integer)', '{"a": 2}');
SELECT state, result FROM idem_call('renamed', 'renamed', '{"a": 2}');
SELECT state, result FROM idem_call('renamed', 'renamed', '{"amount": 1}');
SELECT state, result FROM idem_call('renamed anew', 'renamed', '{"a": 1}');
SELECT state, result FROM idem_call('renamed anew', 'renamed', '{"amount": 1}');
REVOKE ALL ON FUNCTION renamed FROM PUBLIC;
CREATE ROLE regress_call_renamed;
SELECT idem_grant('regress_call_renamed', '{call}');
GRANT USAGE ON SCHEMA call_test TO regress_call_renamed;
SET ROLE regress_call_renamed;
SELECT state, result FROM idem_call('renamed', 'renamed', '{"a": 1}');
RESET ROLE;
DROP OWNED BY regress_call_renamed;
DROP ROLE regress_call_renamed;
DROP FUNCTION renamed;
\set VERBOSITY default

--
-- A function that was dropped since: its answers are still there
--
CREATE SCHEMA call_v1;
CREATE TYPE "Odd type" AS (a integer);
CREATE FUNCTION call_v1.gone(a integer, b text DEFAULT 'b') RETURNS text LANGUAGE sql AS 'SELECT a || b';
CREATE FUNCTION call_v1.typed(a integer, "Odd, (b)" text[] DEFAULT NULL, c "Odd type" DEFAULT NULL) RETURNS integer LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION call_v1.none() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION call_v1."Odd.(name" () RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION pg_temp.brief() RETURNS integer LANGUAGE sql AS 'SELECT 1';
SET search_path = call_v1, call_test, public;
SELECT state, result FROM idem_call('gone', 'gone', '{"a": 1}');
SELECT state, result FROM idem_call('typed', 'typed(integer, text[], "Odd type")', '{"a": 2}');
SELECT state, result FROM idem_call('none', 'none()');
SELECT state, result FROM idem_call('odd', '"Odd.(name"');
SELECT state, result FROM idem_call('brief', 'pg_temp.brief');
SELECT state FROM idem_begin('gone leased', lease => '1 hour');
SELECT state, idem_release('gone abandoned', fence => fence) FROM idem_begin('gone abandoned', lease => '1 hour');
SELECT idem_claim('no request');
SET client_min_messages = warning;
DROP FUNCTION pg_temp.brief();
DROP SCHEMA call_v1 CASCADE;
RESET client_min_messages;
\set VERBOSITY terse
SELECT state, result FROM idem_call('gone', 'gone', '{"a": 1}');
SELECT state, result FROM idem_call('gone', 'call_v1.gone', '{"a": 1.0}');
SELECT state, result FROM idem_call('gone', 'current.call_v1.gone', '{"a": 1.0}');
SELECT state, result FROM idem_call('gone', 'gone', '{"a": 2}');
SELECT state, result FROM idem_call('gone', 'gone(integer, text)', '{"a": 1}');
SELECT state, result FROM idem_call('gone', 'call_test.gone', '{"a": 1}');
SELECT state, result FROM idem_call('gone', 'gone2', '{"a": 1}');
SELECT state, result FROM idem_call('new', 'gone', '{"a": 1}');
SELECT state, result FROM idem_call('typed', ' typed ( int4,text [], "Odd type" ) ', '{"a": 2}');
SELECT state, result FROM idem_call('typed', 'call_v1.typed(integer, text[], "Odd type")', '{"a": 2}');
SELECT state, result FROM idem_call('typed', 'typed(integer, text[])', '{"a": 2}');
SELECT state, result FROM idem_call('typed', 'typed', '{"a": 2}');
SELECT idem_call('typed', 'typed(nosuch)', '{"a": 2}');
SELECT idem_call('typed', 'typed(integer', '{"a": 2}');
SELECT state, result FROM idem_call('none', 'none()'), current_setting('search_path') WHERE result IS NULL;
SELECT state, result FROM idem_call('none', 'none( )', '{}');
SELECT state, result FROM idem_call('odd', '"Odd.(name"');
SELECT state, result FROM idem_call('brief', 'pg_temp.brief');
SELECT state, retry_after > 3000 AS retry_after FROM idem_call('gone leased', 'gone', '{"a": 1}');
SELECT state, result FROM idem_call('gone abandoned', 'gone', '{"a": 1}');
SELECT state, result FROM idem_call('no request', 'gone', '{"a": 1}');
-- only where the caller would have looked for it
SET search_path = call_test, public;
SELECT state, result FROM idem_call('gone', 'gone', '{"a": 1}');
SET search_path = "$user", public;
CREATE ROLE call_v1;
SELECT public.idem_grant('call_v1', '{call}');
SET ROLE call_v1;
SELECT state, result FROM idem_call('gone', 'gone', '{"a": 1}');
RESET ROLE;
DROP OWNED BY call_v1;
DROP ROLE call_v1;
SET search_path = call_test, public;
-- one that exists is asked for the caller's right to it
SELECT state, result FROM idem_call('private', 'private', '{"a": 1}');
DROP FUNCTION private;
SET ROLE regress_call_2;
SELECT state, result FROM idem_call('private', 'private', '{"a": 1}');
RESET ROLE;
\set VERBOSITY default
SELECT idem_call('new', 'gone', '{"a": 1}');
SELECT idem_call('new', 'gone(text)', '{"a": 1}');
SELECT count(*) FROM idem_keys WHERE key = 'new';

--
-- Many functions, and many times the same
--
DO $$
BEGIN
	FOR i IN 1 .. 1000 LOOP
		EXECUTE format('CREATE FUNCTION call_test.%I(a integer DEFAULT %s) RETURNS integer LANGUAGE sql AS ''SELECT a''', 'n' || i, i);
	END LOOP;
END $$;
SELECT state, sum(result::integer) FROM generate_series(1, 1000) i, idem_call('many ' || i, 'n' || i) GROUP BY state;
SELECT state, sum(result::integer) FROM generate_series(1, 1000) i, idem_call('many ' || i, 'n' || i) GROUP BY state;
SELECT state, sum(result::integer) FROM generate_series(1, 1000) i, idem_call('many again ' || i, 'n' || i, '{"a": 1}') GROUP BY state;
-- of functions that are gone, little is kept
CREATE PROCEDURE passing(n integer) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. n LOOP
		CREATE FUNCTION pg_temp.passing(a text DEFAULT 'x', b integer DEFAULT 1) RETURNS text LANGUAGE sql AS 'SELECT a';
		PERFORM idem_call('passing ' || i, 'pg_temp.passing');
		DROP FUNCTION pg_temp.passing;
	END LOOP;
END $$;
CALL passing(1000);
SELECT count(*) < 500 AS few FROM pg_backend_memory_contexts WHERE name = 'idempotency function';

SET client_min_messages = warning;
DROP SCHEMA call_test, call_else, call_closed CASCADE;
DROP OWNED BY regress_call_1, regress_call_2;
DROP ROLE regress_call_1, regress_call_2;
DELETE FROM idem_keys;
RESET client_min_messages;
RESET search_path;
RESET timezone;
RESET intervalstyle;
