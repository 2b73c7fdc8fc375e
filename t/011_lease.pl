
# Leased claims over crashes, restores and a standby: the work goes on at the last
# recovery point, each phase has its effect once, and no fence is ever issued twice, so
# that no zombie passes.  The other tests of leases are t/*_lease_*.pl.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemLease;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_lease_node('main', streaming => 1);

#
# The holder's backend is killed between two recovery points
#

# How far the holder gets before that, after the recovery point "reserved".
my @deaths = (
	[ 'idle', '' ],
	[ 'in the next phase', "BEGIN; INSERT INTO effects VALUES ('%1\$s', 'charged');" ],
	[   'before its commit',
		"BEGIN; INSERT INTO effects VALUES ('%1\$s', 'charged'); SELECT idem_checkpoint('%1\$s', 'charged', '{\"charge\": 1}', fence => %2\$s);"
	],
	[   'before the commit of all',
		"BEGIN; INSERT INTO effects VALUES ('%1\$s', 'charged'), ('%1\$s', 'confirmed'); SELECT idem_finish('%1\$s', '\"first\"', fence => %2\$s);"
	]);

my $longer = begin($node, 'postgres', 'longer', '1 hour');
for my $death (@deaths)
{
	my ($name, $last) = @$death;
	my $k = "killed $name";
	my $holder = $node->background_psql('postgres');

	my $fence = $holder->query_safe("SELECT fence FROM idem_begin('$k', lease => '1 hour')");
	$holder->query_safe(work($k, 'reserved',
		"idem_checkpoint('$k', 'reserved', '{\"reservation\": 1}', fence => $fence)"));
	is(begin($node, 'postgres', $k, '1 hour')->{state}, 'in_progress', "$name: in progress while the holder lives");

	# what follows may well be late: no other session can take over
	$holder->query_safe("SELECT idem_extend('$k', '1 second', fence => $fence)");
	$holder->query_safe(sprintf($last, $k, $fence)) if $last;

	ok(kill_backend($node, $holder), "$name: the holder's backend is killed");

	my $next = take_over($node, 'postgres', $k, '1 hour');
	is("@$next{qw(state attempt phase progress)}",
		'started 2 reserved {"reservation": 1}', "$name: another takes over at the last recovery point");
	cmp_ok($next->{fence}, '>', $fence, "$name: under a fence of its own");
	effects_are($node, 'postgres', $k, 'reserved', "$name: what was not committed is gone");
	zombie($node, 'postgres', $k, $fence, 'ID004', "$name: the dead one's fence");

	# it goes on from there, and another takes over from it in turn
	$node->safe_psql('postgres', work($k, 'charged',
		"idem_checkpoint('$k', 'charged', '{\"charge\": 2}', fence => $next->{fence}, lease => '10 ms')"));
	my $last_one = take_over($node, 'postgres', $k, '1 hour');
	is("@$last_one{qw(attempt phase progress)}", '3 charged {"charge": 2}', "$name: and the next at the next");
	$node->safe_psql('postgres', work($k, 'confirmed', "idem_finish('$k', '\"paid\"', fence => $last_one->{fence})"));

	effects_are($node, 'postgres', $k, 'charged confirmed reserved', "$name: each phase has its effect once");
	sql_is($node, 'postgres', "SELECT state, result, attempt FROM idem_begin('$k', lease => '1 hour')", 'replayed|"paid"|3', "$name: the answer");
	zombie($node, 'postgres', $k, $_->{fence}, 'ID004', "$name: a fence of before, when all is done") for { fence => $fence }, $next;
}
sql_is($node, 'postgres', "SELECT state FROM idem_begin('longer')", 'in_progress', 'a lease outlives crashes');
sql_is($node, 'postgres', "SELECT idem_finish('longer', '1', fence => $longer->{fence})", '1', 'and so does its fence');

#
# No fence is issued twice
#

# Of any key.  The sequence is logged once for 32 numbers: have more than that.
my $highest = 0;

sub newer
{
	my ($fences, $name) = @_;
	my $low = $fences->[0];
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	cmp_ok($low, '>', $highest, "$name: new fences are new");
	is(join(' ', @$fences), join(' ', sort { $a <=> $b } keys %{ { map { $_ => 1 } @$fences } }), "$name: in order");
	$highest = $fences->[-1];
}

# Begin leases of that many keys, each a transaction of its own unless the
# caller has one; the fences.
sub many
{
	my ($run, $name, $n) = @_;

	return [ split /\n/, $run->(join "\n", map { "SELECT fence FROM idem_begin('$name $_', lease => '1 hour');" } 1 .. $n) ];
}

my $plainly = sub { $node->safe_psql('postgres', $_[0]) };
my $asynchronously = sub { $node->safe_psql('postgres', "SET synchronous_commit = off;\n$_[0]") };

