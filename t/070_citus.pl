
# Keys in a Citus cluster, where Citus is installed: a coordinator and two workers, and for a while a
# third.  A claim goes to the node that has its tenant; and while shards move, tenants get shards of
# their own, nodes come, go and crash, each key has one order, and each order that was answered is
# there.  What of this needs no Citus is in t/069_shards.pl.
#
# IDEM_CITUS_ROUNDS sets the length of the storm: how often each fault happens (default 1).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemDocs;
use IdemTest;
use IPC::Run;
use List::Util qw(shuffle);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($sharedir) = `pg_config --sharedir` =~ /(.*)/;
plan skip_all => 'Citus is not installed' if !-e "$sharedir/extension/citus.control";

my $host = '127.0.0.1';

sub cluster_node
{
	my ($name) = @_;
	my $node = new_node($name, schema => undef, conf => <<'CONF');
listen_addresses = '127.0.0.1'
shared_preload_libraries = 'citus,idempotency'
wal_level = logical
max_connections = 150
max_prepared_transactions = 100
max_worker_processes = 40
max_replication_slots = 20
max_wal_senders = 20
citus.enable_statistics_collection = off
citus.node_connection_timeout = 30s
CONF
	$node->safe_psql('postgres', 'CREATE EXTENSION citus');
	return $node;
}

my @nodes = map { cluster_node($_) } qw(coordinator one two);
my ($coordinator, @workers) = @nodes;

# In a database of this name, as all.
sub sql { my ($node, $sql) = @_; return $node->safe_psql('postgres', $sql) }

sub add_node { my ($node) = @_; return sql($coordinator, "SELECT citus_add_node('$host', " . $node->port . ')') }

sql($coordinator, "SELECT citus_set_coordinator_host('$host', " . $coordinator->port . ')');
add_node($_) for @workers;
sql($coordinator, <<'SQL');
CREATE EXTENSION idempotency;
CREATE TABLE orders (tenant bigint, key text, at timestamptz DEFAULT now(), id uuid DEFAULT gen_random_uuid(), PRIMARY KEY (tenant, id));
SELECT create_distributed_table('orders', 'tenant', shard_count => 8);
SELECT idem_distribute('orders');

