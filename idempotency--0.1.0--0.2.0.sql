/* idempotency--0.1.0--0.2.0.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION idempotency UPDATE TO '0.2.0'" to load this file. \quit

-- In a qual, after everything else: what a function claims or counts stays, whatever the rest says.
ALTER FUNCTION idem_begin(text, interval, text, jsonb, interval, interval) COST 1000;
ALTER FUNCTION idem_finish(text, jsonb, text, bigint) COST 1000;
ALTER FUNCTION idem_release(text, text, bigint) COST 1000;
ALTER FUNCTION idem_extend(text, interval, text, bigint) COST 1000;
ALTER FUNCTION idem_checkpoint(text, text, jsonb, text, bigint, interval) COST 1000;
ALTER FUNCTION idem_claim(text, interval, text, jsonb) COST 1000;
ALTER FUNCTION idem_claim_many(text[], interval, text) COST 1000;
ALTER FUNCTION idem_call(text, text, jsonb, interval, text, interval) COST 1000;
ALTER FUNCTION idem_token_issue(text, interval, jsonb, text) COST 1000;
ALTER FUNCTION idem_token_redeem(text, text) COST 1000;
ALTER FUNCTION idem_token_revoke(text, text) COST 1000;
ALTER FUNCTION idem_token_revoke_all(text, text) COST 1000;
ALTER FUNCTION idem_code_issue(text, text, interval, integer, integer) COST 1000;
ALTER FUNCTION idem_code_verify(text, text, text) COST 1000;
ALTER FUNCTION idem_throttle(text, interval, integer, text, integer) COST 1000;
ALTER FUNCTION idem_forget(text, text) COST 1000;
ALTER FUNCTION idem_forget_scope(text) COST 1000;
