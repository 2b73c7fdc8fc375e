-- Orders through PostgREST or PostGraphile, each once, without a program.  Run as a superuser, in
-- an empty database:  psql -v ON_ERROR_STOP=1 -f examples/postgrest/schema.sql

-- PostgREST exposes the schema api and nothing else.
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;

CREATE ROLE shop;                             -- owns all of it; only its functions claim keys
SELECT idem.idem_grant('shop', ARRAY['claims']);
CREATE ROLE web_user;                         -- what a request with a valid JWT runs as
CREATE ROLE authenticator LOGIN NOINHERIT;    -- what PostgREST connects as
GRANT web_user TO authenticator;

CREATE SCHEMA shop AUTHORIZATION shop;
CREATE SCHEMA api AUTHORIZATION shop;
SET ROLE shop;

CREATE TABLE shop.orders (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	user_name text NOT NULL,
	item text NOT NULL,
	quantity int NOT NULL CHECK (quantity > 0),
	created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE shop.stock (
	item text PRIMARY KEY,
	available int NOT NULL CHECK (available >= 0)
);
INSERT INTO shop.stock VALUES ('book', 1000), ('lamp', 1000), ('gold', 0);

-- Give the view no defaults: what a client sends is compared as the triggers see it.
CREATE VIEW api.orders WITH (security_barrier) AS
SELECT id, item, quantity, created_at
FROM shop.orders
WHERE user_name = nullif(current_setting('request.jwt.claims', true), '')::json ->> 'sub';

GRANT USAGE ON SCHEMA api TO web_user;
GRANT SELECT, INSERT ON api.orders TO web_user;

-- The triggers of one INSERT share these settings, which end with the transaction, and with a
-- savepoint that is rolled back:
--
--   shop.claim   key and scope of the claim; is it a replay; which INSERT of the transaction
--   shop.row     how many rows it has had
--   shop.lines   a line of JSON for each row: what was asked for, and what was answered
--   shop.tail    the newest of these lines
--
-- After a transaction such a setting is '', not NULL.

CREATE FUNCTION shop.refuse(status int, detail text, headers text DEFAULT '{}') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	-- how PostgREST lets a function choose status and headers
	RAISE SQLSTATE 'PGRST' USING
		MESSAGE = json_build_object('code', status::text, 'message', detail),
		DETAIL = json_build_object('status', status, 'headers', headers::json);
END $$;

-- BEFORE INSERT, once for a request: begin the claim.
CREATE FUNCTION shop.begin_request() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, idem, pg_temp AS $$
DECLARE
	headers json := nullif(current_setting('request.headers', true), '');
	claims json := nullif(current_setting('request.jwt.claims', true), '');
	before jsonb := nullif(current_setting('shop.claim', true), '');
	statement int := coalesce((before ->> 'statement')::int, 0) + 1;
	scope text;
	answer record;
BEGIN
	IF claims ->> 'sub' IS NULL THEN
		PERFORM shop.refuse(401, 'Who are you?  The token has no sub.');
	END IF;

	-- A key belongs to a user, a method and a path.  A GraphQL request may have several INSERTs
	-- under one key: each is a claim, by its position.
	scope := jsonb_build_array(claims ->> 'sub', current_setting('request.method', true),
		current_setting('request.path', true), TG_TABLE_NAME, statement);

	-- PostgREST does not say what the body was: the rows are compared below.  Without a key its
	-- argument is NULL, which it answers with 400.
	SELECT * INTO answer FROM idem_http_begin(headers ->> 'idempotency-key',
		nullif(current_setting('request.body', true), ''), scope, wait_ms => 500);
	IF NOT (answer.run OR answer.replayed) THEN
		-- 400, 409 with Retry-After in whole seconds, 422; they say where your API's documentation is
		PERFORM shop.refuse(answer.status, answer.body::json ->> 'detail', (answer.headers::jsonb - 'Content-Type'
			|| '{"Link": "<https://shop.example/docs/idempotency>; rel=\"describedby\""}')::text);
	END IF;
	IF answer.replayed THEN
		PERFORM set_config('response.headers', '[{"Idempotent-Replayed": "true"}]', true);
	END IF;

	PERFORM set_config('shop.claim', jsonb_build_object('key', headers ->> 'idempotency-key',
			'scope', scope, 'replayed', answer.replayed, 'statement', statement)::text, true),
		set_config('shop.row', '0', true),
		set_config('shop.lines', coalesce(answer.body, ''), true),
		set_config('shop.tail', '', true);
	RETURN NULL;
END $$;

-- The next row of the INSERT: the answer that it had, or NULL if it is to be worked on.
CREATE FUNCTION shop.next_row(asked jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
	n int := current_setting('shop.row')::int + 1;
	line jsonb;
BEGIN
	PERFORM set_config('shop.row', n::text, true);
	IF NOT (current_setting('shop.claim')::jsonb -> 'replayed')::boolean THEN
		RETURN NULL;
	END IF;
	line := nullif(split_part(current_setting('shop.lines'), E'\n', n), '');
	IF line -> 'asked' IS DISTINCT FROM asked THEN
		PERFORM shop.refuse(422, 'This Idempotency-Key was used with another request.');
	END IF;
	RETURN line -> 'answered';
END $$;

-- Note the answer to a row that was worked on.  To append to a setting copies it, so that all
-- lines are copied only once in a while.
CREATE FUNCTION shop.note_row(asked jsonb, answered jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	tail text := current_setting('shop.tail') || jsonb_build_object('asked', asked, 'answered', answered) || E'\n';
BEGIN
	IF length(tail) > 20000 THEN
		PERFORM set_config('shop.lines', current_setting('shop.lines') || tail, true);
		tail := '';
	END IF;
	PERFORM set_config('shop.tail', tail, true);
END $$;

-- INSTEAD OF INSERT, for each row: replay it, or do the work.
CREATE FUNCTION shop.insert_order() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	asked jsonb := to_jsonb(NEW);
	answered jsonb := shop.next_row(asked);
BEGIN
	IF answered IS NOT NULL THEN
		RETURN jsonb_populate_record(NEW, answered);
	END IF;

	UPDATE shop.stock SET available = available - NEW.quantity
	WHERE item = NEW.item AND available >= NEW.quantity;
	IF NOT FOUND THEN
		-- An error rolls back all rows and the claim: the next attempt tries again.
		PERFORM shop.refuse(422, 'Sold out.');
	END IF;
	INSERT INTO shop.orders (user_name, item, quantity)
	VALUES (current_setting('request.jwt.claims')::json ->> 'sub', NEW.item, NEW.quantity)
	RETURNING id, created_at INTO NEW.id, NEW.created_at;

	PERFORM shop.note_row(asked, to_jsonb(NEW));
	RETURN NEW;
END $$;

-- AFTER INSERT, once: finish the claim.  Without this trigger nothing would commit (ID005).
CREATE FUNCTION shop.finish_request() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, idem, pg_temp AS $$
DECLARE
	claim jsonb := current_setting('shop.claim');
	lines text := current_setting('shop.lines') || current_setting('shop.tail');
BEGIN
	IF NOT (claim -> 'replayed')::boolean THEN
		-- The scope is that of the begin: a claim is a key in a scope.  201 is what PostgREST answers,
		-- to the first request and to its replay.
		PERFORM idem_http_finish(claim ->> 'key', 201, lines, NULL, claim ->> 'scope');
	ELSIF split_part(lines, E'\n', current_setting('shop.row')::int + 1) <> '' THEN
		PERFORM shop.refuse(422, 'This Idempotency-Key was used with another request.');
	END IF;
	RETURN NULL;
END $$;

CREATE TRIGGER begin_request BEFORE INSERT ON api.orders
FOR EACH STATEMENT EXECUTE FUNCTION shop.begin_request();
CREATE TRIGGER insert_order INSTEAD OF INSERT ON api.orders
FOR EACH ROW EXECUTE FUNCTION shop.insert_order();
CREATE TRIGGER finish_request AFTER INSERT ON api.orders
FOR EACH STATEMENT EXECUTE FUNCTION shop.finish_request();

RESET ROLE;
