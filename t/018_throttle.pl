
# The throttle answers as the algorithm says, to the microsecond, whoever calls at
# once and whatever becomes of the caller's transaction.  Its table never grows:
# the limit that ends first makes room.  It is there after a clean restart, and
# after nothing else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use List::Util qw(min);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $dir = PostgreSQL::Test::Utils::tempdir();
my $node = new_node('preloaded', streaming => 1, conf => <<"CONF");
shared_preload_libraries = 'idempotency'
idempotency.throttle_entries = 5000
restart_after_crash = on
max_connections = 70
CONF
my $version = $node->safe_psql('postgres', 'SHOW server_version_num');

# "answer" is what was allowed and what remains; "at" has the clock at a time.
my $functions = <<'SQL';
CREATE FUNCTION set_clock(bigint) RETURNS void LANGUAGE c AS 'idempotency', 'idem_throttle_set_clock';
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
$node->safe_psql('postgres', $functions);

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

my $file = $node->data_dir . '/pg_stat/idempotency_throttle.stat';

# Start with another size, and without the limits of before if told so.
sub restart
{
	my (%opt) = @_;

	$node->stop;
	unlink $file or die "$file: $!" if $opt{empty};
	$node->append_conf('postgresql.conf', "idempotency.throttle_entries = $opt{entries}\n") if $opt{entries};
	$node->start;
}

# So far from what other tests have left that it has all expired.
my $years = 365 * 86400 * 1_000_000;
my $clock = 100 * $years;
sub later { return $clock += 100 * $years }

#
# Bad input
#
my @refused = (
	[ '22004', "NULL, '1 min'" ],
	[ '22004', "'k', NULL" ],
	[ '22023', "'', '1 min'" ],
	[ '22023', "repeat('x', 1025), '1 min'" ],
	[ '22023', "repeat('\xc3\xa9', 513), '1 min'" ],
	[ '22023', "'k', '1 min', scope => repeat('x', 1025)" ],
	(map { [ '22023', "'k', '$_'" ] } '0', '999 us', '-1 s', '-10 years', '10 years 1 us', '121 mon', '178000000 years', '1 mon -30 days',
		'-1 year 365 days', '1 day -24:00'),
	($version >= 170000 ? map { [ '22023', "'k', '$_'" ] } 'infinity', '-infinity' : ()),
	(map { [ '22023', "'k', '1 min', $_" ] } '0', '-1', '-2147483648', '1, cost => 0', '10, cost => -1', '1, cost => 2', 'NULL, cost => 2', '10, cost => 11'),);
