# The clients of scripts/demo: submit every order several times, concurrently,
# while a killer terminates their backends; then check what the tables say.
#
#   demo-clients.pl [--unprotected] ROLE ORDERS COPIES CLIENTS SECONDS CLOSING
#
# The clients are ROLE, the rest is the superuser that libpq's environment names.
# With --unprotected the clients order without the extension, and duplicates are
# what is expected.  After SECONDS no more requests are begun: a slow machine does
# less.  File CLOSING gets a line that says how it ended.
#
# A request travels as a client of an API would have it: its key is fixed once,
# and it is repeated with that key until there is an answer.
use strict;
use warnings;
use DBD::Pg qw(:async);
use DBI;
use IO::Handle;
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);

my $unprotected = $ARGV[0] eq '--unprotected' && shift;
my ($role, $orders, $copies, $clients, $most_seconds, $closing) = @ARGV;
my $submissions = $orders * $copies;

my $began = time;
my $deadline = $began + $most_seconds;

# Backends are killed as there is progress, one for so many answers.  At a fixed rate
# the clients of a slow machine would do nothing but connect.
use constant ANSWERS_PER_KILL => 30;

STDOUT->autoflush;
$SIG{PIPE} = 'IGNORE';

sub connect_as
{
	my ($user, $name) = @_;

	return DBI->connect("dbi:Pg:application_name=$name", $user, '',
		{ AutoCommit => 1, RaiseError => 1, PrintError => 0, PrintWarn => 0, pg_server_prepare => 1 });
}

sub order_key { return sprintf 'order-%05d', $_[0] }

# Half of the copies come close together, as double clicks and impatient
# proxies send them; the others at any time, as a job that retries does.
sub shuffled_requests
{
	my @requests;

	for my $order (1 .. $orders)
	{
		my $at = rand;
		for my $copy (1 .. $copies)
		{
			push @requests,
			  { order => $order, copy => $copy, at => $copy <= $copies / 2 + 1 ? $at + rand(0.5 / $orders) : rand };
		}
	}
	return sort { $a->{at} <=> $b->{at} } @requests;
}

# One attempt at a request.  Returns what became of it: started or replayed with
# the order's id, or in_progress.  Dies where PostgreSQL does; $$where then
# shows how far the transaction had come.
sub attempt
{
	my ($dbh, $key, $customer, $amount, $where) = @_;
	my ($state, $id) = ('started');

	$$where = 'idle';
	$dbh->begin_work;
	unless ($unprotected)
	{
		($state, $id) = $dbh->selectrow_array(
			q{SELECT state, result ->> 'order'
			  FROM idem_begin($1, ttl => '1 hour', scope => 'shop',
			                  request => jsonb_build_object('customer', $2::text, 'amount', $3::numeric))},
			undef, $key, $customer, $amount);
	}
	if ($state eq 'started')
	{
		$$where = 'working';
		($id) = $dbh->selectrow_array(
			q{INSERT INTO orders (order_key, customer, amount) VALUES ($1, $2, $3) RETURNING id},
			undef, $key, $customer, $amount);
		$dbh->do(q{SELECT idem_finish($1, jsonb_build_object('order', $2::bigint), scope => 'shop')},
			undef, $key, $id)
		  unless $unprotected;
		$$where = 'committing';
		hang_up($dbh, $where) if rand() < 0.03;
	}
	$dbh->commit;
	return ($state, $id);
}

# What a timeout or a pulled plug does: COMMIT is on its way, its answer will
# never be read, and the client cannot know whether there is an order.
sub hang_up
{
	my ($dbh, $where) = @_;

	$$where = 'hung_up';
	$dbh->do('COMMIT', { pg_async => PG_ASYNC });
	POSIX::close($dbh->{pg_socket});
	die "hung up\n";
}

# A client: takes requests from the queue until it is empty, and writes what
# happens to the pipe.  A line is shorter than PIPE_BUF, so lines do not mix.
sub client
{
	my ($queue, $out) = @_;
	my $dbh;

	while (time < $deadline && sysread $queue, my $record, 16)
	{
		my ($order, $copy) = split ' ', $record;
		my $key = order_key($order);

		syswrite $out, "request $key $copy\n";
		my ($customer, $amount) = ('customer ' . $order % 97, sprintf '%.2f', 5 + $order % 200 + $order % 100 / 100);

		while (1)
		{
			my $where = 'connecting';
			my ($state, $id) = eval {
				$dbh //= connect_as($role, 'demo_client');
				attempt($dbh, $key, $customer, $amount, \$where);
			};
			if (my $error = $@)
			{
				my $sqlstate = $DBI::state // '';

				if ($dbh && $where ne 'hung_up' && $dbh->ping > 0)
				{
					# serialization failure: the transaction is to be repeated
					die $error unless $sqlstate eq '40001';
					$dbh->rollback;
					syswrite $out, "repeat\n";
				}
				else
				{
					die $error if !$dbh && $sqlstate !~ /^(57|53|08)/;
					# its end is no news
					@$dbh{qw(RaiseError Warn)} = (0, 0) if $dbh;
					undef $dbh;
					syswrite $out, "cut $where $key\n";
				}
				next;
			}
			if ($state eq 'in_progress')
			{
				syswrite $out, "in_progress\n";
				sleep 0.002 + rand 0.02;
				next;
			}
			die "unexpected state $state of $key\n" unless $state eq 'started' || $state eq 'replayed';
			syswrite $out, "answer $key $copy $state $id\n";
			last;
		}
	}
	$dbh->disconnect if $dbh;
}

