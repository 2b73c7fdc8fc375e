
# Tokens and codes outlive a dump and a restore, are found neither in a table
# nor in the log, work once however many want them, and are there for the roles
# that were granted the job.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use MIME::Base64;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();

# Preloaded, so that it is the same for all versions.
my $plain = new_node('plain', streaming => 1, conf => "shared_preload_libraries = 'idempotency'\nmax_connections = 70\n");

#
# What takes its time: no two tokens alike, and flat memory.  It goes on beside
# the rest.  A million takes 80 seconds; that was done by hand.
#
my $tokens = $ENV{IDEM_TEST_TOKENS} || 100_000;
my @sessions;

sub in_background
{
	my ($sql) = @_;
	my %session = (out => '', err => '');

	$session{handle} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $plain->connstr('postgres'), '-f', '-' ],
		'<', \$sql, '>', \$session{out}, '2>', \$session{err});
	push @sessions, \%session;
	return \%session;
}

sub output_of
{
	my ($session) = @_;

	$session->{handle}->finish;
	diag($session->{err}) if $session->{err} ne '';
	chomp $session->{out};
	return $session->{out};
}

my $memory = <<'SQL';
CREATE PROCEDURE once_each(times int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. times LOOP
		PERFORM idem_token_redeem('memory', idem_token_issue('memory', '1 day', '{"a": 1}', 'ada'));
		PERFORM idem_token_peek('memory', 'nonsense');
		PERFORM idem_code_verify('memory', 'ada', idem_code_issue('memory', 'ada', '1 day'));
		PERFORM idem_code_verify('memory', 'ada', 'x');
		-- some are rolled back
		IF i % 10 = 0 THEN
			ROLLBACK;
		ELSE
			COMMIT;
		END IF;
	END LOOP;
END $$;
CREATE FUNCTION used_memory() RETURNS bigint LANGUAGE sql AS 'SELECT sum(used_bytes)::bigint FROM pg_backend_memory_contexts';
CALL once_each(200);
SELECT used_memory() AS before \gset
CALL once_each(3000);
SELECT used_memory() - :before;
-- in one transaction, where a guess is remembered until its end
BEGIN;
SELECT count(*) FROM generate_series(1, 200), idem_token_issue('memory', '1 day') token, idem_token_redeem('memory', token);
SELECT used_memory() AS before \gset
SELECT count(*) FROM generate_series(1, 3000), idem_token_issue('memory', '1 day') token, idem_token_redeem('memory', token);
SELECT used_memory() - :before;
COMMIT;
SQL
my $issue = 'COPY (SELECT idem_token_issue($$bulk$$, $$1 day$$) FROM generate_series(1, ' . int($tokens / 2) . ")) TO STDOUT;\n";
my @issuing = map { in_background($issue) } 1 .. 2;

#
# Nothing in the clear
#

# Nested statements, their plans and, from PostgreSQL 16 on, their parameters.
my $node = new_node('main', conf => <<'CONF');
shared_preload_libraries = 'idempotency, auto_explain'
log_statement = all
log_min_duration_statement = 0
log_min_messages = info
log_error_verbosity = verbose
log_lock_waits = on
deadlock_timeout = 10ms
auto_explain.log_min_duration = 0
auto_explain.log_analyze = on
auto_explain.log_verbose = on
auto_explain.log_nested_statements = on
CONF

# Every run of a string in the log, in a dump and in the files of the server.
sub places_of
{
	my ($what) = @_;
	my @places;

	for my $file (@_[ 1 .. $#_ ])
	{
		push @places, $file if index(slurp_file($file), $what) >= 0;
	}
	return @places;
}

# The API hands its tokens out and gets them back by COPY, whose data is no text of a statement.
sub issued
{
	my ($call) = @_;

	return $node->safe_psql('postgres', "SELECT $call");
}

sub with_secrets
{
	my ($sql, @secrets) = @_;

	return $node->psql('postgres',
		"CREATE TEMP TABLE s (n int GENERATED ALWAYS AS IDENTITY, secret text);\nCOPY s (secret) FROM STDIN;\n" . join("\n", @secrets, '\.') . "\n$sql",
		on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
}

my $log_start = -s $node->logfile;
my @tokens = map { issued("idem_token_issue('login', '1 day', '{\"next\": \"/cart\"}', 'ada')") } 1 .. 6;
my @codes = map { issued("idem_code_issue('otp', 'user $_', '1 day', 10)") } 1 .. 6;
my @client = issued("idem_token_issue('login', '1 day', '1')");

my ($ret, $out, $err) = with_secrets(<<'SQL', @tokens, @codes);
SELECT state FROM s, idem_token_peek('login', secret) WHERE n = 1;
SELECT state FROM s, idem_token_redeem('login', secret) WHERE n = 1;
SELECT state FROM s, idem_token_redeem('other', secret) WHERE n = 2;
SELECT idem_token_revoke('login', secret) FROM s WHERE n = 3;
SELECT state FROM s, idem_token_redeem('login', secret) WHERE n = 3;
SELECT state FROM s, idem_code_verify('otp', 'user 1', secret) WHERE n = 7;
SELECT state FROM s, idem_code_verify('otp', 'user 1', secret) WHERE n = 7;
SELECT state FROM s, idem_code_verify('otp', 'user 2', secret) WHERE n = 9;
SQL
is($out, join("\n", qw(valid redeemed unknown t unknown verified used wrong)), 'secrets used without being in a statement');
is($err, '', 'without a message');

# Errors in the middle of it: of the caller's making, timeouts, another's row, and
# constraints, whose messages show the row.
my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN; SELECT FROM idem_tokens FOR UPDATE; SELECT FROM idem_codes FOR UPDATE; LOCK TABLE idem_secrets');
my (undef, undef, $errors) = with_secrets(<<'SQL', @tokens, @codes);
SET lock_timeout = '50ms';
SELECT idem_token_redeem('login', secret) FROM s WHERE n = 4;
SELECT idem_token_revoke('login', secret) FROM s WHERE n = 4;
SELECT idem_code_verify('otp', 'user 4', secret) FROM s WHERE n = 10;
SELECT idem_code_issue('otp', 'user 4', '1 day');
SET lock_timeout = 0;
SET statement_timeout = '50ms';
SELECT idem_token_redeem('login', secret) FROM s WHERE n = 4;
SELECT idem_code_verify('otp', 'user 4', secret) FROM s WHERE n = 10;
RESET statement_timeout;
SELECT idem_token_redeem(repeat('p', 1025), secret) FROM s WHERE n = 5;
SELECT idem_token_redeem(NULL, secret) FROM s WHERE n = 5;
SELECT idem_code_verify('otp', NULL, secret) FROM s WHERE n = 11;
SELECT idem_code_verify('', 'user 5', secret) FROM s WHERE n = 11;
BEGIN READ ONLY;
SELECT idem_token_redeem('login', secret) FROM s WHERE n = 5;
ROLLBACK;
BEGIN READ ONLY;
SELECT idem_code_verify('otp', 'user 5', secret) FROM s WHERE n = 11;
ROLLBACK;
SELECT idem_token_redeem('login', secret)::int FROM s WHERE n = 5;
SQL
$holder->query_safe('COMMIT');
$node->safe_psql('postgres', <<'SQL');
ALTER TABLE idem_tokens ALTER payload SET NOT NULL;
CREATE UNIQUE INDEX one_token ON idem_tokens (purpose) WHERE used_at IS NOT NULL;
CREATE UNIQUE INDEX one_code ON idem_codes (purpose) WHERE used_at IS NOT NULL OR purpose = 'bad';
SQL
$errors .= (with_secrets(<<'SQL', @tokens, @codes))[2];
SELECT idem_token_redeem('login', secret) FROM s WHERE n = 6;
SELECT idem_code_verify('otp', 'user 6', secret) FROM s WHERE n = 12;
SELECT idem_token_issue('bad', '1 day');
SELECT idem_code_issue('bad', 'ada', '1 day'), idem_code_issue('bad', 'bob', '1 day');
DO $$
BEGIN
	PERFORM idem_token_redeem('login', secret) FROM s WHERE n = 6;
EXCEPTION WHEN unique_violation THEN
	RAISE WARNING '%', SQLERRM;
	RAISE;
END $$;
SQL
$node->safe_psql('postgres', 'ALTER TABLE idem_tokens ALTER payload DROP NOT NULL; DROP INDEX one_token, one_code');
my %errors;
$errors{$1}++ while $errors =~ /ERROR:\s+(\w{5}):/g;
is(join(' ', map { "$_: $errors{$_}" } sort keys %errors), '22004: 2 22023: 2 23502: 1 23505: 4 25006: 2 42846: 1 55P03: 4 57014: 2', 'errors there were')
  or diag($errors);

# what the client says itself is in the log: the search finds what is there
$node->safe_psql('postgres', "SELECT idem_token_redeem('login', '$client[0]')");

$node->command_ok([ 'pg_dumpall', '--inserts', '-f', "$dir/all.sql", '-d', $node->connstr('postgres') ], 'dump of everything');
my $hmac_key = $node->safe_psql('postgres', q{SELECT encode(secret, 'hex') FROM idem_secrets});
$node->stop;
my @files = (glob($node->data_dir . '/base/*/*'), glob($node->data_dir . '/pg_wal/0*'));
append_to_file("$dir/errors", $errors);
my @where = ("$dir/all.sql", "$dir/errors", $node->logfile, grep { -f } @files);
cmp_ok(scalar(@where), '>', 500, 'where it is looked for');
is(join(' ', places_of($client[0], @where)), $node->logfile, "control: the client's own statement is found in the log");
is(join(' ', map { places_of($_, @where) } @tokens), '', 'no token anywhere');
is(join(' ', map { places_of($_, @where) } @codes), '', 'no code anywhere');
my @raw = map { decode_base64(tr{-_}{+/}r . '=') } @tokens;
is(join(' ', map { length } @raw), '32 32 32 32 32 32', 'control: tokens as bytes');
is(join(' ', map { places_of(unpack('H*', $_), @where) } @raw), '', 'no token as hex');
is(join(' ', map { places_of($_, @where) } @raw), '', 'no token as bytes');
is(join(' ', places_of($hmac_key, $node->logfile, "$dir/errors")), '', 'nor is the key of the codes in the log');
is(join(' ', places_of($hmac_key, "$dir/all.sql")), "$dir/all.sql", 'control: it is in the dump');
$node->start;

# Nor does the server show them to a client that asks for plans.
$node->safe_psql('postgres', 'DELETE FROM idem_codes; DELETE FROM idem_secrets');
(undef, $out, $err) = $node->psql('postgres', <<'SQL');
SET client_min_messages = log;
SET debug_print_plan = on;
SELECT idem_code_issue('otp', 'ada', '1 day') IS NOT NULL;
SQL
like($err, qr/:resname secret/, 'control: plans are printed');
my $bytes = join('', unpack('c*', pack('H*', $node->safe_psql('postgres', q{SELECT encode(secret, 'hex') FROM idem_secrets}))));
# lines are broken in the middle of numbers
$err =~ s/\s+//g;
is(index($err, $bytes), -1, 'the key of the codes is in no plan');

#
# Dump and restore
#
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

#
# Who may, and whatever is in the search_path of who may
#
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

my $evil = <<'SQL';
CREATE TABLE evil.ran (who name, what text);
GRANT INSERT ON evil.ran TO PUBLIC;
CREATE FUNCTION evil.ran(what pg_catalog.text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE WARNING 'evil % as %', what, current_user;
	INSERT INTO evil.ran VALUES (current_user, what);
END $$;
CREATE FUNCTION evil.clock_timestamp() RETURNS pg_catalog.timestamptz LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('clock_timestamp'); RETURN 'infinity'; END $$;
CREATE FUNCTION evil.now() RETURNS pg_catalog.timestamptz LANGUAGE plpgsql AS $$
BEGIN PERFORM evil.ran('now'); RETURN 'infinity'; END $$;
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
(undef, $out, $err) = $node->psql('roles', "$path SELECT now() = 'infinity'");
like($err, qr/evil now as/, 'control: a function of the path runs');
$node->safe_psql('roles', 'TRUNCATE evil.ran');
for my $who ('mallory', $node->safe_psql('roles', 'SELECT current_user'))
{
	my $temp = 'CREATE TEMP TABLE idem_tokens (a int4); CREATE TEMP TABLE idem_codes (a int4); CREATE TEMP TABLE idem_secrets (a int4);';

	($ret, $out, $err) = $node->psql('roles', "$everything $temp $path $everything RESET search_path; $everything", extra_params => [ '-U', $who ]);
	is($out, join("\n", ($answers) x 3), "$who: good path, bad path, and again: $err");
	unlike($err, qr/evil .* as (?!mallory\b)/, "$who: nothing ran as another");
	is($node->safe_psql('roles', "SELECT who, what FROM evil.ran WHERE who <> 'mallory'"), '', "$who: nothing was written as another");
}
is($node->safe_psql('roles', 'SELECT (SELECT count(*) FROM evil.idem_tokens), (SELECT count(*) FROM evil.idem_codes), (SELECT count(*) FROM evil.idem_secrets)'),
	'0|0|0', 'nothing in the tables of the same names');

# Dropped and created in another schema, in one session; what was issued is gone with it.
($ret, $out, $err) = $node->psql('roles', <<"SQL");
SELECT idem.idem_token_issue('gone', '1 day') AS gone \\gset
$everything
DROP EXTENSION idempotency;
CREATE SCHEMA other;
CREATE EXTENSION idempotency SCHEMA other;
@{[ $everything =~ s/idem\.idem_/other.idem_/gr ]}
SELECT state FROM other.idem_token_redeem('gone', :'gone');
SQL
is($out, "$answers\n$answers\nunknown", "DROP and CREATE EXTENSION in a session: $err");

#
# However many want it: one token, 50 sessions.  Sequences count what rollbacks do not undo.
#
$node->stop;
$plain->safe_psql('postgres', <<'SQL');
CREATE TABLE one AS SELECT idem_token_issue('storm', '1 day') AS token;
CREATE TABLE got (state text);
SQL

sub storm
{
	my ($sql, @options) = @_;

	# the caller checks failures
	pgbench($plain, $sql, '-c', '50', '-t', '1', @options);
	return;
}

my $redeem = "INSERT INTO got SELECT state FROM one, idem_token_redeem('storm', token);\n";
storm($redeem);
sql_is($plain, 'postgres', 'SELECT state, count(*) FROM got GROUP BY state ORDER BY state', "redeemed|1\nused|49", 'of 50 one redeems');

# The winner waits for all the others to wait, and rolls back: one other wins.
$plain->safe_psql('postgres', "TRUNCATE got, one; INSERT INTO one SELECT idem_token_issue('storm', '1 day')");
my $winner = $plain->background_psql('postgres');
is($winner->query_safe("BEGIN; SELECT state FROM one, idem_token_redeem('storm', token)"), 'redeemed', 'one is first');
my $storm = IPC::Run::start(pgbench_command($plain, $redeem, '-c', '49', '-t', '1'), '>', \my $stdout, '2>', \my $stderr);
ok( $plain->poll_query_until('postgres', "SELECT count(*) = 49 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%redeem%'"),
	'the other 49 wait');
$winner->query_safe('ROLLBACK');
$storm->finish;
sql_is($plain, 'postgres', 'SELECT state, count(*) FROM got GROUP BY state ORDER BY state', "redeemed|1\nused|48", 'the first rolled back: exactly one other redeems');
$winner->quit;

# So in the other isolation levels, where the others fail.
for my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	$plain->safe_psql('postgres', "TRUNCATE got, one; INSERT INTO one SELECT idem_token_issue('storm', '1 day')");
	storm("BEGIN ISOLATION LEVEL $level;\nINSERT INTO got SELECT state FROM one, idem_token_redeem('storm', token);\nCOMMIT;\n", '--max-tries', '1000');
	sql_is($plain, 'postgres', "SELECT count(*) FROM got WHERE state = 'redeemed'", '1', "$level: one redeems");
	sql_is($plain, 'postgres', "SELECT count(*) FROM got WHERE state = 'used'", '49', "$level: the others get 'used' on retry");
}

#
# A standby: looking is all it can do
#
$plain->safe_psql('postgres', "TRUNCATE one; INSERT INTO one SELECT idem_token_issue('standby', '1 day', '1', 'ada'); SELECT idem_code_issue('standby', 'ada', '1 day')");
output_of($_) for @issuing;    # so that the backup has it all
my $standby = new_standby($plain);
sql_is($standby, 'postgres', "SELECT r.* FROM one, idem_token_peek('standby', token) r", 'valid|ada|1', 'standby: peek');
sql_fails($standby, 'postgres', $_, '25006', "standby: $_")
  for "SELECT idem_token_redeem('standby', token) FROM one", "SELECT idem_token_revoke('standby', token) FROM one", "SELECT idem_token_revoke_all('standby', 'ada')",
  "SELECT idem_token_issue('standby', '1 day')", "SELECT idem_code_issue('standby', 'ada', '1 day')", "SELECT idem_code_verify('standby', 'ada', 'x')";
$plain->safe_psql('postgres', "SELECT idem_token_redeem('standby', token) FROM one");
$plain->wait_for_catchup($standby);
sql_is($standby, 'postgres', "SELECT r.state FROM one, idem_token_peek('standby', token) r", 'used', 'standby: knows what was redeemed');
$standby->stop;

#
# Of a prepared transaction: who comes while it is undecided waits for what becomes of it
#
for ([ 'COMMIT', 'used' ], [ 'ROLLBACK', 'redeemed' ])
{
	my ($end, $expected) = @$_;

	$plain->safe_psql('postgres',
		"TRUNCATE one; INSERT INTO one SELECT idem_token_issue('prepared', '1 day'); BEGIN; SELECT r.state FROM one, idem_token_redeem('prepared', token) r; PREPARE TRANSACTION 'redeem'");
	my $second = $plain->background_psql('postgres');
	$second->query_until(qr/sent/,
		"SET application_name = 'second';\n\\echo sent\nCREATE TABLE was AS SELECT r.state FROM one, idem_token_redeem('prepared', token) r;\n");
	ok($plain->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'second' AND wait_event_type = 'Lock'"),
		'a redeem waits for a prepared transaction');
	$plain->safe_psql('postgres', "$end PREPARED 'redeem'");
	$second->quit;
	sql_is($plain, 'postgres', 'SELECT * FROM was; DROP TABLE was', $expected, "$end PREPARED: the one that waited");
}

#
# The long ones
#
my $remembering = in_background($memory);
my %seen;
$seen{$_}++ for map { split /\n/, $_->{out} } @issuing;
is(scalar(keys %seen), int($tokens / 2) * 2, 'no two tokens alike');
is(scalar(grep { !/^[A-Za-z0-9_-]{43}$/ } keys %seen), 0, 'all of them are tokens');
my ($committing, undef, undef, $transaction) = split /\n/, output_of($remembering);
cmp_ok($committing, '<', 50_000, "memory of a session after 3,000 more of each: $committing bytes");
cmp_ok($transaction, '<', 50_000, "memory of a transaction after 3,000 more: $transaction bytes");

done_testing();
