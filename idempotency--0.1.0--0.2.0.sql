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
		SELECT c.oid::regclass AS object, a.grantee
		FROM pg_extension e
		JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass::oid AND d.refobjid = e.oid
		JOIN pg_class c ON d.classid = 'pg_class'::regclass::oid AND d.objid = c.oid,
			aclexplode(c.relacl) a
		WHERE e.extname = 'idempotency' AND d.deptype = 'e' AND c.relname IN ('idem_lease_claims')
			AND a.grantee NOT IN (0::oid, c.relowner)
	LOOP
		EXECUTE format('REVOKE ALL ON TABLE %s FROM %s', acl.object, acl.grantee::regrole);
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

/* Comments that say it better. */
COMMENT ON COLUMN idem_tokens.payload IS 'what a caller that redeems the token gets';
COMMENT ON TABLE idem_secrets IS 'keys of the HMACs in idem_codes; with them and a dump, live codes can be found out';
COMMENT ON COLUMN idem_stat.in_progress IS 'idem_begin and idem_call: another transaction or a lease held the key';
