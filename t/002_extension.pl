
# The extension comes and goes under open sessions, changes schema and owner,
# and lives in several databases at once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', schema => undef);

# A request as one function, whose plans the session keeps.
$node->safe_psql('postgres', <<'SQL');
CREATE SCHEMA one;
CREATE SCHEMA two;
CREATE TABLE effects (k text);
CREATE FUNCTION request(k text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	c record;
BEGIN
	SELECT * INTO c FROM idem_begin(k);
	IF c.state = 'started' THEN
		INSERT INTO effects VALUES (k);
		PERFORM idem_finish(k, to_jsonb(k));
	END IF;
	RETURN c.state;
END $$;
SQL

sub session
{
	return $node->background_psql($_[0] // 'postgres',
		on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
}

# The output, or the SQLSTATE of the first error.
sub run_in
{
	my ($session, $sql) = @_;
	my ($out, $err) = $session->query($sql);
	my ($state) = $session->{stderr} =~ /(?:ERROR|FATAL):\s+(\w{5})/;

	$session->{stderr} = '';
	return $state // $out;
}

#
# DROP and CREATE, in another schema, in one session that has used it
#
my $one = session();
run_in($one, 'SET search_path = one, two, public');
is(run_in($one, 'CREATE EXTENSION idempotency SCHEMA one'), '', 'create');
is(run_in($one, "SELECT request('k')"), 'started', 'first run');
is(run_in($one, "SELECT request('k')"), 'replayed', 'replay');
run_in($one, "PREPARE claim AS SELECT idem_claim('k')");
is(run_in($one, 'EXECUTE claim'), 'f', 'a prepared claim');
is(run_in($one, 'DROP EXTENSION idempotency'), '', 'drop');
is(run_in($one, "SELECT request('k')"), '42883', 'gone');
is(run_in($one, 'EXECUTE claim'), '42883', 'gone for the prepared claim');
is(run_in($one, 'CREATE EXTENSION idempotency SCHEMA two'), '', 'create in another schema');
is(run_in($one, "SELECT request('k')"), 'started', 'a new table knows no keys');
is(run_in($one, "SELECT request('k')"), 'replayed', 'and keeps them');
is(run_in($one, 'EXECUTE claim'), 'f', 'prepared claim');
is(run_in($one, "SELECT count(*) FROM two.idem_keys"), '1', 'the key is where it belongs');

# The same without using it in between, and in one transaction.
is( run_in($one, "DROP EXTENSION idempotency; CREATE EXTENSION idempotency SCHEMA one; SELECT request('k')"),
	'started', 'drop, create, call');
is(run_in($one, "BEGIN; DROP EXTENSION idempotency; CREATE EXTENSION idempotency SCHEMA two; SELECT request('k'); COMMIT"),
	'started', 'drop, create, call in one transaction');
is(run_in($one, "SELECT request('k')"), 'replayed', 'and the key has been committed');

#
# Rolled back
#
is( run_in($one, "BEGIN; DROP EXTENSION idempotency; CREATE EXTENSION idempotency SCHEMA one; SELECT request('k'); ROLLBACK"),
	'started', 'drop and create, rolled back');
is(run_in($one, "SELECT request('k')"), 'replayed', 'the old table is back');
is(run_in($one, "SELECT count(*) FROM two.idem_keys"), '1', 'with its key');
is( run_in($one, <<'SQL'), "started\nstarted\nreplayed", 'drop and create in a savepoint, while a claim is open');
BEGIN;
SELECT state FROM idem_begin('s');
SAVEPOINT a;
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency SCHEMA one;
SELECT request('k');
ROLLBACK TO a;
DO $$ BEGIN PERFORM idem_finish('s'); END $$;
COMMIT;
SELECT request('s');
SQL
is(run_in($one, 'DROP EXTENSION idempotency'), '', 'drop');
is( run_in($one, "BEGIN; CREATE EXTENSION idempotency SCHEMA one; SELECT request('k'); ROLLBACK"),
	'started', 'create, rolled back');
is(run_in($one, "SELECT request('k')"), '42883', 'it never was');
is(run_in($one, 'EXECUTE claim'), '42883', 'not for the prepared claim either');
is(run_in($one, 'CREATE EXTENSION idempotency SCHEMA one'), '', 'create');
is(run_in($one, "SELECT request('k')"), 'started', 'works after the rollback');

#
# Under another session
#
my $two = session();
run_in($two, 'SET search_path = one, two, public');
is(run_in($two, "SELECT request('k')"), 'replayed', 'another session has kept plans');
run_in($two, "PREPARE claim AS SELECT idem_claim('k')");
is(run_in($two, 'EXECUTE claim'), 'f', 'and a prepared claim');
run_in($one, 'DROP EXTENSION idempotency');
is(run_in($two, "SELECT request('k')"), '42883', 'gone under it');
run_in($one, 'CREATE EXTENSION idempotency SCHEMA two');
is(run_in($two, "SELECT request('k')"), 'started', 'and back');
is(run_in($two, 'EXECUTE claim'), 'f', 'for the prepared claim as well');
is(run_in($one, "SELECT request('k')"), 'replayed', 'both sessions mean the same table');
run_in($one, 'DROP EXTENSION idempotency; CREATE EXTENSION idempotency SCHEMA one');
is(run_in($two, 'EXECUTE claim'), 't', 'dropped and created between two calls');
is(run_in($one, "SELECT request('k')"), 'replayed', 'both sessions mean the same table');

# An open claim keeps its table.
is(run_in($two, "BEGIN; SELECT state FROM idem_begin('open')"), 'started', 'a claim is open');
is(run_in($one, "SET lock_timeout = '100ms'; DROP EXTENSION idempotency"), '55P03', 'a drop waits for it');
is(run_in($two, "INSERT INTO effects VALUES ('open'); SELECT idem_finish('open', '1'); COMMIT"), '1', 'it finishes');
is(run_in($two, "SELECT request('open')"), 'replayed', 'and is kept');

# The schema may be renamed.
run_in($one, 'ALTER SCHEMA one RENAME TO uno');
run_in($_, 'SET search_path = uno, public') for $one, $two;
is(run_in($two, "SELECT request('open')"), 'replayed', 'schema renamed');
is(run_in($one, 'ALTER EXTENSION idempotency SET SCHEMA two'), '0A000', 'not relocatable');

# A dropped extension leaves no hooks that hurt, nor a claim that commits.
is(run_in($two, "BEGIN; SELECT state FROM idem_begin('x'); DROP EXTENSION idempotency; COMMIT"),
	'ID005', 'an open claim is guarded even then');
is(run_in($two, "SELECT request('open')"), 'replayed', 'so the drop was rolled back');
run_in($two, 'DROP EXTENSION idempotency');
is(run_in($two, 'BEGIN; INSERT INTO effects VALUES (1); COMMIT; SELECT 1'), '1', 'a session goes on without it');
run_in($one, 'CREATE EXTENSION idempotency SCHEMA uno');

#
# SQL can reach what the extension declares of its library, and nothing else: a hook of a test could
# stop the clock, or worse.
#
my $library = $node->config_data('--pkglibdir') . '/idempotency.so';
my $symbols;
IPC::Run::run([ 'nm', '-D', '--defined-only', $library ], '>', \$symbols) or die "no symbols of $library";
is(join("\n", sort { $a cmp $b } $symbols =~ /^\w+ \w pg_finfo_(\w+)$/mg), $node->safe_psql('postgres', <<'SQL'), 'the library has what the extension declares');
SELECT DISTINCT prosrc COLLATE "C" FROM pg_proc WHERE probin = '$libdir/idempotency' ORDER BY 1;
SQL

#
# Two databases
#
$node->safe_psql('postgres', 'CREATE DATABASE other');
my $other = session('other');
run_in($other, 'CREATE EXTENSION idempotency');
is(run_in($one, "BEGIN; SELECT state FROM idem_begin('both')"), 'started', 'a key in one database');
is(run_in($two, "SELECT state FROM idem_begin('both')"), 'in_progress', 'is busy there');
is(run_in($other, "BEGIN; SELECT state FROM idem_begin('both')"), 'started', 'and free in another');
is(run_in($_, "SELECT idem_finish('both', '1'); COMMIT"), '1', 'finished') for $one, $other;
is(run_in($_, "SELECT state FROM idem_begin('both')"), 'replayed', 'replayed') for $one, $other;

#
# Who may create it
#
$node->safe_psql('postgres', 'CREATE ROLE plain LOGIN; CREATE DATABASE his OWNER plain');
sql_fails($node, 'his', 'CREATE EXTENSION idempotency', '42501', 'not a database owner', '-U', 'plain');
sql_is($node, 'his', "SELECT trusted, superuser, relocatable FROM pg_available_extension_versions WHERE name = 'idempotency' LIMIT 1",
	'f|t|f', 'untrusted, for superusers, not relocatable');

#
# The tables' owner: what the C code becomes for its own access, and all that
# an index of the owner's runs as
#
$node->safe_psql('other', <<'SQL');
CREATE ROLE keeper;
GRANT CREATE ON SCHEMA public TO keeper;
ALTER TABLE idem_keys OWNER TO keeper;
SET ROLE keeper;
CREATE TABLE ran (who name, outer_role text);
CREATE FUNCTION note() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
	INSERT INTO public.ran VALUES (current_user, current_setting('role'));
	IF current_setting('test.escalate', true) = 'on' THEN
		PERFORM set_config('role', 'none', false);
	END IF;
END $$;
CREATE FUNCTION spy(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM public.note();
	RETURN t;
END $$;
CREATE INDEX idem_keys_spy ON idem_keys (spy(key), spy(result::text)) WHERE spy(scope) = '';
TRUNCATE ran;
SQL

# The brief ttl makes "again" a replacement of an expired row.
my $claims = <<'SQL';
BEGIN;
SELECT state FROM idem_begin('owner', '1 second');
SELECT idem_finish('owner', '1');
COMMIT;
SELECT idem_claim('owner claim');
SELECT idem_claim_many('{owner many}');
SQL
my $expected = "started\n1\nt\nowner many";
sql_is($node, 'other', $claims, $expected, 'another owner');
sql_is($node, 'other', "SELECT count(*) > 0, min(who), max(who) FROM ran", 't|keeper|keeper', "the owner's index runs as the owner");

$node->poll_query_until('other', "SELECT count(*) = 0 FROM idem_lookup('owner')") or die 'not expired';
$node->safe_psql('other', 'TRUNCATE ran');
sql_is($node, 'other', "BEGIN; SELECT state FROM idem_begin('owner'); SELECT idem_finish('owner', '2'); COMMIT",
	"started\n2", 'an expired row is replaced');
sql_is($node, 'other', "SELECT count(*) > 0, min(who), max(who) FROM ran", 't|keeper|keeper', "as the owner");

# A role with a grant only, under which the owner's code runs as the owner too.
$node->safe_psql('other', "CREATE ROLE app LOGIN; SELECT idem_grant('app'); TRUNCATE ran");
sql_is($node, 'other', "SELECT idem_claim('by app'); SELECT current_user", "t\napp", 'claim by a granted role', '-U', 'app');
sql_is($node, 'other', "SELECT min(who), max(who) FROM ran", 'keeper|keeper', 'as the owner');
sql_is($node, 'other', "SELECT idem_claim('by app 2'); SELECT current_user = session_user", "t\nt", 'roles are put back');

# It cannot climb from there to the superuser who called.
for my $sql ("SELECT idem_claim('climb')", "SELECT idem_claim_many('{climb}')",
	"BEGIN; SELECT idem_begin('climb'); SELECT idem_finish('climb')")
{
	sql_fails($node, 'other', "SET test.escalate = on; $sql", '42501', "no way up: $sql");
}
sql_is($node, 'other', <<'SQL', "keeper\nt|none", 'an error inside leaves the role as it was');
SET test.escalate = on;
DO $$ BEGIN PERFORM idem_claim('climb'); EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;
SET test.escalate = off;
SELECT tableowner FROM pg_tables WHERE tablename = 'idem_keys';
SELECT current_user = session_user, current_setting('role');
SQL

# Erasing works by rights of the owner as well, who has them by ownership.
sql_is($node, 'other', "SELECT idem_forget('by app'), idem_forget('by app')", 't|f', 'forget');
$node->safe_psql('other', "SELECT idem_claim('x', scope => 'tenant'), idem_claim('y', scope => 'tenant'); SELECT idem_grant('app', '{operate}')");
sql_is($node, 'other', "SELECT idem_forget_scope('tenant')", '2', 'forget a scope', '-U', 'app');

$_->quit for $one, $two, $other;

done_testing();
