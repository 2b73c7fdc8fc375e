
# The throttle's limits are there after a clean restart, and after nothing else: a file
# that is damaged is ignored, a crash leaves an empty table.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IdemThrottle;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_throttle_node('preloaded');
my $file = throttle_file($node);

$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION idempotency; ' . throttle_functions());


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
restart($node, entries => 1000);
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
restart($node) for 1 .. 2;
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
my $began = time();
tamper(saved_at => 1_000_000_000);
my $later = free_at($node, $limit);
ok($later > $free_at - 1000 && $later < $free_at - 1000 + time() - $began, 'a wall clock that was set back does not prolong') || diag("$later, expected $free_at - 1000");
# expired when the server starts
tamper(saved_at => -3_600_000_000);
says($node, "SELECT answer($limit)", 't 2', 'what has expired while the server was down');
$node->stop;
is(-s $file, 76 + 32, 'and was not there any more');
$node->start;

# Thirds of a microsecond are kept, and no limit of a clock that only a test has.
restart($node, entries => 1000, empty => 1);
my $t = later();
says($node, "SELECT answer('third', '1 hour 1 us', 3); SELECT at($t, 'test', '1 hour')", "t 2\n(t,0,0,3600000000)", 'a third of 3600000001 us, and a test');
$node->stop;
is(-s $file, 76 + 2 * 32, 'two limits');
$node->start;
$node->stop;
is(join(' ', map { unpack 'x24 L', $_ } unpack 'x72 (a32)*', substr slurp_file($file), 0, -4), 1, 'one limit, with its third');
$node->start;

# Into tables of other sizes, from 1 partition to 8, and back; the latest stay.
restart($node, entries => 1000, empty => 1);
my $fill = "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(%d, %d) i, idem_throttle('size' || i, 1000 * interval '1 hour' + i * interval '1 s')";
sql_is($node, 'postgres', sprintf($fill, 1, 1000), 1000, '1000 limits');
restart($node, entries => 5000);
counted($node);
sql_is($node, 'postgres', sprintf($fill, 1, 1000), 0, 'are there when the table holds 5000');
sql_is($node, 'postgres', sprintf($fill, 1001, 5000), 4000, 'which there is');
sql_is($node, 'postgres', sprintf($fill, 1, 5000), 0, 'for all of them');
counts($node, '4000|6000|0', 'none is evicted');
restart($node, entries => 1000);
cmp_ok($node->safe_psql('postgres', sprintf $fill, 4002, 5000), '<=', 1, 'the latest 1000 are there when the table holds no more');
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

	restart($node, entries => 1000, empty => 1);
	$node->safe_psql('postgres', "SELECT answer('a', '1 hour'), answer('b', '1 hour'), answer('c', '1 hour')");
	is(tamper(%change), 'ignored', "$what: said so in the log");
	says($node, join('', map { "SELECT answer('$_', '1 hour');" } qw(a b c a)), "t 0\nt 0\nt 0\nf 0", "$what: the table is empty");
	ok(eventually(sub { !-e $file }), "$what: the file is gone");
}

#
# After a crash the limits are lost, and only they
#
my $works = "BEGIN; SELECT state FROM idem_begin('crash' || clock_timestamp()); ROLLBACK; SELECT answer('crash', '1 hour');";
restart($node);
says($node, $works, "started\nt 0", 'before');
restart($node);
says($node, $works, "started\nf 0", 'after a restart');
kill_backend($node, $node->background_psql('postgres'));
says($node, $works, "started\nt 0", 'a backend was killed: the table is empty');
says($node, $works, "started\nf 0", 'and works');
ok(!-e $file, 'a backend was killed: no file');
$node->stop('immediate');
ok(!-e $file, 'immediate shutdown: no file');
$node->start;
says($node, $works, "started\nt 0", 'immediate shutdown: the table is empty');
says($node, $works, "started\nf 0", 'and works');
$node->stop;

done_testing();