# Terminates a client's backend for each byte of the pipe, at random, preferably one
# that has written and not yet committed.
sub killer
{
	my ($orders, $out) = @_;
	my $dbh = connect_as('', 'demo_killer');

	while (sysread $orders, my $one, 1)
	{
		sleep rand 0.015;
		my ($killed) = $dbh->selectrow_array(
			q{SELECT pg_terminate_backend(pid)
			  FROM (SELECT pid FROM pg_stat_activity WHERE application_name = 'demo_client'
			        ORDER BY (random() < 0.7 AND backend_xid IS NOT NULL) DESC, random() LIMIT 1) victim});
		syswrite $out, "killed\n" if $killed;
	}
}

# ---------------------------------------------------------------- the run

my ($queue, $feed, $events, $out, $kill_orders, $kill);
pipe $queue, $feed or die;
pipe $events, $out or die;
pipe $kill_orders, $kill or die;

sub start
{
	my ($work) = @_;
	my $pid = fork // die "fork: $!";

	return $pid if $pid;
	srand;
	close $events;
	close $kill;
	# libpq reports a backend killed while it is being connected to on its own
	open my $err, '>&', \*STDERR;
	open STDERR, '>', '/dev/null';
	my $ok = eval { $work->(); 1 };
	syswrite $err, "client: $@" unless $ok;
	POSIX::_exit($ok ? 0 : 1);
}

my %child;
$child{ start(sub { close $feed; client($queue, $out) }) } = 'client' for 1 .. $clients;
# fixed-width records, read whole: the pipe hands each request to the next free client
my $feeder = start(
	sub {
		close $queue;
		syswrite $feed, sprintf("%8d %6d ", @$_{qw(order copy)}) for shuffled_requests();
	});
$child{$feeder} = 'feeder';
close $queue;
close $feed;
my $killer = start(sub { killer($kill_orders, $out) });
close $out;
close $kill_orders;
# a killer that has more to do than it can is not waited for
$kill->blocking(0);

my (@requests, @answers, %n, %unknown);
my $shown = $began;

sub progress
{
	my ($last) = @_;
	my $now = time;

	return unless $last || $now - $shown >= (-t STDOUT ? 0.2 : 1);
	$shown = $now;
	printf "%s%6d of %d answered, %d backends killed, %.1f s%s", -t STDOUT ? "\r" : '', scalar @answers, $submissions,
	  $n{killed} // 0, $now - $began, -t STDOUT && !$last ? '' : "\n";
}

