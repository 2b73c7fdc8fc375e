\set r random(1, 9000000000000000000)
BEGIN;
INSERT INTO bench.five_keys (key) VALUES ('order-' || :r) ON CONFLICT DO NOTHING;
INSERT INTO bench.orders (customer, item) VALUES (7, 'book') RETURNING id \gset
UPDATE bench.five_keys SET result = jsonb_build_object('order', :id::bigint) WHERE key = 'order-' || :r;
COMMIT;
