
# Twenty workers at fifty abandoned keys: each is taken over by one, and a worker that
# comes too late has no effect.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemLease;
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_lease_node('main', conf => "autovacuum = on\nwal_writer_delay = 200ms\n");
my ($workers, $keys, $rounds) = (20, 50, 3);

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE taken (round int, k text, worker int, attempt int, fence bigint, phase text);

-- Begin each key once, in an order of its own.  What a worker gets it keeps.  Against
-- finishes, some keys are finished, and no checkpoint is made.
CREATE PROCEDURE take_all(round int, worker int, keys int, against_finishes boolean DEFAULT false) LANGUAGE plpgsql AS $$
DECLARE
	n int;
	b record;
BEGIN
	FOR n IN SELECT g FROM generate_series(1, keys) g ORDER BY random() LOOP
		b := idem_begin('many ' || n, lease => '1 hour');
		IF b.state = 'started' THEN
			INSERT INTO taken VALUES (round, 'many ' || n, worker, b.attempt, b.fence, b.phase);
			IF NOT against_finishes AND idem_checkpoint('many ' || n, 'round ' || round) IS NULL THEN
				RAISE 'no end of the lease';
			END IF;
		ELSIF b.state <> 'in_progress' AND NOT (against_finishes AND b.state = 'replayed') THEN
			RAISE 'key % is %', n, b.state;
		END IF;
		COMMIT;
	END LOOP;
END $$;

-- Late finishes, with the fences of the last round.
CREATE PROCEDURE finish_all(last_round int, worker int) LANGUAGE plpgsql AS $$
DECLARE
	t record;
BEGIN
	FOR t IN SELECT * FROM taken WHERE round = last_round ORDER BY random() LOOP
		BEGIN
			INSERT INTO effects VALUES (t.k, 'finished late');
			PERFORM idem_finish(t.k, to_jsonb(worker), fence => t.fence);
		EXCEPTION WHEN sqlstate 'ID004' OR sqlstate 'ID006' THEN
			NULL;
		END;
		COMMIT;
	END LOOP;
END $$;
SQL

# Run all at once; they set out together, when the lock is given back.
sub together
{
	my @calls = @_;
	my $gate = $node->background_psql('postgres');
	my (@runs, @err);

	$gate->query_safe('SELECT pg_advisory_lock(1)');
	for my $i (0 .. $#calls)
	{
		push @runs, IPC::Run::start(
			[   'psql', '-Xqv', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'),
				'-c', 'SELECT pg_advisory_lock_shared(1)', '-c', $calls[$i] ],
			'<', '/dev/null', '>', '/dev/null', '2>', \$err[$i]);
	}
	$node->poll_query_until('postgres',
		"SELECT count(*) = @{[scalar @calls]} FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
	  or die 'not all are ready';
	$gate->quit;
	$_->finish for @runs;
	return join '', @err;
}

# Have all leases run out.
sub abandon
{
	$node->poll_query_until('postgres',
		"SELECT count(*) = $keys FROM generate_series(1, $keys) g, idem_lookup('many ' || g) WHERE state = 'abandoned'")
	  or die 'not all are abandoned';
}

$node->safe_psql('postgres',
	"INSERT INTO taken SELECT 0, 'many ' || g, 0, b.attempt, b.fence FROM generate_series(1, $keys) g, idem_begin('many ' || g, lease => '1 ms') b");
for my $round (1 .. $rounds)
{
	my $last = $round - 1;

	abandon();
	is(together(map { "CALL take_all($round, $_, $keys)" } 1 .. $workers), '', "round $round: no worker failed");
	sql_is($node, 'postgres',
		"SELECT count(*), count(DISTINCT k), min(attempt), max(attempt), count(DISTINCT fence) FROM taken WHERE round = $round",
		join('|', $keys, $keys, $round + 1, $round + 1, $keys),
		"round $round: each key is taken by one, once");
	note("taken by this many workers: ", $node->safe_psql('postgres', "SELECT count(DISTINCT worker) FROM taken WHERE round = $round"));
	sql_is($node, 'postgres', <<"SQL", $keys, "round $round: the rows say the same");
SELECT count(*) FROM taken t JOIN idem_keys i ON i.key = t.k
WHERE t.round = $round AND i.fence = t.fence AND i.attempt = t.attempt AND i.phase = 'round $round'
  AND t.phase IS NOT DISTINCT FROM (SELECT 'round ' || nullif($last, 0))
  AND t.fence > (SELECT max(fence) FROM taken WHERE round = $last)
SQL
	sql_is($node, 'postgres', <<"SQL", 'ID004' x $keys, "round $round: the fences of the last round are refused");
DO \$\$
DECLARE
	t record;
	answers text := '';
BEGIN
	FOR t IN SELECT * FROM taken WHERE round = $last LOOP
		BEGIN
			PERFORM idem_finish(t.k, fence => t.fence);
		EXCEPTION WHEN OTHERS THEN
			answers := answers || SQLSTATE;
		END;
	END LOOP;
	PERFORM set_config('test.answers', answers, false);
END \$\$;
SELECT current_setting('test.answers');
SQL
	$node->safe_psql('postgres', "SELECT idem_extend(k, '1 ms', fence => fence) FROM taken WHERE round = $round");
}

# The last holders come back, late, as others take over: one of the two wins.
my $last = $rounds + 1;
abandon();
is( together(
		map { $_ % 2 ? "CALL finish_all($rounds, $_)" : "CALL take_all($last, $_, $keys, true)" } 1 .. $workers),
	'', 'late finishes against takers: none failed');
sql_is($node, 'postgres', <<"SQL", "1|$keys", 'late finishes against takers: one wins, the effects are its own');
SELECT taken + finished, count(*)
FROM (SELECT (SELECT count(*) FROM taken t WHERE t.k = i.key AND t.round = $last AND t.fence = i.fence AND i.finished_at IS NULL) AS taken,
			 (SELECT count(*) FROM effects e WHERE e.k = i.key AND i.finished_at IS NOT NULL) AS finished
	  FROM idem_keys i WHERE key LIKE 'many %') w
GROUP BY 1
SQL
sql_is($node, 'postgres', <<"SQL", $keys, 'late finishes against takers: nothing of the loser stays');
SELECT (SELECT count(*) FROM effects WHERE what = 'finished late') + (SELECT count(*) FROM taken WHERE round = $last)
SQL

done_testing();
