-- Claims follow savepoints, PL/pgSQL's EXCEPTION blocks, procedures, cursors and triggers.
\set VERBOSITY sqlstate
\set SHOW_CONTEXT never

-- begin inside: forgotten, with its lock
BEGIN;
SAVEPOINT s;
SELECT state FROM idem_begin('k1');
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
ROLLBACK TO s;
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SELECT idem_finish('k1');
ROLLBACK TO s;
SELECT state FROM idem_begin('k1');
ROLLBACK TO s;
COMMIT;

-- finish inside: undone, the claim is open again
BEGIN;
SELECT state FROM idem_begin('k2');
SAVEPOINT s;
SELECT idem_finish('k2', '"undone"');
SELECT state, result FROM idem_begin('k2');
ROLLBACK TO s;
SELECT state, result FROM idem_begin('k2');
SELECT idem_finish('k2', '"kept"');
COMMIT;
SELECT state, result FROM idem_begin('k2');
SELECT count(*) FROM idem_keys WHERE key = 'k2';

-- so that the guard sees it
BEGIN;
SELECT state FROM idem_begin('k3');
SAVEPOINT s;
SELECT idem_finish('k3');
ROLLBACK TO s;
COMMIT;
SELECT count(*) FROM idem_lookup('k3');

-- release inside: undone as well
BEGIN;
SELECT state FROM idem_begin('k4');
SAVEPOINT s;
SELECT idem_release('k4');
SELECT state FROM idem_begin('k4');
SELECT idem_finish('k4', '"second claim"');
ROLLBACK TO s;
SELECT state FROM idem_begin('k4');
SELECT idem_finish('k4', '"first claim"');
COMMIT;
SELECT state, result FROM idem_begin('k4');
BEGIN;
SELECT state FROM idem_begin('k5');
SAVEPOINT s;
SELECT idem_release('k5');
ROLLBACK TO s;
COMMIT;

-- begin and finish inside, both gone
BEGIN;
SAVEPOINT s;
SELECT state FROM idem_begin('k6');
SELECT idem_finish('k6', '1');
ROLLBACK TO s;
SELECT state FROM idem_begin('k6');
SELECT idem_finish('k6', '2');
COMMIT;
SELECT state, result FROM idem_begin('k6');

-- released savepoints count for the one around them
BEGIN;
SAVEPOINT a;
SAVEPOINT b;
SAVEPOINT c;
SELECT state FROM idem_begin('k7');
RELEASE c;
SELECT state FROM idem_begin('k7');
RELEASE b;
SAVEPOINT d;
SELECT idem_finish('k7', '1');
RELEASE d;
SELECT state FROM idem_begin('k7');
ROLLBACK TO a;
SELECT state FROM idem_begin('k7');
SAVEPOINT e;
SAVEPOINT f;
SELECT idem_finish('k7', '2');
RELEASE f;
ROLLBACK TO e;
SELECT state FROM idem_begin('k7');
SAVEPOINT g;
SELECT idem_finish('k7', '3');
RELEASE g;
RELEASE a;
COMMIT;
SELECT state, result FROM idem_begin('k7');

-- an error inside the savepoint, of ours or not
BEGIN;
SELECT state FROM idem_begin('k8');
SAVEPOINT s;
SELECT 1 / 0;
ROLLBACK TO s;
SELECT idem_finish('k8 with a typing error');
ROLLBACK TO s;
SELECT idem_finish('k8', '"after errors"');
SELECT idem_finish('k8', '"twice"');
ROLLBACK TO s;
SELECT idem_finish('k8', '"after errors"');
COMMIT;
SELECT state, result FROM idem_begin('k8');

