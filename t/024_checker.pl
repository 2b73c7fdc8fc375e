
# Does the torture's checker find what it is there for?  Histories and tables made
# by hand: a clean one of every kind of request, and the same with one thing wrong.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../test/torture";
use CheckHistory;
use Test::More;

# keeps the results where scripts/test counts them; a server is not needed
BEGIN { eval { require PostgreSQL::Test::Utils; PostgreSQL::Test::Utils->import } }

# ---------------------------------------------------------------- a clean history

my ($clock, @history, @effects, @keys, %probed);

# An attempt from now to now; its client is the first number of its name.
sub attempt
{
	my ($attempt, $kind, $key, %end) = @_;
	my %start = map { exists $end{$_} ? ($_ => delete $end{$_}) : () } qw(form keys fence phase sync zombie);

	push @history, { sync => 'on', try => 1, %start, client => $attempt =~ /^(\d+)/, attempt => $attempt, kind => $kind, key => $key, t => ++$clock };
	push @history, { outcome => 'answered', %end, attempt => $attempt, t => ++$clock } if %end;
	return;
}

sub effect
{
	my ($attempt, $kind, $key, %more) = @_;

	push @effects, { key => $key, kind => $kind, attempt => $attempt, fence => undef, phase => undef, %more };
	return;
}

# A finished key, and its effect.
sub finished
{
	my ($attempt, $kind, $key, %more) = @_;

	effect($attempt, $kind, $key, map { exists $more{$_} ? ($_ => $more{$_}) : () } qw(fence phase));
	push @keys, { key => $key, finished => 1, answer => undef, fence => undef, phase => undef,
		looked_up => $kind eq 'token' ? undef : 'finished', %more };
	return;
}

sub clean
{
	$clock = 0;
	@history = @effects = @keys = %probed = ();

	attempt('1.1', 'tx', 'tx-0', state => 'started', answer => '1.1');
	attempt('2.1', 'tx', 'tx-0', state => 'replayed', answer => '1.1');
	finished('1.1', 'tx', 'tx-0', answer => '1.1');

	# unknown, and done; unknown, and not done; failed
	attempt('1.2', 'tx', 'tx-1', outcome => 'unknown', state => 'started', sqlstate => 'HANG');
	attempt('1.3', 'tx', 'tx-1', state => 'in_progress');
	attempt('1.4', 'tx', 'tx-1', state => 'replayed', answer => '1.2');
	finished('1.2', 'tx', 'tx-1', answer => '1.2');
	attempt('1.5', 'call', 'call-0', outcome => 'unknown', sqlstate => '08006');
	attempt('1.6', 'call', 'call-0', outcome => 'failed', sqlstate => '57P01', state => 'finished', answer => '1.6');
	attempt('1.7', 'call', 'call-0', state => 'finished', answer => '1.7');
	finished('1.7', 'call', 'call-0', answer => '1.7');

	attempt('2.2', 'claim', 'claim-1', state => 'claimed');
	finished('2.2', 'claim', 'claim-1');
	attempt('1.8', 'claim', 'claim-0', keys => [qw(claim-0 claim-1 claim-2)], state => 'claimed', claimed => [qw(claim-0 claim-2)]);
	finished('1.8', 'claim', $_) for qw(claim-0 claim-2);
	attempt('2.3', 'claim', 'claim-0', state => 'refused');

	attempt('1.9', 'raise', 'raise-0', state => 'inserted');
	attempt('2.4', 'raise', 'raise-0', state => 'duplicate');
	finished('1.9', 'raise', 'raise-0');

	attempt('1.10', 'issue', 'token-1.10', state => 'issued', sync => 'off');
	attempt('1.11', 'token', 'token-1.10', state => 'redeemed');
	attempt('2.5', 'token', 'token-1.10', state => 'used');
	finished('1.11', 'token', 'token-1.10');

	lease_history();
	code_history();
	throttle_history();
	http_history();
	failure_history();
	%probed = ('tx-0' => 'replayed', 'lease-1' => 'started');
	return;
}

sub event { push @history, { event => $_[0], t => ++$clock }; return }

