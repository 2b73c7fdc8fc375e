-- A table that is not as CREATE EXTENSION made it: refused, or treated right, and usable again afterwards.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\set VERBOSITY sqlstate
-- keys of other tests are not what this one is about
DELETE FROM idem_keys;
SELECT idem_claim('there');

-- what each entry point says; every one in a savepoint of its own
CREATE FUNCTION try(call text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'SELECT ' || call;
	RETURN 'OK';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;
CREATE FUNCTION try_all(OUT begins text, OUT finishes text, OUT claims text, OUT claims_many text, OUT looks_up text,
	OUT forgets text, OUT forgets_scope text)
LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		begins := try($c$idem_begin('there')$c$);
		finishes := try($c$idem_finish('open')$c$);
		claims := try($c$idem_claim('new')$c$);
		claims_many := try($c$idem_claim_many('{new 1,new 2}')$c$);
		looks_up := try($c$idem_lookup('there')$c$);
		forgets := try($c$idem_forget('there')$c$);
		forgets_scope := try($c$idem_forget_scope('none')$c$);
		RAISE SQLSTATE 'OK000';
	EXCEPTION WHEN SQLSTATE 'OK000' THEN
		NULL;
	END;
END
$$;
CREATE FUNCTION message(call text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'SELECT ' || call;
	RETURN 'OK';
EXCEPTION WHEN OTHERS THEN
	RETURN regexp_replace(SQLERRM, '\d+\.\d+(\.\d+)?', 'X.Y.Z');
END
$$;

-- as it should be; here and below, a claim is begun while all is well, so that finish has one
BEGIN;
SELECT state FROM idem_begin('open');
SELECT * FROM try_all();
SELECT idem_finish('open', '1');
ROLLBACK;

-- not logged
BEGIN;
SELECT state FROM idem_begin('open');
ALTER TABLE idem_keys SET UNLOGGED;
SELECT * FROM try_all();
ALTER TABLE idem_keys SET LOGGED;
SELECT * FROM try_all();
ROLLBACK;
-- row triggers and statement triggers would not fire
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN coalesce(NEW, OLD); END $$;
BEGIN;
SELECT state FROM idem_begin('open');
CREATE TRIGGER regress_row BEFORE INSERT ON idem_keys FOR EACH ROW EXECUTE FUNCTION nothing();
SELECT * FROM try_all();
ALTER TABLE idem_keys DISABLE TRIGGER regress_row;
SELECT claims FROM try_all();
ALTER TABLE idem_keys ENABLE ALWAYS TRIGGER regress_row;
SELECT claims FROM try_all();
DROP TRIGGER regress_row ON idem_keys;
SELECT claims FROM try_all();
CREATE TRIGGER regress_statement AFTER DELETE ON idem_keys EXECUTE FUNCTION nothing();
SELECT claims FROM try_all();
DROP TRIGGER regress_statement ON idem_keys;
CREATE TRIGGER regress_both AFTER UPDATE OR TRUNCATE ON idem_keys EXECUTE FUNCTION nothing();
SELECT claims FROM try_all();
DROP TRIGGER regress_both ON idem_keys;
-- an owner's safety catch does no harm
CREATE TRIGGER regress_truncate BEFORE TRUNCATE ON idem_keys EXECUTE FUNCTION nothing();
SELECT * FROM try_all();
SELECT idem_finish('open', '1');
COMMIT;
SELECT state, result FROM idem_lookup('open');
SELECT idem_forget('open');
DROP TRIGGER regress_truncate ON idem_keys;
DROP FUNCTION nothing;
-- a foreign key to it, which is a row trigger as well
BEGIN;
SELECT state FROM idem_begin('open');
CREATE TABLE regress_child (digest uuid REFERENCES idem_keys);
SELECT claims, forgets FROM try_all();
DROP TABLE regress_child;
SELECT claims, forgets FROM try_all();
ROLLBACK;
-- rules
BEGIN;
SELECT state FROM idem_begin('open');
CREATE RULE regress_rule AS ON INSERT TO idem_keys DO ALSO NOTIFY regress_idem;
SELECT * FROM try_all();
DROP RULE regress_rule ON idem_keys;
SELECT claims FROM try_all();
ROLLBACK;
-- inheritance
BEGIN;
SELECT state FROM idem_begin('open');
CREATE TABLE regress_child () INHERITS (idem_keys);
SELECT * FROM try_all();
DROP TABLE regress_child;
SELECT claims FROM try_all();
CREATE TABLE regress_child () INHERITS (idem_keys);
SELECT claims FROM try_all();
ROLLBACK;
-- constraints of the owner's, that would have to be checked
BEGIN;
SELECT state FROM idem_begin('open');
ALTER TABLE idem_keys ADD CONSTRAINT regress_check CHECK (key NOT LIKE 'new%');
SELECT claims IN ('0A000', '23514') AS claims_not, claims_many IN ('0A000', '23514') AS claims_many_not FROM try_all();
ALTER TABLE idem_keys DROP CONSTRAINT regress_check;
SELECT claims FROM try_all();
DELETE FROM idem_keys;
ALTER TABLE idem_keys ALTER COLUMN phase SET NOT NULL;
SELECT claims IN ('0A000', '55000', '23502') AS claims_not, finishes IN ('0A000', '55000', '23502') AS finishes_not FROM try_all();
ROLLBACK;

-- columns
BEGIN;
SELECT state FROM idem_begin('open');
ALTER TABLE idem_keys ADD COLUMN regress text DEFAULT 'mine';
SELECT * FROM try_all();
-- undone by hand
ALTER TABLE idem_keys DROP COLUMN regress;
SELECT * FROM try_all();
SELECT idem_finish('open', '{"after": "undone"}');
SELECT state, result, attempt FROM idem_begin('open');
ROLLBACK;
BEGIN;
SELECT state FROM idem_begin('open');
ALTER TABLE idem_keys RENAME COLUMN progress TO regress;
SELECT * FROM try_all();
ALTER TABLE idem_keys RENAME COLUMN regress TO progress;
SELECT claims FROM try_all();
ALTER TABLE idem_keys ALTER COLUMN attempt TYPE bigint;
SELECT claims FROM try_all();
ROLLBACK;
BEGIN;
ALTER EXTENSION idempotency DROP TABLE idem_keys;
SELECT begins, claims, looks_up, forgets FROM try_all();
ALTER EXTENSION idempotency ADD TABLE idem_keys;
SELECT begins, claims, looks_up, forgets FROM try_all();
ROLLBACK;

-- without the primary key nothing keeps duplicates out
BEGIN;
SELECT state FROM idem_begin('open');
ALTER TABLE idem_keys DROP CONSTRAINT idem_keys_pkey;
SELECT * FROM try_all();
CREATE UNIQUE INDEX regress_unique ON idem_keys (digest);
SELECT claims FROM try_all();
DROP INDEX regress_unique;
ALTER TABLE idem_keys ADD PRIMARY KEY (key, digest);
SELECT claims FROM try_all();
ALTER TABLE idem_keys DROP CONSTRAINT idem_keys_pkey;
ALTER TABLE idem_keys ADD PRIMARY KEY (key);
SELECT claims FROM try_all();
ALTER TABLE idem_keys DROP CONSTRAINT idem_keys_pkey;
ALTER TABLE idem_keys ADD CONSTRAINT regress_pkey PRIMARY KEY (digest) DEFERRABLE;
SELECT claims IN ('0A000', '55000') AS claims_not FROM try_all();
ALTER TABLE idem_keys DROP CONSTRAINT regress_pkey;
ALTER TABLE idem_keys ADD CONSTRAINT regress_pkey PRIMARY KEY (digest);
SELECT * FROM try_all();
SELECT idem_finish('open', '1');
SELECT state FROM idem_begin('open');
ROLLBACK;
-- rewritten, its files replaced
BEGIN;
SELECT state FROM idem_begin('open');
CLUSTER idem_keys USING idem_keys_pkey;
REINDEX TABLE idem_keys;
SELECT * FROM try_all();
SELECT idem_finish('open', '1');
COMMIT;
VACUUM FULL idem_keys;
SELECT state, result FROM idem_begin('open');
BEGIN;
SELECT state FROM idem_begin('emptied');
TRUNCATE idem_keys;
SELECT state FROM idem_begin('open');
SELECT idem_finish('emptied'), idem_finish('open');
ROLLBACK;
SELECT state, result FROM idem_begin('open');

-- what it says
\set VERBOSITY default
BEGIN;
ALTER TABLE idem_keys SET UNLOGGED;
SELECT idem_begin('there');
ROLLBACK;
BEGIN;
CREATE RULE regress_rule AS ON DELETE TO idem_keys DO INSTEAD NOTHING;
SELECT idem_claim('new');
ROLLBACK;
BEGIN;
ALTER TABLE idem_keys ADD COLUMN regress text;
SELECT message($c$idem_begin('there')$c$);
ROLLBACK;
BEGIN;
ALTER TABLE idem_keys DROP CONSTRAINT idem_keys_pkey;
SELECT idem_begin('there');
ROLLBACK;
\set VERBOSITY sqlstate

-- an owner's own unique index speaks for itself, 23505 and not 40001, and never for ever
CREATE UNIQUE INDEX regress_unique ON idem_keys ((left(key, 4))) WHERE scope = 'unique';
SET statement_timeout = '30s';
SELECT idem_claim('the first', scope => 'unique');
BEGIN;
SELECT state FROM idem_begin('the second', scope => 'unique');
SAVEPOINT s;
SELECT idem_finish('the second', scope => 'unique');
ROLLBACK TO s;
SELECT idem_release('the second', 'unique');
SELECT idem_claim('the third', scope => 'unique');
ROLLBACK TO s;
SELECT * FROM idem_claim_many('{another one,the third}', scope => 'unique');
ROLLBACK;
-- also where an expired row is replaced
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE scope = 'unique';
SELECT idem_claim('the first', scope => 'unique');
SELECT idem_claim('the third', scope => 'unique');
SELECT key FROM idem_keys WHERE scope = 'unique';
RESET statement_timeout;
DROP INDEX regress_unique;
-- an exclusion constraint, too
SET statement_timeout = '30s';
ALTER TABLE idem_keys ADD CONSTRAINT regress_exclude EXCLUDE ((left(key, 4)) WITH =) WHERE (scope = 'exclude');
SELECT idem_claim('the first', scope => 'exclude');
SELECT idem_claim('the third', scope => 'exclude');
SELECT state, idem_finish('the second', scope => 'exclude') FROM idem_begin('the second', scope => 'exclude');
SELECT * FROM idem_claim_many('{another one,the third}', scope => 'exclude');
SELECT key FROM idem_keys WHERE scope = 'exclude';
ALTER TABLE idem_keys DROP CONSTRAINT regress_exclude;
RESET statement_timeout;

-- an owner's expression index runs as the owner, and nothing of the caller's does
CREATE ROLE regress_idem_owner;
CREATE ROLE regress_idem_caller;
CREATE SCHEMA regress_idem_hostile;
GRANT USAGE ON SCHEMA regress_idem_hostile TO PUBLIC;
SELECT idem_grant('regress_idem_caller');
CREATE FUNCTION regress_indexed(key text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RAISE NOTICE 'indexed % as %', upper(key), current_user;
	RETURN key;
END
$$;
CREATE FUNCTION regress_idem_hostile.upper(text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RAISE WARNING 'somebody else''s function as %', current_user;
	RETURN $1;
END
$$;
TRUNCATE idem_keys;
CREATE INDEX regress_expression ON idem_keys (public.regress_indexed(key));
ALTER TABLE idem_keys OWNER TO regress_idem_owner;
\set VERBOSITY terse
\set SHOW_CONTEXT never
SET ROLE regress_idem_caller;
SELECT idem_claim('claimed');
SELECT * FROM idem_claim_many('{in a batch}');
SELECT state, idem_finish('finished') FROM idem_begin('finished');
SELECT current_user;
-- with a shadowing function of the caller's
SET search_path = regress_idem_hostile, pg_catalog, public;
SELECT public.idem_claim('hostile 1');
SELECT * FROM public.idem_claim_many('{hostile 2}');
SELECT state, public.idem_finish('hostile 3') FROM public.idem_begin('hostile 3');
SHOW search_path;
RESET search_path;
SELECT current_user;
RESET ROLE;
\set VERBOSITY sqlstate
-- nor can it leave anything behind
CREATE FUNCTION regress_leave() RETURNS void
LANGUAGE plpgsql AS $$ BEGIN CREATE TEMPORARY TABLE left_behind (); END $$;
CREATE OR REPLACE FUNCTION regress_indexed(key text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM public.regress_leave();
	RETURN key;
END
$$;
SET ROLE regress_idem_caller;
SELECT idem_claim('restricted');
-- after an error, the session does not stay the owner
SELECT current_user;
RESET ROLE;
CREATE OR REPLACE FUNCTION regress_indexed(key text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RAISE SQLSTATE 'XX999';
END
$$;
SET ROLE regress_idem_caller;
BEGIN;
SAVEPOINT s;
SELECT idem_claim('raises');
ROLLBACK TO s;
SELECT current_user;
SELECT state FROM idem_begin('raises');
SAVEPOINT s;
SELECT idem_finish('raises');
ROLLBACK TO s;
SELECT current_user;
SELECT state FROM idem_begin('raises');
ROLLBACK;
RESET ROLE;
DROP INDEX regress_expression;
SET ROLE regress_idem_caller;
SELECT idem_claim('restricted'), idem_claim('raises');
RESET ROLE;

-- the table's owner is who the store is; the owner of the extension does not matter
SELECT idem_forget_scope('') > 0;
REVOKE ALL ON idem_keys FROM regress_idem_owner;
SET ROLE regress_idem_caller;
SELECT idem_claim('owner without privileges');
RESET ROLE;
ALTER TABLE idem_keys OWNER TO CURRENT_USER;
-- row security is for those who read the table by themselves
ALTER TABLE idem_keys ENABLE ROW LEVEL SECURITY;
SET ROLE regress_idem_caller;
SELECT idem_claim('row security'), idem_claim('row security');
RESET ROLE;
ALTER TABLE idem_keys DISABLE ROW LEVEL SECURITY;

DROP FUNCTION regress_indexed, regress_leave, regress_idem_hostile.upper;
DROP SCHEMA regress_idem_hostile;
DROP OWNED BY regress_idem_caller, regress_idem_owner;
DROP ROLE regress_idem_caller, regress_idem_owner;
-- an index that is made between begin and finish gets the row's entry as well, and that of each later row
BEGIN;
SELECT state FROM idem_begin('indexed open');
CREATE INDEX regress_made ON idem_keys (key text_pattern_ops);
SELECT idem_finish('indexed open'), idem_claim('indexed claim');
SELECT * FROM idem_claim_many('{indexed many}');
COMMIT;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT key FROM idem_keys WHERE key LIKE 'indexed %' ORDER BY 1;
RESET enable_seqscan;
RESET enable_bitmapscan;
-- and one that is dropped gets none
BEGIN;
SELECT state FROM idem_begin('not indexed');
DROP INDEX regress_made;
SELECT idem_finish('not indexed'), idem_claim('not indexed');
COMMIT;
-- emptied: the begin has seen a row that is there no more, and the finish inserts
BEGIN;
SELECT state FROM idem_begin('emptied');
TRUNCATE idem_keys;
SELECT idem_finish('emptied', '1'), idem_claim('not indexed');
SELECT state, result FROM idem_begin('emptied');
COMMIT;

DROP FUNCTION try_all, try, message;
SELECT idem_claim('as ever');
DELETE FROM idem_keys;
