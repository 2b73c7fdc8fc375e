
# A client that speaks PostgreSQL's protocol itself: parameters with any type or none, as
# text or binary, and NULLs, which psql and pgbench cannot send.

package IdemWire;

use strict;
use warnings;

use IO::Socket::UNIX;

sub new
{
	my ($class, $node, $database, %settings) = @_;
	my $socket = IO::Socket::UNIX->new(Peer => $node->host . '/.s.PGSQL.' . $node->port) or die "cannot connect: $!\n";
	my $self = bless { socket => $socket }, $class;
	my $startup = join('', map { "$_\0" } user => scalar(getpwuid($<)), database => $database, %settings);

	print {$socket} pack('NN a* x', 9 + length $startup, 196608, $startup);
	$socket->flush;
	$self->answer;
	return $self;
}

sub message { my ($type, $content) = @_; return $type . pack('N', 4 + length $content) . $content }

# $parameters: [ type's OID or 0, value or undef, binary? ]...
sub send_query
{
	my ($self, $sql, @parameters) = @_;
	my @values = map { defined $_->[1] ? pack('N/a*', $_->[1]) : pack('N', 0xffffffff) } @parameters;

	print { $self->{socket} } message('P', pack('Z* Z* n N*', '', $sql, scalar @parameters, map { $_->[0] } @parameters)),
	  message('B', pack('Z* Z* n n*', '', '', scalar @parameters, map { $_->[2] ? 1 : 0 } @parameters) . pack('n', scalar @parameters) . join('', @values) . pack('n', 0)),
	  message('D', "P\0"), message('E', pack('Z* N', '', 0)), message('S', '');
	$self->{socket}->flush;
	return;
}

sub bytes
{
	my ($self, $n) = @_;
	my $got = '';

	while (length $got < $n)
	{
		my $read = read($self->{socket}, $got, $n - length $got, length $got);
		die "connection lost\n" unless $read;
	}
	return $got;
}

# { rows => [[...]], types => [OIDs of the columns], tag => of the command, error => SQLSTATE or undef }
sub answer
{
	my ($self) = @_;
	my %answer = (rows => []);

	while (1)
	{
		my ($type, $len) = unpack('a N', $self->bytes(5));
		my $content = $self->bytes($len - 4);

		return \%answer if $type eq 'Z';
		($answer{error}) = $content =~ /(?:^|\0)C([0-9A-Z]{5})\0/ if $type eq 'E';
		$answer{tag} = unpack('Z*', $content) if $type eq 'C';
		if ($type eq 'T')
		{
			my ($n, $rest) = unpack('n a*', $content);

			$answer{types} = [ map { (my (undef, undef, undef, $oid), $rest) = unpack('Z* N n N x8 a*', $rest); $oid } 1 .. $n ];
		}
		if ($type eq 'D')
		{
			my ($n, $rest) = unpack('n a*', $content);
			my @row;

			for (1 .. $n)
			{
				my $size = unpack('N', $rest);

				push @row, $size == 0xffffffff ? undef : substr($rest, 4, $size);
				$rest = substr($rest, $size == 0xffffffff ? 4 : 4 + $size);
			}
			push @{ $answer{rows} }, \@row;
		}
	}
}

sub query { my ($self, @query) = @_; $self->send_query(@query); return $self->answer }

1;
