
# What the TAP tests share: a server that looks the same everywhere, and checks
# by SQLSTATE, which unlike messages are the contract.

package IdemTest;

use strict;
use warnings;

use Exporter 'import';
use File::Basename;
use File::Copy;
use FindBin;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(new_node new_standby sql_is sql_fails says failure eventually waiting wait_for_waiters
  crash crash_by kill_backend pgbench pgbench_command fill_procedure wait_until_procedure seal build_module $evil_ran);

# What a hostile schema "evil" has: a record of what in it has run, and as whom, and two functions
# that are easily called by mistake.  A warning survives a rollback, a row survives a swallowed
# warning.
our $evil_ran = <<'SQL';
CREATE TABLE evil.ran (who name, what text);
GRANT INSERT ON evil.ran TO PUBLIC;
CREATE FUNCTION evil.ran(what pg_catalog.text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE WARNING 'evil % as %', what, current_user;
	INSERT INTO evil.ran VALUES (current_user, what);
END $$;
CREATE FUNCTION evil.now() RETURNS pg_catalog.timestamptz LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('now'); RETURN 'infinity'; END $$;
CREATE FUNCTION evil.clock_timestamp() RETURNS pg_catalog.timestamptz LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('clock_timestamp'); RETURN 'infinity'; END $$;
SQL

# Keys and requests in the tests are UTF-8.
$ENV{PGCLIENTENCODING} = 'UTF8';

# A running server.  Options: "conf", lines for postgresql.conf; "initdb",
# options; "streaming", for a primary; "archiving"; "schema" to create the extension in,
# undef for none.
sub new_node
{
	my ($name, %opt) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	# not from the environment, which may say SQL_ASCII
	$node->init(
		allows_streaming => $opt{streaming} // 0,
		has_archiving => $opt{archiving} // 0,
		extra => [ '--encoding', 'UTF8', '--no-locale', @{ $opt{initdb} // [] } ]);
	$node->append_conf('postgresql.conf',
		"max_prepared_transactions = 10\nautovacuum = off\n"
		  . ($opt{conf} // ''));
	$node->start;

	my $schema = exists $opt{schema} ? $opt{schema} : 'public';
	$node->safe_psql('postgres',
		"CREATE SCHEMA IF NOT EXISTS $schema; CREATE EXTENSION idempotency SCHEMA $schema;"
	) if defined $schema;
	return $node;
}

# A running standby of it, which must have been made with "streaming".  "conf" is
# what its postgresql.conf has more.
sub new_standby
{
	my ($primary, %opt) = @_;
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	$primary->backup('base');
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	$standby->append_conf('postgresql.conf', $opt{conf}) if $opt{conf};
	$standby->start;
	return $standby;
}

# A module of test/modules/, built in a temporary folder: the file to load.
my %built;

sub build_module
{
	my ($name) = @_;
	my $root = "$FindBin::RealBin/..";

	if (!$built{$name})
	{
		my $dir = PostgreSQL::Test::Utils::tempdir();
		local %ENV = %ENV;

		copy($_, $dir . '/' . basename($_)) or die "$_: $!" for "$root/test/modules/$name/Makefile", "$root/test/modules/$name/$name.c";
		delete @ENV{ 'MAKEFLAGS', 'MAKELEVEL', 'MFLAGS', 'MAKEOVERRIDES' };
		system_or_bail('make', '-s', '-C', $dir, 'with_llvm=no', 'PG_CONFIG=pg_config', "IDEM_SRC=$root/src");
		$built{$name} = "$dir/$name.so";
	}
	return $built{$name};
}

# The SQLSTATE that the SQL ends with, '' if it succeeds, and its output.
# Each statement is a transaction, as in psql.
sub failure
{
	my ($node, $db, $sql, @extra) = @_;
	my ($ret, $out, $err) = $node->psql($db, $sql,
		extra_params => [ '-v', 'VERBOSITY=sqlstate', @extra ]);

	return ('', $out) if $ret == 0;
	my ($state) = $err =~ /(?:ERROR|FATAL):\s+(\w{5})\s*$/m;
	return ($state // "no SQLSTATE, but: $err", $out);
}

sub sql_is
{
	my ($node, $db, $sql, $expected, $name, @extra) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($ret, $out, $err) = $node->psql($db, $sql,
		@extra ? (extra_params => \@extra) : ());

	return is("$out$err", $expected, $name) if $ret;
	return is($out, $expected, $name);
}

sub sql_fails
{
	my ($node, $db, $sql, $sqlstate, $name, @extra) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($state) = failure($node, $db, $sql, @extra);

	return is($state, $sqlstate, $name);
}

# The output of a script, errors of a kind it has on purpose included.
sub says
{
	my ($server, $sql, $expected, $name, @extra) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $out, $err) = $server->psql('postgres', $sql, on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate', @extra ]);

	return is($out, $expected, $name) || diag($err);
}

# All that is not on disk is lost.
sub crash
{
	my ($node) = @_;

	$node->stop('immediate');
	$node->start;
	return;
}

# Kill a process of the server, which takes all others down, and wait until it is back.
sub crash_by
{
	my ($node, $pid) = @_;
	my $log_start = -s $node->logfile;

	kill 'KILL', $pid;
	return $node->wait_for_log(qr/all server processes terminated; reinitializing.*ready to accept connections/s, $log_start);
}

# The same for a session's backend: its client's is gone, too.
sub kill_backend
{
	my ($node, $session) = @_;
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	my $is_back = crash_by($node, $pid);

	eval { $session->quit };
	return $is_back;
}

# Send SQL that will wait to a session of background_psql.
sub waiting
{
	my ($session, $sql) = @_;

	return $session->query_until(qr/^waiting/m, "\\echo waiting\n$sql;\n");
}

# Until that many sessions of the database wait for a claim.
sub wait_for_waiters
{
	my ($node, $db, $n) = @_;

	return $node->poll_query_until($db, "SELECT count(*) = $n FROM pg_locks WHERE locktype IN ('advisory', 'transactionid') AND NOT granted")
	  || die "there are not $n waiters";
}

# A script that many clients run; the options say how many, and how often.  True if all
# of it went well, else what pgbench says is shown.
sub pgbench
{
	my ($node, $script, @options) = @_;
	my ($stdout, $stderr) = ('', '');

	return IPC::Run::run(pgbench_command($node, $script, @options), '>', \$stdout, '2>', \$stderr) || (diag($stderr), 0)[1];
}

# What IPC::Run starts for that.
sub pgbench_command
{
	my ($node, $script, @options) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/script.sql';

	append_to_file($file, $script);
	return [ 'pgbench', '-n', '-j', '2', @options, '-f', $file, $node->connstr('postgres') ];
}

# CALL fill(n): that many rows of keys that have expired, in order.
sub fill_procedure
{
	return <<'SQL';
CREATE PROCEDURE fill(n integer) LANGUAGE sql AS $$
	INSERT INTO idem_keys (digest, scope, key, created_at, finished_at, expires_at, attempt)
	SELECT gen_random_uuid(), '', 'fill ' || i, clock_timestamp(), clock_timestamp(), clock_timestamp(), 1
	FROM generate_series(1, n) i ORDER BY i;
$$;
SQL
}

# CALL wait_until(t): until that moment has passed.
sub wait_until_procedure
{
	return <<'SQL';
CREATE PROCEDURE wait_until(t timestamptz) LANGUAGE plpgsql AS $$
BEGIN
	WHILE clock_timestamp() <= t LOOP
		PERFORM pg_sleep(0.001);
	END LOOP;
END $$;
SQL
}

# Poll until the code is true; false if it never was.
sub eventually
{
	my ($code) = @_;
	my $end = time() + $PostgreSQL::Test::Utils::timeout_default;

	until ($code->())
	{
		return 0 if time() > $end;
		usleep(10_000);
	}
	return 1;
}

# What a file over a restart must end with: CRC-32C of the rest.
sub seal
{
	my ($bytes) = @_;
	my $crc = 0xFFFFFFFF;

	for my $byte (unpack 'C*', $bytes)
	{
		$crc ^= $byte;
		$crc = $crc & 1 ? $crc >> 1 ^ 0x82F63B78 : $crc >> 1 for 1 .. 8;
	}
	return $bytes . pack('L', $crc ^ 0xFFFFFFFF);
}

1;
