
# Purges by hand: in order, in batches that stay committed, with progress reports, and without
# keeping claims waiting.  The background worker is off here.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', streaming => 1, conf => <<'CONF');
shared_preload_libraries = 'idempotency'
idempotency.purge_interval = 0
max_connections = 50
CONF

$node->safe_psql('postgres', fill_procedure());

# How many are left, and the first of them.
sub left
{
	return $node->safe_psql('postgres', "SELECT count(*), min(substring(key FROM 6)::int) FROM idem_keys WHERE key LIKE 'fill %'");
}

#
# The oldest first, and on from where the last purge was broken off
#
$node->safe_psql('postgres', 'CALL fill(10000); CALL idem_purge(100, 4000)');
is(left(), '6000|4001', 'the oldest go first');
# what comes into the places that it has freed has to wait for the next round
$node->safe_psql('postgres', <<'SQL');
VACUUM idem_keys;
INSERT INTO idem_keys (digest, scope, key, created_at, finished_at, expires_at, attempt)
SELECT gen_random_uuid(), '', 'new ' || i, clock_timestamp(), clock_timestamp(), clock_timestamp(), 1 FROM generate_series(1, 1000) i;
CALL idem_purge(100, 4000);
SQL
is(left(), '2000|8001', 'the next purge goes on there');
sql_is($node, 'postgres', "SELECT count(*) FROM idem_keys WHERE key LIKE 'new %'", '1000', 'and not at the start');
$node->safe_psql('postgres', "CALL idem_purge(max_duration => '1 hour')");
is(left(), '0|', 'and gets to the end');
# rows in places that it has passed are found on the next round
$node->safe_psql('postgres', 'VACUUM idem_keys; CALL fill(1000); CALL idem_purge(100, 500)');
my $began = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
$node->safe_psql('postgres', 'CALL idem_purge()');
is(left(), '0|', 'a purge goes once round');
sql_is($node, 'postgres', "SELECT purged, last_purge > '$began' FROM idem_stat WHERE datname = 'postgres'", '12000|t', 'counted');
# short ones get round, too
$node->safe_psql('postgres', 'TRUNCATE idem_keys; CALL fill(5000)');
$node->safe_psql('postgres', 'CALL idem_purge(10, 50)') for 1 .. 100;
is(left(), '0|', 'many short purges are a long one');
# a token is not kept waiting by a table of keys that never ends
$node->safe_psql('postgres', <<'SQL');
CALL fill(10000);
SELECT idem_token_issue('p', '1 hour');
UPDATE idem_tokens SET expires_at = now();
SQL
$node->safe_psql('postgres', 'CALL idem_purge(100, 150)') for 1 .. 3;
sql_is($node, 'postgres', 'SELECT (SELECT count(*) FROM idem_tokens), (SELECT count(*) > 9000 FROM idem_keys)', '0|t', 'every table has its turn');
$node->safe_psql('postgres', 'CALL idem_purge()');

#
# A batch does not wait for a standby; the commit of the caller's own changes does
#
$node->safe_psql('postgres', <<'SQL');
CALL fill(100);
CREATE TABLE written (n int);
CREATE PROCEDURE write_and_purge() LANGUAGE plpgsql AS $$
DECLARE
	keys bigint; tokens bigint; codes bigint;
BEGIN
	INSERT INTO written VALUES (1);
	CALL idem_purge(NULL, NULL, NULL, keys, tokens, codes);
END $$;
SQL
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nosuch'\n");
$node->reload;
# How often the statements have waited for a standby; each wait is cancelled when it is seen.
sub waits
{
	my @options = map { ('-c', $_) } @_;
	my ($out, $err, $cancels) = ('', '', 0);
	my $run = IPC::Run::start([ 'psql', '-Xq', '-d', $node->connstr('postgres') . ' application_name=waits', @options ],
		'<', \undef, '>', \$out, '2>', \$err);
	my $waited = sub { my $n = () = $err =~ /canceling wait for synchronous replication/g; return $n };

	eventually(sub {
		$run->pump_nb;
		return 1 if !$run->pumpable;
		# the last one was noticed, so that this is another
		$cancels += $node->safe_psql('postgres', "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE application_name = 'waits' AND wait_event = 'SyncRep'")
		  if $cancels == $waited->();
		return 0;
	}) or die 'it does not end';
	$run->finish;
	return $err =~ /ERROR|FATAL/ ? $err : $waited->();
}

# the checkpointer makes it known
eventually(sub { return waits("DO 'BEGIN INSERT INTO written VALUES (0); COMMIT; END'") }) or die;
is(waits('CALL idem_purge()'), 0, 'waits for no standby');
is(left(), '0|', 'and has purged');
is(waits('SET synchronous_commit = off', 'CALL fill(100)', 'RESET synchronous_commit', 'CALL write_and_purge()'), 1, 'what was written before does');
is(left(), '0|', 'all purged');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");
$node->reload;
$node->poll_query_until('postgres', q{SELECT setting = '' FROM pg_settings WHERE name = 'synchronous_standby_names'}) or die;

#
# Broken off: what was committed stays removed, nothing else is
#
$node->safe_psql('postgres', 'TRUNCATE idem_keys; CALL fill(100000)');
my $purger = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $purger->query_safe('SELECT pg_backend_pid()');
# the table is taken away from it in between
my $locker = $node->background_psql('postgres');

