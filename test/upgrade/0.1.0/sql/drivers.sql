-- Called as drivers call it, and across DROP and CREATE EXTENSION in one session.
\set VERBOSITY sqlstate

-- parameters without types
PREPARE begin1 AS SELECT state, result FROM idem_begin($1);
PREPARE begin6 AS SELECT state, result FROM idem_begin($1, $2, $3, $4, $5, $6);
PREPARE begin_named AS SELECT state, result FROM idem_begin(key => $1, request => $2, scope => $3, ttl => $4, lease => $5, wait => $6);
PREPARE finish1 AS SELECT idem_finish($1);
PREPARE finish4 AS SELECT idem_finish($1, $2, $3, $4);
PREPARE release3 AS SELECT idem_release($1, $2, $3);
PREPARE claim4 AS SELECT idem_claim($1, $2, $3, $4);
PREPARE claim_many3 AS SELECT * FROM idem_claim_many($1, $2, $3);
PREPARE lookup2 AS SELECT state, result FROM idem_lookup($1, $2);
PREPARE forget2 AS SELECT idem_forget($1, $2);
SELECT name, parameter_types FROM pg_prepared_statements ORDER BY name COLLATE "C";

BEGIN;
EXECUTE begin1('d1');
EXECUTE finish4('d1', '{"n": 1}', NULL, NULL);
EXECUTE begin6('d2', NULL, NULL, NULL, NULL, NULL);
EXECUTE finish1('d2');
EXECUTE begin6('d3', '1 hour', 'scope', '{"amount": 10}', NULL, '1 second');
EXECUTE finish4('d3', '3', 'scope', NULL);
EXECUTE begin_named('d4', NULL, NULL, NULL, NULL, NULL);
EXECUTE release3('d4', NULL, NULL);
COMMIT;
EXECUTE begin6('d1', NULL, NULL, NULL, NULL, NULL);
EXECUTE begin1('d2');
EXECUTE begin_named('d3', '{"amount": 10.0}', 'scope', NULL, NULL, NULL);
EXECUTE begin_named('d3', '{"amount": 11}', 'scope', NULL, NULL, NULL);
EXECUTE claim4('d5', NULL, NULL, NULL);
EXECUTE claim4('d5', '1 hour', '', '{}');
EXECUTE claim_many3('{d6,d5,d7}', NULL, NULL);
EXECUTE claim_many3(ARRAY['d7', 'd8'], '1 day', NULL);
EXECUTE lookup2('d1', NULL);
EXECUTE lookup2('d3', 'scope');
EXECUTE forget2('d8', NULL);
EXECUTE forget2('d8', NULL);
-- errors come through, and the statement goes on
EXECUTE begin6(NULL, NULL, NULL, NULL, NULL, NULL);
EXECUTE begin6('d1', '-1 hour', NULL, NULL, NULL, NULL);
EXECUTE begin6('d1', NULL, NULL, NULL, NULL, NULL);
EXECUTE begin1('d4');

-- all as text, or as varchar
PREPARE begin_text(text, text, text, text) AS
	SELECT state, result FROM idem_begin($1, $2::interval, $3, $4::jsonb);
PREPARE finish_text(varchar, text) AS SELECT idem_finish($1, $2::jsonb);
PREPARE many_text(varchar[]) AS SELECT key FROM idem_claim_many($1);
BEGIN;
EXECUTE begin_text('e1', '1 hour', NULL, '{"a": 1}');
EXECUTE finish_text('e1', '"text"');
COMMIT;
EXECUTE begin_text('e1', NULL, NULL, '{"a":1}');
EXECUTE many_text('{e1,e2}');
-- what is not jsonb must be cast, and says so
PREPARE bad(text) AS SELECT idem_finish('k', $1);

-- notations
BEGIN;
SELECT state FROM idem_begin('f1', NULL, 's', NULL, NULL, NULL);
SELECT idem_finish('f1', NULL, 's', NULL);
SELECT state FROM idem_begin(request => '1', key => 'f2');
SELECT idem_finish(key => 'f2', result => '"named"');
SELECT state FROM idem_begin('f3', wait => '1 second', scope => 's');
SELECT idem_finish('f3', scope => 's', result => '"mixed"', fence => NULL);
SELECT state FROM idem_begin(key := 'f4');
SELECT idem_release(scope := NULL, key := 'f4');
COMMIT;
SELECT b.state, b.result FROM idem_begin('f2', scope => NULL, ttl => NULL, request => NULL, lease => NULL, wait => NULL) b;

-- as a row, as its columns, as a value
BEGIN;
SELECT (idem_begin('g1')).state;
SELECT idem_finish('g1', '1');
COMMIT;
SELECT (b).state, (b).result FROM (SELECT idem_begin('g1') AS b OFFSET 0) s;
SELECT (to_jsonb(idem_begin('g1')) - '{created_at,finished_at,expires_at}'::text[]) AS row;
-- .* calls once a column: the first call claims, and its state is the column
BEGIN;
SELECT s.state FROM (SELECT (idem_begin('g2')).* OFFSET 0) s;
SELECT idem_finish('g2', '2');
COMMIT;
SELECT s.state, s.result, s.retry_after, s.fence, s.attempt, s.phase, s.progress, s.created_at < s.expires_at AS ordered
FROM (SELECT (idem_begin('g2')).* OFFSET 0) s;
SELECT s.state, s.result FROM (SELECT (idem_lookup('g2')).* OFFSET 0) s;
SELECT k, b.state, b.result FROM unnest('{g1,g2}'::text[]) k, LATERAL idem_begin(k) b;
SELECT k, state FROM unnest('{g2,g3}'::text[]) k LEFT JOIN LATERAL idem_lookup(k) ON true;
-- called when, and as often as, a volatile function is
SELECT count(*) FROM idem_begin('g1') WHERE false;
SELECT idem_claim('g4') FROM generate_series(1, 3);
PREPARE repeated AS SELECT idem_claim('g5');
EXECUTE repeated;
EXECUTE repeated;

