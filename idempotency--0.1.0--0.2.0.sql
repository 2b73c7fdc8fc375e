/* idempotency--0.1.0--0.2.0.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION idempotency UPDATE TO '0.2.0'" to load this file. \quit

/*
 * Functions with a new argument or a new column keep their OID: sessions that are calling them
 * go on, and so do views and functions that use them, and privileges stay.  CREATE OR REPLACE
 * cannot do that, so each new definition is made under another name and copied.
 */
CREATE FUNCTION idem_begin_0_2(
	key text,
	ttl interval DEFAULT NULL,
	scope text DEFAULT NULL,
	request jsonb DEFAULT NULL,
	lease interval DEFAULT NULL,
	wait interval DEFAULT NULL,
	max_attempts integer DEFAULT NULL,
	OUT state text,
	OUT result jsonb,
	OUT retry_after double precision,
	OUT fence bigint,
	OUT attempt integer,
	OUT phase text,
	OUT progress jsonb,
	OUT created_at timestamptz,
	OUT finished_at timestamptz,
	OUT expires_at timestamptz,
	OUT failed boolean)
RETURNS record
AS 'MODULE_PATHNAME', 'idem_begin' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;

CREATE FUNCTION idem_call_0_2(
	key text,
	function text,
	args jsonb DEFAULT NULL,
	ttl interval DEFAULT NULL,
	scope text DEFAULT NULL,
	wait interval DEFAULT NULL,
	keep_errors text[] DEFAULT NULL,
	OUT state text,
	OUT result jsonb,
	OUT retry_after double precision,
	OUT failed boolean)
RETURNS record
AS 'MODULE_PATHNAME', 'idem_call' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;

CREATE FUNCTION idem_lookup_0_2(key text, scope text DEFAULT NULL)
RETURNS TABLE (
	state text,
	result jsonb,
	attempt integer,
	phase text,
	progress jsonb,
	lease_until timestamptz,
	created_at timestamptz,
	finished_at timestamptz,
	expires_at timestamptz,
	failed boolean)
AS 'MODULE_PATHNAME', 'idem_lookup' LANGUAGE C STABLE PARALLEL UNSAFE ROWS 1;

CREATE FUNCTION idem_stat_counters_0_2(
	OUT datid oid,
	OUT started bigint,
	OUT replayed bigint,
	OUT in_progress bigint,
	OUT mismatched bigint,
	OUT finished bigint,
	OUT released bigint,
	OUT taken_over bigint,
	OUT claimed bigint,
	OUT duplicates bigint,
	OUT throttle_allowed bigint,
	OUT throttle_rejected bigint,
	OUT throttle_evicted bigint,
	OUT tokens_issued bigint,
	OUT tokens_redeemed bigint,
	OUT tokens_refused bigint,
	OUT codes_issued bigint,
	OUT codes_verified bigint,
	OUT codes_refused bigint,
	OUT purged bigint,
	OUT guard_errors bigint,
	OUT stats_reset timestamptz,
	OUT last_purge timestamptz,
	OUT failed bigint,
	OUT exhausted bigint)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'idem_stat_counters' LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 5;

DO LANGUAGE plpgsql $do$
DECLARE
	script_path text := pg_catalog.current_setting('search_path');
	definition record;
BEGIN
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	FOR definition IN
		SELECT old.oid AS old, new.oid AS new
		FROM pg_extension e
		JOIN pg_proc new ON new.pronamespace = e.extnamespace AND new.proname LIKE '%\_0\_2'
		JOIN pg_proc old ON old.pronamespace = e.extnamespace AND old.proname || '_0_2' = new.proname
		JOIN pg_depend d ON d.classid = 'pg_proc'::regclass::oid AND d.objid = old.oid
			AND d.refclassid = 'pg_extension'::regclass::oid AND d.refobjid = e.oid AND d.deptype = 'e'
		/* not a function of somebody else with such a name */
		JOIN pg_depend n ON n.classid = d.classid AND n.objid = new.oid
			AND n.refclassid = d.refclassid AND n.refobjid = e.oid AND n.deptype = 'e'
		WHERE e.extname = 'idempotency'
	LOOP
		UPDATE pg_proc old
		SET pronargs = new.pronargs, pronargdefaults = new.pronargdefaults, proargtypes = new.proargtypes,
			proallargtypes = new.proallargtypes, proargmodes = new.proargmodes,
			proargnames = new.proargnames, proargdefaults = new.proargdefaults
		FROM pg_proc new
		WHERE old.oid = definition.old AND new.oid = definition.new;
		EXECUTE format('DROP FUNCTION %s', definition.new::regprocedure);
	END LOOP;
	PERFORM set_config('search_path', script_path, true);
