
# Logical replication: a subscriber gets each key once, also where a claim has written
# its row before it finds that a batch was faster.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = new_node('publisher', streaming => 'logical');
my $subscriber = new_node('subscriber');
my $connection = $publisher->connstr('postgres');

$publisher->safe_psql('postgres', 'CREATE PUBLICATION keys FOR TABLE idem_keys');
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION keys CONNECTION \$c\$$connection\$c\$ PUBLICATION keys");
$subscriber->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate NOT IN ('r', 's'))")
	or die 'the subscription has no end of its beginning';

sub keys_of { return $_[0]->safe_psql('postgres', "SELECT string_agg(key, ' ' ORDER BY key) FROM idem_keys") }

$publisher->safe_psql('postgres', <<'SQL');
SELECT idem_claim('claim');
SELECT idem_claim_many(ARRAY['batch']);
BEGIN;
SELECT idem_begin('begin');
SELECT idem_finish('begin', '1');
COMMIT;
SELECT idem_begin('lease', lease => '1 h');
SQL
$publisher->wait_for_catchup('keys');
is(keys_of($subscriber), 'batch begin claim lease', 'keys arrive');
is($subscriber->safe_psql('postgres', "SELECT state, result FROM idem_begin('begin')"), 'replayed|1', 'and answer');

# A filter that a deletion or an update cannot be put to would leave rows at the subscriber. The executor refuses
# such a change, and so do those who work beside it; a new key is an insertion and goes on.
sub refused
{
	my ($sql, $sqlstate, $name) = @_;

	sql_fails($publisher, 'postgres', $sql, $sqlstate, $name);
}

sub refused_all
{
	my ($sqlstate, $name) = @_;

	refused("SELECT idem_forget('claim')", $sqlstate, "$name: forget");
	refused("SELECT idem_forget_scope('')", $sqlstate, "$name: forget of a scope");
	refused("SELECT idem_begin('new lease', lease => '1 h')", $sqlstate, "$name: a lease, before the work");
	refused("SELECT idem_extend('lease', '1 h', fence => (SELECT fence FROM idem_keys WHERE key = 'lease'))", $sqlstate, "$name: extend");
	refused("SELECT idem_checkpoint('lease', 'phase', fence => (SELECT fence FROM idem_keys WHERE key = 'lease'))", $sqlstate, "$name: checkpoint");
	refused("SELECT idem_finish('lease', '1', fence => (SELECT fence FROM idem_keys WHERE key = 'lease'))", $sqlstate, "$name: finish of a lease");
	refused("SELECT idem_release('lease', fence => (SELECT fence FROM idem_keys WHERE key = 'lease'))", $sqlstate, "$name: release");
	refused("SELECT idem_claim('expired')", $sqlstate, "$name: claim of an expired key");
	refused("BEGIN; SELECT idem_begin('expired'); SELECT idem_finish('expired', '1'); COMMIT", $sqlstate, "$name: finish of an expired key");
	refused("SELECT idem_claim_many(ARRAY['expired'])", $sqlstate, "$name: batch with an expired key");
	refused("SELECT idem_import('expired')", $sqlstate, "$name: import of an expired key");
	refused('CALL idem_purge()', $sqlstate, "$name: purge");
	sql_is($publisher, 'postgres', "SELECT idem_claim('new $sqlstate $name')", 't', "$name: a new key goes on");
	sql_is($publisher, 'postgres', "SELECT state FROM idem_begin('begin')", 'replayed', "$name: a replay goes on");
}

$publisher->safe_psql('postgres', <<'SQL');
SELECT idem_claim('expired');
UPDATE idem_keys SET expires_at = now() WHERE key = 'expired';
CREATE PUBLICATION filtered FOR TABLE idem_keys WHERE (scope = 'x');
SQL
refused_all('42P10', 'row filter');
my (undef, undef, $stderr) = $publisher->psql('postgres', "SELECT idem_forget('claim')");
like($stderr, qr/cannot delete from table "idem_keys".*WHERE.*HINT: +Publish the table with all its rows/s, 'the error names the table, the filter, and what to do');
$publisher->safe_psql('postgres', 'DROP PUBLICATION filtered; ALTER TABLE idem_keys REPLICA IDENTITY NOTHING');
refused_all('55000', 'no replica identity');
$publisher->safe_psql('postgres', 'ALTER TABLE idem_keys REPLICA IDENTITY DEFAULT');

# With it, all of that arrives.
$publisher->safe_psql('postgres', <<'SQL');
SELECT idem_forget('claim');
SELECT idem_claim('claim');
SELECT idem_claim('expired');
SELECT idem_finish('lease', '1', fence => (SELECT fence FROM idem_keys WHERE key = 'lease'));
SQL
$publisher->wait_for_catchup('keys');
is($subscriber->safe_psql('postgres', "SELECT (idem_begin('lease')).state, idem_claim('claim'), idem_claim('expired')"), 'replayed|f|f',
	'erased, replaced and finished keys arrive');

# The claim stops at an index that comes before the primary key, when its row is written.
$publisher->safe_psql('postgres', <<'SQL');
SELECT pg_create_logical_replication_slot('look', 'pgoutput');
CREATE FUNCTION pause(key text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('test.pause', true) = 'on' THEN
		PERFORM pg_catalog.pg_advisory_xact_lock(42);
	END IF;
	RETURN key;
END $$;
CREATE INDEX ON idem_keys (pause(key));
ALTER TABLE idem_keys DROP CONSTRAINT idem_keys_pkey;
ALTER TABLE idem_keys ADD PRIMARY KEY (digest);
CREATE PROCEDURE until_somebody_waits(for_what text) LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = for_what AND NOT granted) LOOP
		PERFORM pg_sleep(0.01);
	END LOOP;
END $$;
SQL

my ($out, $err) = ('', '');
my @statements = (
	'SELECT pg_advisory_lock(42)',
	"CALL until_somebody_waits('advisory')",
	'BEGIN',
	"SELECT idem_claim_many(ARRAY['j', 'k'])",
	'SELECT pg_advisory_unlock(42)',
	"CALL until_somebody_waits('transactionid')",
	'COMMIT');
my $batch = IPC::Run::start([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', $connection, map { ('-c', $_) } @statements ],
	'>', \$out, '2>', \$err, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
$publisher->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND granted)")
	or die 'the batch does not begin';
is($publisher->safe_psql('postgres', "SET test.pause = 'on'; SELECT idem_claim('k')"), 'f', 'a batch was faster');
ok(IPC::Run::finish($batch), 'and has come to its end') or diag($err);

# D of pgoutput is a deletion, I an insertion
is( $publisher->safe_psql('postgres', <<'SQL'), '2|0', 'each key is sent once, and nothing is taken back');
SELECT count(*) FILTER (WHERE get_byte(data, 0) = ascii('I')), count(*) FILTER (WHERE get_byte(data, 0) = ascii('D'))
FROM pg_logical_slot_get_binary_changes('look', NULL, NULL, 'proto_version', '1', 'publication_names', 'keys')
SQL
ok(eventually(sub { keys_of($subscriber) eq keys_of($publisher) }), 'the subscriber has them') if Test::More->builder->is_passing;

$subscriber->stop('fast');
$publisher->stop('fast');

done_testing();
