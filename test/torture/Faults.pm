# The faults that the torture injects.
#
#   my $faults = Faults->new(cluster => $cluster, clients => $pid);
#   my @kinds = $faults->kinds(0);    # 1: those too that need disks which can be filled
#   my $what = $faults->inject($kind);
#
# "crashed_at" is when the primary's memory was lost last, 0 if it never was.
package Faults;
use strict;
use warnings;
use History;
use Node;
use Time::HiRes qw(sleep time);

# How often in a deck, and how: true, or what to note of it, if it has happened.  Light ones are
# over at once; after the others the primary is up again, else they die.
my %kinds = (
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
	'alone' => [ 2, \&crash_alone ],
	'restart' => [ 2, \&restart ],
	'shrink' => [ 1, \&shrink ],
	'standby' => [ 1, \&kill_standby ],
	'failover' => [ 2, \&fail_over ],
	'wal-full' => [ 1, \&fill_wal, 'disks' ],
	'data-full' => [ 1, \&fill_data, 'disks' ]);

# clients: process of clients.pl; violation: to be called with what is wrong.  In the history, "event" is what
# happens to the server's memory, as CheckHistory describes it.
sub new
{
	my ($class, %self) = @_;

	return bless { %self, crashed_at => 0 }, $class;
}

sub kinds
{
	my ($self, $disks) = @_;

	return grep { $disks || !$kinds{$_}[2] } sort keys %kinds;
}

sub weight { return $kinds{ $_[1] }[0] }

sub inject
{
	my ($self, $kind) = @_;

	return $kinds{$kind}[1]->($self);
}

# ---------------------------------------------------------------- light ones

