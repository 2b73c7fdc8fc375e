# The torture: faults while clients make requests, then the verdict.  scripts/torture
# prepares what it needs and starts it.
#
#   faults.pl --base DIR --bin DIR --seconds N [--clients N] [--sync on|off|mix] [--seed S]
#       [--only KIND,...] [--disks]
#
# --base   folder of this run; with --disks, a/data, a/wal, b/data and b/wal in it are
#          file systems that may be filled
# --only   only these kinds of faults
#
# The last line says what happened; exit code 1 if anything is wrong.
use strict;
use warnings;
use FindBin;
use Getopt::Long;
use List::Util qw(max min shuffle sum0);
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);
use lib $FindBin::RealBin;
use Cluster;

my %opt = (clients => 8, sync => 'on', seed => time, only => '');
GetOptions(\%opt, qw(base=s bin=s seconds=i clients=i sync=s seed=i only=s disks))
  && !@ARGV && !grep { !defined $opt{$_} } qw(base bin seconds)
  or die "usage: see the head of $0\n";

my $base = $opt{base};
my $history = "$base/history";
my $stop = "$base/stop";
my $began;
my %count;             # of each kind, how often it happened
my @violations;
my $crashed_at = 0;    # the last loss of memory
my ($clients, $tangle);
my $cluster = Cluster->new(base => $base, bin => $opt{bin}, source => $FindBin::RealBin, sync => $opt{sync});

STDOUT->autoflush;
$SIG{PIPE} = 'IGNORE';
open my $log, '>>', "$base/faults.log" or die $!;
$log->autoflush;

sub note { printf $log "%8.3f %s\n", time - $began, "@_"; return }

sub violation
{
	print "violation: @_\n";
	note("violation: @_");
	push @violations, "@_";
	return;
}

