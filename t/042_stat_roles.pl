
# idem_stat and idem_in_flight are for members of pg_monitor only, before and after a dump and a restore;
# what postgres_exporter reads with them is what it says of them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemDocs;
use IdemStat;
use IdemTest;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('preloaded', conf => $stat_conf);
$node->safe_psql('postgres', $stat_functions);

#
# For whom it is
#
my @as_monitor = ('-U', 'monitor');
my @as_clerk = (extra_params => [ '-U', 'clerk' ]);
$node->safe_psql('postgres', 'CREATE ROLE clerk LOGIN; CREATE ROLE monitor LOGIN IN ROLE pg_monitor; CREATE ROLE somebody LOGIN; CREATE ROLE operator LOGIN; CREATE DATABASE own TEMPLATE template0');
$node->safe_psql('own', <<"SQL");
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO somebody;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO somebody;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO somebody;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO clerk, somebody, pg_monitor;
SELECT idem.idem_grant('clerk', '{claims, call, throttle, tokens, lookup}'), idem.idem_grant('operator', '{operate}');
SQL
my $clerk = $node->background_psql('own', @as_clerk);
my $clerk_pid = $clerk->query_safe('SELECT pg_backend_pid()');
$clerk->query_safe("BEGIN; SELECT idem.idem_begin('seen')");
sql_is($node, 'own', "SELECT pid, role, key, since < clock_timestamp() FROM idem.idem_in_flight", "$clerk_pid|clerk|seen|t", 'pg_monitor sees who holds what', @as_monitor);
$clerk->query_safe("SELECT state FROM generate_series(1, 4) i, idem.idem_begin('5' || i)");
sql_is($node, 'own', "SELECT pid, role, since < clock_timestamp() FROM idem.idem_in_flight WHERE key IS NULL", "$clerk_pid|clerk|t", 'and since when where that is not noted', @as_monitor);
sql_is($node, 'own', "SELECT started, live_keys, oldest_claim_age > '0' FROM idem.idem_stat WHERE datname = 'own'", '0|0|t', 'pg_monitor sees counters and gauges', @as_monitor);
$clerk->query_safe('ROLLBACK');
sql_is($node, 'own', "SELECT started FROM idem.idem_stat WHERE datname = 'own'", '5', 'pg_monitor sees what has ended', @as_monitor);
for my $sql ('SELECT FROM idem.idem_keys', 'SELECT FROM idem.idem_transaction_claims', 'SELECT idem.idem_stat_reset()', "SELECT idem.idem_claim('m')")
{
	sql_fails($node, 'own', $sql, '42501', "pg_monitor may not: $sql", @as_monitor);
}
for my $role (qw(clerk operator somebody))
{
	sql_fails($node, 'own', $_, '42501', "$role may not: $_", '-U', $role)
	  for map({ "SELECT FROM idem.$_" } qw(idem_stat idem_in_flight idem_transaction_claims)), 'SELECT idem.idem_stat_counters()', 'SELECT idem.idem_held_keys()';
}
$clerk->query_safe("SELECT idem.idem_claim('reset')");
sql_fails($node, 'own', 'SELECT idem.idem_stat_reset()', '42501', 'claims do not include the reset', '-U', 'clerk');
sql_is($node, 'own', 'SELECT idem.idem_stat_reset()', '', 'operate does', '-U', 'operator');
is($node->safe_psql('own', "SELECT started + claimed FROM idem.idem_stat WHERE datname = 'own'"), 0, 'and it is done');
$clerk->quit;

# what everybody has of it: nothing
my $privileges = <<'SQL';
SELECT c.relname, a.grantee::regrole, a.privilege_type
FROM pg_class c, aclexplode(c.relacl) a WHERE c.relname LIKE 'idem\_%' AND c.relkind = 'v' AND a.grantee <> c.relowner
UNION ALL
SELECT p.proname, a.grantee::regrole, a.privilege_type
FROM pg_proc p, aclexplode(p.proacl) a WHERE p.proname IN ('idem_stat_counters', 'idem_held_keys') AND a.grantee <> p.proowner
ORDER BY 1, 2, 3
SQL
# what CREATE EXTENSION grants on a schema that was there before, pg_dump would forget
sql_is($node, 'own', "SELECT count(*) FROM pg_init_privs WHERE classoid = 'pg_namespace'::regclass AND objoid = 'idem'::regnamespace", '0', 'privileges on the schema are not the extension\'s');
my $expected = "idem_held_keys|pg_monitor|EXECUTE\nidem_in_flight|pg_monitor|SELECT\nidem_stat|pg_monitor|SELECT\nidem_stat_counters|pg_monitor|EXECUTE";
sql_is($node, $_, $privileges, $expected, "privileges in $_: pg_monitor's, no others") for qw(own postgres);

# dumped and restored
my $dir = PostgreSQL::Test::Utils::tempdir();
my $dump = "$dir/own.sql";
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('own') ], 'pg_dump');
unlike(slurp_file($dump), qr/idem_(?:stat\b|in_flight|stat_counters|held_keys|transaction_claims)/, 'what the extension makes is not in a dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored TEMPLATE template0');
$node->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-o', "$dir/restore.log", '-f', $dump, $node->connstr('restored') ], 'restored');
sql_is($node, 'restored', $privileges, $expected, 'restored: the same privileges');
sql_is($node, 'restored', "SELECT claimed, live_keys > 0 FROM idem.idem_stat WHERE datname = 'restored'", '0|t', 'restored: pg_monitor reads it', @as_monitor);
sql_is($node, 'restored', 'SELECT count(*) FROM idem.idem_in_flight', '0', 'restored: both of it', @as_monitor);
sql_fails($node, 'restored', 'SELECT FROM idem.idem_stat', '42501', "restored: $_ may not", '-U', $_) for qw(clerk somebody);

