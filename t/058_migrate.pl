
# The recipe of doc/howto/migrate.md, as printed there, with its 200,000 keys, there and back, while clients
# of two versions work on the same keys: each request has its effect once, and one answer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemDocs;
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $keys = 200_000; # that are there before
my $fresh = 200;    # more in each phase
my $transactions = 250; # of each of four clients of a version

my $page = "$FindBin::RealBin/../doc/howto/migrate.md";
my @sql = map { $_->[1] } grep { $_->[0] eq 'sql' } blocks($page);

# The one block that has it, without what it calls or shows.
sub step
{
	my ($has) = @_;
	my @found = grep { /$has/ } @sql;

	die scalar(@found) . " blocks have $has" if @found != 1;
	return $found[0] =~ s/^(CALL|SELECT order_).*//mrs;
}

my $table = "CREATE TABLE idempotency_keys";
my ($make_table, $make_again) = grep { /^$table/ } @sql;
my ($missing, $missing_back) = grep { /AS missing/ } @sql;
my ($import, $export) = ('CALL import_keys()', 'CALL export_keys()');
my ($err, $phase) = ('', 0);

my $node = new_node('main', conf => "deadlock_timeout = '10ms'\n");

sub query { return $node->safe_psql('postgres', $_[0]) }

# Clients of some versions, each with keys of all phases and those that were there before.  No version
# may need to repeat anything, so pgbench gives up after any error.
sub start_clients
{
	my @versions = @_;

	$phase++;
	return map
	{
		my $script = "\\set p random(0, $phase)\n\\set k random(1, CASE WHEN :p = 0 THEN $keys ELSE $fresh END)\n"
		  . "INSERT INTO answers SELECT k, order_$_(k, '$_') FROM (SELECT CASE :p::int WHEN 0 THEN 'r-' ELSE 'a' || :p::int || '-' END || :k::int AS k) AS r;\n";
		my $err = '';
		[ $_, IPC::Run::start(pgbench_command($node, $script, '-U', 'app', '-M', 'prepared', '-c', '4', '-t', $transactions), '>', \my $out, '2>', \$err), \$err ];
	} @versions;
}

sub end_clients
{
	for my $client (@_)
	{
		my ($version, $run, $err) = @$client;
		ok($run->finish, "phase $phase: no request of the $version version failed") or diag($$err);
	}
	is(query('SELECT key, count(*) FROM orders GROUP BY key HAVING count(*) > 1'), '', "phase $phase: nothing ran twice");
	is(query("SELECT key FROM orders WHERE key LIKE 'r-%'"), '', "phase $phase: nor what was done before");
	return;
}

# A transaction that has a key as the copy comes to it, so that the copy is seen at work, and stopped.
sub stop_copy
{
	my ($call, $hold) = @_;
	my $holder = $node->background_psql('postgres');
	my $copy = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $copy->query_safe('SELECT pg_backend_pid()');

	$holder->query_safe("BEGIN; $hold");
	waiting($copy, $call);
	ok( $node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Lock'"),
		"$call waits for who has a key");
	query("SELECT pg_terminate_backend($pid)");
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid") or die 'the copy goes on';
	eval { $copy->quit };
	$holder->query_safe('ROLLBACK');
	$holder->quit;
	return;
}

# How many of these rows whole batches have copied.
sub whole_batches { return 5000 * int(query("SELECT count(*) FROM $_[0]") / 5000) }

# the application's role has no more than the page says
query("CREATE ROLE app LOGIN; SELECT idem_grant('app', '{claims}'); ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE ON TABLES TO app");
query($make_table);
query(step('INSERT INTO idempotency_keys \(key, response, created_at\)\nSELECT .r-'));
query('CREATE TABLE before AS SELECT * FROM idempotency_keys; CREATE TABLE answers (key text, answer jsonb)');
query(step("CREATE FUNCTION order_$_")) for qw(old new both);
is(query('SELECT count(*) FROM before'), $keys, 'keys that were there before');

