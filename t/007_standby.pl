
# A hot standby replays what is finished, claims nothing, and does all of it
# once it is promoted.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_node('primary', streaming => 1);

$primary->safe_psql('postgres', 'CREATE TABLE orders (k text)');
my $standby = new_standby($primary, conf => 'max_standby_streaming_delay = -1');

sub on_primary
{
	$primary->safe_psql('postgres', $_[0]);
	$primary->wait_for_catchup($standby);
}

# what waits fails
my $not_for_ever = "SET statement_timeout = '${PostgreSQL::Test::Utils::timeout_default}s'";

sub answers
{
	my ($sql, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($standby, 'postgres', $sql, $expected, "standby: $name");
}

sub refuses
{
	my ($sql, $sqlstate, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	# nothing here may wait
	sql_fails($standby, 'postgres', "$not_for_ever; $sql", $sqlstate, "standby: $name");
}

on_primary(<<'SQL');
BEGIN;
SELECT idem_begin('k', request => '{"x": 1}', scope => 'tenant');
INSERT INTO orders VALUES ('k');
SELECT idem_finish('k', '{"order": 1}', 'tenant');
COMMIT;
SELECT idem_claim('inbox');
SELECT idem_claim('brief', '1 second');
SQL

#
# What it answers
#
answers("SELECT state, result, expires_at > created_at FROM idem_begin('k', scope => 'tenant', request => '{\"x\": 1}')",
	'replayed|{"order": 1}|t', 'replays');
answers("SELECT state, result FROM idem_begin('k', scope => 'tenant', request => '{\"x\": 2}')", 'mismatch|', 'mismatch');
answers("BEGIN; SELECT state FROM idem_begin('inbox'); SELECT state FROM idem_begin('k', scope => 'tenant'); COMMIT",
	"replayed\nreplayed", 'replays in a transaction');
answers("SELECT state, result FROM idem_lookup('k', 'tenant')", 'finished|{"order": 1}', 'looks up');
answers("SELECT count(*) FROM idem_lookup('new')", '0', 'looks up what is not there');
answers("SELECT idem_digest('k', 'tenant') = digest FROM idem_keys WHERE scope = 'tenant'", 't', 'digest');

ok( $standby->poll_query_until('postgres', "SELECT count(*) = 0 FROM idem_lookup('brief')"),
	'standby: a key expires by the clock');
refuses("SELECT idem_begin('brief')", '25006', 'an expired key is no replay');

#
# What it refuses
#
refuses("SELECT idem_begin('new')", '25006', 'begins nothing');
refuses("SELECT idem_begin('new', wait => '1 second')", '25006', 'begins nothing after a wait');
refuses("SELECT idem_claim('new')", '25006', 'claims nothing');
refuses("SELECT idem_claim_many('{new, newer}')", '25006', 'claims no batch');
refuses("SELECT idem_import('k', scope => 'tenant')", '25006', 'imports nothing');
refuses("SELECT idem_import_many('{new}')", '25006', 'imports no batch');
refuses("SELECT idem_forget('k', 'tenant')", '25006', 'forgets nothing');
refuses("SELECT idem_forget('new')", '25006', 'forgets nothing that is not there');
refuses("SELECT idem_forget_scope('tenant')", '25006', 'forgets no scope');
answers(<<'SQL', "25006\nreplayed", 'and goes on');
DO $$
BEGIN
	PERFORM idem_begin('new');
EXCEPTION WHEN read_only_sql_transaction THEN
	PERFORM set_config('test.state', SQLSTATE, false);
END $$;
SELECT current_setting('test.state');
SELECT state FROM idem_begin('inbox');
SQL

#
# A row that is replicated before its transaction ends
#
my $holder = $primary->background_psql('postgres');
$holder->query_safe("BEGIN; SELECT idem_claim_many('{held, held too}')");
on_primary("SELECT idem_claim('later')");
answers("SELECT state FROM idem_begin('later')", 'replayed', 'knows what was committed later');
answers("SELECT state, retry_after > 0 FROM idem_begin('held')", 'in_progress|t', 'a key held on the primary');
answers("$not_for_ever; SELECT state, retry_after > 0 FROM idem_begin('held', wait => '200 milliseconds')",
	'in_progress|t', 'a key held on the primary, after a wait');
answers("SELECT count(*) FROM idem_lookup('held')", '0', 'nothing is committed');
for my $claim ("idem_claim('held')", "idem_claim_many('{held}')")
{
	my ($state) = failure($standby, 'postgres', "$not_for_ever; SET lock_timeout = '200ms'; SELECT $claim");

	like($state, qr/^(25006|55P03)$/, "standby: $claim, a key held on the primary, ends at lock_timeout at the latest");
}

# A session waits for it, and gets its answer in the end.
my $waiter = $standby->background_psql('postgres');
$waiter->query_until(qr/waiting/, "\\echo waiting\nSELECT state FROM idem_begin('held', wait => '1 hour');\n");
ok( $standby->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%1 hour%' AND pid <> pg_backend_pid()"),
	'standby: a begin waits for the holder on the primary');
$holder->query_safe('COMMIT');
is($waiter->query('SELECT 1'), "replayed\n1", 'standby: a begin waited for the holder on the primary');
$primary->wait_for_catchup($standby);
answers("SELECT state FROM idem_begin('held too')", 'replayed', 'the batch is committed');

# Rolled back there, it is free, which is nothing that a standby can use.
$holder->query_safe("BEGIN; SELECT idem_claim_many('{undone}')");
on_primary("SELECT idem_claim('later 2')");
answers("SELECT state FROM idem_begin('undone')", 'in_progress', 'a key held on the primary');
$holder->query_safe('ROLLBACK');
on_primary("SELECT idem_claim('later 3')");
refuses("SELECT state FROM idem_begin('undone')", '25006', 'rolled back there');
$_->quit for $holder, $waiter;

#
# Snapshots: what is committed after one is not replayed under it
#
my $reader = $standby->background_psql('postgres', on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
$reader->query_safe("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM orders");
is($reader->query("SELECT state FROM idem_begin('inbox')"), 'replayed', 'standby: an old key under a snapshot');
is($reader->query("SELECT count(*) FROM idem_lookup('k', 'tenant')"), '1', 'standby: a look-up under a snapshot');

# The reader's transaction is open; it does not hold the primary's changes up.
on_primary(<<'SQL');
BEGIN;
SELECT idem_begin('after');
INSERT INTO orders VALUES ('after');
SELECT idem_finish('after', '2');
COMMIT;
SELECT idem_forget('later');
SQL
pass('standby: an open transaction with answers does not hold replay up');
answers("SELECT state, result FROM idem_begin('after')", 'replayed|2', 'replays what came after');
$reader->query("SELECT state FROM idem_begin('after')");
like($reader->{stderr}, qr/40001/, 'standby: a key committed after the snapshot');
$reader->{stderr} = '';
is($reader->query("ROLLBACK; SELECT state FROM idem_begin('after')"), 'replayed', 'standby: the retry replays');
$reader->quit;

#
# Promoted
#
my $unfinished = $primary->background_psql('postgres');
$unfinished->query_safe("BEGIN; SELECT idem_claim_many('{lost}')");
on_primary("SELECT idem_claim('later 4')");
$primary->stop('immediate');
$standby->promote;
ok($standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), 'promoted');
eval { $unfinished->quit };

answers("SELECT state, result FROM idem_begin('k', scope => 'tenant')", 'replayed|{"order": 1}', 'promoted: replays');
answers("SELECT idem_claim('later 4')", 'f', 'promoted: knows the last');
answers(<<'SQL', "started\n3\nreplayed|3", 'promoted: a new key');
BEGIN;
SELECT state FROM idem_begin('new');
SELECT idem_finish('new', '3');
COMMIT;
SELECT state, result FROM idem_begin('new');
SQL
answers("SELECT idem_claim_many('{lost}')", 'lost', 'promoted: what the primary had not committed is free');
answers("SELECT idem_claim('brief')", 't', 'promoted: what has expired is free');
answers("SELECT idem_forget('k', 'tenant')", 't', 'promoted: forgets');
refuses("BEGIN; SELECT idem_begin('open'); COMMIT", 'ID005', 'promoted: is guarded');

done_testing();
