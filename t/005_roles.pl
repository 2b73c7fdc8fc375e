
# A role with a grant can do its job and nothing else, and whatever it puts
# into its search_path runs with its own rights only.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', schema => 'idem');

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE caller LOGIN;
CREATE ROLE stranger LOGIN;
CREATE ROLE mallory LOGIN;
SELECT idem.idem_grant('app');
SELECT idem.idem_grant('caller', '{call}');
SQL

# Every function, by the job that it belongs to; each call stands alone.
my %calls = (
	claims => [
		"BEGIN; SELECT idem.idem_begin('c1'); SELECT idem.idem_finish('c1'); ROLLBACK",
		"BEGIN; SELECT idem.idem_begin('c2'); SELECT idem.idem_release('c2'); COMMIT",
		"BEGIN; SELECT idem.idem_http_begin('c7'); SELECT idem.idem_http_finish('c7', 200); ROLLBACK",
		"SELECT idem.idem_claim('c3')",
		"SELECT idem.idem_claim_many('{c4, c5}')",
		"CREATE TEMP TABLE t (k text); CREATE TRIGGER once AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION idem.idem_once('k')",
	],
	call => ["SELECT idem.idem_call('c6', 'pg_catalog.version')"],
	lookup => ["SELECT idem.idem_lookup('c1')"],
	operate => [
		"SELECT idem.idem_digest('c1')",
		"SELECT idem.idem_forget('c1')",
		"SELECT idem.idem_forget_scope('nowhere')",
		"SELECT idem.idem_import('c8')",
		"SELECT idem.idem_import_many('{c9}')",
		'SELECT idem.idem_stat_reset()',
	],
	admin => [ "SELECT idem.idem_grant('app')", "SELECT idem.idem_revoke('app')" ],
	table => [
		'SELECT FROM idem.idem_keys',
		'SELECT digest FROM idem.idem_keys',
		"INSERT INTO idem.idem_keys SELECT",
		'UPDATE idem.idem_keys SET result = NULL',
		'DELETE FROM idem.idem_keys',
		'TRUNCATE idem.idem_keys',
		'COPY idem.idem_keys TO STDOUT',
		'BEGIN; LOCK TABLE idem.idem_keys IN ACCESS SHARE MODE',
		'CREATE INDEX ON idem.idem_keys (key)',
	],
	schema => ['CREATE TABLE idem.t ()'],);

# What a role may call is what its jobs have.
sub may
{
	my ($role, $what, @jobs) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	for my $job (sort keys %calls)
	{
		my $expected = (grep { $_ eq $job } @jobs) ? '' : '42501';

		sql_fails($node, 'postgres', $_, $expected, "$what: $_", '-U', $role) for @{ $calls{$job} };
	}
}

may('stranger', 'nothing granted');
may('app', 'granted', 'claims');
may('caller', 'granted', 'call');

# Each function of the job without any other, and by its bare name.
sql_is($node, 'postgres', <<'SQL', "started\n{\"a\": 1}\nreplayed|{\"a\": 1}\nmismatch\nstarted\nt\nt\nf\nb\na", 'claims', '-U', 'app');
SET search_path = idem;
BEGIN;
SELECT state FROM idem_begin('k', '1 day', 'tenant', '{"x": 1}');
SELECT idem_finish('k', '{"a": 1}', 'tenant');
COMMIT;
SELECT state, result FROM idem_begin('k', scope => 'tenant');
SELECT state FROM idem_begin('k', scope => 'tenant', request => '{"x": 2}');
BEGIN;
SELECT state FROM idem_begin('r');
SELECT idem_release('r');
COMMIT;
SELECT idem_claim('i');
SELECT idem_claim('i');
SELECT * FROM idem_claim_many('{b, i, a}');
SQL
sql_fails($node, 'postgres', "BEGIN; SELECT idem.idem_begin('open'); COMMIT", 'ID005', 'the guard holds for it', '-U', 'app');