CREATE FUNCTION place_order(tenant bigint, key text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	claim record;
BEGIN
	SELECT * INTO claim FROM idem_begin(place_order.key, scope => place_order.tenant::text, wait => '10 s');
	IF claim.state = 'started' THEN
		INSERT INTO orders (tenant, key) VALUES (place_order.tenant, place_order.key);
		PERFORM idem_finish(place_order.key, to_jsonb(place_order.key), scope => place_order.tenant::text);
	ELSIF claim.state <> 'replayed' THEN
		RAISE EXCEPTION USING ERRCODE = '55P03', MESSAGE = claim.state;
	END IF;
	RETURN place_order.tenant || ' ' || place_order.key;
END $$;
SELECT create_distributed_function('place_order(bigint, text)', 'tenant', colocate_with => 'orders');
SQL

sub shard_of { my ($tenant) = @_; return sql($coordinator, "SELECT get_shard_id_for_distribution_column('orders', $tenant)") }

sub node_of
{
	my ($tenant) = @_;
	my $port = sql($coordinator, 'SELECT nodeport FROM citus_shards WHERE shardid = ' . shard_of($tenant));

	return (grep { $_->port == $port } @nodes)[0];
}

sub move_sql
{
	my ($tenant, $to, $mode) = @_;

	return sprintf("SELECT citus_move_shard_placement(%s, '$host', %s, '$host', %s, '%s')", shard_of($tenant), node_of($tenant)->port, $to->port, $mode // 'block_writes');
}

sub other_worker
{
	my ($tenant) = @_;
	my $now = node_of($tenant);

	return (grep { $_ != $now } @workers)[0];
}

# One tenant of each worker.
my %tenant_of;
for my $tenant (1 .. 50)
{
	$tenant_of{ node_of($tenant)->name } //= $tenant;
}
my ($here, $there) = map { $tenant_of{ $_->name } } @workers;

#
# An ordinary role
#
sql($coordinator, 'CREATE ROLE app LOGIN; GRANT SELECT, INSERT ON orders TO app');
sql($coordinator, "SELECT idem_grant('app'); SELECT run_command_on_workers(\$\$SET LOCAL citus.enable_ddl_propagation = off; SELECT idem_grant('app')\$\$)");
my $three = sub {
	my ($tenant, $key) = @_;

	return "BEGIN; SELECT state FROM idem_begin_for($tenant, '$key'); INSERT INTO orders VALUES ($tenant, '$key'); SELECT idem_finish_for($tenant, '$key', '1'); COMMIT;";
};
for my $tenant ($here, $there)
{
	is(sql($coordinator, 'SET ROLE app; ' . $three->($tenant, 'role')), "started\n1", "tenant $tenant: three calls by an ordinary role");
	is(sql($coordinator, "SET ROLE app; SELECT place_order($tenant, 'role')"), "$tenant role", 'a function that is delegated replays');
	is(sql(node_of($tenant), "SELECT count(*) FROM idem_keys"), '0', 'nothing in idem_keys');
}
is(sql($coordinator, "SELECT count(*) FROM orders"), '2', 'one order each');
is(sql($coordinator, "SELECT count(*), count(DISTINCT tenant) FROM idem_tenant_keys"), '2|2', 'one key each');

#
# Errors
#
sql_fails($coordinator, 'postgres', "SELECT idem_begin('k', scope => '$here')", '55000', 'not delegated: an error on the coordinator');
sql_fails($coordinator, 'postgres', "SELECT state FROM idem_begin_for(NULL, 'k')", '22004', 'no tenant');
sql_fails($coordinator, 'postgres', "BEGIN; SELECT create_distributed_table('idem_keys', 'digest'); SELECT idem_claim('k', scope => '$here')", '0A000', 'idem_keys itself is not to be distributed');

#
# Any node, and two nodes in one transaction
#
is(sql($workers[0], "SELECT idem_claim_for($there, 'any'); SELECT idem_claim_for($here, 'any')"), "t\nt", 'both tenants by way of a worker');
is(sql($workers[1], "SELECT place_order($here, 'any node'); " . $three->($here, 'any node 2')), "$here any node\nstarted\n1", 'work by way of the other worker');
my $both = sub {
	my ($key, $end) = @_;

	return join('; ', 'BEGIN', (map {; "SELECT state FROM idem_begin_for($_, '$key')", "INSERT INTO orders VALUES ($_, '$key')", "SELECT idem_finish_for($_, '$key', '1')" } $here, $there), $end);
};
is(sql($coordinator, $both->('both', 'COMMIT')), "started\n1\nstarted\n1", 'two tenants on two workers in one transaction');
is(sql($coordinator, $both->('neither', 'ROLLBACK')), "started\n1\nstarted\n1", 'rolled back');
is(sql($coordinator, "SELECT key, count(*) FROM orders WHERE key IN ('both', 'neither') GROUP BY key"), 'both|2', 'both or none');
is(sql($coordinator, "SELECT key, count(*) FROM idem_tenant_keys WHERE key IN ('both', 'neither') GROUP BY key"), 'both|2', 'with their keys');

#
# Fences of each node are different, and grow when a row moves
#
my %fence;
$fence{$_} = sql($coordinator, "SELECT fence FROM idem_begin_for($_, 'lease', lease => '1 hour')") for $here, $there;
isnt($fence{$here} % 1024, $fence{$there} % 1024, 'fences of two workers');
sql($coordinator, "SELECT idem_release_for($here, 'lease', fence => $fence{$here})");
sql($coordinator, move_sql($here, other_worker($here)));
my $new = sql($coordinator, "SELECT fence FROM idem_begin_for($here, 'lease', lease => '1 hour')");
is($new % 1024, $fence{$there} % 1024, 'a lease on the other worker');
cmp_ok($new, '>', $fence{$here}, 'with a higher fence');

#
# † A move waits for a claim that has written.  Storms do not see a missing lock; this does.
#
for my $mode ('block_writes', 'force_logical')
{
	my $session = $coordinator->background_psql('postgres');
	my $mover = $coordinator->background_psql('postgres', timeout => $PostgreSQL::Test::Utils::timeout_default);

	$session->query_safe("BEGIN; SELECT idem_claim_for($here, 'moved $mode')");
	my $worker = node_of($here);
	waiting($mover, move_sql($here, other_worker($here), $mode));
	ok($worker->poll_query_until('postgres', "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"), "$mode: a move waits for the claim") if $mode eq 'block_writes';
	$session->query_safe('COMMIT');
	$mover->query_safe("SELECT 'end'");
	isnt(node_of($here)->name, $worker->name, "$mode: the shard has moved");
	is(sql($coordinator, "SELECT idem_claim_for($here, 'moved $mode')"), 'f', "$mode: the key has moved with it");
	$_->quit for $session, $mover;
}
# a claim that has not written yet does not keep a move out, and cannot be finished then
{
	my $session = $coordinator->background_psql('postgres', on_error_stop => 0);

	$session->query_safe("BEGIN; SELECT state FROM idem_begin_for($here, 'begun')");
	sql($coordinator, move_sql($here, other_worker($here)));
	# it is sent to the new node, where nothing has begun
	like($session->query("SELECT idem_finish_for($here, 'begun', '1')") . $session->{stderr}, qr/key "begun" has no open claim in this transaction/, 'a claim whose shard moves away is not finished');
	$session->quit;
	is(sql($coordinator, "SELECT idem_claim_for($here, 'begun')"), 't', 'and its key is free');
}

#
# Purge
#
sql($coordinator, "SELECT idem_claim_for($here, 'short', ttl => '1 ms'); SELECT idem_claim_for($there, 'short', ttl => '1 ms')");
sql($_, 'CALL idem_purge()') for @nodes;
is(sql($coordinator, "SELECT count(*) FROM idem_tenant_keys WHERE key = 'short'"), '0', 'each node purges its shards');

# A database of its own in the cluster.
sub cluster_database
{
	my ($db) = @_;

	for my $node ($coordinator, @workers)
	{
		sql($node, "CREATE DATABASE $db");
		$node->safe_psql($db, 'CREATE EXTENSION citus');
	}
	$coordinator->safe_psql($db, "SELECT citus_set_coordinator_host('$host', " . $coordinator->port . ');' . join '', map { "SELECT citus_add_node('$host', " . $_->port . ');' } @workers);
	return $db;
}

#
# Tenants of a type that is passed by reference.  † Citus takes NULL for a value, and its coordinator
# crashes.
#
for my $type ([ 'text', 'a b', "o''clock", 'ä' ], [ 'uuid', '11111111-2222-3333-4444-555555555555' ])
{
	my ($name, @tenants) = @$type;
	my $db = cluster_database("tenants_$name");

	$coordinator->safe_psql($db, "CREATE EXTENSION idempotency; CREATE TABLE orders (tenant $name); SELECT create_distributed_table('orders', 'tenant', shard_count => 4); SELECT idem_distribute('orders')");
	for my $tenant (@tenants)
	{
		is($coordinator->safe_psql($db, "SELECT idem_claim_for('$tenant', 'k'); SELECT idem_claim_for('$tenant', 'k')"), "t\nf", "$name: tenant $tenant");
	}
	sql_fails($coordinator, $db, $_, '22004', "$name: no tenant: $_")
	  for "SELECT idem_claim_for(NULL, 'k')", "PREPARE p($name) AS SELECT * FROM idem_begin_for(\$1, 'k'); EXECUTE p(NULL)", "SELECT * FROM idem_http_begin_for(NULL::$name, 'k')";
	sql_fails($coordinator, $db, "SELECT idem_claim_for(t, 'k') FROM (VALUES (NULL::$name)) v(t)", '22004', "$name: none, from a row");
	is($coordinator->safe_psql($db, 'SELECT count(*) FROM idem_tenant_keys'), scalar @tenants, "$name: the coordinator is still up");
}

#
# The split of one shard shifts the numbers of Citus' locks, so the move or the split of another one does
# not wait for an open claim.
#
for my $then ('move', 'split')
{
	my $db = cluster_database("splits_$then");
	my $in_db = sub { return $coordinator->safe_psql($db, $_[0]) };

	$in_db->("CREATE EXTENSION idempotency; CREATE TABLE orders (tenant bigint, item text); SELECT create_distributed_table('orders', 'tenant', shard_count => 4); SELECT idem_distribute('orders')");
	my @shards = split /\n/, $in_db->("SELECT shardid FROM pg_dist_shard WHERE logicalrelid = 'orders'::regclass ORDER BY shardminvalue::integer");
	my ($first, $last) = map { $in_db->("SELECT min(t) FROM generate_series(1, 100) t WHERE get_shard_id_for_distribution_column('orders', t) = $_") } @shards[ 0, 2 ];
	my $isolate = sub { return "SELECT isolate_tenant_to_new_shard('orders', $_[0], 'CASCADE', shard_transfer_mode => 'block_writes')" };
	my $session = $coordinator->background_psql($db, on_error_stop => 0);

	# all in one connection to the worker, which commits in one phase
	$session->query_safe("BEGIN; SELECT idem_claim_for($last, 'split'); INSERT INTO orders VALUES ($last, 'tea')");
	$in_db->($isolate->($first));
	$in_db->($then eq 'split' ? $isolate->($last) : <<"SQL");
SELECT citus_move_shard_placement(s.shardid, s.nodename, s.nodeport, n.nodename, n.nodeport, 'block_writes') FROM citus_shards s, pg_dist_node n
WHERE s.shardid = $shards[2] AND n.shouldhaveshards AND n.nodeport <> s.nodeport
SQL
	like($session->query('COMMIT') . $session->{stderr}, qr/could not serialize access/, "$then: a split shifts the locks, and a shard goes from under a claim: its transaction fails");
	$session->quit;
	is($in_db->("SELECT idem_claim_for($last, 'split'); SELECT count(*) FROM orders"), "t\n0", "$then: it has left neither key nor order");
}

#
# A claim that comes while the tables are made anew, as doc/explanation/scale.md says.  † Under a weaker
# lock, it has one on the coordinator and waits for one on a worker, for ever.
#
{
	my $db = cluster_database('anew');
	my ($anew) = grep { /LOCK TABLE/ } map { $_->[1] } blocks("$FindBin::RealBin/../doc/explanation/scale.md");
	my ($lock, $alter) = $anew =~ /(BEGIN;\nLOCK TABLE [^;]*;)\n(.*)/s;
	my ($session, $claimer) = map { $coordinator->background_psql($db, on_error_stop => 0) } 1, 2;

	$coordinator->safe_psql($db, "CREATE EXTENSION idempotency; CREATE TABLE orders (tenant bigint, item text); SELECT create_distributed_table('orders', 'tenant', shard_count => 8); SELECT idem_distribute('orders'); SELECT idem_claim_for(7, 'before')");
	$session->query_safe("SET client_min_messages = warning; $lock");
	waiting($claimer, "SELECT idem_claim_for(7, 'meanwhile')");
	ok($coordinator->poll_query_until($db, "SELECT count(*) > 0 FROM pg_stat_activity WHERE query ~ 'meanwhile' AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()"), 'a claim waits on the coordinator while tables are made anew');
	$session->query_safe($alter);
	like($claimer->query("SELECT 'end'") . $claimer->{stderr}, qr/the keys of tenant "7" are on another node/, 'and then fails');
	is($coordinator->safe_psql($db, "SELECT idem_claim_for(7, 'meanwhile'); SELECT idem_claim_for(7, 'before')"), "t\nf", 'sent again, it goes to the new shard, where the old keys are');
	$_->quit for $session, $claimer;
}

#
# doc/explanation/scale.md, block by block, in a database of its own
#
cluster_database('shop');
{
	my @blocks = blocks("$FindBin::RealBin/../doc/explanation/scale.md");
	my $start = sub {
		my ($sql, $out, $err) = @_;

		return IPC::Run::start([ 'psql', '-XqP', 'pager=off', '-d', $coordinator->connstr('shop') ], '<', \$sql, '>', $out, '2>', $err);
	};

	while (my $block = shift @blocks)
	{
		my ($language, $sql, $line) = @$block;
		my ($out, $err, $other_out, $other_err) = ('') x 4;

		next if $language ne 'sql';
		my $run = $start->($sql, \$out, \$err);
		# requests go on while a shard moves
		my $other = @blocks && $blocks[0][1] =~ /^-- meanwhile/ ? $start->((shift @blocks)->[1], \$other_out, \$other_err) : undef;
		$run->finish;
		$other->finish if $other;
		# a claim may have to run again when its shard moves, and is
		$err =~ s/^.*could not serialize access.*\n(?:HINT|CONTEXT|PL|while).*\n//mg if $other;
		s/^(?:NOTICE|DETAIL|CONTEXT|SQL statement).*\n//mg for $err, $other_err;
		is($err . $other_err, '', "doc/explanation/scale.md:$line runs");
		is(trimmed($out), trimmed($blocks[0][1]), "doc/explanation/scale.md:$line shows what is printed") if @blocks && $blocks[0][0] eq 'text';
	}
}

#
# A storm: clients send the same requests, each in an order of its own, until each request has
# had its answer; then the next ones, until all faults have happened.
#
my $rounds = $ENV{IDEM_CITUS_ROUNDS} // 1;
my $dir = PostgreSQL::Test::Utils::tempdir();
my %count = map { $_ => 0 } qw(answers errors faults);
my $last_round;

sub requests
{
	my ($round) = @_;

	return map { my $tenant = $_; map { "$tenant s$round-$_" } 1 .. 20 } 1 .. 20;
}

# False if there is nothing left to do.
sub start_client
{
	my ($client) = @_;
	my @left = grep { !$client->{answered}{$_} } requests($client->{round});

	if (!@left)
	{
		$client->{answered} = {};
		return $client->{run} = undef if defined $last_round && $client->{round} >= $last_round;
		@left = requests(++$client->{round});
	}
	$client->{file} = sprintf '%s/client-%d-%d', $dir, $client->{id}, $client->{runs}++;
	append_to_file("$client->{file}.sql", join '', map { my ($tenant, $key) = split / /; "SELECT place_order($tenant, '$key');\n" } shuffle @left);
	return $client->{run} = IPC::Run::start([ 'psql', '-XAtq', '-d', $client->{node}->connstr('postgres'), '-f', "$client->{file}.sql" ],
		'>', "$client->{file}.out", '2>', "$client->{file}.err");
}

sub look_after
{
	my ($client) = @_;

	return 0 if !$client->{run};
	$client->{run}->reap_nb;
	return 1 if $client->{run}->pumpable;
	IPC::Run::finish($client->{run});
	my @answered = slurp_file("$client->{file}.out") =~ /^(\d+ s\S+)\n/mg;
	$client->{answered}{$_} = 1 for @answered;
	$count{answers} += @answered;
	$count{errors} += () = slurp_file("$client->{file}.err") =~ /ERROR|FATAL|lost/g;
	return start_client($client);
}

# A fault may fail, as a move of a shard to a node that has just crashed.
sub try_sql
{
	my ($node, $sql) = @_;
	my ($ret, undef, $err) = $node->psql('postgres', $sql);

	note($err) if $ret;
	return $ret == 0;
}

my ($third, $isolated) = (undef, 0);
sub move { my ($mode) = @_; my $tenant = 1 + int rand 20; return try_sql($coordinator, move_sql($tenant, other_worker($tenant), $mode)) }
my @faults = (
	[ 'a shard moves' => sub { move('block_writes') } ],
	[ 'a worker crashes' => sub { crash($workers[ rand 2 ]); 1 } ],
	[ 'a shard moves by logical replication' => sub { move('force_logical') } ],
	[ 'a tenant is isolated' => sub { $isolated++; try_sql($coordinator, "SELECT isolate_tenant_to_new_shard('orders', $isolated, 'CASCADE', shard_transfer_mode => 'block_writes')") } ],
	[ 'the coordinator crashes' => sub { crash($coordinator); 1 } ],
	[ 'a node is added' => sub {
		$third //= cluster_node('three');
		push @nodes, $third if @nodes == 3;
		try_sql($coordinator, "SELECT citus_add_node('$host', " . $third->port . "); SELECT citus_set_node_property('$host', " . $third->port
			  . ", 'shouldhaveshards', true); SELECT rebalance_table_shards(shard_transfer_mode => 'block_writes')");
	} ],
	[ 'connections are terminated' => sub {
		try_sql($nodes[ rand @nodes ], "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()");
	} ],
	[ 'a node is drained' => sub { try_sql($coordinator, "SELECT citus_drain_node('$host', " . $third->port . ", 'block_writes')") } ],
);

my @clients = map { { id => $_, runs => 0, round => 0, answered => {}, node => $_ == 4 ? $workers[1] : $coordinator } } 1 .. 4;
start_client($_) for @clients;
my %happened;
for my $fault ((@faults) x $rounds)
{
	# faults are not to come faster than work
	my $answers = $count{answers};
	ok(eventually(sub { look_after($_) for @clients; $count{answers} > $answers }), "before: $fault->[0]");
	$happened{ $fault->[0] }++ if $fault->[1]->();
}
$last_round = (sort { $b <=> $a } map { $_->{round} } @clients)[0];
ok(eventually(sub { !grep { look_after($_) } @clients }), 'each request has its answer');
sql($coordinator, 'SELECT recover_prepared_transactions()');
note("storm: $count{answers} answers and $count{errors} errors to ", 20 * 20 * ($last_round + 1), ' requests; ', join ', ', map { "$_->[0]: " . ($happened{ $_->[0] } // 0) } @faults);

sub in_storm { my ($what) = @_; return sql($coordinator, "SELECT count(*) FROM ($what) w") }
is(in_storm("SELECT 1 FROM orders WHERE key LIKE 's%' GROUP BY tenant, key HAVING count(*) > 1"), '0', 'storm: no order twice');
is(in_storm("SELECT DISTINCT tenant, key FROM orders WHERE key LIKE 's%'"), 20 * 20 * ($last_round + 1), 'storm: no order lost');
is(in_storm("SELECT 1 FROM idem_tenant_keys k FULL JOIN orders o ON o.tenant = k.tenant AND o.key = k.key WHERE coalesce(k.key, o.key) LIKE 's%' AND (o.key IS NULL OR k.finished_at IS NULL)"),
	'0', 'storm: keys and orders agree');

#
# Two workers in one transaction, and a crash of each node at two points of the commit: one worker
# has prepared and does not say so, or the coordinator has decided and does not say so.
#
sub synchronous
{
	my ($node, $standby) = @_;

	return sql($node, "ALTER SYSTEM SET synchronous_standby_names = '$standby'; SELECT pg_reload_conf()");
}

# The storm may have left both tenants on one worker.
for ([ $here, $workers[0] ], [ $there, $workers[1] ])
{
	my ($tenant, $to) = @$_;

	ok(eventually(sub { node_of($tenant) == $to || try_sql($coordinator, move_sql($tenant, $to)) }), "tenant $tenant on worker " . $to->name);
}

my %outcome;
for my $stuck ($workers[1], $coordinator)
{
	for my $victim ($coordinator, @workers)
	{
		my $key = 'p ' . $stuck->name . ' ' . $victim->name;
		my ($out, $err) = ('', '');

		synchronous($stuck, 'nobody');
		my $run = IPC::Run::start([ 'psql', '-XAtq', '-d', $coordinator->connstr('postgres'), '-c', $both->($key, 'COMMIT') ], '>', \$out, '2>', \$err);
		ok($stuck->poll_query_until('postgres', "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"), $stuck->name . ' waits');
		crash($victim);
		synchronous($stuck, '');
		IPC::Run::finish($run);
		ok(eventually(sub {
			try_sql($coordinator, 'SELECT recover_prepared_transactions()') && !grep { sql($_, 'SELECT count(*) FROM pg_prepared_xacts') > 0 } @workers;
		}), $victim->name . ' has crashed: Citus ends what was left');
		my %found = map { $_ => sql($coordinator, "SELECT count(*) FROM $_ WHERE key = '$key'") } qw(orders idem_tenant_keys);
		is($found{orders}, $found{idem_tenant_keys}, 'both keys and both orders, or none');
		isnt($found{orders}, 1, 'never those of one tenant');
		is(sql($coordinator, join '; ', map { "SELECT place_order($_, '$key')" } $here, $there), "$here $key\n$there $key", 'the next caller gets an answer');
		is(sql($coordinator, "SELECT count(*) FROM orders WHERE key = '$key'"), 2, 'and each tenant has one order');
		$outcome{ $found{orders} ? 'committed' : 'rolled back' }++;
	}
}
note('two phases: ', join ', ', map { "$_: $outcome{$_}" } sort keys %outcome);

done_testing();
