
# Keys in a Citus cluster, without Citus: the tests make its catalogs (IdemCitus.pm).  What is
# refused; and where the keys of a tenant go once idem_distribute() has made their table, also
# while shards move.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemCitus;
use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "max_connections = 50\n");
my $schemas = 0;

sub db
{
	my ($name, $sql) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name, 'CREATE EXTENSION idempotency; ' . fake_citus() . ($sql // ''));
	return $name;
}

#
# Refusals
#
my $db = db('refusals', "CREATE ROLE app; GRANT CREATE ON SCHEMA public TO app; SELECT idem_grant('app')");
sub session_says { return says_in($db, @_) }

sub says_in
{
	my ($database, $sql, $expected, $name) = @_;
	my (undef, $out, $err) = $node->psql($database, $sql, on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	my @states = $err =~ /ERROR:\s+(\w{5})/g;

	return is(join(' ', split(/\n/, $out), @states), $expected, $name) || diag($err);
}

my $list = q{INSERT INTO pg_dist_partition VALUES ('idem_keys', 'h', 'key', 's', 1);};
my $unlist = q{DELETE FROM pg_dist_partition;};
session_says("SELECT idem_claim('a'); $list SELECT idem_claim('b'); $unlist SELECT idem_claim('b')",
	't t 0A000', 'a distributed idem_keys is refused in a session that knows the table, and no longer after that');
for ([ 'idem_tokens', q{SELECT idem_token_issue('p', '1 hour')} ], [ 'idem_codes', q{SELECT idem_code_issue('p', 's', '1 hour')} ],
	[ 'idem_secrets', q{SELECT idem_code_issue('p', 's', '1 hour')} ])
{
	my ($table, $sql) = @$_;

	session_says("INSERT INTO pg_dist_partition VALUES ('$table', 'n', NULL, 't', 1); $sql; $unlist", '0A000', "$table in the metadata of Citus is refused");
}
my $worker = 'UPDATE pg_dist_local_group SET groupid = 7;';
my $coordinator = 'UPDATE pg_dist_local_group SET groupid = 0;';
session_says("SELECT idem_claim('c'); $worker SELECT idem_claim('d'); SELECT state FROM idem_lookup('c'); SELECT idem_forget('c'); SELECT state FROM idem_begin('d');"
	  . "SET idempotency.allow_keys_on_worker = on; SELECT idem_claim('d'); RESET idempotency.allow_keys_on_worker; SELECT idem_claim('e'); $coordinator SELECT idem_claim('d')",
	't finished t t f 0A000 0A000 0A000', 'a worker has no new keys of its own, unless a superuser allows it');
session_says("$worker CALL idem_purge(); $coordinator", '0|0|0', 'a purge of a worker without distributed keys');
session_says(q{SELECT idem_digest('k') IS NULL; SET ROLE app; SET idempotency.allow_keys_on_worker = on}, 'f 42501', 'only a superuser allows it');
$node->safe_psql('postgres', 'CREATE DATABASE later');
$node->safe_psql('later', 'CREATE EXTENSION idempotency');
{
	my $session = $node->background_psql('later', on_error_stop => 0);

	is($session->query("SELECT idem_claim('a')"), 't', 'a server without Citus');
	$node->safe_psql('later', fake_citus() . $worker);
	like($session->query("SELECT idem_claim('b')") . $session->{stderr}, qr/of a Citus worker/, 'that becomes a worker: refused in a session of before');
	$session->quit;
}

# Until one session of the database waits for a table.
sub wait_for_table
{
	my ($db) = @_;

	return $node->poll_query_until($db, "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'relation' AND NOT granted");
}

# Citus goes while a claim waits for one of its catalogs.
for my $table (qw(pg_dist_local_group pg_dist_partition))
{
	my $leaving = db("leaving_$table");
	my ($claimer, $dropper) = map { $node->background_psql($leaving, on_error_stop => 0) } 1, 2;

	$dropper->query_safe("SET allow_system_table_mods = on; BEGIN; DROP TABLE $table");
	waiting($claimer, "SELECT idem_claim('a')");
	ok(wait_for_table($leaving), "a claim waits for $table");
	$dropper->query_safe('COMMIT');
	is($claimer->query("SELECT 'end'") . $claimer->{stderr}, "t\nend", 'which is dropped: the claim goes on without it');
	$_->quit for $claimer, $dropper;
}

#
# What idem_distribute() refuses
#
sql_fails($node, 'postgres', "SELECT idem_distribute('idem_keys')", '55000', 'no Citus');
my $fake = "CREATE TABLE orders (tenant bigint, item text); CREATE TABLE days (day date); CREATE TABLE numbers (n numeric); CREATE TABLE padded (c char(3)); CREATE DOMAIN tenant AS bigint; CREATE TABLE domains (t tenant); CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false); CREATE TABLE blind (t text COLLATE blind); SELECT create_distributed_table('orders', 'tenant'), create_distributed_table('days', 'day'), create_distributed_table('numbers', 'n'), create_distributed_table('padded', 'c'), create_distributed_table('domains', 't'), create_distributed_table('blind', 't');";
$db = db('making', $fake . "CREATE TABLE plain (tenant bigint); GRANT EXECUTE ON FUNCTION idem_distribute TO app");
for ([ 'NULL', '22004', 'no table' ], [ "'plain'", '55000', 'a table that is not distributed' ], [ "'days'", '0A000', 'a tenant whose text depends on DateStyle' ],
	[ "'numbers'", '0A000', '7 and 7.0 are one tenant' ], [ "'padded'", '0A000', 'padding' ], [ "'domains'", '0A000', 'a domain' ], [ "'blind'", '0A000', 'a collation that takes a for A' ])
{
	session_says("SELECT idem_distribute($_->[0])", $_->[1], "not made: $_->[2]");
}
session_says("SET ROLE app; SELECT idem_distribute('orders')", '42501', 'not made: an ordinary role');
session_says("$worker SELECT idem_distribute('orders'); $coordinator", '55000', 'not made: on a worker');
session_says("SELECT idem_claim('live'); SELECT idem_distribute('orders'); SELECT idem_claim('live')", 't f 55000', 'not made: keys that have not expired');
session_says("SELECT idem_forget('live'); INSERT INTO fake_workers VALUES ('w1', 5432, '0.1.0 ' || CURRENT_USER || ' public', 0); SELECT idem_distribute('orders'); UPDATE fake_workers SET extension = '0.2.0 app public'; SELECT idem_distribute('orders'); UPDATE fake_workers SET extension = '0.2.0 ' || CURRENT_USER || ' public', keys = 3; SELECT idem_distribute('orders'); TRUNCATE fake_workers",
	't 55000 55000 55000', 'not made: another version, owner, or live keys on a worker');
session_says("SET client_min_messages = error; SELECT idem_distribute('orders'); SELECT idem_distribute('orders')", '42P07', 'made once');
session_says("SELECT count(*), bool_and(NOT has_function_privilege('app', p.oid, 'EXECUTE')) FROM pg_proc p WHERE proname LIKE 'idem\\_%\\_for'", '14|t',
	'functions for tenants, which are nobody\'s at first');
session_says("SELECT t.relowner = k.relowner FROM pg_class t, pg_class k WHERE t.relname = 'idem_tenant_keys' AND k.relname = 'idem_keys'", 't', 'the table has the owner of idem_keys');

session_says("DROP EXTENSION idempotency CASCADE; CREATE EXTENSION idempotency; SELECT idem_distribute('orders'); SELECT count(*) FROM pg_proc p WHERE proname LIKE 'idem\\_%\\_for'", ' 14',
	'made again after DROP EXTENSION, which leaves the table');
$db = db('collated', q{CREATE TABLE orders (tenant text COLLATE "C"); SELECT create_distributed_table('orders', 'tenant'); SELECT idem_distribute('orders')});
session_says("SELECT collname FROM pg_attribute a JOIN pg_collation c ON c.oid = a.attcollation WHERE attrelid = 'idem_tenant_keys'::regclass AND attname = 'tenant'", 'C', 'the tenant has its collation');
# as after a restore
$node->safe_psql('postgres', 'CREATE TABLE idem_tenant_keys (tenant bigint)');
sql_fails($node, 'postgres', "SELECT idem_claim('a')", '0A000', 'without Citus: a table of distributed keys is not passed over');
$node->safe_psql('postgres', 'DROP TABLE idem_tenant_keys');
sql_is($node, 'postgres', "SELECT idem_claim('a')", 't', 'unless it goes');

#
# Where keys go
#
$db = db('shards', fake_shards('bigint', 8));
my $rows = "SELECT tenant, scope, key, result FROM idem_tenant_keys_1001 ORDER BY key";
session_says("BEGIN; SELECT state FROM idem_begin_for(7, 'a'); SELECT idem_release_for(7, 'a'); COMMIT", 'started t', 'a claim, given up');
session_says("BEGIN; SELECT state FROM idem_begin_for(7, 'a'); INSERT INTO orders VALUES (7, 'tea'); SELECT idem_finish_for(7, 'a', '1'); COMMIT;"
	  . "SELECT state, result FROM idem_begin_for(7, 'a'); SELECT state FROM idem_begin('a', scope => '7'); $rows; SELECT count(*) FROM idem_keys",
	'started 1 replayed|1 replayed 7|7|a|1 0', 'a claim, finished: its row is in the shard');
session_says("SELECT state FROM idem_lookup_for(7, 'a'); SELECT idem_claim_for(7, 'b'), idem_claim_for(7, 'b'); SELECT idem_claim_many_for(7, ARRAY['b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k']);"
	  . "SELECT idem_import_for(7, 'l', '2'); SELECT idem_forget_for(7, 'l'); SELECT idem_claim_for(9, 'b'); SELECT idem_forget_scope('9'), idem_forget_scope('7'); SELECT count(*) FROM idem_tenant_keys_1001",
	'finished t|f c d e f g h i j k t t t 1|11 0', 'the other functions');
session_says("BEGIN; SELECT run FROM idem_http_begin_for(7, '\"h\"'); SELECT idem_http_finish_for(7, '\"h\"', 201, '{}'); COMMIT; SELECT run, status FROM idem_http_begin_for(7, '\"h\"')", 't 201 f|201', 'HTTP');
session_says("SELECT idem_claim('b', scope => '07'); SELECT idem_claim('b', scope => 'seven'); SELECT idem_claim('b'); SELECT idem_claim('b', scope => ' 7')",
	'22023 22023 22023 22023', 'a scope that is no tenant, or a tenant in another spelling');
session_says("SELECT idem_claim_for(NULL, 'b'); PREPARE p(bigint) AS SELECT idem_claim_for(\$1, 'b'); EXECUTE p(NULL); SELECT * FROM idem_begin_for(NULL, 'b')", '22004 22004 22004', 'no tenant');
session_says("SELECT idem_import_many(ARRAY['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i'], scopes => ARRAY['7', '9', '7', '7', '7', '7', '7', '7', '7'])", '0A000', 'a batch of two tenants');
session_says("CREATE TABLE events (id text); CREATE TRIGGER once AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION idem_once('id'); INSERT INTO events VALUES ('1')", '0A000', 'the trigger');

# Elsewhere
session_says("SELECT idem_claim_for(8, 'a'); SELECT idem_lookup_for(8, 'a')", '40001 40001', 'a shard whose table is still here');
$node->safe_psql($db, "ALTER TABLE idem_tenant_keys_1002 RENAME TO gone");
session_says("SELECT idem_claim_for(8, 'a'); SELECT * FROM idem_begin_for(8, 'a'); SELECT idem_claim_for(7, 'a')", 't 55000 55000', 'a shard that was never here');

#
# Leases: fences of each node, and past those that the row has
#
my $group = 'UPDATE pg_dist_local_group SET groupid = %d; UPDATE pg_dist_placement SET groupid = %d WHERE shardid = 1001;';
my ($first) = $node->safe_psql($db, "SELECT fence FROM idem_begin_for(7, 'leased', lease => '1 hour')");
is($first % 1024, 0, 'a fence of the coordinator');
$node->safe_psql($db, sprintf($group, 5, 5));
session_says("SELECT idem_release_for(7, 'leased', fence => $first)", 't', 'released on another node');
my ($second) = $node->safe_psql($db, "SELECT fence FROM idem_begin_for(7, 'leased', lease => '1 hour')");
is($second % 1024, 5, 'a fence of group 5');
cmp_ok($second, '>', $first, 'past the first one');
# The row is gone, and this node's sequence was behind: only the clock is left.
my $before = $node->safe_psql($db, "SELECT fence FROM idem_begin_for(7, 'forgotten', lease => '1 hour')");
session_says("SELECT idem_forget_for(7, 'forgotten'); SELECT setval('idem_fence', 1000)", 't 1000', 'a lease that is forgotten');
cmp_ok($node->safe_psql($db, "SELECT fence FROM idem_begin_for(7, 'forgotten', lease => '1 hour')"), '>', $before, 'the next fence is higher');
# the row comes from a node whose sequence is far ahead
my $ahead = $second + 1024 * 1024 * 1_000_000;
$node->safe_psql($db, "UPDATE idem_tenant_keys_1001 SET fence = $ahead, lease_until = clock_timestamp() WHERE key = 'leased'");
my ($third) = $node->safe_psql($db, "SELECT fence FROM idem_begin_for(7, 'leased', lease => '1 hour')");
cmp_ok($third, '>', $ahead, 'past one of a node whose sequence is ahead');
is($third % 1024, 5, 'and of this group');
session_says("SELECT idem_finish_for(7, 'leased', '1', fence => $ahead); SELECT idem_finish_for(7, 'leased', '2', fence => $third)", '2 ID004', 'only the last one finishes');
$node->safe_psql($db, sprintf($group, 1024, 1024));
session_says("SELECT * FROM idem_begin_for(7, 'x', lease => '1 hour'); SELECT idem_claim_for(7, 'x')", 't 54000', 'a group that is too high for fences');
$node->safe_psql($db, sprintf($group, 0, 0));

#
# Moves
#
my $stay = "SELECT move_shard(1001, 0);";
sub session { return $node->background_psql($db, on_error_stop => 0) }
my ($one, $two) = (session(), session());

# † Storms do not see a missing lock; this does.
for my $write ([ "SELECT idem_claim_for(7, 'move 1')", 1 ], [ "SELECT * FROM idem_begin_for(7, 'move 2', lease => '1 hour')", 1 ],
	[ "SELECT * FROM idem_begin_for(7, 'move 3'); SELECT idem_finish_for(7, 'move 3', '1')", 1 ],
	[ "SELECT idem_import_for(7, 'move 4')", 1 ],
	[ "SELECT count(*) FROM idem_claim_many_for(7, ARRAY(SELECT 'many ' || i FROM generate_series(1, 20) i))", 20 ])
{
	my ($sql, $n) = @$write;

	$node->safe_psql($db, 'TRUNCATE idem_tenant_keys_1001');
	$one->query_safe("BEGIN; $sql");
	waiting($two, 'SELECT move_shard(1001, 1)');
	wait_for_waiters($node, $db, 1);
	$one->query_safe('COMMIT');
	is($two->query_safe("SELECT 'end'"), "$n\nend", "a move waits for the transaction of: $sql");
	session_says("SELECT idem_claim_for(7, 'move 1')", '40001', 'and afterwards the keys are elsewhere');
	$node->safe_psql($db, $stay);
}
$node->safe_psql($db, 'TRUNCATE idem_tenant_keys_1001');

for my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	$one->query_safe("BEGIN ISOLATION LEVEL $level; INSERT INTO orders VALUES (7, 'moved'); SELECT * FROM idem_begin_for(7, 'begun')");
	is($node->safe_psql($db, 'SELECT move_shard(1001, 1)'), '0', "$level: a claim that is begun does not keep a move out");
	like($one->query("SELECT idem_finish_for(7, 'begun', '1')") . $one->{stderr}, qr/have moved to another node/, "$level: its finish fails");
	$one->{stderr} = '';
	$one->query('COMMIT');
	session_says("SELECT count(*) FROM orders WHERE item = 'moved'", '0', "$level: and its work is undone");
	$node->safe_psql($db, $stay);
}

# Citus numbers its locks by the place of a shard in its table, and a split shifts them: a move or a split that does not wait.
my $back = "INSERT INTO pg_dist_shard VALUES ('idem_tenant_keys', 1001); INSERT INTO pg_dist_placement VALUES (1001, 0)";
for my $gone ([ 'moved', 'UPDATE pg_dist_placement SET groupid = 1 WHERE shardid = 1001', $stay ], [ 'been split', 'SELECT remove_shard(1001)', $back ])
{
	my ($how, $go, $return) = @$gone;

	for my $end ('COMMIT', "PREPARE TRANSACTION 'gone'")
	{
		$one->query_safe("BEGIN; INSERT INTO orders VALUES (7, 'shifted'); SELECT idem_claim_for(7, 'shifted')");
		$node->safe_psql($db, $go);
		like($one->query($end) . $one->{stderr}, qr/keys that the transaction has written have moved/, "$end: not after the shard has $how in spite of its lock");
		$one->{stderr} = '';
		$node->safe_psql($db, $return);
		session_says("SELECT count(*) FROM orders WHERE item = 'shifted'", '0', 'its work is undone');
	}
}

# The commit waits for one that has not ended.
$node->safe_psql($db, "INSERT INTO fake_tenants VALUES ('7', 1001)");
$one->query_safe("BEGIN; INSERT INTO orders VALUES (7, 'shifted'); SELECT idem_claim_for(7, 'shifted')");
$node->safe_psql($db, 'SELECT add_shard(1000, 1)');
$two->query_safe('BEGIN; SELECT move_shard(1001, 1)');
waiting($one, 'COMMIT');
wait_for_waiters($node, $db, 1);
$two->query_safe('COMMIT');
like($one->query("SELECT 'end'") . $one->{stderr}, qr/keys that the transaction has written have moved/, 'COMMIT: it waits for the lock that the move has, and then fails');
$one->{stderr} = '';
$node->safe_psql($db, "SELECT remove_shard(1000); $stay; DELETE FROM fake_tenants WHERE tenant = '7'");
session_says("SELECT count(*) FROM orders WHERE item = 'shifted'", '0', 'its work is undone');

# LOCK TABLE keeps claims out while Citus makes the table anew, with other shards.
$one->query_safe("BEGIN; SELECT idem_claim_for(7, 'locked')");
waiting($two, "BEGIN; LOCK TABLE idem_tenant_keys IN EXCLUSIVE MODE");
ok(wait_for_table($db), 'LOCK TABLE waits for claims');
$one->query_safe('ROLLBACK');
waiting($one, "SELECT idem_claim_for(7, 'locked')");
ok(wait_for_table($db), 'and claims for it');
$two->query_safe("SELECT add_shard(1004, 0), remove_shard(1001); INSERT INTO fake_tenants VALUES ('7', 1004); COMMIT");
is($one->query_safe("SELECT 'end'"), "t\nend", 'which then find the other shard');
session_says('SELECT count(*) FROM idem_tenant_keys_1001; SELECT count(*) FROM idem_tenant_keys_1004', '0 1', 'and write to it');
$node->safe_psql($db, "DELETE FROM fake_tenants; SELECT remove_shard(1004); $back; INSERT INTO fake_tenants VALUES ('8', 1002)");

# The tenant gets a shard of its own while a claim waits for the lock of the old one.
$node->safe_psql($db, 'SELECT add_shard(1003, 0)');
$two->query_safe('BEGIN; SELECT move_shard(1001, 0)');
$one->query_safe('BEGIN');
waiting($one, "SELECT idem_claim_for(7, 'isolated')");
wait_for_waiters($node, $db, 1);
$two->query_safe("INSERT INTO fake_tenants VALUES ('7', 1003); COMMIT");
is($one->query_safe("SELECT 'end'"), "t\nend", 'a tenant is isolated while a claim waits');
waiting($two, 'SELECT move_shard(1003, 0)');
wait_for_waiters($node, $db, 1);
$one->query_safe('COMMIT');
is($two->query_safe("SELECT 'end'"), "1\nend", 'the new shard does not move before the claim has committed');
session_says('SELECT count(*) FROM idem_tenant_keys_1001; SELECT count(*) FROM idem_tenant_keys_1003', '0 1', 'its key is in the new shard');
$node->safe_psql($db, "DELETE FROM fake_tenants WHERE tenant = '7'");
$_->quit for $one, $two;

#
# Roles, spoofs
#
session_says("SELECT idem_grant('app'); GRANT INSERT ON orders TO app", '', 'an ordinary role');
session_says("SELECT count(*) FROM pg_proc p WHERE proname LIKE 'idem\\_%\\_for' AND has_function_privilege('app', p.oid, 'EXECUTE')", '10', 'gets functions for tenants with its jobs');
session_says("SET ROLE app; BEGIN; SELECT state FROM idem_begin('role', scope => '7'); INSERT INTO orders VALUES (7, 'x'); SELECT idem_finish('role', '1', scope => '7'); COMMIT; SELECT idem_claim('many', scope => '7')",
	'started 1 t', 'and finishes');
session_says("SET ROLE app; SELECT * FROM idem_tenant_keys_1001", '42501', 'without a right to the shard');
my $spoof = db('spoof', $fake . 'GRANT CREATE ON SCHEMA public TO app');
says_in($spoof, "SET ROLE app; CREATE TABLE idem_tenant_keys (LIKE idem_keys, tenant text); RESET ROLE; SELECT idem_claim('a')", 't 42501', 'without a right to idem_keys there is no copy');
says_in($spoof, "SET ROLE app; CREATE TABLE idem_tenant_keys (tenant bigint); RESET ROLE; SELECT create_distributed_table('idem_tenant_keys', 'tenant'); SELECT idem_claim('b')",
	' t', 'a table of that name that is another role\'s is nothing to us');
says_in($spoof, "ALTER TABLE idem_tenant_keys OWNER TO CURRENT_USER; UPDATE pg_dist_partition SET partmethod = 'n', repmodel = 't' WHERE logicalrelid = 'idem_tenant_keys'::regclass; SELECT idem_claim('b')", '0A000', 'a reference table, of which each node has a copy');
says_in($spoof, "DELETE FROM pg_dist_partition WHERE logicalrelid = 'idem_tenant_keys'::regclass; SELECT idem_claim('b')", '0A000', 'and one that Citus does not know');
says_in($spoof, "DROP TABLE idem_tenant_keys; SELECT idem_claim('c')", 't', 'which is seen when it goes');
session_says("$_; SELECT idem_claim('7', scope => '7')", '0A000', "refused, as functions say that keys are distributed: $_")
  for 'ALTER TABLE idem_tenant_keys OWNER TO app', 'ALTER TABLE idem_tenant_keys RENAME TO other';
$node->safe_psql($db, 'ALTER TABLE other RENAME TO idem_tenant_keys; ALTER TABLE idem_tenant_keys OWNER TO CURRENT_USER');
session_says("ALTER TABLE idem_tenant_keys_1001 OWNER TO app; SELECT idem_claim_for(7, 'spoof'); ALTER TABLE idem_tenant_keys_1001 OWNER TO CURRENT_USER; SELECT idem_claim_for(7, 'spoof')", 't 0A000',
	'a shard that is another role\'s is refused');
session_says("ALTER TABLE idem_tenant_keys_1001 DROP CONSTRAINT idem_tenant_keys_1001_pkey; SELECT idem_claim_for(7, 'no key'); ALTER TABLE idem_tenant_keys_1001 ADD PRIMARY KEY (digest, tenant); SELECT idem_claim_for(7, 'no key')",
	't 55000', 'a shard without its primary key is refused');

#
# Purge, of the shards that are here
#
$node->safe_psql($db, 'TRUNCATE idem_tenant_keys_1001, idem_tenant_keys_1003; ALTER TABLE gone RENAME TO idem_tenant_keys_1002');
$node->safe_psql($db, <<'SQL');
INSERT INTO idem_tenant_keys_1001 (digest, scope, key, created_at, finished_at, expires_at, attempt, tenant)
SELECT gen_random_uuid(), '7', 'old ' || i, now(), now(), now(), 1, 7 FROM generate_series(1, 1000) i;
INSERT INTO idem_tenant_keys_1002 SELECT * FROM idem_tenant_keys_1001;
SELECT idem_claim_for(7, 'live');
SQL
session_says('CALL idem_purge(); SELECT count(*) FROM idem_tenant_keys_1001; SELECT count(*) FROM idem_tenant_keys_1002', '1000|0|0 1 1000', 'a purge');
$node->safe_psql($db, 'INSERT INTO idem_tenant_keys_1001 SELECT * FROM idem_tenant_keys_1002; INSERT INTO idem_tenant_keys_1003 SELECT * FROM idem_tenant_keys_1002');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'idempotency'\nidempotency.purge_interval = '1s'\nidempotency.purge_batch_size = 100\nidempotency.purge_databases = '$db'\n");
$node->restart;
ok($node->poll_query_until($db, 'SELECT (SELECT count(*) FROM idem_tenant_keys_1001) + (SELECT count(*) FROM idem_tenant_keys_1003) = 1'), 'the background worker purges shard by shard');
# A shard that is locked: the next purge has looked at what the one before it has told.
my $offset = -s $node->logfile;
my $locker = session();
$locker->query_safe('BEGIN; LOCK TABLE idem_tenant_keys_1001 IN SHARE MODE');
for (1, 2)
{
	$node->safe_psql($db, 'INSERT INTO idem_tenant_keys_1003 SELECT * FROM idem_tenant_keys_1002');
	ok($node->poll_query_until($db, 'SELECT count(*) = 0 FROM idem_tenant_keys_1003'), 'the worker passes over a shard that is locked');
}
$locker->query_safe('ROLLBACK');
unlike(slurp_file($node->logfile, $offset), qr/is not purged while it is locked/, 'and does not take table idem_keys for locked');
$locker->quit;
$node->append_conf('postgresql.conf', "idempotency.purge_interval = 0\n");
$node->reload;
session_says("INSERT INTO idem_tenant_keys_1003 SELECT * FROM idem_tenant_keys_1002; CALL idem_purge(max_rows => 10)", '10|0|0', 'a purge with a limit');
session_says("BEGIN; SELECT idem_claim_for(7, 'last'); SET client_min_messages = error; DROP EXTENSION idempotency CASCADE; COMMIT; SELECT count(*) FROM pg_extension WHERE extname = 'idempotency'", 't 0',
	'DROP EXTENSION after a claim, in one transaction');

done_testing();
