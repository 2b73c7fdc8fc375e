
# The database that the fuzzer plays in: roles, functions to be called by idem_call, and
# tables with the trigger idem_once.

package IdemFuzzObjects;

use strict;
use warnings;

use Exporter 'import';
use IdemFuzzValues;

our @EXPORT = qw(create_roles_and_functions create_trigger_tables);

sub create_roles_and_functions
{
	my ($node) = @_;

	$node->safe_psql('postgres', <<'SQL');
CREATE ROLE fuzz_user;
CREATE ROLE fuzz_nobody;
CREATE ROLE fuzz_target;
CREATE ROLE "Fuzz ""Target""";
SELECT idem_grant('fuzz_user', '{claims,call,throttle,tokens,lookup,operate}');
CREATE SCHEMA other;
GRANT USAGE ON SCHEMA public, other TO fuzz_user, fuzz_nobody;
CREATE TABLE orders (id int);
GRANT ALL ON orders TO fuzz_user;

CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE FUNCTION fuzz_plus(a int, b int DEFAULT 1) RETURNS int LANGUAGE sql AS 'SELECT a + b';
CREATE FUNCTION other.fuzz_plus(a int) RETURNS int LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION other."Odd, Name(1)"("A" int DEFAULT 3) RETURNS int LANGUAGE sql AS 'SELECT "A"';
CREATE FUNCTION fuzz_two(a int) RETURNS int LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION fuzz_two(a text) RETURNS text LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION fuzz_fails() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE 'it fails'; END $$;
CREATE FUNCTION fuzz_rows(n int DEFAULT 2) RETURNS TABLE (a int, b text) LANGUAGE sql AS 'SELECT i, i::text FROM generate_series(1, least(n, 1000)) i';
CREATE FUNCTION fuzz_none() RETURNS SETOF pair LANGUAGE sql AS 'SELECT 1, NULL LIMIT 0';
CREATE FUNCTION fuzz_void() RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION fuzz_large(n bigint DEFAULT 10) RETURNS text LANGUAGE sql AS $$ SELECT repeat('x', n::int) $$;
CREATE FUNCTION fuzz_types(t date DEFAULT NULL, l int[] DEFAULT '{1}', r pair DEFAULT NULL, j jsonb DEFAULT NULL, OUT s text, OUT u pair) LANGUAGE sql AS $$ SELECT concat(t, l, r, j), r $$;
CREATE FUNCTION fuzz_claims(key text) RETURNS boolean LANGUAGE sql AS $$ SELECT public.idem_claim(key) $$;
CREATE FUNCTION fuzz_domain(d positive DEFAULT 1) RETURNS positive LANGUAGE sql AS $$ SELECT d $$;
CREATE FUNCTION fuzz_changes(a int DEFAULT 1) RETURNS int LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION fuzz_variadic(VARIADIC a int[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION fuzz_any(a anyelement) RETURNS anyelement LANGUAGE sql AS 'SELECT a';
CREATE PROCEDURE fuzz_procedure(a int) LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION fuzz_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';

-- what a call raised, told and forgotten
CREATE FUNCTION fuzz_try(name text, call text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE call;
EXCEPTION WHEN OTHERS THEN
	RAISE WARNING 'fuzz_try % %', SQLSTATE, SQLERRM;
END $$;

-- bytes of all memory contexts, and of the process
CREATE FUNCTION fuzz_memory(OUT contexts text, OUT anonymous bigint) LANGUAGE plpgsql AS $$
BEGIN
	contexts := (SELECT string_agg(name || '=' || bytes, ',') FROM (SELECT translate(name, ', =', '') AS name, sum(used_bytes) AS bytes FROM pg_backend_memory_contexts GROUP BY 1) c);
	anonymous := 1024 * substring(pg_read_file('/proc/self/smaps_rollup') FROM 'Anonymous:\s+(\d+)')::bigint;
EXCEPTION WHEN undefined_file THEN
	anonymous := 0;
END $$;
SQL
	return;
}

# Tables with the trigger: where "value" is, it makes what "id" may be, else that is a small
# number; "may" is what else a statement on it may raise.
my %good = (
	t_raise => {},
	t_skip => {},
	t_deferred => { deferred => 1 },
	t_parts => {},
	t_parts_skip => { may => ['39P01'] },
	t_types => { value => sub { pick('1', '1.0', '1.00', q('NaN'::numeric), 'NULL::numeric', '1e100', '-0.0', "repeat('9', 1020)::numeric", "repeat('9', 1030)::numeric") }, may => ['22023'] });
my %good_triggers = (
	t_raise => "AFTER INSERT OR UPDATE ON t_raise FOR EACH ROW EXECUTE FUNCTION idem_once('id', '20 ms')",
	t_skip => "BEFORE INSERT OR UPDATE ON t_skip FOR EACH ROW EXECUTE FUNCTION idem_once('id,body', '20 ms', 'skip')",
	t_parts => "AFTER INSERT OR UPDATE OR DELETE ON t_parts FOR EACH ROW EXECUTE FUNCTION idem_once('id', '20 ms')",
	t_parts_skip => "BEFORE INSERT OR UPDATE ON t_parts_skip FOR EACH ROW EXECUTE FUNCTION idem_once('id', '20 ms', 'skip')",
	t_deferred => "AFTER INSERT ON t_deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION idem_once('id', '20 ms')",
	t_types => "AFTER INSERT OR UPDATE ON t_types FOR EACH ROW EXECUTE FUNCTION idem_once('id', '20 ms', NULL, 's1')");

# What the trigger cannot be made with, and where.
my @bad_arguments = ('', q(''), 'NULL', q('nosuch'), q('id,'), q('"'), q('id', '0'), q('id', 'nosuch'), q('id', '1 mon -29 days'), q('id', NULL, 'nosuch'), q('id', NULL, 'skip'),
	"'id', NULL, NULL, '" . 'x' x 1025 . "'", q('id', '', '', '', 'more'), q('id,id,region,body,id'), q('body'), q('ctid'));
my @bad_triggers = (
	(map { "AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION idem_once($_)" } @bad_arguments),
	"BEFORE INSERT ON %s FOR EACH STATEMENT EXECUTE FUNCTION idem_once('id')",
	"BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION idem_once('id')",
	"AFTER INSERT ON %s FOR EACH ROW EXECUTE FUNCTION idem_once('g')");

# Returns the tables, by name.
sub create_trigger_tables
{
	my ($node) = @_;
	my %table = %good;

	for my $name (sort keys %good)
	{
		my $parts = $name =~ /parts/;
		my $type = $name eq 't_types' ? 'numeric' : 'int';
		my $constraint = $good{$name}{deferred} ? 'CONSTRAINT ' : '';

		$node->safe_psql('postgres', join ';',
			"CREATE TABLE $name (id $type, region text, body text)" . ($parts ? ' PARTITION BY LIST (region)' : ''),
			(map { "CREATE TABLE ${name}_$_ PARTITION OF $name FOR VALUES IN ('$_')" } $parts ? qw(a b) : ()),
			"CREATE ${constraint}TRIGGER once $good_triggers{$name}",
			"GRANT ALL ON $name TO fuzz_user");
	}
	for my $i (0 .. $#bad_triggers)
	{
		my $name = "t_bad$i";

		$node->safe_psql('postgres', join ';',
			"CREATE TABLE $name (id int, region text, body text, g int GENERATED ALWAYS AS (id + 1) STORED)",
			'CREATE TRIGGER once ' . sprintf($bad_triggers[$i], $name),
			"GRANT ALL ON $name TO fuzz_user");
		$table{$name} = { may => [qw(22023 39P01 0A000)] };
	}
	return \%table;
}

1;
