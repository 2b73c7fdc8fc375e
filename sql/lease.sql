-- Leased claims in one session, whose transactions are each other's others:
-- begin, take-over, finish, release, extend, checkpoint, fences.
SET client_encoding = 'UTF8';
SET timezone = 'UTC';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
LOAD 'idempotency';
\pset null -
-- how a caller may see a row of idem_begin, without its times and numbers
\set columns 'state, result, retry_after > 0 AS retry, fence > 0 AS fence, attempt, phase, progress, created_at IS NOT NULL AS created, finished_at IS NOT NULL AS finished, expires_at IS NOT NULL AS expires'
\set looks 'state, result, attempt, phase, progress, lease_until > clock_timestamp() AS running, finished_at IS NOT NULL AS finished, expires_at > clock_timestamp() AS kept'

-- what the work leaves behind
CREATE TABLE lease_effects (key text, what text);

-- Time passes for a lease: wait until no session takes it for running, or until
-- its row has expired.
CREATE PROCEDURE lapse(k text, until text DEFAULT 'abandoned') LANGUAGE plpgsql AS $$
DECLARE
	patience timestamptz := clock_timestamp() + interval '1 minute';
BEGIN
	WHILE coalesce((SELECT state FROM idem_lookup(k)), 'expired') <> until LOOP
		PERFORM pg_sleep(0.002);
		IF clock_timestamp() > patience THEN
			RAISE 'key % is not % after a minute', k, until;
		END IF;
	END LOOP;
END $$;

-- Time passes for a key: its row has expired.
CREATE PROCEDURE expire(k text) LANGUAGE sql AS $$
	UPDATE idem_keys SET lease_until = lease_until - (expires_at - created_at), expires_at = created_at
		WHERE key = k AND scope = '';
$$;

-- A claim as its worker left it: abandoned, at a recovery point.  Its fence.
CREATE PROCEDURE leave(k text, INOUT fence bigint DEFAULT NULL, request jsonb DEFAULT NULL) LANGUAGE plpgsql AS $$
BEGIN
	fence := (SELECT b.fence FROM idem_begin(k, lease => '1 hour', request => leave.request) b);
	PERFORM idem_checkpoint(k, 'reserved', '{"seat": 7}', lease => '1 microsecond');
	COMMIT;
	CALL lapse(k);
END $$;

-- The SQLSTATE of a call, in a transaction of its own; says so if it changed anything.
CREATE PROCEDURE try(call text, INOUT got text DEFAULT NULL) LANGUAGE plpgsql AS $$
DECLARE
	before text := (SELECT string_agg(k::text, E'\n' ORDER BY digest) FROM idem_keys k);
BEGIN
	BEGIN
		EXECUTE 'SELECT ' || call;
		got := 'OK';
	EXCEPTION WHEN OTHERS THEN
		got := SQLSTATE;
	END;
	COMMIT;
	IF got <> 'OK' AND before IS DISTINCT FROM (SELECT string_agg(k::text, E'\n' ORDER BY digest) FROM idem_keys k) THEN
		got := got || ', but changed something';
	END IF;
END $$;

-- begin writes the row at once, in progress
BEGIN;
SELECT :columns FROM idem_begin('pay', lease => '1 hour', request => '{"amount": 1}');
SELECT count(*) FROM idem_keys WHERE key = 'pay';
-- not committed, and shown to its own transaction only
SELECT count(*) FROM idem_lookup('pay');
-- one claim, one begin, and a lease is waited for as long as the caller says
SELECT :columns FROM idem_begin('pay');
SELECT :columns FROM idem_begin('pay', lease => '1 minute', wait => '50 ms');
SELECT retry_after BETWEEN 3500 AND 3600 AS rest_of_lease FROM idem_begin('pay');
COMMIT;
-- for everybody else as well
SELECT :columns FROM idem_begin('pay');
SELECT :columns FROM idem_begin('pay', lease => '1 minute', wait => '50 ms', request => '{"amount": 1.0}');
SELECT retry_after BETWEEN 3500 AND 3600 AS rest_of_lease FROM idem_begin('pay');
SELECT :looks FROM idem_lookup('pay');
SELECT lease_until BETWEEN created_at + '1 hour' AND created_at + '1 hour 1 minute' AS until, expires_at - lease_until AS ttl
FROM idem_lookup('pay');
-- a mismatch comes first, and shows nothing
SELECT :columns FROM idem_begin('pay', request => '{"amount": 2}');
SELECT :columns FROM idem_begin('pay', request => '{"amount": 2}', lease => '1 hour');
-- another scope is another key
SELECT :columns FROM idem_begin('pay', lease => '1 hour', scope => 'other', ttl => '1 day');
-- a lone begin, autocommitted, is what a lease is for
SELECT fence AS pay FROM idem_begin('pay-2', lease => '1 hour', ttl => '1 week') \gset
SELECT :looks, expires_at - lease_until AS ttl FROM idem_lookup('pay-2');
SELECT key, fence = :pay AS fence FROM idem_keys WHERE key = 'pay-2';
-- for ever: the lease, or what is kept after it
SELECT state FROM idem_begin('pay-3', lease => '1000 years');
SELECT state, retry_after FROM idem_begin('pay-3');
SELECT lease_until, expires_at FROM idem_lookup('pay-3');
SELECT state FROM idem_begin('pay-4', lease => '1 hour', ttl => '1000 years');
SELECT lease_until < 'infinity' AS ends, expires_at FROM idem_lookup('pay-4');

-- outside of the claiming transaction the fence is needed, and the hint names it
\set VERBOSITY default
SELECT idem_finish('pay-2', '"no"');
SELECT idem_release('pay-2');
SELECT idem_extend('pay-2', '1 hour');
SELECT idem_checkpoint('pay-2', 'charged');
\set VERBOSITY sqlstate
-- and there must be a claim
SELECT idem_finish('none', fence => :pay);
SELECT idem_release('none', fence => :pay);
SELECT idem_extend('none', '1 hour', fence => :pay);
SELECT idem_extend('none', '1 hour');
SELECT idem_checkpoint('none', 'charged', fence => :pay);
SELECT idem_checkpoint('none', 'charged');
-- a fence belongs to one key, in one scope
SELECT idem_finish('pay', fence => :pay);
SELECT idem_finish('pay-2', scope => 'other', fence => :pay);
-- a transaction claim knows neither lease nor phase
BEGIN;
SELECT state FROM idem_begin('tx');
SAVEPOINT s;
SELECT idem_extend('tx', '1 hour');
ROLLBACK TO s;
SELECT idem_checkpoint('tx', 'charged');
ROLLBACK TO s;
SELECT idem_finish('tx', fence => :pay);
ROLLBACK TO s;
SELECT idem_release('tx', fence => :pay);
ROLLBACK;

