# Sessions that get in each other's way, beside clients.pl and with a history like its:
# two that claim the same keys in opposite orders, and one that prepares transactions and
# walks away from them.  With --sync mix one asks for durability of what was just done
# without.  Some call the throttle as fast as they may, and write down a line a call: "throttle", its name,
# "n" and "period" (seconds), "start" and t, and "allowed", which is missing if there was no answer.
# And, without history, one whose keys are there to be purged.
#
#   tangle.pl --routes FILE --history DIR --stop FILE [--seed S] [--sync on|off|mix] [--drain SECONDS]
use strict;
use warnings;
use DBI;
use FindBin;
use Getopt::Long;
use List::Util qw(max);
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);
use lib $FindBin::RealBin;
use History;

my %opt = (seed => 0, sync => 'on', drain => 60);
GetOptions(\%opt, qw(routes=s history=s stop=s seed=i sync=s drain=f))
  && !@ARGV && !grep { !defined $opt{$_} } qw(routes history stop)
  or die "usage: see the head of $0\n";

my $first = 901;        # clients.pl counts from 1
my $patience = 4;       # seconds for an attempt; a commit may wait for a standby for ever
my ($me, $drain_until);
my $number = 0;
my @warnings;

# The first route is the direct one.
sub connect_direct
{
	open my $file, '<', $opt{routes} or die;
	my $route = readline($file) // die "no route\n";
	chomp $route;
	my $dbh = DBI->connect("dbi:Pg:connect_timeout=3 $route", undef, undef,
		{ AutoCommit => 1, RaiseError => 1, PrintError => 0, PrintWarn => 1, pg_server_prepare => 0 });
	$dbh->{pg_placeholder_dollaronly} = 1;
	return $dbh;
}

