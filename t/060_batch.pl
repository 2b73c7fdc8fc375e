
# A batch whose rows are in the table and have no index entries yet: a crash, VACUUM, REINDEX
# CONCURRENTLY, logical decoding.  And a storm of batches.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', streaming => 'logical', conf => "deadlock_timeout = 10ms\n");

$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION IF NOT EXISTS amcheck;
CREATE TABLE keys AS SELECT k, idem_digest(k) AS digest FROM generate_series(1, 100) n, concat('key ', n) k;
-- an index of the owner stops a batch at its fiftieth key, if the session asks for that
DO $$ BEGIN EXECUTE format($f$
	CREATE FUNCTION stop_at(key text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $b$
	BEGIN
		IF key = %L AND current_setting('batch.stops', true) = 'on' THEN
			PERFORM pg_advisory_xact_lock(1);
		END IF;
		RETURN 1;
	END $b$ $f$, (SELECT k FROM keys ORDER BY digest OFFSET 49 LIMIT 1)); END $$;
CREATE INDEX stops ON idem_keys (stop_at(key));
SELECT pg_create_logical_replication_slot('changes', 'test_decoding');
SQL

my $claim = 'SELECT count(*) FROM idem_claim_many(ARRAY(SELECT k FROM keys))';
my $lock = $node->background_psql('postgres');

# A session that claims the batch and stops in the middle.
sub stopped_batch
{
	my %batch = (out => '', err => '');

	$lock->query_safe('SELECT pg_advisory_lock(1)');
	$batch{run} = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') . ' application_name=batch', '-c', 'SET batch.stops = on', '-c', $claim ],
		'>', \$batch{out}, '2>', \$batch{err}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'batch' AND wait_event = 'advisory')")
	  or die 'the batch does not stop';
	return \%batch;
}

sub key_number { return $node->safe_psql('postgres', "SELECT k FROM keys ORDER BY digest OFFSET $_[0] - 1 LIMIT 1") }

sub indexes_are_whole
{
	my ($name) = @_;

	is($node->safe_psql('postgres', "SELECT bt_index_check('idem_keys_pkey', true)"), '', "$name: the index is whole");
	sql_is($node, 'postgres', 'SELECT count(*), count(DISTINCT digest) FROM idem_keys WHERE key IN (SELECT k FROM keys)', $_[1], "$name: each key once");
}

#
# Rows of a batch that is killed, half of them with index entries.
#
my $batch = stopped_batch();
crash($node);
IPC::Run::finish($batch->{run});
indexes_are_whole('crash', '0|0');
sql_is($node, 'postgres', "$claim; DELETE FROM idem_keys", '100', 'crash: all keys are free');
$node->safe_psql('postgres', 'VACUUM idem_keys');

#
# VACUUM and REINDEX CONCURRENTLY beside it.  VACUUM passes; REINDEX waits for the batch.
#
$lock = $node->background_psql('postgres');
my $held = $node->background_psql('postgres');
$batch = stopped_batch();
$held->query_safe("BEGIN; SELECT idem_claim('" . key_number(70) . "')");
$node->safe_psql('postgres', 'VACUUM idem_keys');
sql_is($node, 'postgres', "SELECT state FROM idem_begin('" . key_number(10) . "')", 'in_progress', 'a key with an index entry is held');
$lock->query_safe('SELECT pg_advisory_unlock(1)');
$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'batch' AND wait_event = 'transactionid')")
  or die 'the batch does not wait for the key';
$node->safe_psql('postgres', 'VACUUM idem_keys');
my $errors = '';
my $reindex = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', 'REINDEX INDEX CONCURRENTLY idem_keys_pkey' ], '>', \my $reindexed, '2>', \$errors);
$node->poll_query_until('postgres', "SELECT phase = 'waiting for writers before build' FROM pg_stat_progress_create_index") or die 'REINDEX does not wait';
$held->query_safe('COMMIT');
IPC::Run::finish($batch->{run});
is("$batch->{out}$batch->{err}", "99\n", 'a batch goes on without the key that it waited for');
IPC::Run::finish($reindex);
is($errors, '', 'REINDEX CONCURRENTLY comes to its end');
indexes_are_whole('REINDEX', '100|100');

#
# What was rolled back and written again is decoded once.
#
is($node->safe_psql('postgres', <<'SQL'), '100|100', 'logical decoding: each key of the last batch once');
SELECT count(*), count(DISTINCT key) FROM (
	SELECT substring(data FROM $$ key\[text\]:'([^']*)'$$) AS key, max(lsn) OVER () FROM pg_logical_slot_get_changes('changes', NULL, NULL)
	WHERE data LIKE '%idem_keys: INSERT%' ORDER BY lsn DESC LIMIT 100) c
WHERE key IN (SELECT k FROM keys);
SQL

