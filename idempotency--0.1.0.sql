/* idempotency--0.1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION idempotency" to load this file. \quit

/*
 * Fixed-width columns first, so that no padding is stored.  Indexes may only
 * be on columns that never change: digest, created_at.  The updates of leased
 * claims are HOT then; the fillfactor leaves their rows room to grow.
 */
CREATE TABLE idem_keys (
	digest uuid NOT NULL,
	created_at timestamptz NOT NULL,
	finished_at timestamptz,
	expires_at timestamptz NOT NULL,
	lease_until timestamptz,
	fence bigint,
	ttl interval,
	attempt integer NOT NULL,
	fingerprint bytea,
	scope text NOT NULL,
	key text NOT NULL,
	phase text,
	progress jsonb,
	result jsonb,
	CONSTRAINT idem_keys_pkey PRIMARY KEY (digest)
) WITH (fillfactor = 90);

COMMENT ON TABLE idem_keys IS
'idempotency keys that are finished or leased; written by the idem_* functions only';
COMMENT ON COLUMN idem_keys.digest IS
'identity of (scope, key), as idem_digest() computes it';
COMMENT ON COLUMN idem_keys.created_at IS 'when the claim was begun';
COMMENT ON COLUMN idem_keys.finished_at IS 'when the claim was finished';
COMMENT ON COLUMN idem_keys.expires_at IS 'from then on the key counts as absent';
COMMENT ON COLUMN idem_keys.lease_until IS 'end of the lease of a leased claim';
COMMENT ON COLUMN idem_keys.fence IS 'fence of a leased claim';
COMMENT ON COLUMN idem_keys.ttl IS 'how long a leased claim is to be kept once it is finished';
COMMENT ON COLUMN idem_keys.attempt IS 'how many times the work was begun, rolled back transactions not counted';
COMMENT ON COLUMN idem_keys.fingerprint IS 'SHA-256 over the canonical form of the request, if one was given';
COMMENT ON COLUMN idem_keys.scope IS 'tenant or endpoint that the key belongs to; empty if none was given';
COMMENT ON COLUMN idem_keys.key IS 'key chosen by the client';
COMMENT ON COLUMN idem_keys.phase IS 'last recovery point of a leased claim';
COMMENT ON COLUMN idem_keys.progress IS 'data of the last recovery point of a leased claim';
COMMENT ON COLUMN idem_keys.result IS 'result that later callers get';

REVOKE ALL ON TABLE idem_keys FROM PUBLIC;

-- never CYCLE nor CACHE: a fence must not be issued twice, nor out of order
CREATE SEQUENCE idem_fence AS bigint;
COMMENT ON SEQUENCE idem_fence IS 'fences of leased claims';
REVOKE ALL ON SEQUENCE idem_fence FROM PUBLIC;

-- a restore that forgot live keys would run every request twice
SELECT pg_catalog.pg_extension_config_dump('idem_keys',
	'WHERE expires_at OPERATOR(pg_catalog.>) pg_catalog.now()');
SELECT pg_catalog.pg_extension_config_dump('idem_fence', '');

CREATE FUNCTION idem_digest(key text, scope text DEFAULT NULL)
RETURNS uuid
AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION idem_digest(text, text) IS
'primary key in idem_keys of a key in a scope';

CREATE FUNCTION idem_begin(
	key text,
	ttl interval DEFAULT NULL,
	scope text DEFAULT NULL,
	request jsonb DEFAULT NULL,
	lease interval DEFAULT NULL,
	wait interval DEFAULT NULL,
	OUT state text,
	OUT result jsonb,
	OUT retry_after double precision,
	OUT fence bigint,
	OUT attempt integer,
	OUT phase text,
	OUT progress jsonb,
	OUT created_at timestamptz,
	OUT finished_at timestamptz,
	OUT expires_at timestamptz)
RETURNS record
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_begin(text, interval, text, jsonb, interval, interval) IS
'claim a key: started, replayed, in_progress or mismatch';