-- checkpoint: commits with the work
BEGIN;
INSERT INTO lease_effects VALUES ('pay-2', 'reserved');
SELECT idem_checkpoint('pay-2', 'reserved', '{"seat": 7}', fence => :pay) = lease_until AS until FROM idem_keys WHERE key = 'pay-2';
ROLLBACK;
SELECT :looks FROM idem_lookup('pay-2');
BEGIN;
INSERT INTO lease_effects VALUES ('pay-2', 'reserved');
SELECT idem_checkpoint('pay-2', 'reserved', '{"seat": 7}', fence => :pay) = lease_until AS until FROM idem_keys WHERE key = 'pay-2';
COMMIT;
SELECT :looks FROM idem_lookup('pay-2');
-- the reply to the COMMIT was lost, and the client runs the transaction again
BEGIN;
INSERT INTO lease_effects VALUES ('pay-2', 'reserved');
SELECT idem_checkpoint('pay-2', 'reserved', '{"seat": 8}', fence => :pay);
COMMIT;
SELECT what, count(*) FROM lease_effects WHERE key = 'pay-2' GROUP BY 1;
SELECT :looks FROM idem_lookup('pay-2');
-- again in one transaction is again
BEGIN;
SELECT idem_checkpoint('pay-2', 'charged', fence => :pay) IS NOT NULL AS done;
SELECT idem_checkpoint('pay-2', 'charged', fence => :pay);
ROLLBACK;
-- phases that only begin alike are others; the progress is the phase's own
SELECT idem_checkpoint('pay-2', 'reserved ', fence => :pay) IS NOT NULL AS done;
SELECT :looks FROM idem_lookup('pay-2');
SELECT idem_checkpoint('pay-2', 'reserve', 'null', fence => :pay) IS NOT NULL AS done;
SELECT :looks FROM idem_lookup('pay-2');
SELECT idem_checkpoint('pay-2', 'reserved', '{"seat": 7}', fence => :pay) IS NOT NULL AS done;
-- a lease given renews it
SELECT idem_checkpoint('pay-2', 'charged', '[1]', fence => :pay, lease => '3 hours') - clock_timestamp() > '2 hours' AS renewed;
SELECT :looks, lease_until - clock_timestamp() > '2 hours' AS renewed, expires_at - lease_until AS ttl FROM idem_lookup('pay-2');

-- extend: from now on, longer or shorter; returns the new end
SELECT idem_extend('pay-2', '5 hours', fence => :pay) AS until \gset
SELECT lease_until = :'until' AS until, lease_until - clock_timestamp() > '4 hours' AS later, expires_at - lease_until AS ttl, attempt, phase
FROM idem_lookup('pay-2');
SELECT idem_extend('pay-2', '1 hour', fence => :pay) - clock_timestamp() < '2 hours' AS shorter;
SELECT idem_extend('pay-2', '1000 years', fence => :pay);
SELECT lease_until, expires_at FROM idem_lookup('pay-2');
SELECT idem_extend('pay-2', '1 hour', fence => :pay) < 'infinity' AS ends;

-- finish: commits with the work, and a repetition rolls back
BEGIN;
INSERT INTO lease_effects VALUES ('pay-2', 'paid');
SELECT idem_finish('pay-2', '{"id": 1}', fence => :pay);
COMMIT;
BEGIN;
INSERT INTO lease_effects VALUES ('pay-2', 'paid');
SELECT idem_finish('pay-2', '{"id": 2}', fence => :pay);
COMMIT;
SELECT what, count(*) FROM lease_effects WHERE key = 'pay-2' GROUP BY 1 ORDER BY 1;
SELECT :columns FROM idem_begin('pay-2');
SELECT :columns FROM idem_begin('pay-2', lease => '1 hour');
SELECT :looks, expires_at - finished_at AS ttl FROM idem_lookup('pay-2');
-- nor is anything else to be done about it
SELECT idem_finish('pay-2');
SELECT idem_extend('pay-2', '1 hour', fence => :pay);
SELECT idem_checkpoint('pay-2', 'charged', fence => :pay);
SELECT idem_checkpoint('pay-2', 'new', fence => :pay);
SELECT idem_release('pay-2', fence => :pay);
SELECT :looks FROM idem_lookup('pay-2');

-- in the claiming transaction the fence need not be given, but may be
BEGIN;
SELECT state, fence AS own FROM idem_begin('own', lease => '1 hour') \gset
SELECT idem_extend('own', '2 hours') - clock_timestamp() > '1 hour' AS renewed;
SELECT idem_checkpoint('own', 'a') IS NOT NULL AS done;
SELECT idem_checkpoint('own', 'b', fence => :own) IS NOT NULL AS done;
SAVEPOINT s;
SELECT idem_checkpoint('own', 'b');
ROLLBACK TO s;
SELECT idem_checkpoint('own', 'c', fence => :pay);
ROLLBACK TO s;
SELECT idem_finish('own', '"done"');
SELECT :columns FROM idem_begin('own');
SAVEPOINT s2;
SELECT idem_finish('own', '"again"');
ROLLBACK TO s2;
SELECT idem_finish('own', '"again"', fence => :own);
ROLLBACK TO s2;
COMMIT;
SELECT :looks FROM idem_lookup('own');
-- released there, by whom it may concern
BEGIN;
SELECT state FROM idem_begin('own-2', lease => '1 hour', ttl => '1 day');
SELECT idem_checkpoint('own-2', 'a', '1') IS NOT NULL AS done;
SELECT idem_release('own-2');
SAVEPOINT s;
SELECT idem_finish('own-2');
ROLLBACK TO s;
SELECT :columns FROM idem_begin('own-2', lease => '1 hour');
SELECT idem_finish('own-2', '"second"');
COMMIT;
SELECT :looks FROM idem_lookup('own-2');
-- not after its transaction, be it over or rolled back
BEGIN;
SELECT state FROM idem_begin('own-3', lease => '1 hour');
COMMIT;
SELECT idem_finish('own-3');
BEGIN;
SELECT state FROM idem_begin('own-4', lease => '1 hour');
ROLLBACK;
SELECT idem_finish('own-4');
SELECT count(*) FROM idem_keys WHERE key = 'own-4';