-- generic and custom plans
SET plan_cache_mode = force_generic_plan;
PREPARE claim_generic AS SELECT idem_claim($1, scope => $2);
EXECUTE claim_generic('h1', NULL);
EXECUTE claim_generic('h1', NULL);
EXECUTE claim_generic('h1', 's');
EXECUTE claim_generic(NULL, 's');
EXECUTE claim_generic('h2', '');
EXECUTE begin1('h1');
EXECUTE begin6('h1', NULL, NULL, NULL, NULL, NULL);
SET plan_cache_mode = force_custom_plan;
EXECUTE claim_generic('h1', NULL);
EXECUTE claim_generic('h3', NULL);
EXECUTE begin6('h3', NULL, NULL, NULL, NULL, NULL);
RESET plan_cache_mode;
SELECT name, generic_plans, custom_plans FROM pg_prepared_statements WHERE name = 'claim_generic';

-- in PL/pgSQL, where plans are kept
CREATE TABLE orders (id integer GENERATED ALWAYS AS IDENTITY, request text);
CREATE FUNCTION place_order(request_key text) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
	c record;
	answer jsonb;
BEGIN
	c := idem_begin(request_key);
	IF c.state = 'started' THEN
		INSERT INTO orders (request) VALUES (request_key);
		answer := idem_finish(request_key, to_jsonb(request_key));
		RETURN answer;
	END IF;
	RETURN to_jsonb(c.state);
END
$$;
SELECT place_order('i' || i % 10), count(*) FROM generate_series(1, 30) i GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM orders;

-- the extension goes and comes back: nothing of the session is stale
DROP EXTENSION idempotency;
EXECUTE begin1('d1');
SELECT place_order('i1');
SELECT idem_begin('d1');
CREATE EXTENSION idempotency;
SELECT count(*) FROM idem_keys;
BEGIN;
EXECUTE begin1('d1');
EXECUTE finish1('d1');
COMMIT;
EXECUTE begin1('d1');
SELECT place_order('i1');
SELECT place_order('i1');
SELECT count(*) FROM idem_keys;

-- into another schema
CREATE SCHEMA regress_idem_other;
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency SCHEMA regress_idem_other;
SELECT place_order('i1');
SET search_path = regress_idem_other, public;
SELECT place_order('i1');
SELECT place_order('i1');
EXECUTE begin1('d1');
EXECUTE claim4('d5', NULL, NULL, NULL);
EXECUTE claim_many3('{d5,d6}', NULL, NULL);
RESET search_path;
SELECT regress_idem_other.idem_claim('d6'), regress_idem_other.idem_claim('d7');
SELECT state FROM regress_idem_other.idem_lookup('d7');
SELECT regress_idem_other.idem_forget('d7'), regress_idem_other.idem_forget_scope('');
-- found by membership: neither the search_path nor a name decides
CREATE TABLE idem_keys (LIKE regress_idem_other.idem_keys INCLUDING ALL);
CREATE TEMPORARY TABLE idem_keys (LIKE regress_idem_other.idem_keys INCLUDING ALL);
SELECT regress_idem_other.idem_claim('d8');
SELECT (SELECT count(*) FROM pg_temp.idem_keys), (SELECT count(*) FROM public.idem_keys),
	(SELECT count(*) FROM regress_idem_other.idem_keys);
DROP TABLE pg_temp.idem_keys, public.idem_keys;
-- a schema of a name that needs quotes
DROP EXTENSION idempotency;
CREATE SCHEMA "regress_idem Quoted""Schema";
CREATE EXTENSION idempotency SCHEMA "regress_idem Quoted""Schema";
SELECT "regress_idem Quoted""Schema".idem_claim('j1');
SELECT "regress_idem Quoted""Schema".idem_forget_scope('');
CREATE ROLE regress_idem_drivers;
SELECT "regress_idem Quoted""Schema".idem_grant('regress_idem_drivers');
SET ROLE regress_idem_drivers;
SELECT "regress_idem Quoted""Schema".idem_claim('j1');
RESET ROLE;
DROP OWNED BY regress_idem_drivers;
DROP ROLE regress_idem_drivers;

-- gone and back within a transaction, and undone
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency;
SELECT idem_claim('k1');
BEGIN;
SELECT state FROM idem_begin('k2');
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency SCHEMA regress_idem_other;
SELECT regress_idem_other.idem_claim('k1');
SELECT regress_idem_other.idem_finish('k2');
ROLLBACK;
SELECT idem_claim('k1'), idem_claim('k2');
BEGIN;
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency SCHEMA regress_idem_other;
SELECT regress_idem_other.idem_claim('k1');
COMMIT;
SELECT regress_idem_other.idem_claim('k1'), regress_idem_other.idem_claim('k2');
-- an open claim holds the commit, even when its table is gone
BEGIN;
SELECT state FROM regress_idem_other.idem_begin('k3');
DROP EXTENSION idempotency;
COMMIT;
SELECT regress_idem_other.idem_claim('k1');
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency;
EXECUTE begin6('k1', NULL, NULL, NULL, NULL, NULL);
SELECT place_order('i1');

DEALLOCATE ALL;
DROP FUNCTION place_order;
DROP TABLE orders;
DROP SCHEMA regress_idem_other, "regress_idem Quoted""Schema";
DELETE FROM idem_keys;