CREATE FUNCTION idem_finish(
	key text,
	result jsonb DEFAULT NULL,
	scope text DEFAULT NULL,
	fence bigint DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_finish(text, jsonb, text, bigint) IS
'store the result of a claimed key, to commit with the work; returns the result';

CREATE FUNCTION idem_release(
	key text,
	scope text DEFAULT NULL,
	fence bigint DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_release(text, text, bigint) IS
'give up a claim, so that the key can be claimed again';

CREATE FUNCTION idem_extend(
	key text,
	lease interval,
	scope text DEFAULT NULL,
	fence bigint DEFAULT NULL)
RETURNS timestamptz
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_extend(text, interval, text, bigint) IS
'renew the lease of a leased claim; returns its new end';

CREATE FUNCTION idem_checkpoint(
	key text,
	phase text,
	progress jsonb DEFAULT NULL,
	scope text DEFAULT NULL,
	fence bigint DEFAULT NULL,
	lease interval DEFAULT NULL)
RETURNS timestamptz
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_checkpoint(text, text, jsonb, text, bigint, interval) IS
'record a recovery point of a leased claim, to commit with the work; returns the end of the lease';

CREATE FUNCTION idem_claim(
	key text,
	ttl interval DEFAULT NULL,
	scope text DEFAULT NULL,
	request jsonb DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_claim(text, interval, text, jsonb) IS
'claim and finish a key at once: true the first time, false after';

CREATE FUNCTION idem_claim_many(
	keys text[],
	ttl interval DEFAULT NULL,
	scope text DEFAULT NULL)
RETURNS TABLE (key text)
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_claim_many(text[], interval, text) IS
'claim and finish a batch of keys; returns those that were new';

CREATE FUNCTION idem_call(
	key text,
	function text,
	args jsonb DEFAULT NULL,
	ttl interval DEFAULT NULL,
	scope text DEFAULT NULL,
	wait interval DEFAULT NULL,
	OUT state text,
	OUT result jsonb,
	OUT retry_after double precision)
RETURNS record
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_call(text, text, jsonb, interval, text, interval) IS
'run a function once under a key and store its result: finished, replayed, in_progress or mismatch';

CREATE FUNCTION idem_once()
RETURNS trigger
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_once() IS
'row trigger that takes each row once: idem_once(columns [, ttl [, ''raise'' | ''skip'' [, scope]]])';

CREATE FUNCTION idem_lookup(key text, scope text DEFAULT NULL)
RETURNS TABLE (
	state text,
	result jsonb,
	attempt integer,
	phase text,
	progress jsonb,
	lease_until timestamptz,
	created_at timestamptz,
	finished_at timestamptz,
	expires_at timestamptz)
AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL UNSAFE ROWS 1;
COMMENT ON FUNCTION idem_lookup(text, text) IS
'what is committed under a key: finished, in_progress or abandoned';

CREATE FUNCTION idem_forget(key text, scope text DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_forget(text, text) IS
'erase a key, so that its request can run again';

CREATE FUNCTION idem_forget_scope(scope text)
RETURNS bigint
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_forget_scope(text) IS
'erase all keys of a scope; returns how many';

CREATE FUNCTION idem_grant(role regrole, jobs text[] DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_grant(regrole, text[]) IS
'let a role do jobs: claims, call, throttle, tokens, lookup, operate';

CREATE FUNCTION idem_revoke(role regrole, jobs text[] DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_revoke(regrole, text[]) IS
'take back what idem_grant() gave';

REVOKE ALL ON FUNCTION
	idem_digest(text, text),
	idem_begin(text, interval, text, jsonb, interval, interval),
	idem_finish(text, jsonb, text, bigint),
	idem_release(text, text, bigint),
	idem_extend(text, interval, text, bigint),
	idem_checkpoint(text, text, jsonb, text, bigint, interval),
	idem_claim(text, interval, text, jsonb),
	idem_claim_many(text[], interval, text),
	idem_call(text, text, jsonb, interval, text, interval),
	idem_once(),
	idem_lookup(text, text),
	idem_forget(text, text),
	idem_forget_scope(text),
	idem_grant(regrole, text[]),
	idem_revoke(regrole, text[])
FROM PUBLIC;

/*
 * ALTER DEFAULT PRIVILEGES may have given others what was made here; hosted
 * platforms and REST front ends set it up as a matter of course.
 */
DO LANGUAGE plpgsql $$
DECLARE
	acl record;
BEGIN
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	FOR acl IN
		WITH members AS (
			SELECT d.classid, d.objid
			FROM pg_extension e
			JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass::oid AND d.refobjid = e.oid
			WHERE e.extname = 'idempotency' AND d.deptype = 'e')
		SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass AS object, a.grantee
		FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass::oid AND m.objid = c.oid,
			aclexplode(c.relacl) a
		WHERE a.grantee NOT IN (0::oid, c.relowner)
		UNION
		SELECT 'FUNCTION ' || p.oid::regprocedure, a.grantee
		FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass::oid AND m.objid = p.oid,
			aclexplode(p.proacl) a
		WHERE a.grantee NOT IN (0::oid, p.proowner)
	LOOP
		EXECUTE format('REVOKE ALL ON %s FROM %s', acl.object, acl.grantee::regrole);
	END LOOP;
END $$;