-- take-over: a new fence, one more attempt, the last recovery point
SELECT fence AS f1, created_at AS t1 FROM idem_begin('take', lease => '1 hour', request => '1') \gset
SELECT idem_checkpoint('take', 'reserved', '{"seat": 7}', fence => :f1, lease => '20 ms') IS NOT NULL AS done;
CALL lapse('take');
SELECT :looks, lease_until < clock_timestamp() AS over FROM idem_lookup('take');
-- what the row shows comes first, here as well
SELECT :columns FROM idem_begin('take', lease => '1 hour', request => '2');
SELECT :columns FROM idem_begin('take', lease => '1 hour');
SELECT fence > :f1 AS newer, created_at = :'t1' AS kept FROM idem_keys WHERE key = 'take';
SELECT fence AS f2, idem_checkpoint('take', 'charged', '{"id": 1}', fence => fence, lease => '20 ms') IS NOT NULL AS done
FROM idem_keys WHERE key = 'take' \gset
CALL lapse('take');
SELECT :columns, fence > :f2 AS newer, created_at = :'t1' AS kept FROM idem_begin('take', lease => '1 hour', request => '1');
SELECT fence AS f3 FROM idem_keys WHERE key = 'take' \gset
-- the request of the first begin still counts
SELECT state FROM idem_begin('take', request => '2');
-- superseded: nothing is changed, and the effects beside it roll back
SELECT k AS before FROM idem_keys k WHERE key = 'take' \gset
BEGIN;
INSERT INTO lease_effects VALUES ('take', 'finish');
SELECT idem_finish('take', '"zombie"', fence => :f2);
COMMIT;
BEGIN;
INSERT INTO lease_effects VALUES ('take', 'checkpoint');
SELECT idem_checkpoint('take', 'zombie', fence => :f2);
COMMIT;
BEGIN;
INSERT INTO lease_effects VALUES ('take', 'same checkpoint');
SELECT idem_checkpoint('take', 'charged', fence => :f2);
COMMIT;
BEGIN;
INSERT INTO lease_effects VALUES ('take', 'extend');
SELECT idem_extend('take', '1 day', fence => :f1);
COMMIT;
BEGIN;
INSERT INTO lease_effects VALUES ('take', 'release');
SELECT idem_release('take', fence => :f2);
COMMIT;
SELECT k::text = :'before' AS unchanged FROM idem_keys k WHERE key = 'take';
SELECT count(*) FROM lease_effects WHERE key = 'take';
SELECT idem_finish('take', '"third"', fence => :f3);
-- who is superseded does not hear that it is finished
SELECT idem_finish('take', '"zombie"', fence => :f2);
SELECT :columns, created_at = :'t1' AS kept FROM idem_begin('take');

-- late, but no other session has taken over
CALL leave('late', NULL) \gset
BEGIN;
INSERT INTO lease_effects VALUES ('late', 'paid');
SELECT idem_finish('late', '"late"', fence => :fence);
COMMIT;
SELECT :columns FROM idem_begin('late');
CALL leave('late-2', NULL) \gset
SELECT idem_extend('late-2', '1 hour', fence => :fence) > clock_timestamp() AS running;
SELECT :columns FROM idem_begin('late-2', lease => '1 hour');
CALL leave('late-3', NULL) \gset
SELECT idem_checkpoint('late-3', 'reserved', fence => :fence);
SELECT idem_checkpoint('late-3', 'charged', fence => :fence) < clock_timestamp() AS over;
SELECT :looks FROM idem_lookup('late-3');
SELECT idem_checkpoint('late-3', 'sent', fence => :fence, lease => '1 hour') > clock_timestamp() AS running;
SELECT :looks FROM idem_lookup('late-3');
CALL leave('late-4', NULL) \gset
SELECT idem_release('late-4', fence => :fence);
SELECT :looks FROM idem_lookup('late-4');
SELECT idem_release('late-4', fence => :fence);

-- release: the lease ends, row and progress stay, for ttl from now on
SELECT fence FROM idem_begin('rel', lease => '1 year', ttl => '1 day', request => '1') \gset
SELECT idem_checkpoint('rel', 'reserved', '{"seat": 7}', fence => :fence) IS NOT NULL AS done;
BEGIN;
SELECT idem_release('rel', fence => :fence);
ROLLBACK;
SELECT :looks FROM idem_lookup('rel');
SELECT idem_release('rel', fence => :fence);
SELECT :looks, expires_at - clock_timestamp() <= '1 day' AS soon FROM idem_lookup('rel');
SELECT idem_finish('rel', fence => :fence);
SELECT idem_finish('rel');
-- and the next begin takes over
SELECT state FROM idem_begin('rel', lease => '1 hour', request => '2');
SELECT :columns, fence > :fence AS newer FROM idem_begin('rel', lease => '1 hour', request => '1');
SELECT idem_finish('rel', fence => :fence);

-- abandoned: kept for ttl after the last lease
SELECT fence, created_at AS t1 FROM idem_begin('ab', lease => '1 hour', ttl => '200 ms', request => '1') \gset
SELECT idem_checkpoint('ab', 'reserved', '{"seat": 7}', fence => :fence, lease => '1 microsecond') IS NOT NULL AS done;
SELECT expires_at - lease_until AS ttl FROM idem_keys WHERE key = 'ab';
CALL lapse('ab', 'expired');
-- then it is absent for everybody
SELECT idem_extend('ab', '1 hour', fence => :fence);
SELECT idem_finish('ab', fence => :fence);
SELECT idem_finish('ab');
SELECT :columns, fence > :fence AS newer, created_at > :'t1' AS anew FROM idem_begin('ab', lease => '1 hour', request => '2');
SELECT idem_finish('ab', fence => :fence);
SELECT count(*) FROM idem_keys WHERE key = 'ab';

