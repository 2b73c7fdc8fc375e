-- Tokens: accept a secret once.  What concurrent sessions see is in specs/iso-token*.
SET client_encoding = 'UTF8';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
LOAD 'idempotency';

-- what this test issues, by name
CREATE TABLE t (name text PRIMARY KEY, token text NOT NULL);
CREATE FUNCTION tok(text) RETURNS text LANGUAGE sql STABLE AS 'SELECT token FROM t WHERE name = $1';

-- 43 characters of base64url, no two alike, every character in every place
CREATE TABLE many AS SELECT idem_token_issue('many', '1 day') AS token FROM generate_series(1, 1000);
SELECT count(DISTINCT token), bool_and(token ~ '^[A-Za-z0-9_-]{43}$') AS form FROM many;
-- one run in 2,500 misses a character in a place, none in 10^20 misses more than five
SELECT count(*) BETWEEN 42 * 64 - 5 AND 42 * 64 AS every
FROM (SELECT DISTINCT n, substr(token, n, 1) FROM many, generate_series(1, 42) n) c;
-- 43 * 6 bits are two more than 256
SELECT count(DISTINCT right(token, 1)) FROM many;
DELETE FROM idem_tokens;

-- issue, peek any number of times, redeem once
INSERT INTO t VALUES
	('bare', idem_token_issue('login', '1 day')),
	('full', idem_token_issue('login', '15 min', '{"next": "/cart", "n": [1, null]}', 'ada@example.org')),
	('null', idem_token_issue('login', '1 day', 'null', NULL)),
	('named', idem_token_issue(subject => 'ada@example.org', ttl => '1 day', purpose => 'login'));
SELECT n, p.* FROM generate_series(1, 3) n, idem_token_peek('login', tok('full')) p ORDER BY n;
SELECT * FROM idem_token_redeem('login', tok('full'));
SELECT * FROM idem_token_redeem('login', tok('full'));
SELECT * FROM idem_token_peek('login', tok('full'));
SELECT * FROM idem_token_peek('login', tok('bare'));
SELECT * FROM idem_token_redeem('login', tok('bare'));
SELECT *, payload IS NULL AS isnull FROM idem_token_redeem('login', tok('null'));
SELECT * FROM idem_token_redeem(token => tok('named'), purpose => 'login');

-- another purpose: unknown, and not burnt by the try
INSERT INTO t VALUES ('reset', idem_token_issue('reset', '1 day', '"secret"'));
SELECT purpose, state, subject, payload
FROM unnest(ARRAY['login', 'Reset', 'reset ', ' reset', 'rese', 'resett', 'r%', E'reset\n']) purpose,
	idem_token_redeem(purpose, tok('reset'));
SELECT idem_token_revoke('login', tok('reset'));
SELECT state FROM idem_token_peek('login', tok('reset'));
SELECT * FROM idem_token_redeem('reset', tok('reset'));
SELECT state FROM idem_token_redeem('login', tok('reset'));

-- no savepoint and no EXCEPTION block burns one, nor does a rollback
INSERT INTO t VALUES ('tx', idem_token_issue('tx', '1 day', '1'));
BEGIN;
SELECT * FROM idem_token_redeem('tx', tok('tx'));
SELECT state FROM idem_token_redeem('tx', tok('tx'));
SELECT state FROM idem_token_peek('tx', tok('tx'));
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT state FROM idem_token_redeem('tx', tok('tx'));
ROLLBACK TO s;
SELECT state FROM idem_token_peek('tx', tok('tx'));
DO $$
BEGIN
	PERFORM idem_token_redeem('tx', tok('tx'));
	RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
	NULL;
END $$;
SELECT state FROM idem_token_peek('tx', tok('tx'));
SAVEPOINT s;
SELECT state FROM idem_token_redeem('tx', tok('tx'));
RELEASE s;
COMMIT;
SELECT state FROM idem_token_redeem('tx', tok('tx'));
-- nor does issuing outlive one
BEGIN;
INSERT INTO many SELECT idem_token_issue('undone', '1 day') RETURNING (SELECT state FROM idem_token_peek('undone', token));
SELECT token AS undone FROM many ORDER BY ctid DESC LIMIT 1 \gset
ROLLBACK;
SELECT state FROM idem_token_redeem('undone', :'undone');

-- expired: not used by the try, and used stays used
INSERT INTO t VALUES ('brief', idem_token_issue('brief', '1 microsecond', '1', 'ada')),
	('used', idem_token_issue('brief', '1 day', '1', 'ada')),
	('live', idem_token_issue('brief', '1 day', '1', 'ada'));
