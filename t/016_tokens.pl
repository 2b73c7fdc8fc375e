
# A token works once, however many want it, and a standby only looks.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

# Preloaded, so that it is the same for all versions.
my $node = new_node('main', streaming => 1, conf => "shared_preload_libraries = 'idempotency'\nmax_connections = 70\n");

#
# However many want it: one token, 50 sessions.  Sequences count what rollbacks do not undo.
#
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE one AS SELECT idem_token_issue('storm', '1 day') AS token;
CREATE TABLE got (state text);
SQL

sub storm
{
	my ($sql, @options) = @_;

	# the caller checks failures
	pgbench($node, $sql, '-c', '50', '-t', '1', @options);
	return;
}

my $redeem = "INSERT INTO got SELECT state FROM one, idem_token_redeem('storm', token);\n";
storm($redeem);
sql_is($node, 'postgres', 'SELECT state, count(*) FROM got GROUP BY state ORDER BY state', "redeemed|1\nused|49", 'of 50 one redeems');

# The winner waits for all the others to wait, and rolls back: one other wins.
$node->safe_psql('postgres', "TRUNCATE got, one; INSERT INTO one SELECT idem_token_issue('storm', '1 day')");
my $winner = $node->background_psql('postgres');
is($winner->query_safe("BEGIN; SELECT state FROM one, idem_token_redeem('storm', token)"), 'redeemed', 'one is first');
my $storm = IPC::Run::start(pgbench_command($node, $redeem, '-c', '49', '-t', '1'), '>', \my $stdout, '2>', \my $stderr);
ok( $node->poll_query_until('postgres', "SELECT count(*) = 49 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%redeem%'"),
	'the other 49 wait');
$winner->query_safe('ROLLBACK');
$storm->finish;
sql_is($node, 'postgres', 'SELECT state, count(*) FROM got GROUP BY state ORDER BY state', "redeemed|1\nused|48", 'the first rolled back: exactly one other redeems');
$winner->quit;

# So in the other isolation levels, where the others fail.
for my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	$node->safe_psql('postgres', "TRUNCATE got, one; INSERT INTO one SELECT idem_token_issue('storm', '1 day')");
	storm("BEGIN ISOLATION LEVEL $level;\nINSERT INTO got SELECT state FROM one, idem_token_redeem('storm', token);\nCOMMIT;\n", '--max-tries', '1000');
	sql_is($node, 'postgres', "SELECT count(*) FROM got WHERE state = 'redeemed'", '1', "$level: one redeems");
	sql_is($node, 'postgres', "SELECT count(*) FROM got WHERE state = 'used'", '49', "$level: the others get that when they try again");
}

#
# A standby: looking is all it can do
#
$node->safe_psql('postgres', "TRUNCATE one; INSERT INTO one SELECT idem_token_issue('standby', '1 day', '1', 'ada'); SELECT idem_code_issue('standby', 'ada', '1 day')");
my $standby = new_standby($node);
sql_is($standby, 'postgres', "SELECT r.* FROM one, idem_token_peek('standby', token) r", 'valid|ada|1', 'standby: peek');
sql_fails($standby, 'postgres', $_, '25006', "standby: $_")
  for "SELECT idem_token_redeem('standby', token) FROM one", "SELECT idem_token_revoke('standby', token) FROM one", "SELECT idem_token_revoke_all('standby', 'ada')",
  "SELECT idem_token_issue('standby', '1 day')", "SELECT idem_code_issue('standby', 'ada', '1 day')", "SELECT idem_code_verify('standby', 'ada', 'x')";
$node->safe_psql('postgres', "SELECT idem_token_redeem('standby', token) FROM one");
$node->wait_for_catchup($standby);
sql_is($standby, 'postgres', "SELECT r.state FROM one, idem_token_peek('standby', token) r", 'used', 'standby: knows what was redeemed');
$standby->stop;

#
# Of a prepared transaction: who comes while it is undecided waits for what becomes of it
#
for ([ 'COMMIT', 'used' ], [ 'ROLLBACK', 'redeemed' ])
{
	my ($end, $expected) = @$_;

	$node->safe_psql('postgres',
		"TRUNCATE one; INSERT INTO one SELECT idem_token_issue('prepared', '1 day'); BEGIN; SELECT r.state FROM one, idem_token_redeem('prepared', token) r; PREPARE TRANSACTION 'redeem'");
	my $second = $node->background_psql('postgres');
	$second->query_until(qr/sent/,
		"SET application_name = 'second';\n\\echo sent\nCREATE TABLE was AS SELECT r.state FROM one, idem_token_redeem('prepared', token) r;\n");
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'second' AND wait_event_type = 'Lock'"),
		'a redeem waits for a prepared transaction');
	$node->safe_psql('postgres', "$end PREPARED 'redeem'");
	$second->quit;
	sql_is($node, 'postgres', 'SELECT * FROM was; DROP TABLE was', $expected, "$end PREPARED: the one that waited");
}

done_testing();
