/* idempotency--0.2.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION idempotency" to load this file. \quit

/*
 * Fixed-width columns first, so that no padding is stored.  Indexes may only
 * be on columns that never change: digest, created_at.  The updates of leased
 * claims are HOT then; the fillfactor leaves space for their rows to grow.
 *
 * Rows come, and expire after a while.  VACUUM should make their space available
 * soon, and should not lock the table to give back pages that will be needed again.
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
	failed boolean,
	CONSTRAINT idem_keys_pkey PRIMARY KEY (digest)
) WITH (fillfactor = 90, vacuum_truncate = off,
	autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

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
COMMENT ON COLUMN idem_keys.fingerprint IS 'SHA-256 over the canonical form of the request, if one was given; zeros match every request';
COMMENT ON COLUMN idem_keys.scope IS 'tenant or endpoint that the key belongs to; empty if none was given';
COMMENT ON COLUMN idem_keys.key IS 'key chosen by the client';
COMMENT ON COLUMN idem_keys.phase IS 'last recovery point of a leased claim';
COMMENT ON COLUMN idem_keys.progress IS 'data of the last recovery point of a leased claim';
COMMENT ON COLUMN idem_keys.result IS 'result that later callers get';
COMMENT ON COLUMN idem_keys.failed IS 'true if the claim was finished by a failure, else NULL';

REVOKE ALL ON TABLE idem_keys FROM PUBLIC;

-- never CYCLE nor CACHE: a fence must not be issued twice, nor out of order
CREATE SEQUENCE idem_fence AS bigint;
COMMENT ON SEQUENCE idem_fence IS 'fences of leased claims';
REVOKE ALL ON SEQUENCE idem_fence FROM PUBLIC;

/*
 * The run of the server that moved idem_fence to the clock last.  Not dumped: a restored
 * database has a run of its own, since the original may have issued fences since the dump.
 */
CREATE SEQUENCE idem_fence_run AS bigint;
COMMENT ON SEQUENCE idem_fence_run IS 'the run of the server that has moved idem_fence past the fences of earlier runs';
REVOKE ALL ON SEQUENCE idem_fence_run FROM PUBLIC;

/*
 * Tokens and codes.  No column holds one; indexes are on columns that never
 * change, so that a redeem and a guess are HOT updates.
 */
