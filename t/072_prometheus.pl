
# The queries of doc/howto/monitoring.md, asked of a Prometheus that gets its metrics from
# postgres_exporter with doc/postgres_exporter.yaml: each panel has a number once there is something to
# show, and each alert fires when its condition holds, and not before.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use HTTP::Tiny;
use IPC::Run;
use IdemDocs;
use IdemStat;
use IdemTest;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Debian's packages prometheus and prometheus-postgres-exporter; the project's own programs have the other name
sub program
{
	my ($found) = grep { -x } map { my $name = $_; map { "$_/$name" } split(/:/, $ENV{PATH}) } @_;
	return $found;
}

my $prometheus = program('prometheus');
my $exporter = program('prometheus-postgres-exporter', 'postgres_exporter');
plan skip_all => 'prometheus or prometheus-postgres-exporter is missing' if !$prometheus || !$exporter;

my $doc = "$FindBin::RealBin/../doc";
my ($panels, $alerts) = promql("$doc/howto/monitoring.md");
my $dir = PostgreSQL::Test::Utils::tempdir();
my %program;

END { local $?; $_->kill_kill for values %program }

sub start
{
	my ($name, @command) = @_;

	$program{$name} = IPC::Run::start(\@command, '<', \undef, '>', "$dir/$name.log", '2>&1');
	return;
}

# the exporter's role as the page has it
my ($role) = grep { /GRANT pg_monitor/ } map { $_->[1] } blocks("$doc/howto/monitoring.md");
my $node = new_node('main', conf => $stat_conf);
$node->safe_psql('postgres', $stat_functions);
$node->safe_psql('postgres', $role);

my ($exporter_at, $prometheus_at) = map { '127.0.0.1:' . PostgreSQL::Test::Cluster::get_free_port() } 1 .. 2;
{
	local $ENV{DATA_SOURCE_NAME} = 'host=' . $node->host . ' port=' . $node->port . ' user=exporter dbname=postgres sslmode=disable';
	start('exporter', $exporter, "--extend.query-path=$doc/postgres_exporter.yaml", "--web.listen-address=$exporter_at");
}
append_to_file("$dir/prometheus.yml", <<"YAML");
global:
  scrape_interval: 2s
  scrape_timeout: 2s
scrape_configs:
  - job_name: postgres
    static_configs:
      - targets: ['$exporter_at']
YAML
start('prometheus', $prometheus, "--config.file=$dir/prometheus.yml", "--storage.tsdb.path=$dir/tsdb", "--web.listen-address=$prometheus_at");

my $http = HTTP::Tiny->new(no_proxy => '127.0.0.1', timeout => 60);

# What a query returns, by database; nothing if it is refused, which is kept.
my $refused = '';

sub ask
{
	my ($query) = @_;
	my $response = $http->get("http://$prometheus_at/api/v1/query?" . $http->www_form_urlencode({ query => $query }));
	my $answer = eval { decode_json($response->{content}) } // {};

	$refused = $response->{success} && ($answer->{status} // '') eq 'success' ? '' : $response->{content};
	return if $refused;
	return map { ($_->{metric}{datname} // '') => $_->{value}[1] } @{ $answer->{data}{result} };
}

# Until the answer is such a number, for the database that we are in and no other.
sub becomes
{
	my ($query, $is, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %answer;

	return ok( eventually(sub {
			%answer = ask($query);
			return join(' ', keys %answer) eq 'postgres' && $answer{postgres} =~ /^[-+.\de]+$/ && $is->($answer{postgres});
		}),
		$name) || diag(explain(\%answer), $refused, slurp_file("$dir/exporter.log"), slurp_file("$dir/prometheus.log"));
}

# a rate is seen between two looks: the first one finds zeros
becomes($_, sub { $_[0] == 0 }, "$_, at first") || die 'no metrics' for 'idem_started_total', 'idem_live_keys';

for my $queries ($panels, $alerts)
{
	my @taken;

	for my $query (@$queries)
	{
		ask($query);
		push @taken, $query if is($refused, '', "$query: Prometheus takes it");
	}
	$queries = \@taken;
}
for my $query (@$alerts)
{
	my %fires = ask($query);
	is(join(' ', %fires), '', "$query: does not fire");
}

# What each panel is about.
$node->psql('postgres', <<'SQL', on_error_stop => 0);
BEGIN;
SELECT idem_begin('order', request => '1'), idem_finish('order', '1');
SELECT idem_begin('order', request => '1'), idem_begin('order', request => '2');
COMMIT;
BEGIN;
SELECT idem_begin('busy'), idem_begin('busy');
ROLLBACK;
SELECT idem_begin('leased', lease => '1 hour');
CALL lapse('leased');
SELECT idem_begin('leased', lease => '1 hour');
SELECT idem_claim('message'), idem_claim('message');
SELECT throttle('one'), throttle('one');
SELECT idem_code_verify('otp', 'nobody', '000000');
SELECT idem_claim('old');
CALL expire('old');
CALL idem_purge();
SQL
becomes($_, sub { $_[0] > 0 }, "$_: has a number") for @$panels;

# And each alert.
for my $query (@$alerts)
{
	my %fires = ask($query);
	is(join(' ', %fires), '', "$query: still does not fire");
}
$node->psql('postgres', <<'SQL', on_error_stop => 0);
BEGIN;
SELECT idem_begin('forgotten');
COMMIT;
SELECT throttle('limit ' || i) FROM generate_series(1, 20) i;
SELECT idem_begin('job', lease => '1 hour');
CALL lapse('job');
SELECT idem_begin('job', lease => '1 hour', max_attempts => 1);
-- time passes
UPDATE idem_keys SET created_at = clock_timestamp() - interval '2 minutes' WHERE key = 'leased';
SELECT idem_claim('very old');
UPDATE idem_keys SET expires_at = clock_timestamp() - interval '2 hours' WHERE key = 'very old';
SQL
becomes($_, sub { 1 }, "$_: fires") for @$alerts;

$_->kill_kill for values %program;
%program = ();
$node->stop;

done_testing();