newer(many($plainly, 'plain', 45), 'committed');
for my $n (1, 33, 70)
{
	my ($name, $session, $fences);

	# the transaction is open
	$name = "uncommitted, $n";
	settle($node);
	$session = $node->background_psql('postgres');
	$session->query_safe('BEGIN');
	$fences = many(sub { $session->query_safe($_[0]) }, $name, $n);
	newer($fences, $name);
	crash($node);
	eval { $session->quit };
	zombie($node, 'postgres', "$name 1", $fences->[0], 'ID003', "$name: a fence of a lost claim");
	my $again = begin($node, 'postgres', "$name 1", '1 hour');
	is("$again->{state} $again->{attempt}", 'started 1', "$name: nothing is known of it");
	newer([ $again->{fence} ], "$name, after a crash");
	zombie($node, 'postgres', "$name 1", $fences->[0], 'ID004', "$name: a fence of a lost claim, when another holds it");

	# it has committed, and the commit is lost; or it is not, which is as well
	$name = "asynchronous, $n";
	settle($node);
	$fences = many($asynchronously, $name, $n);
	newer($fences, $name);
	crash($node);
	newer(many($plainly, "after $name", 2), "$name, after a crash");

	# rolled back
	$name = "rolled back, $n";
	newer(many(sub { $node->safe_psql('postgres', "BEGIN; $_[0] ROLLBACK") }, $name, $n), $name);
	newer(many($plainly, "after $name", 2), "$name, after that");
}

# Whatever ends a claim, its fence is gone with it.
my $gone = sub {
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM idem_lookup('$_[0]')") or die 'it did not expire';
};
my @ends = (
	[ 'released', 'ID004', '1 hour', '1 day', sub { $node->safe_psql('postgres', "SELECT idem_release('$_[0]', fence => $_[1])") } ],
	[ 'forgotten', 'ID003', '1 hour', '1 day', sub { $node->safe_psql('postgres', "SELECT idem_forget('$_[0]')") } ],
	[ 'expired', 'ID003', '1 ms', '1 second', $gone ],
	[   'purged', 'ID003', '1 ms', '1 second',
		sub {
			$gone->(@_);
			$node->safe_psql('postgres', 'DELETE FROM idem_keys WHERE expires_at <= clock_timestamp(); VACUUM idem_keys');
		}
	],
	[   'finished, then expired', 'ID003', '1 hour', '1 second',
		sub {
			$node->safe_psql('postgres', "SELECT idem_finish('$_[0]', fence => $_[1])");
			$gone->(@_);
		}
	]);
for my $end (@ends)
{
	my ($name, $sqlstate, $lease, $ttl, $how) = @$end;
	my $first = begin($node, 'postgres', $name, $lease, ", ttl => '$ttl'");

	newer([ $first->{fence} ], "before it is $name");
	$how->($name, $first->{fence});
	zombie($node, 'postgres', $name, $first->{fence}, $sqlstate, "$name: the fence of before");

	my $second = begin($node, 'postgres', $name, '1 hour');
	is($second->{state}, 'started', "$name: it can be begun again");
	newer([ $second->{fence} ], $name);
	zombie($node, 'postgres', $name, $first->{fence}, 'ID004', "$name: the fence of before, when another holds it");
	$node->safe_psql('postgres', work($name, 'once', "idem_finish('$name', '\"second\"', fence => $second->{fence})"));
	zombie($node, 'postgres', $name, $first->{fence}, 'ID004', "$name: the fence of before, when another has finished");
	effects_are($node, 'postgres', $name, 'once', "$name: one effect");
}

#
# Dump and restore
#
my $dir = PostgreSQL::Test::Utils::tempdir();
my %dumped = map { $_ => begin($node, 'postgres', "dumped $_", '1 hour')->{fence} } qw(leased released finished superseded);
$node->safe_psql('postgres', work('dumped leased', 'before',
	"idem_checkpoint('dumped leased', 'reserved', '{\"reservation\": 1}', fence => $dumped{leased})"));
$node->safe_psql('postgres', "SELECT idem_release('dumped released', fence => $dumped{released})");
$node->safe_psql('postgres', "SELECT idem_finish('dumped finished', '1', fence => $dumped{finished})");
$node->safe_psql('postgres', "SELECT idem_extend('dumped superseded', '10 ms', fence => $dumped{superseded})");
my $taker = take_over($node, 'postgres', 'dumped superseded', '1 hour');

# numbers that no row shows
newer(many(sub { $node->safe_psql('postgres', "BEGIN; $_[0] ROLLBACK") }, 'before the dump', 3), 'before the dump');