END $do$;

COMMENT ON FUNCTION idem_begin(text, interval, text, jsonb, interval, interval, integer) IS
'claim a key: started, replayed, in_progress, mismatch or exhausted';
COMMENT ON FUNCTION idem_call(text, text, jsonb, interval, text, interval, text[]) IS
'run a function once under a key and store its result: finished, replayed, in_progress or mismatch';
COMMENT ON FUNCTION idem_lookup(text, text) IS
'what is committed under a key: finished, in_progress or abandoned';
COMMENT ON FUNCTION idem_stat_counters() IS
'what view idem_stat has from shared memory';

/* Operators and functions of the views are those of pg_catalog, as in the install script. */
DO LANGUAGE plpgsql $do$
DECLARE
	script_path text := pg_catalog.current_setting('search_path');
	schema text;
BEGIN
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	schema := (SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'idempotency');
	EXECUTE replace(replace($view$
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

/*
 * The gauges look at a sample of about 1,000 pages, or at all if there are no more:
 * their cost does not grow with the table.
 */
CREATE OR REPLACE VIEW @schema@.idem_stat AS
SELECT d.oid AS datid,
	d.datname,
	s.started, s.replayed, s.in_progress, s.mismatched, s.finished, s.released, s.taken_over,
	s.claimed, s.duplicates,
	s.throttle_allowed, s.throttle_rejected, s.throttle_evicted,
	s.tokens_issued, s.tokens_redeemed, s.tokens_refused,
	s.codes_issued, s.codes_verified, s.codes_refused,
	s.purged, s.guard_errors, s.stats_reset,
	g.live_keys, g.oldest_expired, s.last_purge, g.open_leases,
	clock_timestamp() - least(g.oldest_lease, t.oldest) AS oldest_claim_age,
	s.failed, s.exhausted
FROM pg_catalog.pg_database d
LEFT JOIN @schema@.idem_stat_counters() s ON s.datid = d.oid
LEFT JOIN (
	SELECT k.*
	FROM (SELECT least(100, 100.0 * 1000 * current_setting('block_size')::integer
			/ greatest(pg_relation_size('@literal@.idem_keys'), 1))::real AS percent) sample,
	LATERAL (
		SELECT round((count(*) FILTER (WHERE expires_at > clock_timestamp()) * 100 / sample.percent)::numeric)::bigint AS live_keys,
			min(expires_at) FILTER (WHERE expires_at <= clock_timestamp()) AS oldest_expired,
			round((count(*) FILTER (WHERE finished_at IS NULL AND lease_until > clock_timestamp()) * 100 / sample.percent)::numeric)::bigint AS open_leases,
			min(created_at) FILTER (WHERE finished_at IS NULL AND lease_until > clock_timestamp()) AS oldest_lease
		FROM @schema@.idem_keys TABLESAMPLE SYSTEM (sample.percent)) k) g ON d.datname = current_database()
LEFT JOIN (SELECT min(since) AS oldest FROM @schema@.idem_transaction_claims) t ON d.datname = current_database()
WHERE s.datid IS NOT NULL OR d.datname = current_database();
$view$, '@schema@', schema), '@literal@', replace(schema, '''', ''''''));
	PERFORM set_config('search_path', script_path, true);
END $do$;

COMMENT ON VIEW idem_lease_claims IS
'the part of idem_in_flight that is about running leases';

COMMENT ON COLUMN idem_stat.failed IS 'claims finished as failed, by idem_fail or by idem_call with keep_errors';
COMMENT ON COLUMN idem_stat.exhausted IS 'idem_begin: abandoned claims that were not taken over, because of max_attempts';

REVOKE ALL ON TABLE idem_lease_claims FROM PUBLIC;

/*
 * The run of the server that moved idem_fence to the clock last.  Not dumped: a restored
 * database has a run of its own, since the original may have issued fences since the dump.
 */
CREATE SEQUENCE idem_fence_run AS bigint;
COMMENT ON SEQUENCE idem_fence_run IS 'the run of the server that has moved idem_fence past the fences of earlier runs';
REVOKE ALL ON SEQUENCE idem_fence_run FROM PUBLIC;

CREATE FUNCTION idem_fail(
	key text,
	error jsonb DEFAULT NULL,
	scope text DEFAULT NULL,
	fence bigint DEFAULT NULL,
	ttl interval DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_fail(text, jsonb, text, bigint, interval) IS
'finish a claim as failed: later callers get the error; returns the error';

CREATE FUNCTION idem_check()
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_check() IS
'raise the error now that the commit guard would raise at the end of this transaction';

CREATE FUNCTION idem_http_begin(
	key text,
	request text DEFAULT NULL,
	scope text DEFAULT NULL,
	ttl_s integer DEFAULT NULL,
	wait_ms integer DEFAULT NULL,
	lease_ms integer DEFAULT NULL,
	OUT run boolean,
	OUT status integer,
	OUT headers text,
	OUT body text,
	OUT retry_after integer,
	OUT replayed boolean,
	OUT fence bigint)
RETURNS record
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_http_begin(text, text, text, integer, integer, integer) IS
'claim the key of an HTTP request: run it, or send the answer';

CREATE FUNCTION idem_http_finish(
	key text,
	status integer,
	body text DEFAULT NULL,
	headers text DEFAULT NULL,
	scope text DEFAULT NULL,
	fence bigint DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_http_finish(text, integer, text, text, text, bigint) IS
'store the answer to an HTTP request, to commit with the work; returns the status';

CREATE FUNCTION idem_import(
	key text,
	result jsonb DEFAULT NULL,
	scope text DEFAULT NULL,
	created_at timestamptz DEFAULT NULL,
	expires_at timestamptz DEFAULT NULL,
	request jsonb DEFAULT NULL,
	failed boolean DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_import(text, jsonb, text, timestamptz, timestamptz, jsonb, boolean) IS
'store the answer of a request that was handled elsewhere, unless the key has a row: true if stored';

CREATE FUNCTION idem_import_many(
	keys text[],
	results jsonb[] DEFAULT NULL,
	scopes text[] DEFAULT NULL,
	created_at timestamptz[] DEFAULT NULL,
	expires_at timestamptz[] DEFAULT NULL,
	requests jsonb[] DEFAULT NULL,
	failed boolean[] DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_import_many(text[], jsonb[], text[], timestamptz[], timestamptz[], jsonb[], boolean[]) IS
'store the answers of a batch of requests that were handled elsewhere; returns how many were stored';

CREATE FUNCTION idem_tenant_support(internal)
RETURNS internal
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION idem_tenant_support(internal) IS
'planner support of the functions that idem_distribute() makes: refuses a null tenant';

CREATE FUNCTION idem_distribute(colocate_with regclass)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
	schema text;
	owner text;
	keys regclass;
	tenant_keys text;
	tenant_type text;
	tenant_column text;
	plain boolean;
	live bigint;
	node record;
	routine record;
	made regprocedure;
BEGIN
	IF colocate_with IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'table must not be null';
	END IF;
	IF current_setting('is_superuser') <> 'on' THEN
		RAISE insufficient_privilege USING MESSAGE = 'must be superuser to distribute idempotency keys';
	END IF;
	IF to_regclass('pg_catalog.pg_dist_partition') IS NULL THEN
		RAISE object_not_in_prerequisite_state USING MESSAGE = 'extension "citus" is not installed in this database',
			HINT = 'Create it, add the nodes, and distribute the table whose rows the keys protect.';
	END IF;
	IF (SELECT g.groupid FROM pg_catalog.pg_dist_local_group g) <> 0 THEN
		RAISE object_not_in_prerequisite_state USING MESSAGE = 'this node is not the coordinator of the cluster';
	END IF;

	SELECT format_type(a.atttypid, a.atttypmod),
		format_type(a.atttypid, a.atttypmod) || CASE WHEN c.oid <> t.typcollation THEN format(' COLLATE %s', c.oid::regcollation) ELSE '' END,
		t.oid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'text'::regtype, 'varchar'::regtype, 'uuid'::regtype)
			AND coalesce(c.collisdeterministic, true)
	INTO tenant_type, tenant_column, plain
	FROM pg_catalog.pg_dist_partition p
	JOIN pg_attribute a ON a.attrelid = p.logicalrelid AND a.attname = column_to_column_name(p.logicalrelid, p.partkey)
	JOIN pg_type t ON t.oid = a.atttypid
	LEFT JOIN pg_collation c ON c.oid = a.attcollation
	WHERE p.logicalrelid = colocate_with AND p.partmethod = 'h';
	IF tenant_type IS NULL THEN
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = format('table "%s" is not distributed by the hash of a column', colocate_with),
			HINT = format('Distribute it first: SELECT create_distributed_table(%L, ''tenant'').', colocate_with);
	END IF;
	/* equal tenants must have equal texts, since the text is the scope of the keys */
	IF NOT plain THEN
		RAISE feature_not_supported USING
			MESSAGE = format('cannot distribute idempotency keys by a tenant of type %s', tenant_column),
			HINT = 'A tenant can be a smallint, integer, bigint, uuid, text or varchar, with a deterministic collation.';
	END IF;

	SELECT e.extnamespace::regnamespace::text, c.oid, c.relowner::regrole::text
	INTO schema, keys, owner
	FROM pg_extension e JOIN pg_class c ON c.relnamespace = e.extnamespace AND c.relname = 'idem_keys'
	WHERE e.extname = 'idempotency';
	IF schema LIKE '"%' THEN
		RAISE feature_not_supported USING
			MESSAGE = format('cannot distribute idempotency keys from schema %s', schema),
			DETAIL = 'Citus does not quote the name of the schema in commands about functions.';
	END IF;
	IF NOT has_schema_privilege(trim('"' FROM owner), schema, 'USAGE') THEN
		RAISE insufficient_privilege USING
			MESSAGE = format('role %s, which owns table "%s", may not use schema %s', owner, keys, schema);
	END IF;
	tenant_keys := schema || '.idem_tenant_keys';
	FOR node IN
		SELECT r.nodename, r.nodeport
		FROM run_command_on_workers(
			'SELECT e.extversion || '' '' || c.relowner::pg_catalog.regrole || '' '' || e.extnamespace::pg_catalog.regnamespace '
			'FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_class c ON c.relnamespace = e.extnamespace AND c.relname = ''idem_keys'' '
			'WHERE e.extname = ''idempotency''') r
		WHERE r.result IS DISTINCT FROM (SELECT e.extversion || ' ' || owner || ' ' || schema FROM pg_extension e WHERE e.extname = 'idempotency')
	LOOP
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = format('node %s:%s lacks extension "idempotency" of the same version, schema and owner', node.nodename, node.nodeport),
			HINT = 'Install the same package on all nodes, and create or update the extension there.';
	END LOOP;

	/* a connection for each node, since Citus makes functions by one that has made nothing else */
	PERFORM set_config('citus.multi_shard_modify_mode', 'sequential', true);
	/* waits for claims, and keeps new ones out until all keys go to the new table */
	EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', keys);
	EXECUTE format('SELECT count(*) FROM %s WHERE expires_at > clock_timestamp()', keys) INTO live;
	live := live + (SELECT coalesce(sum(r.result::bigint), 0)
		FROM run_command_on_workers(format('SELECT count(*) FROM %s.idem_keys WHERE expires_at > clock_timestamp()', schema)) r);
	IF live > 0 THEN
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = format('table "%s" has %s keys that have not expired, on all nodes', keys, live),
			DETAIL = 'They would no longer be found, and their requests could run again.',
			HINT = 'Wait until they have expired.';
	END IF;
	IF to_regclass(tenant_keys) IS NULL THEN
		EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMMENTS, '
			'tenant %s NOT NULL, PRIMARY KEY (digest, tenant))', tenant_keys, keys, tenant_column);
		EXECUTE format('COMMENT ON TABLE %s IS %L', tenant_keys, 'idempotency keys, each beside the other rows of its tenant');
		EXECUTE format('ALTER TABLE %s OWNER TO %s', tenant_keys, owner);
		PERFORM create_distributed_table(tenant_keys, 'tenant', colocate_with => colocate_with::text);
	ELSIF EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = schema::regnamespace AND p.proname = 'idem_begin_for')
		OR NOT EXISTS (SELECT FROM pg_catalog.pg_dist_partition p JOIN pg_catalog.pg_dist_partition o ON o.colocationid = p.colocationid
			JOIN pg_class t ON t.oid = p.logicalrelid JOIN pg_class k ON k.oid = keys AND k.relowner = t.relowner
			WHERE p.logicalrelid = to_regclass(tenant_keys) AND o.logicalrelid = colocate_with) THEN
		RAISE duplicate_table USING MESSAGE = format('table "%s" already exists', tenant_keys);
	END IF;

	FOR routine IN
		SELECT p.proname || '_for' AS name,
			p.proname AS original,
			pg_get_function_result(p.oid) AS result,
			(SELECT string_agg(CASE a.mode WHEN 'o' THEN 'OUT ' ELSE '' END || format('%I ', a.name) || format_type(a.type, NULL)
					|| CASE WHEN a.n <= p.pronargs THEN coalesce(' DEFAULT ' || pg_get_function_arg_default(p.oid, a.n::integer), '') ELSE '' END,
					', ' ORDER BY a.n)
				FROM unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargnames, p.proargmodes) WITH ORDINALITY a (type, name, mode, n)
				WHERE a.mode IS DISTINCT FROM 't' AND a.name <> 'scope') AS parameters,
			(SELECT string_agg(format('%I => ', a.name)
					|| CASE a.name WHEN 'scope' THEN format('pg_catalog.format(''%%s'', %I.tenant)', p.proname || '_for')
						ELSE format('%I.%I', p.proname || '_for', a.name) END, ', ' ORDER BY a.n)
				FROM unnest(p.proargnames) WITH ORDINALITY a (name, n)
				WHERE a.n <= p.pronargs) AS arguments
		FROM pg_proc p
		JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
		JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'idempotency'
		WHERE p.proname IN ('idem_begin', 'idem_finish', 'idem_fail', 'idem_release', 'idem_extend', 'idem_checkpoint', 'idem_claim',
			'idem_claim_many', 'idem_call', 'idem_http_begin', 'idem_http_finish', 'idem_import', 'idem_lookup', 'idem_forget')
		ORDER BY p.proname
	LOOP
		EXECUTE format('CREATE FUNCTION %s.%I(tenant %s, %s) RETURNS %s LANGUAGE sql VOLATILE COST 1000 '
			'SUPPORT %s.idem_tenant_support AS %L',
			schema, routine.name, tenant_type, routine.parameters, routine.result, schema,
			format('SELECT * FROM %s.%I(%s)', schema, routine.original, routine.arguments));
		made := (SELECT p.oid FROM pg_proc p WHERE p.pronamespace = schema::regnamespace AND p.proname = routine.name);
		EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', made);
		EXECUTE format('COMMENT ON FUNCTION %s IS %L', made, routine.original || '() on the node that has the rows of the tenant');
		EXECUTE format('ALTER FUNCTION %s OWNER TO %s', made, owner);
		PERFORM create_distributed_function(made, '$1', colocate_with => tenant_keys, force_delegation => true);
	END LOOP;
