
# The commit guard: what a claim protects cannot commit while the claim is
# open, by any way of committing, and not on a foreign server either.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');
my ($port, $host) = ($node->port, $node->host);

$node->safe_psql('postgres', 'CREATE TABLE orders (k text);' . wait_until_procedure());

# The effect of a transaction is there, or not.
sub effect_is
{
	my ($k, $expected, $name, $table) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($node, 'postgres', 'SELECT count(*) FROM ' . ($table // 'orders') . " WHERE k = '$k'", $expected, $name);
}

#
# Ways to commit
#
$node->safe_psql('postgres', <<'SQL');
CREATE PROCEDURE commit_open(k text) LANGUAGE plpgsql AS $$
DECLARE
	r record;
BEGIN
	r := idem_begin(k);
	INSERT INTO orders VALUES (k);
	COMMIT;
END $$;
CREATE FUNCTION begin_in_function(k text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	r record;
BEGIN
	r := idem_begin(k);
	INSERT INTO orders VALUES (k);
	RETURN r.state;
END $$;

-- claims as late as in the commit itself
CREATE TABLE late (k text);
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_begin(new.k);
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION late();
SQL

my %open = (
	'COMMIT' => "BEGIN; SELECT idem_begin('%s'); INSERT INTO orders VALUES ('%s'); COMMIT",
	'END' => "BEGIN; SELECT idem_begin('%s'); INSERT INTO orders VALUES ('%s'); END",
	'COMMIT AND CHAIN' => "BEGIN; SELECT idem_begin('%s'); INSERT INTO orders VALUES ('%s'); COMMIT AND CHAIN; COMMIT",
	'SERIALIZABLE' => "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT idem_begin('%s'); INSERT INTO orders VALUES ('%s'); COMMIT",
	'effect first' => "BEGIN; INSERT INTO orders VALUES ('%s'); SELECT idem_begin('%s'); COMMIT",
	'savepoint' => "BEGIN; SAVEPOINT a; SELECT idem_begin('%s'); RELEASE a; INSERT INTO orders VALUES ('%s'); COMMIT",
	'autocommit' => "WITH c AS (SELECT * FROM idem_begin('%s')) INSERT INTO orders SELECT '%s' FROM c",
	'lone begin' => "SELECT idem_begin('%s', scope => '%s')",
	'one message' => "SELECT idem_begin('%s') \\; INSERT INTO orders VALUES ('%s') \\; SELECT 1;",
	'function' => "SELECT begin_in_function('%s'), '%s'",
	'DO' => "DO \$\$ BEGIN PERFORM idem_begin('%s'); INSERT INTO orders VALUES ('%s'); END \$\$",
	'DO with COMMIT' => "DO \$\$ BEGIN PERFORM idem_begin('%s'); INSERT INTO orders VALUES ('%s'); COMMIT; END \$\$",
	'procedure' => "CALL commit_open('%s') -- %s",
	'deferred trigger' => "INSERT INTO late VALUES ('%s') RETURNING '%s'",
	'PREPARE TRANSACTION' => "BEGIN; SELECT idem_begin('%s'); INSERT INTO orders VALUES ('%s'); PREPARE TRANSACTION 'open'",
);
for my $name (sort keys %open)
{
	my $k = "open $name";

	sql_fails($node, 'postgres', sprintf($open{$name}, $k, $k), 'ID005', "open: $name");
	effect_is($k, '0', "open: $name: no effect");
	sql_is($node, 'postgres', "BEGIN; SELECT state FROM idem_begin('$k'); ROLLBACK", 'started', "open: $name: key is free");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), '0', 'nothing was prepared');
effect_is('open deferred trigger', '0', 'nothing was written', 'late');

# The error of a COMMIT ends the transaction, and the session goes on.
my ($ret, $out, $err) = $node->psql('postgres', <<'SQL', on_error_stop => 0);
BEGIN;
INSERT INTO orders VALUES ('go on');
SELECT state FROM idem_begin('go on');
COMMIT;
BEGIN;
INSERT INTO orders VALUES ('go on');
SELECT state FROM idem_begin('go on');
SELECT idem_finish('go on', '1');
COMMIT;
SELECT state FROM idem_begin('go on');
SQL
is($out, "started\nstarted\n1\nreplayed", 'the session goes on after the error');
like($err, qr/key "go on"/, 'the message names the key');
like($err, qr/HINT: .*idem_finish.*idem_release/, 'and what to call');
effect_is('go on', '1', 'one effect');

#
# Two-phase commit of a finished claim
#
$node->safe_psql('postgres', <<'SQL');
BEGIN;
SELECT idem_begin('2pc');
INSERT INTO orders VALUES ('2pc');
SELECT idem_finish('2pc', '"done"');
PREPARE TRANSACTION 'good';
BEGIN;
SELECT idem_begin('2pc undone');
SELECT idem_finish('2pc undone', '"done"');
PREPARE TRANSACTION 'bad';
BEGIN;
SELECT idem_claim_many('{2pc a, 2pc b}');
PREPARE TRANSACTION 'batch';
SQL

sub check_prepared
{
	my ($when) = @_;

	for my $k ('2pc', '2pc undone', '2pc a')
	{
		sql_is($node, 'postgres', "SELECT state, retry_after IS NOT NULL FROM idem_begin('$k')",
			'in_progress|t', "$k, $when: in progress");
		sql_fails($node, 'postgres', "SET lock_timeout = '50ms'; SELECT idem_claim('$k')",
			'55P03', "$k, $when: a claim waits");
		sql_fails($node, 'postgres', "SET lock_timeout = '50ms'; SELECT idem_claim_many(ARRAY['$k'])",
			'55P03', "$k, $when: a batch waits");
		sql_is($node, 'postgres', "SELECT count(*) FROM idem_lookup('$k')", '0', "$k, $when: nothing committed");
	}
}

check_prepared('prepared');
$node->stop('immediate');
$node->start;
check_prepared('after a crash');

$node->safe_psql('postgres', "COMMIT PREPARED 'good'; ROLLBACK PREPARED 'bad'; COMMIT PREPARED 'batch'");
sql_is($node, 'postgres', "SELECT state, result FROM idem_begin('2pc')", 'replayed|"done"', 'COMMIT PREPARED');
effect_is('2pc', '1', 'with its effect');
sql_is($node, 'postgres', "BEGIN; SELECT state, result FROM idem_begin('2pc undone'); ROLLBACK", 'started|', 'ROLLBACK PREPARED');
sql_is($node, 'postgres', "SELECT * FROM idem_claim_many('{2pc a, 2pc b, 2pc c}')", '2pc c', 'COMMIT PREPARED of a batch');

# The session that prepared holds nothing back and is no exception.
sql_is($node, 'postgres', <<'SQL', "started\n1\nin_progress\nstarted\n2\nreplayed", 'the session that prepared');
BEGIN;
SELECT state FROM idem_begin('2pc same');
SELECT idem_finish('2pc same', '1');
PREPARE TRANSACTION 'same';
SELECT state FROM idem_begin('2pc same');
ROLLBACK PREPARED 'same';
BEGIN;
SELECT state FROM idem_begin('2pc same');
SELECT idem_finish('2pc same', '2');
PREPARE TRANSACTION 'same';
COMMIT PREPARED 'same';
SELECT state FROM idem_begin('2pc same');
SQL

#
# A key whose time runs out before the commit
#
my %expiring = (
	'idem_finish' => "SELECT idem_begin('%s', '20 milliseconds'); INSERT INTO orders VALUES ('%s'); SELECT idem_finish('%s')",
	'idem_claim' => "SELECT idem_claim('%s', '20 milliseconds'); INSERT INTO orders VALUES ('%s') -- %s\n",
	'idem_claim, the second of two' =>
	  "SELECT idem_claim('long %s', '1 day'), idem_claim('%s', '20 milliseconds'); INSERT INTO orders VALUES ('%s')",
	'idem_claim, the first of two' =>
	  "SELECT idem_claim('%s', '20 milliseconds'), idem_claim('long %s', '1 day'); INSERT INTO orders VALUES ('%s')",
	'idem_claim in a released savepoint' =>
	  "SAVEPOINT a; SELECT idem_claim('%s', '20 milliseconds'); RELEASE a; INSERT INTO orders VALUES ('%s') -- %s\n",
	'idem_claim_many' => "SELECT idem_claim_many(ARRAY['%s', '2 %s'], '20 milliseconds'); INSERT INTO orders VALUES ('%s')",
	'idem_finish of one of two' =>
	  "SELECT idem_begin('%s', '20 milliseconds'), idem_begin('long %s', '1 day'); INSERT INTO orders VALUES ('%s')",
);
for my $name (sort keys %expiring)
{
	my $k = "expiring $name";
	my $work = sprintf($expiring{$name}, $k, $k, $k);

	$work .= "; SELECT idem_finish('$k'), idem_finish('long $k')" if $name =~ /of one of two/;
	for my $commit ('COMMIT', "PREPARE TRANSACTION 'expiring'")
	{
		sql_fails($node, 'postgres', <<"SQL", 'ID005', "$name, expired: $commit");
BEGIN;
$work;
SELECT clock_timestamp() + '20 milliseconds' AS finished \\gset
CALL wait_until(:'finished');
$commit;
SQL
	}
	effect_is($k, '0', "$name, expired: no effect");
}

# Where the expiring claim was rolled back, it does not count.
sql_is($node, 'postgres', <<'SQL', "t\nt\nt", 'an expiring claim that was rolled back');
BEGIN;
SELECT idem_claim('rolled back long');
SAVEPOINT a;
SELECT idem_claim('rolled back', '20 milliseconds');
SELECT clock_timestamp() + '20 milliseconds' AS finished \gset
ROLLBACK TO a;
CALL wait_until(:'finished');
COMMIT;
SELECT NOT idem_claim('rolled back long');
SQL

#
# Ahead of postgres_fdw, which commits on the other side in its own pre-commit
# callback.  The connection is opened where the session first needs it, so
# every round is a session of its own; the callbacks' order depends on that.
#
SKIP:
{
	skip 'postgres_fdw is not installed', 1
	  unless $node->safe_psql('postgres', "SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'");

	$node->safe_psql('postgres', <<"SQL");
CREATE EXTENSION postgres_fdw;
CREATE TABLE remote (k text PRIMARY KEY);
CREATE SERVER loopback FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname 'postgres');
CREATE USER MAPPING FOR CURRENT_USER SERVER loopback;
CREATE FOREIGN TABLE far (k text) SERVER loopback OPTIONS (table_name 'remote');
CREATE FOREIGN TABLE far_estimated (k text) SERVER loopback OPTIONS (table_name 'remote', use_remote_estimate 'true');

CREATE FUNCTION far_function(key text, finish boolean) RETURNS void LANGUAGE plpgsql AS \$\$
DECLARE
	state text;
BEGIN
	SELECT b.state INTO state FROM idem_begin(key) b;
	INSERT INTO far VALUES (key);
	IF finish THEN PERFORM idem_finish(key); END IF;
END \$\$;
CREATE FUNCTION far_expression(key text, finish boolean) RETURNS void LANGUAGE plpgsql AS \$\$
DECLARE
	r record;
	j jsonb;
BEGIN
	r := idem_begin(key);
	INSERT INTO far VALUES (key);
	IF finish THEN j := idem_finish(key); END IF;
END \$\$;
CREATE PROCEDURE far_procedure(key text, finish boolean) LANGUAGE plpgsql AS \$\$
DECLARE
	r record;
	j jsonb;
BEGIN
	r := idem_begin(key);
	INSERT INTO far VALUES (key);
	IF finish THEN j := idem_finish(key); END IF;
	COMMIT;
END \$\$;
-- no query after the write
CREATE PROCEDURE far_copy(key text, finish boolean) LANGUAGE plpgsql AS \$\$
DECLARE
	r record;
	j jsonb;
BEGIN
	r := idem_begin(key);
	EXECUTE format('COPY far FROM PROGRAM %L', 'echo ' || key);
	IF finish THEN j := idem_finish(key); END IF;
	COMMIT;
END \$\$;
-- the first use of the connection fails and is caught
CREATE PROCEDURE far_caught(key text, finish boolean) LANGUAGE plpgsql AS \$\$
DECLARE
	r record;
	j jsonb;
BEGIN
	r := idem_begin(key);
	BEGIN
		INSERT INTO far VALUES (NULL);
	EXCEPTION WHEN others THEN NULL;
	END;
	INSERT INTO far VALUES (key);
	IF finish THEN j := idem_finish(key); END IF;
	COMMIT;
END \$\$;
-- commits while a loop over another query is open
CREATE PROCEDURE far_loop(key text, finish boolean) LANGUAGE plpgsql AS \$\$
DECLARE
	i int;
	r record;
	j jsonb;
BEGIN
	FOR i IN SELECT g FROM generate_series(1, 3) g LOOP
		CONTINUE WHEN i > 1;
		r := idem_begin(key);
		INSERT INTO far VALUES (key);
		IF finish THEN j := idem_finish(key); END IF;
		COMMIT;
	END LOOP;
END \$\$;
-- writes to the other side at commit time
CREATE TABLE near (k text);
CREATE FUNCTION near() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
	INSERT INTO far VALUES (new.k);
	RETURN NULL;
END \$\$;
CREATE CONSTRAINT TRIGGER near AFTER INSERT ON near DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION near();
SQL

	# %1$s is the key, %2$s idem_finish or not
	my %far = (
		'INSERT' => q{BEGIN; SELECT idem_begin('%1$s'); INSERT INTO far VALUES ('%1$s'); %2$s; COMMIT},
		'connected before' =>
		  q{SELECT count(*) FROM far; BEGIN; SELECT idem_begin('%1$s'); INSERT INTO far VALUES ('%1$s'); %2$s; COMMIT},
		'connected before in the transaction' =>
		  q{BEGIN; SELECT count(*) FROM far; SELECT idem_begin('%1$s'); INSERT INTO far VALUES ('%1$s'); %2$s; COMMIT},
		'written before' => q{BEGIN; INSERT INTO far VALUES ('%1$s'); SELECT idem_begin('%1$s'); %2$s; COMMIT},
		'planning connects' => q{BEGIN; SELECT idem_begin('%1$s'); UPDATE far_estimated SET k = 'none' WHERE k = 'nobody';
			INSERT INTO far VALUES ('%1$s'); %2$s; COMMIT},
		'COPY' => q{BEGIN; SELECT idem_begin('%1$s'); COPY far FROM PROGRAM 'echo %1$s'; %2$s; COMMIT},
		'CTE' => q{WITH c AS (SELECT * FROM idem_begin('%1$s')), o AS (INSERT INTO far SELECT '%1$s' FROM c RETURNING k)
			SELECT %3$s FROM o},
		'prepared' => q{PREPARE o AS INSERT INTO far VALUES ('%1$s'); BEGIN; SELECT idem_begin('%1$s'); EXECUTE o; %2$s; COMMIT},
		'cursor' => q{BEGIN; DECLARE c CURSOR FOR SELECT * FROM far; SELECT idem_begin('%1$s'); FETCH c;
			INSERT INTO far VALUES ('%1$s'); %2$s; COMMIT},
		'savepoints' => q{BEGIN; SELECT idem_begin('%1$s'); SAVEPOINT a; INSERT INTO far VALUES ('undone'); ROLLBACK TO a;
			SAVEPOINT b; INSERT INTO far VALUES ('%1$s'); RELEASE b; %2$s; COMMIT},
		'EXPLAIN ANALYZE' => q{BEGIN; SELECT idem_begin('%1$s'); EXPLAIN ANALYZE INSERT INTO far VALUES ('%1$s'); %2$s; COMMIT},
		'one message' => q{SELECT idem_begin('%1$s') \; INSERT INTO far VALUES ('%1$s') \; %2$s},
		'function' => q{SELECT far_function('%1$s', %4$s)},
		'simple expression' => q{SELECT far_expression('%1$s', %4$s)},
		'simple expression, called as one' => q{DO $$ DECLARE v text; BEGIN v := far_expression('%1$s', %4$s); END $$},
		'procedure' => q{CALL far_procedure('%1$s', %4$s)},
		'COPY in a procedure' => q{CALL far_copy('%1$s', %4$s)},
		'failed first' => q{CALL far_caught('%1$s', %4$s)},
		'loop' => q{CALL far_loop('%1$s', %4$s)},
		'deferred trigger' => q{BEGIN; SELECT idem_begin('%1$s'); INSERT INTO near VALUES ('%1$s'); %2$s; COMMIT},
	);
	for my $name (sort keys %far)
	{
		my $k = "far $name";

		sql_fails($node, 'postgres', sprintf($far{$name}, $k, '', "'1'", 'false'), 'ID005', "$k: open");
		effect_is($k, '0', "$k: open: nothing on the other side", 'remote');

		sql_fails($node, 'postgres', sprintf($far{$name}, $k, "SELECT idem_finish('$k')", "idem_finish('$k')", 'true'),
			'', "$k: finished");
		effect_is($k, '1', "$k: finished: committed on the other side", 'remote');
		sql_is($node, 'postgres', "SELECT state FROM idem_begin('$k')", 'replayed', "$k: finished: and here");
	}

	# Expired, not open.
	sql_fails($node, 'postgres', <<'SQL', 'ID005', 'far: expired');
BEGIN;
SELECT idem_claim('far expired', '20 milliseconds');
INSERT INTO far VALUES ('far expired');
SELECT clock_timestamp() + '20 milliseconds' AS finished \gset
CALL wait_until(:'finished');
COMMIT;
SQL
	effect_is('far expired', '0', 'far: expired: nothing on the other side', 'remote');

	# As drivers send it, each session doing several transactions.
	for my $mode ('simple', 'extended', 'prepared')
	{
		my %script = (
			'transaction' => "BEGIN;\nSELECT idem_begin('$mode' || random());\nINSERT INTO far VALUES ('far $mode' || random());\nCOMMIT;\n",
			'statement' => "WITH c AS (SELECT * FROM idem_begin('$mode' || random()))\nINSERT INTO far SELECT 'far $mode' || random() FROM c;\n",
		);
		for my $name (sort keys %script)
		{
			$node->pgbench("-n -c 1 -t 1 -M $mode", 2, [qr/./], [qr/cannot commit: idempotency key/],
				"far: $mode $name", { "far_${mode}_$name" => $script{$name} });
			sql_is($node, 'postgres', "SELECT count(*) FROM remote WHERE k LIKE 'far ${mode}0%'", '0',
				"far: $mode $name: nothing on the other side");
		}
	}
}

done_testing();