CREATE TABLE idem_tokens (
	digest uuid NOT NULL,
	issued_at timestamptz NOT NULL,
	expires_at timestamptz NOT NULL,
	used_at timestamptz,
	verifier bytea NOT NULL,
	purpose text NOT NULL,
	subject text,
	payload jsonb,
	CONSTRAINT idem_tokens_pkey PRIMARY KEY (digest)
) WITH (fillfactor = 90, vacuum_truncate = off,
	autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

-- for revoking all tokens of a subject
CREATE INDEX idem_tokens_subject_idx ON idem_tokens (subject, purpose) WHERE subject IS NOT NULL;

COMMENT ON TABLE idem_tokens IS
'one-time tokens, used and expired ones until they are purged: as in idem_keys, a row is dead from expires_at on, used or not, and rows lie in the order of issued_at';
COMMENT ON COLUMN idem_tokens.digest IS 'first half of a SHA-256 over purpose and token';
COMMENT ON COLUMN idem_tokens.issued_at IS 'when the token was issued';
COMMENT ON COLUMN idem_tokens.expires_at IS 'from then on the token is expired, and the row may be deleted';
COMMENT ON COLUMN idem_tokens.used_at IS 'when the token was redeemed';
COMMENT ON COLUMN idem_tokens.verifier IS 'second half of the SHA-256';
COMMENT ON COLUMN idem_tokens.purpose IS 'what the token is for; it is unknown for anything else';
COMMENT ON COLUMN idem_tokens.subject IS 'whose token it is, if that was given';
COMMENT ON COLUMN idem_tokens.payload IS 'what a caller that redeems the token gets';

CREATE TABLE idem_codes (
	digest uuid NOT NULL,
	series uuid NOT NULL,
	secret uuid NOT NULL,
	issued_at timestamptz NOT NULL,
	expires_at timestamptz NOT NULL,
	valid_until timestamptz NOT NULL,
	counted_until timestamptz NOT NULL,
	used_at timestamptz,
	attempts integer NOT NULL,
	max_attempts integer NOT NULL,
	nonce bytea NOT NULL,
	mac bytea NOT NULL,
	purpose text NOT NULL,
	subject text NOT NULL,
	CONSTRAINT idem_codes_pkey PRIMARY KEY (digest)
) WITH (fillfactor = 90, vacuum_truncate = off,
	autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

COMMENT ON TABLE idem_codes IS
'short codes, one for a purpose and subject, used and expired ones until they are purged: as in idem_keys, a row is dead from expires_at on, used or not';
COMMENT ON COLUMN idem_codes.digest IS 'identity of (purpose, subject)';
COMMENT ON COLUMN idem_codes.series IS 'codes that share a count of guesses';
COMMENT ON COLUMN idem_codes.secret IS 'row of idem_secrets that mac was made with';
COMMENT ON COLUMN idem_codes.issued_at IS 'when the code was issued';
COMMENT ON COLUMN idem_codes.expires_at IS 'the later of valid_until and counted_until; from then on the row may be deleted';
COMMENT ON COLUMN idem_codes.valid_until IS 'from then on the code is expired';
COMMENT ON COLUMN idem_codes.counted_until IS 'a new code that is issued before then goes on with the count of guesses';
COMMENT ON COLUMN idem_codes.used_at IS 'when the code was verified';
COMMENT ON COLUMN idem_codes.attempts IS 'guesses that are counted, right or wrong';
COMMENT ON COLUMN idem_codes.max_attempts IS 'guesses after which the code is locked';
COMMENT ON COLUMN idem_codes.nonce IS 'random bytes of this code';
COMMENT ON COLUMN idem_codes.mac IS 'HMAC-SHA-256 over purpose, subject, nonce and code';
COMMENT ON COLUMN idem_codes.purpose IS 'what the code is for';
COMMENT ON COLUMN idem_codes.subject IS 'whose code it is';

-- filled by the first idem_code_issue(), never here: a restore would keep its own
CREATE TABLE idem_secrets (
	id uuid NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	secret bytea NOT NULL,
	CONSTRAINT idem_secrets_pkey PRIMARY KEY (id)
);

COMMENT ON TABLE idem_secrets IS 'keys of the HMACs in idem_codes; with them and a dump, live codes can be found out';
COMMENT ON COLUMN idem_secrets.id IS 'what idem_codes.secret refers to';
COMMENT ON COLUMN idem_secrets.created_at IS 'when it was made; the newest is used for new codes';
COMMENT ON COLUMN idem_secrets.secret IS 'SHA-256 of more than 256 random bits';

REVOKE ALL ON TABLE idem_tokens, idem_codes, idem_secrets FROM PUBLIC;

-- a restore that forgot live keys would run every request twice
SELECT pg_catalog.pg_extension_config_dump('idem_keys',
	'WHERE expires_at OPERATOR(pg_catalog.>) pg_catalog.now()');
SELECT pg_catalog.pg_extension_config_dump('idem_fence', '');
SELECT pg_catalog.pg_extension_config_dump('idem_tokens',
	'WHERE expires_at OPERATOR(pg_catalog.>) pg_catalog.now()');
SELECT pg_catalog.pg_extension_config_dump('idem_codes',
	'WHERE expires_at OPERATOR(pg_catalog.>) pg_catalog.now()');
SELECT pg_catalog.pg_extension_config_dump('idem_secrets', '');

CREATE FUNCTION idem_digest(key text, scope text DEFAULT NULL)
RETURNS uuid
AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION idem_digest(text, text) IS
'primary key in idem_keys of a key in a scope';

/*
 * COST: in a WHERE, what claims or counts comes after all other conditions, so that it is
 * called for rows that pass them.
 */
CREATE FUNCTION idem_begin(
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
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_begin(text, interval, text, jsonb, interval, interval, integer) IS
'claim a key: started, replayed, in_progress, mismatch or exhausted';

CREATE FUNCTION idem_finish(
	key text,
	result jsonb DEFAULT NULL,
	scope text DEFAULT NULL,
	fence bigint DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_finish(text, jsonb, text, bigint) IS
'store the result of a claimed key, to commit with the work; returns the result';

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

CREATE FUNCTION idem_release(
	key text,
	scope text DEFAULT NULL,
	fence bigint DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_release(text, text, bigint) IS
'give up a claim, so that the key can be claimed again';

CREATE FUNCTION idem_extend(
	key text,
	lease interval,
	scope text DEFAULT NULL,
	fence bigint DEFAULT NULL)
RETURNS timestamptz
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
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
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_checkpoint(text, text, jsonb, text, bigint, interval) IS
'record a recovery point of a leased claim, to commit with the work; returns the end of the lease';

CREATE FUNCTION idem_claim(
	key text,
	ttl interval DEFAULT NULL,
	scope text DEFAULT NULL,
	request jsonb DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_claim(text, interval, text, jsonb) IS
'claim and finish a key at once: true the first time, false after';

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

CREATE FUNCTION idem_claim_many(
	keys text[],
	ttl interval DEFAULT NULL,
	scope text DEFAULT NULL)
RETURNS TABLE (key text)
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_claim_many(text[], interval, text) IS
'claim and finish a batch of keys; returns those that were new';

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

CREATE FUNCTION idem_call(
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
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_call(text, text, jsonb, interval, text, interval, text[]) IS
'run a function once under a key and store its result: finished, replayed, in_progress or mismatch';

CREATE FUNCTION idem_once()
RETURNS trigger
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_once() IS
'row trigger that takes each row once: idem_once(columns [, ttl [, ''raise'' | ''skip'' [, scope]]])';

CREATE FUNCTION idem_token_issue(
	purpose text,
	ttl interval,
	payload jsonb DEFAULT NULL,
	subject text DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_token_issue(text, interval, jsonb, text) IS
'make a token that can be redeemed once; only its hash is stored';

CREATE FUNCTION idem_token_redeem(
	purpose text,
	token text,
	OUT state text,
	OUT subject text,
	OUT payload jsonb)
RETURNS record
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_token_redeem(text, text) IS
'use a token: redeemed, used, expired or unknown';

CREATE FUNCTION idem_token_peek(
	purpose text,
	token text,
	OUT state text,
	OUT subject text,
	OUT payload jsonb)
RETURNS record
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION idem_token_peek(text, text) IS
'look at a token without using it: valid, used, expired or unknown';

CREATE FUNCTION idem_token_revoke(purpose text, token text)
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_token_revoke(text, text) IS
'make a valid token unknown';

CREATE FUNCTION idem_token_revoke_all(purpose text, subject text)
RETURNS bigint
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_token_revoke_all(text, text) IS
'make all valid tokens of a subject unknown; returns how many';

CREATE FUNCTION idem_code_issue(
	purpose text,
	subject text,
	ttl interval,
	digits integer DEFAULT NULL,
	max_attempts integer DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_code_issue(text, text, interval, integer, integer) IS
'make a code of some digits that can be verified once, in place of the subject''s last one';

CREATE FUNCTION idem_code_verify(
	purpose text,
	subject text,
	code text,
	OUT state text,
	OUT attempts_left integer)
RETURNS record
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_code_verify(text, text, text) IS
'guess at a code: verified, used, wrong, locked, expired or unknown';

CREATE FUNCTION idem_throttle(
	key text,
	period interval,
	max_calls integer DEFAULT NULL,
	scope text DEFAULT NULL,
	cost integer DEFAULT NULL,
	OUT allowed boolean,
	OUT remaining integer,
	OUT retry_after double precision,
	OUT reset_after double precision)
RETURNS record
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 1000;
COMMENT ON FUNCTION idem_throttle(text, interval, integer, text, integer) IS
'count a call against a limit of max_calls in a period, in shared memory: allowed or not';

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
	expires_at timestamptz,
	failed boolean)
AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL UNSAFE ROWS 1;
COMMENT ON FUNCTION idem_lookup(text, text) IS
'what is committed under a key: finished, in_progress or abandoned';

CREATE FUNCTION idem_forget(key text, scope text DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_forget(text, text) IS
'erase a key, so that its request can run again';

CREATE FUNCTION idem_forget_scope(scope text)
RETURNS bigint
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION idem_forget_scope(text) IS
'erase all keys of a scope; returns how many';

CREATE PROCEDURE idem_purge(
	batch_size integer DEFAULT NULL,
	max_rows bigint DEFAULT NULL,
	max_duration interval DEFAULT NULL,
	INOUT keys bigint DEFAULT NULL,
	INOUT tokens bigint DEFAULT NULL,
	INOUT codes bigint DEFAULT NULL)
AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON PROCEDURE idem_purge(integer, bigint, interval, bigint, bigint, bigint) IS
'delete expired keys, tokens and codes, a transaction for each batch; how many';

CREATE FUNCTION idem_stat_counters(
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
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 5;
COMMENT ON FUNCTION idem_stat_counters() IS
'what view idem_stat has from shared memory';

CREATE FUNCTION idem_stat_reset()
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION idem_stat_reset() IS
'set the counters of the current database in view idem_stat to zero';

CREATE FUNCTION idem_held_keys()
RETURNS TABLE (
	pid integer,
	classid oid,
	objid oid,
	key text,
	scope text,
	since timestamptz)
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 10;
COMMENT ON FUNCTION idem_held_keys() IS
'what view idem_in_flight has from shared memory: which keys the last locks of sessions were for';

/*
 * Operators and functions of the views are those of pg_catalog, whatever else is in
 * our schema: what was planted there before would run with the rights of readers.
 *
 * 7648 is the space of our locks (src/store/key_lock.c).  Of several notes of one lock the
 * newest is about it.
 */
DO LANGUAGE plpgsql $do$
DECLARE
	script_path text := pg_catalog.current_setting('search_path');
	schema text;
BEGIN
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	schema := (SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'idempotency');
	EXECUTE replace(replace($view$
CREATE VIEW @schema@.idem_transaction_claims AS
WITH locks AS MATERIALIZED (
	SELECT l.pid, l.classid, l.objid, l.granted, l.virtualtransaction, l.waitstart
	FROM pg_catalog.pg_locks l
	WHERE l.locktype = 'advisory' AND l.objsubid = 7648
		AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())),
notes AS MATERIALIZED (
	SELECT DISTINCT ON (n.pid, n.classid, n.objid) n.*
	FROM @schema@.idem_held_keys() n
	ORDER BY n.pid, n.classid, n.objid, n.since DESC),
prepared AS MATERIALIZED (
	SELECT x.virtualtransaction, p.owner, p.prepared
	FROM pg_catalog.pg_locks x
	JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid
	WHERE x.locktype = 'transactionid' AND x.pid IS NULL AND x.granted)
SELECT l.pid,
	coalesce(a.usename, p.owner) AS role,
	n.key,
	n.scope,
	coalesce(greatest(n.since, a.xact_start), p.prepared) AS since,
	ARRAY(
		SELECT w.pid FROM locks w
		WHERE NOT w.granted AND w.classid = l.classid AND w.objid = l.objid
		ORDER BY w.waitstart, w.pid) AS waiting
FROM locks l
LEFT JOIN notes n ON n.pid = l.pid AND n.classid = l.classid AND n.objid = l.objid
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
LEFT JOIN prepared p ON l.pid IS NULL AND p.virtualtransaction = l.virtualtransaction
WHERE l.granted;

/*
 * A barrier: else a reader's own operators and functions would be called with rows that
 * the condition keeps from the reader, and the planner would ask them about statistics of the table.
 */
CREATE VIEW @schema@.idem_lease_claims WITH (security_barrier) AS
SELECT k.key, k.scope, k.created_at, k.lease_until
FROM @schema@.idem_keys k
WHERE k.finished_at IS NULL AND k.lease_until > clock_timestamp();

CREATE VIEW @schema@.idem_in_flight AS
SELECT c.pid, c.role, c.key, c.scope, c.since, 'transaction' AS held_by, NULL::timestamptz AS lease_until, c.waiting
FROM @schema@.idem_transaction_claims c
UNION ALL
SELECT NULL, NULL, k.key, k.scope, k.created_at, 'lease', k.lease_until, '{}'
FROM @schema@.idem_lease_claims k;

/*
 * The gauges look at a sample of about 1,000 pages, or at all if there are no more:
 * their cost does not grow with the table.
 */
CREATE VIEW @schema@.idem_stat AS
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

COMMENT ON VIEW idem_transaction_claims IS
'the part of idem_in_flight that is about running and prepared transactions';

COMMENT ON VIEW idem_lease_claims IS
'the part of idem_in_flight that is about running leases';

COMMENT ON VIEW idem_in_flight IS 'claims that are held now, by transactions and by leases; reads all of idem_keys';
COMMENT ON COLUMN idem_in_flight.pid IS 'process of the session; none has a lease, nor a prepared transaction';
COMMENT ON COLUMN idem_in_flight.role IS 'role of the session, or of who prepared the transaction';
COMMENT ON COLUMN idem_in_flight.key IS 'the key; of a transaction, its first 95 bytes, where shared memory has noted them: for the last 4 locks of a session';
COMMENT ON COLUMN idem_in_flight.scope IS 'scope of the key, likewise';
COMMENT ON COLUMN idem_in_flight.since IS 'when the claim was begun; where that is not known, when its transaction was';
COMMENT ON COLUMN idem_in_flight.held_by IS 'transaction or lease';
COMMENT ON COLUMN idem_in_flight.lease_until IS 'end of the lease';
COMMENT ON COLUMN idem_in_flight.waiting IS 'processes of the sessions that wait for the lock, the first one first';

COMMENT ON VIEW idem_stat IS 'one row a database, of those in use: counters since stats_reset, as of ended transactions, rolled back ones included, NULL without shared memory; gauges of the current database only';
COMMENT ON COLUMN idem_stat.datid IS 'OID of the database';
COMMENT ON COLUMN idem_stat.datname IS 'name of the database';
COMMENT ON COLUMN idem_stat.started IS 'idem_begin and idem_call: claims begun';
COMMENT ON COLUMN idem_stat.replayed IS 'idem_begin and idem_call: stored results returned';
COMMENT ON COLUMN idem_stat.in_progress IS 'idem_begin and idem_call: another transaction or a lease held the key';
COMMENT ON COLUMN idem_stat.mismatched IS 'the key was used with another request';
COMMENT ON COLUMN idem_stat.finished IS 'claims finished, by idem_finish or idem_call';
COMMENT ON COLUMN idem_stat.released IS 'claims given up by idem_release';
COMMENT ON COLUMN idem_stat.taken_over IS 'of started: claims whose last lease had run out or was released';
COMMENT ON COLUMN idem_stat.claimed IS 'idem_claim, idem_claim_many and trigger idem_once: new keys';
COMMENT ON COLUMN idem_stat.duplicates IS 'idem_claim, idem_claim_many and trigger idem_once: known keys';
COMMENT ON COLUMN idem_stat.throttle_allowed IS 'calls that idem_throttle allowed';
COMMENT ON COLUMN idem_stat.throttle_rejected IS 'calls that idem_throttle did not allow';
COMMENT ON COLUMN idem_stat.throttle_evicted IS 'live limits that made room for others: increase idempotency.throttle_entries';
COMMENT ON COLUMN idem_stat.tokens_issued IS 'tokens issued';
COMMENT ON COLUMN idem_stat.tokens_redeemed IS 'tokens redeemed';
COMMENT ON COLUMN idem_stat.tokens_refused IS 'tokens that were used, expired or unknown when they were to be redeemed';
COMMENT ON COLUMN idem_stat.codes_issued IS 'codes issued';
COMMENT ON COLUMN idem_stat.codes_verified IS 'codes verified';
COMMENT ON COLUMN idem_stat.codes_refused IS 'guesses at codes that were not verified';
COMMENT ON COLUMN idem_stat.purged IS 'rows deleted by purges';
COMMENT ON COLUMN idem_stat.guard_errors IS 'commits that failed because of a claim that was not finished, or expired';
COMMENT ON COLUMN idem_stat.failed IS 'claims finished as failed, by idem_fail or by idem_call with keep_errors';
COMMENT ON COLUMN idem_stat.exhausted IS 'idem_begin: abandoned claims that were not taken over, because of max_attempts';
COMMENT ON COLUMN idem_stat.stats_reset IS 'when the counters were zero';
COMMENT ON COLUMN idem_stat.live_keys IS 'rows of idem_keys that are not expired, estimated';
COMMENT ON COLUMN idem_stat.oldest_expired IS 'when the oldest expired row of idem_keys that was seen expired';
COMMENT ON COLUMN idem_stat.last_purge IS 'when the last purge ended';
COMMENT ON COLUMN idem_stat.open_leases IS 'running leases, estimated';
COMMENT ON COLUMN idem_stat.oldest_claim_age IS 'age of the oldest claim that is open, of the leases that were seen and all transactions';

REVOKE ALL ON TABLE idem_transaction_claims, idem_lease_claims, idem_in_flight, idem_stat FROM PUBLIC;

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
	idem_digest(text, text),
	idem_begin(text, interval, text, jsonb, interval, interval, integer),
	idem_finish(text, jsonb, text, bigint),
	idem_fail(text, jsonb, text, bigint, interval),
	idem_release(text, text, bigint),
	idem_extend(text, interval, text, bigint),
	idem_checkpoint(text, text, jsonb, text, bigint, interval),
	idem_claim(text, interval, text, jsonb),
	idem_check(),
	idem_http_begin(text, text, text, integer, integer, integer),
	idem_http_finish(text, integer, text, text, text, bigint),
	idem_claim_many(text[], interval, text),
	idem_import(text, jsonb, text, timestamptz, timestamptz, jsonb, boolean),
	idem_import_many(text[], jsonb[], text[], timestamptz[], timestamptz[], jsonb[], boolean[]),
	idem_call(text, text, jsonb, interval, text, interval, text[]),
	idem_once(),
	idem_token_issue(text, interval, jsonb, text),
	idem_token_redeem(text, text),
	idem_token_peek(text, text),
	idem_token_revoke(text, text),
	idem_token_revoke_all(text, text),
	idem_code_issue(text, text, interval, integer, integer),
	idem_code_verify(text, text, text),
	idem_throttle(text, interval, integer, text, integer),
	idem_stat_counters(),
	idem_stat_reset(),
	idem_held_keys(),
	idem_lookup(text, text),
	idem_forget(text, text),
	idem_forget_scope(text),
	idem_grant(regrole, text[]),
	idem_revoke(regrole, text[]),
	idem_tenant_support(internal),
	idem_distribute(regclass)
FROM PUBLIC;

REVOKE ALL ON PROCEDURE idem_purge(integer, bigint, interval, bigint, bigint, bigint) FROM PUBLIC;

/*
 * ALTER DEFAULT PRIVILEGES may have given others what was made here; hosted
 * platforms and REST front ends set it up as a matter of course.
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
		SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass AS object, a.grantee
		FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass::oid AND m.objid = c.oid,
			aclexplode(c.relacl) a
		WHERE a.grantee NOT IN (0::oid, c.relowner)
		UNION
		SELECT 'ROUTINE ' || p.oid::regprocedure, a.grantee
		FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass::oid AND m.objid = p.oid,
			aclexplode(p.proacl) a
		WHERE a.grantee NOT IN (0::oid, p.proowner)
	LOOP
		EXECUTE format('REVOKE ALL ON %s FROM %s', acl.object, acl.grantee::regrole);
	END LOOP;
	PERFORM set_config('search_path', script_path, true);
END $$;

/*
 * A view's functions run with the rights of who reads it.  The schema is its owner's
 * to grant: granted in here, all grants on it would count as the extension's, and
 * pg_dump would leave them out.
 */
GRANT SELECT ON TABLE idem_stat, idem_in_flight TO pg_monitor;
GRANT EXECUTE ON FUNCTION idem_stat_counters(), idem_held_keys() TO pg_monitor;