-- a transaction claim on a running lease
BEGIN;
SELECT :columns FROM idem_begin('ab');
SELECT idem_finish('ab');
ROLLBACK;
-- on an abandoned one: takes over, and its commit is final
CALL leave('mix', NULL) \gset
BEGIN;
SELECT :columns FROM idem_begin('mix');
-- the fence of before is not this claim's
SAVEPOINT s;
SELECT idem_finish('mix', '"zombie"', fence => :fence);
ROLLBACK TO s;
SELECT idem_extend('mix', '1 hour');
ROLLBACK TO s;
SELECT :columns FROM idem_begin('mix', lease => '1 hour');
SELECT idem_finish('mix', '"transaction"');
COMMIT;
SELECT :looks FROM idem_lookup('mix');
SELECT idem_finish('mix', '"zombie"', fence => :fence);
SELECT idem_checkpoint('mix', 'zombie', fence => :fence);
SELECT :columns FROM idem_begin('mix');
-- rolled back or released, it was never there
CALL leave('mix-2', NULL) \gset
BEGIN;
SELECT state, attempt FROM idem_begin('mix-2');
SELECT idem_finish('mix-2', '"transaction"');
ROLLBACK;
BEGIN;
SELECT state, attempt FROM idem_begin('mix-2');
SELECT idem_release('mix-2');
COMMIT;
SELECT :looks FROM idem_lookup('mix-2');
SELECT idem_finish('mix-2', '"late"', fence => :fence);
-- the guard still wants its end
CALL leave('mix-3', NULL) \gset
BEGIN;
SELECT state, attempt FROM idem_begin('mix-3');
COMMIT;
SELECT :looks FROM idem_lookup('mix-3');

-- idem_claim and idem_claim_many: 55P03 under a lease, also one's own
SELECT idem_claim('ab');
SELECT * FROM idem_claim_many('{ab-2, ab, ab-3}');
BEGIN;
SELECT state FROM idem_begin('cl', lease => '1 hour');
SELECT idem_claim('cl');
ROLLBACK;
SELECT count(*) FROM idem_keys WHERE key IN ('cl', 'ab-2', 'ab-3');
-- an abandoned one is taken over
CALL leave('cl', NULL) \gset
SELECT idem_claim('cl');
SELECT idem_claim('cl');
SELECT :looks FROM idem_lookup('cl');
SELECT idem_finish('cl', fence => :fence);
CALL leave('cl-2', NULL) \gset
SELECT * FROM idem_claim_many('{cl-3, cl-2, cl}');
SELECT :looks FROM idem_lookup('cl-2');
SELECT idem_finish('cl-2', fence => :fence);
-- unless it was another request
CALL leave('cl-4', NULL, '1') \gset
SELECT idem_claim('cl-4', request => '2');
SELECT idem_claim('cl-4', request => '1');

-- savepoints: a begin inside is gone with its row
BEGIN;
SAVEPOINT s;
SELECT fence AS gone FROM idem_begin('sp', lease => '1 hour') \gset
ROLLBACK TO s;
SELECT count(*) FROM idem_keys WHERE key = 'sp';
SELECT idem_finish('sp');
ROLLBACK TO s;
SELECT idem_finish('sp', fence => :gone);
ROLLBACK TO s;
SELECT :columns, fence > :gone AS newer FROM idem_begin('sp', lease => '1 hour');
-- a finish, a checkpoint, an extension or a release inside is undone
SAVEPOINT s;
SELECT idem_finish('sp', '"undone"');
ROLLBACK TO s;
SELECT state FROM idem_begin('sp');
SELECT idem_checkpoint('sp', 'a') IS NOT NULL AS done;
ROLLBACK TO s;
SELECT idem_checkpoint('sp', 'a', '"kept"') IS NOT NULL AS done;
SAVEPOINT t;
SELECT idem_release('sp');
SELECT state FROM idem_begin('sp', lease => '2 hours');
ROLLBACK TO t;
SELECT idem_extend('sp', '3 hours') IS NOT NULL AS done;
ROLLBACK TO t;
RELEASE s;
COMMIT;
SELECT :looks, lease_until - clock_timestamp() < '1 hour' AS not_extended FROM idem_lookup('sp');
SELECT fence AS sp FROM idem_keys WHERE key = 'sp' \gset
BEGIN;
SAVEPOINT s;
SELECT idem_finish('sp', '"undone"', fence => :sp);
SAVEPOINT t;
SELECT idem_finish('sp', '"undone"', fence => :sp);
ROLLBACK TO s;
SELECT idem_finish('sp', '"kept"', fence => :sp);
COMMIT;
SELECT :looks FROM idem_lookup('sp');
-- PL/pgSQL's exception blocks are the same
\set VERBOSITY default
DO $$
DECLARE
	f bigint;
	f2 bigint;
BEGIN
	BEGIN
		f := (SELECT fence FROM idem_begin('pl', lease => '1 hour'));
		RAISE 'x';
	EXCEPTION WHEN raise_exception THEN
	END;
	f2 := (SELECT fence FROM idem_begin('pl', lease => '1 hour'));
	RAISE NOTICE 'newer: %', f2 > f;
	PERFORM idem_checkpoint('pl', 'a');
	BEGIN
		PERFORM idem_finish('pl', '"undone"');
		INSERT INTO lease_effects VALUES ('pl', 'undone');
		RAISE 'x';
	EXCEPTION WHEN raise_exception THEN
	END;
	BEGIN
		INSERT INTO lease_effects VALUES ('pl', 'a');
		PERFORM idem_checkpoint('pl', 'a');
	EXCEPTION WHEN SQLSTATE 'ID006' THEN
		RAISE NOTICE '%', SQLERRM;
	END;
	BEGIN
		INSERT INTO lease_effects VALUES ('pl', 'zombie');
		PERFORM idem_finish('pl', fence => f);
	EXCEPTION WHEN SQLSTATE 'ID004' THEN
		RAISE NOTICE 'superseded';
	END;
	PERFORM idem_finish('pl', '"kept"');
	INSERT INTO lease_effects VALUES ('pl', 'kept');
