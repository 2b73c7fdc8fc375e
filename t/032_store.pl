
# The table under the functions: its indexes built anew, published with a row filter,
# rows that move while they are looked for, vacuum while a session waits.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# sessions must wait here without a deadlock check
my $node = new_node('main', streaming => 1, conf => "deadlock_timeout = 1h\n");

# A session that runs some statements on its own.
sub session
{
	my ($name, @statements) = @_;
	my %session = (out => '', err => '');

	$session{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=sqlstate', '-d', $node->connstr('postgres') . " application_name=$name", map { ('-c', $_) } @statements ],
		'>', \$session{out}, '2>', \$session{err}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return \%session;
}

sub ends_with
{
	my ($session, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	IPC::Run::finish($session->{run});
	return is("$session->{out}$session->{err}", $expected, $name);
}

# Until the condition holds of the session of that name.
sub until_it
{
	my ($name, $condition) = @_;

	$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = '$name' AND ($condition))")
	  or die "$name: never $condition";
}

sub waits_for_relation { until_it($_[0], "wait_event_type = 'Lock' AND wait_event = 'relation'") }

#
# REINDEX CONCURRENTLY puts another index in the primary key's place between a session's look
# for the key and its lock on it.  There it is held up by a session that waits for the index.
#
my $old = $node->background_psql('postgres');
$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
my $reindex = session('reindex', 'REINDEX INDEX CONCURRENTLY idem_keys_pkey');
$node->poll_query_until('postgres', "SELECT phase = 'waiting for old snapshots' FROM pg_stat_progress_create_index") or die 'REINDEX does not wait';
my $mover = session('mover', 'ALTER INDEX idem_keys_pkey SET TABLESPACE pg_default');
waits_for_relation('mover');
my $claim = session('claim', "SELECT idem_claim('new key')");
waits_for_relation('claim');
$old->query_safe('COMMIT');
$node->poll_query_until('postgres', "SELECT phase = 'waiting for readers before marking dead' FROM pg_stat_progress_create_index") or die 'indexes are not swapped';
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'mover'");
ends_with($mover, "ERROR:  57014\n", 'who waits for the index is cancelled');
ends_with($claim, "t\n", 'a key is claimed while the index of the primary key is exchanged');
ends_with($reindex, '', 'REINDEX CONCURRENTLY comes to its end');
$old->quit;

#
# A begin is overtaken, and finds that out by the old index, which is marked dead in the
# meantime: marking is held up, and so comes after the begin, and before the duplicate.
#
my ($keeper, $catalog, $batch) = map { $node->background_psql('postgres') } 1 .. 3;
$old = $node->background_psql('postgres');
$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$reindex = session('reindex', 'REINDEX INDEX CONCURRENTLY idem_keys_pkey');
$node->poll_query_until('postgres', "SELECT phase = 'waiting for old snapshots' FROM pg_stat_progress_create_index") or die 'REINDEX does not wait';
$keeper->query_safe('BEGIN; LOCK idem_keys IN ROW EXCLUSIVE MODE');
$old->query_safe('COMMIT');
$node->poll_query_until('postgres', "SELECT phase = 'waiting for readers before marking dead' FROM pg_stat_progress_create_index") or die 'indexes are not swapped';
$catalog->query_safe('BEGIN; LOCK pg_index IN SHARE MODE');
$keeper->query_safe('COMMIT');
waits_for_relation('reindex');
$batch->query_safe('BEGIN; SELECT pg_advisory_lock(1)');
my $finish = session('finish', 'BEGIN', "SELECT state FROM idem_begin('overtaken')", 'DO $$ BEGIN PERFORM pg_advisory_lock(1); END $$', "SELECT idem_finish('overtaken')");
until_it('finish', "wait_event = 'advisory'");
$batch->query_safe("SELECT idem_claim_many('{overtaken}'); SELECT pg_advisory_unlock(1)");
until_it('finish', "wait_event = 'transactionid'");
$catalog->query_safe('COMMIT');
$node->poll_query_until('postgres', "SELECT phase = 'waiting for readers before dropping' FROM pg_stat_progress_create_index") or die 'the old index is not marked dead';
$batch->query_safe('COMMIT');
ends_with($finish, "started\nERROR:  40001\n", 'an index that is no longer primary finds the duplicate');
ends_with($reindex, '', 'REINDEX CONCURRENTLY comes to its end');
$_->quit for $old, $keeper, $catalog, $batch;

#
# What changes between the check of the table and its end is not taken for checked.
#
my $owner = $node->background_psql('postgres');
$owner->query_safe('BEGIN; ALTER INDEX idem_keys_pkey SET TABLESPACE pg_default');
my $reader = session('reader', <<'SQL');
DO $$
BEGIN
	PERFORM idem_lookup('new key');
EXCEPTION WHEN feature_not_supported THEN
END $$;
SELECT idem_claim('unguarded');
SQL
waits_for_relation('reader');
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER t BEFORE INSERT ON idem_keys FOR EACH ROW EXECUTE FUNCTION nothing();
SQL
$owner->query_safe('COMMIT');
ends_with($reader, "ERROR:  0A000\n", 'a trigger that is made while the table is checked');
$node->safe_psql('postgres', 'DROP TRIGGER t ON idem_keys');
$owner->quit;

# nor is a table that was checked before, once it changes while a session waits for its lock
my $maker = $node->background_psql('postgres');
$maker->query_safe('BEGIN; SELECT pg_advisory_lock(2)');
my $knows = session('knows', "SELECT idem_claim('knows')", 'DO $$ BEGIN PERFORM pg_advisory_lock(2); END $$', "SELECT state FROM idem_begin('knows not')");
until_it('knows', "wait_event = 'advisory'");
$maker->query_safe('CREATE TRIGGER t BEFORE INSERT ON idem_keys FOR EACH ROW EXECUTE FUNCTION nothing(); SELECT pg_advisory_unlock(2)');
waits_for_relation('knows');
$maker->query_safe('COMMIT');
ends_with($knows, "t\nERROR:  0A000\n", 'a trigger that is made while a session waits for a table that it knows');
$node->safe_psql('postgres', 'DROP TRIGGER t ON idem_keys');
$maker->quit;

#
# A row that is there all the time, and is found all the time, though each change of it makes an index entry
# elsewhere.  On the primary the key's lock keeps most changes away; here it is the owner's own, without a lock.
#
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE stop ();
CREATE INDEX moves ON idem_keys (expires_at);
SELECT idem_claim('moves');
SQL
my @movers = map {
	session("mover_$_", <<'SQL')
DO $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM stop) LOOP
		UPDATE idem_keys SET expires_at = expires_at + '1 s' WHERE key = 'moves';
		COMMIT;
	END LOOP;
END $$
SQL
} 1 .. 2;
sql_is($node, 'postgres', <<'SQL', '', 'a row that moves is found each time');
SET default_transaction_read_only = on;
DO $$
BEGIN
	FOR i IN 1 .. 5000 LOOP
		IF idem_claim('moves') OR (SELECT state FROM idem_begin('moves')) <> 'replayed' THEN
			RAISE 'not found';
		END IF;
		COMMIT;
	END LOOP;
