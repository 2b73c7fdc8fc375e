# The torture's clients: they make requests of every kind, several of them the same
# request, and write their answers down, outside the server.
#
#   clients.pl --routes FILE --history DIR --clients N --stop FILE [--seed S]
#       [--sync on|off|mix] [--keys N] [--drain SECONDS] [--pause MS] [--timeout SECONDS]
#
# --routes   a libpq connection string a line; read anew before each connection,
#            one is picked at random; while the file is empty, clients wait
# --history  folder for client-NNN.jsonl, and for what clients share: numbers of keys that
#            were given out, tokens; started again with the same folder, they go on where they were
# --stop     when this file exists, nothing new is begun, and what is unknown is repeated
#            until it is known, for at most --drain seconds (60); exit code 1 if
#            something stays unknown
# --sync     synchronous_commit of the attempts: on is the server's own setting,
#            mix is both at random (on)
# --keys     so many keys of a kind, then only repeats (no limit)
# --pause    average pause between requests, milliseconds (5)
# --timeout  a statement that has no answer for so long is given up, and the connection (8)
#
# A client that is killed is started again and takes up what it does not know.
#
# History: two records for each attempt; only the first has "client":
#   client, attempt (CLIENT.NUMBER), kind, form, key or keys, request, sync, try (1 for the first
#     of a request), route (line number), t; for work under a lease fence, phase and zombie (comes late)
#   attempt, t, outcome, state, answer (the attempt whose effect it is), fence, phase, claimed (keys), sqlstate, error;
#     told (the answer in short: see torture.told), failed (true if it says that the request has failed)
# t is CLOCK_MONOTONIC in nanoseconds, which the processes of a machine share.  outcome:
#   answered   the server has acknowledged the commit
#   failed     nothing was committed, for certain
#   unknown    one cannot know
#   error      nothing was committed, and no fault explains why
# state is what was done or is said to have been done before:
#   tx      started, replayed, in_progress, mismatch      call    finished, replayed, in_progress, mismatch
#   claim   claimed, refused, in_progress                 token   redeemed, used, unknown, expired
#   code    verified, wrong, locked, used, unknown, expired; whatever becomes of the transaction
#   raise, skip   inserted, duplicate                     issue   issued
#   lease   begin: holding, replayed, in_progress, mismatch; then checkpointed, finished, released
#   http, fail   started, or under a lease holding and then finished; else as tx     keep   as call
#   Each attempt of the last three decides whether the request fails; "failed" instead of started or finished
#     says that it did, and that its work is undone.  malformed: no such answer should there be.
# A batch, which has "keys", is claimed if some of them are: those in "claimed".
use strict;
use warnings;
use DBD::Pg qw(:async);
use DBI;
use Digest::MD5 qw(md5_hex);
use Encode qw(encode);
use Fcntl qw(O_APPEND O_CREAT O_WRONLY SEEK_CUR);
use FindBin;
use Getopt::Long;
use JSON::PP;
use List::Util qw(shuffle);
use POSIX ();
use Socket qw(SHUT_RDWR);
use Time::HiRes qw(sleep);
use lib $FindBin::RealBin;
use History;

my %opt = (seed => time, sync => 'on', keys => 0, drain => 60, pause => 5, timeout => 8);
GetOptions(\%opt, 'routes=s', 'history=s', 'clients=i', 'stop=s', 'seed=i', 'sync=s', 'keys=i', 'drain=f', 'pause=f',
	'timeout=f')
  && !@ARGV && !grep({ !defined $opt{$_} } qw(routes history clients stop)) && $opt{sync} =~ /^(on|off|mix)$/
  or die "usage: see the head of $0\n";

my $json = JSON::PP->new->canonical;

# The SQLSTATEs that faults explain: connections, resources, operators, failover,
# I/O, and those that ask for the transaction to be repeated.
my $by_fault = qr/^(08|53|57|40001|40P01|55P03|25006|58030|HANG)/;

# Those that are asked for, by kind and form: by a holder of a lease who has lost it, or has done it
# before, by one who forgets to finish, and by one who takes everything back.
my $leased = qr/^(lease|http|fail) /;
my %by_design = (ID004 => $leased, ID005 => qr/ forgotten$/, ID006 => $leased, UNDONE => qr/^code | undone$/);

my $lease_phases = 3;

# Answers that leave something to be done; "holding" is the begin of a lease.
my $on_the_way = qr/^(in_progress|holding|checkpointed|released)$/;

# ---------------------------------------------------------------- this client

my ($me, $number, $drain_until);
my @queue;    # requests to be repeated, and work of zombies, with the time "due"
my @tokens;    # a key and a token each, as in the file "tokens"
my @codes;    # the same of codes
my %bytes_read;    # of each such file

sub pick
{
	my (@weights) = @_;
	my $total = 0;

	for (my $i = 1; $i < @weights; $i += 2) { $total += $weights[$i] }
	my $at = rand $total;
	while (@weights > 2 && ($at -= $weights[1]) >= 0) { splice @weights, 0, 2 }
	return $weights[0];
}

# ---------------------------------------------------------------- the connection

my ($dbh, $sth, $route, $direct, $can_prepare);
my @warnings;    # of the server, since the last statement began

sub routes
{
	open my $file, '<', $opt{routes} or return;
	my $n = 0;
	return grep { $_->[1] =~ /\S/ } map { chomp; [ ++$n, $_ ] } <$file>;
}