END $function$;
COMMENT ON FUNCTION idem_distribute(regclass) IS
'distribute idempotency keys over a Citus cluster, by tenant, beside the rows of a table';

REVOKE ALL ON FUNCTION
	idem_fail(text, jsonb, text, bigint, interval),
	idem_check(),
	idem_http_begin(text, text, text, integer, integer, integer),
	idem_http_finish(text, integer, text, text, text, bigint),
	idem_import(text, jsonb, text, timestamptz, timestamptz, jsonb, boolean),
	idem_import_many(text[], jsonb[], text[], timestamptz[], timestamptz[], jsonb[], boolean[]),
	idem_tenant_support(internal),
	idem_distribute(regclass)
FROM PUBLIC;

/*
 * ALTER DEFAULT PRIVILEGES may have given others what was made here.  Only that: what
 * idem_grant() has given since CREATE EXTENSION stays.
 */
DO LANGUAGE plpgsql $$
DECLARE
	acl record;
	-- in the job of idem_finish, but for imports, which are in that of idem_forget
	new_functions text[] := ARRAY['idem_fail', 'idem_check', 'idem_http_begin', 'idem_http_finish',
		'idem_import', 'idem_import_many'];
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
		WHERE c.relname IN ('idem_lease_claims', 'idem_fence_run') AND a.grantee NOT IN (0::oid, c.relowner)
		UNION
		SELECT 'ROUTINE ' || p.oid::regprocedure, a.grantee
		FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass::oid AND m.objid = p.oid,
			aclexplode(p.proacl) a
		WHERE p.proname = ANY (new_functions || ARRAY['idem_tenant_support', 'idem_distribute']) AND a.grantee NOT IN (0::oid, p.proowner)
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
		FROM functions n
		JOIN functions o ON o.proname = CASE WHEN n.proname LIKE 'idem\_import%' THEN 'idem_forget' ELSE 'idem_finish' END,
			aclexplode(o.proacl) a
		WHERE n.proname = ANY (new_functions) AND a.grantee <> o.proowner
	LOOP
		EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %s%s', acl.object,
			CASE WHEN acl.grantee = 0::oid THEN 'PUBLIC' ELSE acl.grantee::regrole::text END,
			CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
	END LOOP;

	/*
	 * What a script grants counts as what CREATE EXTENSION gives.  pg_dump would leave it out,
	 * and the roles would lack it after a restore.  So it is made like any other GRANT.
	 */
	FOR acl IN
		SELECT p.oid, p.proowner
		FROM pg_extension e
		JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass::oid AND d.refobjid = e.oid
		JOIN pg_proc p ON d.classid = 'pg_proc'::regclass::oid AND d.objid = p.oid
		WHERE e.extname = 'idempotency' AND d.deptype = 'e' AND p.proname = ANY (new_functions)
	LOOP
		UPDATE pg_init_privs
		SET initprivs = ARRAY(SELECT item FROM unnest(initprivs) item, aclexplode(ARRAY[item]) a
			WHERE a.grantee = acl.proowner)
		WHERE classoid = 'pg_proc'::regclass::oid AND objoid = acl.oid;
		/* 'i', since PostgreSQL 17: a role that initial privileges name cannot be dropped */
		DELETE FROM pg_shdepend
		WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND classid = 'pg_proc'::regclass::oid AND objid = acl.oid AND deptype = 'i';
	END LOOP;
	PERFORM set_config('search_path', script_path, true);
