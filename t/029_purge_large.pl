
# Purges in the background where there is much: of rows, and of databases.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => <<'CONF');
shared_preload_libraries = 'idempotency'
idempotency.purge_interval = 0
idempotency.purge_batch_size = 1000000
CONF

$node->safe_psql('postgres', fill_procedure() . <<'SQL');
-- until a worker is at work there
CREATE FUNCTION await_worker(db text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	worker int;
BEGIN
	LOOP
		SELECT pid INTO worker FROM pg_stat_activity
		WHERE datname = db AND backend_type = 'idempotency purge worker' AND query = 'idempotency: purging expired rows';
		EXIT WHEN FOUND;
		IF clock_timestamp() > now() + interval '3 min' THEN
			RAISE 'no worker in database %', db;
		END IF;
		PERFORM pg_stat_clear_snapshot(), pg_sleep(0.001);
	END LOOP;
	RETURN worker;
END $$;
SQL

#
# A worker that is stopped keeps what it has done: a deletion that was rolled back
# would be seen by its xmax
#
for my $try (1 .. 3)
{
	$node->safe_psql('postgres', 'CALL fill(100000)');
	my $log_start = -s $node->logfile;
	# the launcher is turned off again first, so that no other worker follows
	$node->safe_psql('postgres', <<'SQL');
ALTER SYSTEM SET idempotency.purge_interval = 1;
SELECT pg_reload_conf();
SELECT await_worker('postgres') AS pid \gset
ALTER SYSTEM SET idempotency.purge_interval = 0;
SELECT pg_reload_conf();
SELECT pg_terminate_backend(:pid, 60000);
SQL
	$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'idempotency purge worker')") or die;
	sql_is($node, 'postgres', 'SELECT count(*) FROM idem_keys WHERE xmax <> 0', '0', "terminated: nothing was rolled back ($try)");
	unlike(slurp_file($node->logfile, $log_start), qr/FATAL:|ERROR:|exit code/, 'and nothing has failed');
	$node->safe_psql('postgres', 'TRUNCATE idem_keys');
}

#
# An owner who is no superuser can drop a database that is being purged
#
$node->safe_psql('postgres', 'CREATE ROLE landlord LOGIN CREATEDB');
$node->safe_psql('postgres', 'CREATE DATABASE let OWNER landlord');
$node->safe_psql('let', 'CREATE EXTENSION idempotency; ' . fill_procedure() . 'CALL fill(300000)');
sql_is($node, 'postgres', <<'SQL', "t\nt", 'DROP DATABASE WITH (FORCE) by the owner');
ALTER SYSTEM SET idempotency.purge_interval = 1;
SELECT pg_reload_conf();
SELECT await_worker('let') > 0;
SET SESSION AUTHORIZATION landlord;
DROP DATABASE let WITH (FORCE);
SQL

#
# More databases than there are counters for: all are purged.  The file of a server
# that was stopped is made to say that template1 has every place.
#
$node->stop;
my $file = $node->data_dir . '/pg_stat/idempotency_stat.stat';
my $places = 500;
my $saved = slurp_file($file);
# a header, then records that begin with the database, and a checksum
my $size = (length($saved) - 36) / $places;
substr($saved, 32 + $_ * $size, 4) = pack('L', 1) for 0 .. $places - 1;
$saved = seal(substr($saved, 0, -4));
open my $out, '>:raw', $file or die;
print $out $saved;
close $out;
$node->start;
$node->safe_psql('postgres', 'CALL fill(10)');
$node->safe_psql('postgres', "SELECT idem_claim('live')") for 1 .. 2;
sql_is($node, 'postgres', "SELECT count(purged) FROM idem_stat WHERE datname = 'postgres'", '0', 'no place is left');
my @told = slurp_file($node->logfile) =~ /LOG:  no place is left for the counters of database "postgres"/g;
is(scalar @told, 1, 'which the log says once');
for (1 .. 2)
{
	ok($node->poll_query_until('postgres', 'SELECT NOT EXISTS (SELECT FROM idem_keys WHERE expires_at <= now())'), 'a database without counters is purged');
	$node->safe_psql('postgres', 'CALL fill(10)');
}

$node->stop;
done_testing();