# Let go of the connection without a word to the server, which may not be there.
sub drop_connection
{
	return unless $dbh;
	# DBD::Pg would wait for what is on its way
	if (open my $socket, '+<&', $dbh->{pg_socket}) { shutdown $socket, SHUT_RDWR }
	local $@;
	eval { undef $sth };
	eval { $dbh->disconnect };
	undef $dbh;
	return;
}

# True if there is a connection.
sub connected
{
	return 1 if $dbh && rand() > 0.03;
	drop_connection();
	my @routes = routes() or return 0;

	($route, my $conninfo) = @{ $routes[ rand @routes ] };
	return eval {
		$dbh = DBI->connect("dbi:Pg:connect_timeout=4 $conninfo", undef, undef,
			{ AutoCommit => 1, RaiseError => 1, PrintError => 0, PrintWarn => 1, pg_server_prepare => 0 });
		$dbh->{pg_placeholder_dollaronly} = 1;
		my ($pid, $max_prepared, $standby) =
		  row(q{SELECT pg_backend_pid(), current_setting('max_prepared_transactions'), pg_is_in_recovery()});
		# a pooler makes up its own process numbers
		$direct = $pid == $dbh->{pg_pid};
		$can_prepare = $direct && $max_prepared > 0;
		!$standby || die "standby\n";
	} || do { drop_connection(); 0 };
}

# Run a statement and return its rows.  Dies with its failure: "sqlstate", and
# "certain" if the server itself has said that the statement failed and the
# session goes on.  A lost connection and FATAL are neither.
sub run
{
	my ($sql, @bind) = @_;

	return run_until(clock() + $opt{timeout}, $sql, @bind);
}

sub run_until
{
	my ($until, $sql, @bind) = @_;
	my $rows = eval {
		$sth = $dbh->prepare($sql, { pg_async => PG_ASYNC });
		$sth->execute(@bind);
		until ($dbh->pg_ready)
		{
			my $left = $until - clock();
			$left > 0 or die { sqlstate => 'HANG', certain => 0, error => 'no answer' };
			vec(my $socket = '', $dbh->{pg_socket}, 1) = 1;
			select $socket, undef, undef, $left;
		}
		$dbh->pg_result;
		$sth->{NUM_OF_FIELDS} ? $sth->fetchall_arrayref : [];
	};
	return $rows if $rows;
	die $@ if ref $@;
	# DBD::Pg changes its argument
	my $field = 'severity_nonlocalized';
	my $severity = $dbh->pg_error_field($field) // '';
	# neither the server nor the connection
	die "$@" if $severity eq '' && $dbh->state !~ /^(08|5[378])/;
	die { sqlstate => $dbh->state, certain => $severity eq 'ERROR' ? 1 : 0, error => "$@" };
}

