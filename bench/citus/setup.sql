-- The contestants of bench/citus/run: see there.
CREATE EXTENSION IF NOT EXISTS idempotency;
CREATE SCHEMA bench;
CREATE TABLE bench.orders (tenant bigint NOT NULL, id uuid DEFAULT gen_random_uuid(), payload text, PRIMARY KEY (tenant, id));
SELECT create_distributed_table('bench.orders', 'tenant', shard_count => 16);
CREATE TABLE bench.keys (tenant bigint NOT NULL, key text, result jsonb, created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (tenant, key));
SELECT create_distributed_table('bench.keys', 'tenant', colocate_with => 'bench.orders');
SELECT idem_distribute('bench.orders');

CREATE FUNCTION bench.none(tenant bigint, key text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO bench.orders (tenant, payload) VALUES (none.tenant, 'tea');
END $$;

CREATE FUNCTION bench.ours(tenant bigint, key text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF (SELECT state FROM public.idem_begin(ours.key, scope => ours.tenant::text)) = 'started' THEN
		INSERT INTO bench.orders (tenant, payload) VALUES (ours.tenant, 'tea');
		PERFORM public.idem_finish(ours.key, '{"status": 201}', scope => ours.tenant::text);
	END IF;
END $$;

CREATE FUNCTION bench.hand(tenant bigint, key text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	fresh boolean;
BEGIN
	INSERT INTO bench.keys (tenant, key) VALUES (hand.tenant, hand.key) ON CONFLICT DO NOTHING;
	GET DIAGNOSTICS fresh = ROW_COUNT;
	IF fresh THEN
		INSERT INTO bench.orders (tenant, payload) VALUES (hand.tenant, 'tea');
		UPDATE bench.keys k SET result = '{"status": 201}' WHERE k.tenant = hand.tenant AND k.key = hand.key;
	END IF;
END $$;

SELECT create_distributed_function(f, 'tenant', colocate_with => 'bench.orders')
FROM unnest(ARRAY['bench.none(bigint, text)', 'bench.ours(bigint, text)', 'bench.hand(bigint, text)']::regprocedure[]) f;
