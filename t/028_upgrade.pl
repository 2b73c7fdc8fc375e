
# An upgraded extension and a new one are the same: every member object, its
# definition, comment and privileges.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', schema => undef);

$node->safe_psql('postgres', 'CREATE ROLE somebody; CREATE ROLE shop');

# One line for each property of each member object, in a fixed order.
my $catalog = <<'SQL';
SET search_path = pg_catalog;
WITH members AS (
	SELECT d.classid, d.objid
	FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
	WHERE e.extname = 'idempotency' AND d.deptype = 'e'),
relations AS (SELECT c.* FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND m.objid = c.oid),
functions AS (SELECT p.* FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid)
SELECT 'member', pg_describe_object(classid, objid, 0), obj_description(objid, (SELECT relname FROM pg_class WHERE oid = classid)) FROM members
UNION ALL
SELECT 'function', oid::regprocedure::text, concat_ws(' ', pg_get_functiondef(oid), procost, prorows, proparallel, proacl) FROM functions
UNION ALL
SELECT 'relation', oid::regclass::text, concat_ws(' ', relkind, relpersistence, reloptions, relacl, relrowsecurity, relreplident) FROM relations
UNION ALL
SELECT 'view', oid::regclass::text, pg_get_viewdef(oid) FROM relations WHERE relkind = 'v'
UNION ALL
SELECT 'column', attrelid::regclass || '.' || attname,
	concat_ws(' ', attnum, format_type(atttypid, atttypmod), attnotnull, attstorage, attcompression, attisdropped, attacl,
		pg_get_expr(adbin, adrelid), col_description(attrelid, attnum))
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid IN (SELECT oid FROM relations) AND attnum > 0
UNION ALL
SELECT 'index', indexrelid::regclass::text, concat_ws(' ', pg_get_indexdef(indexrelid), indisprimary, reloptions)
FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid IN (SELECT oid FROM relations)
UNION ALL
SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid IN (SELECT oid FROM relations)
UNION ALL
SELECT 'sequence', seqrelid::regclass::text, concat_ws(' ', seqtypid::regtype, seqstart, seqincrement, seqmax, seqmin, seqcache, seqcycle)
FROM pg_sequence WHERE seqrelid IN (SELECT oid FROM relations)
UNION ALL
SELECT 'toast', c.oid::regclass::text, concat_ws(' ', t.reloptions) FROM relations c JOIN pg_class t ON t.oid = c.reltoastrelid
UNION ALL
SELECT 'initial privileges', pg_describe_object(classoid, objoid, objsubid), concat_ws(' ', privtype, initprivs)
FROM pg_init_privs JOIN members ON classid = classoid AND objid = objoid
UNION ALL
SELECT 'dumped', config::regclass::text, condition
FROM pg_extension, unnest(extconfig, extcondition) AS x (config, condition) WHERE extname = 'idempotency'
ORDER BY 1, 2, 3;
SQL

my $version = $node->safe_psql('postgres', q{SELECT default_version FROM pg_available_extensions WHERE name = 'idempotency'});
for my $schema ('public', q{Idem's "own"})
{
	my $quoted = $schema =~ s/"/""/gr;
	my $to = sub { return $node->safe_psql($_[0], qq{CREATE SCHEMA IF NOT EXISTS "$quoted"; CREATE EXTENSION idempotency SCHEMA "$quoted" $_[1]}) };
	my ($new, $upgraded);

	$node->safe_psql('postgres', "CREATE DATABASE new");
	$node->safe_psql('postgres', 'CREATE DATABASE upgraded');
	# what others are granted as a matter of course does not reach into the extension
	$node->safe_psql($_, 'ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC, somebody; ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO somebody') for qw(new upgraded);
	$to->('new', '');
	$to->('upgraded', "VERSION '0.1.0'");
	$node->safe_psql($_, qq{SELECT "$quoted".idem_grant('shop')}) for qw(new upgraded);
	$node->safe_psql('upgraded', 'ALTER EXTENSION idempotency UPDATE');
	is($node->safe_psql('upgraded', q{SELECT extversion FROM pg_extension WHERE extname = 'idempotency'}),
		$version, "schema $schema: updated to $version");
	$new = $node->safe_psql('new', $catalog);
	$upgraded = $node->safe_psql('upgraded', $catalog);
	cmp_ok(scalar(split /\n/, $new), '>', 100, "schema $schema: there is something to compare");
	is($upgraded, $new, "schema $schema: the upgraded extension is the same as a new one");
	$node->safe_psql('postgres', 'DROP DATABASE new');
	$node->safe_psql('postgres', 'DROP DATABASE upgraded');
}

done_testing();
