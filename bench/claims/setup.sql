-- The contestants of bench/claims/run: the same order, placed once.
DROP SCHEMA IF EXISTS bench CASCADE;
CREATE SCHEMA bench;
SET search_path = bench, public;
CREATE EXTENSION IF NOT EXISTS idempotency SCHEMA public;

CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL,
	item text NOT NULL, placed_at timestamptz NOT NULL DEFAULT now());

-- the key table that people write by hand
CREATE TABLE hand_keys (key text PRIMARY KEY, result jsonb, created_at timestamptz NOT NULL DEFAULT now(),
	expires_at timestamptz NOT NULL DEFAULT now() + interval '24 hours');

-- no protection at all
CREATE FUNCTION place_floor(k text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	order_id bigint;
BEGIN
	INSERT INTO bench.orders (customer, item) VALUES (7, 'book') RETURNING id INTO order_id;
	RETURN jsonb_build_object('order', order_id);
END $$;

CREATE FUNCTION place_ours(k text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	claim record;
	order_id bigint;
BEGIN
	claim := public.idem_begin(k);
	IF claim.state <> 'started' THEN
		RETURN claim.result;
	END IF;
	INSERT INTO bench.orders (customer, item) VALUES (7, 'book') RETURNING id INTO order_id;
	RETURN public.idem_finish(k, jsonb_build_object('order', order_id));
END $$;

CREATE FUNCTION place_hand(k text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	order_id bigint;
	answer jsonb;
BEGIN
	INSERT INTO bench.hand_keys (key) VALUES (k) ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		SELECT result INTO answer FROM bench.hand_keys WHERE key = k;
		RETURN answer;
	END IF;
	INSERT INTO bench.orders (customer, item) VALUES (7, 'book') RETURNING id INTO order_id;
	answer := jsonb_build_object('order', order_id);
	UPDATE bench.hand_keys SET result = answer WHERE key = k;
	RETURN answer;
END $$;

-- one backend, no client, no order: what the protection itself costs
CREATE PROCEDURE loop_ours(n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
	claim record;
	answer jsonb;
BEGIN
	FOR i IN 1..n LOOP
		k := gen_random_uuid()::text;
		claim := public.idem_begin(k);
		answer := public.idem_finish(k, '{"order": 1}');
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE loop_hand(n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
BEGIN
	FOR i IN 1..n LOOP
		k := gen_random_uuid()::text;
		INSERT INTO bench.hand_keys (key) VALUES (k) ON CONFLICT DO NOTHING;
		UPDATE bench.hand_keys SET result = '{"order": 1}' WHERE key = k;
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE loop_empty(n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
BEGIN
	FOR i IN 1..n LOOP
		k := gen_random_uuid()::text;
		PERFORM pg_current_xact_id_if_assigned();
		COMMIT;
	END LOOP;
END $$;
