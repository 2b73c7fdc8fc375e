-- The contestants of bench/batch/run: each a procedure that claims all batches, one in a
-- transaction, and returns how many keys were new.
DROP SCHEMA IF EXISTS bench CASCADE;
CREATE SCHEMA bench;
CREATE EXTENSION IF NOT EXISTS idempotency SCHEMA public;

CREATE TABLE bench.keys (LIKE idem_keys INCLUDING ALL) WITH (fillfactor = 90);
CREATE TABLE bench.batches (n int PRIMARY KEY, keys text[] NOT NULL);

CREATE PROCEDURE bench.ours(OUT claimed bigint) LANGUAGE plpgsql AS $$
DECLARE
	batch text[];
	n bigint;
BEGIN
	claimed := 0;
	FOR batch IN SELECT keys FROM bench.batches ORDER BY bench.batches.n LOOP
		SELECT count(*) INTO n FROM idem_claim_many(batch);
		claimed := claimed + n;
		COMMIT;
	END LOOP;
END $$;

-- the same rows; in the order of digests, two batches do not deadlock
CREATE PROCEDURE bench.hand(OUT claimed bigint) LANGUAGE plpgsql AS $$
DECLARE
	batch text[];
	n bigint;
BEGIN
	claimed := 0;
	FOR batch IN SELECT keys FROM bench.batches ORDER BY bench.batches.n LOOP
		WITH new AS (
			INSERT INTO bench.keys (digest, created_at, finished_at, expires_at, attempt, scope, key)
			SELECT md5(k)::uuid, t, t, t + interval '24 hours', 1, '', k FROM unnest(batch) k, clock_timestamp() t
			ON CONFLICT DO NOTHING RETURNING keys.key)
		SELECT count(*) INTO n FROM new;
		claimed := claimed + n;
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.sorted(OUT claimed bigint) LANGUAGE plpgsql AS $$
DECLARE
	batch text[];
	n bigint;
BEGIN
	claimed := 0;
	FOR batch IN SELECT keys FROM bench.batches ORDER BY bench.batches.n LOOP
		WITH new AS (
			INSERT INTO bench.keys (digest, created_at, finished_at, expires_at, attempt, scope, key)
			SELECT md5(k)::uuid, t, t, t + interval '24 hours', 1, '', k FROM unnest(batch) k, clock_timestamp() t
			ORDER BY 1
			ON CONFLICT DO NOTHING RETURNING keys.key)
		SELECT count(*) INTO n FROM new;
		claimed := claimed + n;
		COMMIT;
	END LOOP;
END $$;

-- new batches; "known" of a hundred keys are claimed already
CREATE PROCEDURE bench.make(batches int, size int, known int) LANGUAGE plpgsql AS $$
BEGIN
	TRUNCATE bench.batches, bench.keys, idem_keys;
	INSERT INTO bench.batches SELECT n, array_agg(gen_random_uuid()::text)
	FROM generate_series(1, batches) n, generate_series(1, size) GROUP BY n;

	PERFORM count(*) FROM bench.batches, idem_claim_many(
		ARRAY(SELECT k FROM unnest(keys) WITH ORDINALITY u(k, i) WHERE i % 100 < known));
	INSERT INTO bench.keys SELECT * FROM idem_keys;
	UPDATE bench.keys SET digest = md5(key)::uuid;
END $$;
