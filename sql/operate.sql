-- Looking up, forgetting, granting.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\set VERBOSITY sqlstate
\pset null -

-- look-up: what is committed
SELECT * FROM idem_lookup('k1');
BEGIN;
SELECT state FROM idem_begin('k1');
SELECT count(*) FROM idem_lookup('k1');
SELECT idem_finish('k1', '{"a": 1}');
SELECT count(*) FROM idem_lookup('k1');
SAVEPOINT s;
SELECT idem_claim('k2');
SELECT count(*) FROM idem_lookup('k2');
RELEASE s;
SELECT count(*) FROM idem_lookup('k2');
COMMIT;
SELECT state, result, attempt, phase, progress, lease_until, created_at <= finished_at AS begun,
	expires_at = finished_at + interval '24 hours' AS kept
FROM idem_lookup('k1');
SELECT state, result FROM idem_lookup('k2');
SELECT count(*) FROM idem_lookup('k1', 'other scope');
-- leaves no trace: no xid, no lock on the key, no SIREAD lock; nor do replays
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT state FROM idem_lookup('k1');
SELECT state FROM idem_begin('k2');
SELECT idem_claim('k2');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid, count(*) FILTER (WHERE locktype = 'advisory') AS advisory,
	count(*) FILTER (WHERE mode = 'SIReadLock') AS siread
FROM pg_locks WHERE pid = pg_backend_pid();
COMMIT;
-- of a snapshot
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT state FROM idem_lookup('k1');
COMMIT;
-- expired
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key = 'k2';
SELECT count(*) FROM idem_lookup('k2');
-- usable where only stable functions are
CREATE FUNCTION known(key text) RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC SELECT EXISTS (SELECT FROM idem_lookup(key)); END;
SELECT known('k1'), known('k2');
DROP FUNCTION known;

-- forget: the request can run again
SELECT idem_forget('unknown');
SELECT idem_forget('k1', 'other scope');
SELECT idem_forget('k1');
SELECT idem_forget('k1');
SELECT state, idem_finish('k1', '"again"') FROM idem_begin('k1');
-- an expired key is absent; its row goes all the same
SELECT idem_forget('k2');
SELECT count(*) FROM idem_keys WHERE key = 'k2';
-- with the transaction, or not
BEGIN;
SELECT idem_forget('k1');
SELECT count(*) FROM idem_lookup('k1');
SELECT state FROM idem_begin('k1');
SELECT idem_finish('k1', '"in its place"');
ROLLBACK;
SELECT state, result FROM idem_lookup('k1');
BEGIN;
SELECT idem_forget('k1');
SAVEPOINT s;
SELECT state FROM idem_begin('k1');
SELECT idem_finish('k1', '"in its place"');
ROLLBACK TO s;
SELECT idem_claim('k1');
SELECT idem_forget('k1');
SELECT idem_claim('k1');
COMMIT;
SELECT state, result FROM idem_lookup('k1');
-- what this transaction has written itself
BEGIN;
SELECT state FROM idem_begin('k3');
SELECT idem_finish('k3');
SELECT idem_forget('k3');
COMMIT;
SELECT idem_forget('k3');
BEGIN;
SELECT idem_claim('k3'), idem_forget('k3'), idem_claim('k3');
COMMIT;
SELECT state FROM idem_lookup('k3');
-- an open claim is not forgotten: it is not written
BEGIN;
SELECT state FROM idem_begin('k4');
SELECT idem_forget('k4');
COMMIT;

-- forget a tenant
SELECT count(*) FROM idem_claim_many('{a,b,c}', scope => 'tenant 1'), idem_claim('a', scope => 'tenant 2');
SELECT count(*) FROM idem_claim_many('{a,b}');
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key = 'c';
BEGIN;
SELECT idem_forget_scope('tenant 1');
ROLLBACK;
SELECT idem_forget_scope('tenant');
SELECT idem_forget_scope('Tenant 1');
SELECT idem_forget_scope('tenant 1'' OR true OR scope = ''');
SELECT scope, count(*) FROM idem_keys WHERE key IN ('a', 'b', 'c') GROUP BY scope ORDER BY scope;
SELECT idem_forget_scope('tenant 1');
SELECT idem_forget_scope('tenant 1');
SELECT scope, count(*) FROM idem_keys WHERE key IN ('a', 'b', 'c') GROUP BY scope ORDER BY scope;
SELECT idem_claim('a', scope => 'tenant 1');
SELECT idem_forget_scope('') > 0;
SELECT scope, count(*) FROM idem_keys WHERE scope IN ('', 'tenant 1', 'tenant 2') GROUP BY scope ORDER BY scope;