counted($node);
says($node, join('', map { "\\echo $_->[0]\nSELECT answer($_->[1]);\n\\echo :SQLSTATE\n" } @refused), join("\n", map { "$_->[0]\n$_->[0]" } @refused),
	'refused: ' . join(', ', map { $_->[1] } @refused[ 6 .. $#refused ]));
says($node, <<'SQL', "22023\n22023\n22023\nt 0\nf 0", 'require_scope');
SET idempotency.require_scope = on;
SELECT answer('k', '1 min');
\echo :SQLSTATE
SELECT answer('k', '1 min', scope => '');
\echo :SQLSTATE
BEGIN;
SAVEPOINT s;
SELECT answer('k', '1 min');
\echo :SQLSTATE
ROLLBACK TO s;
SELECT answer('k', '1 min', scope => 's');
SELECT answer('k', '1 min', scope => 's');
COMMIT;
SQL
counts($node, '1|1|0', 'nothing of what was refused');
says($node, <<'SQL', "t 0\nt 0\nt 0\nt 0\nt 0\nt 0\nt 2147483646\nt 0\nt 0", 'accepted');
SELECT answer(repeat('x', 1024), '1 min');
SELECT answer(repeat('é', 512), '1 min');
SELECT answer('k', '1 min', scope => repeat('é', 512));
SELECT answer('k', '1 ms');
SELECT answer('k', '10 years');
SELECT answer('k', '-1 mon 31 days');
SELECT answer('k', '1 ms', 2147483647);
SELECT answer('k', '1 ms', 2147483647, 's', 2147483647);
SELECT answer('k', '10 years', 2147483647, cost => 2147483647);
SQL

#
# What makes a limit
#
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', "CREATE EXTENSION idempotency; $functions");
says($node, <<'SQL', join("\n", 't 0', 't 1', ('t 0') x 4, 'f 0', 'f 0', 't 0', 'f 0'), 'period, max_calls and scope do, and the bytes of the key');
SELECT answer('ab', '1 hour');
SELECT answer('ab', '1 hour', 2);
SELECT answer('ab', '61 min');
SELECT answer('b', '1 hour', scope => 'a');
SELECT answer('AB', '1 hour');
SELECT answer('b', '1 hour', scope => 'A');
SELECT answer('ab', '1 hour', 1, '', 1);
SELECT answer('ab', '60 min');
SELECT answer('ab', '1 hour', 2);
SELECT answer('ab', '1 hour', 2);
SQL
sql_is($node, 'other', "SELECT answer('ab', '1 hour'); SELECT answer('ab', '1 hour')", "t 0\nf 0", 'and the database');

#
# Roles
#
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE throttler LOGIN;
CREATE ROLE app LOGIN;
CREATE ROLE claimer LOGIN;
CREATE ROLE stranger LOGIN;
SELECT idem_grant('throttler', '{throttle}');
SELECT idem_grant('app');
SELECT idem_grant('claimer', '{claims}');
SQL
for my $role ([ 'throttler', '' ], [ 'app', '' ], [ 'claimer', '42501' ], [ 'stranger', '42501' ])
{
	sql_fails($node, 'postgres', "SELECT idem_throttle('role', '1 s')", $role->[1], "$role->[0] calls", '-U', $role->[0]);
	# what shuts the gate for all, or opens it, is not for everybody, whoever may execute the function
	sql_fails($node, 'postgres', 'SELECT set_clock(1)', '42501', "$role->[0] sets the clock", '-U', $role->[0]);
	sql_fails($node, 'postgres', 'SELECT set_clock(NULL)', '42501', "$role->[0] sets the real clock", '-U', $role->[0]);
}
sql_fails($node, 'postgres', "SELECT idem_claim('k')", '42501', 'throttler can do nothing else', '-U', 'throttler');
$node->safe_psql('postgres', "SELECT idem_revoke('throttler', '{throttle}')");
sql_fails($node, 'postgres', "SELECT idem_throttle('role', '1 s')", '42501', 'revoked', '-U', 'throttler');
sql_fails($node, 'postgres', 'SELECT set_clock(-1)', '22023', 'there is no time before 0');

#
# The hash, against what openssl mac -macopt hexkey:000102030405060708090a0b0c0d0e0f -macopt size:16 SIPHASH
# says of the bytes 0, 1, 2 ...
#
my @siphash = qw(
  0 a3817f04ba25a8e66df67214c7550293
  1 da87c1d86b99af44347659119b22fc45
  2 8177228da4a45dc7fca38bdef60affe4
  3 9c70b60c5267a94e5f33b6b02985ed51
  7 a1f1ebbed8dbc153c0b84aa61ff08239
  8 3b62a9ba6258f5610f83e264f31497b4
  9 264499060ad9baabc47f8b02bb6d71ed
  12 d626b266905ef35882634df68532c125
  15 5493e99933b0a8117e08ec0f97cfc3d9
  16 6ee2a4ca67b054bbfd3315bf85230577
  17 473d06e8738db89854c066c47ae47740
  20 9e25fc833f2290733e9344a5e83839eb
  23 c9d184ddd5a9f5e0cf8ce29a9abf691c
  24 2db479ae78bd50d8882a8a178a6132ad
  25 8ece5f042d5e447b5051b9eacb8d8f6f
  31 2939b0183223fafc1723de4f52c43d35
  32 7c3956ca5eeafc3e363e9d556546eb68
  33 77c6077146f01c32b6b69d5f4ea9ffcf
  39 528a5bb93baf2c9c4473cce5d0d22bd9
  40 df6a301e95c95dad97ae0cc8c6913bd8
  41 801189902c857f39e73591285e70b6db
  47 e61c432b720b19d18ec8d84bdc63151b
  48 f7e5aef549f782cf379055a608269b16
  56 1938f2cf72d54ee97e94166fa91d2a36
  63 5150d1772f50834a503e069a973fbd7c
  64 1eaf077dc0d4cd3f8cad4d383658a74b
  65 02233e98fe91e1c8220dca0d285261ef
  70 ab36e358e152844369b4fce9c37f02fd);
my (@lengths, @hashes);
while (my ($length, $hash) = splice @siphash, 0, 2)
{
	push @lengths, $length;
	push @hashes, $hash;
}
sql_is($node, 'postgres', "CREATE FUNCTION siphash(bytea, bytea) RETURNS bytea LANGUAGE c AS 'idempotency', 'idem_siphash';" . join('', map { <<"SQL" } @lengths), join("\n", @hashes), 'SipHash of ' . @lengths . ' lengths');
SELECT encode(siphash('\\x000102030405060708090a0b0c0d0e0f', decode((SELECT coalesce(string_agg(lpad(to_hex(i), 2, '0'), '' ORDER BY i), '') FROM generate_series(0, $_ - 1) i), 'hex')), 'hex');
SQL

#
# The algorithm in numeric, from its textbook: the arrival time is counted in
# microseconds times max_calls.  Calls are drawn so that what matters is met: clocks
# that stand, wait as told or a microsecond less, and step back; costs that just
# fit, and those that just do not.  "elapsed" is the time that went on for callers,
# for whom a clock that is set back stands still.
#
my $calls = 100_000;
my $seed = 0.18;
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE limits AS
SELECT row_number() OVER () AS n, 'k' || hashtext(concat(period, max_calls)) % 3 AS key, CASE hashtext(concat(max_calls, period)) % 2 WHEN 0 THEN 's' END AS scope,
	period::interval, extract(epoch FROM period::interval) * 1000000 AS us, max_calls
FROM unnest('{1 ms, 1.007 ms, 1.234567 s, 1 min, 1 hour 7 us, 1 day -1 us, 1 mon, 1 year 2 mon 3 days, 10 years}'::text[]) period,
	unnest('{NULL, 2, 3, 7, 100, 86400, 2147483647}'::int[]) max_calls;
CREATE TABLE log (n int, elapsed numeric, cost int, allowed bool, wrong text);
CREATE FUNCTION run(calls int, seed float8) RETURNS SETOF log LANGUAGE plpgsql AS $$
DECLARE
	l limits[] := ARRAY(SELECT l FROM limits l ORDER BY n);
	arrival numeric[] := array_fill(0::numeric, ARRAY[cardinality(l)]);
	focus int;
	lim limits;
	n int;
	c int;
	cost int;
	step numeric;
	clock numeric := 1e15;
	time numeric;
	allowed bool;
	remaining int := 0;
	retry numeric := 0;
	reset numeric := 0;
	a numeric;
	got record;
	row log;
BEGIN
	PERFORM setseed(seed);
	row.elapsed := 0;
	FOR i IN 1 .. calls LOOP
		IF i % 50 = 1 THEN
			focus := 1 + floor(random() * cardinality(l));
		END IF;
		row.n := CASE WHEN random() < 0.8 THEN focus ELSE 1 + floor(random() * cardinality(l)) END;
		lim := l[row.n];
		n := coalesce(lim.max_calls, 1);
		step := CASE floor(random() * 10)
			WHEN 0 THEN retry
			WHEN 1 THEN retry
			WHEN 2 THEN retry - 1
			WHEN 3 THEN CASE WHEN random() < 0.3 THEN reset ELSE 1 END
			WHEN 4 THEN CASE WHEN random() < 0.3 THEN reset - 1 ELSE 2 END
			WHEN 5 THEN floor(lim.us / n * random()::numeric * 2)
			WHEN 6 THEN CASE WHEN random() < 0.1 THEN floor(10 ^ (random() * 15)::numeric) ELSE 0 END
			WHEN 7 THEN CASE WHEN random() < 0.1 THEN -floor(10 ^ (random() * 14)::numeric) ELSE 0 END
			ELSE 0 END;
		step := greatest(step, -clock);
		clock := clock + step;
		row.elapsed := row.elapsed + greatest(step, 0);
		cost := CASE floor(random() * 6)
			WHEN 0 THEN NULL
			WHEN 1 THEN 1
			WHEN 2 THEN n
			WHEN 3 THEN 1 + floor(random() * n)
			WHEN 4 THEN least(greatest(remaining, 1), n)
			ELSE least(remaining::bigint + 1, n) END;
		c := coalesce(cost, 1);

		time := clock * n;
		a := greatest(arrival[row.n], time) + lim.us * c;
		allowed := a - lim.us * n <= time;
		retry := 0;
		IF allowed THEN
			arrival[row.n] := a;
		ELSE
			retry := div(a - lim.us * n - time + n - 1, n);
		END IF;
		a := greatest(arrival[row.n], time);
		remaining := greatest(div(time + lim.us * n - a, lim.us), 0);
		reset := div(a - time + n - 1, n);

		PERFORM set_clock(clock::bigint);
		SELECT * INTO got FROM idem_throttle(lim.key, lim.period, lim.max_calls, lim.scope, cost);
		row.cost := c;
		row.allowed := got.allowed;
		row.wrong := NULL;
		IF got.allowed IS DISTINCT FROM allowed OR got.remaining IS DISTINCT FROM remaining
			OR got.retry_after IS DISTINCT FROM retry::float8 / 1000000 OR got.reset_after IS DISTINCT FROM reset::float8 / 1000000 THEN
			row.wrong := format('call %s at %s of %s, cost %s: %s, expected %s', i, clock, lim, cost, got, (allowed, remaining, retry / 1000000, reset / 1000000));
		END IF;
		RETURN NEXT row;
	END LOOP;
END $$;
SQL
counted($node);
is($node->safe_psql('postgres', "INSERT INTO log SELECT * FROM run($calls, $seed); SELECT wrong FROM log WHERE wrong IS NOT NULL LIMIT 3"),
	'', "$calls random calls, seed $seed: answers are exact");
is(counted($node), $node->safe_psql('postgres', 'SELECT count(*) FILTER (WHERE allowed), count(*) FILTER (WHERE NOT allowed), 0 FROM log'), 'and counted');

# The windows of a period that begin with a call; nowhere more than 2n - 1.
my %log;
for (split /\n/, $node->safe_psql('postgres', 'SELECT n, elapsed, cost FROM log WHERE allowed'))
{
	my ($n, @call) = split /\|/;
	push @{ $log{$n} }, \@call;
}
my $tight = 0;
my @beyond;
for (split /\n/, $node->safe_psql('postgres', 'SELECT n, us::bigint, coalesce(max_calls, 1) FROM limits'))
{
	my ($n, $us, $max_calls) = split /\|/;
	my @window;
	my ($sum, $most) = (0, 0);

	for my $call (@{ $log{$n} })
	{
		push @window, $call;
		$sum += $call->[1];
		$sum -= (shift @window)->[1] while $window[0][0] <= $call->[0] - $us;
		$most = $sum if $sum > $most;
	}
	push @beyond, "limit $n: $most in $us us" if $most > 2 * $max_calls - 1;
	$tight++ if $most == 2 * $max_calls - 1;
}
is("@beyond", '', 'at most 2n - 1 of n calls in any window of a period');
cmp_ok($tight, '>', 10, "of $tight limits as many were allowed");
is($node->safe_psql('postgres', 'SELECT allowed, count(*) > 20000, count(DISTINCT n) FROM log GROUP BY 1 ORDER BY 1'), "f|t|63\nt|t|63", 'all limits met both answers');
restart(empty => 1);

#
# Waiting as long as told
#
my $t = later();
says($node, <<"SQL", <<'OUT' =~ s/\n\z//r, 'max_calls 1');
SELECT at($t, 'w', '1 s');
SELECT at($t, 'w', '1 s');
SELECT at($t + 999999, 'w', '1 s');
SELECT at($t + 1000000, 'w', '1 s');
SELECT at($t + 1000000, 'w', '1 s');
SELECT at($t + 9999999, 'w', '1 s');
SQL
(t,0,0,1000000)
(f,0,1000000,1000000)
(f,0,1,1)
(t,0,0,1000000)
(f,0,1000000,1000000)
(t,0,0,1000000)
OUT
# thirds of a microsecond, none of which may be lost
says($node, <<"SQL", <<'OUT' =~ s/\n\z//r, 'max_calls 3');
SELECT at($t, 'w', '1 s', 3);
SELECT at($t, 'w', '1 s', 3);
SELECT at($t, 'w', '1 s', 3, cost => 3);
SELECT at($t, 'w', '1 s', 3);
SELECT at($t, 'w', '1 s', 3);
SELECT at($t + 333333, 'w', '1 s', 3);
SELECT at($t + 333334, 'w', '1 s', 3);
SELECT at($t + 666666, 'w', '1 s', 3);
SELECT at($t + 666667, 'w', '1 s', 3);
SELECT at($t + 999999, 'w', '1 s', 3);
SELECT at($t + 1000000, 'w', '1 s', 3);
SELECT at($t + 1000000, 'w', '1 s', 3, cost => 3);
SELECT at($t + 1999999, 'w', '1 s', 3, cost => 3);
SELECT at($t + 2000000, 'w', '1 s', 3, cost => 3);
SQL
(t,2,0,333334)
(t,1,0,666667)
(f,1,666667,666667)
(t,0,0,1000000)
(f,0,333334,1000000)
(f,0,1,666667)
(t,0,0,1000000)
(f,0,1,666668)
(t,0,0,1000000)
(f,0,1,666668)
(t,0,0,1000000)
(f,0,1000000,1000000)
(f,2,1,1)
(t,0,0,1000000)
OUT
# 142.857 calls come back in a microsecond; all of them, and no other
sql_is($node, 'postgres', <<"SQL", "7000\n(f,0,1,7000)", 'a million calls in 7 ms come back at their own pace');
SELECT count(*) FILTER (WHERE a.allowed)
FROM generate_series(0, 6999) us, at($t + us, 'pace', '7 ms', 1000000, cost => CASE us WHEN 0 THEN 1000000 ELSE us * 1000 / 7 - (us - 1) * 1000 / 7 END) a;
SELECT at($t + 6999, 'pace', '7 ms', 1000000);
SQL

#
# A clock that steps back neither opens the gate nor shuts it for longer than the step
#
$t = later();
says($node, <<"SQL", <<'OUT' =~ s/\n\z//r, 'the clock steps back');
SELECT at($t, 'b', '1 s');
SELECT at($t - 5000000, 'b', '1 s');
SELECT at($t - 5000000, 'new', '1 s');
SELECT at($t - 4000001, 'new', '1 s');
SELECT at($t - 4000000, 'new', '1 s');
SELECT at($t, 'b', '1 s');
SELECT at($t + 999999, 'b', '1 s');
SELECT at($t + 1000000, 'b', '1 s');
SELECT at($t, 'b', '1 s', 4);
SELECT at($t - 500000, 'b', '1 s', 4);
SELECT at($t - 500000, 'b', '1 s', 4);
SELECT at($t - 1000000, 'b', '1 s', 4);
SELECT at($t - 1, 'b', '1 s', 4, cost => 3);
SELECT at($t, 'b', '1 s', 4, cost => 3);
SQL
(t,0,0,1000000)
(f,0,6000000,6000000)
(t,0,0,1000000)
(f,0,1,1)
(t,0,0,1000000)
(f,0,1000000,1000000)
(f,0,1,1)
(t,0,0,1000000)
(t,3,0,250000)
(t,0,0,1000000)
(f,0,250000,1000000)
(f,0,750000,1500000)
(f,1,250001,500001)
(f,2,250000,500000)
OUT

#
# A table of a fixed size
#

# The first time that may be told apart, and what the table does, in Perl: a call
# of a key that is not there takes the place of what ends first, which has been
# evicted if it was live.  No two ends are the same, so there is one answer.
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
restart(entries => 16, empty => 1);
evictions(16, 40, 10000);
restart(entries => 1000, empty => 1);
evictions(1000, 1500, 20000);

# The keys from .. to, each a microsecond after the one before, of which so many are allowed.
sub fill
{
	my ($server, $time, $from, $to, $period) = @_;

	return $server->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series($from, $to) i, at($time + i, 'x' || i, '$period')");
}

for my $entries (1000, 5000)
{
	restart(entries => $entries, empty => 1);
	counted($node);
	$t = later();
	my $many = 10 * $entries;
	my $kept = $many - $entries;
	is(fill($node, $t, 1, $entries, '1 hour'), $entries, "$entries entries hold so many limits");
	is(fill($node, $t, 1, $entries, '1 hour'), 0, 'and remember all');
	counts($node, "$entries|$entries|0", 'nothing is evicted');
	is(fill($node, $t, $entries + 1, $many, '1 hour'), $kept, 'and ten times as many');
	counts($node, "$kept|0|$kept", 'all but as many as there is room for are evicted');
	is(fill($node, $t, $kept + 1, $many, '1 hour'), 0, 'those that end last are kept');
	is(fill($node, $t, $kept, $kept, '1 hour'), 1, 'and nobody else');
	counts($node, "1|$entries|1", 'one made room for that');
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

	# What is first moves on just before somebody has to go: it is the next one that
	# does, wherever that is.  "cost" 2 asks of a limit with one call, and changes nothing.
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

	restart(entries => $entries, empty => 1);
	is(flood('ada', 1, $half, '1 hour'), $half, "$entries entries, some of which one scope has");
	counted($node);
	is(flood('eve', 1, $many, '10 years'), $many, 'another one has many, which end later');
	counts($node, "$many|0|" . ($many + $half - $entries), 'for which as many have to go');
	is(flood('ada', 1, $half, '1 hour'), 0, 'but none of the first one');
	is(flood('ada', $half + 1, $quarter, '1 hour'), $quarter - $half, 'which has more of them');
	restart();
	is(flood('mallory', 1, $many, '10 years'), $many, 'after a restart a third one has many');
	is(flood('ada', 1, $quarter, '1 hour'), 0, 'and the first one still has its own');
	is($node->safe_psql('other', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, $half) i, idem_throttle('x' || i, '1 min', 1 + 0 * i, 'eve')"), $half, 'another database has its own, under the same scope');
	is($node->safe_psql('other', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, $half) i, idem_throttle('x' || i, '1 min', 1 + 0 * i, 'eve')"), 0, 'and keeps them');
	is(flood('ada', 1, $quarter, '1 hour'), 0, 'as does the first one');
	# and more, which are as good as the others' then
	is(flood('ada', $quarter + 1, 2 * $quarter, '1 hour'), $quarter, 'more than a quarter is not refused');
}

#
# At once
#

# A script by many sessions; how many admissions they have counted, in a sequence,
# which no rollback undoes.
sub storm
{
	my ($server, $name, $transactions, $script) = @_;
	my $path = "$dir/$name.sql";
	my ($stdout, $stderr) = ('', '');

	$server->safe_psql('postgres', 'DROP SEQUENCE IF EXISTS admitted; CREATE SEQUENCE admitted');
	counted($server);
	append_to_file($path, $script);
	ok(IPC::Run::run([ 'pgbench', '-n', '-c', '50', '-j', '2', '-t', $transactions, '-f', $path, $server->connstr('postgres') ], '>', \$stdout, '2>', \$stderr), "$name: pgbench")
	  or diag($stderr);
	return $server->safe_psql('postgres', 'SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM admitted');
}

restart(empty => 1);
my $one = "SELECT nextval('admitted') FROM idem_throttle('%s', '10 years', %s) WHERE allowed;\n";
is(storm($node, 'one', 10, sprintf $one, 'one', 'NULL'), 1, '50 sessions, 500 calls: one is admitted');
counts($node, '1|499|0', 'and 499 are not');
is(storm($node, 'rolled_back', 10, "BEGIN;\n" . sprintf($one, 'rolled back', 1) . "ROLLBACK;\n"), 1, 'rolled back: one is admitted');
counts($node, '1|499|0', 'rolled back as well');
is( storm(
		$node, 'mixed', 10, "\\set r random(0, 2)\nBEGIN;\nSAVEPOINT s;\n" . sprintf($one, 'mixed', 7) . "\\if :r = 0\nROLLBACK TO s;\n\\endif\n\\if :r = 1\nROLLBACK;\n\\else\nCOMMIT;\n\\endif\n"),
	7, 'max_calls 7, some rolled back: 7 are admitted');
counts($node, '7|493|0', 'and 493 are not');
# without a lock these would lose each other's calls
is(storm($node, 'loops', 2, "SELECT count(nextval('admitted')) FROM generate_series(1, 1000) i, idem_throttle('loops', '10 years', 20000, cost => 1 + 0 * i) WHERE allowed;\n"),
	20000, 'max_calls 20000, 100000 calls in loops: 20000 are admitted');
counts($node, '20000|80000|0', 'and 80000 are not');
# by the real clock
my $began = time();
my $admitted = storm($node, 'pace', 20, "SELECT count(nextval('admitted')) FROM generate_series(1, 20) i, idem_throttle('pace', '50 ms', 1 + 0 * i) WHERE allowed;\n");
my $most = int((time() - $began) / 0.05) + 1;
cmp_ok($admitted, '<=', $most, "one in 50 ms: $admitted are admitted, of $most periods");
cmp_ok($admitted, '>=', 2, 'time goes on');

# Evictions in two partitions, whose locks are often wanted at once, and a limit that
# ends after all others, which they must neither forget nor lose.
restart(entries => 1024, empty => 1);
$admitted = storm($node, 'evictions', 10, <<'SQL');
SELECT count(nextval('admitted')) FROM generate_series(1, 5) i, idem_throttle('last', '10 years', 200, cost => 1 + 0 * i) WHERE allowed;
SELECT count(*) FROM generate_series(1, 395) i, idem_throttle('e' || (random() * 4000)::int, '1 hour', 2 + 0 * i);
SQL
is($admitted, 200, 'with evictions in between: 200 are admitted');
my @counted = split /\|/, counted($node);
is($counted[0] + $counted[1], 200_000, "no call is lost: $counted[0] allowed, $counted[1] rejected");
cmp_ok($counted[2], '>', 10_000, "$counted[2] were evicted");
# no entry has been lost, nor is one there twice
my $longer = "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, 1000) i, idem_throttle('y' || i, '9 years', 1 + 0 * i)";
is($node->safe_psql('postgres', $longer), 1000, 'new ones of a longer period');
counts($node, '1000|0|1000', 'take the places of others');
is($node->safe_psql('postgres', $longer), 0, 'and keep them');

# Many partitions are filled at once: the first that finds no room is the 50001st.
restart(entries => 50000, empty => 1);
storm($node, 'filled', 4, "SELECT count(*) FROM generate_series(1, 500) i, idem_throttle('f' || random(), '1 hour', 1 + 0 * i);\n");
counts($node, '100000|0|50000', '50 sessions fill a table of 50000, and again');
$node->stop;
is(-s $file, 76 + 32 * 50000, 'there are 50000');
$node->start;

#
# What it leaves behind
#
# the server itself may write WAL now and then
my $wal = <<'SQL';
SELECT pg_current_wal_insert_lsn() AS lsn \gset
SELECT count(idem_throttle('wal' || i, '1 s')) FROM generate_series(1, 1000) i;
SELECT pg_current_wal_insert_lsn() = :'lsn';
SQL
ok(eventually(sub { $node->safe_psql('postgres', $wal) eq "1000\nt" }), 'no WAL');
# the locks are those of the query that asks for them
says($node, <<'SQL', "t\nt|0", 'no transaction id, no lock');
BEGIN;
SELECT count(*) AS locks FROM pg_locks WHERE pid = pg_backend_pid() \gset
SELECT (idem_throttle('xid', '1 s', 1000)).allowed;
SELECT pg_current_xact_id_if_assigned() IS NULL, count(*) - :locks FROM pg_locks WHERE pid = pg_backend_pid();
COMMIT;
SQL
says($node, <<'SQL', "t 5\nt 4\nt 3\nt 2\nt 1\nf 0", 'rolled back, in a savepoint, after an error, prepared: counts');
BEGIN; SELECT answer('r', '1 hour', 6); ROLLBACK;
BEGIN; SAVEPOINT s; SELECT answer('r', '1 hour', 6); ROLLBACK TO s; SELECT answer('r', '1 hour', 6); COMMIT;
BEGIN; SELECT answer('r', '1 hour', 6); SELECT 1 / 0; COMMIT;
BEGIN; SELECT answer('r', '1 hour', 6); PREPARE TRANSACTION 'r'; ROLLBACK PREPARED 'r';
DO $$
BEGIN
	PERFORM answer('r', '1 hour', 6);
	RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
	NULL;
END $$;
SELECT answer('r', '1 hour', 6);
SQL
says($node, <<'SQL', "t 0\nf 0\nf 0\nf 0", 'in a read-only transaction');
BEGIN READ ONLY; SELECT answer('ro', '1 hour'); COMMIT;
BEGIN READ ONLY; SELECT answer('ro', '1 hour'); ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE; SELECT answer('ro', '1 hour'); COMMIT;
SET default_transaction_read_only = on; SELECT answer('ro', '1 hour');
SQL

#
# Over a clean restart
#

# When the limit may be used again, by the clock of the server; of some tries the
# first one, since the server may be held up between the two.
sub free_at
{
	my ($server, $call) = @_;

	return $server->safe_psql('postgres', <<"SQL");
SELECT min(extract(epoch FROM c) + retry_after) FROM generate_series(1, 10) i, LATERAL (SELECT clock_timestamp() + i * interval '0' AS c OFFSET 0) c,
	LATERAL (SELECT retry_after FROM idem_throttle($call, cost => 1 + 0 * i)) t WHERE retry_after > 0
SQL
}

sub about
{
	my ($got, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return ok(abs($got - $expected) < 0.05, $name) || diag("$got, expected $expected");
}

my $limit = "'kept', '1 hour', 3";
restart(entries => 1000, empty => 1);
says($node, "SELECT answer($limit)", $_, 'before the restart') for 't 2', 't 1', 't 0', 'f 0';
my $free_at = free_at($node, $limit);
ok(!-e $file, 'no file while the server runs');
$node->stop;
# 32 + 40: the magic number and which shutdown, the key, when, and how many; then 32 each, and a checksum
is(-s $file, 76 + 32, 'a file while it does not');
$node->start;
ok(eventually(sub { !-e $file }), 'which is gone when it does');
says($node, "SELECT answer($limit)", 'f 0', 'kept over a restart');
about(free_at($node, $limit), $free_at, 'and the time in between has counted');
sql_is($node, 'other', "SELECT answer($limit)", 't 2', 'for its database only');
restart() for 1 .. 2;
about(free_at($node, $limit), $free_at, 'so has that of two more');

# Change what is in the file: "magic" and "count", the clocks, what is behind.
sub tamper
{
	my (%change) = @_;

	$node->stop;
	my $bytes = slurp_file($file);
	my ($magic, $shutdown, $key, $saved_at, $now, $count, $entries, $crc) = unpack 'L a28 a16 q q q a' . (length($bytes) - 76) . ' a4', $bytes;

	$magic ^= $change{magic} // 0;
	$saved_at += $change{saved_at} // 0;
	$count += $change{count} // 0;
	if ($change{now})
	{
		$now += $change{now};
		$entries = join '', map { my ($id, $arrival, @rest) = unpack 'a16 q L L'; pack 'a16 q L L', $id, $arrival + $change{now}, @rest } unpack '(a32)*', $entries;
	}
	$bytes = seal(pack('L a28 a16 q q q a*', $magic, $shutdown, $key, $saved_at, $now, $count, $entries)) . ($change{behind} // '');
	vec($bytes, 8 * $change{flip}, 1) ^= 1 if $change{flip};
	$bytes = substr $bytes, 0, $change{length} if defined $change{length};
	my $log_start = -s $node->logfile;
	open my $out, '>:raw', $file or die "$file: $!";
	print $out $bytes;
	close $out or die "$file: $!";
	$node->start;
	return slurp_file($node->logfile, $log_start) =~ /LOG:  ignoring invalid data in file "pg_stat\/idempotency_throttle.stat"/ ? 'ignored' : 'read';
}

is(tamper(), 'read', 'the test can write the file');
about(free_at($node, $limit), $free_at, 'as the server does');
# a machine that was started anew counts from 0
tamper(now => 1_000_000_000_000);
about(free_at($node, $limit), $free_at, 'another origin of the clock');
tamper(saved_at => -1_000_000_000);
about(free_at($node, $limit), $free_at - 1000, 'what was stopped for 1000 seconds');
# then it stands still while it is down, at worst
tamper(saved_at => 1_000_000_000);
my $later = free_at($node, $limit);
ok($later > $free_at - 1000 && $later < $free_at - 1000 + 60, 'a wall clock that was set back does not prolong') || diag("$later, expected $free_at - 1000");
# expired when the server starts
tamper(saved_at => -3_600_000_000);
says($node, "SELECT answer($limit)", 't 2', 'what has expired while the server was down');
$node->stop;
is(-s $file, 76 + 32, 'and was not there any more');
$node->start;

# Thirds of a microsecond are kept, and no limit of a clock that only a test has.
restart(entries => 1000, empty => 1);
$t = later();
says($node, "SELECT answer('third', '1 hour 1 us', 3); SELECT at($t, 'test', '1 hour')", "t 2\n(t,0,0,3600000000)", 'a third of 3600000001 us, and a test');
$node->stop;
is(-s $file, 76 + 2 * 32, 'two limits');
$node->start;
$node->stop;
is(join(' ', map { unpack 'x24 L', $_ } unpack 'x72 (a32)*', substr slurp_file($file), 0, -4), 1, 'one limit, with its third');
$node->start;

# Into tables of other sizes, from 1 partition to 8, and back; the latest stay.
restart(entries => 1000, empty => 1);
my $fill = "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(%d, %d) i, idem_throttle('size' || i, 1000 * interval '1 hour' + i * interval '1 s')";
sql_is($node, 'postgres', sprintf($fill, 1, 1000), 1000, '1000 limits');
restart(entries => 5000);
counted($node);
sql_is($node, 'postgres', sprintf($fill, 1, 1000), 0, 'are there when there is room for 5000');
sql_is($node, 'postgres', sprintf($fill, 1001, 5000), 4000, 'which there is');
sql_is($node, 'postgres', sprintf($fill, 1, 5000), 0, 'for all of them');
counts($node, '4000|6000|0', 'none is evicted');
restart(entries => 1000);
cmp_ok($node->safe_psql('postgres', sprintf $fill, 4002, 5000), '<=', 1, 'the latest 1000 are there when there is room for no more');
# one in, one out
counted($node);
sql_is($node, 'postgres', sprintf($fill, 10001, 10010), 10, 'ten new ones');
counts($node, '10|0|10', 'take the places of ten');

#
# What has gone wrong with the file is in the log, and nothing else is different.
#
for my $wrong (
	[ 'another version', magic => 1 ],
	[ 'an empty file', length => 0 ],
	[ 'half of which shutdown', length => 20 ],
	[ 'half a header', length => 60 ],
	[ 'no entries', length => 72 ],
	[ 'one and a half', length => 72 + 48 ],
	[ 'no checksum', length => 72 + 96 ],
	[ 'half a checksum', length => 72 + 98 ],
	[ 'a bit of an entry', flip => 72 + 40 ],
	[ 'a bit of the checksum', flip => 72 + 97 ],
	[ 'less than it says', count => 1 ],
	[ 'more than it says', count => -1 ],
	[ 'something behind', behind => "\0" ],)
{
	my ($what, %change) = @$wrong;

	restart(entries => 1000, empty => 1);
	$node->safe_psql('postgres', "SELECT answer('a', '1 hour'), answer('b', '1 hour'), answer('c', '1 hour')");
	is(tamper(%change), 'ignored', "$what: said so in the log");
	says($node, join('', map { "SELECT answer('$_', '1 hour');" } qw(a b c a)), "t 0\nt 0\nt 0\nf 0", "$what: the table is empty");
	ok(eventually(sub { !-e $file }), "$what: the file is gone");
}

#
# After a crash the limits are lost, and only they
#
my $works = "BEGIN; SELECT state FROM idem_begin('crash' || clock_timestamp()); ROLLBACK; SELECT answer('crash', '1 hour');";
restart();
says($node, $works, "started\nt 0", 'before');
restart();
says($node, $works, "started\nf 0", 'after a restart');
my $victim = $node->background_psql('postgres');
my $pid = $victim->query_safe('SELECT pg_backend_pid()');
crash_by($node, $pid);
eval { $victim->quit };
says($node, $works, "started\nt 0", 'a backend was killed: the table is empty');
says($node, $works, "started\nf 0", 'and works');
ok(!-e $file, 'a backend was killed: no file');
$node->stop('immediate');
ok(!-e $file, 'immediate shutdown: no file');
$node->start;
says($node, $works, "started\nt 0", 'immediate shutdown: the table is empty');
says($node, $works, "started\nf 0", 'and works');

#
# On a hot standby: limits of its own
#
$node->backup('base');
ok(!-e $node->backup_dir . '/base/pg_stat/idempotency_throttle.stat', 'a backup has no file');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
says($node, "SELECT answer('both', '1 hour', 2)", $_, 'on the primary') for 't 1', 't 0', 'f 0';
says($standby, 'SELECT pg_is_in_recovery()', 't', 'standby: in recovery');
says($standby, "SELECT answer('both', '1 hour', 2)", $_, 'standby: counts for itself') for 't 1', 't 0', 'f 0';
says($standby, "BEGIN; SELECT answer('standby', '1 hour', 2); ROLLBACK; SELECT answer('standby', '1 hour', 2)", "t 1\nt 0", 'standby: rolled back');
says($node, "SELECT answer('standby', '1 hour', 2)", 't 1', 'the primary knows nothing of it');
$standby->restart;
says($standby, "SELECT answer('both', '1 hour', 2)", 'f 0', 'standby: kept over a restart');
says($standby, 'SELECT throttle_allowed, throttle_rejected FROM idem_stat WHERE datname = current_database()', '4|2', 'standby: counted');
$standby->promote;
says($standby, "SELECT answer('both', '1 hour', 2)", 'f 0', 'promoted: the limits are those of before');
says($standby, "SELECT answer('promoted', '1 hour')", $_, 'promoted: new ones') for 't 0', 'f 0';
$standby->restart;
says($standby, "SELECT answer('both', '1 hour', 2)", 'f 0', 'promoted: kept over a restart');
$standby->stop;
$node->stop;

#
# Not preloaded
#
my $bare = new_node('bare', conf => "idempotency.throttle_entries = 16\nmax_connections = 70\n");
$bare->safe_psql('postgres', $functions);
if ($version < 170000)
{
	my (undef, $out, $err) = $bare->psql('postgres', "\\set VERBOSITY verbose\nSELECT answer('k', '1 hour')");
	like($err, qr/ERROR:  55000:.*HINT:  [^\n]*shared_preload_libraries/s, 'no shared memory: an error with a hint');
	says($bare, <<'SQL', "55000\nstarted\n\nt\nf\n||\nreplayed", 'no shared memory: the rest works');
SELECT answer('k', '1 hour');
\echo :SQLSTATE
BEGIN;
SELECT state FROM idem_begin('k');
SELECT idem_finish('k');
COMMIT;
SELECT idem_claim('c');
SELECT idem_claim('c');
SELECT throttle_allowed, throttle_rejected, throttle_evicted FROM idem_stat;
SELECT state FROM idem_begin('k');
SQL
	# what is wrong with the call is told first
	sql_fails($bare, 'postgres', "SELECT answer('', '1 hour')", '55000', 'no shared memory: an empty key');
	sql_fails($bare, 'postgres', "SELECT answer('k', '-1 hour')", '22023', 'no shared memory: a negative period');
}
else
{
	is($bare->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, 16) i, idem_throttle('x' || i, '1 hour')"), 16, 'shared memory without preload: it works');
	# whoever was first has chosen its size
	$bare->append_conf('postgresql.conf', "idempotency.throttle_entries = 1000\n");
	$bare->reload;
	ok($bare->poll_query_until('postgres', 'SHOW idempotency.throttle_entries', '1000'), 'another setting');
	is($bare->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, 16) i, idem_throttle('x' || i, '1 hour')"), 0, 'other sessions have the same table');
	counts($bare, '16|16|0', 'nothing is evicted');
	sql_is($bare, 'postgres', "SELECT answer('x17', '2 hours')", 't 0', 'one more');
	counts($bare, '1|0|1', 'and it is full, whatever the setting is');
	sql_is($bare, 'postgres', "SELECT answer('x17', '2 hours'); SELECT answer('x16', '1 hour')", "f 0\nf 0", 'the last ones are kept');

	$bare->restart;
	my @admitted = (storm($bare, 'bare', 2, "SELECT count(nextval('admitted')) FROM generate_series(1, 100) i, idem_throttle('loops', '10 years', 700, cost => 1 + 0 * i) WHERE allowed;\n"));
	is("@admitted", 700, '50 sessions, max_calls 700, 10000 calls: 700 are admitted');
	counts($bare, '700|9300|0', 'and 9300 are not');
	is($bare->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, 999) i, idem_throttle('x' || i, '1 hour')"), 999, 'after a restart it is another table, of another size');
	counts($bare, '999|0|0', 'nothing is evicted');
	ok(!-e $bare->data_dir . '/pg_stat/idempotency_throttle.stat', 'no file');

	# the extension goes and comes, the library and the memory stay
	says($bare, <<'SQL', "t 0\nf 0\nf|0\n1\nf 0", 'in another schema');
SELECT answer('schema', '1 hour');
SELECT answer('schema', '1 hour');
SET client_min_messages = error;
DROP EXTENSION idempotency;
CREATE SCHEMA elsewhere;
CREATE EXTENSION idempotency SCHEMA elsewhere;
SELECT allowed, remaining FROM elsewhere.idem_throttle('schema', '1 hour');
SELECT throttle_evicted FROM elsewhere.idem_stat WHERE datname = current_database();
SET search_path = elsewhere, public;
SELECT answer('schema', '1 hour');
SQL
	$bare->safe_psql('postgres', 'CREATE DATABASE other');
	$bare->safe_psql('other', "CREATE EXTENSION idempotency; $functions");
	says($bare, "SET search_path = elsewhere, public; SELECT answer('schema', '1 hour');\n\\c other\nSELECT answer('schema', '1 hour')", "f 0\nt 0", 'in another database');
	$bare->stop('immediate');
	$bare->start;
	sql_is($bare, 'other', "SELECT answer('schema', '1 hour')", 't 0', 'after a crash');
}
# nobody but who sets up the server can choose the size
like((failure($bare, 'postgres', "LOAD 'idempotency'; SET idempotency.throttle_entries = 100000"))[0], qr/^55P02$/, 'the size is not for sessions to choose');
$bare->stop;

done_testing();
