
# idem_begin and idem_call with "wait" meet a running lease: they wait for its
# finish, its release or its end, whichever comes first.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => 'max_connections = 80');
my $crowd = 50;

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE answers (key text, state text, result jsonb, attempt int, at timestamptz);
CREATE FUNCTION ask(k text, how interval) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	answer record := idem_begin(k, wait => how);
BEGIN
	INSERT INTO answers VALUES (k, answer.state, answer.result, answer.attempt, clock_timestamp());
	IF answer.state = 'started' THEN
		PERFORM idem_finish(k, '"by a waiter"');
	END IF;
END $$;
SQL

# The waiters poll on their own: no lock stands for a lease.
sub wait_for_pollers
{
	my ($number) = @_;

	$node->poll_query_until('postgres', "SELECT count(*) = $number FROM pg_stat_activity WHERE wait_event IN ('Extension', 'IdempotencyLease')")
	  or die "there are not $number waiters";
}

sub start_crowd
{
	my ($k) = @_;
	my ($script, %crowd) = ($node->basedir . '/ask.sql');

	unlink $script;
	append_to_file($script, "SELECT ask('$k', '3 min');\n");
	$crowd{run} = IPC::Run::start([ 'pgbench', '-n', '-c', $crowd, '-t', '1', '-f', $script, $node->connstr('postgres') ],
		'<', \undef, '>', \$crowd{out}, '2>', \$crowd{err}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	wait_for_pollers($crowd);
	return \%crowd;
}

sub answers
{
	return $node->safe_psql('postgres', "SELECT state, result, attempt, count(*) FROM answers WHERE key = '$_[0]' GROUP BY 1, 2, 3 ORDER BY state DESC");
}

sub begin_lease
{
	my ($k, $lease) = @_;

	return $node->safe_psql('postgres', "SELECT fence FROM idem_begin('$k', lease => '$lease')");
}

#
# The finish answers all
#
my $fence = begin_lease('finished', '1 hour');
my $waiters = start_crowd('finished');
my $at = $node->safe_psql('postgres', "SELECT idem_finish('finished', '\"by its holder\"', fence => $fence); SELECT clock_timestamp()");
$at =~ s/.*\n//s;
ok($waiters->{run}->finish, 'the finish ends all waits') or diag($waiters->{err});
is(answers('finished'), "replayed|\"by its holder\"|1|$crowd", 'and answers them');
note('the last one ', $node->safe_psql('postgres', "SELECT extract(epoch FROM max(at) - '$at') * 1000 FROM answers WHERE key = 'finished'"), ' ms after the finish');

#
# A release makes one start; the others get that one's answer
#
$fence = begin_lease('released', '1 hour');
$waiters = start_crowd('released');
$node->safe_psql('postgres', "SELECT idem_release('released', fence => $fence)");
ok($waiters->{run}->finish, 'a release ends all waits') or diag($waiters->{err});
is(answers('released'), "started||2|1\nreplayed|\"by a waiter\"|2|" . ($crowd - 1), 'one starts, and the others get its answer');

#
# So does the end of the lease by the clock
#
begin_lease('over', '1 hour');
$waiters = start_crowd('over');
$node->safe_psql('postgres', q{UPDATE idem_keys SET lease_until = clock_timestamp() + interval '50 ms' WHERE key = 'over'});
ok($waiters->{run}->finish, 'the end of the lease ends all waits') or diag($waiters->{err});
is(answers('over'), "started||2|1\nreplayed|\"by a waiter\"|2|" . ($crowd - 1), 'one takes over, and the others get its answer');
begin_lease('short', '300 ms');
sql_is($node, 'postgres', q{SELECT state, attempt FROM idem_begin('short', lease => '1 hour', wait => '3 min')}, 'started|2', 'a short lease is waited out');
# forgotten: the key is free
begin_lease('forgotten', '1 hour');
$waiters = start_crowd('forgotten');
$node->safe_psql('postgres', q{SELECT idem_forget('forgotten')});
ok($waiters->{run}->finish, 'an idem_forget ends all waits') or diag($waiters->{err});
is(answers('forgotten'), "started||1|1\nreplayed|\"by a waiter\"|1|" . ($crowd - 1), 'one starts, and the others get its answer');

#
# The wait ends
#
begin_lease('held', '1 hour');
sql_is($node, 'postgres', q{SELECT state, retry_after > 3000 FROM idem_begin('held', wait => '120 ms')}, 'in_progress|t', 'after its time: in_progress');
sql_is($node, 'postgres', q{SELECT state FROM idem_begin('held', wait => '0')}, 'in_progress', 'no time: at once');
sql_fails($node, 'postgres', q{SET statement_timeout = '200 ms'; SELECT idem_begin('held', wait => '3 min')}, '57014', 'statement_timeout ends it');
$node->safe_psql('postgres', q{CREATE FUNCTION work(a int) RETURNS int LANGUAGE sql AS 'SELECT a'});
sql_is($node, 'postgres', q{SELECT state FROM idem_call('held', 'work', '{"a": 1}', wait => '120 ms')}, 'in_progress', 'idem_call waits as well');
sql_is($node, 'postgres', q{SET lock_timeout = '1 ms'; SELECT state FROM idem_begin('held', wait => '120 ms')}, 'in_progress', 'a lease is no lock: lock_timeout does not count');
my $session = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $session->query_safe('SELECT pg_backend_pid()');
$session->query_until(qr/asked/, "\\echo asked\nSELECT idem_begin('held', wait => '3 min');\n");
wait_for_pollers(1);
sql_is($node, 'postgres', "SELECT pg_cancel_backend($pid)", 't', 'a cancel');
is($session->query('SELECT 1'), '1', 'ends the statement, and the session goes on');
like($session->{stderr}, qr/canceling statement due to user request.*while waiting for idempotency key "held"/s, 'and its error names the key');
$session->{stderr} = '';

# Nobody else can end our own uncommitted lease.
sql_is($node, 'postgres', <<'SQL', "started\nin_progress", 'our own lease is not waited for');
SET statement_timeout = '2 min';
BEGIN;
SELECT state FROM idem_begin('own', lease => '1 hour');
SELECT state FROM idem_begin('own', wait => '1 hour');
COMMIT;
SQL

#
# REPEATABLE READ: the answer was committed after the snapshot
#
$fence = begin_lease('late', '1 hour');
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM answers');
$session->query_until(qr/asked/, "\\echo asked\n\\set VERBOSITY sqlstate\nSELECT idem_begin('late', wait => '3 min');\n");
wait_for_pollers(1);
$node->safe_psql('postgres', "SELECT idem_finish('late', fence => $fence)");
$session->query('ROLLBACK');
like($session->{stderr}, qr/ERROR:  40001/, 'finished after the snapshot: 40001');
$session->{stderr} = '';

#
# No busy loop: at most 20 looks a second
#
$session->quit;
my ($seconds, $looks) = $node->safe_psql('postgres', <<'SQL') =~ /([\d.]+)\|(\d+)$/;
BEGIN;
SELECT clock_timestamp() AS since \gset
SELECT state FROM idem_begin('held', wait => '1 s');
SELECT extract(epoch FROM clock_timestamp() - :'since'), idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'idem_keys';
COMMIT;
SQL
cmp_ok($looks, '>', 1, "$looks looks in $seconds seconds");
cmp_ok($looks, '<=', 20 * $seconds + 2, 'are not too many');

sql_is($node, 'postgres', q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'}, '0', 'no lock is left');
$node->stop;
done_testing();
