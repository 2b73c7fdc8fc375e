--
-- A parallel worker claims nothing and counts nothing: the commit guard runs in the leader.
-- Functions of ours are PARALLEL UNSAFE, but a function that calls them may say what it likes.
--
SELECT set_config(CASE WHEN current_setting('server_version_num')::integer >= 160000
	THEN 'debug_parallel_query' ELSE 'force_parallel_mode' END, 'on', false) AS forced;

CREATE FUNCTION runs(statement text) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS $$
BEGIN
	EXECUTE statement;
	RETURN 'done';
END $$;

\set VERBOSITY sqlstate
SELECT runs('SELECT 1');
SELECT runs($$SELECT idem_begin('k')$$);
SELECT runs($$SELECT idem_begin('k', lease => '1 min')$$);
SELECT runs($$SELECT idem_finish('k')$$);
SELECT runs($$SELECT idem_release('k')$$);
SELECT runs($$SELECT idem_extend('k', '1 min')$$);
SELECT runs($$SELECT idem_checkpoint('k', 'p')$$);
SELECT runs($$SELECT idem_claim('k')$$);
SELECT runs($$SELECT idem_claim_many(ARRAY['k'])$$);
SELECT runs($$SELECT idem_call('k', 'version')$$);
SELECT runs($$SELECT idem_forget('k')$$);
SELECT runs($$SELECT idem_forget_scope('s')$$);
SELECT runs($$SELECT idem_token_issue('p', '1 min')$$);
SELECT runs($$SELECT idem_token_redeem('p', repeat('t', 43))$$);
SELECT runs($$SELECT idem_token_revoke('p', repeat('t', 43))$$);
SELECT runs($$SELECT idem_token_revoke_all('p', 's')$$);
SELECT runs($$SELECT idem_code_issue('p', 's', '1 min')$$);
SELECT runs($$SELECT idem_code_verify('p', 's', '1')$$);
SELECT runs($$SELECT idem_throttle('k', '1 min')$$);
\set VERBOSITY terse
SELECT runs($$SELECT idem_begin('k')$$);
SELECT runs($$SELECT idem_throttle('k', '1 min')$$);
\set VERBOSITY default

-- nothing of it is there
SELECT count(*) FROM idem_keys;
DROP FUNCTION runs;
