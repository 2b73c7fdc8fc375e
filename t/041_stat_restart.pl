
# The counters of all databases are there after a clean restart; after a crash, or when the file
# that kept them is damaged, they begin at 0.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemStat;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('preloaded', conf => $stat_conf);
for my $db (qw(flight gauges))
{
	$node->safe_psql('postgres', "CREATE DATABASE $db TEMPLATE template0");
	$node->safe_psql($db, "CREATE EXTENSION idempotency; SELECT idem_claim('$db')");
}
$node->safe_psql('postgres', <<'SQL');
SELECT idem_claim('1'), idem_claim('1');
SELECT idem_begin('2', lease => '1 hour');
SELECT idem_begin('2', lease => '1 hour');
SELECT idem_throttle('3', '1 hour') FROM generate_series(1, 2);
SELECT idem_token_issue('4', '1 hour'), idem_code_issue('5', 'ada', '1 hour');
CALL idem_purge();
SQL

#
# A clean restart keeps the counters, of all databases
#
my $file = $node->data_dir . '/pg_stat/idempotency_stat.stat';
my $kept = "SELECT datname, $columns, stats_reset, last_purge FROM idem_stat ORDER BY 1";
my $rows_before = $node->safe_psql('postgres', $kept);
like($rows_before, qr/^flight\|.*^gauges\|.*^postgres\|/ms, 'several databases');
$node->stop;
ok(-s $file, 'stopped: a file keeps them');
$node->start;
is($node->safe_psql('postgres', $kept), $rows_before, 'started: they are what they were');
ok(!-e $file, 'and the file is gone');
$last{postgres} = counters($node, 'postgres');
moves($node, 'after a restart', "SELECT idem_claim('restarted')", 'claimed 1');

# What a crash leaves: nothing.
my $before;

sub from_zero
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($node, 'postgres', "SELECT datname, " . join(' + ', @counters) . ", stats_reset > '$before' FROM idem_stat", 'postgres|0|t', $name);
}

$before = clock($node);
kill_backend($node, $node->background_psql('postgres'));
from_zero('a crash: from 0');
$last{postgres} = counters($node, 'postgres');
moves($node, 'after a crash', "SELECT idem_claim('crashed')", 'claimed 1');

# An immediate stop is one.
$before = clock($node);
$node->stop('immediate');
$node->start;
ok(!-e $file, 'an immediate stop: no file');
from_zero('an immediate stop: from 0');

#
# The file is damaged, or of another database cluster
#

# The place in the log where the start begins; with what is made of the file.
sub start_with
{
	my ($name, $contents) = @_;

	$before = clock($node);
	$node->stop;
	my $bytes = $contents->(slurp_file($file));
	unlink $file;
	append_to_file($file, $bytes);
	my $log_start = -s $node->logfile;
	$node->start;
	ok(eventually(sub { !-e $file }), "$name: the server starts, and the file is gone");
	return $log_start;
}

for my $damage (
	[ 'garbage', sub { 'garbage' x 100 } ],
	[ 'cut', sub { substr($_[0], 0, -1) } ],
	[ 'longer', sub { $_[0] . 'x' } ],
	[ 'empty', sub { '' } ])
{
	my ($name, $contents) = @$damage;

	my $log_start = start_with($name, $contents);
	like(slurp_file($node->logfile, $log_start), qr/LOG:  ignoring invalid data in file "pg_stat\/idempotency_stat.stat"/, "$name: the log says so");
	from_zero("$name: from 0");
	$last{postgres} = counters($node, 'postgres');
	moves($node, $name, "SELECT idem_claim('$name')", 'claimed 1');
}

# All places are taken: the file has a header, then records that begin with the database, and a checksum.
my $nplaces = 500;
sub full_of
{
	my ($oid, $contents) = @_;
	my $record = (length($contents) - 36) / $nplaces;

	substr($contents, 32 + $_ * $record, 4) = pack('L', $oid->($_)) for 0 .. $nplaces - 1;
	return seal(substr($contents, 0, -4));
}
start_with('full of dropped databases', sub { full_of(sub { 4_000_000_000 + $_[0] }, @_) });
from_zero('full of dropped databases: one gives way');
$last{postgres} = counters($node, 'postgres');
moves($node, 'full of dropped databases', "SELECT idem_claim('full')", 'claimed 1');
start_with('full', sub { full_of(sub { 1 }, @_) });
my ($ret, $out, $err) = $node->psql('postgres', "SELECT idem_claim('full'), idem_claim('full 2'); SELECT idem_stat_reset(); SELECT claimed IS NULL, live_keys > 0, stats_reset IS NULL FROM idem_stat WHERE datname = 'postgres'");
is("$ret $out$err", "0 f|t\n\nt|t|t", 'full of databases that exist: nothing is counted, nothing fails');
start_with('nothing of that', sub { '' });

$node->stop;

done_testing();
