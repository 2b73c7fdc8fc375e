
# A purge makes the space of what it has deleted available again: in the table, its index and its
# TOAST table, and without autovacuum, which is off here.  Nothing keeps it waiting.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => <<'CONF');
shared_preload_libraries = 'idempotency'
idempotency.purge_interval = 0
full_page_writes = on
CONF

$node->safe_psql('postgres', fill_procedure() . <<'SQL');
-- and with results that are stored out of line
CREATE PROCEDURE fill_large(n integer) LANGUAGE sql AS $$
	INSERT INTO idem_keys (digest, scope, key, created_at, finished_at, expires_at, attempt, result)
	SELECT gen_random_uuid(), '', 'large ' || i, clock_timestamp(), clock_timestamp(), clock_timestamp(), 1,
		to_jsonb((SELECT string_agg(md5(random()::text || i || j), '') FROM generate_series(1, 150) j))
	FROM generate_series(1, n) i ORDER BY i;
$$;
SQL

# Of table, indexes and TOAST table.
sub sizes
{
	return split /\|/, $node->safe_psql('postgres',
		"SELECT pg_relation_size(oid), pg_indexes_size(oid), pg_total_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'idem_keys'::regclass");
}

# How often it was vacuumed.
sub vacuums
{
	return $node->safe_psql('postgres', "SELECT vacuum_count FROM pg_stat_all_tables WHERE relid = 'idem_keys'::regclass");
}

# How often one statement has it vacuumed.
sub vacuums_by
{
	my ($sql) = @_;
	my $before = vacuums();

	$node->safe_psql('postgres', $sql);
	return vacuums() - $before;
}

#
# Many rounds take no more space than a few
#
sub churn
{
	my ($what, $few, @statements) = @_;
	my $round = join '', map { "$_;\n" } @statements;

	$node->safe_psql('postgres', 'TRUNCATE idem_keys');
	$node->safe_psql('postgres', $round x $few);
	my @early = sizes();
	$node->safe_psql('postgres', $round x $few) for 1 .. 3;
	my @late = sizes();
	for my $part ('table', 'indexes', 'TOAST')
	{
		my ($before, $after) = (shift @early, shift @late);

		next if $part eq 'TOAST' && $what ne 'large results';
		cmp_ok($after, '<=', 1.5 * $before, "$what: no more space, $part") or diag("$before, then $after");
	}
}

churn('a purge a round', 5, 'CALL fill(4000)', 'CALL idem_purge()');
churn('large results', 4, 'CALL fill_large(400)', 'CALL idem_purge()');
# each deletes too little, but they are counted together
churn('small purges', 10, 'CALL fill(400)', 'CALL idem_purge()');
churn('purges that are cut short', 5, 'CALL fill(2000)', 'CALL idem_purge(max_rows => 1990)');

# a vacuum counts anew what there is: autovacuum is not told of what is gone
$node->safe_psql('postgres', 'CALL idem_purge(); CALL fill(5000); CALL idem_purge()');
sql_is($node, 'postgres', "SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = 'idem_keys'::regclass", '0', 'no dead rows are reported');

#
# When it pays
#
$node->safe_psql('postgres', 'TRUNCATE idem_keys; VACUUM idem_keys');
is(vacuums_by('CALL fill(5000); CALL idem_purge()'), 1, 'a purge vacuums');
is(vacuums_by('CALL idem_purge()'), 0, 'not if it deletes nothing');
is(vacuums_by('CALL fill(100); CALL idem_purge()'), 0, 'nor if that is little');
is(vacuums_by('BEGIN; CALL fill(5000); CALL idem_purge(); COMMIT'), 0, 'nor in a transaction block');
is(vacuums_by("ALTER TABLE idem_keys SET (autovacuum_enabled = off); CALL fill(5000); CALL idem_purge(); ALTER TABLE idem_keys RESET (autovacuum_enabled)"), 0, 'nor if the owner has turned it off');
is(vacuums_by('CALL idem_purge()'), 1, 'that is made up for');
# little of a table that is large
$node->safe_psql('postgres', <<'SQL');
INSERT INTO idem_keys (digest, scope, key, created_at, finished_at, expires_at, attempt)
SELECT gen_random_uuid(), '', 'live ' || i, clock_timestamp(), clock_timestamp(), 'infinity', 1 FROM generate_series(1, 20000) i;
ANALYZE idem_keys;
SQL
is(vacuums_by('CALL fill(4000); CALL idem_purge()'), 0, 'nor if most rows live');
is(vacuums_by('CALL fill(4000); CALL idem_purge()'), 1, 'but it adds up');
# much work is left to autovacuum
$node->safe_psql('postgres', <<'SQL');
TRUNCATE idem_keys;
INSERT INTO idem_keys (digest, scope, key, created_at, finished_at, expires_at, attempt)
SELECT gen_random_uuid(), '', repeat('x', 1900), clock_timestamp(), clock_timestamp(),
	CASE i % 4 WHEN 0 THEN clock_timestamp() ELSE 'infinity' END, 1 FROM generate_series(1, 34000) i;