END $$;
\set VERBOSITY sqlstate
SELECT :looks FROM idem_lookup('pl');
SELECT what FROM lease_effects WHERE key = 'pl';

-- the guard lets a lease be, but not a key whose time has run out
BEGIN;
SELECT state FROM idem_begin('gu', lease => '1 hour');
INSERT INTO lease_effects VALUES ('gu', 'begun');
COMMIT;
DO $$
BEGIN
	PERFORM idem_begin('gu-2', lease => '1 hour');
	COMMIT;
END $$;
SELECT :looks FROM idem_lookup('gu-2');
CREATE PROCEDURE outlast(k text) LANGUAGE plpgsql AS $$
BEGIN
	-- its own row cannot be looked up yet
	WHILE (SELECT expires_at FROM idem_keys WHERE key = k) > clock_timestamp() LOOP
		PERFORM pg_sleep(0.002);
	END LOOP;
END $$;
-- begun
BEGIN;
INSERT INTO lease_effects VALUES ('gu-3', 'lost');
SELECT state FROM idem_begin('gu-3', lease => '5 ms', ttl => '5 ms');
CALL outlast('gu-3');
COMMIT;
-- finished in the claiming transaction
BEGIN;
INSERT INTO lease_effects VALUES ('gu-4', 'lost');
SELECT state FROM idem_begin('gu-4', lease => '1 hour', ttl => '5 ms');
SELECT idem_finish('gu-4');
CALL outlast('gu-4');
COMMIT;
-- finished in another
SELECT fence FROM idem_begin('gu-5', lease => '1 hour', ttl => '5 ms') \gset
BEGIN;
INSERT INTO lease_effects VALUES ('gu-5', 'lost');
SELECT idem_finish('gu-5', fence => :fence);
CALL outlast('gu-5');
COMMIT;
-- checkpointed
BEGIN;
INSERT INTO lease_effects VALUES ('gu-5', 'lost');
SELECT idem_checkpoint('gu-5', 'a', fence => :fence, lease => '5 ms') IS NOT NULL AS done;
CALL outlast('gu-5');
COMMIT;
-- in the claiming transaction, made shorter
BEGIN;
INSERT INTO lease_effects VALUES ('gu-6', 'lost');
SELECT state FROM idem_begin('gu-6', lease => '1 hour', ttl => '5 ms');
SELECT idem_checkpoint('gu-6', 'a', lease => '5 ms') IS NOT NULL AS done;
CALL outlast('gu-6');
COMMIT;
SELECT * FROM lease_effects WHERE what = 'lost';
SELECT count(*) FROM idem_keys WHERE key IN ('gu-3', 'gu-4', 'gu-6');
-- nothing of our own that has run out is begun or claimed anew in the same transaction
CREATE PROCEDURE outlast_lease(k text) LANGUAGE plpgsql AS $$
BEGIN
	WHILE (SELECT lease_until FROM idem_keys WHERE key = k) > clock_timestamp() LOOP
		PERFORM pg_sleep(0.002);
	END LOOP;
END $$;
SELECT fence FROM idem_begin('gu-own-2', lease => '1 hour', ttl => '5 ms') \gset
BEGIN;
SELECT state FROM idem_begin('gu-own-1', lease => '5 ms', ttl => '5 ms');
CALL outlast('gu-own-1');
SAVEPOINT s;
SELECT state FROM idem_begin('gu-own-1', lease => '1 hour');
ROLLBACK TO s;
SELECT idem_claim('gu-own-1');
ROLLBACK TO s;
SELECT idem_finish('gu-own-2', fence => :fence);
CALL outlast('gu-own-2');
SAVEPOINT s2;
SELECT idem_claim('gu-own-2', '1 hour');
ROLLBACK TO s2;
SELECT * FROM idem_claim_many('{gu-own-2}', '1 hour');
ROLLBACK;
SELECT fence FROM idem_begin('gu-own-3', lease => '1 hour') \gset
BEGIN;
SELECT state FROM idem_begin('gu-own-4', lease => '5 ms');
CALL outlast_lease('gu-own-4');
SAVEPOINT s;
SELECT state FROM idem_begin('gu-own-4');
SELECT idem_claim('gu-own-4');
ROLLBACK TO s;
SELECT idem_extend('gu-own-3', '5 ms', fence => :fence) IS NOT NULL AS done;
CALL outlast_lease('gu-own-3');
SELECT state FROM idem_begin('gu-own-3');
SAVEPOINT s2;
SELECT idem_claim('gu-own-3');
ROLLBACK TO s2;
-- what was released is
SELECT idem_release('gu-own-4');
SELECT state, attempt FROM idem_begin('gu-own-4', lease => '1 hour');
ROLLBACK;
-- the last word counts: what was short was made longer in time, here ...
SELECT fence FROM idem_begin('gu-7', lease => '1 hour', ttl => '300 ms') \gset
BEGIN;
SELECT idem_extend('gu-7', '1 ms', fence => :fence) AS first_end \gset
SELECT idem_checkpoint('gu-7', 'a', fence => :fence) IS NOT NULL AS done;
SELECT idem_extend('gu-7', '1 hour', fence => :fence) > clock_timestamp() AS running;
DO $$ DECLARE until timestamptz := clock_timestamp() + '400 ms'; BEGIN WHILE clock_timestamp() < until LOOP PERFORM pg_sleep(0.002); END LOOP; END $$;
SELECT clock_timestamp() > :'first_end'::timestamptz + '300 ms' AS it_would_have_expired;
COMMIT;
SELECT :looks FROM idem_lookup('gu-7');
-- ... and in the claiming transaction
BEGIN;
SELECT state FROM idem_begin('gu-8', lease => '1 ms', ttl => '300 ms');
SELECT idem_extend('gu-8', '1 hour') > clock_timestamp() AS running;
DO $$ DECLARE until timestamptz := clock_timestamp() + '400 ms'; BEGIN WHILE clock_timestamp() < until LOOP PERFORM pg_sleep(0.002); END LOOP; END $$;
COMMIT;
SELECT :looks FROM idem_lookup('gu-8');
-- also when the shortening itself is undone
BEGIN;
SELECT state FROM idem_begin('gu-9', lease => '1 hour', ttl => '5 ms');
SAVEPOINT s;
SELECT idem_finish('gu-9');
CALL outlast('gu-9');
ROLLBACK TO s;
COMMIT;
SELECT :looks FROM idem_lookup('gu-9');

