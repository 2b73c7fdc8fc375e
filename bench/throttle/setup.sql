-- What bench/throttle/run calls, apart from idem_throttle itself; :library is nothing.c.
CREATE EXTENSION idempotency SCHEMA public;
CREATE SCHEMA bench;

CREATE FUNCTION bench.nothing(key text, period interval, max_calls integer DEFAULT NULL, scope text DEFAULT NULL,
	cost integer DEFAULT NULL, OUT allowed boolean, OUT remaining integer, OUT retry_after double precision,
	OUT reset_after double precision)
RETURNS record AS :'library', 'nothing' LANGUAGE C VOLATILE PARALLEL RESTRICTED;

CREATE FUNCTION bench.constant(key text, period interval, max_calls integer DEFAULT NULL, scope text DEFAULT NULL,
	cost integer DEFAULT NULL, OUT allowed boolean, OUT remaining integer, OUT retry_after double precision,
	OUT reset_after double precision)
RETURNS record AS :'library', 'constant' LANGUAGE C VOLATILE PARALLEL RESTRICTED;

-- that this backend has used
CREATE FUNCTION bench.processor_seconds() RETURNS double precision LANGUAGE SQL AS $$
	SELECT split_part(pg_read_file('/proc/self/schedstat'), ' ', 1)::double precision / 1e9
$$;
