-- Deleting what has expired, by hand.
\set VERBOSITY sqlstate
\pset null -
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS idempotency;
LOAD 'idempotency';
CREATE FUNCTION expire(which text) RETURNS void LANGUAGE sql AS $$
	UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key LIKE which;
	UPDATE idem_tokens SET expires_at = clock_timestamp() WHERE purpose LIKE which;
	UPDATE idem_codes SET expires_at = clock_timestamp() WHERE purpose LIKE which;
$$;
CREATE VIEW left_over AS
SELECT 'key' AS what, key AS name FROM idem_keys
UNION ALL SELECT 'token', purpose FROM idem_tokens
UNION ALL SELECT 'code', purpose FROM idem_codes ORDER BY 1, 2;
CREATE PROCEDURE fill(n integer) LANGUAGE sql AS $$
	INSERT INTO idem_keys (digest, scope, key, created_at, finished_at, expires_at, attempt)
	SELECT idem_digest('fill ' || i), '', 'fill ' || i, clock_timestamp(), clock_timestamp(), clock_timestamp(), 1
	FROM generate_series(1, n) i ORDER BY i;
$$;
TRUNCATE idem_keys, idem_tokens, idem_codes;
CALL idem_purge();

-- all that has expired goes, all else stays
SELECT idem_claim('live'), idem_claim('dead'), idem_claim('for ever', '1000 years');
SELECT state, fence FROM idem_begin('dead lease', lease => '1 min') \gset dead_
SELECT state FROM idem_begin('running', lease => '1 min');
SELECT idem_release('dead lease', fence => :dead_fence);
SELECT idem_token_issue('live', '1 h') AS live, idem_token_issue('dead', '1 h') AS dead, idem_token_issue('used', '1 h') AS used \gset
SELECT idem_token_issue('dead used', '1 h') AS dead_used \gset
SELECT state FROM idem_token_redeem('used', :'used');
SELECT state FROM idem_token_redeem('dead used', :'dead_used');
SELECT length(idem_code_issue(p, 'ada', '1 h')) FROM unnest(ARRAY['live', 'dead']) p;
SELECT expire('dead%');
CALL idem_purge();
SELECT * FROM left_over;
-- a used token is told from one that was never issued until it would have expired
SELECT state FROM idem_token_redeem('used', :'used');
SELECT state FROM idem_token_redeem('dead used', :'dead_used');
-- what was purged can run again, under a fence of its own
SELECT state, attempt, fence > :dead_fence + 1 AS new_fence FROM idem_begin('dead lease', lease => '1 min');
SELECT idem_claim('dead');
CALL idem_purge();

-- how much
CALL fill(100);
CALL idem_purge(10, 25);
CALL idem_purge(max_rows => 5);
CALL idem_purge(batch_size => 7);
CALL fill(30);
CALL idem_purge(NULL, NULL, '1 min');
CALL idem_purge(NULL, NULL, NULL);
CALL idem_purge(1000000, 1000000, '1000 years');
-- many in pieces
TRUNCATE idem_keys;
CALL fill(1000);
CALL idem_purge(50, 400);
SELECT count(*) FROM idem_keys WHERE key LIKE 'fill %';
CALL idem_purge(max_rows => 599);
CALL idem_purge();

-- in a transaction block: one batch, and it is rolled back with it
\set VERBOSITY terse
SET client_min_messages = notice;
CALL fill(20);
BEGIN;
CALL idem_purge(5);
CALL idem_purge(5);
ROLLBACK;
BEGIN;
CALL idem_purge(50);
COMMIT;
CALL fill(20);
BEGIN;
SAVEPOINT s;
CALL idem_purge(5, 3);
RELEASE s;
COMMIT;
CREATE FUNCTION in_function() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	CALL idem_purge(5);
END $$;
-- (from PL/pgSQL the result needs variables)
SELECT in_function();
CREATE FUNCTION in_function_too() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	keys bigint;
	tokens bigint;
	codes bigint;
BEGIN
	CALL idem_purge(5, NULL, NULL, keys, tokens, codes);
	RETURN keys;
END $$;
SELECT in_function_too();
SELECT count(*) FROM idem_keys WHERE key LIKE 'fill %';
-- outside of one, procedures and DO can
DO $$
DECLARE
	keys bigint;
	tokens bigint;
	codes bigint;
BEGIN
	CALL idem_purge(5, NULL, NULL, keys, tokens, codes);
	RAISE NOTICE '% % %', keys, tokens, codes;
END $$;
-- an exception block is a transaction block, too
CALL fill(12);
DO $$
DECLARE
	keys bigint;
	tokens bigint;
	codes bigint;
BEGIN
	BEGIN
		CALL idem_purge(5, NULL, NULL, keys, tokens, codes);
	EXCEPTION WHEN others THEN
		RAISE NOTICE 'not reached';
	END;
	RAISE NOTICE '% % %', keys, tokens, codes;
END $$;
CALL idem_purge();
CALL fill(12);
CREATE PROCEDURE nightly() LANGUAGE plpgsql AS $$
DECLARE
	keys bigint;
	tokens bigint;
	codes bigint;
BEGIN
	CALL idem_purge(5, NULL, NULL, keys, tokens, codes);
	ROLLBACK;
END $$;
CALL nightly();
SELECT count(*) FROM idem_keys WHERE key LIKE 'fill %';
\set VERBOSITY sqlstate

-- bad calls
CALL idem_purge(0);
CALL idem_purge(-1);
CALL idem_purge(10, 0);
CALL idem_purge(10, 10, '0 s');
CALL idem_purge(10, 10, '-1 day');
BEGIN READ ONLY;
CALL idem_purge();
ROLLBACK;
SET default_transaction_read_only = on;
CALL idem_purge();
RESET default_transaction_read_only;
SET ROLE pg_monitor;
CALL idem_purge();
RESET ROLE;
\set VERBOSITY terse
CALL idem_purge(0);
CALL idem_purge(10, -5);
CALL idem_purge(10, 10, '-1 day');
\set VERBOSITY sqlstate
-- of other isolation levels
SET default_transaction_isolation = 'serializable';
CALL fill(20);
CALL idem_purge(5);
SET default_transaction_isolation = 'repeatable read';
CALL fill(20);
CALL idem_purge(5);
RESET default_transaction_isolation;

-- a table that is not as it was made is left alone
CREATE FUNCTION evil() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE 'this ran';
END $$;
CREATE TRIGGER evil BEFORE DELETE ON idem_keys FOR EACH ROW EXECUTE FUNCTION evil();
CALL fill(5);
CALL idem_purge();
DROP TRIGGER evil ON idem_keys;
ALTER TABLE idem_codes RENAME COLUMN expires_at TO until;
CALL idem_purge();
ALTER TABLE idem_codes RENAME COLUMN until TO expires_at;
-- (which of the tables came before the one that failed is not always the same)
CALL idem_purge() \gset
SELECT * FROM left_over WHERE name LIKE 'fill%';

DROP PROCEDURE fill, nightly;
DROP FUNCTION evil, expire, in_function, in_function_too;
DROP VIEW left_over;
TRUNCATE idem_keys, idem_tokens, idem_codes;
