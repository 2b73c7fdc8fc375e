
# Leased claims over crashes, restores, prepared transactions and a standby:
# the work goes on at the last recovery point, each phase has its effect once,
# and no fence is ever issued twice, so that no zombie passes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# As in 004_durable.pl: nothing writes WAL out that was not asked to, so that a
# crash loses what nobody made durable.
my $node = new_node('main', streaming => 1, initdb => ['--wal-segsize=1'], conf => <<'CONF');
restart_after_crash = on
max_connections = 50
wal_writer_delay = 10s
checkpoint_timeout = 1h
bgwriter_lru_maxpages = 0
full_page_writes = off
CONF

$node->safe_psql('postgres', 'CREATE TABLE effects (k text, what text)');

# One row of idem_begin, as a hash.
sub begin
{
	my ($db, $k, $lease, $more) = @_;
	my %row;

	@row{qw(state fence attempt phase progress)} = split /\|/, $node->safe_psql($db,
		"SELECT state, fence, attempt, phase, progress FROM idem_begin('$k', lease => '$lease'" . ($more // '') . ')'), -1;
	return \%row;
}

# The same, once the running lease has run out.
sub take_over
{
	my ($db, $k, $lease) = @_;
	my $row;

	eventually(sub { ($row = begin($db, $k, $lease))->{state} ne 'in_progress' })
	  or die "$k was never abandoned";
	return $row;
}

sub effects_are
{
	my ($db, $k, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($node, $db, "SELECT string_agg(what, ' ' ORDER BY what) FROM effects WHERE k = '$k'", $expected, $name);
}

# A transaction: an effect, and the call that goes with it.
sub work
{
	my ($k, $what, $call) = @_;

	return "BEGIN; INSERT INTO effects VALUES ('$k', '$what'); SELECT $call; COMMIT;";
}

sub whole_row
{
	my ($db, $k) = @_;

	return $node->safe_psql($db, "SELECT i, i.xmin FROM idem_keys i WHERE key = '$k'");
}

# Whoever comes with that fence is refused, whatever it wants, and nothing of
# its transaction stays.
sub zombie
{
	my ($db, $k, $fence, $sqlstate, $name) = @_;
	my $state = "SELECT count(*), (SELECT string_agg((i, i.xmin)::text, '') FROM idem_keys i WHERE key = '$k') FROM effects;";
	my @calls = (
		"idem_finish('$k', '\"zombie\"', fence => $fence)",
		"idem_checkpoint('$k', 'zombie', '\"zombie\"', fence => $fence)",
		"idem_checkpoint('$k', 'zombie', fence => $fence, lease => '1 day')",
		"idem_extend('$k', '1 day', fence => $fence)",
		"idem_release('$k', fence => $fence)");
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	my ($ret, $out, $err) = $node->psql($db, join("\n", $state, (map { work($k, 'zombie', $_) } @calls), $state),
		on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	is(join(' ', $err =~ /ERROR:\s+(\w{5})$/mg), join(' ', ($sqlstate) x @calls), "$name: is refused");
	like($out, qr/\A(.+)\n\g1\z/, "$name: nothing has changed");
}

# Begin a page of WAL that what follows will not fill.
sub settle
{
	$node->safe_psql('postgres', 'SELECT count(*) FROM idem_keys; SELECT pg_switch_wal()');
}

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

my $longer = begin('postgres', 'longer', '1 hour');
for my $death (@deaths)
{
	my ($name, $last) = @$death;
	my $k = "killed $name";
	my $holder = $node->background_psql('postgres');

	my $fence = $holder->query_safe("SELECT fence FROM idem_begin('$k', lease => '1 hour')");
	$holder->query_safe(work($k, 'reserved',
		"idem_checkpoint('$k', 'reserved', '{\"reservation\": 1}', fence => $fence)"));
	is(begin('postgres', $k, '1 hour')->{state}, 'in_progress', "$name: in progress while the holder lives");

	# what follows may well be late: nobody else is there to take over
	$holder->query_safe("SELECT idem_extend('$k', '1 second', fence => $fence)");
	$holder->query_safe(sprintf($last, $k, $fence)) if $last;

	ok(crash_by($node, $holder->query_safe('SELECT pg_backend_pid()')), "$name: the holder's backend is killed");
	eval { $holder->quit };

	my $next = take_over('postgres', $k, '1 hour');
	is("@$next{qw(state attempt phase progress)}",
		'started 2 reserved {"reservation": 1}', "$name: another takes over at the last recovery point");
	cmp_ok($next->{fence}, '>', $fence, "$name: under a fence of its own");
	effects_are('postgres', $k, 'reserved', "$name: what was not committed is gone");
	zombie('postgres', $k, $fence, 'ID004', "$name: the dead one's fence");

	# it goes on from there, and another takes over from it in turn
	$node->safe_psql('postgres', work($k, 'charged',
		"idem_checkpoint('$k', 'charged', '{\"charge\": 2}', fence => $next->{fence}, lease => '10 ms')"));
	my $last_one = take_over('postgres', $k, '1 hour');
	is("@$last_one{qw(attempt phase progress)}", '3 charged {"charge": 2}', "$name: and the next at the next");
	$node->safe_psql('postgres', work($k, 'confirmed', "idem_finish('$k', '\"paid\"', fence => $last_one->{fence})"));

	effects_are('postgres', $k, 'charged confirmed reserved', "$name: each phase has its effect once");
	sql_is($node, 'postgres', "SELECT state, result, attempt FROM idem_begin('$k', lease => '1 hour')", 'replayed|"paid"|3', "$name: the answer");
	zombie('postgres', $k, $_->{fence}, 'ID004', "$name: a fence of before, when all is done") for { fence => $fence }, $next;
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
	settle();
	$session = $node->background_psql('postgres');
	$session->query_safe('BEGIN');
	$fences = many(sub { $session->query_safe($_[0]) }, $name, $n);
	newer($fences, $name);
	crash($node);
	eval { $session->quit };
	zombie('postgres', "$name 1", $fences->[0], 'ID003', "$name: a fence of a lost claim");
	my $again = begin('postgres', "$name 1", '1 hour');
	is("$again->{state} $again->{attempt}", 'started 1', "$name: nothing is known of it");
	newer([ $again->{fence} ], "$name, after a crash");
	zombie('postgres', "$name 1", $fences->[0], 'ID004', "$name: a fence of a lost claim, when another holds it");

	# it has committed, and the commit is lost; or it is not, which is as well
	$name = "asynchronous, $n";
	settle();
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
	my $first = begin('postgres', $name, $lease, ", ttl => '$ttl'");

	newer([ $first->{fence} ], "before it is $name");
	$how->($name, $first->{fence});
	zombie('postgres', $name, $first->{fence}, $sqlstate, "$name: the fence of before");

	my $second = begin('postgres', $name, '1 hour');
	is($second->{state}, 'started', "$name: it can be begun again");
	newer([ $second->{fence} ], $name);
	zombie('postgres', $name, $first->{fence}, 'ID004', "$name: the fence of before, when another holds it");
	$node->safe_psql('postgres', work($name, 'once', "idem_finish('$name', '\"second\"', fence => $second->{fence})"));
	zombie('postgres', $name, $first->{fence}, 'ID004', "$name: the fence of before, when another has finished");
	effects_are('postgres', $name, 'once', "$name: one effect");
}

#
# Dump and restore
#
my $dir = PostgreSQL::Test::Utils::tempdir();
my %dumped = map { $_ => begin('postgres', "dumped $_", '1 hour')->{fence} } qw(leased released finished superseded);
$node->safe_psql('postgres', work('dumped leased', 'before',
	"idem_checkpoint('dumped leased', 'reserved', '{\"reservation\": 1}', fence => $dumped{leased})"));
$node->safe_psql('postgres', "SELECT idem_release('dumped released', fence => $dumped{released})");
$node->safe_psql('postgres', "SELECT idem_finish('dumped finished', '1', fence => $dumped{finished})");
$node->safe_psql('postgres', "SELECT idem_extend('dumped superseded', '10 ms', fence => $dumped{superseded})");
my $taker = take_over('postgres', 'dumped superseded', '1 hour');

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
	newer([ begin($db, 'after the restore', '1 hour')->{fence} ], $db);
	sql_is($node, $db, "SELECT state FROM idem_begin('dumped leased')", 'in_progress', "$db: the lease runs");
	zombie($db, 'dumped released', $dumped{released}, 'ID004', "$db: a released claim");
	zombie($db, 'dumped superseded', $dumped{superseded}, 'ID004', "$db: a superseded fence");
	sql_fails($node, $db, work('dumped finished', 'again', "idem_finish('dumped finished', '2', fence => $dumped{finished})"),
		'ID006', "$db: finished before the dump");
	sql_fails($node, $db, work('dumped leased', 'again', "idem_checkpoint('dumped leased', 'reserved', fence => $dumped{leased})"),
		'ID006', "$db: at this phase before the dump");
	sql_is($node, $db, work('dumped leased', 'after', "idem_finish('dumped leased', '\"done\"', fence => $dumped{leased})"),
		'"done"', "$db: a fence of before the dump finishes its claim");
	sql_is($node, $db, "SELECT idem_finish('dumped superseded', '1', fence => $taker->{fence})", '1', "$db: so does a taker's");
	effects_are($db, 'dumped leased', 'after before', "$db: each phase has its effect once");

	my $next = begin($db, 'dumped released', '1 hour');
	is("$next->{state} $next->{attempt}", 'started 2', "$db: a released claim is taken over");
	newer([ $next->{fence} ], "$db, a claim of before");
	zombie($db, 'dumped released', $dumped{released}, 'ID004', "$db: a fence of before the dump, when another holds it");
}

#
# The reply of the COMMIT is lost, and the client runs the whole transaction again
#
for my $how ('running', 'late')
{
	my $k = "repeated, $how";
	my $fence = begin('postgres', $k, $how eq 'running' ? '1 hour' : '1 ms')->{fence};

	# late, but nobody has taken over
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
		my $row = whole_row('postgres', $k);
		sql_fails($node, 'postgres', $transaction, 'ID006', "$k: $what, again") for 1 .. 2;
		is(whole_row('postgres', $k), $row, "$k: $what, again: the row is as it was");
	}
	effects_are('postgres', $k, 'charged confirmed reserved', "$k: one effect each");
	sql_is($node, 'postgres', "SELECT state, result FROM idem_begin('$k', lease => '1 hour')", 'replayed|"paid"', "$k: then it fetches the answer");
	sql_fails($node, 'postgres', "SELECT idem_$_, fence => $fence)", 'ID006', "$k: $_ after the finish")
	  for "checkpoint('$k', 'more'", "extend('$k', '1 hour'", "release('$k'";
}

# The reply is lost for real: the client has gone before the server says it,
# and cannot know.
my $unsure = begin('postgres', 'unsure', '1 hour')->{fence};
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
effects_are('postgres', 'unsure', 'once', 'a client that cannot know: one effect');
sql_is($node, 'postgres', "SELECT state, result FROM idem_begin('unsure')", 'replayed|1', 'a client that cannot know: one answer');

#
# PREPARE TRANSACTION
#

# What others are told, which nothing prepared may change.
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
		effects_are('postgres', $k, join(' ', sort @effects), "$name, rolled back: its effect is not there");

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
		effects_are('postgres', $k, join(' ', sort @effects), "$name, committed: its effect is there");

		# the numbers of what was rolled back are not used again
		if ($what eq 'begin' || $what eq 'take-over')
		{
			zombie('postgres', $k, $_, 'ID004', "$name: another fence") for grep { defined } $fence, $out - 1;
			$fence = $out;
		}
	}
	sql_is($node, 'postgres', "SELECT state, result, attempt FROM idem_begin('$k')", 'replayed|1|2', "$k: the answer");
	sql_fails($node, 'postgres', $steps[-1][1]->(), 'ID006', "$k: the finish again");
}