-- grants
CREATE ROLE regress_idem_app;
CREATE ROLE regress_idem_operator;
CREATE ROLE "regress_idem Quoted""Role";
CREATE FUNCTION may(who regrole) RETURNS text
LANGUAGE sql BEGIN ATOMIC
	SELECT coalesce(string_agg(proname, ' ' ORDER BY proname), 'nothing')
	FROM pg_proc
	WHERE starts_with(proname, 'idem_') AND pronamespace = 'public'::regnamespace
		AND has_function_privilege(who, oid, 'EXECUTE');
END;
SELECT may('regress_idem_app');
SELECT idem_grant('regress_idem_app');
SELECT may('regress_idem_app');
SELECT idem_grant('regress_idem_app', ARRAY['lookup']);
SELECT may('regress_idem_app');
SELECT idem_grant('regress_idem_app', ARRAY['lookup', 'lookup']);
SELECT idem_revoke('regress_idem_app', ARRAY['claims']);
SELECT may('regress_idem_app');
SELECT idem_revoke('regress_idem_app', '{lookup}');
SELECT may('regress_idem_app');
SELECT idem_grant('regress_idem_app', '{call}');
SELECT may('regress_idem_app');
SELECT idem_revoke('regress_idem_app', '{call}');
SELECT may('regress_idem_app');
SELECT idem_grant('regress_idem_app', '{tokens}');
SELECT may('regress_idem_app');
SELECT idem_revoke('regress_idem_app', '{tokens}');
SELECT may('regress_idem_app');
SELECT idem_grant('regress_idem_operator', '{operate}');
SELECT may('regress_idem_operator');
SELECT idem_grant('regress_idem_operator', '{lookup}');
SELECT idem_grant('regress_idem_operator', '{throttle}');
SELECT may('regress_idem_operator');
SELECT idem_grant('"regress_idem Quoted""Role"', '{claims,lookup}');
SELECT may('"regress_idem Quoted""Role"');
SELECT idem_revoke('"regress_idem Quoted""Role"');
SELECT may('"regress_idem Quoted""Role"');
SELECT idem_revoke('"regress_idem Quoted""Role"', '{lookup}');
SELECT idem_grant('"regress_idem Quoted""Role"', '{}');
SELECT may('"regress_idem Quoted""Role"');
SELECT has_schema_privilege('regress_idem_app', 'public', 'USAGE');
-- bad calls, that change nothing
SELECT idem_grant('regress_idem_app', '{claims,nonsense}');
SELECT idem_grant('regress_idem_app', ARRAY['claims', NULL]);
SELECT idem_grant('regress_idem_app', '{Claims}');
SELECT idem_grant('regress_idem_app', '{""}');
SELECT idem_grant(NULL);
SELECT idem_revoke(NULL, '{claims}');
SELECT idem_revoke('regress_idem_app', '{nonsense}');
SELECT idem_grant('regress_idem_no_such_role');
SELECT may('regress_idem_app');
\set VERBOSITY default
SELECT idem_grant('regress_idem_app', '{nonsense}');
SELECT idem_grant(NULL);
\set VERBOSITY sqlstate