# The killer stops last and then the pipe is at its end.
my $died = 0;
my $stop = sub {
	while ((my $pid = waitpid -1, WNOHANG) > 0)
	{
		delete $child{$pid};
		$died++ if $? && $pid != $killer;
	}
	kill 'KILL', $killer if !%child || $died;
	kill 'KILL', keys %child if $died;
};
$SIG{CHLD} = sub { };
while (1)
{
	# a signal interrupts the read
	my $got = sysread $events, my $chunk, 65536;
	$stop->();
	next unless defined $got;
	last unless $got;
	our $rest .= $chunk;
	while ($rest =~ s/^(.*)\n//)
	{
		my ($what, @more) = split ' ', $1;

		$n{$what}++;
		push @requests, \@more if $what eq 'request';
		if ($what eq 'answer')
		{
			push @answers, \@more;
			syswrite $kill, '.' if rand() < 1 / ANSWERS_PER_KILL;
		}
		if ($what eq 'cut')
		{
			$n{"cut $more[0]"}++;
			$unknown{ $more[1] }++ if $more[0] =~ /^(committing|hung_up)$/;
		}
	}
	progress(0);
}
progress(1);
my $seconds = time - $began;
if ($died)
{
	print "A client gave up.\n";
	exit 1;
}

# ---------------------------------------------------------------- the figures

my $dbh = connect_as('', 'demo');

# the clients' requests and answers, beside what the database holds
sub fill
{
	my ($table, $columns, @rows) = @_;

	$dbh->do("CREATE TEMP TABLE $table ($columns)");
	$dbh->do("COPY $table FROM STDIN");
	$dbh->pg_putcopydata(join("\t", @$_) . "\n") for @rows;
	$dbh->pg_putcopyend;
	return;
}
fill('requests', 'order_key text, copy int', @requests);
fill('answers', 'order_key text, copy int, state text, order_id bigint', @answers);
fill('unknown', 'order_key text', map { [$_] } keys %unknown);

sub figure { return $dbh->selectrow_array($_[0]) }

sub row { printf "  %-54s %8s\n", @_ }

my $wrong = 0;

sub must_be
{
	my ($what, $expected, $query) = @_;
	my $is = figure($query);

	row($what, $is == $expected ? $is : "$is  WRONG, should be $expected");
	$wrong++ if $is != $expected;
}

sub thousands { return scalar reverse(reverse($_[0]) =~ s/(\d{3})(?=\d)/$1,/gr) }

# the line that the demo ends with
sub close_with
{
	open my $file, '>', $closing or die "$closing: $!\n";
	print $file "$_[0]\n";
	close $file or die "$closing: $!\n";
	return;
}

if (@requests < $submissions)
{
	die "requests are missing\n" if $seconds < $most_seconds;
	printf "\nThis machine is slow: after %d seconds no more requests were begun.\n", $most_seconds;
	$submissions = @requests;
	$orders = figure('SELECT count(DISTINCT order_key) FROM requests');
}

print "\nWhat happened\n";
row('requests, each repeated by its client until answered', $submissions);
unless ($unprotected)
{
	row('  started: the order was placed now', figure(q{SELECT count(*) FROM answers WHERE state = 'started'}));
	row('  replayed: the stored answer', figure(q{SELECT count(*) FROM answers WHERE state = 'replayed'}));
}
print "  repeated because\n";
row('  in progress elsewhere', $n{in_progress} // 0) unless $unprotected;
row('  serialization failure', $n{repeat}) if $n{repeat};
row('  the backend was killed', ($n{cut} // 0) - ($n{'cut hung_up'} // 0));
row('    in the middle of the work, begun and not committed', $n{'cut working'} // 0);
row('    during COMMIT', $n{'cut committing'} // 0);
row('  the client hung up after sending COMMIT', $n{'cut hung_up'} // 0);
row('    the order was there, the repeat got its answer', figure(
	q{SELECT count(*) FROM unknown u
	  WHERE NOT EXISTS (SELECT FROM answers a WHERE a.order_key = u.order_key AND a.state = 'started')}))
  unless $unprotected;
row('backends killed', $n{killed} // 0);
row('seconds', sprintf '%.1f', $seconds);

if ($unprotected)
{
	my ($placed, $duplicates) = $dbh->selectrow_array('SELECT count(*), count(*) - count(DISTINCT order_key) FROM orders');

	print "\nWhat the table says\n";
	row('orders that customers wanted', $orders);
	row('orders', $placed);
	row('duplicates: orders beyond the first of a key', $duplicates);
	row('  acknowledged to a client', $submissions - $orders);
	row('  acknowledged to no client', $placed - $submissions);
	row('most orders of one key', figure('SELECT max(n) FROM (SELECT count(*) AS n FROM orders GROUP BY order_key) o'));
	$dbh->disconnect;
	unless ($duplicates)
	{
		print "\nNo duplicates, which is not what this was to show.\n";
		exit 1;
	}
	close_with(sprintf 'without the extension, %s orders from %s submissions became %s: %s duplicates; scripts/demo does it with the extension',
		map { thousands($_) } $orders, $submissions, $placed, $duplicates);
	exit 0;
}

$dbh->do(q{CREATE TEMP VIEW keys AS SELECT * FROM idem_keys WHERE scope = 'shop'});

print "\nWhat the tables say\n";
must_be('orders', $orders, 'SELECT count(*) FROM orders');
must_be('submissions answered', $submissions, 'SELECT count(*) FROM (SELECT DISTINCT order_key, copy FROM answers) a');
must_be('answers, in all', $submissions, 'SELECT count(*) FROM answers');
must_be('duplicates: orders beyond the first of a key', 0, 'SELECT count(*) - count(DISTINCT order_key) FROM orders');
must_be('lost: answered orders that are not there', 0,
	'SELECT count(*) FROM answers a WHERE NOT EXISTS (SELECT FROM orders o WHERE o.id = a.order_id)');
must_be('answers that name another order than their key\'s', 0,
	'SELECT count(*) FROM answers a JOIN orders o ON o.order_key = a.order_key WHERE a.order_id <> o.id');
must_be('orders placed more than once by the answers', 0,
	q{SELECT count(*) FROM (SELECT FROM answers WHERE state = 'started' GROUP BY order_key HAVING count(*) > 1) a});
must_be('keys, finished, with their order as result', $orders,
	q{SELECT count(*) FROM keys k JOIN orders o ON o.order_key = k.key
	  WHERE k.finished_at IS NOT NULL AND k.result = jsonb_build_object('order', o.id)});
must_be('keys without an order', 0,
	'SELECT count(*) FROM keys k WHERE NOT EXISTS (SELECT FROM orders o WHERE o.order_key = k.key)');
must_be('orders without a key', 0,
	'SELECT count(*) FROM orders o WHERE NOT EXISTS (SELECT FROM keys k WHERE k.key = o.order_key)');
$dbh->disconnect;
close_with(sprintf 'demo passed: %s orders from %s submissions, 0 duplicates, 0 lost', map { thousands($_) } $orders, $submissions);
exit($wrong ? 1 : 0);