#
# Memory: neither the rows of a statement nor those of a batch are all kept in it.
#
SKIP:
{
	skip 'no /proc', 2 if !-r '/proc/self/status';
	my $peak = "SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status') FROM 'VmHWM:\\s*(\\d+)')::int AS peak";
	my $grown = "SELECT CASE WHEN :after_peak - :before_peak > 50000 THEN :after_peak - :before_peak || ' kB' ELSE 'little' END";
	my $results = "array_fill(to_jsonb(repeat('x', 500000)), ARRAY[200])";

	is($node->safe_psql('postgres', <<SQL), 'little', 'a statement of 100 MB');
SET maintenance_work_mem = '1MB';
CREATE TABLE wide (k int, payload text);
CREATE TRIGGER once AFTER INSERT ON wide REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION idem_once('k', NULL, NULL, 'wide');
INSERT INTO wide SELECT i, repeat('x', 1000) FROM generate_series(1, 1000) i;
$peak \\gset before_
INSERT INTO wide SELECT i, repeat('x', 1000) FROM generate_series(1001, 101000) i;
$peak \\gset after_
$grown;
SQL
	is($node->safe_psql('postgres', <<SQL), "200\n200\nlittle", 'a batch of 100 MB');
SELECT cardinality($results);
$peak \\gset before_
SELECT idem_import_many(ARRAY(SELECT 'large ' || i FROM generate_series(1, 200) i), $results);
$peak \\gset after_
$grown;
SQL
	$node->safe_psql('postgres', "DROP TABLE wide; DELETE FROM idem_keys WHERE key NOT IN (SELECT k FROM keys)");
}

#
# A statement that meets an expired key has written in vain.  The next ones look before they write.
#
is($node->safe_psql('postgres', <<'SQL'), 't|t', 'statements with an expired key each: few rows are written in vain');
DROP INDEX stops;
CREATE TABLE again (k text);
CREATE TRIGGER once AFTER INSERT ON again REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION idem_once('k', NULL, NULL, 'again');
INSERT INTO again SELECT 'expired ' || i FROM generate_series(1, 60) i;
UPDATE idem_keys SET expires_at = now() WHERE scope = 'again';
DO $$ BEGIN PERFORM pg_stat_force_next_flush(); END $$;
SELECT n_tup_ins AS before FROM pg_stat_all_tables WHERE relid = 'idem_keys'::regclass \gset
CREATE PROCEDURE insert_again() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 60 LOOP
		INSERT INTO again SELECT concat(i, ' new ', n) FROM generate_series(1, 200) n UNION ALL SELECT 'expired ' || i;
		COMMIT;
	END LOOP;
END $$;
CALL insert_again();
DO $$ BEGIN PERFORM pg_stat_force_next_flush(); END $$;
SELECT n_tup_ins - :before >= 12000, n_tup_ins - :before < 14000 FROM pg_stat_all_tables WHERE relid = 'idem_keys'::regclass;
SQL
$node->safe_psql('postgres', "DROP TABLE again; DELETE FROM idem_keys WHERE scope = 'again'");

#
# Batches at once, by both ways, in all orders: no deadlock, and each key with its effect once.
#
$node->safe_psql('postgres', <<'SQL');
DELETE FROM idem_keys;
CREATE TABLE effects (k text);
CREATE TABLE events (k text);
CREATE TRIGGER once AFTER INSERT ON events REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
	EXECUTE FUNCTION idem_once('k', NULL, NULL, 'storm');
CREATE PROCEDURE claim_some(first int) LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effects SELECT key FROM idem_claim_many(ARRAY(SELECT 'k' || i FROM generate_series(first, first + 200) i ORDER BY random()), scope => 'storm');
	IF random() < 0.2 THEN
		ROLLBACK;
	END IF;
END $$;
CREATE PROCEDURE insert_some(first int) LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO events SELECT 'k' || i FROM generate_series(first, first + 20) i ORDER BY random();
EXCEPTION WHEN unique_violation THEN
END $$;
SQL
my $before = -s $node->logfile;
$node->pgbench('-n -c 8 -j 2 -t 150', 0, [qr{processed: 1200/1200}], [qr{^$}], 'storm',
	{
		'056_many@2' => "\\set first random(1, 4000)\nCALL claim_some(:first);\n",
		'056_statement@1' => "\\set first random(1, 4000)\nCALL insert_some(:first);\n",
		'056_single@1' => "\\set k random(1, 4000)\nINSERT INTO effects SELECT 'k' || :k WHERE idem_claim('k' || :k, scope => 'storm');\n",
	});
sql_is($node, 'postgres', <<'SQL', 't|0|0', 'storm: each key once, with its effect');
WITH done AS (SELECT k FROM effects UNION ALL SELECT k FROM events)
SELECT (SELECT count(*) > 3000 AND count(*) = count(DISTINCT k) FROM done),
	(SELECT count(*) FROM (SELECT k FROM done EXCEPT SELECT key FROM idem_keys WHERE scope = 'storm') x),
	(SELECT count(*) FROM (SELECT key FROM idem_keys WHERE scope = 'storm' EXCEPT SELECT k FROM done) x);
SQL
is($node->safe_psql('postgres', "SELECT bt_index_check('idem_keys_pkey', true)"), '', 'storm: the index is whole');
unlike(slurp_file($node->logfile, $before), qr/deadlock detected/, 'storm: no deadlock');

$_->quit for $lock, $held;
$node->stop('fast');

done_testing();