# Four guesses, two of them taken back, the last one right; then it is used.
sub code_history
{
	attempt('6.1', 'issue', 'code-6.1', state => 'issued');
	attempt('6.2', 'code', 'code-6.1', form => 'wrong', state => 'wrong');
	attempt('6.3', 'code', 'code-6.1', form => 'wrong-undone', outcome => 'failed', sqlstate => 'UNDONE', state => 'wrong');
	attempt('6.4', 'code', 'code-6.1', form => 'right-undone', outcome => 'failed', sqlstate => 'UNDONE', state => 'verified');
	attempt('6.5', 'code', 'code-6.1', form => 'right', state => 'verified');
	attempt('6.6', 'code', 'code-6.1', form => 'right', state => 'used');
	finished('6.5', 'code', 'code-6.1', looked_up => undef);

	# this one is locked
	attempt('6.11', 'issue', 'code-6.11', state => 'issued');
	attempt("6.1$_", 'code', 'code-6.11', form => 'wrong-undone', outcome => 'failed', sqlstate => 'UNDONE', state => 'wrong') for 2 .. 5;
	attempt('6.16', 'code', 'code-6.11', form => 'right', state => 'locked');
	push @keys, { key => 'code-6.11', finished => 0 };
	return;
}

# A call of a limit of 2 in 100 s; times are seconds from the start of the history.
sub throttled
{
	my ($second, $allowed) = @_;

	push @history, { throttle => 'limit', n => 2, period => 100, start => $second * 1e9, t => $second * 1e9 + 1,
		defined $allowed ? (allowed => $allowed) : () };
	return;
}

sub throttle_history
{
	throttled(@$_) for [ 1, 1 ], [ 2, 1 ], [ 3, 0 ], [ 51, 1 ], [ 52, 0 ], [ 102, 1 ], [ 103, 0 ];
	return;
}

# One answer in a transaction, one under a lease that was taken over, and one of a failure.
sub http_history
{
	attempt('7.1', 'http', 'http-1', outcome => 'failed', sqlstate => 'UNDONE', state => 'started', answer => '7.1', told => '200 h7.1 b');
	attempt('7.2', 'http', 'http-1', state => 'started', answer => '7.2', told => '201 h7.2 b');
	attempt('8.1', 'http', 'http-1', state => 'replayed', answer => '7.2', told => '201 h7.2 b');
	finished('7.2', 'http', 'http-1', answer => '7.2', told => '201 h7.2 b', failed => 0);

	attempt('7.3', 'http', 'http-0', form => 'begin', state => 'holding');
	$history[-1]{fence} = 30;
	attempt('8.2', 'http', 'http-0', form => 'begin', state => 'holding');
	$history[-1]{fence} = 31;
	attempt('8.3', 'http', 'http-0', form => 'finish', fence => 31, phase => 'finish', outcome => 'unknown', sqlstate => '08006',
		state => 'finished', answer => '8.3', told => '200 h8.3 -');
	attempt('7.4', 'http', 'http-0', form => 'finish', fence => 30, phase => 'finish', zombie => 1, outcome => 'failed', sqlstate => 'ID004');
	attempt('8.4', 'http', 'http-0', form => 'begin', state => 'replayed', answer => '8.3', told => '200 h8.3 -');
	finished('8.3', 'http', 'http-0', fence => 31, phase => 'finish', answer => '8.3', told => '200 h8.3 -', failed => 0);
	$keys[-1]{phase} = undef;

	attempt('7.5', 'http', 'http-2', state => 'failed', answer => '7.5', told => '404 h7.5 b', failed => 1);
	attempt('8.5', 'http', 'http-2', state => 'replayed', answer => '7.5', told => '404 h7.5 b', failed => 1);
	failure('7.5', 'http-2', told => '404 h7.5 b');
	return;
}

# A key that was finished as failed: there is no effect.
sub failure
{
	my ($attempt, $key, %more) = @_;

	push @keys, { key => $key, finished => 1, answer => $attempt, fence => undef, phase => undef, looked_up => 'finished',
		told => "error $attempt", failed => 1, %more };
	return;
}

# What an attempt at a request that fails gets: its own failure, or another's again.
sub failed { my ($by, %end) = @_; return (answer => $by, told => "error $by", failed => 1, %end) }

# Failed by idem_fail, in a transaction and under a lease that was taken over; and by an error that idem_call has kept.
sub failure_history
{
	attempt('7.10', 'fail', 'fail-1', failed('7.10', state => 'failed'));
	attempt('8.10', 'fail', 'fail-1', failed('7.10', state => 'replayed'));
	failure('7.10', 'fail-1');

	attempt('7.11', 'fail', 'fail-0', form => 'begin', state => 'holding');
	$history[-1]{fence} = 40;
	attempt('8.11', 'fail', 'fail-0', form => 'begin', state => 'holding');
	$history[-1]{fence} = 41;
	attempt('8.12', 'fail', 'fail-0', form => 'finish', fence => 41, phase => 'finish', failed('8.12', state => 'failed'));
	attempt('7.12', 'fail', 'fail-0', form => 'finish', fence => 40, phase => 'finish', zombie => 1, outcome => 'failed', sqlstate => 'ID004');
	attempt('7.13', 'fail', 'fail-0', form => 'begin', failed('8.12', state => 'replayed'));
	failure('8.12', 'fail-0', fence => 41);

	attempt('7.14', 'keep', 'keep-0', failed('7.14', state => 'failed', outcome => 'unknown', sqlstate => 'HANG'));
	attempt('7.15', 'keep', 'keep-0', failed('7.14', state => 'replayed'));
	failure('7.14', 'keep-0');

	# and one that has not failed
	attempt('7.16', 'keep', 'keep-1', state => 'finished', answer => '7.16', told => 'r', failed => 0);
	attempt('8.16', 'keep', 'keep-1', state => 'replayed', answer => '7.16', told => 'r', failed => 0);
	finished('7.16', 'keep', 'keep-1', answer => '7.16', told => 'r', failed => 0);
	return;
}