END $$
SQL
$node->safe_psql('postgres', 'INSERT INTO stop DEFAULT VALUES');
ends_with($_, '', 'the mover has come to its end') for @movers;
$node->safe_psql('postgres', 'DROP INDEX moves');

#
# A begin waits for a subtransaction, whose savepoint is then released, and for its transaction: no longer than asked for.
#
my $holder = $node->background_psql('postgres');
$holder->query_safe("BEGIN; SAVEPOINT a; SELECT idem_claim_many('{held}')");
my $waiter = session('waiter', "SELECT state FROM idem_begin('held', wait => '4 s')", 'SELECT clock_timestamp()');
until_it('waiter', "wait_event = 'transactionid'");
# most of its time has passed
until_it('waiter', "clock_timestamp() > query_start + '3 s'");
my $released = $holder->query_safe('SELECT clock_timestamp(); RELEASE a');
IPC::Run::finish($waiter->{run});
my ($state, $ended) = split /\n/, $waiter->{out};
is($state, 'in_progress', 'a begin has waited for a savepoint that was released');
sql_is($node, 'postgres', "SELECT timestamptz '$ended' < timestamptz '$released' + '4 s'", 't', 'and its time has not begun anew');
$holder->query_safe('COMMIT');
$holder->quit;

#
# A key with many versions, whose entries the index has put together into lists.
#
my $old_reader = $node->background_psql('postgres');
$old_reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION pageinspect;
TRUNCATE idem_keys;
CREATE INDEX not_hot ON idem_keys (expires_at);
SELECT idem_begin('versions'), idem_finish('versions', '"answer"');
DO $$ BEGIN FOR i IN 1 .. 500 LOOP UPDATE idem_keys SET expires_at = expires_at + interval '1 second'; END LOOP; END $$;
SQL
sql_is($node, 'postgres', "SELECT count(*) > 0 FROM generate_series(1, pg_relation_size('idem_keys_pkey')::int / 8192 - 1) b, bt_page_items('idem_keys_pkey', b) i WHERE cardinality(i.tids) > 1",
	't', 'the index has lists of entries');
