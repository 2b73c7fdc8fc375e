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
$primary->safe_psql('postgres', 'CREATE EXTENSION idempotency; CREATE TABLE orders (item text); CREATE TABLE passed ()');
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

# Sessions that end up waiting for the standby, with all that they say.
sub start_waiting
{
	my ($name, $sql) = @_;
	my %session = (name => $name, out => '', err => '');

	$session{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=sqlstate', '-d', $primary->connstr('postgres') . " application_name=$name", '-c', $sql ],
		'>', \$session{out}, '2>', \$session{err});
	ok( $primary->poll_query_until(
			'postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = '$name' AND wait_event = 'SyncRep'"),
		"$name waits for the standby");
	is($session{out}, '', 'without an answer');
	return \%session;
}

sub stop_waiting
{
	my ($session, $how) = @_;

	$primary->safe_psql('postgres', "SELECT $how(pid) FROM pg_stat_activity WHERE application_name = '$session->{name}'");
	IPC::Run::finish($session->{run});
}

# An answer cannot be given without the standby, so the wait for it is not given up with a warning only.
my $cancelled = start_waiting('cancelled', "SELECT state FROM idem_begin('order-1')");
stop_waiting($cancelled, 'pg_cancel_backend');
is($cancelled->{out}, '', 'cancelled: no answer');
like($cancelled->{err}, qr/ERROR:  57014/, 'but an error');
my $terminated = start_waiting('terminated', "SELECT state FROM idem_begin('order-1')");
stop_waiting($terminated, 'pg_terminate_backend');
is($terminated->{out}, '', 'terminated: no answer');

# Nor is a fence given out that the standby might issue again, were it promoted now: others
# rely on it, whatever this session asks for.
my $leaser = start_waiting('leaser', "SET synchronous_commit = off; BEGIN; SELECT fence FROM idem_begin('lease', lease => '1 hour')");
stop_waiting($leaser, 'pg_cancel_backend');
is($leaser->{out}, '', 'cancelled: no fence');

# The wait ends when the setting no longer asks for a standby, but not on another change of the settings.
my $reloaded = start_waiting('reloaded', "SELECT state FROM idem_begin('order-1')");
$primary->safe_psql('postgres', "ALTER SYSTEM SET work_mem = '5MB'");
$primary->reload;
ok($primary->poll_query_until('postgres', "SELECT current_setting('work_mem') = '5MB'"), 'another setting is new');
is($reloaded->{out}, '', 'no answer yet');
$primary->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = ''");
$primary->reload;
IPC::Run::finish($reloaded->{run});
is("$reloaded->{out}$reloaded->{err}", "replayed\n", 'reloaded: an answer');
$primary->safe_psql('postgres', 'ALTER SYSTEM RESET synchronous_standby_names');
$primary->reload;
ok($primary->poll_query_until('postgres', "SELECT current_setting('synchronous_standby_names') = '*'"), 'asked for again');

# The place of an asynchronous commit in WAL is kept for 32 transactions together: these are to be others.
sub pass_transactions
{
	$primary->safe_psql('postgres', "SET synchronous_commit = local;\n" . "INSERT INTO passed DEFAULT VALUES;\n" x 64);
}

# Their transactions have committed and can be seen, though the wait for the standby was given up, or there was none.
my %order = (
	'order-2' => sub { stop_waiting(start_waiting('holder', $_[0]), 'pg_terminate_backend') },
	'order-3' => sub { stop_waiting(start_waiting('holder', $_[0]), 'pg_cancel_backend') },
	'order-4' => sub { $primary->safe_psql('postgres', "SET synchronous_commit = local; $_[0]") });
pass_transactions();
for my $k (sort keys %order)
{
	$order{$k}->("WITH o AS (INSERT INTO orders VALUES ('$k')) SELECT idem_claim('$k')");
	is($primary->safe_psql('postgres', "SET synchronous_commit = local; SELECT idem_claim('$k')"), 'f', "$k is committed");
}
pass_transactions();

my $token = $primary->safe_psql('postgres', "SET synchronous_commit = local; SELECT idem_token_issue('login', '1 hour')");
my $code = $primary->safe_psql('postgres', "SET synchronous_commit = local; SELECT idem_code_issue('login', 'ada', '1 hour')");
$primary->safe_psql('postgres', <<"SQL");
SET synchronous_commit = off;
SELECT idem_token_redeem('login', '$token');
SELECT idem_code_verify('login', 'ada', '$code');
SQL

my @askers = (
	start_waiting('asker-1', "SELECT state FROM idem_begin('order-1')"),
	(map { start_waiting("asker-$_", "SELECT idem_claim('order-$_')") } 2 .. 4),
	start_waiting('redeemer', "SELECT state FROM idem_token_redeem('login', '$token')"),
	start_waiting('verifier', "SELECT state FROM idem_code_verify('login', 'ada', '$code')"));
$standby->start;
IPC::Run::finish($_->{run}) for @askers;
is(join(' ', map { $_->{out} =~ s/\n//r } @askers), 'replayed f f f used used', 'answers come when the standby has the orders');
is(join('', map { $_->{err} } @askers), '', 'without a warning');
$primary->stop('immediate');
$standby->promote;
is($standby->safe_psql('postgres', "SELECT string_agg(item, ' ' ORDER BY item) FROM orders; SELECT state FROM idem_begin('order-1')"),
	"book order-2 order-3 order-4\nreplayed", 'and the orders survive the failover');
is($standby->safe_psql('postgres', "SELECT (idem_token_peek('login', '$token')).state, (idem_code_verify('login', 'ada', '$code')).state"), 'used|used',
	'as do the token and the code that are used');

done_testing();