# The first holder does phase 1, and comes back when the second has taken over.
sub lease_history
{
	attempt('1.12', 'lease', 'lease-0', form => 'begin', state => 'holding');
	$history[-1]{fence} = 7;
	attempt('1.13', 'lease', 'lease-0', form => 'phase', fence => 7, phase => 1, state => 'checkpointed');
	attempt('2.6', 'lease', 'lease-0', form => 'begin', state => 'holding');
	$history[-1]{fence} = 9;
	attempt('2.7', 'lease', 'lease-0', form => 'phase', fence => 9, phase => 2, state => 'checkpointed');
	attempt('1.14', 'lease', 'lease-0', form => 'phase', fence => 7, phase => 2, zombie => 1, outcome => 'failed', sqlstate => 'ID004');
	attempt('2.8', 'lease', 'lease-0', form => 'phase', fence => 9, phase => 3, outcome => 'unknown', sqlstate => '08006');
	attempt('2.9', 'lease', 'lease-0', form => 'phase', fence => 9, phase => 3, outcome => 'failed', sqlstate => 'ID006');
	attempt('2.10', 'lease', 'lease-0', form => 'finish', fence => 9, phase => 'finish', state => 'finished', answer => '2.10');
	attempt('1.15', 'lease', 'lease-0', form => 'begin', state => 'replayed', answer => '2.10');
	effect('1.13', 'lease', 'lease-0', fence => 7, phase => 1);
	effect('2.7', 'lease', 'lease-0', fence => 9, phase => 2);
	effect('2.8', 'lease', 'lease-0', fence => 9, phase => 3);
	finished('2.10', 'lease', 'lease-0', fence => 9, phase => 'finish', answer => '2.10');
	$keys[-1]{phase} = 3;

	# given up after phase 1, and not taken over
	attempt('2.11', 'lease', 'lease-1', form => 'begin', state => 'holding');
	$history[-1]{fence} = 10;
	attempt('2.12', 'lease', 'lease-1', form => 'phase', fence => 10, phase => 1, state => 'checkpointed');
	attempt('2.13', 'lease', 'lease-1', form => 'release', fence => 10, state => 'released');
	effect('2.12', 'lease', 'lease-1', fence => 10, phase => 1);
	push @keys, { key => 'lease-1', finished => 0, answer => undef, fence => 10, phase => 1, looked_up => 'abandoned' };
	return;
}

# ---------------------------------------------------------------- changing it