sql_is($node, 'postgres', "SELECT state, result FROM idem_begin('versions')", 'replayed|"answer"', 'a key with many versions');
$old_reader->quit;
$node->safe_psql('postgres', 'DROP INDEX not_hot');

#
# An expired row whose older version, which a snapshot still needs, comes after it in the index: the row is
# taken over as it is, not as it was.
#
$node->safe_psql('postgres', "TRUNCATE idem_keys; SELECT idem_claim('first'), idem_claim('old', ttl => '1 hour'); DELETE FROM idem_keys WHERE key = 'first'");
$node->safe_psql('postgres', 'VACUUM idem_keys');
$old_reader = $node->background_psql('postgres');
$old_reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$node->safe_psql('postgres', "CREATE INDEX not_hot ON idem_keys (expires_at)");
sql_is($node, 'postgres', "UPDATE idem_keys SET scope = 'renamed', expires_at = now() - interval '1 second'; SELECT ctid FROM idem_keys", '(0,1)', 'the newer version is before the older one');
sql_is($node, 'postgres', "SELECT idem_claim('old'); SELECT scope, key, count(*) OVER () FROM idem_keys", "t\nrenamed|old|1", 'it is claimed again');
$old_reader->quit;
$node->safe_psql('postgres', 'DROP INDEX not_hot');

#
# What an index of the owner runs, also when it is opened, runs as the owner and with a safe search_path.
#
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE app LOGIN;
GRANT EXECUTE ON FUNCTION idem_claim, idem_claim_many TO app;
CREATE FUNCTION reveal(t text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
	RAISE LOG '% ran as % with path %', t, current_user, current_setting('search_path');
	RETURN t;
END $$;
CREATE INDEX revealing ON idem_keys ((reveal('constant') || reveal(key)));
SQL
my $log_start = -s $node->logfile;
sql_is($node, 'postgres', "SET search_path = pg_temp, public; SELECT idem_claim('alone'), (SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'together ' || i FROM generate_series(1, 20) i)))",
	't|20', 'claims by another role', '-U', 'app');
my $log = slurp_file($node->logfile, $log_start);
my $table_owner = $node->safe_psql('postgres', 'SELECT current_user');
like($log, qr/$_ ran as \Q$table_owner\E with path pg_catalog, pg_temp/, "$_: the index's function runs as the owner") for qw(constant alone), 'together 1';
unlike($log, qr/ran as app/, 'never as the caller');
unlike($log, qr/ran as .* with path (?!pg_catalog, pg_temp)/, 'nor with its search_path');
$node->safe_psql('postgres', 'DROP INDEX revealing');

#
# Who waits, for a standby or for a holder, has no page pinned: VACUUM does not wait as well.
#
sub vacuum_passes
{
	my ($name) = @_;
	my $vacuum = session('vacuum', 'SET synchronous_commit = local', 'VACUUM (FREEZE) idem_keys');
	my $rest = "FROM pg_stat_activity WHERE application_name = 'vacuum'";

	eventually(sub { IPC::Run::pump_nb($vacuum->{run}); return !$vacuum->{run}->pumpable
		  || $node->safe_psql('postgres', "SELECT count(*) $rest AND wait_event IN ('BufferPin', 'BufferCleanup')") })
	  or die 'VACUUM does not end';
	is($node->safe_psql('postgres', "SELECT count(*) $rest AND wait_event IN ('BufferPin', 'BufferCleanup')"), '0', "$name: VACUUM does not wait");
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) $rest");
	ends_with($vacuum, '', "$name: and comes to its end");
}

