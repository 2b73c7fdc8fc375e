-- Codes: a secret that is short, so guesses are limited.  What concurrent sessions see
-- is in specs/iso-code*; guesses that are rolled back are in t/017_guesses.pl.
SET client_encoding = 'UTF8';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
LOAD 'idempotency';
-- where there is no shared memory, a warning says so
SET client_min_messages = error;
\set SHOW_CONTEXT never

DELETE FROM idem_codes;
DELETE FROM idem_secrets;
-- what this test issues, by subject
CREATE TABLE c (subject text PRIMARY KEY, code text NOT NULL);
CREATE FUNCTION code(text) RETURNS text LANGUAGE sql STABLE AS 'SELECT code FROM c WHERE subject = $1';
-- issue a code and keep it
CREATE PROCEDURE issue(subject text, ttl interval DEFAULT '1 day', max_attempts int DEFAULT NULL) LANGUAGE sql AS $$
	INSERT INTO c VALUES (subject, idem_code_issue('otp', subject, ttl, 10, max_attempts))
	ON CONFLICT (subject) DO UPDATE SET code = EXCLUDED.code $$;
CREATE FUNCTION verify(subject text, code text) RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', state, attempts_left) FROM idem_code_verify('otp', subject, code) $$;
-- the wrong guess
CREATE FUNCTION wrong(subject text) RETURNS text LANGUAGE sql AS $$ SELECT verify(subject, 'x') $$;

-- the first code makes the secret, unless it is rolled back
BEGIN;
SELECT idem_code_issue('otp', 'ada', '1 day') IS NOT NULL AS issued;
ROLLBACK;
SELECT count(*) FROM idem_secrets;
CALL issue('ada');
CALL issue('bob');
SELECT count(*), min(length(secret)) AS bytes FROM idem_secrets;

-- digits, zeros in front among them
SELECT d AS digits, count(*), bool_and(code ~ format('^[0-9]{%s}$', coalesce(d, 6))) AS form
FROM (SELECT d, idem_code_issue('form', 'form', '1 day', d) AS code FROM unnest('{4,5,6,7,8,9,10,NULL}'::int[]) d, generate_series(1, 3)) i
GROUP BY d ORDER BY d;
SELECT count(*) FILTER (WHERE code LIKE '0%') > 0 AS zeros, count(*) FILTER (WHERE code LIKE '9%') > 0 AS nines, count(DISTINCT code) > 200 AS different
FROM (SELECT idem_code_issue('form', 'form', '1 day', 4) AS code FROM generate_series(1, 300)) i;

-- verified once
SELECT * FROM idem_code_verify('otp', 'ada', code('ada'));
SELECT * FROM idem_code_verify('otp', 'ada', code('ada'));
SELECT * FROM idem_code_verify('otp', 'ada', 'x');
SELECT * FROM idem_code_verify(code => code('bob'), subject => 'bob', purpose => 'otp');

-- guesses: counted down, and then not even the right one
CALL issue('ada', max_attempts => 3);
SELECT * FROM idem_code_verify('otp', 'ada', 'x');
SELECT * FROM idem_code_verify('otp', 'ada', 'x');
SELECT * FROM idem_code_verify('otp', 'ada', 'x');
SELECT * FROM idem_code_verify('otp', 'ada', 'x');
SELECT * FROM idem_code_verify('otp', 'ada', code('ada'));
-- 5 if not given; the last one may be right
CALL issue('five');
SELECT array_agg(wrong('five')) FROM generate_series(1, 4);
SELECT verify('five', code('five'));
CALL issue('one', max_attempts => 1);
SELECT verify('one', code('one'));
-- in one transaction, or one statement, as well
CALL issue('tx', max_attempts => 3);
BEGIN;
SELECT wrong('tx'), wrong('tx');
SAVEPOINT s;
SELECT wrong('tx');
RELEASE s;
SELECT verify('tx', code('tx'));
COMMIT;
SELECT verify('tx', code('tx'));

-- purposes and subjects are kept apart
CALL issue('apart');
SELECT purpose, subject, state
FROM (VALUES ('otp', 'Apart'), ('otp', 'apart '), ('otp', 'aparT'), ('OTP', 'apart'), ('otp ', 'apart'), ('ot', 'papart'), ('otpa', 'part'), ('apart', 'otp')) v (purpose, subject),
	idem_code_verify(purpose, subject, code('apart'));
