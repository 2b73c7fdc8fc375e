
# Members of pg_monitor see keys that are in flight, and no others: not in notes of claims
# that have ended, and not by functions or operators of their own that the planner or
# the executor calls with rows or statistics of idem_keys.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "shared_preload_libraries = 'idempotency'\n");
my @as_monitor = ('-U', 'monitor');

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE clerk LOGIN;
SELECT idem_grant('clerk', ARRAY['claims']);
SELECT count(idem_claim('committed ' || i)) FROM generate_series(1, 100) i;
SELECT state FROM idem_begin('leased', lease => '1 hour');
ANALYZE idem_keys;
SQL

#
# Functions and operators of the reader
#
my $spy = <<'SQL';
SET client_min_messages = notice;
CREATE FUNCTION pg_temp.spy(text, text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$
BEGIN
	RAISE NOTICE 'seen: %', $1;
	RETURN true;
END $$;
CREATE OPERATOR pg_temp.<<< (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.spy, RESTRICT = scalarltsel);
CREATE OPERATOR pg_temp.=== (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.spy, RESTRICT = eqsel);
SQL

# What a query shows the functions of who runs it.
sub seen
{
	my ($sql) = @_;
	my ($ret, $out, $err) = $node->psql('postgres', "$spy $sql", extra_params => [@as_monitor]);
	my %seen;

	is($ret, 0, "$sql: runs") || diag($err);
	$seen{$_}++ for $err =~ /seen: (.*)/g;
	return join ', ', sort keys %seen;
}

for my $condition ("pg_temp.spy(key, '')", "key OPERATOR(pg_temp.<<<) 'm'", "key OPERATOR(pg_temp.===) 'm'", "pg_temp.spy(key, '') AND lease_until > now()")
{
	is(seen("SELECT count(*) FROM idem_in_flight WHERE $condition;"), 'leased', "$condition: what is in flight");
	is(seen("EXPLAIN SELECT count(*) FROM idem_in_flight WHERE $condition;"), '', "$condition: the planner shows nothing");
}
is(seen("SELECT max(live_keys) FROM idem_stat WHERE pg_temp.spy(datname::text, '');"), 'postgres, template0, template1', 'idem_stat shows names of databases, which everybody may see');

#
# Notes
#
my $clerk = $node->background_psql('postgres', extra_params => [ '-U', 'clerk' ]);
my $notes = 'SELECT key, scope FROM idem_held_keys() ORDER BY since';

$clerk->query_safe("BEGIN; SELECT idem_begin('open', scope => 'desk')");
sql_is($node, 'postgres', $notes, 'open|desk', 'a note of an open claim', @as_monitor);
$clerk->query_safe("SELECT idem_finish('open', scope => 'desk')");
sql_is($node, 'postgres', $notes, 'open|desk', 'of one that is not committed yet', @as_monitor);
$clerk->query_safe('COMMIT');
sql_is($node, 'postgres', $notes, '', 'none of a finished one', @as_monitor);
$clerk->query_safe("BEGIN; SAVEPOINT s; SELECT idem_begin('back'); ROLLBACK TO s; SELECT idem_begin('stays')");
sql_is($node, 'postgres', $notes, 'stays|', 'none of one that was rolled back', @as_monitor);
$clerk->query_safe('ROLLBACK');
$clerk->query_safe("SELECT idem_claim('once')");
$clerk->quit;
sql_is($node, 'postgres', $notes, '', 'none of a session that has ended', @as_monitor);

done_testing();
