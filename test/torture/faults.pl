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
use Faults;
use History;

my %opt = (clients => 8, sync => 'on', seed => time, only => '');
GetOptions(\%opt, qw(base=s bin=s seconds=i clients=i sync=s seed=i only=s disks))
  && !@ARGV && !grep { !defined $opt{$_} } qw(base bin seconds)
  or die "usage: see the head of $0\n";

my $base = $opt{base};
my $history = "$base/history";
my $stop = "$base/stop";
my $began;
my %count;    # of each kind, how often it happened
my @violations;
my ($faults, $clients, $tangle);
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

# What clients.pl and tangle.pl do to themselves, as the servers' logs have it.
my %seen = (
	'deadlock' => qr/ 40P01 ERROR: /,
	'lock-timeout' => qr/due to lock timeout/,
	'statement-timeout' => qr/due to statement timeout/);

# ---------------------------------------------------------------- the run

# The kinds that are to be injected.
sub wanted
{
	my @kinds = Faults->kinds($opt{disks});
	my @wanted = $opt{only} eq '' ? @kinds : split /,/, $opt{only};

	for my $kind (@wanted) { grep { $_ eq $kind } @kinds or die "no fault \"$kind\" here: @kinds\n" }
	return @wanted;
}

# Prepared transactions whose makers have gone, one way or the other.  It counts as a fault if
# they have survived a crash.
sub finish_prepared
{
	my ($before) = @_;
	my $left = $cluster->{primary}->query(
		q{SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'torture %' AND prepared < to_timestamp($1)}, $before);

	for my $gid (map { $_->[0] } @{ $left // [] })
	{
		my $how = rand() < 0.5 ? 'COMMIT' : 'ROLLBACK';
		happened('prepared', "$how $gid") if $cluster->{primary}->query("$how PREPARED '$gid'") && $before <= $faults->{crashed_at};
	}
	return;
}

sub start_clients
{
	my @options = ('--routes', "$base/routes", '--history', $history, '--stop', $stop, '--seed', $opt{seed}, '--sync', $opt{sync});

	mkdir $history;
	# what the faults do to memory
	open_history($history, 0);
	$clients = $cluster->spawn('clients', $^X, "$FindBin::RealBin/clients.pl", @options, '--clients', $opt{clients});
	$tangle = $cluster->spawn('tangle', $^X, "$FindBin::RealBin/tangle.pl", @options);
	$faults = Faults->new(cluster => $cluster, clients => $clients, violation => \&violation);
	return;
}

# A deck of cards is dealt, then shuffled anew; the first one to the end, even if it takes longer.
sub inject
{
	my @deck = map { ($_) x $faults->weight($_) } wanted();
	# all decisions about the order at once: what happens meanwhile takes a different course each time
	my @cards = map { shuffle @deck } 1 .. 2 + $opt{seconds} / @deck;
	my ($dealt, $end) = (0, $began + $opt{seconds});

	while (time < $end || $dealt < @deck && time < $end + max(30, $opt{seconds}))
	{
		my $left = max(0, $end - time);
		sleep 0.1 + rand min(3, $left / max(1, @deck - $dealt));
		finish_prepared($faults->{crashed_at}) if time > $faults->{crashed_at} + 1;
		$cluster->{primary}->query('SELECT count(s.*), count(f.*) FROM idem_stat s, idem_in_flight f');
		my $kind = shift @cards // last;
		$dealt++;
		note("$kind begins");
		my $what = $faults->inject($kind);
		if ($what) { happened($kind, $what eq '1' ? () : $what) }
		else
		{
			# there was no session or server to hit
			note("$kind did not happen");
			$dealt--;
			# once more, a little later, but among the cards of this deck
			splice @cards, max(0, min(3, @deck - $dealt - 1)), 0, $kind;
		}
		waitpid($clients, WNOHANG) == 0 or die "the clients have ended\n";
	}
	return;
}

# All is well again; then the clients find out what they do not know yet.
sub heal
{
	$faults->clear;
	$cluster->recover or die "the server does not come back\n";
	$faults->reset_timeouts;
	$cluster->publish;
	$cluster->await_standby or violation('the standby does not come back');
	finish_prepared($faults->{crashed_at});
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
		my %bad;

		for my $kind (keys %seen) { $count{$kind} += () = $text =~ /$seen{$kind}/g }
		for my $line (split /\n/, $text)
		{
			# of sessions that begin meanwhile, the second
			next if $line =~ /No space left on device|could not write init file/;
			# by a PANIC
			next if $line =~ /terminated by signal 6\b/ && $aborts++ < $panics;
			$bad{ $line =~ s/^.*?\[\d+\] //r }++ if $line =~ /PANIC: |TRAP: |terminated by signal (?!9\b)| XX\d{3} /;
		}
		violation("log of $node->{name}, $bad{$_} times: $_") for sort keys %bad;
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
	my @tail = $opt{sync} ne 'on' && $faults->{crashed_at} ? '--lost-tail' : ();
	my ($rc, @lines) = output_of($^X, "$FindBin::RealBin/check.pl", '--history', $history,
		'--dsn', "host=$cluster->{primary}{socket} port=5432 dbname=postgres user=torture", '--sync', $opt{sync}, @tail,
		$faults->{guesses_kept} ? '--guesses-kept' : ());
	my $last = @lines ? pop @lines : '';

	print @lines;
	my ($lost) = map { /^ *(\d+) lost$/ } @lines;
	violation('nothing was lost, so nothing is proved')
	  if $opt{sync} eq 'off' && $opt{seconds} >= 60 && $faults->{crashed_at} && !$lost;
	if ($last =~ /^(\d+ requests, \d+ keys, \d+ effects), (\d+) violations$/)
	{
		my @figures = ($1, $2);
		violation('the checker found the work too little') if $rc && !$2;
		return @figures;
	}
	violation("the checker died: $last");
	return ('no figures', 0);
}

# To find the reason when no files are kept.
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
wanted();
srand $opt{seed};
$cluster->create;
$began = time;
start_clients();
eval { inject(); heal(); 1 } or violation("given up: $@");
exit verdict();
