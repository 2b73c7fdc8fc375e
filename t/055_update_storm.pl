
# Claims run in 8 sessions, with plain and with prepared statements, while the
# extension is updated.  None fails, but with an error that says "try again"
# (pgbench tries again after 40001 and 40P01, and gives up after any other), and
# nothing runs twice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $rounds = 3;
my $transactions = 300; # of each session

my $node = new_node('main', schema => undef, conf => "shared_preload_libraries = 'idempotency'\ndeadlock_timeout = '100ms'\n");
my $script = PostgreSQL::Test::Utils::tempdir() . '/storm.sql';

# Keys overlap.  Who runs the work says so, and with which version.
append_to_file($script, <<'SQL');
\set k random(1, 1000)
BEGIN;
SELECT (state = 'started')::integer AS started FROM idem_begin('begin ' || :k, wait => '1 minute', request => '{"a": 1}') \gset
\if :started
SELECT work('begin ' || :k);
SELECT idem_finish('begin ' || :k, '{"done": 1}');
\endif
COMMIT;
SELECT state, result, retry_after FROM idem_call('call ' || :k, 'work', jsonb_build_object('key', 'call ' || :k), wait => '1 minute');
INSERT INTO effects (key) SELECT 'claim ' || :k FROM idem_claim('claim ' || :k) c WHERE c;
INSERT INTO effects (key) SELECT key FROM idem_claim_many(ARRAY['many ' || :k, 'many too ' || :k]) c;
SELECT (state = 'started')::integer AS started, coalesce(fence, 0) AS fence FROM idem_begin('lease ' || :k, lease => '1 hour') \gset
\if :started
SELECT idem_checkpoint('lease ' || :k, 'charged', fence => :fence);
BEGIN;
SELECT work('lease ' || :k);
SELECT idem_finish('lease ' || :k, fence => :fence);
COMMIT;
\endif
SELECT in_function('function ' || :k);
SELECT in_body('body ' || :k);
SELECT state, result, expires_at FROM idem_lookup('begin ' || :k);
SELECT state FROM looked_up;
SELECT count(*) FROM idem_stat;
SELECT count(*) FROM idem_in_flight;
SQL

for my $round (1 .. $rounds)
{
	my $db = "storm_$round";
	my @storms;

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql($db, <<'SQL');
CREATE EXTENSION idempotency VERSION '0.1.0';
CREATE FUNCTION version() RETURNS text STABLE LANGUAGE sql AS $$ SELECT extversion FROM pg_extension WHERE extname = 'idempotency' $$;
CREATE TABLE effects (key text, version text DEFAULT public.version());
CREATE FUNCTION work(key text) RETURNS text LANGUAGE sql AS 'INSERT INTO effects (key) VALUES (key) RETURNING key';
CREATE FUNCTION in_function(k text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	c record;
BEGIN
	SELECT * INTO c FROM idem_begin(k, wait => '1 minute');
	IF c.state = 'started' THEN
		PERFORM work(k), idem_finish(k);
	END IF;
END $$;
CREATE FUNCTION in_body(k text) RETURNS text LANGUAGE sql
BEGIN ATOMIC
	SELECT c.state FROM idem_call(k, 'work', jsonb_build_object('key', k), wait => '1 minute') c;
END;
CREATE VIEW looked_up AS SELECT * FROM idem_lookup('begin 1');
SQL

	for my $mode (qw(simple prepared))
	{
		my $storm = { mode => $mode, err => '' };

		# a thread for each: pgbench waits for PREPARE in its thread, and would keep another
		# client from the COMMIT that the update waits for
		$storm->{run} = IPC::Run::start(
			[ 'pgbench', '-n', '-c', '4', '-j', '4', '-M', $mode, '-t', $transactions, '--max-tries', '1000', '-f', $script, $node->connstr($db) ],
			'>', \$storm->{out}, '2>', \$storm->{err}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
		push @storms, $storm;
	}
	$node->poll_query_until($db, "SELECT count(*) > 100 FROM effects") or die 'no storm';

	$node->safe_psql($db, 'ALTER EXTENSION idempotency UPDATE');
	for my $storm (@storms)
	{
		my $ok = $storm->{run}->finish;

		ok($ok, "round $round: no $storm->{mode} session failed") or diag($storm->{err});
		note($storm->{out});
	}
	sql_is($node, $db, 'SELECT key, count(*) FROM effects GROUP BY key HAVING count(*) > 1', '', "round $round: nothing ran twice");
	sql_is($node, $db, 'SELECT count(*) FROM effects e FULL JOIN idem_keys k USING (key) WHERE e.key IS NULL OR k.finished_at IS NULL', '0',
		"round $round: each key has its effect, each effect its key");
	sql_is($node, $db, 'SELECT count(*) FROM (SELECT version FROM effects GROUP BY version HAVING count(*) > 100) v', '2', "round $round: before the update and after");
}
my $log = slurp_file($node->logfile);
is(join(', ', sort grep { !/deadlock detected|could not serialize/ } $log =~ /ERROR:  (.*)/g), '', 'no other error in the log');

done_testing();
