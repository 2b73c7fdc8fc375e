
# The SQL of 0.1.0 with this library, before ALTER EXTENSION ... UPDATE: the
# regression tests of 0.1.0 still get the answers that they got then, but for
# the differences in accepted.diff.

use strict;
use warnings;

use Cwd qw(getcwd);
use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use File::Basename qw(basename dirname);
use PostgreSQL::Test::Utils;
use Test::More;

my $old = "$FindBin::RealBin/../test/upgrade/0.1.0";
my $dir = PostgreSQL::Test::Utils::tempdir();

# as 0.1.0's Makefile has them: some count the rows that others leave
my @tests = qw(install begin_finish savepoints claim bad_input drivers operate store lease call once once_partitions
  token code purge);
is_deeply([ sort @tests ], [ sort map { basename($_, '.sql') } glob "$old/sql/*.sql" ], 'every test is run');

# A copy that makes the extension as it was then.  A wait for a running lease
# ended at once in 0.1.0; now it lasts.  PostgreSQL 19 writes a pg_lsn with leading zeros.
for my $file (glob "$old/{sql,expected}/*")
{
	my $text = slurp_file($file);
	my $to = "$dir/" . basename(dirname($file));

	$text =~ s/^(CREATE EXTENSION (?:IF NOT EXISTS )?idempotency)\b/$1 VERSION '0.1.0'/gm;
	$text =~ s/(idem_call\('leased', .*wait => ')1 hour/${1}1 second/g;
	$text =~ s/(idem_begin\('pay', lease => '1 minute', wait => ')1 hour(', request)/${1}1 second$2/g;
	$text =~ s{('pg_lsn'), '"0/10"', '"0/10"'}{$1, '"FFFFFFFF/FFFFFFFF"', '"FFFFFFFF/FFFFFFFF"'}g;
	mkdir $to;
	append_to_file("$to/" . basename($file), $text);
}

# The differences that pg_regress has found, without what differs from run to run.
sub differences
{
	my $file = "$dir/regression.diffs";
	my $text = -e $file ? slurp_file($file) : '';

	$text =~ s/^diff .*\/([^\/]+)\n--- .*\n\+\+\+ .*\n/=== $1\n/gm;
	$text =~ s/(?<![\w-])[\w-]{43}(?![\w-])/"T" x 43/ge; # tokens differ
	return $text;
}

my $node = new_node('main', schema => undef, conf => "lc_messages = 'C'\nstatement_timeout = '2min'\n");
my $pgxs = `pg_config --pgxs`;
chomp $pgxs;
my $regress = dirname(dirname($pgxs)) . '/test/regress/pg_regress';

# it fails if there is any difference; newer ones look for expected/ where they run
my $cwd = getcwd();
chdir $dir or die $!;
system($regress, "--inputdir=$dir", "--outputdir=$dir", '--bindir=', '--host=' . $node->host, '--port=' . $node->port,
	'--dbname=old_sql', '--encoding=UTF8', '--no-locale', @tests);
chdir $cwd or die $!;

my $accepted = slurp_file("$old/accepted.diff") =~ s/^#.*\n//gmr;
my $different = differences();
my ($wanted, $got) = map { "$PostgreSQL::Test::Utils::log_path/$_.diff" } 'accepted', 'old_sql';
append_to_file($wanted, $accepted);
append_to_file($got, $different);
# of hundreds of lines, those that differ
ok($different eq $accepted, "the tests of 0.1.0 get the answers of 0.1.0, but for accepted.diff") or diag(`diff -U 8 $wanted $got`);
is($node->safe_psql('old_sql', q{SELECT extversion FROM pg_extension WHERE extname = 'idempotency'}),
	'0.1.0', 'it was the extension of 0.1.0');

done_testing();
