-- The contestants of bench/instructions/run.  All keys come from numbers, so that each run
-- inserts the same ones, in the same places of each index.
CREATE EXTENSION idempotency SCHEMA public;
CREATE SCHEMA bench;

-- as long as a uuid in text, and in random order
CREATE FUNCTION bench.key(kind text, i int) RETURNS text IMMUTABLE RETURN md5(kind || i::text)::uuid::text;

-- what people write by hand: the key table of bench/claims, a table of tokens, one of limits
CREATE TABLE bench.hand_keys (key text PRIMARY KEY, result jsonb, created_at timestamptz NOT NULL DEFAULT now(),
	expires_at timestamptz NOT NULL DEFAULT now() + interval '24 hours');
CREATE TABLE bench.hand_tokens (hash bytea PRIMARY KEY, payload jsonb, created_at timestamptz NOT NULL DEFAULT now(),
	expires_at timestamptz NOT NULL DEFAULT now() + interval '24 hours', used_at timestamptz);
CREATE TABLE bench.hand_limits (key text PRIMARY KEY, period timestamptz NOT NULL, calls int NOT NULL);

CREATE TABLE bench.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL, item text NOT NULL);
CREATE FUNCTION bench.place_order(customer int, item text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	order_id bigint;
BEGIN
	INSERT INTO bench.orders (customer, item) VALUES (place_order.customer, place_order.item)
	RETURNING id INTO order_id;
	RETURN jsonb_build_object('order', order_id);
END $$;

-- loops with nothing but the key and the commit, which are subtracted; that of bench/claims has
-- a statement too
CREATE PROCEDURE bench.commit(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('ours', i);
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.empty(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('ours', i);
		PERFORM pg_current_xact_id_if_assigned();
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.claim_ours(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
	claim record;
	answer jsonb;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('ours', i);
		claim := public.idem_begin(k);
		answer := public.idem_finish(k, '{"order": 1}');
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.claim_hand(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('ours', i);
		INSERT INTO bench.hand_keys (key) VALUES (k) ON CONFLICT DO NOTHING;
		UPDATE bench.hand_keys SET result = '{"order": 1}' WHERE key = k;
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.replay_ours(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
	claim record;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('ours', i);
		claim := public.idem_begin(k);
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.replay_hand(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
	answer jsonb;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('ours', i);
		INSERT INTO bench.hand_keys (key) VALUES (k) ON CONFLICT DO NOTHING;
		IF NOT FOUND THEN
			SELECT result INTO answer FROM bench.hand_keys WHERE key = k;
		END IF;
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.once_ours(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
	won bool;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('once', i);
		won := public.idem_claim(k);
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.once_hand(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('once', i);
		INSERT INTO bench.hand_keys (key) VALUES (k) ON CONFLICT DO NOTHING;
		COMMIT;
	END LOOP;
END $$;

-- n keys in batches of 100
CREATE PROCEDURE bench.many_empty(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	keys text[];
BEGIN
	FOR i IN first..first + n - 1 BY 100 LOOP
		keys := ARRAY(SELECT bench.key('many', j) FROM generate_series(i, i + 99) j);
		PERFORM k FROM unnest(keys) k;
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.many_ours(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	keys text[];
BEGIN
	FOR i IN first..first + n - 1 BY 100 LOOP
		keys := ARRAY(SELECT bench.key('many', j) FROM generate_series(i, i + 99) j);
		PERFORM k FROM public.idem_claim_many(keys) k;
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.many_hand(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	keys text[];
BEGIN
	FOR i IN first..first + n - 1 BY 100 LOOP
		keys := ARRAY(SELECT bench.key('many', j) FROM generate_series(i, i + 99) j);
		INSERT INTO bench.hand_keys (key) SELECT k FROM unnest(keys) k ON CONFLICT DO NOTHING;
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.call_ours(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
	answer record;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('call', i);
		answer := public.idem_call(k, 'bench.place_order', '{"customer": 7, "item": "book"}');
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.call_hand(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
	answer jsonb;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('call', i);
		INSERT INTO bench.hand_keys (key) VALUES (k) ON CONFLICT DO NOTHING;
		answer := bench.place_order(7, 'book');
		UPDATE bench.hand_keys SET result = answer WHERE key = k;
		COMMIT;
	END LOOP;
END $$;

CREATE TABLE bench.row_empty (key text NOT NULL, customer int NOT NULL, item text NOT NULL);
CREATE TABLE bench.row_ours (LIKE bench.row_empty);
CREATE TABLE bench.row_hand (LIKE bench.row_empty, UNIQUE (key));
CREATE TRIGGER once AFTER INSERT ON bench.row_ours FOR EACH ROW EXECUTE FUNCTION idem_once('key');

CREATE PROCEDURE bench.throttle_ours(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
	answer record;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('throttle', i);
		answer := public.idem_throttle(k, '60 s', 10);
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.throttle_hand(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	k text;
	used int;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		k := bench.key('throttle', i);
		INSERT INTO bench.hand_limits AS l VALUES (k, date_trunc('minute', now()), 1)
		ON CONFLICT (key) DO UPDATE SET period = excluded.period,
			calls = CASE WHEN l.period = excluded.period THEN l.calls + 1 ELSE 1 END
		RETURNING calls INTO used;
		COMMIT;
	END LOOP;
END $$;

-- tokens are random, and issued beforehand
CREATE TABLE bench.tokens (i int PRIMARY KEY, token text NOT NULL);
CREATE FUNCTION bench.token(i int) RETURNS text STABLE RETURN (SELECT t.token FROM bench.tokens t WHERE t.i = token.i);

CREATE PROCEDURE bench.token_empty(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	t text;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		t := bench.token(i);
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.token_ours(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	t text;
	answer record;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		t := bench.token(i);
		answer := public.idem_token_redeem('reset', t);
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.token_hand(first int, n int) LANGUAGE plpgsql AS $$
DECLARE
	t text;
	answer jsonb;
BEGIN
	FOR i IN first..first + n - 1 LOOP
		t := bench.token(i);
		UPDATE bench.hand_tokens SET used_at = now()
		WHERE hash = sha256(convert_to(t, 'UTF8')) AND used_at IS NULL AND expires_at > now()
		RETURNING payload INTO answer;
		COMMIT;
	END LOOP;
END $$;

-- Tables that are not empty: an index has two levels.  In random order, so that pages do not
-- all split at the same time.
SELECT count(*) FROM generate_series(1, 20000) i WHERE idem_claim(bench.key('old', i));
INSERT INTO bench.hand_keys (key) SELECT bench.key('old', i) FROM generate_series(1, 20000) i;
INSERT INTO bench.row_hand SELECT bench.key('old', i), 7, 'book' FROM generate_series(1, 20000) i;
INSERT INTO bench.tokens SELECT i, idem_token_issue('reset', '1 day', '{"order": 1}') FROM generate_series(1, 20000) i;
INSERT INTO bench.hand_tokens (hash, payload) SELECT sha256(convert_to(token, 'UTF8')), '{"order": 1}' FROM bench.tokens;
INSERT INTO bench.hand_limits SELECT bench.key('old', i), now(), 1 FROM generate_series(1, 20000) i;
VACUUM ANALYZE;
