-- idempotency.default_scope: the scope wherever a call gives none.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\set VERBOSITY sqlstate

CREATE FUNCTION work(a text) RETURNS text LANGUAGE sql AS 'SELECT upper(a)';
SELECT * FROM idem_claim_many('{none}');
SELECT scope = '' AS empty FROM idem_keys WHERE key = 'none';
SHOW idempotency.default_scope;
SET idempotency.default_scope = 'tenant 1';

-- each function
BEGIN;
SELECT state FROM idem_begin('k');
SELECT idem_finish('k', '"of tenant 1"');
SELECT state FROM idem_begin('released');
SELECT idem_release('released');
SELECT state FROM idem_begin('leased', lease => '1 hour');
SELECT idem_extend('leased', '2 hours') > now() AS extended;
SELECT idem_checkpoint('leased', 'phase') > now() AS recorded;
SELECT idem_claim('claimed');
SELECT * FROM idem_claim_many('{many 1,many 2}');
SELECT state, result FROM idem_call('called', 'work', '{"a": "a"}');
COMMIT;
SELECT key, scope FROM idem_keys WHERE scope IN ('', 'tenant 1', 'tenant 2') AND key IN
	('k', 'released', 'leased', 'claimed', 'many 1', 'many 2', 'called') ORDER BY key;
SELECT state, result FROM idem_lookup('k');
SELECT state, result FROM idem_begin('k');

-- another tenant gets no answer of the first one's
SET idempotency.default_scope = 'tenant 2';
SELECT count(*) FROM idem_lookup('k');
SELECT idem_forget('k');
BEGIN;
SELECT state, result FROM idem_begin('k');
ROLLBACK;
-- a scope that is given counts, the empty one too
SELECT state, result FROM idem_begin('k', scope => 'tenant 1');
SELECT idem_claim('k', scope => ''), idem_claim('k', scope => ''), idem_claim('k');
SELECT idem_forget('k', ''), idem_forget('k'), idem_forget('k', 'tenant 1');

-- as of each call
BEGIN;
SET LOCAL idempotency.default_scope = 'tenant 3';
SELECT state FROM idem_begin('local');
SET LOCAL idempotency.default_scope = 'tenant 4';
SAVEPOINT s;
SELECT idem_finish('local');
ROLLBACK TO s;
SELECT idem_finish('local', '1', 'tenant 3');
COMMIT;
SHOW idempotency.default_scope;

-- idempotency.require_scope is satisfied, unless the default is empty
SET idempotency.require_scope = on;
SELECT idem_claim('required'), idem_claim('required', scope => 'given');
SELECT idem_claim('required', scope => '');
\set VERBOSITY default
SET idempotency.default_scope = '';
SELECT idem_claim('required');
\set VERBOSITY sqlstate
RESET idempotency.require_scope;

-- a digest is immutable, so no setting goes into it
SET idempotency.default_scope = 'tenant 1';
SELECT idem_digest('k') = idem_digest('k', '') AS immutable;

-- the trigger has a default of its own
CREATE TABLE events (id text);
CREATE TRIGGER once AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION idem_once('id');
INSERT INTO events VALUES ('e');
SELECT scope FROM idem_keys WHERE key = 'e';
DROP TABLE events;

-- too long for a scope
SELECT set_config('idempotency.default_scope', repeat('s', 1025), false) IS NULL AS set;
\set VERBOSITY terse
SELECT idem_claim('long');

-- it comes with a role
CREATE ROLE regress_idem_tenant;
ALTER ROLE regress_idem_tenant SET idempotency.default_scope = 'of the role';
SELECT setconfig FROM pg_db_role_setting WHERE setrole = 'regress_idem_tenant'::regrole;
DROP ROLE regress_idem_tenant;

RESET idempotency.default_scope;
DROP FUNCTION work;
SELECT idem_forget('none');
SELECT idem_forget_scope('tenant 1'), idem_forget_scope('tenant 2'), idem_forget_scope('tenant 3'), idem_forget_scope('given');
