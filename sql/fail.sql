-- Failures are answers too: idem_fail, "failed", idem_call with keep_errors.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\set VERBOSITY sqlstate
\set SHOW_CONTEXT never
\pset null -
CREATE SCHEMA fail_test;
SET search_path = fail_test, public;
CREATE TABLE stock (item text PRIMARY KEY, n int CONSTRAINT enough CHECK (n >= 0));
INSERT INTO stock VALUES ('book', 1);
CREATE SEQUENCE tries;

--
-- idem_fail
--
BEGIN;
SELECT state, failed FROM idem_begin('k1');
SAVEPOINT work;
UPDATE stock SET n = n - 2 WHERE item = 'book';
ROLLBACK TO work;
SELECT idem_fail('k1', '{"type": "sold-out"}');
COMMIT;
SELECT state, result, failed, attempt FROM idem_begin('k1');
SELECT state, result, failed FROM idem_lookup('k1');
SELECT failed, expires_at - finished_at AS ttl FROM idem_keys WHERE key = 'k1';
-- what is not finished by a failure
SELECT state, failed, idem_finish('k2') FROM idem_begin('k2');
SELECT state, failed FROM idem_begin('k2');
SELECT state, failed FROM idem_lookup('k2');
SELECT failed FROM idem_keys WHERE key = 'k2';
SELECT state, failed FROM idem_begin('k2', request => '1');
-- without an error, for a time of its own
BEGIN;
SELECT state FROM idem_begin('k3', '1 hour', 's', '{"a": 1}');
SELECT idem_fail('k3', scope => 's', ttl => '10 minutes');
COMMIT;
SELECT state, result, failed, expires_at - finished_at AS ttl FROM idem_begin('k3', scope => 's');
SELECT state, result, failed FROM idem_begin('k3', scope => 's', request => '{"a": 2}');
-- once, and only of an open claim
SELECT idem_fail('k1');
SELECT idem_finish('k1');
SELECT idem_fail('unknown');
SELECT idem_fail(NULL);
SELECT idem_fail('k1', ttl => '-1 second');
BEGIN READ ONLY;
SELECT idem_fail('k1', fence => 1);
ROLLBACK;
SET idempotency.max_result_size = 10;
BEGIN;
SELECT state FROM idem_begin('large');
\set VERBOSITY default
SELECT idem_fail('large', '"more than ten bytes"');
\set VERBOSITY sqlstate
ROLLBACK;
RESET idempotency.max_result_size;
-- a rollback to a savepoint takes it back
BEGIN;
SELECT state FROM idem_begin('k4');
SAVEPOINT s;
SELECT idem_fail('k4', '1');
ROLLBACK TO s;
SELECT idem_finish('k4', '2');
COMMIT;
SELECT state, result, failed FROM idem_begin('k4');

-- a leased claim, by its fence; nobody else can
SELECT state, fence FROM idem_begin('leased', '1 hour', lease => '1 hour') \gset leased_
SELECT idem_fail('leased', '"no"');
SELECT idem_fail('leased', '"no"', fence => :leased_fence + 1);
SELECT idem_fail('leased', '"card declined"', fence => :leased_fence);
SELECT idem_fail('leased', '"again"', fence => :leased_fence);
SELECT idem_finish('leased', '"again"', fence => :leased_fence);
SELECT state, result, failed, expires_at - finished_at AS ttl FROM idem_begin('leased', lease => '1 hour');
SELECT state, result, failed, lease_until FROM idem_lookup('leased');
-- one that has expired starts anew
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key = 'leased';
SELECT state, result, failed, attempt FROM idem_begin('leased', lease => '1 hour');
SELECT failed, result, attempt FROM idem_keys WHERE key = 'leased';
SELECT state, failed FROM idem_lookup('leased');
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key = 'k1';
SELECT state, failed, attempt, idem_finish('k1', '"now"') FROM idem_begin('k1');
SELECT state, result, failed FROM idem_begin('k1');
-- the key of a failure is taken, for all forms
SELECT idem_claim('k3', scope => 's'), (SELECT count(*) FROM idem_claim_many('{k3}', scope => 's')) AS new;