END $$;

/* In a WHERE, what claims or counts comes after all other conditions. */
ALTER FUNCTION idem_begin(text, interval, text, jsonb, interval, interval, integer) COST 1000;
ALTER FUNCTION idem_finish(text, jsonb, text, bigint) COST 1000;
ALTER FUNCTION idem_release(text, text, bigint) COST 1000;
ALTER FUNCTION idem_extend(text, interval, text, bigint) COST 1000;
ALTER FUNCTION idem_checkpoint(text, text, jsonb, text, bigint, interval) COST 1000;
ALTER FUNCTION idem_claim(text, interval, text, jsonb) COST 1000;
ALTER FUNCTION idem_claim_many(text[], interval, text) COST 1000;
ALTER FUNCTION idem_call(text, text, jsonb, interval, text, interval, text[]) COST 1000;
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
COMMENT ON COLUMN idem_keys.fingerprint IS 'SHA-256 over the canonical form of the request, if one was given; zeros match every request';
COMMENT ON COLUMN idem_tokens.payload IS 'what a caller that redeems the token gets';
COMMENT ON TABLE idem_secrets IS 'keys of the HMACs in idem_codes; with them and a dump, live codes can be found out';
COMMENT ON COLUMN idem_stat.in_progress IS 'idem_begin and idem_call: another transaction or a lease held the key';

/*
 * The table comes last, since claims wait from here on.  It must come after the views: a
 * session that reads one has locked the view and then wants the table, so the other order would
 * deadlock.
 */
ALTER TABLE idem_keys ADD COLUMN failed boolean;
COMMENT ON COLUMN idem_keys.failed IS 'true if the claim was finished by a failure, else NULL';