SELECT state FROM idem_token_redeem('brief', tok('used'));
UPDATE idem_tokens SET expires_at = clock_timestamp() WHERE used_at IS NOT NULL AND purpose = 'brief';
SELECT name, p.*, r.*, idem_token_revoke('brief', token) AS revoked
FROM t, idem_token_peek('brief', token) p, idem_token_redeem('brief', token) r WHERE name IN ('brief', 'used') ORDER BY name;
SELECT used_at IS NULL AS unused FROM idem_tokens WHERE purpose = 'brief' ORDER BY used_at;
-- found as expired keys are; the live one stays
DELETE FROM idem_tokens WHERE expires_at < now();
SELECT name, r.state FROM t, idem_token_redeem('brief', token) r WHERE name IN ('brief', 'used', 'live') ORDER BY name;

-- for ever, and how ttl is measured: from the issue on, by the clock
SELECT idem_token_issue('ever', '1000 years') IS NOT NULL AND idem_token_issue('ever', '999 years') IS NOT NULL AS issued;
SELECT expires_at = 'infinity' AS ever FROM idem_tokens WHERE purpose = 'ever' ORDER BY 1;
BEGIN;
SELECT now() <= clock_timestamp() AS started;
SELECT idem_token_issue('clock', '1 hour') IS NOT NULL AS issued;
SELECT issued_at > now() AS by_clock, expires_at = issued_at + interval '1 hour' AS from_issue FROM idem_tokens WHERE purpose = 'clock';
COMMIT;

-- revoke: immediate, transactional
INSERT INTO t VALUES ('revoke', idem_token_issue('revoke', '1 day', '1', 'ada'));
BEGIN;
SELECT idem_token_revoke('revoke', tok('revoke'));
SELECT idem_token_revoke('revoke', tok('revoke'));
SELECT p.state AS peek, r.state AS redeem FROM idem_token_peek('revoke', tok('revoke')) p, idem_token_redeem('revoke', tok('revoke')) r;
ROLLBACK;
SELECT * FROM idem_token_peek('revoke', tok('revoke'));
SELECT idem_token_revoke('revoke', tok('revoke'));
SELECT state FROM idem_token_redeem('revoke', tok('revoke'));
-- what is used stays used
SELECT idem_token_revoke('login', tok('full')), (SELECT state FROM idem_token_redeem('login', tok('full')));

-- revoke_all: what is valid of that subject and purpose, and nothing else
CREATE TABLE all_of (expected text, purpose text, token text);
INSERT INTO all_of
SELECT expected, purpose, idem_token_issue(purpose, ttl, NULL, subject)
FROM (VALUES
	('unknown', 'all', interval '1 day', 'ada'), ('unknown', 'all', '1000 years', 'ada'),
	('used', 'all', '1 day', 'ada'), ('expired', 'all', '1 microsecond', 'ada'),
	('redeemed', 'all', '1 day', 'Ada'), ('redeemed', 'all', '1 day', 'ada '), ('redeemed', 'all', '1 day', 'ad'),
	('redeemed', 'all', '1 day', 'all'), ('redeemed', 'all', '1 day', NULL),
	('redeemed', 'ada', '1 day', 'all'), ('redeemed', 'ada', '1 day', 'ada'), ('redeemed', 'all ', '1 day', 'ada')) v (expected, purpose, ttl, subject);
SELECT state FROM all_of, idem_token_redeem(purpose, token) WHERE expected = 'used';
BEGIN;
SELECT idem_token_revoke_all('all', 'ada');
SELECT idem_token_revoke_all('all', 'ada');
ROLLBACK;
SELECT idem_token_revoke_all('all', 'ada');
SELECT idem_token_revoke_all('all', 'ada'), idem_token_revoke_all('all', 'nobody'), idem_token_revoke_all('nothing', 'ada');
-- wrong: none
SELECT expected, state FROM all_of, idem_token_redeem(purpose, token) WHERE state <> expected;

