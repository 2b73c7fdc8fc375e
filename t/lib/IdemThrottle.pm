
# What the tests of idem_throttle share: a clock that they set, answers in short, and
# the counters of idem_stat.

package IdemThrottle;

use strict;
use warnings;

use Exporter 'import';
use IdemTest;
use Test::More;

our @EXPORT = qw(throttle_functions new_throttle_node throttle_file restart counted counts later storm);

# "answer" is what was allowed and what remains; "at" has the clock at a time.
sub throttle_functions
{
	return "CREATE FUNCTION set_clock(bigint) RETURNS void LANGUAGE c AS '" . build_module('test_throttle') . "', 'set_clock';\n" . <<'SQL';
CREATE FUNCTION answer(key text, period interval, max_calls int DEFAULT NULL, scope text DEFAULT NULL, cost int DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', allowed, remaining) FROM idem_throttle($1, $2, $3, $4, $5) $$;
CREATE FUNCTION at(us bigint, key text, period interval, max_calls int DEFAULT NULL, scope text DEFAULT NULL, cost int DEFAULT NULL,
	OUT allowed bool, OUT remaining int, OUT retry numeric, OUT reset numeric) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_clock(us);
	SELECT t.allowed, t.remaining, round(retry_after::numeric * 1e6), round(reset_after::numeric * 1e6) INTO allowed, remaining, retry, reset
	FROM idem_throttle(key, period, max_calls, scope, cost) t;
END $$;
SQL
}

# A preloaded server with those functions, whose table has 5000 entries.
sub new_throttle_node
{
	my ($name, %opt) = @_;
	my $node = new_node($name, %opt, conf => <<'CONF');
shared_preload_libraries = 'idempotency'
idempotency.throttle_entries = 5000
restart_after_crash = on
max_connections = 70
CONF

	$node->safe_psql('postgres', throttle_functions());
	return $node;
}

# Where a clean shutdown keeps the limits.
sub throttle_file
{
	my ($node) = @_;

	return $node->data_dir . '/pg_stat/idempotency_throttle.stat';
}

# Start with another size, "entries", and without the limits of before if "empty".
sub restart
{
	my ($node, %opt) = @_;
	my $file = throttle_file($node);

	$node->stop;
	if ($opt{empty}) { unlink $file or die "$file: $!" }
	$node->append_conf('postgresql.conf', "idempotency.throttle_entries = $opt{entries}\n") if $opt{entries};
	$node->start;
	return;
}

# What idem_stat has counted since the last time: allowed, rejected, evicted.
sub counted
{
	my ($server) = @_;

	return $server->safe_psql('postgres', <<'SQL', extra_params => ['-q']) =~ s/\n//r;
SELECT throttle_allowed, throttle_rejected, throttle_evicted FROM idem_stat WHERE datname = current_database();
SELECT idem_stat_reset();
SQL
}

sub counts
{
	my ($server, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(counted($server), $expected, "counted: $name");
}

# A time so far from what was done before that all of that has expired.
my $years = 365 * 86400 * 1_000_000;
my $clock = 100 * $years;
sub later { return $clock += 100 * $years }

# A script by 50 sessions; how many admissions they have counted, in a sequence,
# which no rollback undoes.
sub storm
{
	my ($server, $name, $transactions, $script) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$server->safe_psql('postgres', 'DROP SEQUENCE IF EXISTS admitted; CREATE SEQUENCE admitted');
	counted($server);
	ok(pgbench($server, $script, '-c', '50', '-t', $transactions), "$name: pgbench");
	return $server->safe_psql('postgres', 'SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM admitted');
}

1;