sub standby_is
{
	my ($name) = @_;

	$node->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = '$name'");
	$node->reload;
	$node->poll_query_until('postgres', "SELECT current_setting('synchronous_standby_names') = '$name'") or die 'no reload';
}

$node->safe_psql('postgres', "SELECT idem_claim('pinned')");
my %asker = (
	begin => [ "SELECT state FROM idem_begin('pinned')", 'replayed' ],
	lookup => [ "SELECT state FROM idem_lookup('pinned')", 'finished' ],
);

# One after the other: what one of them can see need not be frozen beside it.
for my $name (sort keys %asker)
{
	my ($sql, $answer) = @{ $asker{$name} };

	standby_is('nobody');
	$node->safe_psql('postgres', "SET synchronous_commit = local; UPDATE idem_keys SET attempt = 1 WHERE key = 'pinned'");
	my $waiter = session($name, $sql);
	until_it($name, "wait_event = 'SyncRep'");
	vacuum_passes("$name waits for a standby");
	standby_is('');
	ends_with($waiter, "$answer\n", "$name: an answer in the end");
}

$node->safe_psql('postgres', "SELECT idem_claim('replaced'); UPDATE idem_keys SET expires_at = now() WHERE key = 'replaced'");
my $finisher = $node->background_psql('postgres', on_error_stop => 0);
$finisher->query_safe("SET application_name = 'finisher'; BEGIN; SELECT idem_begin('replaced')");
$batch = $node->background_psql('postgres');
$batch->query_safe("BEGIN; SELECT idem_claim_many('{replaced}')");
$finisher->{stdin} .= "SELECT idem_finish('replaced', '1');\n";
$finisher->{run}->pump_nb;
until_it('finisher', "wait_event = 'transactionid'");
vacuum_passes('a finish waits for a batch');
$batch->query_safe('ROLLBACK');
$finisher->query('COMMIT');
sql_is($node, 'postgres', "SELECT state, result FROM idem_lookup('replaced')", 'finished|1', 'the finish goes on');
$_->quit for $batch, $finisher;

$node->safe_psql('postgres', "SELECT idem_claim('replaced 2'); UPDATE idem_keys SET expires_at = now() WHERE key = 'replaced 2'");
$holder = $node->background_psql('postgres');
$holder->query_safe("BEGIN; SELECT idem_claim('replaced 2')");
# so many that it keeps a scan
my $many = session('many', "SELECT count(*) FROM idem_claim_many(array_fill('replaced 2'::text, '{8}'))");
until_it('many', "wait_event = 'transactionid'");
vacuum_passes('a batch waits for a holder');
$holder->query_safe('ROLLBACK');
ends_with($many, "1\n", 'the batch goes on');
$holder->quit;

