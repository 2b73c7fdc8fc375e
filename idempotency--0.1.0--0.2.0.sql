/* idempotency--0.1.0--0.2.0.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION idempotency UPDATE TO '0.2.0'" to load this file. \quit

/* Operators and functions of the views are those of pg_catalog, as in the install script. */
DO LANGUAGE plpgsql $do$
DECLARE
	script_path text := pg_catalog.current_setting('search_path');
	schema text;
BEGIN
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	schema := (SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'idempotency');
	EXECUTE replace($view$
/*
 * A barrier: else a reader's own operators and functions would be called with rows that
 * the condition keeps from the reader, and the planner would ask them about statistics of the table.
 */
CREATE VIEW @schema@.idem_lease_claims WITH (security_barrier) AS
SELECT k.key, k.scope, k.created_at, k.lease_until
FROM @schema@.idem_keys k
WHERE k.finished_at IS NULL AND k.lease_until > clock_timestamp();

CREATE OR REPLACE VIEW @schema@.idem_in_flight AS
SELECT c.pid, c.role, c.key, c.scope, c.since, 'transaction' AS held_by, NULL::timestamptz AS lease_until, c.waiting
FROM @schema@.idem_transaction_claims c
UNION ALL
SELECT NULL, NULL, k.key, k.scope, k.created_at, 'lease', k.lease_until, '{}'
FROM @schema@.idem_lease_claims k;
$view$, '@schema@', schema);
	PERFORM set_config('search_path', script_path, true);
END $do$;

COMMENT ON VIEW idem_lease_claims IS
'the part of idem_in_flight that is about running leases';

REVOKE ALL ON TABLE idem_lease_claims FROM PUBLIC;

CREATE FUNCTION idem_check()
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_check() IS
'raise the error now that the commit guard would raise at the end of this transaction';

REVOKE ALL ON FUNCTION
	idem_check()
FROM PUBLIC;

/*
 * ALTER DEFAULT PRIVILEGES may have given others what was made here.  Only that: what
 * idem_grant() has given since CREATE EXTENSION stays.
 */
DO LANGUAGE plpgsql $$
DECLARE
	acl record;
	script_path text := pg_catalog.current_setting('search_path');
BEGIN
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	FOR acl IN
		WITH members AS (
			SELECT d.classid, d.objid
			FROM pg_extension e
			JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass::oid AND d.refobjid = e.oid
			WHERE e.extname = 'idempotency' AND d.deptype = 'e')
		SELECT 'TABLE ' || c.oid::regclass AS object, a.grantee
		FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass::oid AND m.objid = c.oid,
			aclexplode(c.relacl) a
		WHERE c.relname IN ('idem_lease_claims') AND a.grantee NOT IN (0::oid, c.relowner)
		UNION
		SELECT 'ROUTINE ' || p.oid::regprocedure, a.grantee
		FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass::oid AND m.objid = p.oid,
			aclexplode(p.proacl) a
		WHERE p.proname IN ('idem_check') AND a.grantee NOT IN (0::oid, p.proowner)
	LOOP
		EXECUTE format('REVOKE ALL ON %s FROM %s', acl.object, acl.grantee::regrole);
	END LOOP;

	/* A new function of a job goes to the roles that have the job. */
	FOR acl IN
		WITH functions AS (
			SELECT p.oid, p.proname, p.proowner, p.proacl
			FROM pg_extension e
			JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass::oid AND d.refobjid = e.oid
			JOIN pg_proc p ON d.classid = 'pg_proc'::regclass::oid AND d.objid = p.oid
			WHERE e.extname = 'idempotency' AND d.deptype = 'e')
		SELECT n.oid::regprocedure AS object, a.grantee, a.is_grantable
		FROM (VALUES ('idem_check', 'idem_finish')) AS new (name, like_name)
		JOIN functions n ON n.proname = new.name
		JOIN functions o ON o.proname = new.like_name,
			aclexplode(o.proacl) a
		WHERE a.grantee <> o.proowner
	LOOP
		EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %s%s', acl.object,
			CASE WHEN acl.grantee = 0::oid THEN 'PUBLIC' ELSE acl.grantee::regrole::text END,
			CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
	END LOOP;
	PERFORM set_config('search_path', script_path, true);
END $$;

/* In a WHERE, what claims or counts comes after all other conditions. */
ALTER FUNCTION idem_begin(text, interval, text, jsonb, interval, interval) COST 1000;
ALTER FUNCTION idem_finish(text, jsonb, text, bigint) COST 1000;
ALTER FUNCTION idem_release(text, text, bigint) COST 1000;
ALTER FUNCTION idem_extend(text, interval, text, bigint) COST 1000;
ALTER FUNCTION idem_checkpoint(text, text, jsonb, text, bigint, interval) COST 1000;
ALTER FUNCTION idem_claim(text, interval, text, jsonb) COST 1000;
ALTER FUNCTION idem_claim_many(text[], interval, text) COST 1000;
ALTER FUNCTION idem_call(text, text, jsonb, interval, text, interval) COST 1000;
ALTER FUNCTION idem_token_issue(text, interval, jsonb, text) COST 1000;
ALTER FUNCTION idem_token_redeem(text, text) COST 1000;
ALTER FUNCTION idem_token_revoke(text, text) COST 1000;
ALTER FUNCTION idem_token_revoke_all(text, text) COST 1000;
ALTER FUNCTION idem_code_issue(text, text, interval, integer, integer) COST 1000;
ALTER FUNCTION idem_code_verify(text, text, text) COST 1000;
ALTER FUNCTION idem_throttle(text, interval, integer, text, integer) COST 1000;
ALTER FUNCTION idem_forget(text, text) COST 1000;
ALTER FUNCTION idem_forget_scope(text) COST 1000;