sub row { return @{ run(@_)->[0] // [] } }

# ---------------------------------------------------------------- an attempt

# The attempt in hand.  "point": working, until what is sent may commit:
# committing; prepared, when others decide as well.
my ($point, $sync, $id);

# The effect of the attempt is one row.
sub effect
{
	my ($key, $kind, %more) = @_;

	run('INSERT INTO torture.effects (key, kind, attempt, fence, phase) VALUES ($1, $2, $3, $4, $5)',
		$key, $kind, $id, @more{qw(fence phase)});
	# so that others come in between
	sleep rand 0.02 if rand() < 0.3;
	return;
}

# SET LOCAL only: behind a pooler the session is not ours.
sub begin
{
	my ($levels) = @_;
	my $sql = 'BEGIN';

	$sql .= ' ISOLATION LEVEL ' . pick('READ COMMITTED' => 8, 'REPEATABLE READ' => 1, SERIALIZABLE => 1) if $levels;
	$sql .= q{; SET LOCAL lock_timeout = '2s'};
	$sql .= '; SET LOCAL synchronous_commit = off' if $sync eq 'off';
	$sql .= sprintf '; SET LOCAL statement_timeout = %d', 1 + rand 10 if rand() < 0.03;
	run($sql);
	return;
}

# A statement by which the transaction may have been committed.  A warning says
# that it was, here, and not on the standby.
sub committing
{
	my ($sql, @bind) = @_;

	$point = 'committing' if $point eq 'working';
	@warnings = ();
	# now and then, as if the plug was pulled
	my $rows = run_until(clock() + (rand() < 0.01 ? 0 : $opt{timeout}), $sql, @bind);
	die { sqlstate => '01000', certain => 0, error => "@warnings" } if @warnings;
	return $rows;
}

sub commit
{
	committing('COMMIT');
	# COMMIT of a failed transaction is no error
	die { sqlstate => '25P02', certain => 1, error => $sth->{pg_cmd_status} } if $sth->{pg_cmd_status} ne 'COMMIT';
	return;
}

# In two phases.  Once it is prepared, others may finish it either way.
sub commit_prepared
{
	committing("PREPARE TRANSACTION 'torture $id'");
	# that of a failed transaction is a rollback, and no error
	die { sqlstate => '25P02', certain => 1, error => $sth->{pg_cmd_status} }
	  if $sth->{pg_cmd_status} ne 'PREPARE TRANSACTION';
	$point = 'prepared';
	committing("COMMIT PREPARED 'torture $id'");
	return;
}

# A statement that is a transaction, alone or with BEGIN and COMMIT around it.
sub statement
{
	my ($sql, @bind) = @_;

	return committing($sql, @bind) if $sync eq 'on' && rand() < 0.7;
	begin();
	my $rows = run($sql, @bind);
	commit();
	return $rows;
}

# What became of it, when it failed.
sub failed
{
	my ($request, $form, $failure) = @_;
	my $sqlstate = $failure->{sqlstate};

	return (outcome => 'answered', state => 'duplicate')
	  if $sqlstate eq '23505' && $request->{kind} eq 'raise' && $failure->{certain};
	my $explained = $sqlstate =~ $by_fault || $by_design{$sqlstate} && "$request->{kind} $form" =~ $by_design{$sqlstate};
	return (
		outcome => $point eq 'prepared' || $point eq 'committing' && !$failure->{certain} ? 'unknown'
		: $explained || !$failure->{certain} ? 'failed'
		: 'error',
		sqlstate => $sqlstate,
		# messages may hold what is not UTF-8
		$explained ? () : (error => $failure->{error} =~ s/[^ -~]+/ /gr));
}

# Under "mix".  A commit under on flushes those before it.  So that there is something to lose, in three
# seconds of four only those attempts are under on that will probably write nothing, and get others' answers.
sub mixed_sync
{
	my ($request, %more) = @_;

	return 'off' if clock() % 4 && (!$request->{late} || defined $more{fence});
	return pick(on => 1, off => 1);
}

# One attempt at a request, with its records.  $work does it and puts the result
# into the hash that it gets, which is returned.
sub attempt
{
	my ($request, $work, %more) = @_;
	my %end;

	$id = "$me." . ++$number;
	$point = 'working';
	$sync = $opt{sync} eq 'mix' ? mixed_sync($request, %more) : $opt{sync};
	$request->{key} //= "$request->{of}-$id";
	record((map { $_ => $request->{$_} } grep { defined $request->{$_} } qw(kind key keys request token)),
		%more, client => $me, attempt => $id, sync => $sync, route => $route, try => ++$request->{tries});
	if (eval { $work->(\%end); 1 })
	{
		$end{outcome} = 'answered';
	}
	else
	{
		my $failure = $@;
		die $failure unless ref $failure;
		%end = (%end, failed($request, $more{form} // '', $failure));
		eval { die unless $failure->{certain} && $failure->{sqlstate} !~ /^(08|25006|57P)/; run('ROLLBACK'); 1 }
		  or drop_connection();
	}
	record(%end, attempt => $id);
	$request->{unknown} = 1 if $end{outcome} eq 'unknown';
	push @{ $request->{prepared} }, $id if ($more{form} // '') eq 'prepared' && $end{outcome} eq 'unknown';
	return \%end;
}

# ---------------------------------------------------------------- the kinds
#
# Each does one attempt at a request and returns true when its outcome is known,
# and need not be repeated.

sub known
{
	my ($end) = @_;

	return $end->{outcome} eq 'error' || $end->{outcome} eq 'answered' && $end->{state} !~ $on_the_way;
}

# idem_begin and idem_finish in one transaction.
sub tx
{
	my ($request) = @_;
	my $key = $request->{key};
	# PREPARE flushes under off as well, and that would be too often
	my $prepared = !$can_prepare ? 0 : $opt{sync} eq 'on' ? 4 : 1;
	my $form = pick(plain => 20, wait => 8, savepoint => 8, statement => 8, prepared => $prepared, forgotten => 2);

	return known(attempt($request, sub { tx_statement($request, @_) }, form => $form)) if $form eq 'statement';
	return known(attempt($request,
		sub {
			my ($end) = @_;

			begin(1);
			@$end{qw(state answer)} = row(
				q{SELECT state, torture.answer(result)
				  FROM idem_begin($1, ttl => '30 days', scope => 'torture', request => $2, wait => $3)},
				$key, $request->{request}, $form eq 'wait' ? '200 ms' : undef);
			if ($end->{state} eq 'started')
			{
				tx_undone($key) if $form eq 'savepoint';
				effect($key, 'tx');
				# without a finish it cannot be committed
				tx_finish($key, $id) if $form ne 'forgotten';
				$end->{answer} = $id;
				return commit_prepared() if $form eq 'prepared';
			}
			commit();
		},
		form => $form));
}

sub tx_finish
{
	my ($key, $answer) = @_;

	# now and then of megabytes
	run(q{SELECT idem_finish($1, torture.result($2, $3), scope => 'torture')}, $key, $answer, rand() < 0.01 ? 30000 + int rand 80000 : 0);
	return;
}

# All of the work, taken back.
sub tx_undone
{
	my ($key) = @_;

	run('SAVEPOINT a');
	effect($key, 'undone');
	tx_finish($key, 'undone') if rand() < 0.5;
	run('ROLLBACK TO a');
	return;
}

sub tx_statement
{
	my ($request, $end) = @_;

	@$end{qw(state answer)} = @{ statement(<<'SQL', $request->{key}, $request->{request}, $id)->[0] };
WITH c AS (SELECT * FROM idem_begin($1::text, ttl => '30 days', scope => 'torture', request => $2)),
	o AS (INSERT INTO torture.effects (key, kind, attempt) SELECT $1::text, 'tx', $3 FROM c WHERE c.state = 'started'
		RETURNING attempt),
	f AS (SELECT idem_finish($1::text, to_jsonb(o), scope => 'torture') AS result FROM o)
SELECT c.state, torture.answer(coalesce(f.result, c.result)) FROM c LEFT JOIN f ON true
SQL
	return;
}

# idem_claim, or idem_begin and idem_finish to the same end, or idem_claim_many if it is a batch.
sub claim
{
	my ($request) = @_;
	my $form = $request->{keys} ? 'many' : pick(transaction => 1, statement => 1, begin => 1);

	return known(attempt($request,
		sub {
			my ($end) = @_;

			return claim_by_begin($request, $end) if $form eq 'begin';
			return claim_in_transaction($request, $end) if $form eq 'transaction';
			my $claims = $form eq 'many' ? q{SELECT key FROM idem_claim_many($1::text[], ttl => '30 days', scope => 'torture')}
			  : q{SELECT $1::text AS key WHERE idem_claim($1, ttl => '30 days', scope => 'torture', request => $3)};
			my $rows = statement(
				"INSERT INTO torture.effects (key, kind, attempt) SELECT key, 'claim', \$2 FROM ($claims) c RETURNING key",
				# one of them twice
				$form eq 'many' ? ([ @{ $request->{keys} }, $request->{key} ], $id) : ($request->{key}, $id, $request->{request}));
			$end->{state} = @$rows ? 'claimed' : 'refused';
			$end->{claimed} = [ map { $_->[0] } @$rows ] if $form eq 'many';
		},
		form => $form));
}

sub claim_in_transaction
{
	my ($request, $end) = @_;

	begin(1);
	my ($new) = row(q{SELECT idem_claim($1, ttl => '30 days', scope => 'torture', request => $2)},
		$request->{key}, $request->{request});
	effect($request->{key}, 'claim') if $new;
	commit();
	$end->{state} = $new ? 'claimed' : 'refused';
	return;
}

sub claim_by_begin
{
	my ($request, $end) = @_;
	my %means = (started => 'claimed', replayed => 'refused');

	begin(1);
	my ($state) = row(q{SELECT state FROM idem_begin($1, ttl => '30 days', scope => 'torture', request => $2)},
		@$request{qw(key request)});
	if ($state eq 'started')
	{
		effect($request->{key}, 'claim');
		run(q{SELECT idem_finish($1, scope => 'torture')}, $request->{key});
	}
	commit();
	$end->{state} = $means{$state} // $state;
	return;
}

# idem_call of a function, which learns from a setting of the transaction who calls.
sub call
{
	my ($request) = @_;

	return known(attempt($request,
		sub {
			my ($end) = @_;

			# "s" is of no length, and makes idem_call come second
			@$end{qw(state answer)} = @{ statement(<<'SQL', $request->{key}, $id, pick(none => 2, '200 ms' => 1))->[0] };
SELECT c.state, c.result ->> 'attempt'
FROM left(set_config('torture.attempt', $2, true), 0) s,
	LATERAL idem_call($1::text || s, 'torture.make_effect', jsonb_build_object('key', $1), ttl => '30 days', scope => 'torture',
		wait => nullif($3, 'none')::interval) c
SQL
		}));
}

# A row that the trigger lets pass once: 'raise' and 'skip'.
sub once
{
	my ($request) = @_;
	my ($key, $kind) = @$request{qw(key kind)};
	my $form = $kind eq 'raise' ? pick(statement => 3, savepoint => 1) : 'statement';
	my $insert = 'INSERT INTO torture.' . ($kind eq 'raise' ? 'raised' : 'skipped')
	  . q{ (key, kind, attempt) VALUES ($1, $2, $3) RETURNING key};

	return known(attempt($request,
		sub {
			my ($end) = @_;

			return raise_in_savepoint($end, $insert, $key) if $form eq 'savepoint';
			$end->{state} = @{ statement($insert, $key, $kind, $id) } ? 'inserted' : 'duplicate';
		},
		form => $form));
}

# The transaction goes on after the unique violation.
sub raise_in_savepoint
{
	my ($end, $insert, $key) = @_;

	begin();
	run('SAVEPOINT a');
	my $done = eval { run($insert, $key, 'raise', $id); 1 };
	if (!$done)
	{
		die $@ unless $@->{sqlstate} eq '23505' && $@->{certain};
		run('ROLLBACK TO a');
	}
	$end->{state} = $done ? 'inserted' : 'duplicate';
	commit();
	return;
}

# A token is redeemed in the transaction that it permits an effect in.
sub token
{
	my ($request) = @_;
	my $form = pick(transaction => 1, statement => 1);

	return known(attempt($request,
		sub {
			my ($end) = @_;
			my ($key, $token) = @$request{qw(key token)};

			if ($form eq 'statement')
			{
				($end->{state}) = @{ statement(<<'SQL', $token, $key, $id)->[0] };
WITH t AS (SELECT state FROM idem_token_redeem('torture', $1)),
	o AS (INSERT INTO torture.effects (key, kind, attempt) SELECT $2, 'token', $3 FROM t WHERE state = 'redeemed')
SELECT state FROM t
SQL
				return;
			}
			begin(1);
			($end->{state}) = row(q{SELECT state FROM idem_token_redeem('torture', $1)}, $token);
			effect($key, 'token') if $end->{state} eq 'redeemed';
			commit();
		},
		form => $form));
}

# A guess at a code, right or wrong, committed or taken back; the right one permits an effect.
sub code
{
	my ($request) = @_;
	my $form = pick(wrong => 3, 'wrong-undone' => 3, right => 2, 'right-undone' => 1);
	my $end = attempt($request,
		sub {
			my ($end) = @_;
			my ($key, $code) = @$request{qw(key token)};

			# another last digit
			substr($code, -1) =~ tr/0-9/1-90/ if $form =~ /^wrong/;
			begin(1);
			($end->{state}) = row(q{SELECT state FROM idem_code_verify('torture', $1, $2)}, $key, $code);
			effect($key, 'code') if $end->{state} eq 'verified';
			die { sqlstate => 'UNDONE', certain => 1 } if $form =~ /undone/;
			commit();
		},
		form => $form);

	return known($end) || ($end->{sqlstate} // '') eq 'UNDONE' && !$request->{unknown};
}

my $code_attempts = 4;

# A new token or code; all clients get it once it is known to be there.
sub issue
{
	my ($of) = @_;
	my $token;
	my $request = { kind => 'issue', of => $of };
	my $end = attempt($request,
		sub {
			my ($end) = @_;

			begin();
			($token) = $of eq 'token' ? row(q{SELECT idem_token_issue('torture', '30 days', subject => $1)}, "token-$id")
			  : row(q{SELECT idem_code_issue('torture', $1, '30 days', max_attempts => $2)}, "code-$id", $code_attempts);
			$end->{state} = 'issued';
			commit();
		});

	return if $end->{outcome} ne 'answered';
	sysopen my $file, "$opt{history}/${of}s", O_WRONLY | O_APPEND | O_CREAT or die "${of}s: $!";
	syswrite $file, "$request->{key} $token\n" or die "${of}s: $!";
	return;
}

# ---------------------------------------------------------------- leases
#
# A request takes a transaction to begin, one a phase, and one to finish, and other requests come
# in between.  On the way its client may die, or seem to, or be late: then another takes over.

sub lease
{
	my ($request) = @_;
	my $holding = delete $request->{holding};

	if (!$holding)
	{
		my $begun = lease_begin($request) // return 1;
		$request->{holding} = $begun if $begun->{fence};
		return;
	}
	return lease_left($request, $holding) if rand() < 0.1;
	my $finishing = $holding->{phase} == $lease_phases;
	my $end = lease_step($request, $holding);
	my $repeated = ($end->{sqlstate} // '') eq 'ID006';
	# now and then the same transaction again, as after an answer that was lost
	my $again = rand() < 0.1;

	return 1 if known($end) && ($finishing || $end->{outcome} eq 'error') && !$again;
	$holding->{phase}++ if ($end->{outcome} eq 'answered' || $repeated) && !$finishing && !$again;
	# of a finish that was there before, idem_begin has the answer; who is refused must begin anew
	$request->{holding} = $holding unless $repeated && $finishing || ($end->{sqlstate} // '') eq 'ID004' || rand() < 0.1;
	return;
}

# Fence, and the last phase that is done, if the lease is ours; nothing but a hash if it is not; undef if
# there is nothing to do.
sub lease_begin
{
	my ($request) = @_;
	my %holding;
	my $end = attempt($request,
		sub {
			my ($end) = @_;

			begin(1);
			(@$end{qw(state answer fence)}, my $phase) = row(
				q{SELECT CASE state WHEN 'started' THEN 'holding' ELSE state END, result ->> 'attempt', fence, phase
				  FROM idem_begin($1, ttl => '30 days', scope => 'torture', request => $2, lease => $3)},
				$request->{key}, $request->{request}, sprintf '%d ms', 200 + rand 1800);
			commit();
			%holding = (fence => $end->{fence}, phase => $phase // 0) if $end->{state} eq 'holding';
		},
		form => 'begin');

	return known($end) ? undef : \%holding;
}

# The next phase, or the finish after the last.
sub lease_step
{
	my ($request, $holding, %more) = @_;
	my $key = $request->{key};
	my $fence = $holding->{fence};
	my $phase = $holding->{phase} < $lease_phases ? $holding->{phase} + 1 : 'finish';
	my $finish = q{SELECT idem_finish($1, jsonb_build_object('attempt', $2::text), scope => 'torture', fence => $3)};
	my $checkpoint = q{SELECT idem_checkpoint($1, $2, scope => 'torture', fence => $3, lease => $4)};

	return attempt($request,
		sub {
			my ($end) = @_;
			my $effect_first = rand() < 0.5;

			begin(1);
			effect($key, 'lease', fence => $fence, phase => $phase) if $effect_first;
			if ($phase eq 'finish')
			{
				run($finish, $key, $id, $fence);
				@$end{qw(state answer)} = ('finished', $id);
			}
			else
			{
				run($checkpoint, $key, $phase, $fence, rand() < 0.5 ? '500 ms' : undef);
				$end->{state} = 'checkpointed';
			}
			effect($key, 'lease', fence => $fence, phase => $phase) if !$effect_first;
			commit();
		},
		form => $phase eq 'finish' ? 'finish' : 'phase', fence => $fence, phase => $phase, %more);
}

# The client goes away, with a word or without, and may come back when it should not.
sub lease_left
{
	my ($request, $holding) = @_;

	my $released = rand() < 0.5;

	if ($released)
	{
		attempt($request,
			sub {
				my ($end) = @_;

				begin();
				run(q{SELECT idem_release($1, scope => 'torture', fence => $2)}, $request->{key}, $holding->{fence});
				commit();
				$end->{state} = 'released';
			},
			form => 'release', fence => $holding->{fence});
	}
	return resume_later($request, $holding, $released ? 0.3 : 3);
}

sub resume_later
{
	my ($request, $holding, $within) = @_;

	push @queue, { %$request, kind => 'zombie', of => $request->{kind}, unknown => 0, holding => $holding, due => clock() + rand $within };
	return;
}

# Back from the dead, it tries to go on where it was.  Its request is being done by others, or by itself.
sub zombie
{
	my ($request) = @_;

	$request->{kind} = $request->{of};
	my $step = { lease => \&lease_step, http => \&http_finish, fail => \&fail_finish }->{ $request->{kind} };
	my $end = $step->($request, $request->{holding}, zombie => 1);
	# what it does not know is for a request to find out
	push @queue, { %$request, due => 0, holding => undef } if $end->{outcome} eq 'unknown';
	return 1;
}

# ---------------------------------------------------------------- requests that may fail
#
# Whoever comes first decides whether a request fails: all others get that answer, and a failure
# leaves nothing but its key.  Every third key of a kind is worked on under leases, by all clients.

sub failing { return rand() < 0.4 }

sub under_lease { return $_[0]{key} =~ /(\d+)$/ && $1 % 3 == 0 }

# Begin in one transaction, do all of it in another; on the way its client may die or be late.
sub in_two_steps
{
	my ($request, $begin, $finish) = @_;
	my $holding = delete $request->{holding};

	if (!$holding)
	{
		my $end = $begin->($request);
		return 1 if known($end);
		$request->{holding} = { fence => $end->{fence} } if $end->{outcome} eq 'answered' && $end->{state} eq 'holding';
		return;
	}
	return resume_later($request, $holding, 3) if rand() < 0.15;
	my $end = $finish->($request, $holding);
	return 1 if known($end);
	# with the same fence again, or by a begin, which has the answer
	$request->{holding} = $holding if $end->{sqlstate} !~ /^ID00[46]$/ && rand() < 0.5;
	return;
}

# The work, and its finish under the fence, in a transaction of its own.
sub finish_lease
{
	my ($work, $request, $holding, %more) = @_;
	my %fence = (fence => $holding->{fence}, phase => 'finish');

	return attempt($request,
		sub {
			my ($end) = @_;

			begin(1);
			$work->($request->{key}, $end, %fence);
			$end->{state} = 'finished' if $end->{state} ne 'failed';
			commit();
		},
		form => 'finish', %fence, %more);
}

my $lease_end = sub { sprintf '%d', 200 + rand 1800 };

# idem_fail when all work was taken back, or idem_finish.
sub fail
{
	my ($request) = @_;

	return in_two_steps($request, \&fail_begin, \&fail_finish) if under_lease($request);
	return known(fail_begin($request));
}

sub fail_begin
{
	my ($request) = @_;
	my $lease = under_lease($request);

	return attempt($request,
		sub {
			my ($end) = @_;

			begin(1);
			(@$end{qw(state answer failed)}, my $result, $end->{fence}) = row(
				q{SELECT state, torture.answer(result), failed::int, result::text, fence
				  FROM idem_begin($1, ttl => '30 days', scope => 'torture', request => $2, lease => $3, wait => $4)},
				@$request{qw(key request)}, $lease ? $lease_end->() . ' ms' : undef, rand() < 0.2 ? '200 ms' : undef);
			$end->{told} = md5_hex(encode('UTF-8', $result)) if $end->{state} eq 'replayed';
			if ($end->{state} eq 'started')
			{
				if ($lease) { $end->{state} = 'holding' }
				else { fail_work($request->{key}, $end) }
			}
			commit();
		},
		form => $lease ? 'begin' : 'transaction');
}

sub fail_finish { return finish_lease(\&fail_work, @_) }

sub fail_work
{
	my ($key, $end, %fence) = @_;
	my $fails = failing();
	my $ends = $fails ? 'idem_fail' : 'idem_finish';
	# its own ttl, or that of the claim
	my $more = $fails && rand() < 0.5 ? q{, ttl => '40 days'} : '';

	run('SAVEPOINT work') if $fails;
	effect($key, 'fail', %fence);
	run('ROLLBACK TO work') if $fails;
	my ($told) = row("SELECT $ends(\$1, jsonb_build_object('error', 'sold out', 'attempt', \$2::text), scope => 'torture', fence => \$3$more)::text",
		$key, $id, $fence{fence});
	@$end{qw(state answer told)} = ($fails ? 'failed' : 'started', $id, md5_hex(encode('UTF-8', $told)));
	$end->{failed} = 1 if $fails;
	return;
}

# idem_call of a function that does its work and then may raise an error, which is kept.
sub keep
{
	my ($request) = @_;

	return known(attempt($request,
		sub {
			my ($end) = @_;

			(@$end{qw(state answer failed)}, my $result) = @{ statement(<<'SQL', $request->{key}, $id, failing() ? 'on' : 'off', [ pick('TO001' => 1, 'TO' => 1) ])->[0] };
SELECT c.state, torture.answer(c.result), c.failed::int, c.result::text
FROM left(set_config('torture.attempt', $2, true) || set_config('torture.fails', $3, true), 0) s,
	LATERAL idem_call($1::text || s, 'torture.try_effect', jsonb_build_object('key', $1), ttl => '30 days', scope => 'torture',
		keep_errors => $4) c
SQL
			$end->{told} = md5_hex(encode('UTF-8', $result)) if defined $result;
			$end->{state} = 'failed' if $end->{failed} && $end->{state} eq 'finished';
		}));
}

# ---------------------------------------------------------------- HTTP
#
# What a program in front of an API does: a key, quoted or bare, and a request as it came; then it sends what
# idem_http_begin says, or what it has stored.  A status of 400 or more is a request that has failed.

sub http
{
	my ($request) = @_;

	return in_two_steps($request, \&http_begin, \&http_finish) if under_lease($request);
	return known(http_begin($request));
}

# Status, fields, body: in short, and the same for the answer as it was stored.
sub told
{
	my ($status, $fields, $body) = @_;
	my $text = join '', map { "$_: $fields->{$_}\n" } sort keys %$fields;

	return join ' ', $status, md5_hex(encode('UTF-8', $text)), defined $body ? md5_hex(encode('UTF-8', $body)) : '-';
}

# The same request in another hand, if it is JSON.
sub rewritten
{
	my ($text) = @_;

	return $text if $text !~ /^\{/ || rand() < 0.5;
	my $request = $json->decode($text);
	return sprintf ' { "n" : %d.0, "n":%de0 , "key":"%s"}', $request->{n}, $request->{n}, $request->{key};
}

sub http_begin
{
	my ($request) = @_;
	my $lease = under_lease($request);
	my $form = $lease ? 'begin' : pick(transaction => 9, undone => 1);
	my $key = $request->{key};

	return attempt($request,
		sub {
			my ($end) = @_;

			begin(1);
			my ($run, @answer) = row(
				q{SELECT run::int, status, headers, body, retry_after, replayed::int, fence
				  FROM idem_http_begin($1, $2, 'torture', 2592000, $3, $4)},
				pick($key => 1, qq{"$key"} => 1), rewritten($request->{request}), rand() < 0.2 ? 200 : undef,
				$lease ? $lease_end->() : undef);
			if (!$run) { http_answer($end, @answer) }
			elsif ($lease) { @$end{qw(state fence)} = ('holding', $answer[-1]) }
			else { http_work($key, $end) }
			# the work has failed as it should not: 500, and the client comes again
			die { sqlstate => 'UNDONE', certain => 1 } if $form eq 'undone' && $run;
			commit();
		},
		form => $form);
}

# What was replayed, or why it was not.
sub http_answer
{
	my ($end, $status, $headers, $body, $retry_after, $replayed) = @_;
	my $fields = eval { $json->decode($headers) } // {};
	my $problem = eval { $json->decode($body) } // {};

	if ($replayed)
	{
		@$end{qw(state answer told)} = ('replayed', $fields->{'X-Attempt'}, told($status, $fields, $body));
		$end->{failed} = 1 if $status >= 400;
		return;
	}
	# a problem, and when to come again
	my $well = ref $problem eq 'HASH' && ($problem->{status} // '') eq $status && $fields->{'Content-Type'} eq 'application/problem+json';
	$end->{state} = $well && $status == 409 && $retry_after > 0 && $fields->{'Retry-After'} eq $retry_after ? 'in_progress'
	  : $well && $status == 422 ? 'mismatch' : 'malformed';
	return;
}

sub http_finish { return finish_lease(\&http_work, @_) }

# Bodies that jsonb would write in another way, or not take at all; now and then a large one, or none.
sub http_body
{
	my $euro = "\x{20ac} caf\x{e9} \x{1f4b6}";

	return pick(
		qq{{"order":"$id", "amount":1.50e2,  "b":1,"a":2,"a":3, "t":"\\u00e9\\/$euro"}\r\n} => 4,
		qq{[1.0,1e2,"\\u0000", "\\ud83d"]} => 2,
		"<order id='$id'>$euro</order>\n" => 2,
		' ' => 1,
		'' => 1,
		qq{{"order":"$id", "large":"} . 'x y' x (rand 50000) . qq{"}} => 0.2,
		undef, 1);
}

# The order, and the answer to it.  Fields that are not to be stored are only of the first answer.
sub http_work
{
	my ($key, $end, %fence) = @_;
	my $fails = failing();
	my $status = $fails ? pick(402 => 1, 404 => 1, 422 => 1) : pick(200 => 1, 201 => 2, 204 => 1, 303 => 1);
	my $body = http_body();
	my %fields = ('X-Attempt' => $id, Location => "/orders/$id", 'Content-Type' => 'application/json', 'x-note' => "a  \x{e9}\"\\ b");
	my %first = rand() < 0.5 ? (Date => 'Sat, 28 Nov 2026 23:20:48 GMT', 'SET-COOKIE' => 'session=1', 'content-length' => '1') : ();

	run('SAVEPOINT work') if $fails;
	effect($key, 'http', %fence);
	run('ROLLBACK TO work') if $fails;
	my ($sent) = row(q{SELECT idem_http_finish($1, $2, $3, $4, 'torture', $5)}, pick($key => 1, qq{"$key"} => 1), $status, $body,
		$json->encode({ %fields, %first }), $fence{fence});
	@$end{qw(state answer told)} = ($fails ? 'failed' : 'started', $id, told($sent, \%fields, $body));
	$end->{failed} = 1 if $fails;
	return;
}

# ---------------------------------------------------------------- requests

my %kinds = (tx => \&tx, claim => \&claim, call => \&call, raise => \&once, skip => \&once, token => \&token,
	lease => \&lease, zombie => \&zombie, code => \&code, http => \&http, fail => \&fail, keep => \&keep);
my @weights = (tx => 4, claim => 3, call => 3, raise => 2, skip => 1, token => 2, lease => 2, code => 3, http => 4, fail => 3,
	keep => 2);

# A number that no other client gets, counted from 0: where a byte ends that is appended.
sub next_number
{
	my ($name) = @_;

	sysopen my $file, "$opt{history}/count-$name", O_WRONLY | O_APPEND | O_CREAT or die "count: $!";
	syswrite $file, '.' or die "count: $!";
	return sysseek($file, 0, SEEK_CUR) - 1;
}

# Three submissions of a key come close together; others come at any time.  Also
# returns whether it was probably done before.
sub key_number
{
	my ($kind) = @_;
	my $number = next_number($kind);
	my $n = int($number / 3);

	return (int rand $opt{keys}, 1) if $opt{keys} && $n >= $opt{keys};
	return (int rand $n, 1) if rand() < 0.1;
	return ($n, $number % 3 == 2);
}

sub new_request
{
	my $kind = pick(@weights);
	return code_request() if $kind eq 'code';
	my ($n, $late) = key_number($kind);
	my %request = (kind => $kind, late => $late, key => "$kind-$n", request => $json->encode({ key => "$kind-$n", n => $n }));

	return token_request($n, $late) if $kind eq 'token';
	# HTTP takes also what is no JSON
	$request{request} = "key=$kind-$n&n=$n" if $kind eq 'http' && $n % 4 == 1;
	if ($kind eq 'claim' && rand() < 0.3)
	{
		# in any order, and with the keys that others are at
		$request{keys} = [ shuffle(map { "claim-$_" } $n .. $n + 1 + rand 19) ];
		delete $request{request};
		$request{key} = $request{keys}[0];
	}
	return \%request;
}

# The token of that number; if there are not so many, another is issued.
sub token_request
{
	my ($n, $late) = @_;

	issue('token') if $n >= @tokens;
	push @tokens, issued('token');
	return if !$dbh || !@tokens;
	my ($key, $token) = split ' ', $n < @tokens ? $tokens[$n] : $tokens[ rand @tokens ];
	return { kind => 'token', key => $key, token => $token, late => $late };
}

# One of the last codes; of 15 guesses one is at a new one.
sub code_request
{
	issue('code') if !@codes || rand() < 1 / 15;
	push @codes, issued('code');
	return if !$dbh || !@codes;
	my ($key, $code) = split ' ', $codes[ -1 - rand(@codes < 5 ? @codes : 5) ];
	return { kind => 'code', key => $key, token => $code };
}

# Lines that others, or we, have added since the last look.
sub issued
{
	my ($of) = @_;

	open my $file, '<', "$opt{history}/${of}s" or return;
	seek $file, $bytes_read{$of} // 0, 0;
	my @lines = grep { /\n\z/ } <$file>;
	$bytes_read{$of} += length for @lines;
	return @lines;
}

# When to try again, in seconds.
sub backoff { return 0.01 + rand(0.3) }

# What the history of a client that was killed leaves to be known.
sub take_up
{
	my ($file) = @_;
	my (%attempt, %running, %unknown);

	$number = 0;
	open my $in, '<', $file or return;
	while (my $line = <$in>)
	{
		# the last one may be cut short
		my $record = eval { $json->decode($line) } or next;
		my $start = $attempt{ $record->{attempt} } //= $record;
		my $of = join ' ', @{ $start->{keys} // [ $start->{key} ] };

		$number++ if $start == $record;
		next if $start->{kind} eq 'issue';
		if ($start == $record) { $running{$of} = $start; next }
		delete $running{$of};
		$unknown{$of} = $start if $record->{outcome} eq 'unknown';
		delete $unknown{$of} if $record->{outcome} eq 'answered' && $record->{state} !~ $on_the_way;
	}
	for my $start (values %{ { %unknown, %running } })
	{
		push @queue, { unknown => 1, due => 0, tries => 1,
			map { defined $start->{$_} ? ($_ => $start->{$_}) : () } qw(kind key keys request token) };
	}
	return;
}

# The next request that is due, a new one if there is none; undef when there is nothing to do.
sub next_request
{
	@queue = grep { $_->{unknown} } @queue if $drain_until;
	my $now = clock();
	for my $i (0 .. $#queue)
	{
		return splice @queue, $i, 1 if $queue[$i]{due} <= $now;
	}
	return $drain_until || @queue > 50 ? undef : new_request();
}

# Transactions that were left prepared by this client, one time in two: others may come first.
sub finish_prepared
{
	my ($request) = @_;

	return if !$can_prepare || rand() < 0.5;
	for my $left (@{ $request->{prepared} // [] })
	{
		eval { run("COMMIT PREPARED 'torture $left'"); 1 } || $@->{certain} || drop_connection();
		return unless $dbh;
	}
	return;
}

sub client
{
	srand($opt{seed} * 1000 + $me);
	$SIG{__WARN__} = sub { push @warnings, @_ };

	take_up(history_file($opt{history}, $me));
	open_history($opt{history}, $me);
	while (1)
	{
		$drain_until //= clock() + $opt{drain} if -e $opt{stop};
		last if $drain_until && (!grep({ $_->{unknown} } @queue) || clock() > $drain_until);
		if (!connected()) { sleep 0.1; next }
		my $request = next_request();
		if (!$request) { sleep 0.01; next }
		finish_prepared($request);
		if ($dbh && $kinds{ $request->{kind} }->($request)) { sleep rand(2 * $opt{pause} / 1000); next }
		# a lease takes longer
		$request->{due} = clock() + backoff() * ($request->{kind} eq 'lease' ? 2 : 1);
		push @queue, $request;
	}
	return !grep { $_->{unknown} } @queue;
}

# ---------------------------------------------------------------- all clients

# Ends with 0 if all is known, 1 if not, 2 by a mistake of its own.
sub start
{
	($me) = @_;
	my $pid = fork // die "fork: $!";

	return $pid if $pid;
	$SIG{INT} = $SIG{TERM} = 'DEFAULT';
	my $known = eval { client() };
	print STDERR "client $me: ", $@ ? (ref $@ ? $json->encode($@) : $@) : "outcomes are unknown still\n" unless $known;
	POSIX::_exit($known ? 0 : $@ ? 2 : 1);
}

$SIG{PIPE} = 'IGNORE';
my %children;
my $rc = 0;

$SIG{INT} = $SIG{TERM} = sub { kill 'TERM', keys %children; exit 1 };
-d $opt{history} || mkdir $opt{history} or die "$opt{history}: $!";
$children{ start($_) } = $_ for 1 .. $opt{clients};
while (%children && (my $pid = waitpid -1, 0) > 0)
{
	my $n = delete $children{$pid} // next;
	# killed, which is one of the faults
	if ($? & 127) { $children{ start($n) } = $n }
	else { $rc = 1 if $? }
}
exit $rc;