-- what an application can do, and what not
SELECT idem_grant('regress_idem_app');
SET ROLE regress_idem_app;
BEGIN;
SELECT state FROM idem_begin('app', scope => 'app', request => '1');
SELECT idem_finish('app', '{"by": "app"}', 'app');
COMMIT;
SELECT state, result FROM idem_begin('app', scope => 'app', request => '1.0');
SELECT idem_claim('app 2'), idem_claim('app 2');
SELECT * FROM idem_claim_many('{app 2,app 3}');
BEGIN;
SELECT state FROM idem_begin('app 4');
SELECT idem_release('app 4');
COMMIT;
SELECT idem_lookup('app');
SELECT idem_digest('app');
SELECT idem_forget('app', 'app');
SELECT idem_forget_scope('app');
SELECT idem_grant('regress_idem_app');
SELECT idem_grant('regress_idem_app', '{operate}');
SELECT idem_revoke('regress_idem_operator');
SELECT count(*) FROM idem_keys;
SELECT key FROM idem_keys WHERE false;
DELETE FROM idem_keys;
UPDATE idem_keys SET result = NULL;
INSERT INTO idem_keys SELECT;
TRUNCATE idem_keys;
CREATE INDEX ON idem_keys (key);
BEGIN;
LOCK idem_keys IN ACCESS SHARE MODE;
ROLLBACK;
CREATE TRIGGER t BEFORE INSERT ON idem_keys FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
-- who may grant the functions may use idem_grant, but it lends no rights
RESET ROLE;
GRANT EXECUTE ON FUNCTION idem_grant, idem_revoke TO regress_idem_app;
SET ROLE regress_idem_app;
SELECT idem_grant('regress_idem_app', '{operate}');
-- GRANT only warns, that nothing was granted
SET client_min_messages = error;
SELECT idem_grant('regress_idem_operator', '{claims}');
RESET client_min_messages;
RESET ROLE;
SELECT may('regress_idem_app');
SELECT may('regress_idem_operator');
REVOKE EXECUTE ON FUNCTION idem_grant, idem_revoke FROM regress_idem_app;
-- an operator
SET ROLE regress_idem_operator;
SELECT state, result FROM idem_lookup('app', 'app');
SELECT idem_forget('app', 'app');
SELECT idem_forget_scope('app');
SELECT idem_forget('app 2');
SELECT idem_digest('app') IS NOT NULL;
SELECT idem_begin('app');
SELECT idem_claim('app');
SELECT count(*) FROM idem_keys;
RESET ROLE;
-- given to a group
CREATE ROLE regress_idem_member IN ROLE regress_idem_app;
SET ROLE regress_idem_member;
SELECT idem_claim('member');
RESET ROLE;
-- and taken back
SELECT idem_revoke('regress_idem_app');
SELECT idem_revoke('regress_idem_operator', '{operate,lookup,claims}');
SELECT may('regress_idem_app'), may('regress_idem_operator'), may('regress_idem_member');
SET ROLE regress_idem_app;
SELECT idem_claim('app');
RESET ROLE;

-- a claim in another role's function belongs to the caller's transaction
SELECT idem_grant('regress_idem_app');
CREATE FUNCTION definer(key text) RETURNS text
LANGUAGE sql SECURITY DEFINER BEGIN ATOMIC SELECT state FROM idem_begin(key); END;
ALTER FUNCTION definer OWNER TO regress_idem_app;
SET ROLE regress_idem_operator;
SELECT definer('definer');
SELECT idem_finish('definer');
RESET ROLE;
BEGIN;
SELECT definer('definer');
SELECT idem_finish('definer');
COMMIT;
DROP FUNCTION definer;

DROP FUNCTION may;
DROP OWNED BY regress_idem_app, regress_idem_operator, regress_idem_member, "regress_idem Quoted""Role";
DROP ROLE regress_idem_member;
DROP ROLE regress_idem_app, regress_idem_operator, "regress_idem Quoted""Role";
DELETE FROM idem_keys;

-- default privileges, as hosted platforms set them, give nothing of it away
BEGIN;
CREATE ROLE regress_idem_web;
DROP EXTENSION idempotency;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO regress_idem_web;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO regress_idem_web, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO regress_idem_web;
CREATE EXTENSION idempotency;
CREATE TABLE control ();
SELECT has_table_privilege('regress_idem_web', 'control', 'SELECT') AS control,
	has_table_privilege('regress_idem_web', 'idem_keys', 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE') AS keys,
	has_sequence_privilege('regress_idem_web', 'idem_fence', 'SELECT, UPDATE, USAGE') AS fence,
	has_sequence_privilege('regress_idem_web', 'idem_fence_run', 'SELECT, UPDATE, USAGE') AS fence_run,
	(SELECT count(*) FROM pg_proc WHERE proname LIKE 'idem\_%' AND has_function_privilege('regress_idem_web', oid, 'EXECUTE')) AS functions;
ROLLBACK;
