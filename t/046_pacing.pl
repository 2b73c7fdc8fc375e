
# How often the launcher visits which database: seen in the log, in the order of visits.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => <<'CONF');
shared_preload_libraries = 'idempotency'
idempotency.purge_interval = 0
log_min_messages = debug1
CONF

# two that have so much, and so small batches, that many workers are needed, and one that has nothing
for my $db ('busy', 'mass', 'idle')
{
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql('postgres', "ALTER DATABASE $db SET idempotency.purge_batch_size = 1");
	$node->safe_psql($db, 'CREATE EXTENSION idempotency; ' . fill_procedure());
}

# That many rows that a purge takes several visits for, however fast the machine is: it writes them about as fast as
# it purges them, and a visit takes a second.
sub fill_for
{
	my ($db, $seconds) = @_;

	$node->safe_psql($db, <<"SQL");
DO \$\$
DECLARE
	until timestamptz := clock_timestamp() + interval '$seconds s';
BEGIN
	WHILE clock_timestamp() < until LOOP
		CALL fill(50000);
		COMMIT;
	END LOOP;
END \$\$;
SQL
}

my %enough;
for my $db ('busy', 'mass')
{
	fill_for($db, 4);
	$enough{$db} = int($node->safe_psql($db, 'SELECT count(*) FROM idem_keys') * 3 / 4);
}

# It has more all the time.
sub keep_full
{
	my ($db) = @_;

	fill_for($db, 1) if $node->safe_psql($db, "SELECT count(*) FROM (SELECT FROM idem_keys LIMIT $enough{$db}) few") < $enough{$db};
	return;
}

sub configure
{
	my ($databases, $interval) = @_;
	my $log_start = -s $node->logfile;

	$node->append_conf('postgresql.conf', "idempotency.purge_databases = '$databases'\nidempotency.purge_interval = '$interval'\n");
	$node->reload;
	$node->wait_for_log(qr/parameter "idempotency.purge_interval" changed/, $log_start);
	return $log_start;
}

# The databases that were visited, in that order, until one was as many times as that.  Some have more all the time.
sub visits
{
	my ($log_start, $db, $times, @full) = @_;
	my @seen;

	eventually(sub {
		keep_full($_) for @full;
		@seen = slurp_file($node->logfile, $log_start) =~ /purge worker of database "(\w+)" has ended/g;
		return $times <= grep { $_ eq $db } @seen;
	}) or die "$db was not visited $times times: @seen";
	return @seen;
}

# How many visits to others came between two to the database, at most.
sub longest_gap
{
	my ($db, @seen) = @_;
	my ($gap, $longest) = (0, 0);

	for my $visit (@seen)
	{
		$gap = $visit eq $db ? 0 : $gap + 1;
		$longest = $gap if $gap > $longest;
	}
	return $longest;
}

my $backlog = 'SELECT count(*) > 1000 FROM idem_keys WHERE expires_at <= now()';

#
# A database that is busy keeps no other from its turn: a worker works for a second, and
# the other's turn comes every second
#
my $log_start = configure('busy, mass, idle', '1 s');
my @seen = visits($log_start, 'idle', 3, 'busy', 'mass');
sql_is($node, $_, $backlog, 't', "$_ had more all the time") for 'busy', 'mass';
cmp_ok(longest_gap('idle', @seen), '<=', 4, 'the idle one is visited in between') or diag("@seen");

#
# Nor is another visited without pause along with it
#
$log_start = configure('busy, idle', '1 h');
@seen = visits($log_start, 'busy', 4, 'busy');
sql_is($node, 'busy', $backlog, 't', 'and still');
# one was maybe under way
cmp_ok(scalar(grep { $_ eq 'idle' } @seen), '<=', 1, 'only the busy one is visited again at once') or diag("@seen");

#
# Small batches are no reason to go on when there is no more
#
$node->safe_psql('busy', 'TRUNCATE idem_keys');
$log_start = configure('busy, idle', '59 min');
$node->safe_psql('mass', 'TRUNCATE idem_keys; CALL fill(1000)');
# longer than any visit that was under way
$log_start = configure('mass, busy, idle', '1 s');
visits($log_start, 'mass', 1);
ok($node->poll_query_until('mass', 'SELECT NOT EXISTS (SELECT FROM idem_keys)'), 'a database that was left out for a while comes first');
@seen = visits($log_start, 'idle', 3);
cmp_ok(scalar(grep { $_ eq 'mass' } @seen), '<=', 4, 'one that is done is visited as often as any') or diag("@seen");

$node->stop;
done_testing();
