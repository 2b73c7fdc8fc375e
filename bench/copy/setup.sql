-- The contestants of bench/copy/run: one table each for every type of key, and
-- a file with the rows, :dir/TYPE.rows.
DROP SCHEMA IF EXISTS bench CASCADE;
CREATE SCHEMA bench;
CREATE EXTENSION IF NOT EXISTS idempotency SCHEMA public;

SELECT format('CREATE TABLE bench.%s_%s (key %2$s NOT NULL, customer int NOT NULL, item text NOT NULL)', contestant, type)
FROM unnest(ARRAY['floor', 'unique', 'once', 'batch']) contestant, unnest(ARRAY['text', 'uuid']) type
\gexec

ALTER TABLE bench.unique_text ADD UNIQUE (key);
ALTER TABLE bench.unique_uuid ADD UNIQUE (key);

CREATE TRIGGER once AFTER INSERT ON bench.once_text FOR EACH ROW EXECUTE FUNCTION idem_once('key');
CREATE TRIGGER once AFTER INSERT ON bench.once_uuid FOR EACH ROW EXECUTE FUNCTION idem_once('key');

CREATE TRIGGER once AFTER INSERT ON bench.batch_text REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION idem_once('key');
CREATE TRIGGER once AFTER INSERT ON bench.batch_uuid REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION idem_once('key');

SELECT format('COPY (SELECT gen_random_uuid(), 7, ''book'' FROM generate_series(1, %s)) TO %L', :rows, :'dir' || '/' || type || '.rows')
FROM unnest(ARRAY['text', 'uuid']) type
\gexec
