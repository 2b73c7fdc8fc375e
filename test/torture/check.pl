# Holds the history of clients.pl against the tables that they worked on.
#
#   check.pl --history DIR --dsn CONNINFO [--sync on|off|mix] [--lost-tail]
#
# --dsn        as a superuser
# --lost-tail  the server has crashed, and with synchronous_commit off its newest commits may be lost
#
# Prints figures, each violation on a line "violation: KIND: WHAT", and last "N requests, N keys, N effects,
# N violations".  Exit code 0 if there are no violations, and there was enough work to tell.
use strict;
use warnings;
use DBI;
use FindBin;
use Getopt::Long;
use JSON::PP;
use lib $FindBin::RealBin;
use CheckHistory;

my %opt = (sync => 'on');
GetOptions(\%opt, 'history=s', 'dsn=s', 'sync=s', 'lost-tail') && !@ARGV && defined $opt{history} && defined $opt{dsn}
  or die "usage: see the head of $0\n";

my $json = JSON::PP->new;
my $check = CheckHistory->new(lost_tail => $opt{'lost-tail'});

for my $file (sort glob "$opt{history}/client-*.jsonl")
{
	open my $in, '<', $file or die "$file: $!";
	while (my $line = <$in>)
	{
		# a client that was killed may have left a line cut short, before it began what is in it
		my $record = eval { $json->decode($line) } or next;
		die "$file: an attempt under $record->{sync}\n" if $record->{sync} && $opt{sync} !~ /^(mix|$record->{sync})$/;
		$check->add($record);
	}
}

my $dbh = DBI->connect("dbi:Pg:$opt{dsn}", undef, undef, { RaiseError => 1, PrintError => 0, AutoCommit => 0 });
# of one moment
$dbh->do('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ');
my @tables = map { $dbh->selectall_arrayref("SELECT * FROM torture.$_", { Slice => {} }) } qw(all_effects all_keys);
$dbh->rollback;
$dbh->disconnect;

my @violations = $check->violations(@tables);
my $n = $check->figures;
printf "%10d %s\n", $n->{$_}, $_ for sort keys %$n;
print "violation: $_->[0]: $_->[1]\n" for @violations;

my @idle = grep { !$n->{"effects of $_"} } qw(tx claim call raise skip token lease);
my $enough = $n->{acknowledged} >= 100 && !@idle;
print "not enough work to tell: $n->{acknowledged} effects acknowledged", (map { ", no $_" } @idle), "\n" unless $enough;
printf "%d requests, %d keys, %d effects, %d violations\n", @$n{qw(requests keys effects)}, scalar @violations;
exit(@violations || !$enough ? 1 : 0);
