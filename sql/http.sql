-- HTTP answers: idem_http_begin and idem_http_finish.
SET client_encoding = 'UTF8';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

-- ------------------------------------------------------------------------
-- Each answer
-- ------------------------------------------------------------------------

\x on
BEGIN;
SELECT * FROM idem_http_begin('a1', '{"item": "book"}', 'POST /orders');
-- this transaction has it open
SELECT * FROM idem_http_begin('a1', '{"item": "book"}', 'POST /orders');
SELECT idem_http_finish('a1', 201, '{"b":1,"a":1e2}', '{"Content-Type": "application/json", "Location": "/orders/1"}', 'POST /orders');
SELECT * FROM idem_http_begin('a1', '{"item": "book"}', 'POST /orders');
COMMIT;
-- replayed; JSON is compared as JSON
SELECT * FROM idem_http_begin('a1', '{"item": "book"}', 'POST /orders');
SELECT * FROM idem_http_begin('a1', ' { "item" : "b\u006fok" } ', 'POST /orders');
SELECT * FROM idem_http_begin('a1', NULL, 'POST /orders');
-- another request
SELECT * FROM idem_http_begin('a1', '{"item": "lamp"}', 'POST /orders');
SELECT * FROM idem_http_begin('a1', '{"item": "book"', 'POST /orders');
SELECT * FROM idem_http_begin('a1', '', 'POST /orders');
-- another scope
BEGIN;
SELECT * FROM idem_http_begin('a1', '{"item": "book"}', 'PUT /orders');
ROLLBACK;
-- the row is an ordinary one
SELECT state, result, failed FROM idem_begin('a1', scope => 'POST /orders', request => '{"item": "book"}');

-- under a lease
SELECT * FROM idem_http_begin('leased', lease_ms => 3600000) \gset leased_
SELECT :'leased_run' AS run, :leased_fence > 0 AS fenced;
SELECT run, status, headers, body, retry_after BETWEEN 3590 AND 3600 AS retry_after, replayed, fence FROM
	(SELECT run, status, regexp_replace(headers, '3[56]\d\d', 'N') AS headers, body, retry_after, replayed, fence FROM idem_http_begin('leased')) a;
-- taken over; not less than a second, and never more than an integer
SELECT idem_extend('leased', '1 ms', fence => :leased_fence) IS NOT NULL AS extended, pg_sleep(0.01);
BEGIN;
SELECT fence > :leased_fence AS fence, run FROM idem_http_begin('leased', lease_ms => 200);
SELECT * FROM idem_http_begin('leased');
ROLLBACK;
SELECT state, fence FROM idem_begin('forever', lease => '2000 years') \gset forever_
SELECT * FROM idem_http_begin('forever');
SELECT idem_http_finish('forever', 204, fence => :forever_fence);
SELECT * FROM idem_http_begin('forever');
\set VERBOSITY sqlstate
SELECT idem_http_finish('leased', 200, fence => :leased_fence + 100);
SELECT idem_http_finish('leased', 200);
SELECT idem_http_finish('leased', 202, 'done', NULL, NULL, :leased_fence);
SELECT idem_http_finish('leased', 202, 'done', NULL, NULL, :leased_fence);
\set VERBOSITY default
SELECT * FROM idem_http_begin('leased');

-- in seconds, rounded up
SET idempotency.retry_after = '2001ms';
BEGIN;
SELECT run FROM idem_http_begin('a2');
SELECT * FROM idem_http_begin('a2');
ROLLBACK;
RESET idempotency.retry_after;
\x off

-- a ttl in seconds
BEGIN;
SELECT run, idem_http_finish('a3', 200) FROM idem_http_begin('a3', ttl_s => 100);
COMMIT;
SELECT extract(epoch FROM expires_at - finished_at) AS ttl FROM idem_lookup('a3');

