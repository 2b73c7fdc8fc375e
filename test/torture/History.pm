# The file in which a client of the torture writes down what it does, outside the server;
# clients.pl has the format.
package History;
use strict;
use warnings;
use Exporter 'import';
use Fcntl qw(O_APPEND O_CREAT O_WRONLY);
use JSON::PP;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

our @EXPORT = qw(clock history_file open_history record);

my $json = JSON::PP->new->canonical;
my $log;

# Seconds, of a clock that the processes of a machine share.
sub clock { return clock_gettime(CLOCK_MONOTONIC) }

sub history_file
{
	my ($dir, $client) = @_;

	return sprintf '%s/client-%03d.jsonl', $dir, $client;
}

sub open_history
{
	my $file = history_file(@_);

	sysopen $log, $file, O_WRONLY | O_APPEND | O_CREAT or die "$file: $!";
	# a killed predecessor may have left half a line
	syswrite $log, "\n" if -s $log;
	return;
}

sub record
{
	my (%record) = @_;

	$record{t} = int(clock() * 1e9);
	my $line = $json->encode(\%record) . "\n";
	# in one piece, and out of this process at once
	syswrite($log, $line) == length $line or die "history: $!";
	return;
}

1;