CALL issue('other');
SELECT verify('other', code('apart')), verify('apart', code('other'));
SELECT verify('apart', code('apart')), verify('other', code('other'));

-- a new code takes the place of the old one, and goes on with the count
CALL issue('again', max_attempts => 4);
CREATE TABLE old AS SELECT code('again');
SELECT wrong('again');
CALL issue('again', max_attempts => 4);
SELECT verify('again', code) FROM old;
SELECT verify('again', code('again'));
-- the right guess does not count against the next one; and only one right guess
CALL issue('again', max_attempts => 4);
CALL issue('again', max_attempts => 4);
SELECT wrong('again'), wrong('again'), wrong('again');
CALL issue('again', max_attempts => 4);
SELECT verify('again', code('again'));
-- more guesses, or fewer, by the newest code
CALL issue('again', max_attempts => 6);
SELECT wrong('again');
CALL issue('again', max_attempts => 3);
SELECT verify('again', code('again'));
CALL issue('again', max_attempts => 2147483647);
SELECT verify('again', code('again'));
-- not even where that is the first guess
CALL issue('right', max_attempts => 1);
SELECT verify('right', code('right'));
CALL issue('right', max_attempts => 1);
SELECT verify('right', code('right'));
CALL issue('right', max_attempts => 1);
SELECT wrong('right');
CALL issue('right', max_attempts => 1);
SELECT verify('right', code('right'));
-- a rollback brings the old one back
CALL issue('back');
BEGIN;
SELECT idem_code_issue('otp', 'back', '1 day') IS NOT NULL AS issued;
SELECT verify('back', code('back')) LIKE 'wrong%' AS wrong;
ROLLBACK;
SELECT verify('back', code('back'));

-- a new code prolongs the count, but not one that is used up: being locked out has an end
CALL issue('series', ttl => '1 hour', max_attempts => 2);
SELECT wrong('series');
SELECT counted_until AS until FROM idem_codes WHERE subject = 'series' \gset
CALL issue('series', ttl => '2 hours', max_attempts => 2);
SELECT counted_until > :'until' AS prolonged, counted_until = valid_until AS same, expires_at = valid_until AS dead_then FROM idem_codes WHERE subject = 'series';
CALL issue('series', ttl => '1 hour', max_attempts => 2);
SELECT counted_until > valid_until AS outlives, expires_at = counted_until AS dead_then FROM idem_codes WHERE subject = 'series';
SELECT wrong('series');
SELECT counted_until AS until FROM idem_codes WHERE subject = 'series' \gset
CALL issue('series', ttl => '1 day', max_attempts => 2);
SELECT counted_until = :'until' AS not_prolonged, expires_at = valid_until AS dead_then FROM idem_codes WHERE subject = 'series';
-- it ends when the last code that was part of it would have expired
CALL issue('end', ttl => '1 hour', max_attempts => 2);
SELECT wrong('end'), wrong('end');
CALL issue('end', ttl => '1 day', max_attempts => 2);
SELECT wrong('end');
UPDATE idem_codes SET counted_until = clock_timestamp() WHERE subject = 'end';
-- which opens nothing by itself
SELECT verify('end', code('end'));
CALL issue('end', ttl => '1 day', max_attempts => 2);
SELECT wrong('end');
SELECT verify('end', code('end'));
-- a code that expires before that: neither asking for it nor a purge buys guesses
CALL issue('short', ttl => '1 day', max_attempts => 2);
SELECT wrong('short'), wrong('short');
CALL issue('short', ttl => '1 microsecond', max_attempts => 2);
DELETE FROM idem_codes WHERE expires_at < now();
CALL issue('short', ttl => '1 day', max_attempts => 2);
SELECT wrong('short');

-- expired: whatever was guessed; used stays used
CALL issue('expired', ttl => '1 microsecond');
SELECT verify('expired', code('expired')), wrong('expired');
CALL issue('used');
SELECT verify('used', code('used'));
CALL issue('locked', max_attempts => 1);
SELECT wrong('locked'), wrong('locked');
CALL issue('live');
UPDATE idem_codes SET expires_at = t, valid_until = t, counted_until = t FROM clock_timestamp() t WHERE subject IN ('used', 'locked');
SELECT wrong('used'), wrong('locked'), verify('locked', code('locked'));
-- found as expired keys are; the live one stays
DELETE FROM idem_codes WHERE expires_at < now();
SELECT wrong('expired'), wrong('used'), wrong('locked'), verify('live', code('live'));
-- for ever
CALL issue('ever', ttl => '1000 years');
SELECT expires_at, counted_until FROM idem_codes WHERE subject = 'ever';
SELECT verify('ever', code('ever'));

