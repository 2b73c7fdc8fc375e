
# Behind PgBouncer in transaction mode: clients share server connections, so
# nothing of a claim may outlive its transaction.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/local/sbin';
plan skip_all => 'pgbouncer is not installed' unless defined $pgbouncer;

my $node = new_node('main');
my $dir = PostgreSQL::Test::Utils::tempdir_short();
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $server = 'host=' . $node->host . ' port=' . $node->port . ' dbname=postgres user='
  . $node->safe_psql('postgres', 'SELECT current_user');

$node->safe_psql('postgres', 'CREATE TABLE orders (k text); CREATE TABLE answers (state text, pid int)');

# Two pools: one as an application has it, one of a single server connection,
# so that the tests know who comes after whom.
append_to_file("$dir/pgbouncer.ini", <<"INI");
[databases]
app = $server pool_size=2
single = $server pool_size=1
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $dir
auth_type = any
pool_mode = transaction
max_client_conn = 100
server_reset_query =
logfile = $dir/pgbouncer.log
INI
my $bouncer = IPC::Run::start([ $pgbouncer, "$dir/pgbouncer.ini" ],
	'<', \undef, '>', "$dir/out", '2>', "$dir/err");
END { local $?; $bouncer->kill_kill if defined $bouncer; }

sub through
{
	return (connstr => "host=$dir port=$port dbname=$_[0]");
}

eventually(sub { $node->psql('', 'SELECT 1', through('app'), stdout => \my $o, stderr => \my $e) == 0 })
  or die 'pgbouncer does not answer: ' . slurp_file("$dir/pgbouncer.log");

#
# 10 clients on 2 connections, 50 keys, each submitted once by each client
#
my $script = "$dir/order.sql";
append_to_file($script, <<'SQL');
\set k :k + 1
BEGIN;
SELECT state, state = 'started' AS mine FROM idem_begin('order :k') \gset
INSERT INTO answers VALUES (':state', pg_backend_pid());
\if :mine
INSERT INTO orders VALUES ('order :k');
SELECT idem_finish('order :k', '":k"');
\endif
COMMIT;
SQL
command_like(
	[ 'pgbench', '-n', '-c', '10', '-t', '50', '-D', 'k=0', '-f', $script, '-h', $dir, '-p', $port, 'app' ],
	qr{actually processed: 500/500}, '500 requests through pgbouncer');

sub is_there
{
	my ($sql, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($node, 'postgres', $sql, $expected, $name);
}
is_there('SELECT count(*) FROM answers', '500', 'every request has its answer');
is_there('SELECT count(*), count(DISTINCT k) FROM orders', '50|50', 'every key has one order');
is_there("SELECT count(*) FROM answers WHERE state = 'started'", '50', 'one start each');
is_there("SELECT count(*) FROM answers WHERE state NOT IN ('started', 'replayed', 'in_progress')", '0', 'the others got one of the other answers');
is_there('SELECT count(*) FROM orders o FULL JOIN idem_keys i ON i.key = o.k WHERE o.k IS NULL OR i.key IS NULL',
	'0', 'orders and keys belong together');
is_there('SELECT count(DISTINCT pid) FROM answers', '2', 'over two connections');
is_there("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", '0', 'no lock is left');

#
# One connection, one client after the other.
#
sub answers
{
	my ($sql, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($ret, $out, $err) = $node->psql('', $sql, through('single'), on_error_stop => 0);

	is($out, $expected, $name);
	is_there("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", '0', "$name: no lock is left");
	return $err;
}

my $pid = $node->safe_psql('', 'SELECT pg_backend_pid()', through('single'));

answers("BEGIN; SELECT state FROM idem_begin('r'); ROLLBACK", 'started', 'rolled back');
answers("BEGIN; SELECT state FROM idem_begin('r'); SELECT idem_release('r'); COMMIT", "started\nt", 'by the next client, released');
answers("BEGIN; SELECT state FROM idem_begin('r'); SELECT idem_finish('r', '1'); COMMIT", "started\n1", 'by the next client, finished');
answers("BEGIN; SELECT state FROM idem_begin('r'); COMMIT", 'replayed', 'by the next client, replayed');
like(answers("BEGIN; SELECT state FROM idem_begin('g'); COMMIT", 'started', 'guarded'), qr/cannot commit/, 'by the guard');
answers("BEGIN; INSERT INTO orders VALUES ('free'); COMMIT; SELECT 1", '1', 'a client without claims is not guarded');
like(answers("BEGIN; SELECT state FROM idem_begin('g'); COMMIT", 'started', 'guarded again'), qr/cannot commit/, 'by the guard');
like(answers("SELECT idem_finish('g')", '', 'no finish'), qr/no open claim/, 'of a claim that another client began');
like(answers("SELECT state FROM idem_begin('g')", '', 'a lone begin'), qr/cannot commit/, 'by the guard');
is($node->safe_psql('', 'SELECT pg_backend_pid()', through('single')), $pid, 'all on one connection');

# A client in the middle of its transaction, and one on the other connection.
my $client = $node->background_psql('', extra_params => [ '-d', "host=$dir port=$port dbname=single" ]);
is($client->query_safe("BEGIN; SELECT state FROM idem_begin('d'); INSERT INTO orders VALUES ('d')"), 'started', 'a client has begun');
is($node->safe_psql('', "SELECT state FROM idem_begin('d')", through('app')), 'in_progress', 'another one gets in_progress');

# It goes away; so does the connection, and with it all that it held.
$client->quit;
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory'")
  or die 'the lock stays';
answers("BEGIN; SELECT state FROM idem_begin('d'); SELECT idem_finish('d', '2'); COMMIT", "started\n2",
	'the next client after one that left in its transaction');
is_there("SELECT count(*) FROM orders WHERE k = 'd'", '0', 'its order is gone');

$bouncer->kill_kill;
undef $bouncer;
done_testing();