#
# A standby
#
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;

my %held = map { $_ => begin('postgres', "standby $_", $_ eq 'abandoned' ? '1 ms' : '1 hour')->{fence} } qw(leased abandoned finished);
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
	sql_fails($standby, 'postgres', "SET statement_timeout = '5s'; SELECT $call", '25006', "standby: $call");
}

# Promoted, it goes on where the primary was, with new numbers.
my $promoted_above = $node->safe_psql('postgres', "SELECT fence FROM idem_begin('standby last', lease => '1 hour')");
$node->wait_for_catchup($standby);
$node->stop('immediate');
$standby->promote;
$node = $standby;
$highest = $promoted_above;
my $after = begin('postgres', 'standby abandoned', '1 hour');
is("$after->{state} $after->{attempt}", 'started 2', 'promoted: takes over');
newer([ $after->{fence} ], 'promoted');
zombie('postgres', 'standby abandoned', $held{abandoned}, 'ID004', 'promoted: the fence of before');
sql_is($node, 'postgres', "SELECT idem_finish('standby leased', '2', fence => $held{leased})", '2', 'promoted: a fence of before finishes its claim');

#
# Twenty workers at fifty abandoned keys
#
my ($workers, $keys, $rounds) = (20, 50, 3);

$node->append_conf('postgresql.conf', "autovacuum = on\nwal_writer_delay = 200ms");
$node->restart;
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE taken (round int, k text, worker int, attempt int, fence bigint, phase text);