sub happened
{
	my ($kind, $what) = @_;

	$count{$kind}++;
	note($kind, $what // ());
	return 1;
}

# ---------------------------------------------------------------- the faults
#
# Each returns true, or what to note of it, if it has happened.  Light ones are over at once;
# after the others the primary is up again.

my %faults = (
	'terminate' => [ 2, \&terminate ],
	'cancel' => [ 2, \&cancel ],
	'timeouts' => [ 1, \&timeouts ],
	'lost-reply' => [ 3, \&lost_reply ],
	'freeze' => [ 1, \&freeze ],
	'reset' => [ 2, \&reset_connections ],
	'client-kill' => [ 2, \&kill_client ],
	'bouncer' => [ 2, \&restart_bouncer ],
	'backend-kill' => [ 3, \&kill_backend ],
	'postmaster-kill' => [ 3, \&kill_postmaster ],
	'immediate' => [ 2, \&stop_immediately ],
	'alone' => [ 1, \&crash_alone ],
	'standby' => [ 1, \&kill_standby ],
	'failover' => [ 2, \&fail_over ],
	'wal-full' => [ 1, \&fill_wal, 'disks' ],
	'data-full' => [ 1, \&fill_data, 'disks' ],
	# not dealt: transactions of tangle.pl's that are finished after a crash
	'prepared' => [ 0 ]);

# What clients.pl and tangle.pl do to themselves, as the servers' logs have it.
my %seen = (
	'deadlock' => qr/ 40P01 ERROR: /,
	'lock-timeout' => qr/due to lock timeout/,
	'statement-timeout' => qr/due to statement timeout/);

sub client_backends
{
	my ($limit) = @_;

	return map { $_->[0] } @{
		$cluster->{primary}->query(
			q{SELECT pid FROM pg_stat_activity WHERE usename = 'client' ORDER BY state <> 'active', random() LIMIT $1}, $limit)
		  // [] };
}

sub signal_backends
{
	my ($function, $most) = @_;
	my @pids = client_backends(1 + int rand $most);

	return @pids && $cluster->{primary}->query("SELECT $function(pid) FROM unnest(\$1::int[]) pid", \@pids) ? "@pids" : undef;
}

sub terminate { return signal_backends('pg_terminate_backend', 3) }

sub cancel { return signal_backends('pg_cancel_backend', 5) }

sub set_timeouts
{
	my %to = @_;
	my $primary = $cluster->{primary};
	my $done = 1;

	for my $name (sort keys %to)
	{
		$primary->query(defined $to{$name} ? "ALTER SYSTEM SET $name = '$to{$name}'" : "ALTER SYSTEM RESET $name") or $done = 0;
	}
	return $primary->query('SELECT pg_reload_conf()') && $done;
}

# For everybody, for a while.
sub timeouts
{
	my $done = set_timeouts(statement_timeout => 2 + int(rand 5) . 'ms', lock_timeout => '2ms');

	sleep 0.3 + rand 1;
	return reset_timeouts() && $done;
}

sub reset_timeouts { return $cluster->await(sub { set_timeouts(statement_timeout => undef, lock_timeout => undef) }, 10) }

sub lost_reply
{
	my $before = $cluster->proxy_did('cut');

	$cluster->tell_proxy('cut ' . (1 + int rand 5));
	return $cluster->await(sub { $cluster->proxy_did('cut') > $before }, 3);
}

sub freeze
{
	my $seconds = sprintf '%.1f', 0.2 + rand 2;

	$cluster->tell_proxy("freeze $seconds");
	return "$seconds s";
}

sub reset_connections
{
	my $before = $cluster->proxy_did('reset');

	$cluster->tell_proxy('reset ' . (1 + int rand 3));
	return $cluster->await(sub { $cluster->proxy_did('reset') > $before }, 3);
}

# clients.pl starts it again.
sub kill_client
{
	my @children = Node::children($clients);

	return @children && kill 'KILL', $children[ rand @children ];
}

sub restart_bouncer
{
	my $signal = rand() < 0.5 ? 'KILL' : 'TERM';

	$cluster->stop_bouncer($signal);
	sleep rand 0.5;
	$cluster->start_bouncer;
	return $signal;
}

# ---------------------------------------------------------------- faults that lose memory

# What was committed asynchronously is on disk soon, unless its writer is slow; and what a
# standby has, which makes those wait who want to know.  They may be told not to.
sub crash
{
	my ($how) = @_;
	my @slow = rand() < 0.7 ? grep { defined } $cluster->{primary}->process('walwriter') : ();

	push @slow, grep { defined } $cluster->{standby}->process('walreceiver') if rand() < 0.7 && !$cluster->is_rebuilding;
	kill 'STOP', @slow;
	sleep 0.1 + rand 0.5 if @slow;
	signal_backends('pg_cancel_backend', 10) if @slow && rand() < 0.5;
	sleep rand 0.3 if @slow;
	$crashed_at = time;
	my $done = $how->();
	kill 'CONT', @slow;
	return $done;
}

# Up again, or there is no point in going on.
sub back_up
{
	my ($done) = @_;

	$cluster->recover or die "the server does not come back\n";
	return $done;
}

# The postmaster ends the others then, and begins anew.
sub kill_backend
{
	my $done = crash(sub { my ($pid) = client_backends(1); $pid && kill('KILL', $pid) && $pid });

	sleep 0.2;
	return back_up($done);
}

sub kill_postmaster
{
	my $primary = $cluster->{primary};
	my $alone = rand() < 0.5;

	# the others notice, sooner or later
	my $done = crash(sub { $alone ? kill('KILL', $primary->postmaster) : do { $primary->kill_all; 1 } });
	return back_up($done && ($alone ? 'alone' : 'with all others'));
}

sub stop_immediately
{
	my $primary = $cluster->{primary};

	crash(sub { kill 'QUIT', $primary->postmaster });
	$cluster->await(sub { !$primary->pids }) or die "an immediate stop does not end\n";
	return back_up(1);
}

# While no standby is asked for, what is on disk is all that counts.
sub crash_alone
{
	my $primary = $cluster->{primary};

	my $done = $primary->query(q{ALTER SYSTEM SET synchronous_standby_names = ''}) && $primary->query('SELECT pg_reload_conf()');
	sleep 0.5 + rand 1;
	crash(sub { $primary->kill_all });
	# no session goes on that has not heard of it
	$primary->reset;
	return back_up($done && 1);
}

sub kill_standby
{
	$cluster->await_standby or return 0;
	$cluster->{standby}->kill_all;
	sleep rand 2;
	return $cluster->{standby}->start;
}

sub fail_over
{
	$cluster->await_standby or return 0;
	my $done = crash(sub { $cluster->fail_over }) or die "the standby cannot be promoted\n";

	return back_up("to $cluster->{primary}{name}");
}

# ---------------------------------------------------------------- full disks

sub fill
{
	my ($disk) = @_;

	open my $ballast, '>', "$disk/ballast" or die "$disk: $!";
	1 while syswrite $ballast, "\0" x 65536;
	return;
}

sub clear { unlink map { ("$_->{data_disk}/ballast", "$_->{wal_disk}/ballast") } @{ $cluster->{nodes} }; return }

# PostgreSQL cannot go on without WAL, so it crashes, and again until there is room.
sub fill_wal
{
	my $primary = $cluster->{primary};
	my ($text, $end) = $primary->log_since(-s $primary->{log});

	crash(sub { fill($primary->{wal_disk}) });
	my $done = $cluster->await(
		sub {
			$primary->query(q{SELECT pg_logical_emit_message(false, 'torture', repeat('x', 1000000))});
			($text) = $primary->log_since($end);
			$text =~ /PANIC: .*No space left on device/;
		},
		10);
	$crashed_at = time;
	sleep rand 1;
	clear();
	return back_up($done);
}

# Statements fail, the server stays, unless it has to start in this state.
sub fill_data
{
	my $primary = $cluster->{primary};
	my ($text, $end) = $primary->log_since(-s $primary->{log});

	fill($primary->{data_disk});
	my $done = $cluster->await(
		sub {
			$primary->query(q{CREATE TEMP TABLE filler AS SELECT repeat(md5(g::text), 100) FROM generate_series(1, 1000) g});
			($text) = $primary->log_since($end);
			$text =~ / 53100 ERROR: /;
		},
		5);
	sleep rand 2;
	my $crashed = rand() < 0.3 && crash(sub { kill 'KILL', $primary->postmaster });
	sleep 0.3;
	clear();
	return back_up($done && ($crashed ? 'and the postmaster killed' : 1));
}

# ---------------------------------------------------------------- the run

sub possible { return grep { $faults{$_}[0] && ($opt{disks} || !$faults{$_}[2]) } sort keys %faults }

sub wanted
{
	my @wanted = $opt{only} eq '' ? possible() : split /,/, $opt{only};

	for my $kind (@wanted) { $faults{$kind}[1] or die "no fault \"$kind\": @{[ possible() ]}\n" }
	return @wanted;
}

# Prepared transactions whose makers have gone, one way or the other.
sub finish_prepared
{
	my ($before) = @_;
	my $left = $cluster->{primary}->query(
		q{SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'torture %' AND prepared < to_timestamp($1)}, $before);

	for my $gid (map { $_->[0] } @{ $left // [] })
	{
		my $how = rand() < 0.5 ? 'COMMIT' : 'ROLLBACK';
		happened('prepared', "$how $gid") if $cluster->{primary}->query("$how PREPARED '$gid'") && $before <= $crashed_at;
	}
	return;
}

sub start_clients
{
	my @options = ('--routes', "$base/routes", '--history', $history, '--stop', $stop, '--seed', $opt{seed}, '--sync', $opt{sync});

	mkdir $history;
	$clients = $cluster->spawn('clients', $^X, "$FindBin::RealBin/clients.pl", @options, '--clients', $opt{clients});
	$tangle = $cluster->spawn('tangle', $^X, "$FindBin::RealBin/tangle.pl", @options);
	return;
}

# A deck of cards is dealt, then shuffled anew; the first one to the end, even if it takes longer.
sub inject
{
	my @kinds = wanted();
	my @deck = map { ($_) x $faults{$_}[0] } @kinds;
	# all decisions about the order at once: what happens meanwhile takes a different course each time
	my @cards = map { shuffle @deck } 1 .. 2 + $opt{seconds} / @deck;
	my ($dealt, $end) = (0, $began + $opt{seconds});

	while (time < $end || $dealt < @deck && time < $end + 30)
	{
		my $left = max(0, $end - time);
		sleep 0.1 + rand min(3, $left / max(1, @deck - $dealt));
		finish_prepared($crashed_at) if $crashed_at && time > $crashed_at + 1;
		$cluster->{primary}->query('SELECT count(s.*), count(f.*) FROM idem_stat s, idem_in_flight f');
		my $kind = shift @cards // last;
		$dealt++;
		note("$kind begins");
		my $what = $faults{$kind}[1]->();
		if ($what) { happened($kind, $what eq '1' ? () : $what) }
		else
		{
			# there was nobody to suffer it
			note("$kind did not happen");
			splice @cards, 3, 0, $kind;
			$dealt--;
		}
		waitpid($clients, WNOHANG) == 0 or die "the clients have ended\n";
	}
	return;
}

# All is well again; then the clients find out what they do not know yet.
sub heal
{
	clear();
	$cluster->recover or die "the server does not come back\n";
	reset_timeouts();
	$cluster->publish;
	$cluster->await_standby or violation('the standby does not come back');
	finish_prepared($crashed_at) if $crashed_at;
	Node::write_file($stop, '');
	for my $pid ($clients, $tangle)
	{
		my $done = $cluster->await(sub { finish_prepared(time - 2); waitpid($pid, WNOHANG) == $pid }, 90);
		violation('the clients do not end') unless $done;
		violation("the clients: exit code $?") if $done && $?;
	}
	finish_prepared(time);
	$cluster->await(sub { ($cluster->{primary}->value(q{SELECT count(*) FROM idem_keys WHERE scope = 'brief'}) // 1) == 0 }, 20)
	  or violation('nobody purges what has expired');
	return;
}

# ---------------------------------------------------------------- the verdict

# A server that crashes by itself, and data that are damaged.
sub check_logs
{
	for my $node (@{ $cluster->{nodes} })
	{
		my ($text) = $node->log_since(0);
		my $panics = () = $text =~ /PANIC: .*No space left on device/g;
		my $aborts = 0;

		for my $kind (keys %seen) { $count{$kind} += () = $text =~ /$seen{$kind}/g }
		for my $line (split /\n/, $text)
		{
			next if $line =~ /No space left on device/;
			# by a PANIC
			next if $line =~ /terminated by signal 6\b/ && $aborts++ < $panics;
			violation("log of $node->{name}: $line") if $line =~ /PANIC: |TRAP: |terminated by signal (?!9\b)| XX\d{3} /;
		}
	}
	return;
}

# What a program says, which is shown, and its exit code.
sub output_of
{
	my (@command) = @_;

	open my $pipe, '-|', @command or die "$command[0]: $!";
	my @lines = <$pipe>;
	close $pipe;
	return ($? >> 8, @lines);
}

sub check_indexes
{
	my ($rc, @lines) = output_of("$opt{bin}/pg_amcheck", qw(--install-missing --heapallindexed --parent-check --rootdescend -U torture -d postgres -h),
		$cluster->{primary}{socket});

	print @lines;
	violation("pg_amcheck: exit code $rc") if $rc;
	return;
}

# The figures of its last line.
sub check_history
{
	my @tail = $opt{sync} ne 'on' && $crashed_at ? '--lost-tail' : ();
	my ($rc, @lines) = output_of($^X, "$FindBin::RealBin/check.pl", '--history', $history,
		'--dsn', "host=$cluster->{primary}{socket} port=5432 dbname=postgres user=torture", '--sync', $opt{sync}, @tail);
	my $last = @lines ? pop @lines : '';

	print @lines;
	my ($lost) = map { /^ *(\d+) lost$/ } @lines;
	violation('nothing was lost, so nothing is proved')
	  if $opt{sync} eq 'off' && $opt{seconds} >= 60 && $crashed_at && !$lost;
	if ($last =~ /^(\d+ requests, \d+ keys, \d+ effects), (\d+) violations$/)
	{
		my @figures = ($1, $2);
		violation('the checker found the work too little') if $rc && !$2;
		return @figures;
	}
	violation("the checker died: $last");
	return ('no figures', 0);
}

# For whoever looks for the reason, when nothing is kept.
sub show_story
{
	print "\nwhat happened:\n";
	open my $in, '<', "$base/faults.log" or die $!;
	print grep { !/ prepared / } <$in>;
	return unless grep { /^given up/ } @violations;
	for my $node (@{ $cluster->{nodes} })
	{
		my ($text) = $node->log_since(0);
		my @lines = split /\n/, $text;
		print "\nthe end of the log of $node->{name}:\n", map { "$_\n" } @lines[ max(0, @lines - 30) .. $#lines ];
	}
	return;
}

sub verdict
{
	my $seconds = time - $began;

	check_logs();
	check_indexes();
	my ($figures, $found) = check_history();
	for my $kind (wanted(), $opt{only} eq '' ? ('prepared', keys %seen) : ())
	{
		violation("the fault $kind never happened") unless $count{$kind};
	}
	show_story() if $found + @violations;
	print "\n";
	printf "%-18s %6d\n", $_, $count{$_} for sort keys %count;
	$found += @violations;
	printf "torture: %d s, %d faults of %d kinds, %s, %d violations\n", $seconds, sum0(values %count), scalar(grep { $_ } values %count), $figures, $found;
	return $found ? 1 : 0;
}

$began = time;
srand $opt{seed};
$cluster->create;
$began = time;
start_clients();
eval { inject(); heal(); 1 } or violation("given up: $@");
exit verdict();