sub start_of { my ($attempt) = @_; return (grep { ($_->{attempt} // '') eq $attempt && $_->{client} } @history)[0] }

sub end_of { my ($attempt) = @_; return (grep { ($_->{attempt} // '') eq $attempt && !$_->{client} } @history)[0] }

sub no_effect { my ($key, $phase) = @_; @effects = grep { $_->{key} ne $key || defined $phase && $_->{phase} ne $phase } @effects; return }

sub key_of { my ($key) = @_; return (grep { $_->{key} eq $key } @keys)[0] }

sub no_key { my ($key) = @_; @keys = grep { $_->{key} ne $key } @keys; return }

# As a crash leaves it: neither effect nor key.
sub lose { no_effect($_[0]); no_key($_[0]); return }

# What kinds of violations are found in the clean history so changed?
sub found
{
	my ($expected, $name, $change, %opt) = @_;
	my $check = CheckHistory->new(%opt);
	my %kinds;

	clean();
	$change->();
	$check->add($_) for @history;
	$check->probed($_, $probed{$_}) for sort keys %probed;
	my @violations = $check->violations(\@effects, \@keys);
	$kinds{ $_->[0] }++ for @violations;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join(', ', sort keys %kinds), $expected, $name) or diag(map { "$_->[0]: $_->[1]\n" } @violations);
	return $check->figures;
}

# ---------------------------------------------------------------- what must be found

my $n = found('', 'the clean history has none', sub { });
is_deeply(
	[ @$n{qw(attempts requests keys effects acknowledged repeats unknown take-overs lost)} ],
	[ 61, 61, 19, 17, 14, 11, 5, 3, 0 ], 'and its figures are right');
is_deeply([ @$n{'guesses', 'locked out', 'throttle allowed', 'throttle refused'} ], [ 7, 1, 4, 3 ], 'those of guesses and calls as well');
is_deeply([ @$n{'failures acknowledged', 'failures repeated', 'failures of http', 'failures of fail', 'failures of keep', 'answers compared'} ],
	[ 3, 4, 1, 2, 1, 15 ], 'and those of failures');
found('', 'nor with a lost tail that lost nothing', sub { }, lost_tail => 1);

found('double effect', 'an effect twice by one attempt', sub { effect('1.1', 'tx', 'tx-0') });
found('double effect', 'by an attempt that does not know and one that was answered',
	sub { effect('1.5', 'call', 'call-0') });
found('different answers, double effect', 'by two that were answered',
	sub { @{ end_of('2.1') }{qw(state answer)} = qw(started 2.1); effect('2.1', 'tx', 'tx-0') });
found('double effect', 'of a claim in two batches',
	sub { attempt('2.90', 'claim', 'claim-2', keys => ['claim-2'], state => 'claimed', claimed => ['claim-2']); effect('2.90', 'claim', 'claim-2') });
found('double phase', 'a phase twice', sub { effect('2.9', 'lease', 'lease-0', fence => 9, phase => 3); end_of('2.9')->{outcome} = 'unknown' });

found('double effect, effect of a failed attempt', 'an effect of an attempt that failed, beside another',
	sub { effect('1.6', 'call', 'call-0') });
found('effect of a failed attempt', 'and alone', sub {
	attempt('2.90', 'tx', 'tx-9', outcome => 'failed', sqlstate => '57014');
	finished('2.90', 'tx', 'tx-9', answer => '2.90');
});
found('effect of nobody', 'an effect of no attempt', sub { finished('9.9', 'tx', 'tx-9', answer => '9.9') });
found('effect of nobody', 'an effect under a key that was not its attempt\'s', sub { finished('1.1', 'tx', 'tx-9', answer => '1.1') });

found('answer without effect, lost effect', 'an acknowledged effect and its key are gone', sub { lose('tx-0') });
found('lost effect', 'the same, and no other attempt got an answer from it', sub { lose('claim-2') });
found('lost effect', 'an acknowledged phase is gone, and its recovery point',
	sub { no_effect('lease-1', 1); key_of('lease-1')->{phase} = undef });
found('different answers, lost effect', 'the effect is another\'s', sub {
	lose('tx-0');
	attempt('3.1', 'tx', 'tx-0', outcome => 'unknown', sqlstate => 'HANG');
	attempt('3.2', 'tx', 'tx-0', state => 'replayed', answer => '3.1');
	finished('3.1', 'tx', 'tx-0', answer => '3.1');
});

found('different answers', 'a replay names another attempt', sub { end_of('2.1')->{answer} = '1.2' });
found('different answers', 'also to one whose transaction failed later',
	sub { @{ end_of('2.1') }{qw(answer outcome sqlstate)} = ('1.2', 'failed', '57P01') });
found('stored answer', 'the stored result names another attempt', sub { key_of('tx-0')->{answer} = '1.2' });

found('effect without key', "an effect without its key: $_", sub { no_key($_) }) for qw(tx-0 claim-2 raise-0 token-1.10 lease-0);
found('effect without key', 'the token was not used', sub { key_of('token-1.10')->{finished} = 0 });
found('effect without key', 'the last phase was not finished', sub { key_of('lease-0')->{finished} = 0 });
found('effect without key', 'a phase was not recorded', sub { key_of('lease-1')->{phase} = undef });
found('effect without key', 'the index does not find the key', sub { key_of('tx-0')->{looked_up} = undef });
found('answer without effect, key without effect, lost effect', "a key without its effect: $_", sub { no_effect($_) })
  for qw(tx-0 raise-0 token-1.10);
found('key without effect', 'whose answer no attempt got', sub {
	attempt('2.90', 'tx', 'tx-9', state => 'in_progress');
	push @keys, { key => 'tx-9', finished => 1, answer => '1.90', looked_up => 'finished' };
});
found('key without effect', 'a recovery point without its phase', sub { no_effect('lease-0', 3) });

for my $repeat ([ 'refused', 'claim' ], [ 'duplicate', 'raise' ], [ 'used', 'token' ], [ 'replayed', 'call' ])
{
	my ($state, $kind) = @$repeat;

	found('answer without effect', "$state, and nothing is there", sub { attempt('2.90', $kind, "$kind-9", state => $state) });
}
found('answer without effect', 'missing in a batch\'s answer, and not there', sub {
	push @{ start_of('1.8')->{keys} }, 'claim-9';
});

found('', 'unless it was not an answer', sub {
	attempt('2.90', 'claim', 'claim-9', keys => [qw(claim-9)], outcome => 'failed', sqlstate => '57P01', state => 'claimed', claimed => []);
});

found('mismatch', 'a request unlike itself', sub { attempt('2.90', 'tx', 'tx-0', state => 'mismatch') });
found('token refused', "a token $_", sub { attempt('2.90', 'token', 'token-1.10', state => $_) }) for qw(unknown expired);
found('error', 'an error that no fault explains', sub { attempt('2.90', 'tx', 'tx-9', outcome => 'error', sqlstate => 'XX000', error => 'oops') });
found('error', 'a claim that is not known', sub { @{ end_of('1.14') }{qw(outcome sqlstate)} = qw(error ID003) });
found('broken history', 'an end without a start', sub { push @history, { attempt => '9.9', t => 1, outcome => 'failed' } });

found('unknown still', 'unknown at the end', sub { attempt('1.90', 'claim', 'claim-0', outcome => 'unknown', sqlstate => 'HANG') });
found('unknown still', 'an attempt without an end, after a failure',
	sub { attempt('1.90', 'claim', 'claim-0'); attempt('1.91', 'claim', 'claim-0', outcome => 'failed', sqlstate => '40001') });
found('unknown still', 'another client\'s answer is not one',
	sub { attempt('1.90', 'claim', 'claim-0', outcome => 'unknown', sqlstate => 'HANG'); attempt('2.90', 'claim', 'claim-0', state => 'refused') });
found('unknown still', 'a phase that is not repeated',
	sub { attempt('1.90', 'lease', 'lease-0', form => 'phase', fence => 7, phase => 2, outcome => 'unknown'); attempt('1.91', 'lease', 'lease-0', state => 'in_progress') });

# Some who begin, one after the other, and do nothing.
sub begins
{
	my $client = 3;

	for my $fence (@_)
	{
		attempt($client++ . '.1', 'lease', 'lease-2', form => 'begin', state => 'holding');
		$history[-1]{fence} = $fence;
	}
	push @keys, { key => 'lease-2', finished => 0, fence => 22, phase => undef, looked_up => 'abandoned' };
	return;
}
found('fence order', 'a lower fence after a higher one', sub { begins(22, 21) });
found('fence order', 'lower than the highest', sub { begins(20, 22, 21) });
found('', 'but not if the higher one was rolled back', sub { begins(22, 21); end_of('3.1')->{outcome} = 'failed' });
found('', 'nor of two at the same time', sub { begins(22, 21); start_of('4.1')->{t} = start_of('3.1')->{t} });
found('fence twice', "a fence again after its begin was $_", sub {
		attempt('2.90', 'lease', 'lease-0', form => 'begin', outcome => $_, state => 'holding');
		$history[-1]{fence} = 9;
		attempt('2.91', 'lease', 'lease-0', state => 'replayed', answer => '2.10');
	}) for qw(unknown failed);
found('fence twice', 'a fence twice, of two keys', sub { end_of('2.11')->{fence} = 9; $_->{fence} = 9 for start_of('2.12'), start_of('2.13') });
# The first holder's second phase, which was refused, is done instead of the second's.
sub zombie_passes
{
	my ($effect) = grep { $_->{attempt} eq '2.7' } @effects;

	@$effect{qw(attempt fence)} = ('1.14', 7);
	@{ end_of('1.14') }{qw(outcome state sqlstate)} = ('answered', 'checkpointed', undef);
	end_of('2.7')->{outcome} = 'failed';
	return;
}
found('superseded effect', 'an effect of one who began after a take-over', \&zombie_passes);
found('superseded effect', 'an effect of one who had given up',
	sub { attempt('2.90', 'lease', 'lease-1', form => 'phase', fence => 10, phase => 2, state => 'checkpointed');
		effect('2.90', 'lease', 'lease-1', fence => 10, phase => 2); key_of('lease-1')->{phase} = 2 });
found('superseded effect', 'a later phase under a lower fence, even without its answer',
	sub {
	end_of('2.6')->{outcome} = 'unknown';
	$_->{fence} = 6 for grep { $_->{attempt} eq '2.8' } @effects;
});
found('refused for nothing', 'released, and never finished', sub { attempt('2.90', 'lease', 'lease-1', form => 'release', fence => 10, outcome => 'failed', sqlstate => 'ID006') });
found('refused for nothing', 'never superseded', sub { attempt('2.90', 'lease', 'lease-0', form => 'phase', fence => 9, phase => 3, outcome => 'failed', sqlstate => 'ID004') });
found('', 'unless an attempt with an unknown outcome may have', sub {
	attempt('3.1', 'lease', 'lease-0', form => 'begin', outcome => 'unknown', sqlstate => '08006');
	attempt('2.90', 'lease', 'lease-0', form => 'phase', fence => 9, phase => 3, outcome => 'failed', sqlstate => 'ID004');
	attempt('3.2', 'lease', 'lease-0', form => 'begin', state => 'replayed', answer => '2.10');
});
found('refused for nothing', 'never done', sub { attempt('2.90', 'lease', 'lease-1', form => 'phase', fence => 10, phase => 2, outcome => 'failed', sqlstate => 'ID006') });

# ---------------------------------------------------------------- answers to HTTP, and failures

found('different words', 'a replay with another status', sub { end_of('8.1')->{told} = '200 h7.2 b' });
found('different words', 'the stored answer is not that which was sent', sub { key_of('http-1')->{told} = '201 h7.2 B' });
found('different words', 'the replay of an answer that nobody is known to have got',
	sub { end_of('8.4')->{told} = '200 h8.3 b'; key_of('http-0')->{told} = '200 h8.3 b' });
found('different words', 'a failure in other words', sub { end_of('8.10')->{told} = 'error' });
found('different words', 'an error that was kept in other words', sub { key_of('keep-0')->{told} = 'error' });
found('malformed', 'an answer that none should be', sub { attempt('7.90', 'http', 'http-1', state => 'malformed') });

found('effect of a failure', "a failure that has an effect: $_->[1]", sub { effect($_->[0], $_->[1] =~ s/-.*//r, $_->[1]) })
  for [ '7.5', 'http-2' ], [ '7.10', 'fail-1' ], [ '7.14', 'keep-0' ];
found('effect of a failure', 'or that of another attempt', sub {
	attempt('8.90', 'fail', 'fail-1', outcome => 'unknown', state => 'started', answer => '8.90', told => 'r');
	attempt('8.91', 'fail', 'fail-1', failed('7.10', state => 'replayed'));
	effect('8.90', 'fail', 'fail-1');
});
found('effect of a failure, failure became success', 'a failure that is kept as a success', sub {
	effect('7.10', 'fail', 'fail-1');
	key_of('fail-1')->{failed} = 0;
});
# Done again, by one that does not fail.
sub became_success
{
	no_key('fail-1');
	attempt('8.90', 'fail', 'fail-1', state => 'started', answer => '8.90', told => 'r');
	finished('8.90', 'fail', 'fail-1', answer => '8.90', told => 'r', failed => 0);
	return;
}
found('different answers, failure became success', 'a failure that became a success', \&became_success);
found('failure became success', 'even if nobody knows', sub { became_success(); end_of('8.90')->{outcome} = 'unknown';
	attempt('8.91', 'fail', 'fail-1', failed('7.10', state => 'replayed')) });
found('different answers', 'the stored failure is that of another attempt', sub { @{ key_of('fail-1') }{qw(answer told)} = ('8.90', 'error 8.90') });
found('different answers', 'a failure that failed anew', sub {
	key_of('fail-1')->{$_} = { answer => '8.90', told => 'error 8.90' }->{$_} for qw(answer told);
	attempt('8.90', 'fail', 'fail-1', failed('8.90', state => 'failed', outcome => 'unknown'));
	attempt('8.91', 'fail', 'fail-1', failed('8.90', state => 'replayed'));
});
found('lost failure', 'a failure is gone', sub { no_key('keep-0') });
found('lost failure', 'a failure is no more than a claim', sub { key_of('fail-0')->{finished} = 0 });
found('', 'unless it was rolled back', sub {
	attempt('7.90', 'keep', 'keep-9', failed('7.90', state => 'failed', outcome => 'failed', sqlstate => '57P01'));
});
found('answer without effect, lost effect', 'a success is kept as a failure', sub { key_of('keep-1')->{failed} = 1; no_effect('keep-1') });
found('superseded effect', 'a failure under a fence that was taken over', sub {
	@{ end_of('7.12') }{qw(outcome sqlstate)} = ('answered', undef);
	my $end = end_of('7.12');
	%$end = (%$end, failed('7.12', state => 'failed'));
	@{ end_of('8.12') }{qw(outcome sqlstate failed)} = ('failed', 'ID006', undef);
	@{ end_of('7.13') }{qw(answer told)} = ('7.12', 'error 7.12');
	@{ key_of('fail-0') }{qw(answer told)} = ('7.12', 'error 7.12');
	start_of('7.12')->{t} = end_of('8.11')->{t} + 0.1;
	start_of('8.12')->{t} = end_of('7.12')->{t} - 0.1;
});
found('superseded effect', 'an answer under one', sub {
	my ($effect) = grep { $_->{attempt} eq '8.3' } @effects;

	@$effect{qw(attempt fence)} = ('7.4', 30);
	my $end = end_of('7.4');
	%$end = (%$end, outcome => 'answered', sqlstate => undef, state => 'finished', answer => '7.4', told => 't');
	@{ end_of('8.4') }{qw(answer told)} = ('7.4', 't');
	@{ key_of('http-0') }{qw(answer told)} = ('7.4', 't');
	end_of('8.3')->{outcome} = 'failed';
});

# ---------------------------------------------------------------- codes, calls, and what is held for ever

sub wrong { my ($attempt, %more) = @_; attempt($attempt, 'code', 'code-6.11', form => 'wrong', state => 'wrong', %more); return }
my %undone = (outcome => 'failed', sqlstate => 'UNDONE');

found('too many guesses', 'one guess more than a code allows', sub { wrong('6.20') });
found('too many guesses', 'also if it was taken back', sub { wrong('6.20', %undone) });
found('too many guesses', 'or is not known', sub { wrong('6.20', outcome => 'unknown', sqlstate => 'HANG'); attempt('6.21', 'code', 'code-6.11', state => 'locked') });
found('', 'but a crash forgets those that were taken back', sub { event('crash'); event('up'); wrong('6.20', %undone) });
found('', 'and those during it may be of either life', sub { event('crash'); wrong('6.20', %undone); event('up') });
found('too many guesses', 'though not those after it', sub { event('crash'); event('up'); wrong("6.2$_", %undone) for 0 .. 4 });
found('too many guesses', 'nor those that were committed',
	sub { $_->{outcome} = 'answered' for map { end_of("6.1$_") } 2 .. 5; event('crash'); event('up'); wrong('6.20', %undone) });
found('', 'a clean restart may forget as well', sub { event('restart'); event('restart'); wrong('6.20', %undone) });
found('too many guesses', 'unless guesses are kept', sub { event('restart'); event('restart'); wrong('6.20', %undone) }, guesses_kept => 1);
found('too many guesses', 'a right guess at a code without attempts',
	sub { attempt('6.20', 'code', 'code-6.11', form => 'right', state => 'verified'); key_of('code-6.11')->{finished} = 1;
		effect('6.20', 'code', 'code-6.11') });
found('locked for nothing', 'locked after three guesses', sub { @history = grep { ($_->{attempt} // '') ne '6.15' } @history });
found('double effect', 'a code verified twice', sub { effect('6.6', 'code', 'code-6.1'); @{ end_of('6.6') }{qw(state)} = ('verified');
	# one guess less, which would be another violation
	@history = grep { ($_->{attempt} // '') ne '6.3' } @history });
found('effect of a failed attempt', 'a right guess that was taken back, and its effect', sub {
	@effects = grep { $_->{attempt} ne '6.5' } @effects;
	end_of('6.5')->{outcome} = 'unknown';
	effect('6.4', 'code', 'code-6.1');
});
found('effect without key', 'a code that was verified and is not used', sub { key_of('code-6.1')->{finished} = 0 });

found('throttle allows too much', '2n calls of a limit in a period', sub { throttled(53, 1) });
found('', 'not in more than a period', sub { throttled(152, 1) });
found('', 'nor with a crash in between',
	sub { throttled(55, 1); push @history, { event => 'crash', t => 53e9 }, { event => 'up', t => 54e9 } });
found('throttle allows too much', 'but with a clean restart',
	sub { throttled(55, 1); push @history, { event => 'restart', t => 53e9 }, { event => 'restart', t => 54e9 } }, guesses_kept => 0);
found('throttle refuses for nothing', 'refused when a call had come back', sub { throttled(153, 0) });
found('', 'unless one may have been allowed that got no answer', sub { throttled(140); throttled(153, 0) });
found('throttle refuses for nothing', 'refused at first', sub { throttled(0, 0) });

found('in progress for ever', 'a finished key whose answer cannot be had', sub { $probed{'tx-0'} = 'in_progress' });
found('in progress for ever', 'a key without a row that cannot be begun', sub { $probed{'tx-99'} = 'in_progress' });
found('in progress for ever', 'a lease that does not end', sub { $probed{'lease-1'} = 'in_progress' });

# ---------------------------------------------------------------- a lost tail

sub off { $_->{sync} = 'off' for grep { $_->{client} } @history; return }

$n = found('', 'under off, effect and key may be lost together', sub { off(); lose($_) for qw(tx-0 claim-2 raise-0) }, lost_tail => 1);
is($n->{lost}, 5, 'and are counted');
found('answer without effect, lost effect', 'but only if there was a crash', sub { off(); lose('tx-0') });
found('', 'and failures may be lost as well', sub { off(); no_key($_) for qw(fail-1 keep-0 http-2) }, lost_tail => 1);
found('', 'so that they succeed then', sub { off(); became_success() }, lost_tail => 1);
found('lost failure', 'but not one under on', sub { off(); start_of('8.10')->{sync} = 'on'; no_key('fail-1') }, lost_tail => 1);
found('different answers, failure became success', 'whatever became of it',
	sub { off(); start_of('8.10')->{sync} = 'on'; became_success(); $_->{sync} = 'on' for start_of('8.90') }, lost_tail => 1);
found('different words', 'nor may its words change', sub { off(); end_of('8.10')->{told} = 'error' }, lost_tail => 1);
found('', 'then another may do it again',
	sub { off(); lose('tx-0'); attempt('3.1', 'tx', 'tx-0', state => 'started', answer => '3.1'); finished('3.1', 'tx', 'tx-0', answer => '3.1') }, lost_tail => 1);
found('', 'before a crash that came soon', sub { off(); lose('claim-2'); push @history, { event => 'crash', t => 50e9 } }, lost_tail => 1);
found('lost effect', 'not long before', sub { off(); lose('claim-2'); push @history, { event => 'crash', t => 70e9 } }, lost_tail => 1);
found('lost effect', 'nor after it', sub { off(); lose('claim-2'); push @history, { event => 'crash', t => -1 }, { event => 'up', t => 0 } }, lost_tail => 1);
found('effect without key', 'an effect without its key, never', sub { off(); no_key('tx-0') }, lost_tail => 1);
found('key without effect', 'a key without its effect, never', sub { off(); no_effect('tx-0') }, lost_tail => 1);
found('key without effect', 'nor a recovery point without its phase', sub { off(); no_effect('lease-0', 3) }, lost_tail => 1);
found('', 'unless a holder that was refused since it was done has gone on', sub { off(); no_effect('lease-0', 1) }, lost_tail => 1);
found('key without effect, lost effect', 'but one under on may rely on it',
	sub { off(); start_of('1.13')->{sync} = 'on'; no_effect('lease-0', 1) }, lost_tail => 1);
found('double effect', 'nor two effects', sub { off(); effect('1.1', 'tx', 'tx-0') }, lost_tail => 1);
found('effect of a failed attempt', 'nor one that was refused', sub {
	off();
	attempt('2.90', 'tx', 'tx-9', outcome => 'failed', sqlstate => '57014');
	finished('2.90', 'tx', 'tx-9', answer => '2.90');
}, lost_tail => 1);

found('lost effect', 'the effect of one under on, never', sub { off(); start_of('1.1')->{sync} = 'on'; lose('tx-0') }, lost_tail => 1);
found('answer without effect', 'nor an effect under off whose answer one under on got',
	sub { off(); start_of('2.1')->{sync} = 'on'; lose('tx-0') }, lost_tail => 1);
found('different answers', 'nor may it be done again after that', sub {
	off();
	start_of('2.1')->{sync} = 'on';
	lose('tx-0');
	attempt('3.1', 'tx', 'tx-0', state => 'started', answer => '3.1');
	finished('3.1', 'tx', 'tx-0', answer => '3.1');
}, lost_tail => 1);
found('superseded effect', 'nor an effect behind a take-over under on', sub {
	off();
	start_of('2.6')->{sync} = 'on';
	zombie_passes();
}, lost_tail => 1);
found('', 'but behind one under off, which may be lost', sub { off(); zombie_passes() }, lost_tail => 1);
found('', 'a token under off may be lost', sub { lose('token-1.10'); off(); attempt('2.90', 'token', 'token-1.10', state => 'unknown') }, lost_tail => 1);
found('token refused', 'but not one that was issued under on',
	sub { off(); start_of('1.10')->{sync} = 'on'; attempt('2.90', 'token', 'token-1.10', state => 'unknown') }, lost_tail => 1);
found('', 'a lease under off may be lost, and its holder not be known',
	sub { off(); @{ end_of('1.14') }{qw(outcome sqlstate)} = qw(error ID003) }, lost_tail => 1);
found('', 'or be another\'s', sub {
	start_of('2.11')->{sync} = 'off';
	attempt('2.90', 'lease', 'lease-1', form => 'phase', fence => 10, phase => 2, outcome => 'failed', sqlstate => 'ID004');
	no_effect('lease-1', 1);
	$_->{sync} = 'off' for start_of('2.12'), start_of('2.13');
	end_of('2.13')->{outcome} = 'failed';
	no_key('lease-1');
}, lost_tail => 1);

done_testing();