$node->command_ok([ 'pg_dump', '-f', "$dir/all.sql", '-d', $node->connstr('postgres') ], 'pg_dump');
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/all.dump", '-d', $node->connstr('postgres') ], 'pg_dump, custom format');
my $at_dump = $highest;
for my $db ('plain', 'custom')
{
	$node->safe_psql('postgres', "CREATE DATABASE $db TEMPLATE template0");
	$node->command_ok(
		$db eq 'plain'
		? [ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($db), '-f', "$dir/all.sql" ]
		: [ 'pg_restore', '--exit-on-error', '-d', $node->connstr($db), "$dir/all.dump" ],
		"restore, $db");

	$highest = $at_dump;
	newer([ begin($node, $db, 'after the restore', '1 hour')->{fence} ], $db);
	sql_is($node, $db, "SELECT state FROM idem_begin('dumped leased')", 'in_progress', "$db: the lease runs");
	zombie($node, $db, 'dumped released', $dumped{released}, 'ID004', "$db: a released claim");
	zombie($node, $db, 'dumped superseded', $dumped{superseded}, 'ID004', "$db: a superseded fence");
	sql_fails($node, $db, work('dumped finished', 'again', "idem_finish('dumped finished', '2', fence => $dumped{finished})"),
		'ID006', "$db: finished before the dump");
	sql_fails($node, $db, work('dumped leased', 'again', "idem_checkpoint('dumped leased', 'reserved', fence => $dumped{leased})"),
		'ID006', "$db: at this phase before the dump");
	sql_is($node, $db, work('dumped leased', 'after', "idem_finish('dumped leased', '\"done\"', fence => $dumped{leased})"),
		'"done"', "$db: a fence of before the dump finishes its claim");
	sql_is($node, $db, "SELECT idem_finish('dumped superseded', '1', fence => $taker->{fence})", '1', "$db: so does a taker's");
	effects_are($node, $db, 'dumped leased', 'after before', "$db: each phase has its effect once");

	my $next = begin($node, $db, 'dumped released', '1 hour');
	is("$next->{state} $next->{attempt}", 'started 2', "$db: a released claim is taken over");
	newer([ $next->{fence} ], "$db, a claim of before");
	zombie($node, $db, 'dumped released', $dumped{released}, 'ID004', "$db: a fence of before the dump, when another holds it");
}

#
# A standby
#
my $standby = new_standby($node);

my %held = map { $_ => begin($node, 'postgres', "standby $_", $_ eq 'abandoned' ? '1 ms' : '1 hour')->{fence} } qw(leased abandoned finished);
$node->safe_psql('postgres', work('standby leased', 'reserved', "idem_checkpoint('standby leased', 'reserved', '1', fence => $held{leased})"));
$node->safe_psql('postgres', "SELECT idem_finish('standby finished', '1', fence => $held{finished})");
$node->wait_for_catchup($standby);

sql_is($standby, 'postgres', "SELECT state, retry_after BETWEEN 3000 AND 3600, phase FROM idem_begin('standby leased', lease => $_)",
	'in_progress|t|', "standby: a running lease, lease => $_")
  for 'NULL', "'1 hour'";
sql_is($standby, 'postgres', "SELECT state, phase, progress, attempt FROM idem_lookup('standby leased')", 'in_progress|reserved|1|1', 'standby: look-up of a running lease');
sql_is($standby, 'postgres', "SELECT state, result FROM idem_begin('standby finished', lease => '1 hour')", 'replayed|1', 'standby: a finished lease replays');
ok( $standby->poll_query_until('postgres', "SELECT state = 'abandoned' FROM idem_lookup('standby abandoned')"),
	'standby: a lease runs out by the clock');
for my $call (
	"idem_begin('standby new', lease => '1 hour')",
	"idem_begin('standby abandoned', lease => '1 hour')",
	"idem_begin('standby abandoned')",
	"idem_finish('standby leased', fence => $held{leased})",
	"idem_release('standby leased', fence => $held{leased})",
	"idem_extend('standby leased', '1 hour', fence => $held{leased})",
	"idem_checkpoint('standby leased', 'charged', fence => $held{leased})")
{
	sql_fails($standby, 'postgres', "SET statement_timeout = '${PostgreSQL::Test::Utils::timeout_default}s'; SELECT $call", '25006', "standby: $call");
}

# Promoted, it goes on where the primary was, with new numbers.
my $promoted_above = $node->safe_psql('postgres', "SELECT fence FROM idem_begin('standby last', lease => '1 hour')");
$node->wait_for_catchup($standby);
$node->stop('immediate');
$standby->promote;
$node = $standby;
$highest = $promoted_above;
my $after = begin($node, 'postgres', 'standby abandoned', '1 hour');
is("$after->{state} $after->{attempt}", 'started 2', 'promoted: takes over');
newer([ $after->{fence} ], 'promoted');
zombie($node, 'postgres', 'standby abandoned', $held{abandoned}, 'ID004', 'promoted: the fence of before');
sql_is($node, 'postgres', "SELECT idem_finish('standby leased', '2', fence => $held{leased})", '2', 'promoted: a fence of before finishes its claim');
$node->stop;

done_testing();
