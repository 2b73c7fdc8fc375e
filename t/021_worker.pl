
# Purges in the background: where, when, and what does not stop them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', streaming => 1, conf => <<'CONF');
shared_preload_libraries = 'idempotency'
idempotency.purge_interval = 1
restart_after_crash = on
CONF

my $fill = fill_procedure();
$node->safe_psql('postgres', $fill);

sub configure
{
	my ($conf) = @_;

	$node->append_conf('postgresql.conf', $conf);
	$node->reload;
}

sub is_purged
{
	my ($db, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	ok($node->poll_query_until($db, 'SELECT NOT EXISTS (SELECT FROM idem_keys WHERE expires_at <= now())'), $name);
}

my $launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'idempotency purge launcher'";

# The launcher goes round at least twice, so whatever was to be purged would be.
sub two_rounds
{
	my $done = $node->safe_psql('postgres', "SELECT max(last_purge) FROM idem_stat");

	for (1 .. 2)
	{
		$node->poll_query_until('postgres', "SELECT max(last_purge) > '$done' FROM idem_stat") or die 'no purge';
		$done = $node->safe_psql('postgres', "SELECT max(last_purge) FROM idem_stat");
	}
}

#
# It purges, and is seen
#
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM ($launcher) l"), 'the launcher has its own name');
$node->safe_psql('postgres', "SELECT idem_claim('live'); SELECT idem_token_issue('p', '1 hour'); UPDATE idem_tokens SET expires_at = now(); CALL fill(1000)");
is_purged('postgres', 'expired keys go by themselves');
sql_is($node, 'postgres', 'SELECT key FROM idem_keys', 'live', 'and live ones stay');
ok($node->poll_query_until('postgres', 'SELECT NOT EXISTS (SELECT FROM idem_tokens)'), 'tokens as well');
sql_is($node, 'postgres', "SELECT purged, last_purge IS NOT NULL FROM idem_stat WHERE datname = 'postgres'", '1001|t', 'it is counted');

# a worker is seen at work, for a short time only
$node->safe_psql('postgres', 'CALL fill(100000)');
ok( $node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'idempotency purge worker' AND datname = 'postgres' AND query = 'idempotency: purging expired rows'"),
	'a worker has its own name');
is_purged('postgres', 'a lot is purged');
# more than one worker can do, and the next is not due for long; without the empty pages of before, since a worker
# that has removed fewer rows than it has read pages leaves the rest to that one
configure("idempotency.purge_batch_size = 1\n");
$node->safe_psql('postgres', 'VACUUM FULL idem_keys');
$node->safe_psql('postgres', 'CALL fill(100000)');
$node->poll_query_until('postgres', 'SELECT count(*) < 100000 FROM idem_keys WHERE expires_at <= now()') or die;
configure("idempotency.purge_interval = '1 h'\n");
is_purged('postgres', 'one worker comes after the other while there is much left');
configure("idempotency.purge_batch_size = 5000\nidempotency.purge_interval = 1\n");

#
# Databases
#
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('postgres', 'CREATE DATABASE bare');
$node->safe_psql('other', "CREATE EXTENSION idempotency; $fill; SELECT idem_claim('live'); CALL fill(10)");
is_purged('other', 'every database that uses the extension');
$node->safe_psql('postgres', 'CREATE DATABASE "Shop"');
$node->safe_psql('Shop', "CREATE EXTENSION idempotency; $fill");
configure("idempotency.purge_databases = 'nosuch, bare, Shop, POSTGRES'\n");
$node->safe_psql('Shop', 'CALL fill(10)');
is_purged('Shop', 'a name with a capital');
$node->safe_psql('other', 'CALL fill(10)');
two_rounds();
sql_is($node, 'other', 'SELECT count(*) FROM idem_keys', '11', 'a database that is not listed is left alone');
$node->safe_psql('postgres', 'CALL fill(10)');
is_purged('postgres', 'a list with a database that does not exist, and one without the extension');
my $log = slurp_file($node->logfile);
my @told = $log =~ /LOG:  database "nosuch" of "idempotency.purge_databases" does not exist/g;
is(scalar @told, 1, 'the log names the first one once');
unlike($log, qr/(ERROR|FATAL|PANIC):(?!.*terminating)/, 'nothing has failed');
configure("idempotency.purge_databases = 'other, postgres'\n");
is_purged('other', 'the new list is known at once');
sql_fails($node, 'postgres', "SET idempotency.purge_databases = 'x'", '55P02', 'it is not for sessions');
sql_fails($node, 'postgres', "ALTER SYSTEM SET idempotency.purge_databases = 'x,,y'", '22023', 'a bad list is refused');
sql_fails($node, 'postgres', "ALTER SYSTEM SET idempotency.purge_interval = '$_'", '22023', "an interval of $_ is refused") for '499ms', '0.5', '1us';

# one that fails keeps no other waiting
my $log_start = -s $node->logfile;
$node->safe_psql('other', <<'SQL');
CREATE FUNCTION evil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE LOG 'evil ran as %', current_user; RETURN OLD; END $$;
CALL fill(10);
CREATE TRIGGER evil BEFORE DELETE ON idem_keys FOR EACH ROW EXECUTE FUNCTION evil();
SQL
$node->wait_for_log(qr/ERROR:  .*idem_keys/, $log_start);
$node->safe_psql('postgres', 'CALL fill(10)');
is_purged('postgres', 'a database that fails');
unlike(slurp_file($node->logfile, $log_start), qr/LOG:  evil ran/, 'no code of a user runs in a worker');
$node->safe_psql('other', 'DROP TRIGGER evil ON idem_keys');
is_purged('other', 'and is purged when it is mended');

# a table that is locked is left for the next time, and its database's others are not
my $locker = $node->background_psql('other');
$log_start = -s $node->logfile;
$locker->query_safe('BEGIN; LOCK TABLE idem_keys');
$node->safe_psql('other', "SELECT idem_token_issue('p', '1 hour'); UPDATE idem_tokens SET expires_at = now()");
ok($node->poll_query_until('other', 'SELECT NOT EXISTS (SELECT FROM idem_tokens)'), 'a table beside one that is locked');
$node->safe_psql('postgres', 'CALL fill(10)');
is_purged('postgres', 'a database whose table is locked keeps no other database waiting');
two_rounds();
my @locked = slurp_file($node->logfile, $log_start) =~ /LOG:  table "idem_keys" of database "other" is not purged while it is locked/g;
is(scalar @locked, 1, 'the log says so once');
unlike(slurp_file($node->logfile, $log_start), qr/(ERROR|FATAL):|exited with exit code/, 'and is no error');
$locker->query_safe("COMMIT; UPDATE idem_keys SET expires_at = now()");
is_purged('other', 'and is purged later');

# dropped while it is being purged
$node->safe_psql('other', 'CALL fill(100000)');
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'idempotency purge worker' AND datname = 'other'") or die;
$locker->quit;
sql_fails($node, 'other', 'DROP EXTENSION idempotency', '', 'DROP EXTENSION under way');
$node->safe_psql('other', "CREATE EXTENSION idempotency; CALL fill(100000)");
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'idempotency purge worker' AND datname = 'other'") or die;
sql_fails($node, 'postgres', 'DROP DATABASE other', '', 'DROP DATABASE under way');
$node->safe_psql('postgres', 'CALL fill(10)');
is_purged('postgres', 'the others go on');

# one that does not even accept connections, because another session renames it
$locker = $node->background_psql('postgres');
configure("idempotency.purge_databases = 'bare, postgres'\n");
$log_start = -s $node->logfile;
$locker->query_safe('BEGIN; ALTER DATABASE bare RENAME TO bare2');
$node->wait_for_log(qr/LOG:  could not connect to database "bare" to purge/, $log_start);
$node->safe_psql('postgres', 'CALL fill(10)');
is_purged('postgres', 'a database that cannot be connected to does not keep others waiting for long');
$locker->query_safe('ROLLBACK');
$locker->quit;

#
# On, off, at once
#
configure("idempotency.purge_interval = '1 h'\n");
my $pid = $node->safe_psql('postgres', $launcher);
$node->safe_psql('postgres', 'CALL fill(10)');
sql_is($node, 'postgres', 'SELECT count(*) FROM idem_keys WHERE expires_at <= now()', '10', 'an hour has not passed');
configure("idempotency.purge_interval = 1\n");
is_purged('postgres', 'a shorter interval is known at once');
configure("idempotency.purge_interval = 0\n");
$node->poll_query_until('postgres', "SELECT wait_event_type IN ('Activity', 'Extension') FROM pg_stat_activity WHERE pid = $pid") or die;
$node->safe_psql('postgres', 'CALL fill(10)');
sql_is($node, 'postgres', "SELECT count(*) FROM idem_keys WHERE expires_at <= now()", '10', 'turned off');
is($node->safe_psql('postgres', $launcher), $pid, 'the launcher is still there');
configure("idempotency.purge_interval = 1\n");
is_purged('postgres', 'and on');

# terminated, killed, crashed
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok($node->poll_query_until('postgres', "SELECT pid <> $pid FROM ($launcher) l"), 'a launcher that was terminated comes back');
$node->safe_psql('postgres', 'CALL fill(10)');
is_purged('postgres', 'and purges');
$node->safe_psql('postgres', 'CALL fill(100000)');
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'idempotency purge worker'") or die;
crash_by($node, $node->safe_psql('postgres', $launcher));
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM ($launcher) l"), 'after a crash there is a launcher');
is_purged('postgres', 'which goes on');

# a stop does not wait for it
$node->safe_psql('postgres', 'CALL fill(100000)');
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'idempotency purge worker'") or die;
$log_start = -s $node->logfile;
$node->stop('fast');
$node->start;
# of what has no client: one of the last queries may still be leaving
unlike(slurp_file($node->logfile, $log_start), qr/was terminated by signal|\] (?:PANIC|FATAL|ERROR):/, 'a clean stop');
is_purged('postgres', 'which goes on after a restart');

#
# Not on a standby, until it is none any more
#
my $standby = new_standby($node);
$node->safe_psql('postgres', 'CALL fill(10)');
is_purged('postgres', 'the primary purges');
$node->wait_for_catchup($standby);
sql_is($standby, 'postgres', "SELECT count(*) FROM ($launcher) l", '0', 'no launcher on a standby');
$standby->promote;
ok($standby->poll_query_until('postgres', "SELECT count(*) = 1 FROM ($launcher) l"), 'there is one after promotion');
$standby->safe_psql('postgres', 'CALL fill(10)');
ok($standby->poll_query_until('postgres', 'SELECT NOT EXISTS (SELECT FROM idem_keys WHERE expires_at <= now())'), 'which purges');
$standby->stop;

# Not during pg_upgrade, which has the server to itself.
$node->stop;
command_ok([ 'pg_ctl', '-D', $node->data_dir, '-l', $node->logfile, '-w', '-o', '-b', 'start' ], 'started as pg_upgrade does');
$node->_update_pid(1);
sql_is($node, 'postgres', "SELECT count(*) FROM ($launcher) l", '0', 'no launcher during pg_upgrade');
$node->stop;

done_testing();
