
# The throttle's table has a fixed size: the limit that ends first is evicted, and a quarter of
# the table is safe for each scope from a flood of others.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IdemThrottle;
use List::Util qw(min);
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_throttle_node('preloaded');

$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION idempotency; ' . throttle_functions());

#
# A table of a fixed size
#

# A model of the table in Perl: a call of a key that is not there takes the place of what
# ends first, which counts as evicted if it was live.  No two ends are the same, so there is
# one answer.
sub evictions
{
	my ($entries, $keys, $calls) = @_;
	my $now = later();
	my $start = $now;
	my (%arrival, %end, @ends, %key_of, @calls);
	my $answers = '';
	my $evicted = 0;
	my $reused = 0;
	use integer;

	srand(18);
	for my $call (1 .. $calls)
	{
		my $key = int(rand($keys));
		my $period = 1_000_000 + $key * 7919 % 2_000_000;
		my ($arrival, $end, $allowed);

		# full of what is live, and now and then half of it has expired
		$now += $call % (2 * $entries) ? int(rand(100_000 / $entries)) : 500_000;
		$now -= int(rand(500_000)) if rand() < 0.001;
		$now = $start if $now < $start;
		# thirds of a microsecond
		for (;; $now++)
		{
			my $time = 3 * $now;
			my $old = $arrival{$key} // 0;

			$arrival = ($old > $time ? $old : $time) + $period;
			$allowed = $arrival <= $time + 3 * $period;
			$end = ($arrival + 2) / 3;
			last if !$allowed || !exists $key_of{$end};
		}
		push @calls, [ $now, $key, $period ];
		$answers .= $allowed ? 1 : 0;
		next unless $allowed;
		my $gone = exists $end{$key} ? $end{$key} : @ends == $entries ? $ends[0] : undef;
		if (defined $gone)
		{
			my $at = place($gone, \@ends);

			($gone > $now ? $evicted : $reused)++ unless exists $end{$key};
			splice @ends, $at, 1;
			delete $arrival{ $key_of{$gone} };
			delete $end{ delete $key_of{$gone} };
		}
		splice @ends, place($end, \@ends), 0, $end;
		$key_of{$end} = $key;
		$end{$key} = $end;
		$arrival{$key} = $arrival;
	}
	counted($node);
	my $sql = 'SELECT string_agg(answer, \'\' ORDER BY i) FROM (SELECT i, ((at(t, k, p * interval \'1 us\', 3)).allowed)::int::text AS answer FROM unnest('
	  . join(', ', map { my $n = $_; "'{" . join(',', map { $_->[$n] } @calls) . '}\'::' . ('bigint', 'text', 'bigint')[$n] . '[]' } 0 .. 2)
	  . ') WITH ORDINALITY u (t, k, p, i)) a';
	my $got = $node->safe_psql('postgres', $sql);
	my $same = length(($got ^ $answers) =~ s/[^\0].*//sr);
	is($same, $calls, "$calls calls of $keys keys, $entries entries: answers are those of the model")
	  or diag("call $same: @{$calls[$same]}");
	my ($allowed, $rejected) = ($answers =~ tr/1//, $answers =~ tr/0//);
	counts($node, "$allowed|$rejected|$evicted", "$evicted evictions");
	# or else this has shown nothing
	cmp_ok(min($evicted, $reused), '>', 10, "and $reused that had expired were reused");
}

# Where in what is sorted.
sub place
{
	my ($value, $sorted) = @_;
	my ($low, $high) = (0, scalar @$sorted);
	use integer;

	while ($low < $high)
	{
		my $middle = ($low + $high) / 2;

		if   ($sorted->[$middle] < $value) { $low = $middle + 1 }
		else                               { $high = $middle }
	}
	return $low;
}

evictions(5000, 10000, 20000);
restart($node, entries => 16, empty => 1);
evictions(16, 40, 10000);
restart($node, entries => 1000, empty => 1);
evictions(1000, 1500, 20000);

# The keys from .. to, each a microsecond after the one before, of which so many are allowed.
sub fill
{
	my ($server, $time, $from, $to, $period) = @_;

	return $server->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series($from, $to) i, at($time + i, 'x' || i, '$period')");
}

for my $entries (1000, 5000)
{
	restart($node, entries => $entries, empty => 1);
	counted($node);
	my $t = later();
	my $many = 10 * $entries;
	my $kept = $many - $entries;
	is(fill($node, $t, 1, $entries, '1 hour'), $entries, "$entries entries hold so many limits");
	is(fill($node, $t, 1, $entries, '1 hour'), 0, 'and remember all');
	counts($node, "$entries|$entries|0", 'nothing is evicted');
	is(fill($node, $t, $entries + 1, $many, '1 hour'), $kept, 'and ten times as many');
	counts($node, "$kept|0|$kept", 'all but as many as the table holds are evicted');
	is(fill($node, $t, $kept + 1, $many, '1 hour'), 0, 'those that end last are kept');
	is(fill($node, $t, $kept, $kept, '1 hour'), 1, 'and no other');
	counts($node, "1|$entries|1", 'one was evicted for that');
	# now the first to end is what came last
	is(fill($node, $t, $kept - 1, $kept - 1, '2 hours'), 1, 'a late one');
	is(fill($node, $t, $kept + 2, $many, '1 hour'), 0, 'took the place of the one before');
	is(fill($node, $t, $kept - 1, $kept - 1, '2 hours'), 0, 'and stays');
	# all but the late one have expired
	$t += 3_600_000_000 + $many;
	counted($node);
	is(fill($node, $t, 1, $entries - 1, '10 years'), $entries - 1, 'what has expired is reused');
	counts($node, ($entries - 1) . '|0|0', 'and was not evicted');
	is(fill($node, $t, $many, $many, '1 s'), 1, 'one more');
	counts($node, '1|0|1', 'which is full again');
	is(fill($node, $t + 999_999, $many + 1, $many + 1, '1 s'), 1, 'one more, the moment that has expired');
	counts($node, '1|0|0', 'in its place');
	$t += 2_000_000 + $many;
	sql_is($node, 'postgres', "SELECT at($t, 'third', '1 s', 3); SELECT at($t + 333333, 'next', '1 s')", "(t,2,0,333334)\n(t,0,0,1000000)", 'one more, a third of a microsecond too early');
	counts($node, '2|0|1', 'which is early');
	is(fill($node, $t, 1, $entries - 1, '10 years'), 0, 'the others are there');

	# The first one moves on just before one must be evicted: the next one is evicted then,
	# wherever that is.  "cost" 2 asks of a limit with one call, and changes nothing.
	$t = later();
	my $limit = "'1 hour', 2";
	is($node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, $entries) i, at($t + i, 'm' || i, $limit)"), $entries, 'a call each');
	counted($node);
	$node->safe_psql('postgres', join '', map { my $at = $t + $entries + $_; "SELECT at($at, 'm$_', $limit), at($at, 'n$_', $limit);" } grep { $_ % 2 } 1 .. 99);
	counts($node, '100|0|50', 'the first one moves on, and a new one comes, 50 times');
	$t += $entries + 100;
	is($node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, $entries) i, at($t, 'm' || i, $limit, cost => 2) WHERE i % 2 = 1 OR i > 100"), 0, 'those that have moved on are there');
	is($node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(2, 100, 2) i, at($t, 'm' || i, $limit, cost => 2)"), 50, 'those that came after them had to go');

	# All move on, which is more than is put in order at once.
	$t = later();
	my $all = "count(*) FILTER (WHERE allowed) FROM generate_series(1, $entries) i";
	is($node->safe_psql('postgres', "SELECT $all, at($t + i, 'a' || i, $limit)"), $entries, 'a call each');
	is($node->safe_psql('postgres', "SELECT $all, at($t + $entries + i, 'a' || i, $limit)"), $entries, 'and another');
	$t += 2 * $entries + 1;
	counted($node);
	is(fill($node, $t, 1, 1, '1 hour'), 1, 'a new one');
	counts($node, '1|0|1', 'for which one had to go');
	is($node->safe_psql('postgres', "SELECT $all, at($t + 1, 'a' || i, $limit, cost => 2) WHERE i > 1"), 0, 'but none of the later ones');
	is($node->safe_psql('postgres', "SELECT allowed FROM at($t + 1, 'a1', $limit, cost => 2)"), 't', 'the first one');
}

#
# What a flood of one scope, or two, leaves to the others: what they have, up to a
# quarter of the table each
#
sub flood
{
	my ($scope, $from, $to, $period) = @_;

	return $node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series($from, $to) i, idem_throttle('x' || i, '$period', 1 + 0 * i, '$scope')");
}

for my $entries (1000, 5000)
{
	my $quarter = $entries / 4;
	my $half = $quarter / 2;
	my $many = 5 * $entries;

	restart($node, entries => $entries, empty => 1);
	is(flood('ada', 1, $half, '1 hour'), $half, "$entries entries, some of which one scope has");
	counted($node);
	is(flood('eve', 1, $many, '10 years'), $many, 'another one has many, which end later');
	counts($node, "$many|0|" . ($many + $half - $entries), 'for which as many have to go');
	is(flood('ada', 1, $half, '1 hour'), 0, 'but none of the first one');
	is(flood('ada', $half + 1, $quarter, '1 hour'), $quarter - $half, 'which has more of them');
	restart($node);
	is(flood('mallory', 1, $many, '10 years'), $many, 'after a restart a third one has many');
	is(flood('ada', 1, $quarter, '1 hour'), 0, 'and the first one still has its own');
	is($node->safe_psql('other', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, $half) i, idem_throttle('x' || i, '1 min', 1 + 0 * i, 'eve')"), $half, 'another database has its own, under the same scope');
	is($node->safe_psql('other', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, $half) i, idem_throttle('x' || i, '1 min', 1 + 0 * i, 'eve')"), 0, 'and keeps them');
	is(flood('ada', 1, $quarter, '1 hour'), 0, 'as does the first one');
	# and more, which are as good as the others' then
	is(flood('ada', $quarter + 1, 2 * $quarter, '1 hour'), $quarter, 'more than a quarter is not refused');
}

$node->stop;

done_testing();
