-- What bench/retention/run needs: schema bench is made anew.
DROP SCHEMA IF EXISTS bench CASCADE;
CREATE SCHEMA bench;
CREATE EXTENSION IF NOT EXISTS idempotency SCHEMA public;

-- n claims, a transaction each, every fifth with a lease that is then finished
CREATE PROCEDURE bench.claims(n int, prefix text, leases boolean) LANGUAGE plpgsql AS $$
DECLARE
	claim record;
	answer jsonb;
BEGIN
	FOR i IN 1..n LOOP
		IF leases THEN
			claim := public.idem_begin(prefix || i, '1 day', lease => '1 min');
			COMMIT;
			answer := public.idem_finish(prefix || i, '{"order": 1}', fence => claim.fence);
		ELSE
			claim := public.idem_begin(prefix || i, '1 day');
			answer := public.idem_finish(prefix || i, '{"order": 1}');
		END IF;
		COMMIT;
	END LOOP;
END $$;

-- "n" rows as claims leave them, one in "every" of which has expired: the oldest ones
-- (one ttl for all), or scattered (many ttls)
CREATE PROCEDURE bench.fill(n int, every int, scattered boolean) LANGUAGE sql AS $$
	INSERT INTO public.idem_keys (digest, scope, key, result, created_at, finished_at, expires_at, attempt)
	SELECT gen_random_uuid(), '', 'order-' || lpad(i::text, 20, '0'), '{"order": 1}', at, at,
		CASE WHEN CASE WHEN scattered THEN random() < 1.0 / every ELSE i <= n / every END
			THEN now() - interval '1 s' ELSE now() + interval '1 day' END, 1
	FROM generate_series(1, n) i, LATERAL (SELECT now() - interval '2 days' + interval '1 ms' * i) t(at)
	ORDER BY i;
$$;

-- the other ways to purge, in batches of the same size
CREATE PROCEDURE bench.purge_btree(batch int) LANGUAGE plpgsql AS $$
DECLARE
	n int;
BEGIN
	LOOP
		DELETE FROM public.idem_keys WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM public.idem_keys WHERE expires_at <= now() ORDER BY expires_at LIMIT batch FOR UPDATE SKIP LOCKED));
		GET DIAGNOSTICS n = ROW_COUNT;
		COMMIT;
		EXIT WHEN n = 0;
	END LOOP;
END $$;

-- created_at says which pages are old enough for the shortest ttl, here none
CREATE PROCEDURE bench.purge_brin(batch int) LANGUAGE plpgsql AS $$
DECLARE
	n int;
BEGIN
	LOOP
		DELETE FROM public.idem_keys WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM public.idem_keys WHERE created_at <= now() AND expires_at <= now() LIMIT batch FOR UPDATE SKIP LOCKED));
		GET DIAGNOSTICS n = ROW_COUNT;
		COMMIT;
		EXIT WHEN n = 0;
	END LOOP;
END $$;

CREATE PROCEDURE bench.purge_sweep(batch int) LANGUAGE plpgsql AS $$
DECLARE
	keys bigint;
	tokens bigint;
	codes bigint;
BEGIN
	CALL public.idem_purge(batch, NULL, NULL, keys, tokens, codes);
END $$;

-- purges without pause, for as long as the other clients claim
CREATE PROCEDURE bench.purge_on(seconds numeric) LANGUAGE plpgsql AS $$
DECLARE
	until timestamptz := clock_timestamp() + seconds * interval '1 s';
	keys bigint;
	tokens bigint;
	codes bigint;
BEGIN
	WHILE clock_timestamp() < until LOOP
		CALL public.idem_purge(NULL, NULL, '100 ms', keys, tokens, codes);
		PERFORM pg_sleep(0.9);
	END LOOP;
END $$;