-- read-only: what a row shows, but no write
CALL leave('ro', NULL) \gset
SELECT state FROM idem_begin('ro-2', lease => '1 hour');
BEGIN READ ONLY;
SAVEPOINT s;
SELECT state FROM idem_begin('ro', lease => '1 hour');
ROLLBACK TO s;
SELECT state FROM idem_begin('ro');
ROLLBACK TO s;
SELECT state FROM idem_begin('ro-3', lease => '1 hour');
ROLLBACK TO s;
SELECT idem_finish('ro', fence => :fence);
ROLLBACK TO s;
SELECT idem_release('ro', fence => :fence);
ROLLBACK TO s;
SELECT idem_extend('ro', '1 hour', fence => :fence);
ROLLBACK TO s;
SELECT idem_checkpoint('ro', 'a', fence => :fence);
ROLLBACK TO s;
SELECT :columns FROM idem_begin('ro-2', lease => '1 hour');
SELECT state, result FROM idem_begin('late', lease => '1 hour');
SELECT :looks FROM idem_lookup('ro');
COMMIT;
-- begun before it became so
BEGIN;
SELECT state FROM idem_begin('ro-4', lease => '1 hour');
SET TRANSACTION READ ONLY;
SELECT idem_finish('ro-4');
ROLLBACK;

-- REPEATABLE READ: a running lease shows nothing that the snapshot could contradict
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT state FROM idem_begin('ro-2');
SELECT state FROM idem_begin('rr', lease => '1 hour');
SELECT idem_checkpoint('rr', 'a') IS NOT NULL AS done;
SELECT state FROM idem_begin('rr');
SELECT idem_finish('rr', '"rr"');
SELECT state, result FROM idem_begin('rr');
COMMIT;

-- Bad input: a clear error, nothing written, the session usable.
CREATE TABLE lease_calls (
	id integer GENERATED ALWAYS AS IDENTITY,
	expected text NOT NULL,			-- SQLSTATE, or OK
	call text NOT NULL,
	version integer DEFAULT 0,		-- the oldest server that knows the value
	got text
);
SELECT fence AS bad FROM idem_begin('bad', lease => '1 hour') \gset
-- leases
INSERT INTO lease_calls (expected, call, version)
SELECT l.expected, format(f.call, quote_literal(l.lease)), l.version
FROM (VALUES
	('22023', '0', 0), ('22023', '-1 second', 0), ('22023', '-1 microsecond', 0), ('22023', '0.0000004 seconds', 0),
	('22023', '1 year -12 mons', 0), ('22023', '-1000 years', 0), ('22023', '-178000000 years', 0),
	('22023', '1 mon -31 days', 0), ('22023', '-2147483648 months', 0), ('22023', '-2562047788 hours', 0),
	('22023', '10000 years -3660000 days', 0), ('22023', '-infinity', 170000),
	('OK', '1 microsecond', 0), ('OK', '999 years', 0), ('OK', '1000 years', 0), ('OK', '178000000 years', 0),
	('OK', '2147483647 months 2147483647 days 2562047788 hours', 0), ('OK', 'infinity', 170000)) l (expected, lease, version),
	(VALUES ('idem_begin(''bad-begin-'' || gen_random_uuid(), lease => %s)'),
		('idem_begin(''bad-begin-'' || gen_random_uuid(), lease => %1$s, ttl => ''999 years'')'),
		('idem_begin(''bad-begin-'' || gen_random_uuid(), lease => %1$s, ttl => ''1000 years'')'),
		('idem_extend(''bad'', %s, fence => $f)'),
		('idem_checkpoint(''bad'', gen_random_uuid()::text, lease => %s, fence => $f)')) f (call);
-- NULL where a value must be, and where not
INSERT INTO lease_calls (expected, call)
VALUES
	('22004', 'idem_extend(NULL, ''1 hour'', fence => $f)'),
	('22004', 'idem_extend(''bad'', NULL, fence => $f)'),
	('22004', 'idem_extend(''none'', NULL)'),
	('22004', 'idem_checkpoint(NULL, ''a'', fence => $f)'),
	('22004', 'idem_checkpoint(''bad'', NULL, fence => $f)'),
	('22004', 'idem_checkpoint(''none'', NULL)'),
	('22023', 'idem_extend('''', ''1 hour'', fence => $f)'),
	('22023', 'idem_extend(repeat(''k'', 1025), ''1 hour'', fence => $f)'),
	('22023', 'idem_extend(''bad'', ''1 hour'', scope => repeat(''k'', 1025), fence => $f)'),
	('22023', 'idem_checkpoint('''', ''a'', fence => $f)'),
	('OK', 'idem_extend(''bad'', ''1 hour'', NULL, $f)'),
	('OK', 'idem_checkpoint(''bad'', gen_random_uuid()::text, NULL, NULL, $f, NULL)'),
	('ID003', 'idem_extend(''bad'', ''1 hour'', NULL, NULL)'),
	('ID003', 'idem_checkpoint(''bad'', ''a'', NULL, NULL, NULL, NULL)'),
	('ID003', 'idem_finish(''bad'', NULL, NULL, NULL)'),
	('ID003', 'idem_release(''bad'', NULL, NULL)');
-- phases are measured in bytes
INSERT INTO lease_calls (expected, call)
SELECT p.expected, format('idem_checkpoint(''bad'', %s, fence => $f)', p.phase)
FROM (VALUES
	('22023', $$''$$), ('22023', $$repeat('p', 1025)$$), ('22023', $$repeat('p', 1000000)$$),
	('22023', $$repeat('é', 512) || 'p'$$), ('22023', $$repeat('😀', 257)$$),
	('OK', $$' '$$), ('OK', $$repeat('p', 1024)$$), ('OK', $$repeat('é', 512)$$), ('OK', $$repeat('😀', 256)$$),
	('OK', $$'a''b"c\d'$$)) p (expected, phase);