# One attempt, on a connection of its own if none is given.  True if its outcome is known, else
# it is to be repeated.  $work returns its end, having set $$committing where due.
sub attempt_here
{
	my ($id, $sync, $work, $dbh) = @_;
	my $committing = 0;

	@warnings = ();
	my $end = eval {
		$dbh //= connect_direct();
		my $timeout = rand() < 0.3 ? 1 + int rand 20 : 2000;
		$dbh->do("BEGIN; SET LOCAL lock_timeout = $timeout" . ($sync eq 'off' ? '; SET LOCAL synchronous_commit = off' : ''));
		$work->($dbh, $id, \$committing);
	};
	if (!$end)
	{
		my $field = 'severity_nonlocalized';
		my $certain = $dbh && ($dbh->pg_error_field($field) // '') eq 'ERROR';
		my $sqlstate = $dbh ? $dbh->state : '08001';
		$end = { outcome => $committing && !$certain ? 'unknown' : 'failed', sqlstate => $sqlstate };
	}
	# it was committed here, but perhaps not on the standby
	$end = { outcome => 'unknown', sqlstate => '01000' } if @warnings;
	record(attempt => $id, %$end);
	return $end->{outcome} eq 'answered' && $end->{state} ne 'in_progress';
}

# Puts it on record, and returns its name.
sub begin_attempt
{
	my ($request, $form, $sync) = @_;
	my $id = "$me." . ++$number;

	record(%$request, client => $me, attempt => $id, form => $form, sync => $sync, try => ++$request->{try}, route => 1);
	return $id;
}

# In a process of its own, which can be given up.  True if its outcome is known.
sub attempt
{
	my ($request, $form, $work, $sync) = @_;

	# no route, no attempt
	return 0 unless -s $opt{routes};
	$sync //= $opt{sync} eq 'mix' ? (rand() < 0.5 ? 'on' : 'off') : $opt{sync};
	my $id = begin_attempt($request, $form, $sync);
	my $pid = fork // die "fork: $!";
	POSIX::_exit(!attempt_here($id, $sync, $work)) unless $pid;
	for (1 .. $patience * 50)
	{
		return $? == 0 if waitpid($pid, WNOHANG) == $pid;
		sleep 0.02;
	}
	# its attempt has no end on record, which is unknown
	kill 'KILL', $pid;
	waitpid $pid, 0;
	return 0;
}

sub effect
{
	my ($dbh, @row) = @_;

	$dbh->do('INSERT INTO torture.effects (key, kind, attempt) VALUES ($1, $2, $3)', undef, @row);
	return;
}

# Claims keys one after the other, in the order given, from a moment on.
sub cross
{
	my ($dbh, $id, $committing, $start, @keys) = @_;
	my @claimed;

	sleep max(0, $start - time);
	for my $key (@keys)
	{
		my ($new) = $dbh->selectrow_array(q{SELECT idem_claim($1, ttl => '30 days', scope => 'torture')}, undef, $key);
		if ($new)
		{
			push @claimed, $key;
			effect($dbh, $key, 'claim', $id);
		}
		# the other one does the same
		sleep 0.05;
	}
	$$committing = 1;
	$dbh->do('COMMIT');
	return { outcome => 'answered', state => @claimed ? 'claimed' : 'refused', claimed => \@claimed };
}

# A request; the transaction stays prepared if it is to be left.
sub request
{
	my ($dbh, $id, $committing, $key, $leave) = @_;
	my ($state, $answer) = $dbh->selectrow_array(
		q{SELECT state, result ->> 'attempt' FROM idem_begin($1, ttl => '30 days', scope => 'torture')}, undef, $key);

	if ($state eq 'started')
	{
		effect($dbh, $key, 'tx', $answer = $id);
		$dbh->do(q{SELECT idem_finish($1, jsonb_build_object('attempt', $2::text), scope => 'torture')}, undef, $key, $id);
		$$committing = 1;
		$dbh->do($leave ? "PREPARE TRANSACTION 'torture $id'" : 'COMMIT');
		return { outcome => 'unknown', sqlstate => '01000' } if $leave;
	}
	else { $dbh->do('ROLLBACK') }
	return { outcome => 'answered', state => $state, $answer ? (answer => $answer) : () };
}

# ---------------------------------------------------------------- the sessions

sub ended
{
	$drain_until //= time + $opt{drain} if -e $opt{stop};
	return defined $drain_until;
}

sub given_up { return ended() && time > $drain_until }

# Three times a second, in step with its opposite.
sub crosser
{
	my ($side) = @_;
	my $last = 0;

	until (ended())
	{
		sleep 0.01;
		my $n = int(time * 3);
		next if $n == $last;
		$last = $n;
		my @keys = map { "cross-$n-$_" } $side ? qw(a b) : qw(b a);
		my %request = (kind => 'claim', key => $keys[0], keys => \@keys);
		repeat(\%request, 'cross', sub { cross(@_, ($n + 1) / 3, @keys) });
	}
	return;
}

# Until it is known, or it turns out that nothing was begun.
sub repeat
{
	my ($request, @how) = @_;

	until (attempt($request, @how))
	{
		last if !$request->{try} || given_up();
		sleep rand 0.3;
	}
	return;
}

# A commit that need not be on disk; a session that gets its answer right after may rely on it.
sub follower
{
	my @dbh;

	until (ended())
	{
		sleep 0.01;
		# the commit does not wait for a standby, but the answer may
		@dbh = eval { map { my $dbh = connect_direct(); $dbh->do("SET statement_timeout = '2s'"); $dbh } 1 .. 2 } unless @dbh;
		next unless @dbh;
		my %request = (kind => 'tx', key => 'pair-' . int(time * 1000));
		my $work = sub { request(@_, $request{key}, 0) };

		attempt_here(begin_attempt(\%request, 'lead', 'off'), 'off', $work, $dbh[0])
		  && attempt_here(begin_attempt(\%request, 'follow', 'on'), 'on', $work, $dbh[1])
		  and next;
		@dbh = ();
		repeat(\%request, 'follow', $work, 'on');
	}
	return;
}

# Leaves transactions prepared, and comes back later to see what became of them.
sub leaver
{
	my @left;

	until (ended() && !@left || given_up())
	{
		sleep 0.2;
		if (!ended() && @left < 10)
		{
			my %request = (kind => 'tx', key => 'left-' . int(time * 1000), due => time + 3);
			attempt({%request, due => undef}, 'left', sub { request(@_, $request{key}, 1) });
			push @left, { %request, try => 1 };
		}
		my $request = shift @left or next;
		my %record = (%$request, due => undef);
		next if $request->{due} < time && attempt(\%record, 'left', sub { request(@_, $request->{key}, 0) });
		push @left, { %$request, due => $request->{due} < time ? time + 1 : $request->{due} };
	}
	return;
}

# Keys that expire at once, and calls of the throttle; what they answer does not matter.
sub litterer
{
	until (ended())
	{
		sleep 0.2;
		eval {
			my $dbh = connect_direct();
			# not even the standby's answer
			$dbh->do('SET synchronous_commit = off');
			$dbh->do(q{SELECT count(*) FROM idem_claim_many(ARRAY(SELECT (random() * 1e9)::int::text FROM generate_series(1, 50)), '300 ms', 'brief')});
			$dbh->do(q{SELECT idem_throttle((random() * 1e9)::int::text, '1 min')});
		};
	}
	return;
}

# Limits, of so many calls in so many seconds.
my %limits = (burst => [ 5, 1 ], long => [ 10, 6 ]);

sub throttler
{
	my $dbh;

	until (ended())
	{
		sleep 0.02 + rand 0.06;
		my ($name) = (sort keys %limits)[ rand keys %limits ];
		my ($n, $period) = @{ $limits{$name} };

		$dbh //= eval { connect_direct() } // next;
		my $start = int(clock() * 1e9);
		my $allowed = eval {
			my ($is) = $dbh->selectrow_array(q{SELECT allowed::int FROM idem_throttle($1, $2 * interval '1 s', $3)}, undef, $name, $period, $n);
			$is;
		};
		$dbh = undef unless defined $allowed;
		record(throttle => $name, n => $n, period => $period, start => $start, defined $allowed ? (allowed => $allowed) : ());
	}
	return;
}

my @sessions = (sub { crosser(0) }, sub { crosser(1) }, \&leaver, \&litterer, (\&throttler) x 3, $opt{sync} eq 'mix' ? \&follower : ());
my @pids;
for my $i (0 .. $#sessions)
{
	push @pids, fork // die "fork: $!";
	next if $pids[-1];
	$me = $first + $i;
	srand($opt{seed} * 1000 + $me);
	$SIG{__WARN__} = sub { push @warnings, @_ };
	open_history($opt{history}, $me);
	$sessions[$i]->();
	POSIX::_exit(0);
}
waitpid $_, 0 for @pids;
