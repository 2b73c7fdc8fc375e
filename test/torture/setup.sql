-- What the torture's clients work on; run once, after CREATE EXTENSION.
-- Needs the extension's schema in search_path.

CREATE SCHEMA torture;

-- Effects of requests, without any constraint that could do the work of the
-- keys.  "attempt" is who made it, as in the clients' history; "phase" is '1' to
-- '3' or 'finish' for work under a lease, else NULL.
CREATE TABLE torture.effects (
	key text NOT NULL,
	kind text NOT NULL,
	attempt text NOT NULL,
	fence bigint,
	phase text,
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Here the row that the trigger guards is the effect.
CREATE TABLE torture.raised (LIKE torture.effects INCLUDING DEFAULTS);
CREATE TABLE torture.skipped (LIKE torture.effects INCLUDING DEFAULTS);
CREATE TRIGGER raised_once AFTER INSERT ON torture.raised
FOR EACH ROW EXECUTE FUNCTION idem_once('key', '30 days', 'raise', 'torture');
CREATE TRIGGER skipped_once BEFORE INSERT ON torture.skipped
FOR EACH ROW EXECUTE FUNCTION idem_once('key', '30 days', 'skip', 'torture');

-- For idem_call.  The attempt is no argument: it differs between those who
-- make the same request.
CREATE FUNCTION torture.make_effect(key text) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO torture.effects (key, kind, attempt)
	VALUES (make_effect.key, 'call', current_setting('torture.attempt'));
	RETURN jsonb_build_object('attempt', current_setting('torture.attempt'));
END $$;

-- The same for idem_call with keep_errors: whoever has torture.fails set leaves nothing but the error.
CREATE FUNCTION torture.try_effect(key text) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO torture.effects (key, kind, attempt)
	VALUES (try_effect.key, 'keep', current_setting('torture.attempt'));
	IF current_setting('torture.fails')::boolean THEN
		RAISE EXCEPTION '%', current_setting('torture.attempt')
		USING ERRCODE = 'TO001', DETAIL = 'sold out', HINT = repeat('ask again later; ', 10);
	END IF;
	RETURN jsonb_build_object('attempt', current_setting('torture.attempt'));
END $$;

-- A result of so many checksums, and the attempt that a result names, if it is as it was made.
CREATE FUNCTION torture.result(attempt text, sums int) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
	SELECT jsonb_build_object('attempt', attempt)
		|| CASE WHEN sums > 0 THEN jsonb_build_object('sums', sums, 'large', (
			SELECT string_agg(md5(attempt || n), '') FROM generate_series(1, sums) n)) ELSE '{}' END
$$;

-- An answer to HTTP names its attempt in a field, an error that was kept in its message.
CREATE FUNCTION torture.answer(result jsonb) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN result ? 'headers' THEN result #>> '{headers,X-Attempt}'
		WHEN result ? 'sqlstate' THEN result ->> 'message'
		WHEN NOT result ? 'large' THEN result ->> 'attempt'
		WHEN result = torture.result(result ->> 'attempt', (result ->> 'sums')::int) THEN result ->> 'attempt'
		ELSE 'damaged: ' || (result ->> 'attempt') END
$$;

-- What was told, in short; as clients.pl writes it down.  Of an answer to HTTP: status, fields, body.
CREATE FUNCTION torture.told(result jsonb) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN result ? 'headers' THEN concat_ws(' ', result ->> 'status',
			(SELECT md5(coalesce(string_agg(f.key || ': ' || f.value || E'\n', '' ORDER BY f.key COLLATE "C"), ''))
			 FROM jsonb_each_text(result -> 'headers') f),
			coalesce(md5(result ->> 'body'), '-'))
		ELSE md5(result::text) END
$$;

-- For the checker.
CREATE VIEW torture.all_effects AS
SELECT key, kind, attempt, fence, phase FROM torture.effects
UNION ALL SELECT key, kind, attempt, fence, phase FROM torture.raised
UNION ALL SELECT key, kind, attempt, fence, phase FROM torture.skipped;

-- "looked_up" comes by way of the index, the rest does not need it.
CREATE VIEW torture.all_keys AS
SELECT k.key, k.finished_at IS NOT NULL AS finished, torture.answer(k.result) AS answer, k.fence, k.phase,
	l.state AS looked_up, torture.told(k.result) AS told,
	(coalesce(k.failed, false) OR (k.result ->> 'status')::int >= 400)::int AS failed
FROM idem_keys k LEFT JOIN LATERAL idem_lookup(k.key, k.scope) l ON true
WHERE k.scope = 'torture'
UNION ALL
SELECT subject, used_at IS NOT NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM idem_tokens WHERE purpose = 'torture'
UNION ALL
SELECT subject, used_at IS NOT NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM idem_codes WHERE purpose = 'torture';
