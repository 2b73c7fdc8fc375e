
# The table under the functions: its indexes built anew, published with a row filter,
# rows that move while they are looked for, vacuum while a session waits.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');

# A session that runs some SQL on its own.
sub session
{
	my ($name, $sql) = @_;
	my %session = (out => '', err => '');

	$session{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=sqlstate', '-d', $node->connstr('postgres') . " application_name=$name", '-c', $sql ],
		'>', \$session{out}, '2>', \$session{err}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return \%session;
}

sub ends_with
{
	my ($session, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	IPC::Run::finish($session->{run});
	return is("$session->{out}$session->{err}", $expected, $name);
}

# Until the condition holds of the session of that name.
sub until_it
{
	my ($name, $condition) = @_;

	$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = '$name' AND ($condition))")
	  or die "$name: never $condition";
}

sub waits_for_relation { until_it($_[0], "wait_event_type = 'Lock' AND wait_event = 'relation'") }

#
# REINDEX CONCURRENTLY puts another index in the primary key's place between a session's look
# for the key and its lock on it.  There it is held up by somebody who waits for the index.
#
my $old = $node->background_psql('postgres');
$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
my $reindex = session('reindex', 'REINDEX INDEX CONCURRENTLY idem_keys_pkey');
$node->poll_query_until('postgres', "SELECT phase = 'waiting for old snapshots' FROM pg_stat_progress_create_index") or die 'REINDEX does not wait';
my $mover = session('mover', 'ALTER INDEX idem_keys_pkey SET TABLESPACE pg_default');
waits_for_relation('mover');
my $claim = session('claim', "SELECT idem_claim('new key')");
waits_for_relation('claim');
$old->query_safe('COMMIT');
$node->poll_query_until('postgres', "SELECT phase = 'waiting for readers before marking dead' FROM pg_stat_progress_create_index") or die 'indexes are not swapped';
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'mover'");
ends_with($mover, "ERROR:  57014\n", 'who waits for the index is cancelled');
ends_with($claim, "t\n", 'a key is claimed while the index of the primary key is exchanged');
ends_with($reindex, '', 'REINDEX CONCURRENTLY comes to its end');
$old->quit;

#
# What changes between the check of the table and its end is not taken for checked.
#
my $owner = $node->background_psql('postgres');
$owner->query_safe('BEGIN; ALTER INDEX idem_keys_pkey SET TABLESPACE pg_default');
my $reader = session('reader', <<'SQL');
DO $$
BEGIN
	PERFORM idem_lookup('new key');
EXCEPTION WHEN feature_not_supported THEN
END $$;
SELECT idem_claim('unguarded');
SQL
waits_for_relation('reader');
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER t BEFORE INSERT ON idem_keys FOR EACH ROW EXECUTE FUNCTION nothing();
SQL
$owner->query_safe('COMMIT');
ends_with($reader, "ERROR:  0A000\n", 'a trigger that is made while the table is checked');
$node->safe_psql('postgres', 'DROP TRIGGER t ON idem_keys');
$owner->quit;

$node->stop('fast');

done_testing();