--
-- idem_call with keep_errors
--
CREATE FUNCTION buy(item text, n int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	left_over int;
BEGIN
	PERFORM nextval('tries');
	INSERT INTO stock VALUES ('receipt', 1) ON CONFLICT DO NOTHING;
	UPDATE stock s SET n = s.n - buy.n WHERE s.item = buy.item RETURNING s.n INTO left_over;
	RETURN left_over;
END $$;
SELECT last_value AS tries FROM tries \gset before_
SELECT state, result, failed FROM idem_call('c1', 'buy', '{"item": "book", "n": 2}', keep_errors => '{23}');
-- undone, but not the sequence; kept with the claim
SELECT * FROM stock ORDER BY item;
SELECT last_value, is_called FROM tries;
SELECT state, result, failed FROM idem_call('c1', 'buy', '{"item": "book", "n": 2}', keep_errors => '{23}');
-- whatever the later call keeps
SELECT state, result ->> 'constraint' AS constraint, failed FROM idem_call('c1', 'buy', '{"item": "book", "n": 2}');
SELECT state, result ->> 'sqlstate' AS sqlstate, failed FROM idem_begin('c1');
SELECT state, result ->> 'sqlstate' AS sqlstate, failed FROM idem_lookup('c1');
SELECT last_value FROM tries;
-- what goes well
SELECT state, result, failed FROM idem_call('c2', 'buy', '{"item": "book", "n": 1}', keep_errors => '{23,P0001}');
SELECT state, result, failed FROM idem_call('c2', 'buy', '{"item": "book", "n": 1}', keep_errors => '{23,P0001}');
SELECT * FROM stock ORDER BY item;

-- errors of each kind
CREATE TABLE effects (what text);
CREATE DOMAIN positive AS int CONSTRAINT is_positive CHECK (VALUE > 0);
CREATE TABLE audited (what text);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not %', NEW.what USING ERRCODE = 'UX001', HINT = 'Ask first.'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON audited FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE FUNCTION raises(code text, how text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effects VALUES (how);
	CASE how
		WHEN 'raise' THEN
			RAISE 'it is %', code USING ERRCODE = code, DETAIL = 'the detail', HINT = 'the hint',
				SCHEMA = 'the schema', TABLE = 'the table', COLUMN = 'the column', CONSTRAINT = 'the constraint';
		WHEN 'domain' THEN
			RETURN (-1)::positive;
		WHEN 'trigger' THEN
			INSERT INTO audited VALUES ('this');
		WHEN 'nested' THEN
			RETURN raises(code, 'raise');
		WHEN 'again' THEN
			BEGIN
				RETURN raises(code, 'raise');
			EXCEPTION WHEN OTHERS THEN
				INSERT INTO effects VALUES ('caught');
				RAISE;
			END;
		WHEN 'caught' THEN
			BEGIN
				RETURN raises(code, 'raise');
			EXCEPTION WHEN OTHERS THEN
				RETURN 'caught ' || SQLSTATE;
			END;
		WHEN 'inner claim' THEN
			PERFORM idem_claim('inner');
			PERFORM idem_begin('inner open');
			RAISE 'it is %', code USING ERRCODE = code;
	END CASE;
	RETURN how;
END $$;
SELECT how, state, failed, result
FROM (VALUES ('raise'), ('domain'), ('trigger'), ('nested'), ('again'), ('caught'), ('inner claim')) h (how),
	idem_call('kind ' || how, 'raises', jsonb_build_object('code', 'UX002', 'how', how), keep_errors => '{UX,23514}');
SELECT what FROM effects ORDER BY what;
SELECT key FROM idem_keys WHERE key LIKE 'inner%';
-- the same each time
SELECT how, state, failed, result
FROM (VALUES ('raise'), ('domain'), ('trigger'), ('nested'), ('again'), ('caught'), ('inner claim')) h (how),
	idem_call('kind ' || how, 'raises', jsonb_build_object('code', 'UX002', 'how', how), keep_errors => '{UX,23514}');
-- an error with odd characters
SELECT state, result FROM idem_call('odd', 'raises', jsonb_build_object('code', 'UX00Z', 'how', 'raise'), keep_errors => '{UX00Z}');
CREATE FUNCTION odd() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE E'"quotes", \\ and \n' USING ERRCODE = 'UX003'; END $$;
SELECT state, result FROM idem_call('odd 2', 'odd', keep_errors => '{UX003}');

-- what is not kept rolls back, and the key is free
TRUNCATE effects;
SELECT idem_call('free', 'raises', '{"code": "UX004", "how": "raise"}', keep_errors => '{UX001,23}');
SELECT idem_call('free', 'raises', '{"code": "UX004", "how": "raise"}', keep_errors => '{}');
SELECT idem_call('free', 'raises', '{"code": "40001", "how": "raise"}', keep_errors => '{UX}');
SELECT idem_call('free', 'raises', '{"code": "UX004", "how": "raise"}');
SELECT count(*) AS effects, (SELECT count(*) FROM idem_lookup('free')) AS known FROM effects;
\set VERBOSITY default
SELECT idem_call('free', 'raises', '{"code": "UX004", "how": "raise"}', keep_errors => '{23}');
-- and in a transaction, after a savepoint
BEGIN;
SAVEPOINT s;
SELECT idem_call('free', 'raises', '{"code": "UX004", "how": "raise"}', keep_errors => '{23}');
ROLLBACK TO s;
SELECT state, failed FROM idem_call('free', 'raises', '{"code": "UX004", "how": "raise"}', keep_errors => '{UX004}');
SELECT idem_check();
COMMIT;
SELECT state, failed FROM idem_begin('free');

-- what cannot be kept
SELECT idem_call('bad', 'raises', '{"code": "UX004", "how": "raise"}', keep_errors => '{40}');
SELECT idem_call('bad', 'raises', '{"code": "UX004", "how": "raise"}', keep_errors => '{2350}');
\set VERBOSITY sqlstate
CREATE FUNCTION try(code text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_call('bad', 'raises', '{"code": "UX004", "how": "raise"}', keep_errors => ARRAY[code]);
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
SELECT code, try(code) FROM (VALUES ('08'), ('25006'), ('40001'), ('53'), ('55P03'), ('57014'), ('58'), ('XX000'), ('ID002'), ('HV00N'), ('F0'), ('72000'),
	(''), ('2'), ('235055'), ('ux001'), ('UX 01'), (NULL)) c (code);
SELECT count(*) FROM idem_lookup('bad');

--
-- max_attempts
--
SELECT state, attempt FROM idem_begin('work', lease => '1 hour', request => '1', max_attempts => 2);
UPDATE idem_keys SET lease_until = clock_timestamp() WHERE key = 'work';
SELECT state, attempt, fence FROM idem_begin('work', lease => '1 hour', max_attempts => 2) \gset work_
SELECT :'work_state', :'work_attempt', idem_checkpoint('work', 'half', '{"n": 1}', fence => :work_fence) > now() AS recorded;
UPDATE idem_keys SET lease_until = clock_timestamp() WHERE key = 'work';
SELECT state, attempt, phase, progress, fence, retry_after, failed, finished_at, created_at <= now() AS created, expires_at > now() AS expires
FROM idem_begin('work', lease => '1 hour', max_attempts => 2);
SELECT state FROM idem_begin('work', max_attempts => 1);
SELECT state, attempt FROM idem_lookup('work');
-- the holder may come back, as long as nobody has taken over
SELECT idem_extend('work', '1 hour', fence => :work_fence) > now() AS extended;
SELECT state FROM idem_begin('work', max_attempts => 1);
SELECT idem_release('work', fence => :work_fence);
-- another request comes first
SELECT state FROM idem_begin('work', request => '2', max_attempts => 2);
-- more attempts, or no limit
BEGIN;
SELECT state, attempt FROM idem_begin('work', max_attempts => 3);
ROLLBACK;
SELECT state, attempt, phase, progress, idem_finish('work') FROM idem_begin('work');
SELECT state FROM idem_begin('work', max_attempts => 1);
-- a transaction claim is not counted
BEGIN; SELECT state, attempt FROM idem_begin('rolled back', max_attempts => 1); ROLLBACK;
BEGIN; SELECT state, attempt FROM idem_begin('rolled back', max_attempts => 1); ROLLBACK;
\set VERBOSITY default
SELECT idem_begin('k', max_attempts => 0);
SELECT idem_forget(key, scope) FROM idem_keys WHERE key IN ('k1', 'k2', 'k3', 'k4', 'c1', 'c2', 'leased', 'work', 'free', 'odd', 'odd 2') OR key LIKE 'kind %';

SET client_min_messages = warning;
DROP SCHEMA fail_test CASCADE;
