
# The transactions of a lease's holder when it cannot know whether they have
# committed: repeated after a reply that was lost, prepared, and both over a crash.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemLease;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_lease_node('main');

#
# The reply of the COMMIT is lost, and the client runs the whole transaction again
#
for my $how ('running', 'late')
{
	my $k = "repeated, $how";
	my $fence = begin($node, 'postgres', $k, $how eq 'running' ? '1 hour' : '1 ms')->{fence};

	# late, but no other session has taken over
	$node->poll_query_until('postgres', "SELECT state = 'abandoned' FROM idem_lookup('$k')")
	  or die 'it was not abandoned'
	  if $how ne 'running';
	for my $transaction (
		work($k, 'reserved', "idem_checkpoint('$k', 'reserved', '1', fence => $fence)"),
		work($k, 'charged', "idem_checkpoint('$k', 'charged', '2', fence => $fence)"),
		work($k, 'confirmed', "idem_finish('$k', '\"paid\"', fence => $fence)"))
	{
		my ($what) = $transaction =~ /, '(\w+)'/;
		my ($state) = failure($node, 'postgres', $transaction);
		is($state, '', "$k: $what");
		my $row = whole_row($node, 'postgres', $k);
		sql_fails($node, 'postgres', $transaction, 'ID006', "$k: $what, again") for 1 .. 2;
		is(whole_row($node, 'postgres', $k), $row, "$k: $what, again: the row is as it was");
	}
	effects_are($node, 'postgres', $k, 'charged confirmed reserved', "$k: one effect each");
	sql_is($node, 'postgres', "SELECT state, result FROM idem_begin('$k', lease => '1 hour')", 'replayed|"paid"', "$k: then it fetches the answer");
	sql_fails($node, 'postgres', "SELECT idem_$_, fence => $fence)", 'ID006', "$k: $_ after the finish")
	  for "checkpoint('$k', 'more'", "extend('$k', '1 hour'", "release('$k'";
}

# The reply is lost for real: the client has gone before the server says it,
# and cannot know.
my $unsure = begin($node, 'postgres', 'unsure', '1 hour')->{fence};
my $finish = work('unsure', 'once', "idem_finish('unsure', '1', fence => $unsure)");
my $client = $node->background_psql('postgres');
my $client_pid = $client->query_safe('SELECT pg_backend_pid()');
my $block = $node->background_psql('postgres');
$block->query_safe('BEGIN; LOCK TABLE effects');
$client->query_until(qr/sent/, "\\echo sent\n$finish\n");
ok( $node->poll_query_until('postgres', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $client_pid"),
	'the transaction of a client is under way');
$client->{run}->kill_kill;
$block->query_safe('COMMIT');
$block->quit;
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $client_pid")
  or die 'the backend did not end';
my ($outcome) = failure($node, 'postgres', $finish);
like($outcome, qr/^(ID006)?$/, 'a client that cannot know repeats its transaction');
effects_are($node, 'postgres', 'unsure', 'once', 'a client that cannot know: one effect');
sql_is($node, 'postgres', "SELECT state, result FROM idem_begin('unsure')", 'replayed|1', 'a client that cannot know: one answer');

#
# PREPARE TRANSACTION
#

# The answers to other sessions, which a prepared transaction must not change.
sub others
{
	my ($k, $lookup, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	for my $lease ('NULL', "'1 hour'")
	{
		sql_is($node, 'postgres', "SELECT state, retry_after > 0 FROM idem_begin('$k', lease => $lease)", 'in_progress|t', "$name: others");
	}
	sql_is($node, 'postgres', "SELECT state FROM idem_begin('$k', lease => '1 hour', wait => '20 ms')", 'in_progress', "$name: others that wait");
	for my $claim ("idem_claim('$k')", "idem_claim_many('{$k}')")
	{
		sql_fails($node, 'postgres', "SET lock_timeout = '20ms'; SELECT $claim", '55P03', "$name: $claim");
	}
	sql_is($node, 'postgres', "SELECT state, phase, result FROM idem_lookup('$k')", $lookup, "$name: what is committed");
}

sub prepared
{
	my ($id, $sql) = @_;

	$sql =~ s/COMMIT;$//;
	return $node->safe_psql('postgres', "$sql PREPARE TRANSACTION '$id'");
}

# Prepared and rolled back, then prepared and committed, once with a crash in
# between.
for my $crash (0, 1)
{
	my $k = $crash ? 'prepared and a crash' : 'prepared';
	my $fence;
	my @steps = (
		[   'begin', work($k, 'begun', "fence FROM idem_begin('$k', lease => '1 hour')"),
			'', 'in_progress||'
		],
		[   'checkpoint', sub { work($k, 'reserved', "idem_checkpoint('$k', 'reserved', fence => $fence) IS NULL") },
			'in_progress||', 'in_progress|reserved|'
		],
		[   'extend', sub { "BEGIN; SELECT idem_extend('$k', '1 ms', fence => $fence) IS NULL;" },
			'in_progress|reserved|', 'abandoned|reserved|'
		],
		[   'late checkpoint', sub { work($k, 'charged', "idem_checkpoint('$k', 'charged', fence => $fence) IS NULL") },
			'abandoned|reserved|', 'abandoned|charged|'
		],
		[   'take-over', work($k, 'taken', "fence FROM idem_begin('$k', lease => '1 hour')"),
			'abandoned|charged|', 'in_progress|charged|'
		],
		[   'finish', sub { work($k, 'confirmed', "idem_finish('$k', '1', fence => $fence)") },
			'in_progress|charged|', 'finished|charged|1'
		]);
	my @effects;

	for my $step (@steps)
	{
		my ($what, $sql, $before, $after) = @$step;
		my ($name, $out) = ("$k: $what");
		my $text = ref $sql ? $sql->() : $sql;
		my $lookup = "SELECT state, phase, result FROM idem_lookup('$k')";

		# a lease that is to run out has done so
		$node->poll_query_until('postgres', $lookup, $before) or die "$before does not come";

		prepared($k, $text);
		others($k, $before, "$name, prepared");
		$node->safe_psql('postgres', "ROLLBACK PREPARED '$k'");
		sql_is($node, 'postgres', $lookup, $before, "$name, rolled back: as if it had not been");
		effects_are($node, 'postgres', $k, join(' ', sort @effects), "$name, rolled back: its effect is not there");

		$out = prepared($k, $text);
		if ($crash)
		{
			crash($node);
			others($k, $before, "$name, prepared, after a crash");
		}
		sql_fails($node, 'postgres', "SET lock_timeout = '20ms'; SELECT idem_finish('$k', fence => $fence)", '55P03',
			"$name, prepared: the holder as well has to wait")
		  if defined $fence;
		$node->safe_psql('postgres', "COMMIT PREPARED '$k'");
		ok($node->poll_query_until('postgres', $lookup, $after), "$name, committed");
		push @effects, $text =~ /'$k', '(\w+)'\)/;
		effects_are($node, 'postgres', $k, join(' ', sort @effects), "$name, committed: its effect is there");

		# the numbers of what was rolled back are not used again
		if ($what eq 'begin' || $what eq 'take-over')
		{
			zombie($node, 'postgres', $k, $_, 'ID004', "$name: another fence") for grep { defined } $fence, $out - 1;
			$fence = $out;
		}
	}
	sql_is($node, 'postgres', "SELECT state, result, attempt FROM idem_begin('$k')", 'replayed|1|2', "$k: the answer");
	sql_fails($node, 'postgres', $steps[-1][1]->(), 'ID006', "$k: the finish again");
}

$node->stop;

done_testing();