-- as drivers do: a savepoint around each statement
CREATE TABLE orders (request text);
BEGIN;
SAVEPOINT _drv;
SELECT state FROM idem_begin('k9');
RELEASE SAVEPOINT _drv;
SAVEPOINT _drv;
INSERT INTO orders VALUES ('k9');
RELEASE SAVEPOINT _drv;
SAVEPOINT _drv;
INSERT INTO no_such_table VALUES ('k9');
ROLLBACK TO SAVEPOINT _drv;
SAVEPOINT _drv;
SELECT idem_finish('k9', '"driver"');
RELEASE SAVEPOINT _drv;
COMMIT;
SELECT state, result FROM idem_begin('k9');
-- and with claims that are released, and claims at once
BEGIN;
SAVEPOINT _drv;
SELECT state FROM idem_begin('k10');
RELEASE SAVEPOINT _drv;
SAVEPOINT _drv;
SELECT idem_release('k10');
RELEASE SAVEPOINT _drv;
SAVEPOINT _drv;
SELECT idem_claim('k10');
ROLLBACK TO SAVEPOINT _drv;
SELECT idem_claim('k10');
RELEASE SAVEPOINT _drv;
SELECT idem_claim('k10');
SAVEPOINT _drv;
SELECT * FROM idem_claim_many('{k10,k11,k12}');
ROLLBACK TO SAVEPOINT _drv;
SELECT * FROM idem_claim_many('{k10,k12}');
COMMIT;
SELECT state, key FROM unnest('{k10,k11,k12}'::text[]) key LEFT JOIN idem_lookup(key) ON true;
-- an expired key, replaced and replaced again
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key = 'k10';
BEGIN;
SELECT state FROM idem_begin('k10');
SAVEPOINT s;
SELECT idem_finish('k10', '1');
ROLLBACK TO s;
SELECT idem_finish('k10', '2');
COMMIT;
SELECT state, result FROM idem_begin('k10');
SELECT count(*) FROM idem_keys WHERE key = 'k10';

-- no lock is left of what was rolled back, all are there of what was not
BEGIN;
SELECT state FROM idem_begin('l1');
SAVEPOINT s;
SELECT state FROM idem_begin('l2');
SAVEPOINT t;
SELECT state FROM idem_begin('l3');
RELEASE t;
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
ROLLBACK TO s;
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SELECT idem_release('l1');
-- a released claim keeps its lock: a rollback may open it again
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
COMMIT;

-- EXCEPTION blocks at depth
CREATE FUNCTION deep(depth integer) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	said text;
BEGIN
	IF depth = 0 THEN
		SELECT state INTO said FROM idem_begin('deep');
		PERFORM idem_finish('deep', to_jsonb(said));
		RAISE EXCEPTION USING ERRCODE = 'XX111';
	END IF;
	BEGIN
		said := deep(depth - 1);
	EXCEPTION WHEN SQLSTATE 'XX111' THEN
		SELECT state INTO said FROM idem_begin('deep');
		IF depth < 20 THEN
			RAISE;
		END IF;
	END;
	RETURN said;
END
$$;
BEGIN;
SELECT deep(20);
SELECT state FROM idem_begin('deep');
SELECT idem_finish('deep', '"once"');
COMMIT;
SELECT state, result FROM idem_begin('deep');

-- in loops: those that fail are forgotten, the others committed
DO $$
BEGIN
	FOR i IN 1..100 LOOP
		BEGIN
			IF (SELECT state FROM idem_begin('loop ' || i)) = 'started' THEN
				IF i % 3 = 0 THEN
					RAISE division_by_zero;
				END IF;
				PERFORM idem_finish('loop ' || i, to_jsonb(i));
				IF i % 3 = 1 THEN
					RAISE division_by_zero;
				END IF;
			END IF;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END
$$;
SELECT count(*), bool_and(substr(key, 6)::integer % 3 = 2) AS right_ones FROM idem_keys WHERE key LIKE 'loop %';
-- a block that swallows the failure of a finish leaves the claim open
DO $$
BEGIN
	PERFORM idem_begin('swallowed');
	BEGIN
		PERFORM idem_finish('swallowed');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
END
$$;

-- procedures
CREATE PROCEDURE step(the_key text, finish boolean)
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_begin(the_key);
	INSERT INTO orders VALUES (the_key);
	IF finish THEN
		PERFORM idem_finish(the_key);
	END IF;
	COMMIT;
	RAISE NOTICE 'committed %', the_key;
