
# The library is removed while a server has it preloaded, as doc/howto/remove.md has it: what goes on, what
# fails, how the server starts again, and that nothing is lost.  test/package/install does this with apt.
#
# Other tests use the library that is installed, so this server uses a copy in a folder of its own.

use strict;
use warnings;

use File::Copy;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $library = "$dir/idempotency.so";
my $node = new_node('main');

copy($node->config_data('--pkglibdir') . '/idempotency.so', $library) or die $!;
chmod 0755, $library;
$node->safe_psql('postgres', "UPDATE pg_proc SET probin = '$dir/idempotency' WHERE probin = '\$libdir/idempotency'");
$node->safe_psql('postgres', "ALTER SYSTEM SET dynamic_library_path = '$dir'");
$node->safe_psql('postgres', "ALTER SYSTEM SET shared_preload_libraries = 'idempotency'");
$node->restart;
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE orders (id int);
CREATE TRIGGER once AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION idem_once('id');
INSERT INTO orders VALUES (1);
BEGIN;
SELECT idem_begin('k'), idem_finish('k', '{"order": 1}');
COMMIT;
SQL
sql_is($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'idempotency purge launcher'", 1, 'preloaded');

my $session = $node->background_psql('postgres');
$session->query_safe("SELECT idem_claim('before')");
move($library, "$library.gone") or die $!;

# What works and what does not, without the file
sub lacks_library
{
	my ($when) = @_;

	sql_is($node, 'postgres', "SELECT key, result FROM idem_keys WHERE key = 'k'", 'k|{"order": 1}', "$when: the keys are there");
	sql_fails($node, 'postgres', "SELECT idem_claim('k')", '58P01', "$when: functions fail");
	sql_fails($node, 'postgres', 'INSERT INTO orders VALUES (2)', '58P01', "$when: so does an INSERT with the trigger");
	my ($dump, $err) = run_command([ 'pg_dump', $node->connstr('postgres') ]);
	like($dump, qr/^COPY public\.idem_keys.*\{"order": 1\}/ms, "$when: a dump has the keys") or diag($err);
	return;
}
lacks_library('preloaded');
is($session->query_safe("SELECT idem_claim('before'), idem_claim('after')"), 'f|t', 'a session that has called a function can do so still');
$session->quit;

# The server does not start before the setting is without it
$node->stop;
my $log_start = -s $node->logfile;
ok(!$node->start(fail_ok => 1), 'the server does not start');
like(slurp_file($node->logfile, $log_start), qr/FATAL:  could not access file "idempotency": No such file or directory/, 'for want of the library');
$node->adjust_conf('postgresql.auto.conf', 'shared_preload_libraries', undef);
$node->start;
lacks_library('not preloaded');

# The file is back
move("$library.gone", $library) or die $!;
sql_is($node, 'postgres', "SELECT state, result FROM idem_begin('k'); SELECT idem_claim('after')", "replayed|{\"order\": 1}\nf", 'with the file, nothing was forgotten');
sql_fails($node, 'postgres', 'INSERT INTO orders VALUES (1)', '23505', 'nor by the trigger');

# And removed without it
unlink $library or die $!;
sql_fails($node, 'postgres', 'DROP EXTENSION idempotency', '2BP01', 'DROP EXTENSION leaves the trigger alone');
sql_is($node, 'postgres', 'DROP TRIGGER once ON orders; DROP EXTENSION idempotency', '', 'and needs no library');

$node->stop;

done_testing();