-- progress; the size is checked before anything else is
INSERT INTO lease_calls (expected, call)
VALUES
	('54000', 'idem_checkpoint(''bad'', ''big'', to_jsonb(repeat(''x'', 5000000)), fence => $f)'),
	('54000', 'idem_checkpoint(''bad'', ''big'', to_jsonb(repeat(''x'', 5000000)))'),
	('54000', 'idem_finish(''bad'', to_jsonb(repeat(''x'', 5000000)), fence => $f)'),
	('OK', 'idem_checkpoint(''bad'', ''big'', to_jsonb(repeat(''x'', 4000000)), fence => $f)'),
	('OK', 'idem_checkpoint(''bad'', ''null'', ''null'', fence => $f)');
-- fences that were never issued
INSERT INTO lease_calls (expected, call)
SELECT 'ID004', format(f.call, n.fence)
FROM (VALUES ('-1'), ('-9223372036854775808'), ('9223372036854775807'), ('$f + 1'), ('-$f')) n (fence),
	(VALUES ('idem_finish(''bad'', fence => %s)'), ('idem_release(''bad'', fence => %s)'),
		('idem_extend(''bad'', ''1 hour'', fence => %s)'), ('idem_checkpoint(''bad'', ''f'', fence => %s)')) f (call);
-- not even 0, which is a number and not NULL
INSERT INTO lease_calls (expected, call)
SELECT 'ID004|22023', f.call
FROM (VALUES ('idem_finish(''bad'', fence => 0)'), ('idem_release(''bad'', fence => 0)'),
		('idem_extend(''bad'', ''1 hour'', fence => 0)'), ('idem_checkpoint(''bad'', ''f'', fence => 0)')) f (call);
DO $$
DECLARE
	f bigint := (SELECT fence FROM idem_keys WHERE key = 'bad');
	c lease_calls;
	got text;
BEGIN
	FOR c IN SELECT * FROM lease_calls WHERE version <= current_setting('server_version_num')::int ORDER BY id LOOP
		CALL try(replace(c.call, '$f', f::text), got);
		UPDATE lease_calls SET got = try.got FROM (SELECT got) try WHERE id = c.id;
		COMMIT;
	END LOOP;
END $$;
SELECT expected, got, call FROM lease_calls
WHERE got !~ ('^(' || expected || ')$') OR got IS NULL AND version <= current_setting('server_version_num')::int
ORDER BY id;
SELECT count(*) >= 130 AS enough FROM lease_calls WHERE got IS NOT NULL;
SELECT state, attempt FROM idem_lookup('bad');
-- in the claiming transaction as well
BEGIN;
SELECT state FROM idem_begin('bad-2', lease => '1 hour');
\set VERBOSITY default
DO $$
BEGIN
	PERFORM idem_finish('bad-2', fence => 0);
	RAISE NOTICE 'finished';
EXCEPTION WHEN SQLSTATE 'ID004' OR SQLSTATE '22023' THEN
	RAISE NOTICE 'refused';
END $$;
\set VERBOSITY sqlstate
ROLLBACK;
-- a lease takes the place of no other check
SET idempotency.require_scope = on;
SELECT idem_begin('k', lease => '1 hour');
SELECT idem_extend('k', '1 hour', fence => 1);
SELECT idem_checkpoint('k', 'a', fence => 1);
RESET idempotency.require_scope;
SET idempotency.max_result_size = 100;
SELECT idem_checkpoint('bad', 'small', to_jsonb(repeat('x', 100)), fence => :bad);
SELECT idem_checkpoint('bad', 'small', to_jsonb(repeat('x', 50)), fence => :bad) IS NOT NULL AS done;
RESET idempotency.max_result_size;

-- Fences: never issued twice, whatever becomes of their claims.
CREATE TABLE lease_fences (n integer GENERATED ALWAYS AS IDENTITY, fence bigint NOT NULL, fate text);
CREATE PROCEDURE zombies(INOUT got text DEFAULT NULL) LANGUAGE plpgsql AS $$
DECLARE
	f record;
	each text;
	zombie text;
	present boolean := EXISTS (SELECT FROM idem_lookup('z'));
BEGIN
	got := 'none';
	FOR f IN SELECT * FROM lease_fences ORDER BY n LOOP
		FOREACH zombie IN ARRAY ARRAY['idem_finish(''z'', ''1'', fence => $f)', 'idem_release(''z'', fence => $f)',
				'idem_extend(''z'', ''1 day'', fence => $f)', 'idem_checkpoint(''z'', ''zombie'', fence => $f)'] LOOP
			CALL try(replace(zombie, '$f', f.fence::text), each);
			IF each <> (CASE WHEN present THEN 'ID004' ELSE 'ID003' END) THEN
				got := format('%s of a fence that was %s: %s', zombie, f.fate, each);
			END IF;
		END LOOP;
	END LOOP;
