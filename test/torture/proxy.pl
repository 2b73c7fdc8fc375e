# The network between client and server, on a unix socket, which can fail.
#
#   proxy.pl FOLDER
#
# Listens as FOLDER/.s.PGSQL.5432 and obeys datagrams to FOLDER/control:
#   target FOLDER   where the server is that new connections go to
#   cut N           of the next N commits the replies are lost, with the connections
#   freeze SECONDS  nothing passes
#   reset N         so many connections break
# What it has done it writes to FOLDER/log, a line each.
use strict;
use warnings;
use IO::Handle;
use IO::Select;
use IO::Socket::UNIX;
use Socket qw(SOCK_DGRAM SOCK_STREAM);
use Time::HiRes qw(time);

my ($dir) = @ARGV;
my ($target, $cuts, $frozen_until) = ('', 0, 0);
my %side;    # of each socket: its connection, and which end of it
my $select = IO::Select->new;

$SIG{PIPE} = 'IGNORE';
# a predecessor's
unlink "$dir/.s.PGSQL.5432", "$dir/control";
my $listener = IO::Socket::UNIX->new(Type => SOCK_STREAM, Local => "$dir/.s.PGSQL.5432", Listen => 100) or die "listen: $!";
my $control = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => "$dir/control") or die "control: $!";
open my $log, '>>', "$dir/log" or die "log: $!";
$log->autoflush;
$select->add($listener, $control);

sub done { print $log "$_[0]\n"; return }

sub disconnect
{
	my ($connection) = @_;

	for my $socket (grep { defined } delete @$connection{qw(client server)})
	{
		delete $side{$socket};
		$select->remove($socket);
		close $socket;
	}
	return;
}

sub connect_client
{
	my $client = $listener->accept or return;
	my $server = IO::Socket::UNIX->new(Type => SOCK_STREAM, Peer => "$target/.s.PGSQL.5432") or return;
	my $connection = { client => $client, server => $server, unread => '', tail => '', text => '' };

	$side{$client} = [ $connection, 'client' ];
	$side{$server} = [ $connection, 'server' ];
	$select->add($client, $server);
	return;
}

# Does a message end a transaction for good?  Outside of a transaction block
# each statement does; of these, those that make a claim are of interest.
sub commits
{
	my ($connection, $text) = @_;

	return 1 if $text =~ /^\s*(COMMIT|END|PREPARE TRANSACTION)\b/i;
	return $connection->{tail} =~ /Z\x00\x00\x00\x05I\z/ && $text =~ /\bidem_/ && $text !~ /^\s*BEGIN\b/i;
}

# Follow what the client says; true if a commit is among it.
sub has_commit
{
	my ($connection, $bytes) = @_;
	my $found = 0;

	$connection->{unread} .= $bytes;
	while (1)
	{
		# the first message has no type
		my $head = $connection->{started} ? 1 : 0;
		last if length $connection->{unread} < $head + 4;
		my $length = $head + unpack "x$head N", $connection->{unread};
		last if length $connection->{unread} < $length;
		my $message = substr $connection->{unread}, 0, $length, '';

		$connection->{started} = 1;
		next unless $head;
		if ($message =~ /^Q....(.*?)\0/s) { $found ||= commits($connection, $1) }
		elsif ($message =~ /^P....[^\0]*\0(.*?)\0/s) { $connection->{text} = $1 }
		elsif ($message =~ /^S/) { $found ||= commits($connection, $connection->{text}) }
	}
	return $found;
}

sub forward
{
	my ($socket) = @_;
	my ($connection, $from) = @{ $side{$socket} };
	my $to = $connection->{ $from eq 'client' ? 'server' : 'client' };

	# the server has done it, and no client gets the reply
	my $read = sysread $socket, my $bytes, 65536;
	return disconnect($connection) if !$read || $connection->{cut};
	my $cut = $from eq 'client' && has_commit($connection, $bytes) && $cuts > 0;
	return disconnect($connection) unless (syswrite($to, $bytes) // 0) == length $bytes;
	$connection->{tail} = substr $connection->{tail} . $bytes, -6 if $from eq 'server';
	return unless $cut;
	$cuts--;
	done('cut');
	# half of the time the connection breaks before the server has done it
	return disconnect($connection) if rand() < 0.5;
	$connection->{cut} = 1;
	return;
}

sub obey
{
	$control->recv(my $command, 1000);
	my ($what, $how) = split ' ', $command, 2;

	if ($what eq 'target') { $target = $how }
	elsif ($what eq 'cut') { $cuts = $how }
	elsif ($what eq 'freeze') { $frozen_until = time + $how; done('freeze') }
	elsif ($what eq 'reset')
	{
		for (1 .. $how)
		{
			my @all = values %side or last;
			disconnect($all[ rand @all ][0]);
			done('reset');
		}
	}
	return;
}

while (1)
{
	my $left = $frozen_until - time;
	if ($left > 0)
	{
		obey() if IO::Select->new($control)->can_read($left);
		next;
	}
	for my $socket ($select->can_read)
	{
		if ($socket == $control) { obey() }
		elsif ($socket == $listener) { connect_client() }
		elsif ($side{$socket}) { forward($socket) }
	}
}