SQL
is(vacuums_by('CALL idem_purge()'), 0, 'nor if the table is large');
$node->safe_psql('postgres', 'VACUUM idem_keys');
is(vacuums_by('CALL fill(7000); CALL idem_purge()'), 1, 'unless vacuum can skip most of it');
# so are pages that only autovacuum gives back
$node->safe_psql('postgres', <<'SQL');
TRUNCATE idem_keys;
INSERT INTO idem_keys (digest, scope, key, created_at, finished_at, expires_at, attempt)
SELECT gen_random_uuid(), '', repeat('x', 1900), clock_timestamp(), clock_timestamp(), clock_timestamp(), 1 FROM generate_series(1, 6000) i;
SQL
is(vacuums_by('CALL idem_purge()'), 0, 'nor if the table is nearly empty');
$node->safe_psql('postgres', 'TRUNCATE idem_keys; VACUUM idem_keys');

#
# An old snapshot keeps all rows.  Purges go on, and none tries again and again.
#
my $other = $node->background_psql('postgres');
$node->safe_psql('postgres', 'CALL fill(5000)');
$other->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM idem_keys');
is(vacuums_by('CALL idem_purge()'), 1, 'an old snapshot: the purge tries once');
is(vacuums_by('CALL idem_purge()'), 0, 'and not again at once');
is($other->query_safe("SELECT count(*) FROM idem_keys"), '5000', 'it still sees what was deleted');
$other->query_safe('COMMIT');
$node->safe_psql('postgres', 'CALL fill(5000); CALL idem_purge()');
my ($table) = sizes();
$node->safe_psql('postgres', 'CALL fill(5000)');
is((sizes())[0], $table, 'once it is gone, the space of all is used again');
$node->safe_psql('postgres', 'CALL idem_purge()');

#
# Another session that works on the table: skipped, and made up for
#
$other->query_safe('BEGIN; LOCK TABLE idem_keys IN SHARE UPDATE EXCLUSIVE MODE');
is(vacuums_by("SET lock_timeout = '1ms'; CALL fill(5000); CALL idem_purge()"), 0, 'a lock keeps vacuum out');
$other->query_safe('COMMIT');
is(vacuums_by('CALL idem_purge()'), 1, 'the next purge vacuums');

#
# A cursor that keeps its place in the index: a vacuum would wait for it.  It does not see what
# the vacuum is to remove; otherwise, there would be nothing to do.
#
$node->safe_psql('postgres', "SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'live ' || i FROM generate_series(1, 1000) i)); VACUUM idem_keys");
$other->query_safe('BEGIN; LOCK TABLE idem_keys IN SHARE UPDATE EXCLUSIVE MODE');
is(vacuums_by('CALL fill(5000); CALL idem_purge()'), 0, 'again, a lock keeps vacuum out');
$other->query_safe('COMMIT; BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; DECLARE c CURSOR FOR SELECT digest FROM idem_keys ORDER BY digest; FETCH c');
sql_is($node, 'postgres', <<'SQL', "0|0|0\n1", 'the purge does not wait for the cursor');
SET statement_timeout = '60 s';
CALL idem_purge();
SELECT 1;
SQL
$other->query_safe('COMMIT');
is(vacuums_by('CALL fill(5000); CALL idem_purge()'), 1, 'a later one vacuums');
$other->quit;

#
# What runs on the way, runs as the table's owner: here, an index's function
#
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE operator LOGIN;
GRANT EXECUTE ON PROCEDURE idem_purge TO operator;
CREATE FUNCTION reveal(t text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
	RAISE LOG 'summarized by % with path %', current_user, current_setting('search_path');
	RETURN t;
END $$;
TRUNCATE idem_keys;
CREATE INDEX summary ON idem_keys USING brin (reveal(key)) WITH (pages_per_range = 1);
CALL fill(5000);
SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'live ' || i FROM generate_series(1, 100) i));
SQL
my $owner = $node->safe_psql('postgres', 'SELECT current_user');
my $log_start = -s $node->logfile;
is($node->psql('postgres', 'CALL idem_purge()', extra_params => [ '-U', 'operator' ]), 0, 'a purge by another role');
like(slurp_file($node->logfile, $log_start), qr/summarized by \Q$owner\E with path .*pg_temp/, 'the function runs as the owner');
unlike(slurp_file($node->logfile, $log_start), qr/summarized by operator/, 'and never as the caller');
$node->safe_psql('postgres', 'DROP INDEX summary');

#
# The background worker's purges as well
#
$node->safe_psql('postgres', 'CALL fill(20000)');
my $before = vacuums();
$node->append_conf('postgresql.conf', "idempotency.purge_interval = 1\n");
$node->reload;
ok($node->poll_query_until('postgres', "SELECT vacuum_count > $before FROM pg_stat_all_tables WHERE relid = 'idem_keys'::regclass"), 'the worker vacuums');

$node->stop;
done_testing();
