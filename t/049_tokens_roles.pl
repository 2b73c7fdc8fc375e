
# Tokens and codes are there for the roles that were granted the job, whatever is in the
# search_path of who may.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use Test::More;

my $node = new_node('main', conf => "shared_preload_libraries = 'idempotency'\n");

$node->safe_psql('postgres', 'CREATE DATABASE roles');
$node->safe_psql('roles', <<'SQL');
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
CREATE ROLE app LOGIN;
CREATE ROLE stranger LOGIN;
SELECT idem.idem_grant('app', '{tokens}');
SELECT idem.idem_grant('stranger', '{claims, lookup, operate, call}');
SQL
my @functions = (
	"SELECT idem.idem_token_issue('login', '1 day', '1', 'ada')",
	"SELECT idem.idem_token_redeem('login', 'x')",
	"SELECT idem.idem_token_peek('login', 'x')",
	"SELECT idem.idem_token_revoke('login', 'x')",
	"SELECT idem.idem_token_revoke_all('login', 'ada')",
	"SELECT idem.idem_code_issue('otp', 'ada', '1 day')",
	"SELECT idem.idem_code_verify('otp', 'ada', 'x')");
my @tables;
for my $table ('idem_tokens', 'idem_codes', 'idem_secrets')
{
	push @tables, "SELECT FROM idem.$table", "SELECT ctid FROM idem.$table", "INSERT INTO idem.$table SELECT", "DELETE FROM idem.$table", "TRUNCATE idem.$table",
	  "COPY idem.$table TO STDOUT", "BEGIN; LOCK TABLE idem.$table IN ACCESS SHARE MODE";
}
sql_fails($node, 'roles', $_, '', "granted: $_", '-U', 'app') for @functions;
sql_fails($node, 'roles', $_, '42501', "not granted: $_", '-U', 'stranger') for @functions;
for my $sql (@tables)
{
	sql_fails($node, 'roles', $sql, '42501', "closed to $_: $sql", '-U', $_) for 'app', 'stranger';
}
sql_fails($node, 'roles', "SELECT idem.idem_claim('k')", '42501', 'the job is not that of claims', '-U', 'app');
$node->safe_psql('roles', "SELECT idem.idem_revoke('app', '{tokens}')");
sql_fails($node, 'roles', $_, '42501', "revoked: $_", '-U', 'app') for @functions;
$node->safe_psql('roles', "SELECT idem.idem_grant('app', '{tokens}')");

my $evil = $evil_ran . <<'SQL';
CREATE TABLE evil.idem_tokens (digest pg_catalog.uuid);
CREATE TABLE evil.idem_codes (digest pg_catalog.uuid);
CREATE TABLE evil.idem_secrets (id pg_catalog.uuid, secret pg_catalog.bytea, created_at pg_catalog.timestamptz);
CREATE TABLE evil.pg_extension (oid pg_catalog.oid, extname pg_catalog.name, extnamespace pg_catalog.oid);
SQL
my $n = 0;
for my $type ('text', 'uuid', 'timestamptz', 'bytea', 'int4', 'int8', 'bool', 'jsonb', 'name', 'oid')
{
	for my $op ('=', '<>', '<', '>', '<=', '>=')
	{
		$n++;
		$evil .= <<"SQL";
CREATE FUNCTION evil.op_$n(pg_catalog.$type, pg_catalog.$type) RETURNS pg_catalog.bool LANGUAGE plpgsql AS \$\$
BEGIN PERFORM evil.ran('$type $op'); RETURN true; END \$\$;
CREATE OPERATOR evil.$op (LEFTARG = pg_catalog.$type, RIGHTARG = pg_catalog.$type, FUNCTION = evil.op_$n);
SQL
	}
}
$node->safe_psql('roles', 'CREATE ROLE mallory LOGIN; CREATE SCHEMA evil AUTHORIZATION mallory; GRANT USAGE ON SCHEMA evil TO PUBLIC');
$node->psql('roles', $evil, on_error_die => 1, extra_params => [ '-U', 'mallory' ]);
$node->safe_psql('roles', "SELECT idem.idem_grant('mallory', '{tokens}')");

my $path = 'SET search_path = evil, pg_temp, pg_catalog;';
my $everything = <<'SQL';
SELECT idem.idem_token_issue('path', '1 day', '1', 'ada') AS token \gset
SELECT state FROM idem.idem_token_peek('path', :'token');
SELECT state FROM idem.idem_token_redeem('path', :'token');
SELECT state FROM idem.idem_token_redeem('path', :'token');
SELECT idem.idem_token_issue('path', '1 day', '1', 'ada') AS token \gset
SELECT idem.idem_token_revoke('path', :'token');
SELECT idem.idem_token_issue('path', '1 day', '1', 'ada') AS token \gset
SELECT idem.idem_token_revoke_all('path', 'ada');
SELECT idem.idem_code_issue('path', 'ada', '1 day', 10, 100) AS code \gset
SELECT state FROM idem.idem_code_verify('path', 'ada', 'x');
SELECT state FROM idem.idem_code_verify('path', 'ada', :'code');
SELECT state FROM idem.idem_code_verify('path', 'ada', :'code');
SQL
my $answers = join("\n", qw(valid redeemed used t 1 wrong verified used));
my (undef, $out, $err) = $node->psql('roles', "$path SELECT now() = 'infinity'");
like($err, qr/evil now as/, 'control: a function of the path runs');
$node->safe_psql('roles', 'TRUNCATE evil.ran');
for my $who ('mallory', $node->safe_psql('roles', 'SELECT current_user'))
{
	my $temp = 'CREATE TEMP TABLE idem_tokens (a int4); CREATE TEMP TABLE idem_codes (a int4); CREATE TEMP TABLE idem_secrets (a int4);';

	(undef, $out, $err) = $node->psql('roles', "$everything $temp $path $everything RESET search_path; $everything", extra_params => [ '-U', $who ]);
	is($out, join("\n", ($answers) x 3), "$who: good path, bad path, and again: $err");
	unlike($err, qr/evil .* as (?!mallory\b)/, "$who: nothing ran as another");
	is($node->safe_psql('roles', "SELECT who, what FROM evil.ran WHERE who <> 'mallory'"), '', "$who: nothing was written as another");
}
is($node->safe_psql('roles', 'SELECT (SELECT count(*) FROM evil.idem_tokens), (SELECT count(*) FROM evil.idem_codes), (SELECT count(*) FROM evil.idem_secrets)'),
	'0|0|0', 'nothing in the tables of the same names');

# Dropped and created in another schema, in one session; what was issued is gone with it.
(undef, $out, $err) = $node->psql('roles', <<"SQL");
SELECT idem.idem_token_issue('gone', '1 day') AS gone \\gset
$everything
DROP EXTENSION idempotency;
CREATE SCHEMA other;
CREATE EXTENSION idempotency SCHEMA other;
@{[ $everything =~ s/idem\.idem_/other.idem_/gr ]}
SELECT state FROM other.idem_token_redeem('gone', :'gone');
SQL
is($out, "$answers\n$answers\nunknown", "DROP and CREATE EXTENSION in a session: $err");

done_testing();
