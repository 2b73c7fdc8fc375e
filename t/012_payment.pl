# The payment example of doc/howto/outside-work.md, as printed, with its outside service
# played here: a worker dies at every point, another takes over, and the card is
# charged once, under one remote key.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = PostgreSQL::Test::Cluster->new('payment');
$node->init;
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION idempotency');

my ($example) = slurp_file('doc/howto/outside-work.md') =~ /```sql\n(CREATE TABLE payments.*?)```/s;
$node->safe_psql('postgres', $example);

# The card processor: idempotent by remote key, as they are.
my (%charges, %remote_keys);

sub charge
{
	my ($key, $remote_key) = @_;

	$remote_keys{$key}{$remote_key} = 1;
	return $charges{$remote_key} //= 'ch_' . (1 + keys %charges);
}

# A worker that dies inside its transaction: all done but the commit.
sub terminated
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', "BEGIN; $sql;\nSELECT pg_terminate_backend(pg_backend_pid());");

	isnt($rc, 0, 'the worker died inside its transaction');
	return;
}

# Run a payment until "dies", the number of the point to die at.  True if it
# got to the end, and then the answer.
sub worker
{
	my ($key, $dies) = @_;
	my $open = "SELECT state, fence, phase, progress ->> 'remote_key', result FROM payment_open('$key', 1250, '100 ms')";

	if ($dies == 0) { terminated($open); return; }
	my ($state, $fence, $phase, $remote_key, $result);
	while (1)
	{
		($state, $fence, $phase, $remote_key, $result) = split /\|/, $node->safe_psql('postgres', $open), -1;
		last if $state ne 'in_progress';
		usleep(10_000);
	}
	return $result if $state eq 'replayed';
	return if $dies == 1;

	if ($phase eq 'reserved')
	{
		my $charge = charge($key, $remote_key);
		my $charged = "SELECT payment_charged('$key', $fence, '$charge')";

		return if $dies == 2;
		if ($dies == 3) { terminated($charged); return; }
		$node->safe_psql('postgres', $charged);
	}
	return if $dies == 4;

	my $confirm = "SELECT payment_confirm('$key', $fence)";

	if ($dies == 5) { terminated($confirm); return; }
	$result = $node->safe_psql('postgres', $confirm);

	# dies at 6: confirmed, and no reply sent
	return $dies == 6 ? undef : $result;
}

my $nobody_dies = 7;
for my $dies (0 .. $nobody_dies)
{
	my $key = "pay-$dies";
	my $answer = worker($key, $dies);

	$answer = worker($key, $nobody_dies) unless defined $answer;
	my @remote_keys = keys %{ $remote_keys{$key} };

	is(scalar @remote_keys, 1, "$key: one remote key");
	is($answer, qq({"charge": "$charges{$remote_keys[0]}"}), "$key: answered with its charge");
	is( $node->safe_psql('postgres',
			"SELECT status, charge FROM payments WHERE key = '$key'"),
		"paid|$charges{$remote_keys[0]}", "$key: paid, once");
}
is(scalar keys %charges, $nobody_dies + 1, 'every card charged once');

$node->stop;
done_testing();