-- read only: looking is allowed
INSERT INTO t VALUES ('ro', idem_token_issue('ro', '1 day', '1', 'ada'));
\set VERBOSITY sqlstate
BEGIN READ ONLY;
SELECT * FROM idem_token_peek('ro', tok('ro'));
SELECT state FROM idem_token_peek('other', tok('ro'));
SAVEPOINT s;
SELECT state FROM idem_token_redeem('ro', tok('ro'));
ROLLBACK TO s;
-- whatever it would have answered
SELECT state FROM idem_token_redeem('ro', tok('full'));
ROLLBACK TO s;
SELECT state FROM idem_token_redeem('ro', 'nonsense');
ROLLBACK TO s;
SELECT idem_token_revoke('ro', 'nonsense');
ROLLBACK TO s;
SELECT idem_token_revoke('ro', tok('ro'));
ROLLBACK TO s;
SELECT idem_token_revoke_all('ro', 'ada');
ROLLBACK TO s;
SELECT idem_token_issue('ro', '1 day') IS NULL;
ROLLBACK TO s;
SELECT state FROM idem_token_peek('ro', tok('ro'));
COMMIT;
\set VERBOSITY default

-- a redeem is a HOT update: nothing indexed changes
BEGIN;
SELECT pg_stat_get_xact_tuples_updated('idem_tokens'::regclass) AS updated,
	pg_stat_get_xact_tuples_hot_updated('idem_tokens'::regclass) AS hot \gset
SELECT state FROM idem_token_redeem('ro', tok('ro'));
SELECT pg_stat_get_xact_tuples_updated('idem_tokens'::regclass) - :updated AS updated,
	pg_stat_get_xact_tuples_hot_updated('idem_tokens'::regclass) - :hot AS hot;
COMMIT;

-- what is stored: of no token more than its digest
SELECT count(*) FROM idem_tokens i, t WHERE i::text LIKE '%' || t.token || '%';
SELECT count(*) AS raw FROM idem_tokens i, t,
	LATERAL decode(translate(t.token, '-_', '+/') || '=', 'base64') secret
WHERE i::text LIKE '%' || encode(secret, 'hex') || '%' OR i::text LIKE '%' || encode(substr(secret, 1, 16), 'hex') || '%';
-- which any later version must know again
SELECT count(*) AS same
FROM idem_tokens i, t, sha256('\x00000002' || 'ro'::bytea || '\x0000002b' || t.token::bytea) hash
WHERE i.purpose = 'ro' AND t.name = 'ro' AND i.digest::text::uuid = encode(substr(hash, 1, 16), 'hex')::uuid AND i.verifier = substr(hash, 17);

