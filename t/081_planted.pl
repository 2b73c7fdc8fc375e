
# What a hostile user has put into the schema before stops CREATE EXTENSION and the update, or is of no
# effect: it never becomes part of the extension, and does not run as the superuser.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', schema => undef);
my $share = $node->config_data('--sharedir') . '/extension';
my $version = $node->safe_psql('postgres', "SELECT default_version FROM pg_available_extensions WHERE name = 'idempotency'");

$node->safe_psql('postgres', 'CREATE ROLE mallory LOGIN; GRANT CREATE ON SCHEMA public TO mallory');

# Each object that a script creates, and a statement that makes another of that name.
sub plants
{
	my ($script) = @_;
	my $sql = slurp_file("$share/$script") =~ s{^\s*--.*$}{}gmr;
	my @plants;

	while ($sql =~ /^CREATE (TABLE|SEQUENCE|INDEX|VIEW|FUNCTION|PROCEDURE) (?:\@schema\@\.)?(\w+)(.*?);$/gms)
	{
		my ($kind, $name, $rest) = ($1, $2, $3);

		if ($kind =~ /FUNCTION|PROCEDURE/)
		{
			# only a superuser can make one that has internal arguments
			next if $rest =~ /\(internal\)/;
			$rest =~ s/^(?:AS 'MODULE_PATHNAME'|LANGUAGE plpgsql).*/LANGUAGE plpgsql AS \$\$ BEGIN RAISE EXCEPTION 'evil ran as %', current_user; END \$\$/ms or die "$name: $rest";
			push @plants, [ "$kind $name", "CREATE $kind $name$rest" ];
		}
		else { push @plants, [ "$kind $name", $kind eq 'INDEX' ? "CREATE TABLE planted (i int); CREATE INDEX $name ON planted (i)"
			  : $kind eq 'VIEW' ? "CREATE VIEW $name AS SELECT 1 AS i" : "CREATE $kind $name" . ($kind eq 'TABLE' ? ' (i int)' : '') ] }
	}
	return @plants;
}

# Members that mallory owns.
my $his = q{SELECT count(*) FROM pg_depend d WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency')
	AND (d.objid IN (SELECT oid FROM pg_proc WHERE proowner = 'mallory'::regrole)
		OR d.objid IN (SELECT oid FROM pg_class WHERE relowner = 'mallory'::regrole))};

# One psql for all plants.  After each, a line has what stopped the statement, the members that are
# mallory's and the extension that is there.
sub stopped_by
{
	my ($sql, @plants) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $there = "SELECT string_agg(extname || ' ' || extversion, ', ' ORDER BY oid) FROM pg_extension";
	my $before = $node->safe_psql('postgres', $there);
	my ($ret, $out, $err) = $node->psql('postgres', join('', map { <<"SQL" } @plants), on_error_stop => 0);
BEGIN;
SET LOCAL ROLE mallory;
$_->[1];
RESET ROLE;
SAVEPOINT planted;
$sql;
\\echo :SQLSTATE :LAST_ERROR_MESSAGE
ROLLBACK TO planted;
$his;
$there;
ROLLBACK;
SQL
	my @lines = split /\n/, $out;

	for my $plant (@plants)
	{
		my ($error, $members, $after) = splice @lines, 0, 3;

		like($error, qr/\A42(?:P07|723) .* already exists/, "$sql: $plant->[0] is somebody else's");
		is("$members $after", "0 $before", "$sql: $plant->[0] stays it");
	}
	unlike($err, qr/evil ran/, "$sql: nothing planted has run");
	return;
}

my @install = plants("idempotency--$version.sql");
cmp_ok(scalar @install, '>', 35, 'objects that are created');
stopped_by('CREATE EXTENSION idempotency', @install);

