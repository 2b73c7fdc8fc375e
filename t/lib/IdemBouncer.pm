
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

my @bouncers;
END { local $?; $_->kill_kill for @bouncers; }

# How clients reach it, as variables of libpq with their values; an empty list if it is not installed.
# It does not know of prepared statements, as before its version 1.21.  With a number for PREPARED it knows so many
# for each server connection; an empty list if it is older than that.
sub start_bouncer
{
	my ($node, $prepared) = @_;
	my ($program) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/local/sbin';
	return if !defined $program;

	my ($version) = (run_command([ $program, '-V' ]))[0] =~ /^PgBouncer 1\.(\d+)/m;
	return if defined $prepared && $version < 21;

	my ($dir, $port) = (PostgreSQL::Test::Utils::tempdir(), PostgreSQL::Test::Cluster::get_free_port());
	my $password = join '', map { chr(97 + int rand 26) } 1 .. 32;
	my $server = 'host=' . $node->host . ' port=' . $node->port . ' user=' . $node->safe_psql('postgres', 'SELECT current_user');

	my $statements = $version >= 21 ? 'max_prepared_statements = ' . ($prepared // 0) : '';

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
$statements
INI
	push @bouncers, IPC::Run::start([ $program, "$dir/pgbouncer.ini" ], '<', \undef, '>', "$dir/out", '2>', "$dir/err");

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