END
$$;
\set VERBOSITY terse
CALL step('p1', true);
CALL step('p2', false);
DO $$
BEGIN
	FOR i IN 1..3 LOOP
		PERFORM idem_begin('p3 ' || i);
		INSERT INTO orders VALUES ('p3 ' || i);
		PERFORM idem_finish('p3 ' || i);
		COMMIT;
		-- a claim does not outlive its transaction
		PERFORM idem_begin('p4');
		INSERT INTO orders VALUES ('p4');
		ROLLBACK;
	END LOOP;
	CALL step('p5', true);
	CALL step('p6', false);
END
$$;
SELECT request, state FROM orders LEFT JOIN idem_lookup(request) ON true WHERE request LIKE 'p%' ORDER BY request;
\set VERBOSITY sqlstate

-- COMMIT AND CHAIN
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT state FROM idem_begin('chain 1');
SELECT idem_finish('chain 1');
COMMIT AND CHAIN;
SELECT current_setting('transaction_isolation') AS chained, state FROM idem_begin('chain 2');
ROLLBACK AND CHAIN;
SELECT current_setting('transaction_isolation') AS chained, state FROM idem_begin('chain 2');
COMMIT AND CHAIN;
ROLLBACK;
SELECT key, state FROM unnest('{chain 1,chain 2}'::text[]) key LEFT JOIN idem_lookup(key) ON true;

-- cursors: the claim is made when the row is fetched
BEGIN;
DECLARE c CURSOR FOR SELECT i, state FROM generate_series(1, 3) i, LATERAL idem_begin('c' || i);
FETCH c;
SELECT idem_release('c1');
SAVEPOINT s;
FETCH c;
ROLLBACK TO s;
CLOSE c;
SELECT state FROM idem_begin('c2');
SELECT idem_finish('c2');
COMMIT;
BEGIN;
DECLARE c CURSOR FOR SELECT state, result FROM idem_begin('c2');
SAVEPOINT s;
FETCH c;
ROLLBACK TO s;
COMMIT;
-- a cursor fetched in a savepoint that stays
BEGIN;
DECLARE c CURSOR FOR SELECT state FROM idem_begin('c4');
SAVEPOINT s;
FETCH c;
RELEASE s;
CLOSE c;
SELECT idem_finish('c4');
COMMIT;
SELECT state FROM idem_lookup('c4');
-- one that is held runs at the commit, ahead of the guard
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT state FROM idem_begin('c5');
COMMIT;
CLOSE ALL;
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT state, idem_finish('c6', '6') FROM idem_begin('c6');
COMMIT;
FETCH held;
CLOSE held;
SELECT count(*) FROM idem_lookup('c5');
SELECT state FROM idem_lookup('c6');

-- triggers: claimed in one, finished in a deferred one
CREATE FUNCTION orders_begin() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
	IF (SELECT state FROM idem_begin(NEW.request)) = 'started' THEN
		RETURN NEW;
	END IF;
	RETURN NULL;
END
$$;
CREATE FUNCTION orders_finish() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_finish(NEW.request, to_jsonb(NEW));
	RETURN NULL;
END
$$;
CREATE TRIGGER orders_begin BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION orders_begin();
INSERT INTO orders VALUES ('t0');
CREATE CONSTRAINT TRIGGER orders_finish AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION orders_finish();
INSERT INTO orders VALUES ('t1'), ('t2'), ('t1');
INSERT INTO orders VALUES ('t2'), ('t3');
BEGIN;
INSERT INTO orders VALUES ('t4');
SAVEPOINT s;
INSERT INTO orders VALUES ('t5');
ROLLBACK TO s;
COMMIT;
SELECT request, state, result FROM orders LEFT JOIN idem_lookup(request) ON true WHERE request LIKE 't%' ORDER BY request;
SELECT count(*) FROM idem_lookup('t5');
-- a claim begun as late as that is guarded, too
CREATE OR REPLACE FUNCTION orders_finish() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_finish(NEW.request);
	PERFORM idem_begin('begun at the commit');
	RETURN NULL;
END
$$;
INSERT INTO orders VALUES ('t6');
SELECT count(*) FROM orders WHERE request = 't6';

-- the session goes on
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SELECT state, idem_finish('end') FROM idem_begin('end');

DROP TABLE orders;
DROP FUNCTION deep, orders_begin, orders_finish;
DROP PROCEDURE step;
DELETE FROM idem_keys;