# within one statement, which begins before the purge: a look by another client could come after the purge has ended
sub purge_and_lock_once_fewer_than
{
	my ($rows) = @_;

	waiting($locker, "BEGIN; DO \$\$ BEGIN WHILE (SELECT count(*) FROM idem_keys) >= $rows LOOP NULL; END LOOP; LOCK TABLE idem_keys; END \$\$");
	waiting($purger, 'CALL idem_purge(3)');
	$node->poll_query_until('postgres', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid")
	  or die 'the purge does not wait';
}

purge_and_lock_once_fewer_than(100000);
my $before = $locker->query_safe('SELECT count(*) FROM idem_keys');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
$locker->query_safe('COMMIT');
is($purger->query('SELECT 1'), '1', 'the session goes on');
like($purger->{stderr}, qr/canceling statement due to user request/, 'cancelled at once');
$purger->{stderr} = '';
is((split /\|/, left())[0], $before, 'cancelled: batches that were committed stay, nothing else goes');
cmp_ok($before, '<', 100000, 'some were committed');
is((100000 - $before) % 3, 0, 'whole batches');

#
# Progress, every few seconds
#
purge_and_lock_once_fewer_than($before);
$node->poll_query_until('postgres', "SELECT clock_timestamp() - query_start > interval '5.2 s' FROM pg_stat_activity WHERE pid = $pid") or die;
$locker->query_safe('COMMIT');
$purger->query('SELECT 1');
like($purger->{stderr}, qr/NOTICE:  \d+ rows removed, about \d+ left, \d+ rows per second/, 'it reports its progress');
is(left(), '0|', 'and it ended');
$purger->quit;

# a duration that is over at once still ends well
sql_is($node, 'postgres', "CALL fill(1000); CALL idem_purge(max_duration => '1 microsecond')", '0|0|0', 'no time, no work');
$node->safe_psql('postgres', 'CALL idem_purge()');

#
# Rows that another session has locked, or is changing, stay; the purge does not wait for it
#
$node->safe_psql('postgres', 'CALL fill(10)');
$locker->query_safe("BEGIN; SELECT key FROM idem_keys WHERE key IN ('fill 3', 'fill 7') FOR KEY SHARE");
sql_is($node, 'postgres', "SET lock_timeout = '1ms'; CALL idem_purge()", '8|0|0', 'locked rows are skipped');
$locker->query_safe('COMMIT');
sql_is($node, 'postgres', 'CALL idem_purge()', '2|0|0', 'and purged later');
# two purges at once share the work
$node->safe_psql('postgres', 'CALL fill(20000)');
pgbench($node, "CALL idem_purge(100);\n", '-c', '5', '-t', '1');
is(left(), '0|', 'five purges at once');
$locker->quit;

#
# A storm: keys live for milliseconds, purges run without pause, and every effect is
# counted: none twice within its key's ttl
#
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE effects (k text, earliest timestamptz, latest timestamptz, ttl interval);
CREATE FUNCTION try(k text, how int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	earliest timestamptz := clock_timestamp();
	ttl interval := interval '1 ms' * (20 + how * 10);
	mine boolean := false;
	fence bigint;
BEGIN
	IF how = 0 THEN
		mine := idem_claim(k, ttl);
	ELSIF how = 1 THEN
		mine := (idem_begin(k, ttl)).state = 'started';
	ELSIF how = 2 THEN
		mine := EXISTS (SELECT FROM idem_claim_many(ARRAY[k, k], ttl));
	ELSE
		fence := (idem_begin(k, ttl, lease => '1 hour')).fence;
		mine := fence IS NOT NULL;
	END IF;
	IF mine THEN
		-- a begun key lives from its finish on, which may come much later
		IF how IN (1, 3) THEN
			earliest := clock_timestamp();
			PERFORM idem_finish(k, fence => fence);
		END IF;
		INSERT INTO effects VALUES (k, earliest, clock_timestamp(), ttl);
	END IF;
END $$;
SQL
my %scripts = (
	'claim@20' => "\\set k random(1, 8)\n\\set how random(0, 3)\nSELECT try('k' || :k, :how);\n",
	'roll_back@4' => "\\set k random(1, 8)\n\\set how random(0, 3)\nBEGIN;\nSELECT try('k' || :k, :how);\nROLLBACK;\n",
	'purge@6' => "CALL idem_purge(:k);\n",
);
my @files;
for my $name (sort keys %scripts)
{
	my ($plain, $weight) = split /@/, $name;
	my $path = $node->basedir . "/$plain.sql";

	append_to_file($path, "\\set k random(1, 8)\n" . $scripts{$name});
	push @files, '-f', "$path\@$weight";
}
# A slow machine gets as many rounds as it needs.
my ($effects, $purged, %errors);
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
do
{
	my ($out, $err) = ('', '');
	IPC::Run::run(
		[ 'pgbench', '-n', '-c', '16', '-j', '2', '-T', '4', '--max-tries', '100', @files, $node->connstr('postgres') ],
		'>', \$out, '2>', \$err);
	$errors{$_}++ for $err =~ /ERROR:  (.*)/g;
	($effects, $purged) = split /\|/, $node->safe_psql('postgres', "SELECT (SELECT count(*) FROM effects), purged FROM idem_stat WHERE datname = 'postgres'");
} while ($effects <= 500 && time < $deadline);
# the only thing that may go wrong: a key that has expired before its commit
is(join(', ', grep { !/expired before the commit/ } keys %errors), '', 'nothing failed');
cmp_ok($effects, '>', 500, "$effects effects");
note("$purged rows purged");
# Each claimed its key some time between its earliest and its latest.  Two of one key
# are right if either can have come first and have expired when the other came.
sql_is($node, 'postgres', <<'SQL', '', 'none twice within its ttl');
SELECT a.*, b.* FROM effects a JOIN effects b ON a.k = b.k AND a.ctid < b.ctid
WHERE b.latest < a.earliest + a.ttl AND a.latest < b.earliest + b.ttl
SQL

$node->stop;
done_testing();
