# What a history of clients and the tables they worked on must have to do with each other.
#
#   my $check = CheckHistory->new(lost_tail => 0);
#   $check->add($record);    # each record of the history, a hash, those of a client in their order
#   my @violations = $check->violations(\@effects, \@keys);    # each [ kind, what ]
#   my $figures = $check->figures;    # numbers by name
#
# Before violations(): $check->probed($key, $state), what idem_begin says of a key when all has come to an end.
#
# Records are as clients.pl describes them.  An effect is a hash of key, kind, attempt, fence, phase; a
# key one of key, finished, answer (the attempt that its result names), fence, phase, looked_up, told, failed.
#
# lost_tail: the server has lost its newest commits, as it may with synchronous_commit off.  Then what an
# attempt under off got as an answer may be gone, but never just one of effect and key; and the answer
# of an attempt under on holds, whichever attempt made the effect.
#
# Guesses that are rolled back, and limits, are forgotten when a server loses its memory.  The record of an "event",
# "crash", is made before, that of "up" when it is there again, and "restart" when it was stopped in an orderly way. Only a library
# that keeps guesses over a clean restart is held to it: guesses_kept.
package CheckHistory;

use strict;
use warnings;

my $last_phase = 3;
my $code_attempts = 4;

# Three times the wal_writer_delay of Cluster.pm, and as much again for writers that are slow: an answer given so long
# before a crash (nanoseconds) is on disk.
my $oldest_loss = 60e9;

# Answers by what they say of the key: this attempt has done it, or it was done before.
my %own = map { $_ => 1 } qw(started finished claimed inserted redeemed checkpointed verified);
my %repeat = map { $_ => 1 } qw(replayed refused duplicate used);
my %on_the_way = map { $_ => 1 } qw(in_progress holding checkpointed released);

sub new
{
	my ($class, %opt) = @_;

	return bless { %opt, attempts => {}, by_key => {}, violations => [], n => {}, events => [], calls => {} }, $class;
}

sub add
{
	my ($self, $record) = @_;

	if ($record->{event}) { push @{ $self->{events} }, $record; return }
	if ($record->{throttle}) { push @{ $self->{calls}{ $record->{throttle} } }, $record; return }
	my $attempt = $self->{attempts}{ $record->{attempt} };

	if ($record->{client})
	{
		$attempt = { map { defined $record->{$_} ? ($_ => $record->{$_}) : () }
			qw(client attempt kind form key keys sync try fence phase zombie) };
		$attempt->{start} = $record->{t};
		$self->{attempts}{ $record->{attempt} } = $attempt;
		push @{ $self->{by_key}{$_}{attempts} }, $attempt for keys_of($attempt);
		return;
	}
	if (!$attempt) { $self->violation('broken history', "attempt $record->{attempt} ends and never began"); return }
	defined $record->{$_} and $attempt->{$_} = $record->{$_} for qw(outcome state answer claimed sqlstate error fence told failed);
	$attempt->{end} = $record->{t};
	return;
}

# What became of a key when everybody had gone.
sub probed
{
	my ($self, $key, $state) = @_;

	$self->{by_key}{$key}{probed} = $state;
	return;
}

