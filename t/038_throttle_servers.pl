
# The throttle on servers of other kinds: a hot standby has limits of its own, and a
# server that has not preloaded the library has them from PostgreSQL 17 on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IdemThrottle;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_throttle_node('preloaded', streaming => 1);
my $version = $node->safe_psql('postgres', 'SHOW server_version_num');

#
# On a hot standby: limits of its own
#
my $standby = new_standby($node);
ok(!-e $node->backup_dir . '/base/pg_stat/idempotency_throttle.stat', 'a backup has no file');
says($node, "SELECT answer('both', '1 hour', 2)", $_, 'on the primary') for 't 1', 't 0', 'f 0';
says($standby, 'SELECT pg_is_in_recovery()', 't', 'standby: in recovery');
says($standby, "SELECT answer('both', '1 hour', 2)", $_, 'standby: counts for itself') for 't 1', 't 0', 'f 0';
says($standby, "BEGIN; SELECT answer('standby', '1 hour', 2); ROLLBACK; SELECT answer('standby', '1 hour', 2)", "t 1\nt 0", 'standby: rolled back');
says($node, "SELECT answer('standby', '1 hour', 2)", 't 1', 'the primary knows nothing of it');
$standby->restart;
says($standby, "SELECT answer('both', '1 hour', 2)", 'f 0', 'standby: kept over a restart');
says($standby, 'SELECT throttle_allowed, throttle_rejected FROM idem_stat WHERE datname = current_database()', '4|2', 'standby: counted');
$standby->promote;
says($standby, "SELECT answer('both', '1 hour', 2)", 'f 0', 'promoted: the limits are those of before');
says($standby, "SELECT answer('promoted', '1 hour')", $_, 'promoted: new ones') for 't 0', 'f 0';
$standby->restart;
says($standby, "SELECT answer('both', '1 hour', 2)", 'f 0', 'promoted: kept over a restart');
$standby->stop;
$node->stop;

#
# Not preloaded
#
my $bare = new_node('bare', conf => "idempotency.throttle_entries = 16\nmax_connections = 70\n");
$bare->safe_psql('postgres', throttle_functions());
if ($version < 170000)
{
	my (undef, $out, $err) = $bare->psql('postgres', "\\set VERBOSITY verbose\nSELECT answer('k', '1 hour')");
	like($err, qr/ERROR:  55000:.*HINT:  [^\n]*shared_preload_libraries/s, 'no shared memory: an error with a hint');
	says($bare, <<'SQL', "55000\nstarted\n\nt\nf\n||\nreplayed", 'no shared memory: the rest works');
SELECT answer('k', '1 hour');
\echo :SQLSTATE
BEGIN;
SELECT state FROM idem_begin('k');
SELECT idem_finish('k');
COMMIT;
SELECT idem_claim('c');
SELECT idem_claim('c');
SELECT throttle_allowed, throttle_rejected, throttle_evicted FROM idem_stat;
SELECT state FROM idem_begin('k');
SQL
	# errors of the call, and that of the memory
	sql_fails($bare, 'postgres', "SELECT answer('', '1 hour')", '55000', 'no shared memory: an empty key');
	sql_fails($bare, 'postgres', "SELECT answer('k', '-1 hour')", '22023', 'no shared memory: a negative period');
}
else
{
	is($bare->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, 16) i, idem_throttle('x' || i, '1 hour')"), 16, 'shared memory without preload: it works');
	# the first session has chosen its size
	$bare->append_conf('postgresql.conf', "idempotency.throttle_entries = 1000\n");
	$bare->reload;
	ok($bare->poll_query_until('postgres', 'SHOW idempotency.throttle_entries', '1000'), 'another setting');
	is($bare->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, 16) i, idem_throttle('x' || i, '1 hour')"), 0, 'other sessions have the same table');
	counts($bare, '16|16|0', 'nothing is evicted');
	sql_is($bare, 'postgres', "SELECT answer('x17', '2 hours')", 't 0', 'one more');
	counts($bare, '1|0|1', 'and it is full, whatever the setting is');
	sql_is($bare, 'postgres', "SELECT answer('x17', '2 hours'); SELECT answer('x16', '1 hour')", "f 0\nf 0", 'the last ones are kept');

	$bare->restart;
	my @admitted = (storm($bare, 'bare', 2, "SELECT count(nextval('admitted')) FROM generate_series(1, 100) i, idem_throttle('loops', '10 years', 700, cost => 1 + 0 * i) WHERE allowed;\n"));
	is("@admitted", 700, '50 sessions, max_calls 700, 10000 calls: 700 are admitted');
	counts($bare, '700|9300|0', 'and 9300 are not');
	is($bare->safe_psql('postgres', "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, 999) i, idem_throttle('x' || i, '1 hour')"), 999, 'after a restart it is another table, of another size');
	counts($bare, '999|0|0', 'nothing is evicted');
	ok(!-e throttle_file($bare), 'no file');

	# the extension goes and comes, the library and the memory stay
	says($bare, <<'SQL', "t 0\nf 0\nf|0\n1\nf 0", 'in another schema');
SELECT answer('schema', '1 hour');
SELECT answer('schema', '1 hour');
SET client_min_messages = error;
DROP EXTENSION idempotency;
CREATE SCHEMA elsewhere;
CREATE EXTENSION idempotency SCHEMA elsewhere;
SELECT allowed, remaining FROM elsewhere.idem_throttle('schema', '1 hour');
SELECT throttle_evicted FROM elsewhere.idem_stat WHERE datname = current_database();
SET search_path = elsewhere, public;
SELECT answer('schema', '1 hour');
SQL
	$bare->safe_psql('postgres', 'CREATE DATABASE other');
	$bare->safe_psql('other', 'CREATE EXTENSION idempotency; ' . throttle_functions());
	says($bare, "SET search_path = elsewhere, public; SELECT answer('schema', '1 hour');\n\\c other\nSELECT answer('schema', '1 hour')", "f 0\nt 0", 'in another database');
	$bare->stop('immediate');
	$bare->start;
	sql_is($bare, 'other', "SELECT answer('schema', '1 hour')", 't 0', 'after a crash');
}
# only the server's configuration can choose the size
like((failure($bare, 'postgres', "LOAD 'idempotency'; SET idempotency.throttle_entries = 100000"))[0], qr/^55P02$/, 'the size is not for sessions to choose');
$bare->stop;

done_testing();