-- and all of that counts
INSERT INTO t VALUES ('half', idem_token_issue('half', '1 day'));
UPDATE idem_tokens SET verifier = set_byte(verifier, 15, get_byte(verifier, 15) # 1) WHERE purpose = 'half';
SELECT r.state AS redeem, p.state AS peek, idem_token_revoke('half', tok('half')) AS revoked
FROM idem_token_redeem('half', tok('half')) r, idem_token_peek('half', tok('half')) p;
UPDATE idem_tokens SET verifier = set_byte(verifier, 15, get_byte(verifier, 15) # 1) WHERE purpose = 'half';
SELECT state FROM idem_token_redeem('half', tok('half'));

/*
 * Whatever comes from outside: a state or a SQLSTATE, nothing written, and the
 * session goes on.
 */
CREATE TABLE calls (
	id integer GENERATED ALWAYS AS IDENTITY,
	expected text NOT NULL,
	call text NOT NULL,
	version integer DEFAULT 0,		-- the oldest server that knows the value
	got text,
	usable boolean
);
INSERT INTO t VALUES ('good', idem_token_issue('good', '1 day', '"payload"', 'ada'));

-- what could not have been issued, is unknown, as what was not
CREATE TABLE odd (id integer GENERATED ALWAYS AS IDENTITY, token text NOT NULL);
INSERT INTO odd (token) VALUES (''), (' '), ('x'), (repeat('A', 42)), (repeat('A', 43)), (repeat('A', 44)), (repeat('=', 43)),
	(repeat('+', 43)), (repeat('/', 43)), (repeat('é', 43)), ('é' || repeat('A', 41)), ('é' || repeat('A', 42)), (repeat('😀', 10) || 'AAA'),
	(repeat(E'\n', 43)), (repeat(' ', 43)), (repeat('%', 43)), (repeat('_', 43)), (repeat('-', 43)), (repeat('''', 43)),
	('Robert''); DROP TABLE idem_tokens; --     x'), ('NULL'), (E'\\x00'), (repeat(E'\\', 43)), (repeat('A', 10000000)),
	((SELECT string_agg(md5(i::text), '') FROM generate_series(1, 20000) i)), (repeat('é', 5000000));
-- kept out of line and not compressed
CREATE TABLE odd_plain (token text);
ALTER TABLE odd_plain ALTER token SET STORAGE EXTERNAL;
INSERT INTO odd_plain VALUES (repeat('A', 10000000));
-- near misses
INSERT INTO odd (token)
SELECT v FROM t, unnest(ARRAY[token || '=', token || E'\n', ' ' || token, token || ' ', left(token, 42), right(token, 42), lower(token), upper(token),
	reverse(token), token || token, CASE left(token, 1) WHEN 'A' THEN 'B' ELSE 'A' END || substr(token, 2),
	-- another spelling of the same 256 bits
	left(token, 42) || translate(right(token, 1), 'AEIMQUYcgkosw048', 'BFJNRVZdhlptx159')]) v
WHERE name = 'good';
INSERT INTO calls (expected, call)
SELECT v.expected, format(v.call, format('(SELECT token FROM odd WHERE id = %s)', id))
FROM odd, (VALUES ('unknown', '(SELECT state FROM idem_token_redeem(''good'', %s))'), ('unknown', '(SELECT state FROM idem_token_peek(''good'', %s))'),
	('false', 'idem_token_revoke(''good'', %s)')) v (expected, call);
INSERT INTO calls (expected, call) VALUES
	('unknown', '(SELECT state FROM odd_plain, idem_token_redeem(''good'', token))'),
	('unknown', '(SELECT state FROM odd_plain, idem_token_peek(''good'', token))'),
	('false', '(SELECT idem_token_revoke(''good'', token) FROM odd_plain)');

-- NULL where a value must be
INSERT INTO calls (expected, call)
SELECT '22004', unnest(ARRAY['idem_token_issue(NULL, ''1 day'')', 'idem_token_issue(''p'', NULL)', 'idem_token_issue(NULL, NULL)',
	'idem_token_redeem(NULL, tok(''good''))', 'idem_token_redeem(''good'', NULL)', 'idem_token_peek(NULL, tok(''good''))', 'idem_token_peek(''good'', NULL)',
	'idem_token_revoke(NULL, tok(''good''))', 'idem_token_revoke(''good'', NULL)', 'idem_token_revoke_all(NULL, ''ada'')', 'idem_token_revoke_all(''good'', NULL)']);

-- purposes and subjects are measured in bytes
INSERT INTO calls (expected, call)
SELECT CASE WHEN v.good THEN 'true' ELSE '22023' END, format('(%s)::text IS NOT NULL', format(f.call, v.value))
FROM (VALUES (false, $$''$$), (false, $$repeat('k', 1025)$$), (false, $$repeat('k', 10000000)$$), (false, $$repeat('é', 512) || 'k'$$), (false, $$repeat('😀', 257)$$),
	(true, $$' '$$), (true, $$repeat('k', 1024)$$), (true, $$repeat('é', 512)$$), (true, $$repeat('😀', 256)$$)) v (good, value),
	(VALUES ('idem_token_issue(%s, ''1 day'')'), ('idem_token_issue(''p'', ''1 day'', NULL, %s)'), ('idem_token_redeem(%s, tok(''good''))'), ('idem_token_redeem(%s, ''x'')'),
		('idem_token_peek(%s, tok(''good''))'), ('idem_token_revoke(%s, tok(''good''))'), ('idem_token_revoke_all(%s, ''ada'')'), ('idem_token_revoke_all(''p'', %s)')) f (call);
-- both at their longest, and not to be compressed, fit into the index
INSERT INTO calls (expected, call)
SELECT 'true', format('idem_token_issue(%L, ''1 day'', NULL, %L) IS NOT NULL', s, reverse(s))
FROM (SELECT left(string_agg(md5(i::text), ''), 1024) FROM generate_series(1, 40) i) v (s);

-- ttl
INSERT INTO calls (expected, call)
SELECT '22023', format('idem_token_issue(''p'', %L)', ttl)
FROM unnest('{0,-1 microsecond,-1 second,0.0000004 seconds,-178000000 years,1 year -12 mons,-12 mon 361 days,5000 years -1826000 days}'::text[]) ttl;
INSERT INTO calls (expected, call)
SELECT 'true', format('idem_token_issue(''p'', %L) IS NOT NULL', ttl)
FROM unnest('{1 microsecond,999 years,1000 years,178000000 years,12 mon -364 days,2147483647 days}'::text[]) ttl;
-- positive where a month has 30 days, but the calendar turns it backwards
INSERT INTO calls (expected, call) VALUES
	('22023', format('idem_token_issue(''p'', ''1 mon -%s days'')', (now() + interval '1 mon')::date - now()::date));
INSERT INTO calls (expected, call, version) VALUES
	('true', $$idem_token_issue('p', 'infinity') IS NOT NULL$$, 170000), ('22023', $$idem_token_issue('p', '-infinity')$$, 170000);

-- payload
CREATE TABLE payloads (payload jsonb);
INSERT INTO payloads VALUES (to_jsonb(repeat('x', 5 * 1024 * 1024)));
INSERT INTO calls (expected, call) VALUES
	('54000', $$idem_token_issue('p', '1 day', to_jsonb(repeat('x', 5 * 1024 * 1024)))$$),
	-- measured before compression, wherever it comes from
	('54000', $$idem_token_issue('p', '1 day', (SELECT payload FROM payloads))$$),
	('true', $$idem_token_issue('p', '1 day', to_jsonb(repeat('x', 4 * 1024 * 1024 - 100))) IS NOT NULL$$),
	('true', $$(SELECT length(payload #>> '{}') = 3000000 FROM idem_token_redeem('p', idem_token_issue('p', '1 day', to_jsonb(repeat('y', 3000000)))))$$);

CREATE FUNCTION try(c calls, OUT got text, OUT usable boolean)
LANGUAGE plpgsql AS $$
BEGIN
	IF c.version > current_setting('server_version_num')::integer THEN
		got := c.expected;
		usable := true;
		RETURN;
	END IF;
	BEGIN
		EXECUTE 'SELECT ' || c.call INTO got;
		RAISE SQLSTATE 'OK000';
	EXCEPTION
		WHEN SQLSTATE 'OK000' THEN NULL;
		WHEN OTHERS THEN got := SQLSTATE;
	END;
	BEGIN
		usable := (SELECT (state, subject, payload) = ('redeemed', 'ada', '"payload"') FROM idem_token_redeem('good', tok('good')));
		RAISE SQLSTATE 'OK000';
	EXCEPTION WHEN SQLSTATE 'OK000' THEN
		NULL;
	END;
	-- plpgsql's t and f
	got := CASE got WHEN 't' THEN 'true' WHEN 'f' THEN 'false' ELSE got END;
END
$$;
SELECT count(*) AS rows FROM idem_tokens \gset
UPDATE calls c SET (got, usable) = (SELECT t.got, t.usable FROM try(c) t);
-- what went wrong: nothing
SELECT expected, got, usable, left(call, 100) AS call
FROM calls WHERE got IS DISTINCT FROM expected OR usable IS DISTINCT FROM true ORDER BY id;
SELECT expected, count(*) > 0 AS seen FROM calls WHERE got = expected GROUP BY expected ORDER BY expected COLLATE "C";
SELECT count(*) - :rows AS written FROM idem_tokens;
SELECT state FROM idem_token_redeem('good', tok('good'));

-- in any script
SELECT purpose, r.*
FROM (VALUES (U&'\0637\0644\0628', U&'\05D4\05D6'), (U&'\8BA2\5355', U&'\+01F6D2\+01F468\200D\+01F469'), ('%s%n''";--\', E'a\tb\nc')) v (purpose, subject),
	LATERAL (SELECT idem_token_issue(purpose, '1 day', to_jsonb(subject), subject) AS token) i,
	LATERAL (SELECT state, r.subject = v.subject AS subject, payload = to_jsonb(v.subject) AS payload FROM idem_token_redeem(purpose, token) r) r;

-- messages
SELECT idem_token_issue(NULL, '1 day');
SELECT idem_token_issue('', '1 day');
SELECT idem_token_issue('p', '0');
SELECT idem_token_issue('p', '1 day', subject => '');
SELECT idem_token_issue('p', '1 day', subject => repeat('é', 513));
SELECT idem_token_issue(repeat('p', 1025), '1 day');
SELECT idem_token_redeem('p', NULL);
SELECT idem_token_revoke_all('p', NULL);
SELECT idem_token_issue('p', '1 day', (SELECT payload FROM payloads));
SET idempotency.max_result_size = '16B';
SELECT idem_token_issue('p', '1 day', '"seventeen"');
SELECT idem_token_issue('p', '1 day', '1') IS NOT NULL AS issued;
RESET idempotency.max_result_size;
BEGIN READ ONLY;
SELECT idem_token_redeem('ro', tok('ro'));
ROLLBACK;

DROP TABLE t, many, all_of, calls, odd, odd_plain, payloads CASCADE;
DROP FUNCTION tok;
DELETE FROM idem_tokens;
