-- For a test with a table of bad input, "calls": makes a call and rolls it back, as a savepoint would.
-- The test has functions prepare(), run before a call, and usable(), which says whether the session
-- goes on after it.  Where OK is expected, anything but an error is right.
CREATE FUNCTION try(c calls, OUT got text, OUT usable boolean)
LANGUAGE plpgsql AS $$
BEGIN
	IF c.version > current_setting('server_version_num')::integer THEN
		got := c.expected;
		usable := true;
		RETURN;
	END IF;
	BEGIN
		PERFORM prepare(c);
		EXECUTE 'SELECT ' || c.call INTO got;
		IF c.expected = 'OK' THEN
			got := 'OK';
		END IF;
		RAISE SQLSTATE 'OK000';
	EXCEPTION
		WHEN SQLSTATE 'OK000' THEN NULL;
		WHEN OTHERS THEN got := SQLSTATE;
	END;
	BEGIN
		usable := usable();
		RAISE SQLSTATE 'OK000';
	EXCEPTION WHEN SQLSTATE 'OK000' THEN
		NULL;
	END;
	-- plpgsql's t and f
	got := CASE got WHEN 't' THEN 'true' WHEN 'f' THEN 'false' ELSE got END;
END
$$;
