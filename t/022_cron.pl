
# The line of doc/howto/purge.md that has pg_cron purge, as it is printed there.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

chomp(my $share = `pg_config --sharedir`);
plan skip_all => 'pg_cron is not installed' unless -e "$share/extension/pg_cron.control";

my ($line) = slurp_file("$FindBin::RealBin/../doc/howto/purge.md") =~ /^(SELECT cron\.schedule\(.*\);)$/m;
ok($line, 'the page has a line for pg_cron');

# pg_cron connects as a client does, here to the socket
my $node = new_node('main', conf => <<'CONF');
shared_preload_libraries = 'pg_cron'
cron.database_name = 'postgres'
CONF
$node->append_conf('postgresql.conf', "cron.host = '" . $node->host . "'");
$node->restart;
$node->safe_psql('postgres', "CREATE EXTENSION pg_cron; SELECT idem_claim('live'); SELECT idem_claim('dead'); UPDATE idem_keys SET expires_at = now() WHERE key = 'dead'");
$node->safe_psql('postgres', $line);
ok($node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM idem_keys'), 'pg_cron purges within a minute');
sql_is($node, 'postgres', 'SELECT key FROM idem_keys', 'live', 'what has expired');
ok($node->poll_query_until('postgres', "SELECT status = 'succeeded' FROM cron.job_run_details ORDER BY runid LIMIT 1"), 'without an error')
  or diag($node->safe_psql('postgres', 'SELECT return_message FROM cron.job_run_details'));

$node->stop;
done_testing();
