
# Tokens and codes outlive a dump and a restore.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $node = new_node('main', conf => "shared_preload_libraries = 'idempotency'\n");

my $source = 'source';
$node->safe_psql('postgres', "CREATE DATABASE source ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0");
$node->safe_psql($source, <<'SQL');
CREATE EXTENSION idempotency;
-- what the API has handed out
CREATE TABLE handed_out (name text, secret text);
INSERT INTO handed_out VALUES
	('live', idem_token_issue('accès', '1 day', '{"é": "ñ"}', 'zoë')),
	('ever', idem_token_issue('login', '1000 years')),
	('used', idem_token_issue('login', '1 day')),
	('expired', idem_token_issue('login', '1 microsecond')),
	('code', idem_code_issue('accès', 'zoë', '1 day', 10, 3)),
	('code used', idem_code_issue('otp', 'used', '1 day', 10)),
	('code locked', idem_code_issue('otp', 'locked', '1 day', 10, 1)),
	('code expired', idem_code_issue('otp', 'expired', '1 microsecond', 10));
SELECT idem_token_redeem('login', secret) FROM handed_out WHERE name = 'used';
SELECT idem_code_verify('accès', 'zoë', 'x');
SELECT idem_code_verify('otp', 'used', secret) FROM handed_out WHERE name = 'code used';
SELECT idem_code_verify('otp', 'locked', 'x');
SQL
$node->command_ok([ 'pg_dump', '-f', "$dir/plain.sql", '-d', $node->connstr($source) ], 'pg_dump');
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/custom.dump", '-d', $node->connstr($source) ], 'pg_dump -Fc');
$node->command_ok([ 'pg_dump', '--data-only', '-f', "$dir/data.sql", '-d', $node->connstr($source) ], 'pg_dump --data-only');
$node->command_ok([ 'pg_dump', '--schema-only', '-f', "$dir/schema.sql", '-d', $node->connstr($source) ], 'pg_dump --schema-only');

sub restored
{
	my ($db, $file, $encoding, $before) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $db ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
	$node->safe_psql($db, $before) if defined $before;
	$node->command_ok(
		  $file =~ /sql$/
		? [ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($db), '-f', "$dir/$file" ]
		: [ 'pg_restore', '--exit-on-error', '-d', $node->connstr($db), "$dir/$file" ],
		"restore of $file into $db, $encoding");
}

sub works_in
{
	my ($db) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($node, $db, <<'SQL', <<'END' =~ s/\n\z//r, "$db: works");
SELECT name, r.* FROM handed_out, idem_token_peek(CASE name WHEN 'live' THEN 'accès' ELSE 'login' END, secret) r WHERE name NOT LIKE 'code%' ORDER BY name COLLATE "C";
SELECT name, r.* FROM handed_out, idem_token_redeem(CASE name WHEN 'live' THEN 'accès' ELSE 'login' END, secret) r WHERE name NOT LIKE 'code%' ORDER BY name COLLATE "C";
SELECT * FROM idem_code_verify('accès', 'zoë', 'x');
SELECT name, r.* FROM handed_out, idem_code_verify(CASE name WHEN 'code' THEN 'accès' ELSE 'otp' END, CASE name WHEN 'code' THEN 'zoë' ELSE substr(name, 6) END, secret) r
WHERE name LIKE 'code%' ORDER BY name COLLATE "C";
-- the count goes on
SELECT idem_code_issue('otp', 'locked', '1 hour', max_attempts => 1) IS NOT NULL;
SELECT state FROM idem_code_verify('otp', 'locked', 'x');
SELECT state FROM idem_token_redeem('new', idem_token_issue('new', '1 day'));
SELECT state FROM idem_code_verify('new', 'new', idem_code_issue('new', 'new', '1 day'));
SELECT idem_token_issue('accès', '1 day', NULL, 'zoë') IS NOT NULL;
SELECT idem_token_revoke_all('accès', 'zoë');
SQL
ever|valid||
expired|unknown||
live|valid|zoë|{"é": "ñ"}
used|used||
ever|redeemed||
expired|unknown||
live|redeemed|zoë|{"é": "ñ"}
used|used||
wrong|1
code|verified|
code expired|unknown|
code locked|locked|0
code used|used|
t
locked
redeemed
verified
t
1
END
}

restored('utf8', 'plain.sql', 'UTF8');
works_in('utf8');
# the same bytes in another encoding, and back
restored('latin1', 'custom.dump', 'LATIN1');
$node->command_ok([ 'pg_dump', '-f', "$dir/latin1.sql", '-d', $node->connstr('latin1') ], 'pg_dump from LATIN1');
works_in('latin1');
restored('back', 'latin1.sql', 'UTF8');
works_in('back');

# Into one that has a secret of its own, and codes made with it: both work.
my $had = <<'SQL';
CREATE EXTENSION idempotency;
CREATE TABLE own AS SELECT idem_code_issue('own', 'ada', '1 day', 10) AS code;
SQL
restored('had', 'plain.sql', 'UTF8', $had);
restored('had_data', 'data.sql', 'UTF8', "$had; CREATE TABLE handed_out (name text, secret text);");
for my $db ('had', 'had_data')
{
	sql_is($node, $db, 'SELECT count(*) FROM idem_secrets', '2', "$db: two secrets");
	works_in($db);
	sql_is($node, $db, "SELECT state FROM own, idem_code_verify('own', 'ada', code)", 'verified', "$db: a code of its own");
}

restored('bare', 'schema.sql', 'UTF8');
sql_is($node, 'bare', <<'SQL', "0|0|0\nverified\nredeemed", 'schema only: no secrets, and it works');
SELECT (SELECT count(*) FROM idem_tokens), (SELECT count(*) FROM idem_codes), (SELECT count(*) FROM idem_secrets);
SELECT state FROM idem_code_verify('new', 'new', idem_code_issue('new', 'new', '1 day'));
SELECT state FROM idem_token_redeem('new', idem_token_issue('new', '1 day'));
SQL

done_testing();
