-- What bench/life/run needs: schema bench is made anew.
DROP SCHEMA IF EXISTS bench CASCADE;
CREATE SCHEMA bench;
CREATE EXTENSION IF NOT EXISTS idempotency SCHEMA public;

-- the key table that people write by hand
CREATE TABLE bench.hand_keys (key text PRIMARY KEY, result jsonb, created_at timestamptz NOT NULL DEFAULT now(),
	expires_at timestamptz NOT NULL);
CREATE INDEX ON bench.hand_keys (expires_at);

-- the keys from "first" on, n of them, 100 in a transaction
CREATE FUNCTION bench.key(i bigint, random boolean) RETURNS text LANGUAGE sql AS $$
	SELECT CASE WHEN random THEN gen_random_uuid()::text ELSE 'order-' || lpad(i::text, 30, '0') END
$$;

CREATE PROCEDURE bench.insert_ours(first bigint, n bigint, random boolean, ttl interval) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN first..first + n - 1 BY 100 LOOP
		PERFORM public.idem_claim(bench.key(j, random), ttl) FROM generate_series(i, i + 99) j;
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.insert_hand(first bigint, n bigint, random boolean, ttl interval) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN first..first + n - 1 BY 100 LOOP
		INSERT INTO bench.hand_keys (key, expires_at)
		SELECT bench.key(j, random), clock_timestamp() + ttl FROM generate_series(i, i + 99) j
		ON CONFLICT DO NOTHING;
		COMMIT;
	END LOOP;
END $$;

-- at most n expired rows, in batches; the ones that expired first come first
CREATE PROCEDURE bench.purge_ours(n bigint) LANGUAGE plpgsql AS $$
DECLARE
	keys bigint;
	tokens bigint;
	codes bigint;
BEGIN
	CALL public.idem_purge(5000, n, NULL, keys, tokens, codes);
END $$;

CREATE PROCEDURE bench.purge_hand(n bigint) LANGUAGE plpgsql AS $$
DECLARE
	removed bigint := 0;
	batch bigint;
BEGIN
	LOOP
		DELETE FROM bench.hand_keys WHERE key IN (
			SELECT key FROM bench.hand_keys WHERE expires_at <= clock_timestamp()
			ORDER BY expires_at LIMIT least(5000, n - removed));
		GET DIAGNOSTICS batch = ROW_COUNT;
		COMMIT;
		removed := removed + batch;
		EXIT WHEN batch = 0 OR removed >= n;
	END LOOP;
END $$;

-- churn: n keys, 1000 at a time, ten times a second
CREATE PROCEDURE bench.churn(way text, n bigint, ttl interval) LANGUAGE plpgsql AS $$
DECLARE
	next timestamptz := clock_timestamp();
BEGIN
	FOR i IN 1..n BY 1000 LOOP
		IF way = 'ours' THEN
			CALL bench.insert_ours(i, 1000, true, ttl);
		ELSE
			CALL bench.insert_hand(i, 1000, true, ttl);
		END IF;
		next := next + interval '0.1 s';
		PERFORM pg_sleep(extract(epoch FROM next - clock_timestamp()));
	END LOOP;
END $$;
