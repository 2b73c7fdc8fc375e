
# What the tests of servers that go back in time share: a storm of requests, each with an order
# and a fence, and what must be true of what is left of it.

package IdemStorm;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(request_function start_storm end_storm storm repeat_storm take_over twice disagreeing cut_off);

# request(k): an order under the key, and the fence of a lease, in one transaction.
sub request_function
{
	return <<'SQL';
CREATE TABLE orders (k text);
CREATE FUNCTION request(k text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	fence bigint := (SELECT b.fence FROM idem_begin('lease ' || k, lease => '1 hour') b);
BEGIN
	IF (SELECT state FROM idem_begin(k)) = 'started' THEN
		INSERT INTO orders VALUES (k);
		PERFORM idem_finish(k, to_jsonb(k));
	END IF;
	RETURN fence;
END $$;
SQL
}

# That many sessions with that many requests each, all of them new.
my $storms = 0;

sub start_storm
{
	my ($node, $sessions, $requests) = @_;
	my @started;

	$storms++;
	for my $session (1 .. $sessions)
	{
		# files, since nobody reads and writes pipes meanwhile
		my $file = PostgreSQL::Test::Utils::tempdir() . "/storm-$storms-$session";

		append_to_file("$file.sql", join '', map { "SELECT request('$storms-$session-$_');\n" } 1 .. $requests);
		push @started, {
			out => "$file.out",
			run => IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', "$file.sql" ],
				'>', "$file.out", '2>', "$file.err") };
	}
	return @started;
}

# The fences that they have got, also if the server is gone.
sub end_storm
{
	my @sessions = @_;

	IPC::Run::finish($_->{run}) for @sessions;
	# the last line may be torn
	return map { slurp_file($_->{out}) =~ /^(\d+)\n/mg } @sessions;
}

sub storm
{
	my ($node, $requests) = @_;

	return end_storm(start_storm($node, 1, $requests));
}

# The sessions of the storm of that number repeat so many of their requests each, after all leases have run out.
# Returns their fences.
sub repeat_storm
{
	my ($node, $storm, $sessions, $requests) = @_;
	my $last = $sessions * $requests - 1;

	$node->safe_psql('postgres', <<"SQL");
UPDATE idem_keys SET lease_until = clock_timestamp() WHERE finished_at IS NULL;
CREATE TABLE fences (fence bigint);
DO \$\$
BEGIN
	FOR i IN 0 .. $last LOOP
		INSERT INTO fences VALUES (request('$storm-' || 1 + i % $sessions || '-' || 1 + i / $sessions));
		COMMIT;
	END LOOP;
END \$\$;
SQL
	return split /\n/, $node->safe_psql('postgres', 'SELECT fence FROM fences');
}

# SQL for the fence of a key that somebody had a lease of, which has run out.
sub take_over
{
	my ($key) = @_;

	return <<"SQL";
UPDATE idem_keys SET lease_until = clock_timestamp() WHERE key = '$key' AND finished_at IS NULL;
SELECT fence FROM idem_begin('$key', lease => '1 hour');
SQL
}

# Those that are there more than once.
sub twice
{
	my %count;

	$count{$_}++ for @_;
	return join ' ', grep { $count{$_} > 1 } sort keys %count;
}

# SQL for the keys without an order, orders without a key, and repeated orders.
sub disagreeing
{
	return <<'SQL';
SELECT coalesce(i.key, o.k)
FROM (SELECT key FROM idem_keys WHERE finished_at IS NOT NULL) i
FULL JOIN (SELECT k, count(*) AS n FROM orders GROUP BY k) o ON i.key = o.k
WHERE i.key IS NULL OR o.k IS NULL OR o.n <> 1
SQL
}

# Let nothing arrive at the standby any more.
sub cut_off
{
	my ($primary, $standby) = @_;

	$primary->wait_for_catchup($standby);
	$standby->safe_psql('postgres', "ALTER SYSTEM SET primary_conninfo = ''");
	$standby->reload;
	$primary->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_stat_replication')
	  or die 'the standby is still connected';
	return;
}

1;
