# An answer to a session that asks for synchronous replication is not given from
# a commit which the synchronous standby does not have: a failover to it would
# lose the order that was acknowledged.
use strict;
use warnings;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1);
$primary->start;
$primary->safe_psql('postgres', 'CREATE EXTENSION idempotency; CREATE TABLE orders (item text)');
$primary->backup('backup');

my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->append_conf('postgresql.conf', "synchronous_standby_names = '*'");
$primary->reload;
$primary->safe_psql('postgres', "SELECT idem_claim('the standby works')");
$standby->stop;

# commits without waiting for the standby, which is down
$primary->safe_psql('postgres', <<'SQL');
SET synchronous_commit = off;
BEGIN;
SELECT idem_begin('order-1');
INSERT INTO orders VALUES ('book');
SELECT idem_finish('order-1', '1');
COMMIT;
SQL

is( $primary->safe_psql('postgres', "SET synchronous_commit = local; SELECT state FROM idem_begin('order-1')"),
	'replayed', 'who asks for less is answered at once');

my ($out, $err) = ('', '');
my $asker = IPC::Run::start(
	[
		'psql', '-XAtq', '-d', $primary->connstr('postgres') . ' application_name=asker',
		'-c', "SELECT state FROM idem_begin('order-1')"
	],
	'>', \$out, '2>', \$err);
ok( $primary->poll_query_until(
		'postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'asker' AND wait_event = 'SyncRep'"),
	'the asker waits for the standby');
is($out, '', 'without an answer');

$standby->start;
IPC::Run::finish($asker);
is($out, "replayed\n", 'which comes when the standby has the order');
is($err, '', 'without a warning');
$primary->stop('immediate');
$standby->promote;
is($standby->safe_psql('postgres', "SELECT item FROM orders; SELECT state FROM idem_begin('order-1')"),
	"book\nreplayed", 'and the order survives the failover');

done_testing();