# What an update adds, its own helpers included
$node->safe_psql('postgres', "CREATE EXTENSION idempotency VERSION '0.1.0'");
my @update = plants("idempotency--0.1.0--$version.sql");
cmp_ok(scalar @update, '>', 7, 'objects that the update creates');
stopped_by('ALTER EXTENSION idempotency UPDATE', @update);
$node->safe_psql('postgres', 'DROP EXTENSION idempotency');

# Functions, operators and types that fit better than those of pg_catalog, or are found first in a careless search_path
my $evil = 'SET search_path = public;';
my $n = 0;
sub evil { my ($signature, $result) = @_; return "CREATE FUNCTION $signature RETURNS $result LANGUAGE plpgsql AS \$\$ BEGIN RAISE EXCEPTION 'evil ran as %', current_user; END \$\$;\n" }

for my $types ([ 'name', 'text' ], [ 'text', 'name' ], [ 'text', 'text' ], [ 'name', 'name' ], [ 'name', 'unknown' ], [ 'oid', 'oid' ], [ 'oid', 'regclass' ], [ 'regclass', 'oid' ],
	[ '"char"', '"char"' ], [ '"char"', 'text' ], [ 'timestamptz', 'timestamptz' ], [ 'numeric', 'integer' ], [ 'bigint', 'real' ], [ 'numeric', 'bigint' ], [ 'text', 'regclass' ], [ 'text', 'regprocedure' ], [ 'oid', 'integer' ])
{
	my ($left, $right) = map { $_ eq 'unknown' ? 'text' : $_ } @$types;

	for my $op ('=', '<>', '>', '<', '<=', '||', '~~', '/', '*', '-')
	{
		$n++;
		$evil .= evil("op_$n($left, $right)", $op =~ /[=<>~]/ ? 'boolean' : $op eq '||' ? 'text' : 'numeric')
		  . "DO \$\$ BEGIN CREATE OPERATOR public.$op (FUNCTION = op_$n, LEFTARG = $left, RIGHTARG = $right); EXCEPTION WHEN duplicate_function THEN NULL; END \$\$;\n";
	}
}
$evil .= evil($_->[0], $_->[1])
  for [ 'pg_extension_config_dump(text, text)', 'void' ], [ 'set_config(name, name, boolean)', 'text' ], [ 'current_setting(name)', 'text' ], [ 'replace(text, name, text)', 'text' ],
	[ 'format(text, oid)', 'text' ], [ 'format(text, regprocedure)', 'text' ], [ 'format(text, text, regrole)', 'text' ], [ 'aclexplode(text)', 'SETOF record' ], [ 'round(float8, integer)', 'float8' ],
	[ 'pg_relation_size(text)', 'bigint' ], [ 'clock_timestamp(text)', 'timestamptz' ];
$evil .= "CREATE TYPE public.regrole AS (a int); CREATE TYPE public.uuid AS (a int); CREATE DOMAIN public.jsonb AS text;";
$node->psql('postgres', $evil, on_error_die => 1, extra_params => [ '-U', 'mallory' ]);

my $log_start = -s $node->logfile;
for my $path ('public, pg_catalog', 'public', 'pg_catalog')
{
	my ($ret, $out, $err) = $node->psql('postgres', <<"SQL");
SET search_path = $path;
CREATE EXTENSION idempotency SCHEMA public;
SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
	WHERE a.attrelid OPERATOR(pg_catalog.=) 'public.idem_keys'::pg_catalog.regclass AND t.typnamespace OPERATOR(pg_catalog.<>) 'pg_catalog'::pg_catalog.regnamespace;
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency SCHEMA public VERSION '0.1.0';
ALTER EXTENSION idempotency UPDATE;
SELECT pg_catalog.count(v.*) FROM public.idem_stat v;
SELECT pg_catalog.count(v.*) FROM public.idem_in_flight v;
DROP EXTENSION idempotency;
SQL

	is("$ret:$out", "0:0\n1\n0", "better matches, search_path $path: created, updated, views read: $err");
}
unlike(slurp_file($node->logfile, $log_start), qr/evil ran/, 'nothing planted has run');

done_testing();