sub client_backends
{
	my ($self, $limit) = @_;

	return map { $_->[0] } @{
		$self->{cluster}{primary}->query(
			q{SELECT pid FROM pg_stat_activity WHERE usename = 'client' ORDER BY state <> 'active', random() LIMIT $1}, $limit)
		  // [] };
}

sub signal_backends
{
	my ($self, $function, $most) = @_;
	my @pids = $self->client_backends(1 + int rand $most);

	return @pids && $self->{cluster}{primary}->query("SELECT $function(pid) FROM unnest(\$1::int[]) pid", \@pids) ? "@pids" : undef;
}

sub terminate { return $_[0]->signal_backends('pg_terminate_backend', 3) }

sub cancel { return $_[0]->signal_backends('pg_cancel_backend', 5) }

sub set_timeouts
{
	my ($self, %to) = @_;
	my $primary = $self->{cluster}{primary};
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
	my ($self) = @_;
	my $done = $self->set_timeouts(statement_timeout => 2 + int(rand 5) . 'ms', lock_timeout => '2ms');

	sleep 0.3 + rand 1;
	return $self->reset_timeouts && $done;
}

sub reset_timeouts
{
	my ($self) = @_;

	return $self->{cluster}->await(sub { $self->set_timeouts(statement_timeout => undef, lock_timeout => undef) }, 10);
}

# Have the proxy do something to at most so many connections; returns once it has done it to one.
sub by_proxy
{
	my ($self, $what, $most) = @_;
	my $before = $self->{cluster}->proxy_did($what);

	$self->{cluster}->tell_proxy("$what " . (1 + int rand $most));
	return $self->{cluster}->await(sub { $self->{cluster}->proxy_did($what) > $before }, 3);
}

sub lost_reply { return $_[0]->by_proxy('cut', 5) }

sub reset_connections { return $_[0]->by_proxy('reset', 3) }

sub freeze
{
	my ($self) = @_;
	my $seconds = sprintf '%.1f', 0.2 + rand 2;

	$self->{cluster}->tell_proxy("freeze $seconds");
	return "$seconds s";
}

# clients.pl starts it again.
sub kill_client
{
	my ($self) = @_;
	my @children = Node::children($self->{clients});

	return @children && kill 'KILL', $children[ rand @children ];
}

sub restart_bouncer
{
	my ($self) = @_;
	my $signal = rand() < 0.5 ? 'KILL' : 'TERM';

	$self->{cluster}->stop_bouncer($signal);
	sleep rand 0.5;
	$self->{cluster}->start_bouncer;
	return $signal;
}

# Tables are written anew, or made shorter, while others work on them and purge them.  Prepared transactions
# that were left over would keep it from that.
sub shrink
{
	my ($self) = @_;
	my $primary = $self->{cluster}{primary};
	my $table = (qw(idem_keys idem_keys idem_tokens idem_codes))[ rand 4 ];
	my $how = (qw(FULL FULL TRUNCATE))[ rand 3 ];

	for my $left (@{ $primary->query(q{SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'torture %'}) // [] })
	{
		$primary->query((rand() < 0.5 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$left->[0]'");
	}
	return $primary->program('psql', qw(-X -q -v ON_ERROR_STOP=1 -U torture -d postgres -h), $primary->{socket},
		'-c', q{SET lock_timeout = '2s'; SET synchronous_commit = local}, '-c', "VACUUM ($how) $table") && "$how $table";
}

# ---------------------------------------------------------------- an orderly stop

# What shared memory counts survives it: statistics here, limits and guesses in the checker.
sub restart
{
	my ($self) = @_;
	my $primary = $self->{cluster}{primary};
	my @counters = qw(started finished replayed throttle_allowed throttle_rejected tokens_issued codes_issued codes_refused);
	my $counted = 'SELECT ' . join(', ', @counters) . q{, stats_reset FROM idem_stat WHERE datname = current_database()};
	# the first guess is taken back
	my $guess = q{SELECT attempts_left FROM idem_code_verify('probe', 'probe', 'wrong')};

	my $before = $primary->query($counted) or return;
	# a standby that is not there would be waited for
	$self->{cluster}->await_standby or return;
	if (!defined $self->{guesses_kept})
	{
		$primary->query(q{SELECT idem_code_issue('probe', 'probe', '1 day', max_attempts => 1000)});
		$primary->query("DO \$\$ BEGIN PERFORM (idem_code_verify('probe', 'probe', 'wrong')).state; RAISE EXCEPTION 'undone'; END \$\$");
	}
	record(event => 'restart');
	$primary->program('pg_ctl', qw(-s -w -t 40 -m fast stop -D), $primary->{data}) or die "an orderly stop does not end\n";
	$primary->start or die "the server does not start after an orderly stop\n";
	record(event => 'restart');
	my $after = $primary->query($counted) or return;
	for my $i (0 .. $#counters)
	{
		$self->{violation}->("$counters[$i] was $before->[0][$i] before a clean restart, then $after->[0][$i]")
		  if $after->[0][$i] < $before->[0][$i];
	}
	$self->{violation}->("stats_reset was $before->[0][-1] before a clean restart, then $after->[0][-1]")
	  if $after->[0][-1] ne $before->[0][-1];
	my $left = $primary->value($guess);
	if (!defined $self->{guesses_kept} && defined $left)
	{
		$self->{guesses_kept} = $left == 1000 - 2 ? 1 : 0;
		$self->{violation}->("a guess that was rolled back is forgotten in a clean restart") unless $self->{guesses_kept};
	}
	return 'guesses ' . ($self->{guesses_kept} ? 'kept' : 'forgotten');
}

# ---------------------------------------------------------------- faults that lose memory

# Asynchronous commits are on disk soon, unless the WAL writer is slow; the same goes for the
# standby, for which durable sessions wait.  Their waits may be cancelled.
sub crash
{
	my ($self, $how, $surely) = @_;
	my $cluster = $self->{cluster};
	my @slow;

	push @slow, $cluster->{primary}->process('walwriter') // () if $surely || rand() < 0.7;
	push @slow, $cluster->{standby}->process('walreceiver') // () if rand() < 0.7 && !$cluster->is_rebuilding;
	kill 'STOP', @slow;
	sleep 0.1 + rand 0.5 if @slow;
	$self->signal_backends('pg_cancel_backend', 10) if @slow && rand() < 0.5;
	sleep rand 0.3 if @slow;
	$self->{crashed_at} = time;
	record(event => 'crash');
	my $done = $how->();
	kill 'CONT', @slow;
	return $done;
}

# Up again, or there is no point in going on.
sub back_up
{
	my ($self, $done) = @_;

	$self->{cluster}->recover or die "the server does not come back\n";
	record(event => 'up');
	return $done;
}

# The postmaster ends the others then, and begins anew.
sub kill_backend
{
	my ($self) = @_;
	my $done = $self->crash(sub { my ($pid) = $self->client_backends(1); $pid && kill('KILL', $pid) && $pid });

	sleep 0.2;
	return $self->back_up($done);
}

sub kill_postmaster
{
	my ($self) = @_;
	my $primary = $self->{cluster}{primary};
	my $alone = rand() < 0.5;

	# the others notice, sooner or later
	my $done = $self->crash(sub { $alone ? kill('KILL', $primary->postmaster) : do { $primary->kill_all; 1 } });
	return $self->back_up($done && ($alone ? 'alone' : 'with all others'));
}

sub stop_immediately
{
	my ($self) = @_;
	my $primary = $self->{cluster}{primary};

	$self->crash(sub { kill 'QUIT', $primary->postmaster });
	$self->{cluster}->await(sub { !$primary->pids }) or die "an immediate stop does not end\n";
	return $self->back_up(1);
}

# While no standby is asked for, what is on disk is all that counts.
sub crash_alone
{
	my ($self) = @_;
	my $primary = $self->{cluster}{primary};

	my $done = $primary->query(q{ALTER SYSTEM SET synchronous_standby_names = ''}) && $primary->query('SELECT pg_reload_conf()');
	sleep 0.5 + rand 1;
	# nor do commits of theirs take with them what tangle.pl asks for
	my @clients = Node::children($self->{clients});
	kill 'STOP', @clients;
	$self->crash(sub { $primary->kill_all }, 1);
	kill 'CONT', @clients;
	# no session goes on that has not heard of it
	$primary->reset;
	return $self->back_up($done && 1);
}

sub kill_standby
{
	my ($self) = @_;

	$self->{cluster}->await_standby or return 0;
	$self->{cluster}{standby}->kill_all;
	sleep rand 2;
	return $self->{cluster}{standby}->start;
}

sub fail_over
{
	my ($self) = @_;

	$self->{cluster}->await_standby or return 0;
	my $done = $self->crash(sub { $self->{cluster}->fail_over }) or die "the standby cannot be promoted\n";

	return $self->back_up("to $self->{cluster}{primary}{name}");
}

# ---------------------------------------------------------------- full disks

sub fill
{
	my ($disk) = @_;

	open my $ballast, '>', "$disk/ballast" or die "$disk: $!";
	1 while syswrite $ballast, "\0" x 65536;
	return;
}

sub clear
{
	my ($self) = @_;

	unlink map { ("$_->{data_disk}/ballast", "$_->{wal_disk}/ballast") } @{ $self->{cluster}{nodes} };
	return;
}

# PostgreSQL cannot go on without WAL, so it crashes, and again until there is space.
sub fill_wal
{
	my ($self) = @_;
	my $primary = $self->{cluster}{primary};
	my ($text, $end) = $primary->log_since(-s $primary->{log});

	$self->crash(sub { fill($primary->{wal_disk}) });
	my $done = $self->{cluster}->await(
		sub {
			$primary->query(q{SELECT pg_logical_emit_message(false, 'torture', repeat('x', 1000000))});
			($text) = $primary->log_since($end);
			$text =~ /PANIC: .*No space left on device/;
		},
		10);
	$self->{crashed_at} = time;
	sleep rand 1;
	$self->clear;
	return $self->back_up($done);
}

# Statements fail, the server stays, unless it has to start in this state.
sub fill_data
{
	my ($self) = @_;

	# one of its processes may fail in a way that takes the others with it
	record(event => 'crash');
	my $primary = $self->{cluster}{primary};
	my ($text, $end) = $primary->log_since(-s $primary->{log});

	fill($primary->{data_disk});
	my $done = $self->{cluster}->await(
		sub {
			$primary->query(q{CREATE TEMP TABLE filler AS SELECT repeat(md5(g::text), 100) FROM generate_series(1, 1000) g});
			($text) = $primary->log_since($end);
			$text =~ / 53100 ERROR: /;
		},
		5);
	sleep rand 2;
	my $crashed = rand() < 0.3 && $self->crash(sub { kill 'KILL', $primary->postmaster });
	sleep 0.3;
	$self->clear;
	return $self->back_up($done && ($crashed ? 'and the postmaster killed' : 1));
}

1;