#
# The query file of postgres_exporter
#
my $queries = exporter_queries();
ok($queries, 'postgres_exporter.yaml is YAML') or diag(CPAN::Meta::YAML->errstr);
$node->safe_psql('postgres', "SELECT idem_begin('exported', lease => '1 hour'); SELECT idem_claim('exported 2'); CALL expire('exported 2')");
for my $name (sort keys %$queries)
{
	my $query = $queries->{$name};
	my %metrics = map { %$_ } @{ $query->{metrics} };
	my ($row, $names, $nrows) = exported($node, $query->{query}, @as_monitor);

	is($nrows, 1, "$name: one row");
	is(join(' ', @$names), join(' ', map { keys %$_ } @{ $query->{metrics} }), "$name: its columns are the metrics");
	my %times;
	is(join(' ', grep { $times{$_}++ } @$names), '', "$name: each once, or Prometheus gets none of all");
	like(join(' ', map { $_->{usage} } values %metrics), qr/^(?:(?:LABEL|COUNTER|GAUGE) ?)+$/, "$name: their kinds");
	is(scalar(grep { !length($_->{description} // '') } values %metrics), 0, "$name: their descriptions");
	is(join(' ', grep { $metrics{$_}{usage} ne 'LABEL' && $row->{$_} !~ /^\d+(?:\.\d+)?(?:e[-+]\d+)?$/ } @$names), '', "$name: all numbers");
	is(join(' ', grep { ($metrics{$_}{usage} eq 'COUNTER') != /_total$/ } @$names), '', "$name: counters, and nothing else, are totals");
	unlike($query->{query}, qr/idem_in_flight/, "$name: is cheap");
}
# and the queries that doc/howto/monitoring.md makes of the metrics
my %metric = map { $_ => 1 } map { my $name = $_; map { map { "${name}_$_" } keys %$_ } @{ $queries->{$name}{metrics} } } keys %$queries;
my @promql = map { @$_ } promql("$FindBin::RealBin/../doc/howto/monitoring.md");
cmp_ok(scalar(@promql), '>', 10, 'queries for panels and alerts');
is(join(' ', grep { !$metric{$_} } map { /\b(idem_\w+)/g } @promql), '', 'their metrics exist');
# which are those of the dashboard; Grafana asks whom its user has chosen
my $dashboard = decode_json(slurp_file("$FindBin::RealBin/../doc/grafana-dashboard.json"));
my @panels = @{ $dashboard->{panels} };
my @targets = map { @{ $_->{targets} } } @panels;
is(join("\n", sort map { $_->{expr} } @targets), join("\n", sort @promql), 'the dashboard has these queries');
is(join(' ', grep { $_ ne '${datasource}' } map { $_->{datasource}{uid} } @panels, @targets), '', 'of the data source that is chosen');
is(join(' ', map { "$_->{name} $_->{query}" } @{ $dashboard->{templating}{list} }), 'datasource prometheus', 'among those of Prometheus');
my %ids = map { $_->{id} => 1 } @panels;
is(scalar(keys %ids), scalar(@panels), 'each panel has an id of its own');
my ($exported) = exported($node, $queries->{idem}{query}, @as_monitor);
my $now = counters($node, 'postgres');
is(join(' ', map { $exported->{"${_}_total"} } @counters), join(' ', map { $now->{$_} } @counters), 'exported: all counters');
is("$exported->{datname} $exported->{open_leases}", 'postgres ' . $node->safe_psql('postgres', 'SELECT count(*) FROM idem_keys WHERE finished_at IS NULL AND lease_until > clock_timestamp()'), 'exported: gauges');
cmp_ok($exported->{oldest_expired_age_seconds}, '>', 0, 'exported: an age in seconds');
cmp_ok(abs($exported->{stats_reset_timestamp_seconds} - time), '<', 1000, 'exported: a time in seconds');
$node->stop;

# The views do not use operators that another role has created in the schema.
my $planted = new_node('planted', schema => undef);
$planted->safe_psql('postgres', <<'SQL');
CREATE ROLE eve;
GRANT CREATE ON SCHEMA public TO eve;
SET ROLE eve;
CREATE FUNCTION evil(numeric, integer) RETURNS numeric LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil ran as %', current_user; END $$;
CREATE FUNCTION evil(bigint, real) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil ran as %', current_user; END $$;
CREATE FUNCTION evil(numeric, bigint) RETURNS numeric LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil ran as %', current_user; END $$;
CREATE FUNCTION round(float8, integer) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil ran as %', current_user; END $$;
CREATE OPERATOR * (FUNCTION = evil, LEFTARG = numeric, RIGHTARG = integer);
CREATE OPERATOR / (FUNCTION = evil, LEFTARG = bigint, RIGHTARG = real);
CREATE OPERATOR / (FUNCTION = evil, LEFTARG = numeric, RIGHTARG = bigint);
RESET ROLE;
CREATE EXTENSION idempotency;
SQL
sql_is($planted, 'postgres', 'SELECT live_keys FROM idem_stat', '0', 'planted operators do not run');
sql_is($planted, 'postgres', 'BEGIN; SELECT state FROM idem_begin(\'k\'); SELECT held_by FROM idem_in_flight; ROLLBACK', "started\ntransaction", 'nor in the other view');
$planted->stop;

done_testing();