-- read only
\set VERBOSITY sqlstate
BEGIN READ ONLY;
SAVEPOINT s;
SELECT idem_code_issue('otp', 'ro', '1 day') IS NULL;
ROLLBACK TO s;
SELECT * FROM idem_code_verify('otp', 'ever', 'x');
ROLLBACK TO s;
SELECT * FROM idem_code_verify('otp', 'nobody', 'x');
ROLLBACK;
\set VERBOSITY default

-- guesses and new codes are HOT updates: nothing indexed changes
CALL issue('hot');
BEGIN;
SELECT pg_stat_get_xact_tuples_updated('idem_codes'::regclass) AS updated,
	pg_stat_get_xact_tuples_hot_updated('idem_codes'::regclass) AS hot \gset
SELECT wrong('hot');
CALL issue('hot');
SELECT verify('hot', code('hot'));
SELECT pg_stat_get_xact_tuples_updated('idem_codes'::regclass) - :updated AS updated,
	pg_stat_get_xact_tuples_hot_updated('idem_codes'::regclass) - :hot AS hot;
COMMIT;

-- what is stored: no code, and nothing that the codes can be tried on without the secret
SELECT count(*) FROM idem_codes i, c WHERE i::text LIKE '%' || c.code || '%';
CREATE FUNCTION hmac(message bytea, key bytea) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
	pad bytea[] := ARRAY[decode(repeat('5c', 64), 'hex'), decode(repeat('36', 64), 'hex')];