-- read-only: replays, and nothing else
BEGIN READ ONLY;
SELECT run, status, body FROM idem_http_begin('a1', scope => 'POST /orders');
SELECT run, status FROM idem_http_begin(NULL);
SELECT idem_http_begin('a4');
ROLLBACK;
BEGIN;
SELECT run FROM idem_http_begin('a4');
SET TRANSACTION READ ONLY;
SELECT idem_http_finish('a4', 200);
ROLLBACK;

-- an open claim cannot be committed
SELECT run FROM idem_http_begin('a5');

-- ------------------------------------------------------------------------
-- Keys
-- ------------------------------------------------------------------------

CREATE TABLE keys (id integer GENERATED ALWAYS AS IDENTITY, value text);
INSERT INTO keys (value) VALUES
	(NULL), (''), (' '), (E'\t \t'), ('""'), (' "" '), ('k'), ('"k"'), (' k '), (E'\t"k"\t'), ('" k"'), ('"k "'), ('k"'), ('k\'), ('"'), (' "'), ('"k'), ('"k" x'), ('"k";a=1'), ('"k""'),
	('"k\"'), ('"k\'), ('"a\"b"'), ('"a\\b"'), ('a"b'), ('a\b'), ('"a\b"'), (E'"a\tb"'), (E'a\tb'), (E'"a\u007fb"'), ('"é"'), ('é'), (E'k\n'), ('key with blanks'), ('"key with blanks"'),
	(repeat('k', 1024)), ('"' || repeat('k', 1024) || '"'), (repeat('k', 1025)), ('"' || repeat('k', 1025) || '"'), (' ' || repeat('k', 1024) || ' '),
	('"' || repeat('\"', 1024) || '"'), ('"' || repeat('\"', 1025) || '"'), (repeat('é', 512)), (repeat('é', 512) || 'k'), (repeat('k', 10000000)), ('"' || repeat('k', 10000000));
CREATE FUNCTION try_key(id integer, value text, OUT run boolean, OUT status integer, OUT detail text, OUT made_by text, OUT key text) LANGUAGE plpgsql AS $$
DECLARE
	answer record;
BEGIN
	answer := idem_http_begin(value);
	run := answer.run;
	status := answer.status;
	IF run THEN
		PERFORM idem_http_finish(value, 200, id::text);
		key := (SELECT k.key FROM idem_keys k WHERE k.result ->> 'body' = id::text);
	ELSIF answer.replayed THEN
		made_by := answer.body;
	ELSE
		detail := answer.body::json ->> 'detail';
	END IF;
END $$;
-- which key is it, if it is one?
SELECT id, left(value, 20) AS value, run, status, detail, made_by, left(key, 20) AS key, octet_length(key) AS bytes
FROM keys, try_key(id, value) ORDER BY id;
-- the same key, and a program's errors
BEGIN;
SELECT run FROM idem_http_begin('"q\"1"');
SELECT idem_http_finish(' q"1 ', 200, 'one');
SELECT status, body, replayed FROM idem_http_begin('"q\"1" ');
SELECT state, result ->> 'body' AS body FROM idem_begin('q"1');
COMMIT;
SELECT idem_http_finish(NULL, 200);
SELECT idem_http_finish('', 200);
SELECT idem_http_finish('""', 200);
SELECT idem_http_finish('"k', 200);
SELECT idem_http_finish(repeat('k', 1025), 200);
SELECT idem_http_finish('k', NULL);

-- ------------------------------------------------------------------------
-- Scopes
-- ------------------------------------------------------------------------

SET idempotency.default_scope = 'ada';
BEGIN;
SELECT run, idem_http_finish('s1', 200, 'for ada') FROM idem_http_begin('s1');
COMMIT;
SELECT body FROM idem_http_begin('s1', scope => 'ada');
SET idempotency.default_scope = 'bob';
BEGIN;
SELECT run, body FROM idem_http_begin('s1');
ROLLBACK;
RESET idempotency.default_scope;
-- whatever the client has sent
SET idempotency.require_scope = on;
SELECT status FROM idem_http_begin(NULL, scope => 's');
SELECT status FROM idem_http_begin('s1');
SELECT status FROM idem_http_begin(NULL);
SELECT status FROM idem_http_begin('');
SELECT status FROM idem_http_begin('"x');
SELECT idem_http_finish('s1', 200);
RESET idempotency.require_scope;
SELECT status FROM idem_http_begin('s1', scope => repeat('s', 1025));
SELECT status FROM idem_http_begin(NULL, scope => repeat('s', 1025));

-- ------------------------------------------------------------------------
-- What the program does wrong
-- ------------------------------------------------------------------------

SELECT idem_http_begin('e1', ttl_s => 0);
SELECT idem_http_begin(NULL, ttl_s => -1);
SELECT idem_http_begin('e1', wait_ms => -1);
SELECT idem_http_begin('e1', lease_ms => 0);
SELECT idem_http_finish('e1', 200);
BEGIN;
SELECT run FROM idem_http_begin('e2', NULL, NULL, 2147483647, 2147483647, NULL);
SAVEPOINT s;
SELECT idem_http_finish('e2', 500);
ROLLBACK TO s;
SELECT idem_http_finish('e2', 103);
ROLLBACK;
CREATE FUNCTION try_finish(status integer, body text DEFAULT NULL, headers text DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_http_begin('e3');
	PERFORM idem_http_finish('e3', status, body, headers);
	RAISE SQLSTATE 'XXOKK';
EXCEPTION
	WHEN SQLSTATE 'XXOKK' THEN RETURN 'ok';
	WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
SELECT status, try_finish(status)
FROM unnest('{-1, 0, 99, 100, 101, 103, 199, 200, 204, 302, 400, 407, 408, 409, 424, 425, 426, 428, 429, 430, 499, 500, 503, 599, 600, 2147483647}'::int[]) status;
SELECT headers, try_finish(200, 'b', headers)
FROM unnest(ARRAY[NULL, '{}', '', 'null', '"a"', '[]', '[{"A": "b"}]', '{"A": 1}', '{"A": null}', '{"A": ["b"]}', '{"A": "b"', '{"A": "b"} x', '{"": "b"}', '{"A B": "b"}', '{"A:": "b"}', '{"é": "b"}',
	'{"A": "b\r\nSet-Cookie: c"}', '{"A": "b\n"}', '{"A": "\r"}', '{"A": ""}', '{"A": "é"}', '{"A": "\u0000"}', '{"X-!#$%&''*+-.^_`|~09": "b"}']) headers;

-- ------------------------------------------------------------------------
-- Bodies and headers, as they were
-- ------------------------------------------------------------------------

CREATE FUNCTION replay(k text, s integer, b text DEFAULT NULL, h text DEFAULT NULL,
	OUT run boolean, OUT status integer, OUT headers text, OUT body text, OUT retry_after integer, OUT replayed boolean, OUT fence bigint)
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_http_begin(k, 'r');
	PERFORM idem_http_finish(k, s, b, h);
	SELECT * INTO run, status, headers, body, retry_after, replayed, fence FROM idem_http_begin(k, 'r');
END $$;
CREATE TABLE bodies (id integer GENERATED ALWAYS AS IDENTITY, body text);
INSERT INTO bodies (body) VALUES
	(NULL), (''), (' '), ('null'), ('{"b":1,"a":1e2}'), ('{"a": 1, "a": 2}'), ('{"emoji": "😀"}'), ('"\ud83d"'), ('"\u0000"'), ('{"open": '), ('\'), ('"'), (E'line\r\nline\n'),
	((SELECT string_agg(chr(i), '') FROM generate_series(1, 300) i)), ('𝄞 é 鍵'), ('<p>"no" JSON\u0041</p>'), (repeat('x', 1000000)), (repeat('{"b":1e2,"é":"😀"}', 50000));
SELECT id, left(b.body, 20) AS body, length(b.body), md5(b.body), run, status, replayed, r.body IS NOT DISTINCT FROM b.body AS same
FROM bodies b, replay('body ' || id, 200, b.body) r WHERE id <> 14 ORDER BY id;
SELECT r.body = b.body AS same FROM bodies b, replay('body ' || id, 200, b.body) r WHERE id = 14;
-- after a commit as well
SELECT count(*) FILTER (WHERE r.body IS NOT DISTINCT FROM b.body) AS same, count(*) FROM bodies b, idem_http_begin('body ' || id, 'r') r;
SELECT id, r.headers FROM unnest(ARRAY[NULL, '{}', '{"Content-Type": "text/html"}',
	'{"Connection": "close, x-hop ,X-Other", "X-Hop": "1", "x-other": "2", "X-Kept": "3", "Close": "4"}',
	'{"keep-alive": "1", "PROXY-AUTHENTICATE": "1", "Proxy-Authorization": "1", "proxy-connection": "1", "tE": "1", "trailer": "1", "Transfer-Encoding": "chunked", "upgrade": "1"}',
	'{"Set-Cookie": "session=1", "DATE": "now", "content-length": "12", "Content-Language": "en", "Dates": "1", "TEA": "1", "Set-Cookies": "1"}',
	'{"X-Quote": "\"\\\u00e9", "x-a": "1", "X-A": "2"}']) WITH ORDINALITY h (headers, id),
	replay('headers ' || id, 200, 'b', h.headers) r ORDER BY id;
-- too large
SET idempotency.max_result_size = 100;
SELECT try_finish(200, repeat('x', 101));
SELECT try_finish(200, repeat('x', 95));
SELECT try_finish(200, 'x', '{"A": "' || repeat('x', 100) || '"}');
SELECT try_finish(200, 'x');
RESET idempotency.max_result_size;

-- ------------------------------------------------------------------------
-- Requests
-- ------------------------------------------------------------------------

-- what is equal is the same request: as JSON, where jsonb can hold it, else byte for byte
CREATE TABLE requests (id integer GENERATED ALWAYS AS IDENTITY, a text, b text);
INSERT INTO requests (a, b) VALUES
	('{"a":1,"b":2}', '{"b": 2.0, "a": 1}'), ('1', '1.0'), ('"a"', 'a'), ('a', 'a'), ('a', 'a '), ('', ''), ('', ' '), ('', 'null'), ('null', 'null'), ('null', '{}'),
	('"\ud83d"', '"\ud83d"'), ('"\ud83d"', '"\uD83D"'), ('"\u0000"', '"\u0000"'), ('"\u0000"', ' "\u0000"'), ('{"a": "\u0000"}', '{"a":"\u0000"}'), ('"\ud83d\ude00"', '"😀"'), ('"\u00e9"', '"é"'),
	('1e99999999', '1e99999999'), ('1e99999999', '10e99999998'), ('1e999', '10e998'), ('1e-999', '10e-1000'), ('1e1000', '10e999'), ('1e0999', '1e999'), ('1e00999', '1e999'), ('1e-99999', '1e-99999'), ('1' || repeat('0', 999), '1e999'), ('1' || repeat('0', 1000), '1e1000'),
	('1e400000', '1e400000'), (repeat('9', 200000), repeat('9', 200000)), ('1.' || repeat('9', 20000), '1.' || repeat('9', 20000)),
	(repeat('[', 256) || repeat(']', 256), repeat('[', 256) || ' ' || repeat(']', 256)), (repeat('[', 257) || repeat(']', 257), repeat('[', 257) || repeat(']', 257)), (repeat('[', 257) || repeat(']', 257), repeat('[', 257) || ' ' || repeat(']', 257)),
	(repeat('[', 10000000), repeat('[', 10000000)), ('{"a":' || repeat('[', 100000) || repeat(']', 100000) || '}', '{"a":' || repeat('[', 100000) || repeat(']', 100000) || '}'),
	('"' || repeat('[', 300) || '"', ' "' || repeat('[', 300) || '"'), ('"\"' || repeat('[', 300) || '"', ' "\"' || repeat('[', 300) || '"'), ('["1e5000", "a\\"]', '["1e5000","a\\"]'),
	('[' || repeat('1,', 2000000) || '1]', '[' || repeat('1, ', 100000) || repeat('1,', 1900000) || '1]'), ('[' || repeat(' ', 4194302) || ']', '[]'), ('[' || repeat(' ', 4194303) || ']', '[]'), (repeat('x', 20000000), repeat('x', 20000000)),
	('{"a":1,"a":2}', '{"a":2}'), ('=', '='), ('[1,]', '[1, ]'), ('"', '"'), ('"\', '"\'), ('tru', 'true'), ('true', ' true'), ('NaN', 'NaN'), ('1 2', '1 2'), ('-', '-'), ('1e', '1e'), ('.5', '0.5');
CREATE FUNCTION same_request(id integer, a text, b text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	run boolean;
	answer record;
BEGIN
	SELECT r.run INTO run FROM idem_http_begin('request ' || id, a) r;
	PERFORM idem_http_finish('request ' || id, 204);
	answer := idem_http_begin('request ' || id, b);
	RETURN CASE WHEN NOT run THEN 'never run' WHEN answer.status = 204 THEN 'same' WHEN answer.status = 422 THEN 'other' ELSE answer::text END;
END $$;
SELECT id, left(a, 24) AS a, left(b, 24) AS b, same_request(id, a, b) FROM requests ORDER BY id;
-- as idem_begin with the same jsonb
SELECT state FROM idem_begin('request 1', request => '{"b": 2, "a": 1}');
-- whatever the stack and the caller's function
SET max_stack_depth = '1MB';
SELECT id, same_request(id + 1000, a, b) FROM requests WHERE a LIKE '[[[%' ORDER BY id;
RESET max_stack_depth;

-- ------------------------------------------------------------------------
-- Rows of other functions
-- ------------------------------------------------------------------------

-- made without a request: not the answer to one
BEGIN;
SELECT run, idem_http_finish('o1', 200, 'o1') FROM idem_http_begin('o1');
COMMIT;
SELECT run, status, body FROM idem_http_begin('o1');
SELECT run, status, body FROM idem_http_begin('o1', 'request');
SELECT idem_claim('o2');
SELECT run, status, headers, body, replayed FROM idem_http_begin('o2');
SELECT run, status FROM idem_http_begin('o2', '{}');

CREATE TABLE results (id integer GENERATED ALWAYS AS IDENTITY, failed boolean, result jsonb);
INSERT INTO results (failed, result) VALUES
	(false, NULL), (false, 'null'), (false, '"text"'), (false, '[1]'), (false, '{"order": 1}'), (false, '{}'),
	(false, '{"status": 201, "headers": {"A": "b"}, "body": "text"}'), (false, '{"status": 201, "headers": null, "body": null}'), (false, '{"status": 201, "headers": {}, "body": ""}'),
	(false, '{"status": 201, "headers": {"A": 1}, "body": "text"}'), (false, '{"status": 201, "headers": ["A"], "body": "text"}'), (false, '{"status": 201, "headers": "A", "body": "text"}'),
	(false, '{"status": 201, "headers": {}, "body": {"a": 1}}'), (false, '{"status": "201", "headers": {}, "body": "text"}'), (false, '{"status": 201.0, "headers": {}, "body": "text"}'),
	(false, '{"status": 503, "headers": {}, "body": "text"}'), (false, '{"status": 1e300, "headers": {}, "body": "text"}'), (false, '{"status": -20, "headers": {}, "body": "text"}'),
	(false, '{"status": 201, "headers": {}, "body": "text", "more": 1}'), (false, '{"status": 201, "headers": {}, "bodies": "text"}'), (false, '{"status": 201, "header": {}, "body": "text"}'),
	(true, NULL), (true, 'null'), (true, '"card declined"'), (true, '42'), (true, '["a", 1]'), (true, '{}'), (true, '{"title": "Sold out", "detail": "No books are left."}'),
	(true, '{"status": 402, "title": "Payment Required"}'), (true, '{"status": 200}'), (true, '{"status": 302}'), (true, '{"status": 429}'), (true, '{"status": 503}'), (true, '{"status": "402"}'), (true, '{"status": 1e5}'), (true, '{"status": null}'),
	(true, '{"status": 402, "headers": {"Content-Type": "text/plain"}, "body": "no money"}'),
	(false, '{"status": 201, "headers": {"A": "b\r\nSet-Cookie: c"}, "body": "text"}'), (false, '{"status": 201, "headers": {"A B": "c"}, "body": "text"}'),
	(false, '{"status": 201, "headers": {"set-cookie": "session=1", "Content-Length": "1", "connection": "x-hop", "X-Hop": "1", "A": "b"}, "body": "text"}'),
	(true, '{"status": 200, "headers": {}, "body": "no money"}');
CREATE FUNCTION finish_as(id integer, failed boolean, result jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_begin('result ' || id);
	IF failed THEN
		PERFORM idem_fail('result ' || id, result);
	ELSE
		PERFORM idem_finish('result ' || id, result);
	END IF;
END $$;
SELECT count(finish_as(id, failed, result)) FROM results;
SELECT id, h.run, h.status, h.replayed, h.headers, h.body FROM results r, idem_http_begin('result ' || id) h ORDER BY id;
-- and of idem_call
CREATE FUNCTION http_fails(item text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'no %', item USING ERRCODE = 'P0404'; END $$;
SELECT state, failed FROM idem_call('o3', 'http_fails', '{"item": "book"}', keep_errors => '{P0404}');
SELECT status, headers, body FROM idem_http_begin('o3');
SELECT status, headers, body FROM idem_http_begin('o3', '{"item": "book"}');

-- ------------------------------------------------------------------------
-- Calls
-- ------------------------------------------------------------------------

-- parameters without types are those of the function, and nothing needs a cast
PREPARE http_begin AS SELECT * FROM idem_http_begin($1, $2, $3, $4, $5, $6);
PREPARE http_begin_named AS SELECT run, status FROM idem_http_begin(key => $1, lease_ms => $2, request => $3);
PREPARE http_finish AS SELECT idem_http_finish($1, $2, $3, $4, $5, $6);
SELECT name, parameter_types FROM pg_prepared_statements ORDER BY name COLLATE "C";
BEGIN;
EXECUTE http_begin('p1', '{}', NULL, '60', '0', NULL);
EXECUTE http_finish('p1', '201', '{}', '{}', NULL, NULL);
EXECUTE http_begin('p1', '{}', NULL, NULL, NULL, NULL);
EXECUTE http_begin_named('p2', NULL, NULL);
EXECUTE http_finish('p2', 204, NULL, NULL, NULL, NULL);
COMMIT;
EXECUTE http_begin(NULL, NULL, NULL, NULL, NULL, NULL);
EXECUTE http_begin('p2', NULL, NULL, NULL, NULL, NULL);
EXECUTE http_finish(NULL, NULL, NULL, NULL, NULL, NULL);
DEALLOCATE ALL;

-- one statement
WITH b AS MATERIALIZED (SELECT * FROM idem_http_begin('p3', 'r')),
	f AS (SELECT idem_http_finish('p3', 201, 'made') AS status FROM b WHERE b.run)
SELECT coalesce(f.status, b.status) AS status, b.replayed FROM b LEFT JOIN f ON true;
SELECT status, body, replayed FROM idem_http_begin('p3', 'r');

DROP FUNCTION try_key, try_finish, replay, same_request, finish_as, http_fails;
DROP TABLE keys, bodies, requests, results;
DELETE FROM idem_keys;
