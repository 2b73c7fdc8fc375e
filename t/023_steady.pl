
# The tables do not grow for ever: twenty times the live set goes through, and table and
# index end within half as much again of what the live set alone takes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('main', conf => <<'CONF');
shared_preload_libraries = 'idempotency'
idempotency.purge_interval = 0
CONF
my ($live, $step, $turns) = (20000, 2000, 20);

# autovacuum's settings; below, VACUUM is run by hand, as autovacuum's naps are longer than this test
for my $table (qw(idem_keys idem_tokens idem_codes))
{
	sql_is($node, 'postgres', <<"SQL", 'autovacuum_vacuum_scale_factor=0.05 autovacuum_vacuum_threshold=1000 fillfactor=90 vacuum_truncate=off', "$table: settings");
SELECT string_agg(o, ' ' ORDER BY o) FROM pg_class, unnest(reloptions) o WHERE oid = '$table'::regclass
SQL
}

sub push_keys
{
	my ($n, $ttl, $name) = @_;

	$node->safe_psql('postgres', "SELECT count(*) FROM idem_claim_many(ARRAY(SELECT '$name ' || i FROM generate_series(1, $n) i), '$ttl')");
}

sub sizes
{
	return split /\|/, $node->safe_psql('postgres', "SELECT pg_table_size('idem_keys'), pg_indexes_size('idem_keys')");
}

# a steady stream: keys end as they came, a step at a time
my $next = time();
for my $i (1 .. $live * $turns / $step)
{
	eventually(sub { time() >= $next });
	$node->poll_query_until('postgres', "SELECT count(*) <= $live - $step FROM idem_keys WHERE expires_at > clock_timestamp()") or die;
	$next = time() + $step / $live;
	$node->safe_psql('postgres', 'CALL idem_purge()');
	$node->safe_psql('postgres', 'VACUUM idem_keys');
	push_keys($step, '1 second', "step $i");
}
my ($table, $index) = sizes();
sql_is($node, 'postgres', "SELECT purged >= $live * ($turns - 2) FROM idem_stat WHERE datname = 'postgres'", 't', 'most of it has gone through');

$node->safe_psql('postgres', 'TRUNCATE idem_keys');
push_keys($live, '1 day', 'fresh');
my ($fresh_table, $fresh_index) = sizes();
cmp_ok($table, '<=', 1.5 * $fresh_table, sprintf('table: %.2f of a fresh one', $table / $fresh_table));
cmp_ok($index, '<=', 1.5 * $fresh_index, sprintf('index: %.2f of a fresh one', $index / $fresh_index));

$node->stop;
done_testing();