# An error that shows the key shows nothing of what is stored with it.
my (undef, undef, $err) = $node->psql('postgres', q{SELECT idem.idem_claim('k', scope => 'tenant', request => '{"x": 2}')},
	extra_params => [ '-U', 'app', '-v', 'VERBOSITY=verbose' ]);
like($err, qr/ID002/, 'mismatch raised');
unlike($err, qr/\{|"a"/, 'without the stored result');

$node->safe_psql('postgres', "SELECT idem.idem_grant('app', '{lookup}')");
may('app', 'lookup granted', 'claims', 'lookup');
$node->safe_psql('postgres', "SELECT idem.idem_revoke('app', '{lookup}'); SELECT idem.idem_grant('app', '{operate}')");
sql_fails($node, 'postgres', "SELECT idem.idem_forget('k', 'tenant')", '', 'operate granted', '-U', 'app');
sql_fails($node, 'postgres', "SELECT idem.idem_forget_scope('tenant')", '', 'operate granted', '-U', 'app');
$node->safe_psql('postgres', "SELECT idem.idem_revoke('app', '{operate}')");
may('app', 'revoked', 'claims');
$node->safe_psql('postgres', "SELECT idem.idem_revoke('app')");
may('app', 'all revoked');

# By membership, as anything granted.
$node->safe_psql('postgres', "SELECT idem.idem_grant('app'); GRANT app TO stranger");
may('stranger', 'a member', 'claims');
$node->safe_psql('postgres', 'REVOKE app FROM stranger');
may('stranger', 'no longer a member');

# Usage of the schema alone opens nothing.
$node->safe_psql('postgres', 'GRANT USAGE ON SCHEMA idem TO stranger');
may('stranger', 'schema only');

# A role's name is a name.
$node->safe_psql('postgres', 'CREATE ROLE "Odd ""name"" x"');
sql_is($node, 'postgres', q{SELECT idem.idem_grant('"Odd ""name"" x"'); SET ROLE "Odd ""name"" x"; SELECT idem.idem_claim('odd')},
	"\nt", 'a role with an odd name');
sql_fails($node, 'postgres', "SELECT idem.idem_grant('mallory', '{superpowers}')", '22023', 'no such job');
sql_fails($node, 'postgres', "SELECT idem.idem_grant(NULL)", '22004', 'no role');

#
# A hostile search_path.  Whatever of mallory's runs says so, and as whom.
#
$node->safe_psql('postgres', 'CREATE SCHEMA evil AUTHORIZATION mallory; GRANT USAGE ON SCHEMA evil TO PUBLIC');

my @types = ('text', 'uuid', 'timestamptz', 'jsonb', 'bytea', 'interval', 'name', 'oid', 'int4', 'int8', 'bool', 'regclass');
my @operators = ('=', '<>', '<', '>', '<=', '>=', '+', '||');
my $evil = $evil_ran . <<'SQL';
CREATE FUNCTION evil.check_text(t pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS $$
BEGIN
	PERFORM evil.ran('domain');
	RETURN true;
END $$;

-- functions that may be used inside
CREATE FUNCTION evil.sha256(pg_catalog.bytea) RETURNS pg_catalog.bytea LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('sha256'); RETURN '\x00'; END $$;
CREATE FUNCTION evil.digest(pg_catalog.text, pg_catalog.text) RETURNS pg_catalog.bytea LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('digest'); RETURN '\x00'; END $$;
CREATE FUNCTION evil.quote_ident(pg_catalog.text) RETURNS pg_catalog.text LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('quote_ident'); RETURN 'mallory'; END $$;
CREATE FUNCTION evil.format(pg_catalog.text, VARIADIC pg_catalog.text[]) RETURNS pg_catalog.text LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('format'); RETURN 'SELECT 1'; END $$;
CREATE FUNCTION evil.to_jsonb(anyelement) RETURNS pg_catalog.jsonb LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('to_jsonb'); RETURN '"evil"'; END $$;
CREATE FUNCTION evil.idem_begin(pg_catalog.text) RETURNS pg_catalog.text LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('idem_begin'); RETURN 'started'; END $$;
CREATE FUNCTION evil.idem_claim(pg_catalog.text, pg_catalog.interval, pg_catalog.text, pg_catalog.jsonb)
RETURNS pg_catalog.bool LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('idem_claim'); RETURN true; END $$;

-- types of the names that the extension's signatures have
CREATE DOMAIN evil.text AS pg_catalog.text CHECK (evil.check_text(VALUE));
CREATE DOMAIN evil.timestamptz AS pg_catalog.text CHECK (evil.check_text(VALUE));
CREATE DOMAIN evil.jsonb AS pg_catalog.text CHECK (evil.check_text(VALUE));
CREATE TYPE evil.uuid AS (a pg_catalog.uuid);
CREATE TYPE evil.interval AS (a pg_catalog.interval);
CREATE TYPE evil.regrole AS (a pg_catalog.oid);
CREATE FUNCTION evil.cast_uuid(evil.uuid) RETURNS pg_catalog.uuid LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('cast to uuid'); RETURN NULL; END $$;
CREATE FUNCTION evil.cast_uuid(pg_catalog.uuid) RETURNS evil.uuid LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('cast from uuid'); RETURN NULL; END $$;
CREATE CAST (evil.uuid AS pg_catalog.uuid) WITH FUNCTION evil.cast_uuid(evil.uuid) AS IMPLICIT;
CREATE CAST (pg_catalog.uuid AS evil.uuid) WITH FUNCTION evil.cast_uuid(pg_catalog.uuid) AS IMPLICIT;

-- tables
CREATE TABLE evil.idem_keys (LIKE evil.ran);
CREATE TABLE evil.pg_extension (oid pg_catalog.oid, extname pg_catalog.name, extnamespace pg_catalog.oid);
CREATE TABLE evil.pg_class (LIKE pg_catalog.pg_class);
CREATE TABLE evil.pg_proc (LIKE pg_catalog.pg_proc);
SQL
for my $type (@types)
{
	for my $i (0 .. $#operators)
	{
		my $op = $operators[$i];
		my $f = "op_${type}_$i";
		my ($result, $value) = $op =~ /[<>=]/ ? ('bool', 'true') : ($type, 'NULL');

		$evil .= <<"SQL";
CREATE FUNCTION evil.$f(pg_catalog.$type, pg_catalog.$type) RETURNS pg_catalog.$result LANGUAGE plpgsql AS \$\$
BEGIN PERFORM evil.ran('$type $op'); RETURN $value; END \$\$;
CREATE OPERATOR evil.$op (LEFTARG = pg_catalog.$type, RIGHTARG = pg_catalog.$type, FUNCTION = evil.$f);
SQL
	}
}
# one that differs from the real one even where it is harmless
$evil .= <<'SQL';
CREATE FUNCTION evil.op_text_jsonb(pg_catalog.text, pg_catalog.jsonb) RETURNS pg_catalog.bool LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('text = jsonb'); RETURN true; END $$;
CREATE OPERATOR evil.= (LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.jsonb, FUNCTION = evil.op_text_jsonb);
SQL
$node->psql('postgres', $evil, on_error_die => 1, extra_params => [ '-U', 'mallory' ]);

my $path = 'SET search_path = evil, pg_temp, pg_catalog;';
my $temp = <<'SQL';
CREATE TEMP TABLE idem_keys (a pg_catalog.int4);
CREATE TEMP TABLE pg_extension (oid pg_catalog.oid, extname pg_catalog.name, extnamespace pg_catalog.oid);
CREATE TEMP TABLE pg_proc (oid pg_catalog.oid);
SQL

# The trap is set: what is not qualified does run mallory's.
(undef, my $out, $err) = $node->psql('postgres', "$path SELECT 'a'::pg_catalog.text = 'b'::pg_catalog.text, now() = 'infinity'");
is($out, 't|t', 'control: an operator and a function of the path');
like($err, qr/evil text = as /, 'control: say so');
$node->safe_psql('postgres', 'TRUNCATE evil.ran');
my $log_start = -s $node->logfile;
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

# Everything there is, twice in a session: with a good path first, so that
# kept plans meet the other path, and with the bad one from the start.
my $everything = <<'SQL';
BEGIN;
SELECT state FROM idem.idem_begin('path', '1 day', 'evil tenant', '{"x": 1}');
SELECT idem.idem_finish('path', '{"a": 1}', 'evil tenant');
COMMIT;
SELECT state, result FROM idem.idem_begin('path', NULL, 'evil tenant', '{"x": 1.0}');
SELECT state, result FROM idem.idem_begin('path', NULL, 'evil tenant', '{"x": 2}');
BEGIN;
SELECT state FROM idem.idem_begin('brief', '1 millisecond', 'evil tenant');
SELECT idem.idem_release('brief', 'evil tenant');
COMMIT;
SELECT idem.idem_claim('path 2', NULL, 'evil tenant');
SELECT idem.idem_claim('path 2', NULL, 'evil tenant');
SELECT idem.idem_claim('path', NULL, 'kept');
SELECT key FROM idem.idem_claim_many(ARRAY['z', 'path 2', 'a']::pg_catalog.text[], NULL, 'evil tenant');
SELECT state, result FROM idem.idem_lookup('path', 'evil tenant');
SELECT idem.idem_digest('path', 'evil tenant');
SELECT idem.idem_forget('path 2', 'evil tenant');
SELECT idem.idem_forget('path 2', 'evil tenant');
SELECT idem.idem_forget_scope('evil tenant');
SELECT idem.idem_forget_scope('evil tenant');
SELECT state FROM idem.idem_lookup('path', 'kept');
SELECT idem.idem_forget('path', 'kept');
SQL
my $digest = $node->safe_psql('postgres', "SELECT idem.idem_digest('path', 'evil tenant')");
my $answers = qq(started
{"a": 1}
replayed|{"a": 1}
mismatch|
started
t
t
f
t
z
a
finished|{"a": 1}
$digest
t
f
3
0
finished
t);

# Nothing of mallory's ran as anybody else.
sub only_as_mallory
{
	my ($who, $err) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	unlike($err, qr/evil .* as (?!mallory\b)/, "$who: nothing ran as another");
	is($node->safe_psql('postgres', "SELECT who, what FROM evil.ran WHERE who <> 'mallory'"), '', "$who: nothing was written as another");
}

$node->safe_psql('postgres', "SELECT idem.idem_grant('mallory', '{claims, lookup, operate}')");
for my $who ('mallory', $superuser)
{
	my @as = (extra_params => [ '-U', $who ]);
	my ($ret, $out, $err) = $node->psql('postgres', "$everything $temp $path $everything RESET search_path; $everything $path $everything", @as);

	is($ret, 0, "$who: good path, bad path, and again: $err");
	is($out, join("\n", ($answers) x 4), "$who: all the right answers");
	only_as_mallory($who, $err);

	($ret, $out, $err) = $node->psql('postgres', "$temp $path $everything", @as);
	is($ret, 0, "$who: bad path from the start: $err");
	is($out, $answers, "$who: all the right answers");
	only_as_mallory($who, $err);
}

# An index that the tables' owner added calls what it calls by bare names, as
# most people write.  It runs as the owner, so it must not run what is found
# along the caller's path.
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION idem.normalized(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RETURN quote_ident(t) || CASE WHEN t = 'x' THEN 'y' END;
END $$;
CREATE INDEX keys_normalized ON idem.idem_keys (idem.normalized(key));
SQL
for my $call (
	"SELECT idem.idem_claim('index 1')",
	"SELECT idem.idem_claim_many('{index 2}')",
	"BEGIN; SELECT idem.idem_begin('index 3'); SELECT idem.idem_finish('index 3'); COMMIT")
{
	my ($ret, undef, $err) = $node->psql('postgres', "$path $call", extra_params => [ '-U', 'mallory' ]);

	is($ret, 0, "the owner's index: $call: $err");
	only_as_mallory("the owner's index: $call", $err);
}
$node->safe_psql('postgres', 'DROP INDEX idem.keys_normalized; TRUNCATE evil.ran');

# The superuser grants and revokes under the bad path.
sub superuser_runs
{
	my ($sql, $expected, $name) = @_;
	my ($ret, $out, $err) = $node->psql('postgres', "$temp $path $sql");

	is($out, $expected, "bad path: $name: $err");
	only_as_mallory($name, $err);
}
superuser_runs("SELECT idem.idem_revoke('app')", '', 'revoke');
may('app', 'revoked under the bad path');
superuser_runs("SELECT idem.idem_grant('app')", '', 'grant');
may('app', 'granted under the bad path', 'claims');
superuser_runs("SELECT idem.idem_grant('app', '{lookup, operate}')", '', 'grant of jobs');
superuser_runs("SELECT idem.idem_revoke('app', '{lookup, operate}')", '', 'revoke of jobs');
may('app', 'jobs revoked under the bad path', 'claims');

# A key that expires and is claimed anew, under the bad path.
superuser_runs(<<'SQL', "t\nt\nt", 'replacing an expired key');
SELECT idem.idem_claim('again', '1 second');
DO $$ BEGIN WHILE EXISTS (SELECT FROM idem.idem_lookup('again')) LOOP PERFORM pg_sleep(0.01); END LOOP; END $$;
SELECT idem.idem_claim('again');
SELECT idem.idem_forget('again');
SQL

# So does CREATE EXTENSION, and the extension is as good as any.
superuser_runs('DROP EXTENSION idempotency; CREATE EXTENSION idempotency SCHEMA idem', '', 'DROP and CREATE EXTENSION');
sql_is($node, 'postgres', <<'SQL', 'jsonb', 'with the real types');
SELECT t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid AND t.typnamespace = 'pg_catalog'::regnamespace
WHERE a.attrelid = 'idem.idem_keys'::regclass AND a.attname = 'result'
SQL
superuser_runs("SELECT idem.idem_grant('app')", '', 'grant');
may('app', 'granted anew', 'claims');

# mallory's table of the same name is not taken for the real one.
is($node->safe_psql('postgres', 'SELECT count(*) FROM evil.idem_keys'), '0', 'nothing in the table of the same name');

# In the log there is all that was rolled back as well.
my @log = grep { /WARNING:  evil .* as (?!mallory$)/ } split /\n/, slurp_file($node->logfile, $log_start);
is("@log", '', 'nothing in the log');

#
# Permission denied comes with the call that allows it, where the library is loaded
#
sub hint_of
{
	my ($sql, $role) = @_;
	my ($ret, $out, $err) = $node->psql('postgres', $sql, extra_params => [ '-U', $role ]);
	my ($hint) = $err =~ /^HINT:\s+(.*)$/m;

	like($err, qr/permission denied/, "$sql: denied");
	return $hint // '';
}

my $allow = 'The owner of the extension can allow it: ';

$node->safe_psql('postgres', q{CREATE ROLE "O'Hara" LOGIN; GRANT USAGE ON SCHEMA idem TO stranger, "O'Hara";
	ALTER ROLE stranger SET session_preload_libraries = 'idempotency'; ALTER ROLE "O'Hara" SET session_preload_libraries = 'idempotency'});
my %hints = (
	claims => [ "SELECT idem.idem_claim_many('{a}')", "SELECT state FROM idem.idem_begin('a')", "DO 'BEGIN PERFORM idem.idem_claim(''a''); END'",
		'CREATE TEMP TABLE t (k text); CREATE TRIGGER once AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION idem.idem_once(\'k\')' ],
	call => ["SELECT idem.idem_call('c6', 'version')"],
	throttle => ["SELECT idem.idem_throttle('k', '1 s')"],
	tokens => [ "SELECT idem.idem_token_issue('p', '1 h')", "DO 'DECLARE x record; BEGIN x := idem.idem_code_verify(''p'', ''s'', ''1''); END'" ],
	lookup => ["SELECT * FROM idem.idem_lookup('k')"],
	operate => [ 'CALL idem.idem_purge()', "SELECT idem.idem_import('k')" ]);
for my $job (sort keys %hints)
{
	is(hint_of($_, 'stranger'), "${allow}SELECT idem.idem_grant('stranger', ARRAY['$job']);", "$job: the hint") for @{ $hints{$job} };
}
is(hint_of("SELECT idem.idem_claim('a')", "O'Hara"), $allow . q{SELECT idem.idem_grant('"O''Hara"', ARRAY['claims']);}, 'the role is quoted');
$node->safe_psql('postgres', q{SELECT idem.idem_grant('"O''Hara"', ARRAY['claims'])});
is($node->safe_psql('postgres', "SELECT idem.idem_claim('hinted')", extra_params => [ '-U', "O'Hara" ]), 't', 'which does it');
is(hint_of('SELECT FROM idem.idem_keys', 'stranger'), '', 'a table: no hint');
is(hint_of("SELECT pg_read_file('idem_claim')", 'stranger'), '', "another's function: no hint");

# also where no statement calls it
$node->safe_psql('postgres', <<'SQL');
CREATE SCHEMA work;
CREATE FUNCTION work.assigns() RETURNS boolean LANGUAGE plpgsql AS $$ DECLARE fresh boolean; BEGIN fresh := idem.idem_claim('a'); RETURN fresh; END $$;
CREATE FUNCTION work.fires() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE fresh boolean := idem.idem_claim('a'); BEGIN RETURN NULL; END $$;
CREATE TABLE work.fired (k text);
CREATE TRIGGER fires AFTER INSERT ON work.fired FOR EACH ROW EXECUTE FUNCTION work.fires();
CREATE TABLE work.deferred (k text);
CREATE CONSTRAINT TRIGGER fires AFTER INSERT ON work.deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION work.fires();
GRANT USAGE ON SCHEMA work TO PUBLIC;
GRANT INSERT ON work.fired, work.deferred TO stranger;
SQL
my $claims = "${allow}SELECT idem.idem_grant('stranger', ARRAY['claims']);";
is(hint_of($_, 'stranger'), $claims, 'the hint') for 'SELECT work.assigns()', "INSERT INTO work.fired VALUES ('a')", "COPY work.fired FROM STDIN;\na\n\\.\n",
	"BEGIN; INSERT INTO work.deferred VALUES ('a'); SET CONSTRAINTS ALL IMMEDIATE";

# of functions with the name of one of ours, and of messages that look alike, nothing is known
$node->safe_psql('postgres', "CREATE FUNCTION work.idem_claim(k text) RETURNS text LANGUAGE sql RETURN k");
is(hint_of("SELECT idem.idem_claim('a')", 'stranger'), $claims, 'beside one that may be called');
$node->safe_psql('postgres', 'REVOKE EXECUTE ON FUNCTION work.idem_claim FROM PUBLIC');
is(hint_of("SELECT work.idem_claim('a')", $_), '', "one of the same name: no hint for $_") for 'stranger', "O'Hara";
is(hint_of("DO \$\$ BEGIN RAISE insufficient_privilege USING MESSAGE = 'permission denied for function idem_throttle'; END \$\$", 'stranger'), '', 'a message that looks alike: no hint');

done_testing();
