
# The throttle answers as the algorithm says, to the microsecond, whatever becomes of
# the caller's transaction.  It refuses bad input, and is for the roles that were granted it.
# The other tests of it are t/*_throttle_*.pl.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IdemThrottle;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_throttle_node('preloaded');
my $version = $node->safe_psql('postgres', 'SHOW server_version_num');

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
$node->safe_psql('other', 'CREATE EXTENSION idempotency; ' . throttle_functions());
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
}
sql_fails($node, 'postgres', "SELECT idem_claim('k')", '42501', 'throttler can do nothing else', '-U', 'throttler');
$node->safe_psql('postgres', "SELECT idem_revoke('throttler', '{throttle}')");
sql_fails($node, 'postgres', "SELECT idem_throttle('role', '1 s')", '42501', 'revoked', '-U', 'throttler');

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
sql_is($node, 'postgres', "CREATE FUNCTION siphash(bytea, bytea) RETURNS bytea LANGUAGE c AS '" . build_module('test_throttle') . "', 'siphash_bytes';" . join('', map { <<"SQL" } @lengths), join("\n", @hashes), 'SipHash of ' . @lengths . ' lengths');
SELECT encode(siphash('\\x000102030405060708090a0b0c0d0e0f', decode((SELECT coalesce(string_agg(lpad(to_hex(i), 2, '0'), '' ORDER BY i), '') FROM generate_series(0, $_ - 1) i), 'hex')), 'hex');
SQL

#
# The algorithm in numeric, from its textbook: the arrival time is counted in
# microseconds times max_calls.  Calls are drawn so that what matters is met: clocks
# that stand, wait as long as retry_after or a microsecond less, and step back; costs that just
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
restart($node, empty => 1);

#
# Waiting as long as retry_after
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
$node->stop;

done_testing();