END $$;
-- released
SELECT fence FROM idem_begin('z', lease => '1 hour') \gset
SELECT idem_release('z', fence => :fence);
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'released');
CALL zombies();
-- superseded
SELECT fence FROM idem_begin('z', lease => '1 microsecond') \gset
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'superseded');
CALL lapse('z');
SELECT fence FROM idem_begin('z', lease => '1 hour') \gset
CALL zombies();
-- forgotten
SELECT idem_forget('z');
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'forgotten');
CALL zombies();
-- rolled back, whole
BEGIN;
SELECT fence FROM idem_begin('z', lease => '1 hour') \gset
ROLLBACK;
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'rolled back');
CALL zombies();
-- rolled back to a savepoint, over a row that it had taken over
SELECT fence FROM idem_begin('z', lease => '1 microsecond') \gset
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'superseded at last');
CALL lapse('z');
BEGIN;
SAVEPOINT s;
SELECT fence FROM idem_begin('z', lease => '1 hour') \gset
ROLLBACK TO s;
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'rolled back to a savepoint');
SELECT fence FROM idem_begin('z', lease => '1 hour') \gset
COMMIT;
CALL zombies();
-- forgotten with its scope
SELECT fence AS scoped FROM idem_begin('z', lease => '1 hour', scope => 'lease_z') \gset
SELECT idem_forget_scope('lease_z');
SELECT fence > :scoped AS newer FROM idem_begin('z', lease => '1 hour', scope => 'lease_z');
SELECT idem_finish('z', scope => 'lease_z', fence => :scoped);
-- expired
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'expired');
CALL expire('z');
CALL zombies();
-- ... and claimed again, by a transaction claim, which is expired in its turn, ...
DO $$ BEGIN PERFORM idem_begin('z'), idem_finish('z', '"transaction"'); END $$;
CALL zombies();
CALL expire('z');
CALL zombies();
-- ... and by a lease
SELECT fence FROM idem_begin('z', lease => '1 hour') \gset
CALL zombies();
-- finished, expired, and claimed again
SELECT idem_forget('z');
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'forgotten again');
SELECT fence FROM idem_begin('z', lease => '1 hour') \gset
SELECT idem_finish('z', '"first"', fence => :fence);
CALL expire('z');
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'finished and expired');
CALL zombies();
SELECT fence FROM idem_begin('z', lease => '1 hour') \gset
CALL zombies();
-- deleted, as a purge does it
DELETE FROM idem_keys WHERE key = 'z';
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'purged');
CALL zombies();
SELECT fence FROM idem_begin('z', lease => '1 hour') \gset
CALL zombies();
-- released, and claimed as an inbox does it
SELECT idem_release('z', fence => :fence);
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'released and claimed');
SELECT idem_claim('z');
CALL zombies();
-- still the one that counts is the newest
SELECT idem_forget('z');
SELECT fence FROM idem_begin('z', lease => '1 hour') \gset
CALL zombies();
INSERT INTO lease_fences (fence, fate) VALUES (:fence, 'current');
SELECT idem_finish('z', '"current"', fence => :fence);
-- strictly increasing
SELECT count(*), count(DISTINCT fence) AS distinct, bool_and(fence > 0) AS positive FROM lease_fences;
SELECT fate FROM (SELECT fate, fence <= lag(fence) OVER (ORDER BY n) AS back FROM lease_fences) f WHERE back;

-- Changes of a leased row are HOT: no index grows while work is under way.
TRUNCATE idem_keys;
SELECT pg_stat_force_next_flush();
SELECT n_tup_upd AS upd, n_tup_hot_upd AS hot FROM pg_stat_user_tables WHERE relname = 'idem_keys' \gset
CREATE TABLE lease_hot (n integer PRIMARY KEY, key text, fence bigint);
INSERT INTO lease_hot SELECT n, 'hot-' || n, fence
FROM generate_series(0, 99) n, LATERAL idem_begin('hot-' || n, lease => '1 hour', request => to_jsonb(n)),
	-- among plain keys, whose rows never grow: a page full of nothing but growing rows overflows
	LATERAL (SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'plain-' || n || '-' || i FROM generate_series(1, 9) i))) plain;
-- each change a transaction, as clients do it: a recovery point, extension, release, take-over
DO $$
DECLARE
	h lease_hot;
	f bigint;
BEGIN
	FOR i IN 0 .. 1199 LOOP
		SELECT * INTO STRICT h FROM lease_hot WHERE n = i % 100;
		CASE (i / 100) % 4
			WHEN 0 THEN
				PERFORM idem_checkpoint(h.key, 'p' || i, to_jsonb(i), fence => h.fence);
			WHEN 1 THEN
				PERFORM idem_extend(h.key, '1 hour', fence => h.fence);
			WHEN 2 THEN
				PERFORM idem_release(h.key, fence => h.fence);
			ELSE
				SELECT b.fence INTO f FROM idem_begin(h.key, lease => '1 hour') b WHERE b.state = 'started';
				UPDATE lease_hot SET fence = f WHERE n = h.n;
		END CASE;
		COMMIT;
	END LOOP;
	FOR h IN SELECT * FROM lease_hot ORDER BY n LOOP
		PERFORM idem_finish(h.key, fence => h.fence);
		COMMIT;
	END LOOP;
END $$;
SELECT count(*), min(attempt), max(attempt), min(phase), max(phase), count(finished_at) FROM idem_keys WHERE key LIKE 'hot-%';
SELECT pg_stat_force_next_flush();
DO $$
DECLARE
	patience timestamptz := clock_timestamp() + interval '1 minute';
BEGIN
	WHILE coalesce((SELECT sum(n_tup_upd) FROM pg_stat_user_tables WHERE relname = 'idem_keys'), 0) < 1300
			AND clock_timestamp() < patience LOOP
		PERFORM pg_stat_clear_snapshot(), pg_sleep(0.01);
	END LOOP;
END $$;
-- all of them, unless a snapshot, as of autovacuum's ANALYZE, keeps pages full meanwhile
SELECT n_tup_upd - :upd AS updates, n_tup_hot_upd - :hot > 900 AS hot FROM pg_stat_user_tables WHERE relname = 'idem_keys';

\set VERBOSITY default
DROP TABLE lease_effects, lease_calls, lease_fences, lease_hot;
DROP PROCEDURE lapse, expire, leave, try, zombies, outlast, outlast_lease;
RESET timezone;

-- a batch over more abandoned leases than the lock table holds keeps no lock
INSERT INTO idem_keys (digest, scope, key, created_at, expires_at, lease_until, fence, ttl, attempt)
SELECT idem_digest('left ' || i, 'batch'), 'batch', 'left ' || i, clock_timestamp() - interval '2 min', clock_timestamp() + interval '1 hour',
	clock_timestamp() - interval '1 min', i, interval '1 hour', 1
FROM generate_series(1, 20000) i;
BEGIN;
SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'left ' || i FROM generate_series(1, 20000) i), scope => 'batch');
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
ROLLBACK;
SELECT idem_forget_scope('batch');

-- a fence that cannot have been superseded
SELECT last_value AS last_fence FROM idem_fence \gset
SELECT setval('idem_fence', 1000000);
SELECT state, fence FROM idem_begin('foreign', lease => '1 hour');
SELECT idem_extend('foreign', '1 hour', fence => 1);
SELECT idem_extend('foreign', '1 hour', fence => 1000002);
SELECT idem_release('foreign', fence => 0);
SELECT idem_release('foreign', fence => 1000001);
SELECT idem_finish('foreign', fence => 1000001);
SELECT idem_forget('foreign');
SELECT setval('idem_fence', :last_fence) IS NULL;
