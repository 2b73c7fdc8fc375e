
# PgBouncer in transaction mode, with two server connections, for clients that each hold two.

package IdemBouncer;

use strict;
use warnings;

use Exporter 'import';
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(start_bouncer stored);

my $bouncer;
END { local $?; $bouncer->kill_kill if defined $bouncer; }

# How clients reach it, as variables of libpq with their values; an empty list if it is not installed.
sub start_bouncer
{
	my ($node) = @_;
	my ($program) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/local/sbin';
	return if !defined $program;

	my ($dir, $port) = (PostgreSQL::Test::Utils::tempdir(), PostgreSQL::Test::Cluster::get_free_port());
	my $password = join '', map { chr(97 + int rand 26) } 1 .. 32;
	my $server = 'host=' . $node->host . ' port=' . $node->port . ' user=' . $node->safe_psql('postgres', 'SELECT current_user');

	# as PgBouncer is before 1.21, which does not know of prepared statements
	my ($version) = (run_command([ $program, '-V' ]))[0] =~ /^PgBouncer 1\.(\d+)/m;
	my $unknown = $version >= 21 ? 'max_prepared_statements = 0' : '';

	append_to_file("$dir/users", qq("client" "$password"\n));
	append_to_file("$dir/pgbouncer.ini", <<"INI");
[databases]
postgres = $server
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $dir/users
pool_mode = transaction
default_pool_size = 2
ignore_startup_parameters = extra_float_digits
logfile = $dir/pgbouncer.log
$unknown
INI
	$bouncer = IPC::Run::start([ $program, "$dir/pgbouncer.ini" ], '<', \undef, '>', "$dir/out", '2>', "$dir/err");

	my @env = (PGHOST => '127.0.0.1', PGPORT => $port, PGDATABASE => 'postgres', PGUSER => 'client', PGPASSWORD => $password, PGSSLMODE => 'disable');
	local %ENV = (%ENV, @env);
	eventually(sub { IPC::Run::run([ 'psql', '-XAtqc', 'SELECT 1' ], '<', \undef, '>', \my $out, '2>', \my $err) })
	  or die 'PgBouncer does not answer: ' . slurp_file("$dir/pgbouncer.log");
	return @env;
}

# How many keys are there that a client began with NAME.
sub stored
{
	my ($node, $name) = @_;

	return $node->safe_psql('postgres', "SELECT count(*) FROM idem_keys WHERE key LIKE '$name %'");
}

1;