-- Begin each key once, in an order of its own; what a worker gets it keeps.
CREATE PROCEDURE take_all(round int, worker int, keys int) LANGUAGE plpgsql AS $$
DECLARE
	n int;
	b record;
BEGIN
	FOR n IN SELECT g FROM generate_series(1, keys) g ORDER BY random() LOOP
		b := idem_begin('many ' || n, lease => '1 hour');
		IF b.state = 'started' THEN
			INSERT INTO taken VALUES (round, 'many ' || n, worker, b.attempt, b.fence, b.phase);
			IF idem_checkpoint('many ' || n, 'round ' || round) IS NULL THEN
				RAISE 'no end of the lease';
			END IF;
		ELSIF b.state <> 'in_progress' THEN
			RAISE 'key % is %', n, b.state;
		END IF;
		COMMIT;
	END LOOP;
END $$;

-- Late finishes, with the fences of the last round.
CREATE PROCEDURE finish_all(last_round int, worker int) LANGUAGE plpgsql AS $$
DECLARE
	t record;
BEGIN
	FOR t IN SELECT * FROM taken WHERE round = last_round ORDER BY random() LOOP
		BEGIN
			INSERT INTO effects VALUES (t.k, 'finished late');
			PERFORM idem_finish(t.k, to_jsonb(worker), fence => t.fence);
		EXCEPTION WHEN sqlstate 'ID004' OR sqlstate 'ID006' THEN
			NULL;
		END;
		COMMIT;
	END LOOP;