#
# A look-up under a transaction that has itself changed the leased claim
#
sql_is($node, 'postgres', <<'SQL', "in_progress\nin_progress|a\nin_progress|a\nfinished|1", 'look-ups of an own leased claim');
BEGIN;
SELECT FROM idem_begin('own', lease => '1 hour');
SELECT state FROM idem_lookup('own');
DO $$ BEGIN PERFORM idem_checkpoint('own', 'a'); END $$;
SELECT state, phase FROM idem_lookup('own');
COMMIT;
BEGIN;
DO $$ BEGIN PERFORM idem_extend('own', '1 hour', fence => (SELECT fence FROM idem_keys WHERE key = 'own')); END $$;
SELECT state, phase FROM idem_lookup('own');
DO $$ BEGIN PERFORM idem_finish('own', '1', fence => (SELECT fence FROM idem_keys WHERE key = 'own')); END $$;
SELECT state, result FROM idem_lookup('own');
COMMIT;
SQL
sql_is($node, 'postgres', <<'SQL', "abandoned\n0", 'of one that it has released, and of an own claim without a lease');
BEGIN;
DO $$ BEGIN PERFORM idem_begin('own 2', lease => '1 hour'), idem_release('own 2'); END $$;
SELECT state FROM idem_lookup('own 2');
DO $$ BEGIN PERFORM idem_claim('own 3'); END $$;
SELECT count(*) FROM idem_lookup('own 3');
COMMIT;
SQL

#
# The trigger inserts first while keys are new, but not if another index of the owner's might object to a row that
# only replaces an expired one.  Each psql is a new session, whose first key is likely to be new.
#
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE seen (id text);
CREATE TRIGGER seen_once AFTER INSERT ON seen FOR EACH ROW EXECUTE FUNCTION idem_once('id', '1 hour');
CREATE UNIQUE INDEX by_key ON idem_keys (scope, key);
INSERT INTO seen VALUES ('expired');
UPDATE idem_keys SET expires_at = now() WHERE key = 'expired';
SQL
sql_is($node, 'postgres', q{INSERT INTO seen VALUES ('expired'); SELECT count(*) FROM seen}, '2', 'a further unique index: an expired key is taken');
sql_fails($node, 'postgres', q{INSERT INTO seen VALUES ('expired')}, '23505', 'and then it is known');
# as do the keys of a statement, whose duplicates are those of the trigger
$node->safe_psql('postgres', <<'SQL');
DROP TRIGGER seen_once ON seen;
CREATE TRIGGER seen_once AFTER INSERT ON seen REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION idem_once('id', '1 hour');
UPDATE idem_keys SET expires_at = now() WHERE key = 'expired';
SQL
my $statement = q{INSERT INTO seen SELECT 'new ' || i FROM generate_series(1, 20) i UNION ALL SELECT 'expired'};
sql_is($node, 'postgres', "$statement; SELECT count(*) FROM seen", '23', 'with others in a statement');
my (undef, undef, $duplicate) = $node->psql('postgres', $statement);
like($duplicate, qr/duplicate key value violates unique constraint "seen_once"/, 'a duplicate is found by the trigger');
$node->safe_psql('postgres', 'DROP INDEX by_key; DROP TABLE seen');

#
# A restored database after which the original went on: who holds a fence of the original is refused.
#
my $take_over = <<'SQL';
UPDATE idem_keys SET lease_until = now() WHERE key = 'restored' AND finished_at IS NULL;
SELECT fence FROM idem_begin('restored', lease => '1 hour');
SQL
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$node->safe_psql('postgres', 'CREATE DATABASE original; CREATE DATABASE copy');
my $first = $node->safe_psql('original', "CREATE EXTENSION idempotency; SELECT fence FROM idem_begin('restored', lease => '1 hour')");
$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('original') ], 'pg_dump with an open lease');
my $zombie = $node->safe_psql('original', $take_over);
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('copy'), '-f', $dump ], 'restore');
my $new = $node->safe_psql('copy', $take_over);
cmp_ok($new, '>', $zombie, 'the fence of a take-over is new, and above those of the original');
for my $fence ($first, $zombie)
{
	sql_fails($node, 'copy', "SELECT idem_finish('restored', '1', fence => $fence)", 'ID004', "restored: fence $fence of the original is refused");
}
sql_is($node, 'copy', "SELECT idem_finish('restored', '1', fence => $new)", '1', 'restored: the new holder finishes');

$node->stop('fast');

done_testing();