BEGIN
	FOR i IN 0 .. length(key) - 1 LOOP
		pad[1] := set_byte(pad[1], i, get_byte(pad[1], i) # get_byte(key, i));
		pad[2] := set_byte(pad[2], i, get_byte(pad[2], i) # get_byte(key, i));
	END LOOP;
	RETURN sha256(pad[1] || sha256(pad[2] || message));
END $$;
CREATE FUNCTION framed(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT int4send(length($1)) || $1';
SELECT hmac('what do ya want for nothing?', 'Jefe') AS rfc_4231;
-- any later version must know it again
SELECT count(*) AS same
FROM idem_codes i JOIN c USING (subject) JOIN idem_secrets s ON s.id = i.secret
WHERE i.subject = 'ever' AND i.mac = hmac(framed('otp') || framed('ever') || framed(i.nonce) || framed(c.code::bytea), s.secret)
	AND i.digest = encode(substr(sha256(framed('otp') || framed('ever')), 1, 16), 'hex')::uuid;
SELECT count(*) = count(DISTINCT nonce) AND min(length(nonce)) = 16 AS nonces FROM idem_codes;

-- all of the mac counts, and the secret by its id
CALL issue('mac');
UPDATE idem_codes SET mac = set_byte(mac, 31, get_byte(mac, 31) # 1) WHERE subject = 'mac';
SELECT verify('mac', code('mac'));
UPDATE idem_codes SET mac = set_byte(mac, 31, get_byte(mac, 31) # 1) WHERE subject = 'mac';
INSERT INTO idem_secrets (id, secret) VALUES ('00000000-0000-0000-0000-000000000001', decode(repeat('00', 32), 'hex'));
CALL issue('newer');
SELECT secret FROM idem_codes WHERE subject = 'newer';
SELECT verify('mac', code('mac')), verify('newer', code('newer'));
-- whoever deletes the secret ends its codes; no guess at them counts
CALL issue('lost', max_attempts => 1);
DELETE FROM idem_secrets WHERE id = '00000000-0000-0000-0000-000000000001';
SELECT verify('lost', code('lost'));
CALL issue('lost', max_attempts => 1);
SELECT verify('lost', code('lost'));

/*
 * Whatever is typed as a code is wrong, and it counts.
 */
CREATE TABLE odd (id integer GENERATED ALWAYS AS IDENTITY, code text);
CALL issue('odd', max_attempts => 1000);
INSERT INTO odd (code)
SELECT v FROM c, unnest(ARRAY['', ' ', 'x', code || ' ', ' ' || code, code || E'\n', E'\t' || code, '+' || code, '-' || code, '0' || code, code || '0', code || '.0',
	left(code, 9), right(code, 9), substr(code, 1, 5) || ' ' || substr(code, 6), left(code, 3) || '-' || substr(code, 4), code || code, '0x' || code,
	-- digits of other scripts
	translate(code, '0123456789', '０１２３４５６７８９'), translate(code, '0123456789', '٠١٢٣٤٥٦٧٨٩'),
	'''; --', '%', '%%%%%%%%%%', '__________', E'\\', 'é', repeat('é', 5), repeat('é', 10), '😀', repeat('1', 11), repeat('1', 1025), repeat('1', 10000000), repeat('é', 5000000)]) v
WHERE subject = 'odd';
ALTER TABLE odd ALTER code SET STORAGE EXTERNAL;
INSERT INTO odd (code) VALUES (repeat('2', 10000000));
SELECT count(*) AS tried, count(*) FILTER (WHERE v.state = 'wrong') AS wrong, count(DISTINCT attempts_left) AS counted, 1000 - min(attempts_left) AS guesses
FROM odd, LATERAL idem_code_verify('otp', 'odd', odd.code) v;
SELECT attempts = (SELECT count(*) FROM odd) AS counted FROM idem_codes WHERE subject = 'odd';
SELECT verify('odd', code('odd'));

/*
 * Everything else that comes from outside: a SQLSTATE, nothing written, no guess
 * counted, and the session goes on.
 */
CREATE TABLE calls (
	id integer GENERATED ALWAYS AS IDENTITY,
	expected text NOT NULL,
	call text NOT NULL,
	version integer DEFAULT 0,		-- the oldest server that knows the value
	got text,
	usable boolean
);
CALL issue('good', max_attempts => 1);
INSERT INTO calls (expected, call)
SELECT '22004', unnest(ARRAY['idem_code_issue(NULL, ''s'', ''1 day'')', 'idem_code_issue(''otp'', NULL, ''1 day'')', 'idem_code_issue(''otp'', ''s'', NULL)', 'idem_code_issue(NULL, NULL, NULL)',
	'idem_code_verify(NULL, ''good'', ''x'')', 'idem_code_verify(''otp'', NULL, ''x'')', 'idem_code_verify(''otp'', ''good'', NULL)', 'idem_code_verify(''otp'', ''nobody'', NULL)']);
INSERT INTO calls (expected, call)
SELECT CASE WHEN v.good THEN 'true' ELSE '22023' END, format('(%s)::text IS NOT NULL', format(f.call, v.value))
FROM (VALUES (false, $$''$$), (false, $$repeat('k', 1025)$$), (false, $$repeat('k', 10000000)$$), (false, $$repeat('é', 512) || 'k'$$), (false, $$repeat('😀', 257)$$),
	(true, $$' '$$), (true, $$repeat('k', 1024)$$), (true, $$repeat('é', 512)$$), (true, $$repeat('😀', 256)$$)) v (good, value),
	(VALUES ('idem_code_issue(%s, ''s'', ''1 day'')'), ('idem_code_issue(''p'', %s, ''1 day'')'), ('idem_code_verify(%s, ''s'', ''x'')'), ('idem_code_verify(''p'', %s, ''x'')'),
		('idem_code_issue(%1$s, %1$s, ''1 day'')')) f (call);
INSERT INTO calls (expected, call)
SELECT '22023', format('idem_code_issue(''otp'', ''good'', %L)', ttl)
FROM unnest('{0,-1 microsecond,-1 second,0.0000004 seconds,-178000000 years,1 year -12 mons,-12 mon 361 days}'::text[]) ttl;
INSERT INTO calls (expected, call)
SELECT 'true', format('idem_code_issue(''otp'', ''good'', %L) IS NOT NULL', ttl)
FROM unnest('{1 microsecond,999 years,178000000 years,12 mon -364 days,2147483647 days}'::text[]) ttl;
INSERT INTO calls (expected, call, version) VALUES
	('true', $$idem_code_issue('otp', 'good', 'infinity') IS NOT NULL$$, 170000), ('22023', $$idem_code_issue('otp', 'good', '-infinity')$$, 170000);
INSERT INTO calls (expected, call)
SELECT v.expected, format(v.call, i)
FROM (VALUES ('22023', 'idem_code_issue(''otp'', ''good'', ''1 day'', digits => %s)', '{3,11,0,-1,-4,-2147483648,2147483647}'::int[]),
	('true', 'length(idem_code_issue(''otp'', ''good'', ''1 day'', digits => %1$s)) = %1$s', '{4,10}'),
	('22023', 'idem_code_issue(''otp'', ''good'', ''1 day'', max_attempts => %s)', '{0,-1,-2147483648}'),
	('true', 'idem_code_issue(''otp'', ''good'', ''1 day'', max_attempts => %s) IS NOT NULL', '{1,2147483647}')) v (expected, call, n), unnest(v.n) i;
INSERT INTO calls (expected, call) VALUES
	('true', $$length(idem_code_issue('otp', 'good', '1 day', NULL, NULL)) = 6$$),
	('22023', $$idem_code_issue('otp', 'good', '1 day', 3, 0)$$);

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
		usable := (SELECT state FROM idem_code_verify('session', 'session', idem_code_issue('session', 'session', '1 day'))) = 'verified';
		RAISE SQLSTATE 'OK000';
	EXCEPTION WHEN SQLSTATE 'OK000' THEN
		NULL;
	END;
	-- plpgsql's t and f
	got := CASE got WHEN 't' THEN 'true' WHEN 'f' THEN 'false' ELSE got END;
END
$$;
SELECT count(*) AS rows FROM idem_codes \gset
-- each rolled back, so a counted guess would be counted in shared memory only
UPDATE calls c SET (got, usable) = (SELECT t.got, t.usable FROM try(c) t);
-- what went wrong: nothing
SELECT expected, got, usable, left(call, 100) AS call
FROM calls WHERE got IS DISTINCT FROM expected OR usable IS DISTINCT FROM true ORDER BY id;
SELECT expected, count(*) > 0 AS seen FROM calls WHERE got = expected GROUP BY expected ORDER BY expected COLLATE "C";
SELECT count(*) - :rows AS written FROM idem_codes;
SELECT verify('good', code('good'));

-- in any script
SELECT purpose, v.*
FROM (VALUES (U&'\0637\0644\0628', U&'\05D4\05D6'), (U&'\8BA2\5355', U&'\+01F6D2\+01F468\200D\+01F469'), ('%s%n''";--\', E'a\tb\nc')) i (purpose, subject),
	LATERAL idem_code_issue(purpose, subject, '1 day') code, LATERAL idem_code_verify(purpose, subject, code) v;

-- messages
SELECT idem_code_issue('otp', 'good', '1 day', 3);
SELECT idem_code_issue('otp', 'good', '1 day', max_attempts => 0);
SELECT idem_code_issue('otp', NULL, '1 day');
SELECT idem_code_issue('otp', 'good', '-1 day');
SELECT idem_code_issue('otp', repeat('s', 1025), '1 day');
SELECT idem_code_verify('otp', 'good', NULL);
BEGIN READ ONLY;
SELECT idem_code_verify('otp', 'good', '123456');
ROLLBACK;

-- tables that are not as they were made are refused, and nothing is guessed
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER swallow BEFORE UPDATE ON idem_codes FOR EACH ROW EXECUTE FUNCTION swallow();
SELECT wrong('good');
DROP TRIGGER swallow ON idem_codes;
DROP FUNCTION swallow;
ALTER TABLE idem_codes ADD CONSTRAINT never CHECK (attempts < 0) NOT VALID;
SELECT wrong('good');
ALTER TABLE idem_codes DROP CONSTRAINT never;
ALTER TABLE idem_codes SET UNLOGGED;
SELECT wrong('good');
ALTER TABLE idem_codes SET LOGGED;
\set VERBOSITY sqlstate
ALTER TABLE idem_codes ALTER max_attempts TYPE bigint;
SELECT wrong('good');
ALTER TABLE idem_codes ALTER max_attempts TYPE integer;
ALTER TABLE idem_codes ALTER nonce DROP NOT NULL;
CALL issue('no nonce');
UPDATE idem_codes SET nonce = NULL WHERE subject = 'no nonce';
SELECT wrong('no nonce');
DELETE FROM idem_codes WHERE subject = 'no nonce';
ALTER TABLE idem_codes ALTER nonce SET NOT NULL;
\set VERBOSITY default
CALL issue('good');
SELECT wrong('good');

DROP TABLE c, old, odd, calls CASCADE;
DROP FUNCTION code, verify, wrong, hmac, framed;
DROP PROCEDURE issue;
DELETE FROM idem_codes;
DELETE FROM idem_secrets;
