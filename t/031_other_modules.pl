
# Beside extensions that run SQL while a transaction commits: the commit guard
# holds, and their callbacks are called as often as they would be without us.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $late = "LOAD '" . build_module('late_sql') . "';";
my $ours = "LOAD 'idempotency';";

my $node = new_node('main');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE orders (k text);
CREATE TABLE seen (k text);

-- many commands in one transaction, outside of a block
CREATE PROCEDURE many(k text, n int, finish boolean) LANGUAGE plpgsql AS $$
DECLARE
	r record;
	j jsonb;
BEGIN
	r := idem_begin(k);
	FOR i IN 1 .. n LOOP
		INSERT INTO orders VALUES (k);
	END LOOP;
	IF finish THEN j := idem_finish(k); END IF;
	COMMIT;
END $$;
SQL

# What psql says, and how often the callback has run.
sub run
{
	my ($sql) = @_;
	my ($ret, $out, $err) = $node->psql('postgres', $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	my $runs = () = $err =~ /late_sql runs/g;
	my ($state) = $err =~ /ERROR:\s+(\w{5}):/;

	return "$ret $runs " . ($state // '-');
}

# SQL of a callback that runs before the guard, or after it.
my $insert = "SET late_sql.sql = 'INSERT INTO seen VALUES (''late'')';";
my $k = 0;
for my $load ("$late $ours", "$ours $late")
{
	for my $at_commit ('off', 'on')
	{
		my $set = "$load SET late_sql.at_commit = $at_commit; $insert";
		my $name = ($load eq "$ours $late" ? 'loaded after us' : 'loaded before us') . ", at_commit $at_commit";
		my $work;

		$k++;
		# SET is a transaction as well; many commands, so that the guard has moved often
		$work = 'BEGIN; ' . join(' ', map { "SELECT state FROM idem_begin('a $k $_'); INSERT INTO orders VALUES ('a $k');" } 1 .. 100);
		is(run("$set $work SELECT idem_finish('a $k ' || g) FROM generate_series(1, 100) g; COMMIT; BEGIN; COMMIT"),
			'0 ' . ($at_commit eq 'on' ? 2 : 3) . ' -', "$name: finished, and the next transaction");
		like(run("$set BEGIN; SELECT idem_begin('b $k'); INSERT INTO orders VALUES ('b $k'); COMMIT"),
			qr/^3 [012] ID005$/, "$name: open");

		# in a procedure
		next if $at_commit eq 'on';
		is(run("$set CALL many('c $k', 200, true)"), '0 3 -', "$name: a procedure");
		like(run("$set CALL many('d $k', 200, false)"), qr/^3 [012] ID005$/, "$name: a procedure, open");
	}
}

# A claim that is begun in a callback: guarded, or refused where the guard has been.
for my $load ("$late $ours", "$ours $late")
{
	my $name = $load eq "$ours $late" ? 'loaded after us' : 'loaded before us';
	my $state = $load eq "$ours $late" ? 'ID005' : '25000';

	is(run("$load SET late_sql.sql = 'SELECT idem_begin(''late'')'; INSERT INTO orders VALUES ('late'); "),
		"3 1 $state", "$name: begun in a callback");
	is(run("$load SET late_sql.sql = 'SELECT idem_begin(''late'')'; SELECT idem_claim('early $name')"),
		"3 1 $state", "$name: begun in a callback, with the guard at work");
}
sql_is($node, 'postgres', "SELECT count(*) FROM orders WHERE k LIKE 'b%' OR k LIKE 'd%' OR k = 'late'", '0', 'nothing was committed');
sql_is($node, 'postgres', "SELECT count(*) FROM seen", '20', 'what the callbacks did, they did once a transaction');

#
# Not a module, but as far from the guard: a wrapper that claims to be PARALLEL SAFE.
#
my $force = $node->safe_psql('postgres', "SELECT name FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query')");
my %unsafe = (
	idem_begin => "(SELECT state FROM idem_begin('p'))",
	idem_finish => "idem_finish('p')::text",
	idem_http_begin => "(SELECT status::text FROM idem_http_begin('p'))",
	idem_http_finish => "idem_http_finish('p', 200)::text",
	idem_release => "idem_release('p')::text",
	idem_extend => "idem_extend('p', '1 s', fence => 1)::text",
	idem_checkpoint => "idem_checkpoint('p', 'a', fence => 1)::text",
	idem_claim => "idem_claim('p')::text",
	idem_claim_many => "(SELECT min(key) FROM idem_claim_many('{p}'))",
	idem_import => "idem_import('p')::text",
	idem_import_many => "idem_import_many('{p}')::text",
	idem_call => "(SELECT state FROM idem_call('p', 'pg_catalog.version'))",
	idem_forget => "idem_forget('p')::text",
	idem_forget_scope => "idem_forget_scope('p')::text",
	idem_token_issue => "idem_token_issue('p', '1 day')",
	idem_token_redeem => "(SELECT state FROM idem_token_redeem('p', 'p'))",
	idem_token_revoke => "idem_token_revoke('p', 'p')::text",
	idem_token_revoke_all => "idem_token_revoke_all('p', 'p')::text",
	idem_code_issue => "idem_code_issue('p', 'p', '1 minute')",
	idem_code_verify => "(SELECT state FROM idem_code_verify('p', 'p', '123456'))",
	idem_throttle => "(SELECT allowed::text FROM idem_throttle('p', '1 s'))",
);
for my $f (sort keys %unsafe)
{
	$node->safe_psql('postgres', "CREATE OR REPLACE FUNCTION wrapper() RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS \$\$ BEGIN RETURN $unsafe{$f}; END \$\$");
	my (undef, undef, $err) = $node->psql('postgres', "SET $force = on; SELECT wrapper()", extra_params => [ '-v', 'VERBOSITY=verbose' ]);

	like($err, qr/25000: cannot call $f\(\) during a parallel operation.*HINT:.*PARALLEL .*UNSAFE/s, "$f in a parallel worker");
}

done_testing();
