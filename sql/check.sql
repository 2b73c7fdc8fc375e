-- idem_check: the commit guard's check, now.  For tests that roll back.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

SELECT idem_check();
BEGIN;
SELECT idem_check();
SELECT state FROM idem_begin('k1');
SELECT state FROM idem_begin('k2');
SAVEPOINT s;
SELECT idem_check();
ROLLBACK TO s;
SELECT idem_release('k1');
SAVEPOINT s;
SELECT idem_check();
ROLLBACK TO s;
SELECT idem_finish('k2');
SELECT idem_check();
-- a rollback to a savepoint reopens the claim
SAVEPOINT s;
SELECT state FROM idem_begin('k3');
SAVEPOINT t;
SELECT idem_finish('k3');
ROLLBACK TO t;
\set VERBOSITY sqlstate
SELECT idem_check();
ROLLBACK TO s;
SELECT idem_check();
-- a leased claim may be open at commit
SELECT state FROM idem_begin('k4', lease => '1 hour');
SELECT idem_check();
-- a key that has expired before the commit
SELECT idem_claim('k5', '1 microsecond');
\set VERBOSITY default
SELECT idem_check();
ROLLBACK;

-- it is not an error of the guard, and the session goes on
SELECT coalesce(guard_errors, 0) AS errors FROM idem_stat WHERE datname = current_database() \gset
BEGIN;
SELECT state FROM idem_begin('k1');
SELECT idem_check();
ROLLBACK;
SELECT coalesce(guard_errors, 0) = :errors AS same FROM idem_stat WHERE datname = current_database();
SELECT idem_check();
