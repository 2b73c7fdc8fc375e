# Holds the history of clients.pl against the tables that they worked on.
#
#   check.pl --history DIR --dsn CONNINFO [--sync on|off|mix] [--lost-tail] [--guesses-kept] [--bound SECONDS]
#
# --dsn        as a superuser
# --lost-tail  the server has crashed, and with synchronous_commit off its newest commits may be lost
# --guesses-kept  guesses that were rolled back survive a clean restart
# --bound      after so long no key may be in progress (10)
#
# Prints figures, each violation on a line "violation: KIND: WHAT", and last "N requests, N keys, N effects,
# N violations".  Exit code 0 if there are no violations, and there was enough work for a verdict.
use strict;
use warnings;
use DBI;
use FindBin;
use Getopt::Long;
use JSON::PP;
use lib $FindBin::RealBin;
use CheckHistory;

my %opt = (sync => 'on', bound => 10);
GetOptions(\%opt, 'history=s', 'dsn=s', 'sync=s', 'lost-tail', 'guesses-kept', 'bound=f') && !@ARGV && defined $opt{history} && defined $opt{dsn}
  or die "usage: see the head of $0\n";

my $json = JSON::PP->new;
my $check = CheckHistory->new(lost_tail => $opt{'lost-tail'}, guesses_kept => $opt{'guesses-kept'});
my %request;    # of each key

for my $file (sort glob "$opt{history}/client-*.jsonl")
{
	open my $in, '<', $file or die "$file: $!";
	while (my $line = <$in>)
	{
		# a client that was killed may have left a line cut short, before it began what is in it
		my $record = eval { $json->decode($line) } or next;
		die "$file: an attempt under $record->{sync}\n" if $record->{sync} && $opt{sync} !~ /^(mix|$record->{sync})$/;
		$check->add($record);
		next unless $record->{client} && $record->{kind} !~ /^(token|code|issue)$/;
		# idem_call makes its own, and HTTP takes also what is no JSON
		my $known = $record->{kind} !~ /^(call|keep)$/ && ($record->{request} // '') =~ /^\s*\{/;
		$request{$_} //= $known ? $record->{request} : undef for @{ $record->{keys} // [ $record->{key} ] };
	}
}

my $dbh = DBI->connect("dbi:Pg:$opt{dsn}", undef, undef, { RaiseError => 1, PrintError => 0, AutoCommit => 0 });
# of one moment
$dbh->do('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ');
my @tables = map { $dbh->selectall_arrayref("SELECT * FROM torture.$_", { Slice => {} }) } qw(all_effects all_keys);
$dbh->rollback;
probe($dbh);
$dbh->disconnect;

# Begins every key, and takes it back; those that are in progress again and again.  Few at a time, as each takes a lock.
sub probe
{
	my ($dbh) = @_;
	my @keys = sort keys %request;
	my $until = time + $opt{bound};
	my $begin = $dbh->prepare(q{SELECT state FROM idem_begin($1, scope => 'torture', request => $2)});

	$dbh->do('SET synchronous_commit = local');
	while (@keys)
	{
		my @held;

		while (my @some = splice @keys, 0, 500)
		{
			for my $key (@some)
			{
				my ($state) = $dbh->selectrow_array($begin, undef, $key, $request{$key});
				$check->probed($key, $state);
				push @held, $key if $state eq 'in_progress';
			}
			$dbh->rollback;
		}
		last if !@held || time > $until;
		@keys = @held;
		# of those who hold them, leases end
		select undef, undef, undef, 0.2;
	}
	return;
}

my @violations = $check->violations(@tables);
my $n = $check->figures;
printf "%10d %s\n", $n->{$_}, $_ for sort keys %$n;
print "violation: $_->[0]: $_->[1]\n" for @violations;

my @idle = grep { !$n->{"effects of $_"} } qw(tx claim call raise skip token lease code http fail keep);
push @idle, map { "failures of $_" } grep { !$n->{"failures of $_"} } qw(http fail keep);
my $enough = $n->{acknowledged} >= 100 && !@idle;
print "not enough work to tell: $n->{acknowledged} effects acknowledged", (map { ", no $_" } @idle), "\n" unless $enough;
printf "%d requests, %d keys, %d effects, %d violations\n", @$n{qw(requests keys effects)}, scalar @violations;
exit(@violations || !$enough ? 1 : 0);
