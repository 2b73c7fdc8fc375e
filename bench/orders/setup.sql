-- The contestants of bench/run: the same order, placed once, and the same answer to a
-- repeated request: {"order": id, "payload": what was ordered}.
CREATE SCHEMA bench;
CREATE EXTENSION idempotency SCHEMA public;
CREATE EXTENSION pgstattuple SCHEMA bench;

CREATE TABLE bench.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL,
	item text NOT NULL, payload text NOT NULL, placed_at timestamptz NOT NULL DEFAULT now());

-- the key table that people write by hand
CREATE TABLE bench.hand_keys (key text PRIMARY KEY, status text NOT NULL DEFAULT 'started', result jsonb,
	created_at timestamptz NOT NULL DEFAULT now(),
	expires_at timestamptz NOT NULL DEFAULT now() + interval '24 hours');

-- the key in the order itself
CREATE TABLE bench.unique_orders (LIKE bench.orders INCLUDING ALL, key text NOT NULL UNIQUE);

-- the same under the trigger; the index is there to find the order that a repeated request asks for
CREATE TABLE bench.trigger_orders (LIKE bench.orders INCLUDING ALL, key text NOT NULL);
CREATE INDEX ON bench.trigger_orders (key);
CREATE TRIGGER once AFTER INSERT ON bench.trigger_orders
FOR EACH ROW EXECUTE FUNCTION idem_once('key', '24 hours');

-- the rows of idem_keys, without what makes them; and an inbox by hand
CREATE TABLE bench.same_rows (LIKE public.idem_keys INCLUDING ALL) WITH (fillfactor = 90);
CREATE TABLE bench.inbox (key text PRIMARY KEY, created_at timestamptz NOT NULL DEFAULT now(),
	expires_at timestamptz NOT NULL DEFAULT now() + interval '24 hours');

-- keys that are finished before a run of replays
CREATE TABLE bench.known (key text NOT NULL, digest uuid NOT NULL);

CREATE FUNCTION bench.place_by_hand(k text, payload text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	order_id bigint;
	answer jsonb;
BEGIN
	INSERT INTO bench.hand_keys (key) VALUES (k) ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		SELECT result INTO answer FROM bench.hand_keys WHERE key = k;
		RETURN answer;
	END IF;
	INSERT INTO bench.orders (customer, item, payload) VALUES (7, 'book', place_by_hand.payload)
	RETURNING id INTO order_id;
	answer := jsonb_build_object('order', order_id, 'payload', place_by_hand.payload);
	UPDATE bench.hand_keys SET status = 'done', result = answer WHERE key = k;
	RETURN answer;
END $$;

-- what ours does, by hand: a lock first, so that the key is written once, with its result
CREATE FUNCTION bench.place_by_lock(k text, payload text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	order_id bigint;
	answer jsonb;
BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended(k, 0));
	SELECT result INTO answer FROM bench.hand_keys WHERE key = k;
	IF FOUND THEN
		RETURN answer;
	END IF;
	INSERT INTO bench.orders (customer, item, payload) VALUES (7, 'book', place_by_lock.payload)
	RETURNING id INTO order_id;
	answer := jsonb_build_object('order', order_id, 'payload', place_by_lock.payload);
	INSERT INTO bench.hand_keys (key, status, result) VALUES (k, 'done', answer);
	RETURN answer;
END $$;

CREATE FUNCTION bench.place_once(k text, payload text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	claim record;
	order_id bigint;
BEGIN
	claim := public.idem_begin(k, wait => '5 s');
	IF claim.state = 'replayed' THEN
		RETURN claim.result;
	ELSIF claim.state <> 'started' THEN
		RAISE EXCEPTION 'request is %', claim.state;
	END IF;
	INSERT INTO bench.orders (customer, item, payload) VALUES (7, 'book', place_once.payload)
	RETURNING id INTO order_id;
	RETURN public.idem_finish(k, jsonb_build_object('order', order_id, 'payload', place_once.payload));
END $$;

-- what idem_call calls
CREATE FUNCTION bench.place_order(payload text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	order_id bigint;
BEGIN
	INSERT INTO bench.orders (customer, item, payload) VALUES (7, 'book', place_order.payload)
	RETURNING id INTO order_id;
	RETURN jsonb_build_object('order', order_id, 'payload', place_order.payload);
END $$;

CREATE FUNCTION bench.known_keys(n int) RETURNS void LANGUAGE sql AS $$
	TRUNCATE bench.known;
	INSERT INTO bench.known SELECT k, public.idem_digest(k)
	FROM (SELECT gen_random_uuid()::text AS k FROM generate_series(1, n)) AS keys;
$$;

-- n finished keys in both key tables, some of which become the known ones
CREATE PROCEDURE bench.fill(n bigint, kind text) LANGUAGE plpgsql AS $$
BEGIN
	TRUNCATE public.idem_keys, bench.hand_keys, bench.orders, bench.known;
	-- an index made at the end is made by sorting; random keys would have left its pages as full
	ALTER TABLE bench.hand_keys DROP CONSTRAINT hand_keys_pkey;
	INSERT INTO bench.hand_keys (key, status, result)
	SELECT CASE kind WHEN 'uuid' THEN gen_random_uuid()::text ELSE 'order-' || lpad(i::text, 12, '0') END,
		'done', jsonb_build_object('order', i)
	FROM generate_series(1, n) i;
	IF kind = 'uuid' THEN
		ALTER TABLE bench.hand_keys ADD PRIMARY KEY (key) WITH (fillfactor = 70);
	ELSE
		ALTER TABLE bench.hand_keys ADD PRIMARY KEY (key);
	END IF;
	ALTER TABLE public.idem_keys DROP CONSTRAINT idem_keys_pkey;
	INSERT INTO public.idem_keys (digest, created_at, finished_at, expires_at, attempt, scope, key, result)
	SELECT public.idem_digest(key), created_at, created_at, expires_at, 1, '', key, result FROM bench.hand_keys;
	ALTER TABLE public.idem_keys ADD PRIMARY KEY (digest) WITH (fillfactor = 70);
	INSERT INTO bench.known SELECT key, digest FROM public.idem_keys WHERE random() < 100000.0 / n;
END $$;

-- the crash: a session that has inserted an order waits for the session that holds the lock
CREATE FUNCTION bench.pause() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared(42);
	RETURN NULL;
END $$;