# there: the old version alone
my @clients = start_clients('old');
query(step('CREATE TRIGGER') =~ s/^(REVOKE.*\n)/$1GRANT EXECUTE ON FUNCTION import_key TO app;\n/mr);
query(step('CREATE PROCEDURE import_keys'));
end_clients(@clients);

# a copy that is stopped
stop_copy($import, "SELECT idem_import('r-15', '1')");
is(query('SELECT count(*) FROM idem_keys'), whole_batches("idempotency_keys WHERE key < 'r-15'"), 'a copy that was stopped keeps its batches');

# both, with keys that are copied and keys that are not
end_clients(start_clients('old', 'both'));

# both, and the copy beside them
@clients = start_clients('old', 'both');
cmp_ok(query($import), '>', 0, 'the copy goes on');
is(query($missing), 0, 'and no key is missing');
end_clients(@clients);
is(query($missing), 0, 'nor what was stored since');

# the old version is gone, then the table
end_clients(start_clients('both', 'new'));
query(step('DROP TABLE idempotency_keys'));
end_clients(start_clients('new'));

# and back
query($make_again);
end_clients(start_clients('both', 'new'));
query(step('CREATE PROCEDURE export_keys'));
my ($middle, $digest) = split /\|/, query("SELECT key, digest FROM idem_keys WHERE key LIKE 'r-%' ORDER BY digest OFFSET $keys / 2 LIMIT 1");
query("DELETE FROM idempotency_keys WHERE key = '$middle'"); # if a client has just asked for it
stop_copy($export, "INSERT INTO idempotency_keys VALUES ('$middle')");
my $batches = whole_batches("idem_keys WHERE digest < '$digest'");
is(query("SELECT count(*) FROM (SELECT key FROM idem_keys ORDER BY digest LIMIT $batches) AS i JOIN idempotency_keys USING (key)"), $batches, 'a copy back that was stopped keeps its batches');
cmp_ok(query('SELECT count(*) FROM idempotency_keys'), '<', $keys * 3 / 4, 'and has not come to the end');

@clients = start_clients('both');
cmp_ok(query($export), '>', 0, 'the copy back goes on');
is(query($missing_back), 0, 'and no key is missing');
end_clients(@clients);
is(query($missing_back), 0, 'nor what was stored since');

end_clients(start_clients('old', 'both'));
query(step('DROP FUNCTION order_both'));
@clients = start_clients('old');
query('DROP EXTENSION idempotency');
end_clients(@clients);

# all in all
is(query('SELECT string_agg(DISTINCT item, $$ $$ ORDER BY item) FROM orders'), 'both new old', 'each version had requests that were the first');
is(query("SELECT key FROM answers WHERE key NOT LIKE 'r-%' EXCEPT SELECT key FROM orders"), '', 'every request had its effect');
is(query('SELECT key FROM answers GROUP BY key HAVING count(DISTINCT answer) > 1'), '', 'a key has one answer');
is(query('SELECT count(*) FROM answers WHERE answer IS NULL'), 0, 'which nobody missed');
is(query('SELECT key FROM answers JOIN before USING (key) WHERE answer <> response'), '', 'and the old ones are as before');
cmp_ok(query("SELECT count(*) FROM answers WHERE key LIKE 'r-%'"), '>', 0, 'which some have asked for');
is(query('SELECT count(*) FROM (SELECT * FROM before EXCEPT SELECT * FROM idempotency_keys) AS r'), 0, 'the table has what it had, with its times');
is(query('SELECT count(*) FROM idempotency_keys'), $keys + query('SELECT count(*) FROM orders'), 'and what came later');
is(query('SELECT key FROM orders JOIN idempotency_keys USING (key) WHERE response IS DISTINCT FROM jsonb_build_object($$order$$, id)'), '', 'with its answers');

$node->stop('fast');

done_testing();