END $$;

-- Begins against them.
CREATE PROCEDURE begin_all(this_round int, worker int, keys int) LANGUAGE plpgsql AS $$
DECLARE
	n int;
	b record;
BEGIN
	FOR n IN SELECT g FROM generate_series(1, keys) g ORDER BY random() LOOP
		b := idem_begin('many ' || n, lease => '1 hour');
		IF b.state = 'started' THEN
			INSERT INTO taken VALUES (this_round, 'many ' || n, worker, b.attempt, b.fence, b.phase);
		END IF;
		COMMIT;
	END LOOP;
END $$;
SQL

# Run all at once; they set out together, when the lock is given back.
sub together
{
	my @calls = @_;
	my $gate = $node->background_psql('postgres');
	my (@runs, @err);

	$gate->query_safe('SELECT pg_advisory_lock(1)');
	for my $i (0 .. $#calls)
	{
		push @runs, IPC::Run::start(
			[   'psql', '-Xqv', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'),
				'-c', 'SELECT pg_advisory_lock_shared(1)', '-c', $calls[$i] ],
			'<', '/dev/null', '>', '/dev/null', '2>', \$err[$i]);
	}
	$node->poll_query_until('postgres',
		"SELECT count(*) = @{[scalar @calls]} FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
	  or die 'not all are ready';
	$gate->quit;
	$_->finish for @runs;
	return join '', @err;
}

# Have all leases run out.
sub abandon
{
	$node->poll_query_until('postgres',
		"SELECT count(*) = $keys FROM generate_series(1, $keys) g, idem_lookup('many ' || g) WHERE state = 'abandoned'")
	  or die 'not all are abandoned';
}

$node->safe_psql('postgres',
	"INSERT INTO taken SELECT 0, 'many ' || g, 0, b.attempt, b.fence FROM generate_series(1, $keys) g, idem_begin('many ' || g, lease => '1 ms') b");
for my $round (1 .. $rounds)
{
	my $last = $round - 1;

	abandon();
	is(together(map { "CALL take_all($round, $_, $keys)" } 1 .. $workers), '', "round $round: no worker failed");
	sql_is($node, 'postgres',
		"SELECT count(*), count(DISTINCT k), min(attempt), max(attempt), count(DISTINCT fence) FROM taken WHERE round = $round",
		join('|', $keys, $keys, $round + 1, $round + 1, $keys),
		"round $round: each key is taken by one, once");
	note("taken by this many workers: ", $node->safe_psql('postgres', "SELECT count(DISTINCT worker) FROM taken WHERE round = $round"));
	sql_is($node, 'postgres', <<"SQL", $keys, "round $round: the rows say the same");
SELECT count(*) FROM taken t JOIN idem_keys i ON i.key = t.k
WHERE t.round = $round AND i.fence = t.fence AND i.attempt = t.attempt AND i.phase = 'round $round'
  AND t.phase IS NOT DISTINCT FROM (SELECT 'round ' || nullif($last, 0))
  AND t.fence > (SELECT max(fence) FROM taken WHERE round = $last)
SQL
	sql_is($node, 'postgres', <<"SQL", 'ID004' x $keys, "round $round: the fences of the last round are refused");
DO \$\$
DECLARE
	t record;
	answers text := '';
BEGIN
	FOR t IN SELECT * FROM taken WHERE round = $last LOOP
		BEGIN
			PERFORM idem_finish(t.k, fence => t.fence);
		EXCEPTION WHEN OTHERS THEN
			answers := answers || SQLSTATE;
		END;
	END LOOP;
	PERFORM set_config('test.answers', answers, false);
END \$\$;
SELECT current_setting('test.answers');
SQL
	$node->safe_psql('postgres', "SELECT idem_extend(k, '1 ms', fence => fence) FROM taken WHERE round = $round");
}

# The last holders come back, late, as others take over: one of the two wins.
my $last = $rounds + 1;
abandon();
is( together(
		map { $_ % 2 ? "CALL finish_all($rounds, $_)" : "CALL begin_all($last, $_, $keys)" } 1 .. $workers),
	'', 'late finishes against takers: none failed');
sql_is($node, 'postgres', <<"SQL", "1|$keys", 'late finishes against takers: one wins, the effects are its own');
SELECT taken + finished, count(*)
FROM (SELECT (SELECT count(*) FROM taken t WHERE t.k = i.key AND t.round = $last AND t.fence = i.fence AND i.finished_at IS NULL) AS taken,
			 (SELECT count(*) FROM effects e WHERE e.k = i.key AND i.finished_at IS NOT NULL) AS finished
	  FROM idem_keys i WHERE key LIKE 'many %') w
GROUP BY 1
SQL
sql_is($node, 'postgres', <<"SQL", $keys, 'late finishes against takers: nothing of the loser stays');
SELECT (SELECT count(*) FROM effects WHERE what = 'finished late') + (SELECT count(*) FROM taken WHERE round = $last)
SQL

done_testing();
