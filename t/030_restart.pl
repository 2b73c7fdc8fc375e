
# What is in shared memory is kept from one clean stop to the next run of the server,
# whatever happens in between, and nothing of it comes back later.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use File::Copy;
use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('restart', streaming => 1, conf => <<'CONF');
shared_preload_libraries = 'idempotency'
restart_after_crash = on
CONF
my @files = map { "/pg_stat/idempotency_$_.stat" } qw(throttle stat guess);

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE c (subject text PRIMARY KEY, code text);
CREATE PROCEDURE issue(subject text, max_attempts int, ttl interval) LANGUAGE sql AS $$
	INSERT INTO c VALUES (subject, idem_code_issue('otp', subject, ttl, 10, max_attempts)) ON CONFLICT (subject) DO UPDATE SET code = EXCLUDED.code $$;
CREATE FUNCTION wrong(subject text) RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' ', state, attempts_left) FROM idem_code_verify('otp', subject, 'x') $$;
SQL

# A limit that is used up, a counter, and a guess that is rolled back.
sub fill
{
	$node->safe_psql('postgres', <<'SQL');
SELECT idem_stat_reset();
SELECT idem_throttle('k', '10 years');
DELETE FROM idem_codes;
CALL issue('ada', 5, '1 hour');
BEGIN; SELECT wrong('ada'); ROLLBACK;
SQL
}

# Of these three, what is there; asking changes them.
sub there
{
	my ($server) = @_;

	return $server->safe_psql('postgres', <<'SQL') =~ s/\n/, /gr;
SELECT 'counters' FROM idem_stat WHERE codes_refused = 1 AND codes_issued = 1;
SELECT 'limit' FROM idem_throttle('k', '10 years') WHERE NOT allowed;
BEGIN; SELECT 'guess' WHERE wrong('ada') = 'wrong 3'; ROLLBACK;
SQL
}
my $all = 'counters, limit, guess';

sub fails_to_start
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	ok(!$node->start(fail_ok => 1), "$name: the server does not start");
	return;
}

fill();
ok(!(grep { -e $node->data_dir . $_ } @files), 'no file while the server runs');
$node->restart;
is(there($node), $all, 'a restart');
ok(!(grep { -e $node->data_dir . $_ } @files), 'no file when it is used again');

#
# Starts that fail
#
my $hba = $node->data_dir . '/pg_hba.conf';
fill();
my $checksums = $node->safe_psql('postgres', 'SHOW data_checksums');
$node->stop;
copy($hba, "$hba.good") or die $!;
append_to_file($hba, "nonsense\n");
fails_to_start('pg_hba.conf') for 1 .. 2;
move("$hba.good", $hba) or die $!;
$node->append_conf('postgresql.conf', "listen_addresses = '256.256.256.256'\n");
fails_to_start('listen_addresses');
$node->adjust_conf('postgresql.conf', 'listen_addresses', "''");
$node->append_conf('postgresql.conf', "listen_addresses = ''\n");
command_ok([ 'pg_checksums', $checksums eq 'on' ? '--disable' : '--enable', '-D', $node->data_dir ], 'the control file is changed');
$node->start;
is(there($node), $all, 'after starts that failed');

#
# The server has run: what is left of before is not read, even if it cannot be removed
#
fill();
$node->stop;
my $kept = PostgreSQL::Test::Utils::tempdir() . '/kept';
PostgreSQL::Test::RecursiveCopy::copypath($node->data_dir, $kept);
sub bring_back
{
	copy("$kept$_", $node->data_dir . $_) || die $! for @files;
	return;
}
$node->start;
$node->stop('immediate');
bring_back();
$node->start;
is(there($node), '', 'an immediate stop');
$node->stop;
bring_back();
$node->start;
is(there($node), '', 'another clean stop');
# without the library they are not removed
$node->stop;
$node->start;
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$node->restart;
$node->stop('immediate');
$node->start;
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "'idempotency'");
bring_back();
$node->restart;
is(there($node), '', 'a crash without the library');

#
# Copies of the stopped server
#
my $copy = PostgreSQL::Test::Cluster->new('copy');
mkdir $copy->basedir;
PostgreSQL::Test::RecursiveCopy::copypath($kept, $copy->data_dir);
chmod 0700, $copy->data_dir;
$copy->append_conf('postgresql.conf', 'port = ' . $copy->port . "\nunix_socket_directories = '" . $copy->host . "'\n");
$copy->start;
is(there($copy), $all, 'a copy of all goes on where it was');
$copy->stop;
# what is brought forward from an archive is another state than that of the files
my $restored = PostgreSQL::Test::Cluster->new('restored');
mkdir $restored->basedir;
PostgreSQL::Test::RecursiveCopy::copypath($kept, $restored->data_dir);
chmod 0700, $restored->data_dir;
$restored->append_conf('postgresql.conf', 'port = ' . $restored->port . "\nunix_socket_directories = '" . $restored->host . "'\nrestore_command = 'false'\n");
$restored->append_conf('recovery.signal', '');
$restored->start;
ok($restored->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), 'recovered from an archive');
is(there($restored), '', 'which finds nothing');
$restored->stop;
$node->stop;

done_testing();