sub keys_of { return @{ $_[0]{keys} // [ $_[0]{key} ] } }

sub violation
{
	my ($self, $kind, $what) = @_;

	push @{ $self->{violations} }, [ $kind, $what ];
	return;
}

sub answered { return ($_[0]{outcome} // 'unknown') eq 'answered' }

# The answer of an attempt under off may be lost, if a crash came soon.
sub may_lose
{
	my ($self, $attempt) = @_;

	return 0 unless $self->{lost_tail} && ($attempt->{sync} // '') eq 'off';
	my $told = $attempt->{end} // return 1;
	my ($crashes, $crashed) = (0);
	for my $event (@{ $self->{events} })
	{
		if ($event->{event} eq 'crash') { $crashes++; $crashed //= $event->{t} }
		elsif ($event->{event} eq 'up' && defined $crashed)
		{
			# it may have come at any time in between
			return 1 if $event->{t} > $attempt->{start} && $crashed < $told + $oldest_loss;
			undef $crashed;
		}
	}
	return !$crashes || defined $crashed && $crashed < $told + $oldest_loss;
}

# An attempt's answer does not hold.
sub missing
{
	my ($self, $attempt, $kind, $what) = @_;

	if ($self->may_lose($attempt)) { $self->{n}{lost}++ }
	else { $self->violation($kind, $what) }
	return;
}

sub violations
{
	my ($self, $effects, $keys) = @_;

	push @{ $self->{by_key}{ $_->{key} }{effects} }, $_ for @$effects;
	$self->{by_key}{ $_->{key} }{row} = $_ for @$keys;
	for my $key (sort keys %{ $self->{by_key} })
	{
		my $of = $self->{by_key}{$key};

		$of->{attempts} //= [];
		$of->{effects} //= [];
		$self->check_effects($key, $of);
		$self->check_key($key, $of);
		$self->check_answers($key, $of);
		$self->check_failure($key, $of);
		$self->check_told($key, $of);
		$self->check_unknown($key, $of);
		$self->check_fences($key, $of);
		$self->check_superseded($key, $of);
		$self->check_refused($key, $of);
		$self->check_guesses($key, $of);
		$self->check_probed($key, $of);
	}
	$self->check_throttle($_, $self->{calls}{$_}) for sort keys %{ $self->{calls} };
	$self->check_fences_issued;
	$self->check_errors;
	return @{ $self->{violations} };
}

# The effect that ends a key's work: of a leased key the last, of others the only one.
sub is_final { my $phase = $_[0]{phase}; return !defined $phase || $phase eq 'finish' }

sub final { return grep { is_final($_) } @{ $_[0]{effects} } }

# One effect for each key, or phase, by an attempt that may have made it.
sub check_effects
{
	my ($self, $key, $of) = @_;
	my %made;

	for my $effect (@{ $of->{effects} })
	{
		my $attempt = $self->{attempts}{ $effect->{attempt} };

		push @{ $made{ $effect->{phase} // '' } }, $effect->{attempt};
		$self->{n}{"effects of $effect->{kind}"}++;
		if (!$attempt || !grep { $_ eq $key } keys_of($attempt))
		{
			$self->violation('effect of nobody', "$key: attempt $effect->{attempt} was never made");
		}
		elsif (($attempt->{outcome} // '') =~ /^(failed|error)$/)
		{
			$self->violation('effect of a failed attempt', "$key: $effect->{attempt}, $attempt->{sqlstate}");
		}
	}
	for my $phase (sort keys %made)
	{
		my @by = sort @{ $made{$phase} };

		next if @by < 2;
		$self->violation($phase eq '' ? 'double effect' : 'double phase', "$key" . ($phase ne '' && " phase $phase") . ": by @by");
	}
	return;
}

# Effect and key go together, and each phase with the recovery point that names it.
sub check_key
{
	my ($self, $key, $of) = @_;
	my ($final) = final($of);
	my $row = $of->{row};
	my $finished = $row && $row->{finished};

	if ($final && !$finished)
	{
		$self->violation('effect without key', "$key: effect of $final->{attempt}, " . ($row ? 'not finished' : 'no row'));
	}
	if ($finished && !$final && !$row->{failed}) { $self->violation('key without effect', "$key is finished") }
	if ($finished && defined $row->{looked_up} && $row->{looked_up} ne 'finished'
		|| $finished && !defined $row->{looked_up} && exists $row->{looked_up} && $key !~ /^(?:token|code)-/)
	{
		$self->violation('effect without key', "$key: idem_lookup says " . ($row->{looked_up} // 'nothing'));
	}
	if ($finished && $final && $row->{failed})
	{
		$self->violation('effect of a failure', "$key: failed by " . ($row->{answer} // '') . ", effect of $final->{attempt}");
	}
	elsif ($finished && $final && defined $row->{answer} && $row->{answer} ne $final->{attempt})
	{
		$self->violation('stored answer', "$key: result of $row->{answer}, effect of $final->{attempt}");
	}
	my $recorded = $row && $row->{phase} || 0;
	my %made = map { $_->{phase} => 1 } grep { !is_final($_) } @{ $of->{effects} };
	for my $phase (1 .. $last_phase)
	{
		if ($made{$phase} && $phase > $recorded)
		{
			$self->violation('effect without key', "$key: phase $phase was done, $recorded is recorded");
		}
		# a holder whose phase was lost does not know, and goes on with the next
		my ($lost) = grep { ($_->{phase} // '') eq $phase && answered($_) && $self->may_lose($_) } @{ $of->{attempts} };
		if (!$made{$phase} && $phase <= $recorded)
		{
			$self->missing($lost // {}, 'key without effect', "$key: phase $recorded is recorded, $phase was not done");
		}
	}
	return;
}

# Everybody who was answered names the one effect that is there.
sub check_answers
{
	my ($self, $key, $of) = @_;
	my ($final) = final($of);
	my %answers;

	for my $attempt (@{ $of->{attempts} })
	{
		my $state = $attempt->{state} // next;

		# check_failure has these
		if ($attempt->{failed})
		{
			$answers{ $attempt->{answer} } //= $attempt
			  if ($repeat{$state} || answered($attempt)) && !$self->may_lose($attempt);
			next;
		}
		# what is said about another's commit holds whatever becomes of the own
		if ($repeat{$state} || $attempt->{claimed} && !grep { $_ eq $key } @{ $attempt->{claimed} })
		{
			next unless $repeat{$state} || answered($attempt);
			$self->{n}{repeats}++;
			if (!$final) { $self->missing($attempt, 'answer without effect', "$key: $attempt->{attempt} was told $state") }
		}
		elsif ($own{$state} && answered($attempt))
		{
			$self->{n}{acknowledged}++;
			$self->missing($attempt, 'lost effect', "$key: $attempt->{attempt} was told $state")
			  unless grep { $_->{attempt} eq $attempt->{attempt} } @{ $of->{effects} };
		}
		next unless defined $attempt->{answer} && ($repeat{$state} || answered($attempt));
		$answers{ $attempt->{answer} } //= $attempt unless $self->may_lose($attempt);
		next if !$final || $attempt->{answer} eq $final->{attempt};
		$self->missing($attempt, 'different answers', "$key: $attempt->{attempt} was told $attempt->{answer}, effect of $final->{attempt}");
	}
	if (keys %answers > 1) { $self->violation('different answers', "$key: " . join ', ', sort keys %answers) }
	return;
}

# A failure that was told is there, and stays one; it has no effect.
sub check_failure
{
	my ($self, $key, $of) = @_;
	my $row = $of->{row};
	my %effect = map { $_->{attempt} => 1 } grep { is_final($_) } @{ $of->{effects} };

	$self->{n}{ 'failures of ' . ($of->{attempts}[0]{kind} // '') }++ if $row && $row->{finished} && $row->{failed};
	for my $attempt (grep { $_->{failed} } @{ $of->{attempts} })
	{
		if ($effect{ $attempt->{attempt} } && !($row && $row->{failed}))
		{
			$self->violation('effect of a failure', "$key: $attempt->{attempt} has failed and has an effect");
		}
		next unless $repeat{ $attempt->{state} } || answered($attempt);
		$self->{n}{ $repeat{ $attempt->{state} } ? 'failures repeated' : 'failures acknowledged' }++;
		my $what = "$key: $attempt->{attempt} was told that $attempt->{answer} failed";
		if (!$row || !$row->{finished}) { $self->missing($attempt, 'lost failure', $what) }
		elsif (!$row->{failed}) { $self->missing($attempt, 'failure became success', $what) }
		elsif ($row->{answer} ne $attempt->{answer}) { $self->missing($attempt, 'different answers', "$what, and $row->{answer} did") }
	}
	return;
}

# Who gets an answer gets all of it as it was first given, and as it is kept.
sub check_told
{
	my ($self, $key, $of) = @_;
	my $row = $of->{row};
	my %told;

	$told{ $row->{answer} } = [ 'the row', $row->{told} ] if $row && defined $row->{answer} && defined $row->{told};
	for my $attempt (grep { defined $_->{told} } sort { $a->{start} <=> $b->{start} } @{ $of->{attempts} })
	{
		my $other = $told{ $attempt->{answer} } //= [ @$attempt{qw(attempt told)} ];

		$self->{n}{'answers compared'}++;
		next if $other->[1] eq $attempt->{told};
		$self->violation('different words', "$key: $attempt->{attempt} was told $attempt->{told}, $other->[0] has $other->[1]");
	}
	return;
}

# A request with an unknown outcome was repeated until it was known.
sub check_unknown
{
	my ($self, $key, $of) = @_;
	my %unknown;

	for my $attempt (@{ $of->{attempts} })
	{
		next if $attempt->{kind} eq 'issue';
		my $client = $attempt->{client};

		if (($attempt->{outcome} // 'unknown') eq 'unknown')
		{
			$self->{n}{unknown}++;
			$unknown{$client} = $attempt;
			$self->{n}{'unknown and done'}++ if grep { $_->{attempt} eq $attempt->{attempt} } @{ $of->{effects} };
		}
		elsif (answered($attempt) && !$on_the_way{ $attempt->{state} })
		{
			delete $unknown{$client};
		}
	}
	$self->violation('unknown still', "$key: $_->{attempt}") for map { $unknown{$_} } sort keys %unknown;
	return;
}

# Claims of a key, and the ends that their holders gave them, that were acknowledged.
sub takes { return grep { defined $_->{fence} && answered($_) && $_->{state} eq $_[1] } @{ $_[0]{attempts} } }

# A begin after another one has a higher fence.
sub check_fences
{
	my ($self, $key, $of) = @_;
	my @begun = sort { $a->{start} <=> $b->{start} } takes($of, 'holding');
	my @ended = sort { $a->{end} <=> $b->{end} } @begun;
	my $highest;

	for my $begin (@begun)
	{
		while (@ended && $ended[0]{end} < $begin->{start})
		{
			my $before = shift @ended;
			$highest = $before if !$highest || $before->{fence} > $highest->{fence};
		}
		next if !$highest || $begin->{fence} > $highest->{fence};
		$self->violation('fence order',
			"$key: $begin->{attempt} got $begin->{fence} after $highest->{attempt} had $highest->{fence}");
	}
	$self->{n}{'take-overs'} += @begun - 1 if @begun;
	return;
}

# Once a higher fence is known to be there, or the fence was given up, nothing is done under it.
sub check_superseded
{
	my ($self, $key, $of) = @_;
	my @work = grep { defined $_->{fence} } @{ $of->{effects} };
	# a failure ends the work as well, and leaves no effect
	my @ends = (@work, grep { $_->{failed} && $_->{state} eq 'failed' && defined $_->{fence} && answered($_) } @{ $of->{attempts} });
	my @phases = sort { ($a->{phase} eq 'finish') <=> ($b->{phase} eq 'finish') || $a->{phase} cmp $b->{phase} } @work;

	for my $effect (@ends)
	{
		my $attempt = $self->{attempts}{ $effect->{attempt} } // next;
		my ($later) = grep { $_->{end} < $attempt->{start} && !$self->may_lose($_) }
		  (grep { $_->{fence} > $effect->{fence} } takes($of, 'holding')),
		  grep { $_->{fence} >= $effect->{fence} } takes($of, 'released');

		$self->violation('superseded effect',
			"$key: $effect->{attempt} under $effect->{fence} after $later->{attempt} $later->{state} $later->{fence}") if $later;
	}
	for my $i (1 .. $#phases)
	{
		$self->violation('superseded effect',
			"$key: phase $phases[$i]{phase} under $phases[$i]{fence}, $phases[$i - 1]{phase} under $phases[$i - 1]{fence}")
		  if $phases[$i]{fence} < $phases[$i - 1]{fence};
	}
	return;
}

# A holder is refused only if another attempt may have taken over, or have done it.
sub check_refused
{
	my ($self, $key, $of) = @_;

	for my $refused (grep { ($_->{sqlstate} // '') =~ /^ID00[46]$/ } @{ $of->{attempts} })
	{
		my @before = grep { $_->{start} < $refused->{end} && ($_->{outcome} // '') !~ /^(failed|error)$/ && $_ != $refused }
		  @{ $of->{attempts} };
		# or if what it holds was lost
		next if grep { $_->{fence} == $refused->{fence} && $self->may_lose($_) } takes($of, 'holding');
		my @cause = $refused->{sqlstate} eq 'ID006'
		  ? grep { my $phase = $_->{phase} // ''; $phase eq 'finish' || $phase eq ($refused->{phase} // 'finish') } @before
		  : grep { $_->{form} eq 'release' || $_->{form} eq 'begin' && (defined $_->{fence} ? $_->{fence} > $refused->{fence} : !answered($_)) } @before;

		$self->violation('refused for nothing', "$key: $refused->{attempt} got $refused->{sqlstate}") unless @cause;
	}
	return;
}

# The server's life that all of a stretch of time lies in: how often memory was lost before.  Undef if it
# may have been lost meanwhile.
sub life
{
	my ($self, $start, $end, $restarts_too) = @_;
	my ($life, $down) = (0, 0);

	for my $event (sort { $a->{t} <=> $b->{t} } @{ $self->{events} })
	{
		last if $event->{t} > $end;
		if ($event->{event} eq 'crash') { $down = 1 }
		elsif ($event->{event} eq 'up') { $down = 0 }
		elsif (!$restarts_too) { next }
		$life++;
		return if $event->{t} >= $start;
	}
	return $down ? undef : $life;
}

# No more answers than a code's attempts, though they are rolled back, in one life of a server; of those before that
# count which were committed.  And no code is locked before as many guesses may have been made.
sub check_guesses
{
	my ($self, $key, $of) = @_;
	my @guesses = grep { $_->{kind} eq 'code' } @{ $of->{attempts} } or return;
	# a right guess that was rolled back does not count
	my @compared = grep { ($_->{state} // '') eq 'wrong' || ($_->{state} // '') eq 'verified' && answered($_) } @guesses;
	my %lives;

	$_->{life} = defined $_->{end} ? $self->life($_->{start}, $_->{end}, !$self->{guesses_kept}) : undef for @compared;
	push @{ $lives{ $_->{life} } }, $_ for grep { defined $_->{life} } @compared;
	for my $life (sort { $a <=> $b } keys %lives)
	{
		my @before = grep { defined $_->{life} && $_->{life} < $life && answered($_) && !$self->may_lose($_) } @compared;
		my $n = @before + @{ $lives{$life} };

		next if $n <= $code_attempts;
		$self->violation('too many guesses', "$key: $n, by @{[ map { $_->{attempt} } @before, @{ $lives{$life} } ]}");
	}
	$self->{n}{guesses} += @compared;
	for my $locked (grep { ($_->{state} // '') eq 'locked' } @guesses)
	{
		$self->{n}{'locked out'}++;
		my @before = grep { $_ != $locked && $_->{start} < $locked->{end} } @guesses;
		$self->violation('locked for nothing', "$key: $locked->{attempt} after " . @before . ' guesses') if @before < $code_attempts;
	}
	return;
}

# When clients, leases and prepared transactions have ended, no key is held.
sub check_probed
{
	my ($self, $key, $of) = @_;

	return unless ($of->{probed} // '') eq 'in_progress';
	$self->violation('in progress for ever', $key);
	return;
}

# Of a limit of n calls in a period, no more than 2n - 1 are allowed in any period in one life of a server, and
# a call is refused only if another was allowed, or may have been, in the n-th part of a period before.
sub check_throttle
{
	my ($self, $name, $calls) = @_;
	my @calls = sort { $a->{start} <=> $b->{start} } @$calls;
	my @allowed = grep { $_->{allowed} } @calls;
	my @maybe = grep { $_->{allowed} || !defined $_->{allowed} } @calls;
	my ($n, $period) = ($calls[0]{n}, $calls[0]{period} * 1e9);
	my ($told, $from) = (0, 0);

	$self->{n}{'throttle allowed'} += @allowed;
	for my $i (0 .. $#allowed)
	{
		my $end = $allowed[$i]{start} + $period;
		my @within;

		for (my $j = $i; $j < @allowed && $allowed[$j]{start} < $end; $j++)
		{
			push @within, $allowed[$j] if $allowed[$j]{t} < $end;
		}
		next if @within < 2 * $n;
		# there may be more in it than one life
		my %lives;
		$lives{ $self->life(@$_{qw(start t)}) // '' }++ for @within;
		delete $lives{''};
		my ($most) = sort { $b <=> $a } values %lives, 0;
		$self->violation('throttle allows too much', "$name: $most calls within $calls[0]{period} s") if $most >= 2 * $n && !$told++;
	}
	for my $refused (grep { defined $_->{allowed} && !$_->{allowed} } @calls)
	{
		$self->{n}{'throttle refused'}++;
		my $since = $refused->{start} - $period / $n;
		# no call takes a minute
		$from++ while $from < @maybe && $maybe[$from]{start} < $since - 60e9;
		my $cause;
		for (my $j = $from; $j < @maybe && $maybe[$j]{start} <= $refused->{t}; $j++) { $cause ||= $maybe[$j]{t} >= $since }
		$self->violation('throttle refuses for nothing', "$name: at $refused->{start}") if !$cause && $told++ < 3;
	}
	return;
}

# Nor is one that was seen ever issued again, whatever became of its transaction.
sub check_fences_issued
{
	my ($self) = @_;
	my %by;

	for my $key (sort keys %{ $self->{by_key} })
	{
		for my $begin (grep { defined $_->{fence} && ($_->{state} // '') eq 'holding' } @{ $self->{by_key}{$key}{attempts} })
		{
			my $other = $by{ $begin->{fence} };
			$by{ $begin->{fence} } = $begin;
			$self->violation('fence twice', "$begin->{fence}: $other->{attempt} and $begin->{attempt}") if $other;
		}
	}
	$self->{fences} = \%by;
	return;
}

# What no fault explains, and no lost tail.
sub check_errors
{
	my ($self) = @_;

	for my $attempt (sort { $a->{start} <=> $b->{start} } values %{ $self->{attempts} })
	{
		my $state = $attempt->{state} // '';
		my $sqlstate = $attempt->{sqlstate} // '';
		my $what = "$attempt->{key}: $attempt->{attempt}";

		$self->{n}{"failed by $sqlstate"}++ if $sqlstate ne '';
		$self->{n}{'came late'}++ if $attempt->{zombie};
		if (($attempt->{outcome} // '') eq 'error')
		{
			# there is no such claim, since it is lost
			my $begin = $self->{fences}{ $attempt->{fence} // '' };
			if ($sqlstate eq 'ID003' && $begin && $self->may_lose($begin)) { $self->{n}{lost}++ }
			else { $self->violation('error', "$what: $sqlstate " . ($attempt->{error} // '')) }
		}
		if ($state eq 'malformed') { $self->violation('malformed', $what) }
		if ($state eq 'mismatch') { $self->violation('mismatch', $what) }
		if ($state =~ /^(unknown|expired)$/)
		{
			my ($issue) = grep { $_->{kind} eq 'issue' } @{ $self->{by_key}{ $attempt->{key} }{attempts} };
			if ($state eq 'unknown' && $issue && $self->may_lose($issue)) { $self->{n}{lost}++ }
			else { $self->violation('token refused', "$what: $state") }
		}
	}
	return;
}

# By name; those of the tables after violations().
sub figures
{
	my ($self) = @_;
	my @attempts = values %{ $self->{attempts} };
	my %n = %{ $self->{n} };

	$n{attempts} = @attempts;
	$n{requests} = grep { $_->{try} == 1 } @attempts;
	$n{keys} = keys %{ $self->{by_key} };
	$n{effects} = 0;
	$n{effects} += $n{$_} for grep { /^effects of / } keys %n;
	$n{"attempts $_->{kind}" . (defined $_->{form} ? " $_->{form}" : '')}++ for @attempts;
	$n{'in progress'} = grep { ($_->{state} // '') eq 'in_progress' } @attempts;
	$n{$_} //= 0 for qw(lost repeats acknowledged unknown take-overs guesses), 'unknown and done', 'throttle allowed', 'throttle refused', 'failures acknowledged',
	  'failures repeated', 'answers compared';
	return \%n;
}

1;
