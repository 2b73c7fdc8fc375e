-- The contestants of bench/call/run: the same order, placed once.
CREATE SCHEMA bench;
CREATE EXTENSION idempotency SCHEMA public;

CREATE TABLE bench.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL,
	item text NOT NULL, placed_at timestamptz NOT NULL DEFAULT now());

-- the key table that people write by hand, one for each who uses it
CREATE TABLE bench.hand_keys (key text PRIMARY KEY, result jsonb, created_at timestamptz NOT NULL DEFAULT now(),
	expires_at timestamptz NOT NULL DEFAULT now() + interval '24 hours');
CREATE TABLE bench.five_keys (LIKE bench.hand_keys INCLUDING ALL);

-- what idem_call calls
CREATE FUNCTION bench.place_order(customer int, item text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	order_id bigint;
BEGIN
	INSERT INTO bench.orders (customer, item) VALUES (place_order.customer, place_order.item)
	RETURNING id INTO order_id;
	RETURN jsonb_build_object('order', order_id);
END $$;

CREATE FUNCTION bench.place_by_hand(k text, customer int, item text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	order_id bigint;
	answer jsonb;
BEGIN
	INSERT INTO bench.hand_keys (key) VALUES (k) ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		SELECT result INTO answer FROM bench.hand_keys WHERE key = k;
		RETURN answer;
	END IF;
	INSERT INTO bench.orders (customer, item) VALUES (place_by_hand.customer, place_by_hand.item)
	RETURNING id INTO order_id;
	answer := jsonb_build_object('order', order_id);
	UPDATE bench.hand_keys SET result = answer WHERE key = k;
	RETURN answer;
END $$;
