
# pg_upgrade from an older version of PostgreSQL: keys in every state, leases, fences, tokens, codes,
# the trigger and privileges go on in the new cluster; so does a database that still has the SQL of
# 0.1.0, and its update after that.  Needs an older PostgreSQL that has this extension as well:
# IDEM_OLD_BINDIR says where its programs are, else all that Debian has installed are looked at.

use strict;
use warnings;

use File::Basename;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# What a program says, '' if it cannot be run.
sub said
{
	my (@command) = @_;
	my $out = '';

	eval { IPC::Run::run(\@command, '>', \$out, '2>', '/dev/null') };
	chomp $out;
	return $out;
}

my $new_bin = said('pg_config', '--bindir');
my ($new) = said("$new_bin/postgres", '--version') =~ /(\d+)/;

# The version whose programs are there, if it is one to come from; else why it is not.
sub version_to_leave
{
	my ($bin) = @_;
	my ($n) = said("$bin/postgres", '--version') =~ /(\d+)/ or return (undef, "no PostgreSQL runs from $bin");

	return (undef, "PostgreSQL $n is not older than $new") if $n >= $new || $n < 15;
	my $control = said("$bin/pg_config", '--sharedir') . '/extension/idempotency.control';
	return (undef, "PostgreSQL $n lacks the extension ($control)") if !-e $control;
	return $n;
}

my ($old_bin, $old, @why);
for my $bin ($ENV{IDEM_OLD_BINDIR} || sort glob '/usr/lib/postgresql/*/bin')
{
	my ($n, $why) = version_to_leave($bin);
	push @why, $why if !$n;
	($old_bin, $old) = ($bin, $n) if $n && !$old;
}
plan skip_all => 'pg_upgrade needs an older PostgreSQL with the extension: ' . join('; ', @why) if !$old;
note "from $old to $new";

my $conf = <<'CONF';
shared_preload_libraries = 'idempotency'
idempotency.purge_interval = 0
autovacuum = off
CONF
# whether there are checksums must not differ, and the default of initdb does
my %init = (extra => [ '--encoding', 'UTF8', '--no-locale', '--data-checksums' ]);
my $from = PostgreSQL::Test::Cluster->new('from', install_path => dirname($old_bin));
$from->init(%init);
$from->append_conf('postgresql.conf', $conf);
$from->start;

my $to = PostgreSQL::Test::Cluster->new('to');
$to->init(%init);
$to->append_conf('postgresql.conf', $conf);

# A minor version may write what others, of the other major version, do not know yet: pg_upgrade
# fails then, and without this extension as well.
$from->safe_psql('template1', 'CREATE TABLE plain (a int)');
my $plain = said("$new_bin/pg_dump", '--no-sync', '-d', $from->connstr('template1'));
$to->start;
my (undef, undef, $refused) = $to->psql('template1', "BEGIN;\n$plain\nROLLBACK");
$to->stop;
plan skip_all => 'a plain table of ' . said("$old_bin/postgres", '--version') . ' cannot be restored in ' . said("$new_bin/postgres", '--version') . ': ' . $refused =~ s/.*?ERROR: *([^\n]*).*/$1/sr
  if $refused =~ /ERROR/;
$from->safe_psql('template1', 'DROP TABLE plain');

# ---------------------------------------------------------------- the old cluster

$from->safe_psql('postgres', <<'SQL');
CREATE ROLE app;
CREATE ROLE support;
ALTER ROLE support SET idempotency.default_scope = 'tenant';
CREATE DATABASE now;
CREATE DATABASE past;
SQL

# The rest is for both: what 0.1.0 had.
my $common = <<'SQL';
CREATE TABLE orders (key text, n int);
CREATE FUNCTION place(key text) RETURNS jsonb LANGUAGE sql AS $$
	INSERT INTO orders VALUES (key, 1) RETURNING to_jsonb(orders) $$;
CREATE TABLE inbox (id text);
CREATE TRIGGER once AFTER INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION idem_once('id');
INSERT INTO inbox VALUES ('seen');
SELECT idem_grant('app');
SELECT idem_grant('support', '{lookup}');

BEGIN;
SELECT state FROM idem_begin('done', request => '{"a": 1}', scope => 'tenant', ttl => '2000 years');
SELECT idem_finish('done', '{"order": 1.50}', 'tenant');
COMMIT;
SELECT idem_claim('claimed');
SELECT count(*) FROM idem_claim_many(ARRAY['m1', 'm2']);
SELECT state FROM idem_call('call', 'place', '{"key": "call"}');
SELECT idem_claim('expired', ttl => '1 ms');

CREATE TABLE fences (key text, fence bigint);
INSERT INTO fences SELECT k, (idem_begin(k, lease => '1 day')).fence FROM unnest(ARRAY['held', 'left', 'released']) k;
SELECT idem_checkpoint(key, 'paid', '{"at": 1}', fence => fence) IS NOT NULL FROM fences;
SELECT idem_checkpoint(key, 'sent', '{"at": 2}', fence => fence, lease => '1 ms') IS NOT NULL FROM fences WHERE key = 'left';
SELECT idem_release(key, fence => fence) FROM fences WHERE key = 'released';
-- issued, and nothing is left of it
BEGIN;
SELECT fence AS rolled_back FROM idem_begin('rolled back', lease => '1 day') \gset
ROLLBACK;
INSERT INTO fences VALUES ('rolled back', :rolled_back);

CREATE TABLE secrets AS
SELECT k AS name, idem_token_issue('login', '1 day', '{"p": 1}', k) AS secret FROM unnest(ARRAY['fresh', 'used', 'revoked']) k;
SELECT state FROM secrets, idem_token_redeem('login', secret) WHERE name = 'used';
SELECT idem_token_revoke('login', secret) FROM secrets WHERE name = 'revoked';
INSERT INTO secrets SELECT k, idem_code_issue('otp', k, '1 day', 10, 3) FROM unnest(ARRAY['code', 'locked', 'verified']) k;
SELECT state, attempts_left FROM idem_code_verify('otp', 'code', 'x');
SELECT state, attempts_left FROM generate_series(1, 3) n, idem_code_verify('otp', 'locked', 'x' || n);
SELECT state FROM secrets, idem_code_verify('otp', name, secret) WHERE name = 'verified';
SQL

# And what it had not.
my $since = <<'SQL';
BEGIN;
SELECT state FROM idem_begin('sold out');
SELECT idem_fail('sold out', '{"error": "sold out"}');
COMMIT;
SELECT state, failed FROM idem_call('kept', 'refuse', keep_errors => '{22012}');
SELECT run FROM idem_http_begin('"http"', '{"a": 1}', lease_ms => 86400000);
INSERT INTO fences SELECT key, fence FROM idem_keys WHERE key = 'http';
BEGIN;
SELECT run FROM idem_http_begin('"answered"', 'not JSON');
SELECT idem_http_finish('"answered"', 201, E'{"b":1.0,  "a":2}\n', '{"Location": "/1"}');
COMMIT;
SQL

sub make
{
	my ($db, $version, @more) = @_;
	my $of = $version ? " VERSION '$version'" : '';

	$from->safe_psql($db, "CREATE SCHEMA idem; CREATE EXTENSION idempotency SCHEMA idem$of; ALTER DATABASE $db SET search_path = public, idem;"
		  . "ALTER DATABASE $db SET idempotency.purge_batch_size = 7; CREATE FUNCTION refuse() RETURNS int LANGUAGE sql AS 'SELECT 1 / 0'");
	$from->safe_psql($db, join '', $common, @more);
	return;
}
make('now', undef, $since);
make('past', '0.1.0');

# By the new version's pg_dump, without what says when and from where.
sub dump_of
{
	my ($node, $db) = @_;
	my $dump = said("$new_bin/pg_dump", '--no-sync', '-d', $node->connstr($db));

	return $dump =~ s/^(?:--.*|\\(?:un)?restrict .*|)\n//gmr;
}
my %dump = map { $_ => dump_of($from, $_) } qw(now past);
like($dump{$_}, qr/^CREATE EXTENSION.*^COPY idem\.idem_keys.*^SELECT pg_catalog.setval\('idem.idem_fence'.*^GRANT ALL ON FUNCTION idem.idem_begin/ms, "$_: the dump has all of it")
  for qw(now past);
my %rows = map { $_ => $from->safe_psql($_, 'SELECT * FROM idem_keys ORDER BY digest') } qw(now past);
my %fence = map { $_ => $from->safe_psql($_, 'SELECT max(fence) FROM fences') } qw(now past);
$from->stop;

# ---------------------------------------------------------------- pg_upgrade

my $dir = PostgreSQL::Test::Utils::tempdir();
chdir $dir or die $!;
command_ok([ 'pg_upgrade', '--no-sync', '-d', $from->data_dir, '-D', $to->data_dir, '-b', $old_bin, '-B', $new_bin,
		'-s', $to->host, '-p', $from->port, '-P', $to->port ], "pg_upgrade from $old to $new");
$to->start;

# ---------------------------------------------------------------- the new cluster

my $goes_on = <<'SQL';
SELECT state, result, failed FROM idem_begin('done', request => '{"a": 1.0}', scope => 'tenant');
SELECT b.state, l.expires_at FROM idem_begin('done', request => '{"a": 2}', scope => 'tenant') b, idem_lookup('done', 'tenant') l;
SELECT idem_claim('claimed'), (SELECT count(*) FROM idem_claim_many(ARRAY['m1', 'm2', 'm3']));
SELECT state, result FROM idem_call('call', 'place', '{"key": "call"}');
SELECT count(*) FROM orders;
INSERT INTO inbox VALUES ('new');
INSERT INTO inbox VALUES ('seen');
SELECT state, retry_after > 80000 FROM idem_begin('held', lease => '1 day');
SELECT fence AS held FROM fences WHERE key = 'held' \gset
SELECT idem_finish('held', '"done"', fence => :held);
SELECT state, result FROM idem_begin('held', lease => '1 day');
SELECT b.state, b.attempt, b.phase, b.progress, b.fence > (SELECT max(fence) FROM fences) FROM idem_begin('left', lease => '1 day') b;
SELECT b.state, b.attempt, b.phase, b.fence > (SELECT max(fence) FROM fences) FROM idem_begin('released', lease => '1 day') b;
SELECT idem_finish(key, fence => fence) FROM fences WHERE key = 'left';
SELECT t.name, state, subject, payload FROM secrets t, idem_token_redeem('login', secret) WHERE t.name IN ('fresh', 'used', 'revoked') ORDER BY 1;
SELECT state FROM secrets, idem_token_redeem('login', secret) WHERE name = 'fresh';
SELECT state, attempts_left FROM idem_code_verify('otp', 'code', 'x');
SELECT n.name, state, attempts_left FROM secrets n, idem_code_verify('otp', n.name, secret) WHERE n.name IN ('code', 'locked', 'verified') ORDER BY 1;
SELECT state FROM secrets, idem_code_verify('otp', name, secret) WHERE name = 'code';
SHOW idempotency.purge_batch_size;
SET ROLE app;
SELECT idem_claim('app');
SELECT count(*) FROM idem_lookup('app');
RESET ROLE;
SET ROLE support;
SELECT count(*) FROM idem_lookup('claimed');
SELECT idem_claim('support');
RESET ROLE;
SELECT idem_claim('again'), idem_claim('again');
SQL
my $goes_on_says = <<'SQL';
replayed|{"order": 1.50}|f
mismatch|infinity
f|1
replayed|{"n": 1, "key": "call"}
1
in_progress|t
"done"
replayed|"done"
started|2|sent|{"at": 2}|t
started|2|paid|t
fresh|redeemed|fresh|{"p": 1}
revoked|unknown||
used|used||
used
wrong|1
code|verified|
locked|locked|0
verified|used|
used
7
t
1
t|f
SQL

sub goes_on
{
	my ($db, $sql, $says, $errors, $name) = @_;
	my (undef, $out, $err) = $to->psql($db, $sql, on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);

	is("$out\n", $says, "$db: $name");
	is(join(' ', $err =~ /ERROR:\s+(\w+)/g), $errors, "$db: $name, errors");
	return;
}

for my $db (qw(now past))
{
	is(dump_of($to, $db), $dump{$db}, "$db: the dump is the same as before");
	is($to->safe_psql($db, 'SELECT * FROM idem_keys ORDER BY digest'), $rows{$db}, "$db: so is every row");
}
is($to->safe_psql('past', q{SELECT extversion FROM pg_extension WHERE extname = 'idempotency'}), '0.1.0', 'past: SQL of 0.1.0 still');

goes_on('now', $goes_on, $goes_on_says, '23505 ID004 42501 42501', 'every function goes on');
goes_on('now', <<'SQL', <<'SAYS', 'ID002', 'what 0.1.0 had not');
SELECT state, result, failed FROM idem_begin('sold out');
SELECT state, result ->> 'sqlstate', failed FROM idem_call('kept', 'refuse');
SELECT status, headers, body, replayed FROM idem_http_begin('answered', 'not JSON');
SELECT run, status, retry_after > 80000 FROM idem_http_begin('http', '{"a": 1}');
SELECT idem_http_finish('"http"', 200, 'b', fence => fence) FROM fences WHERE key = 'http';
SELECT status, body, replayed FROM idem_http_begin('http', '{"a": 1.0}');
SELECT idem_claim('http', request => '{"a": 2}');
SQL
replayed|{"error": "sold out"}|t
replayed|22012|t
201|{"Location": "/1"}|{"b":1.0,  "a":2}
|t
f|409|t
200
200|b|t
SAYS

# 0.1.0's SQL goes on at first, and after its update the same goes on
goes_on('past', <<'SQL', "replayed|{\"order\": 1.50}\nin_progress\n", '42883', 'before its update');
SELECT state, result FROM idem_begin('done', request => '{"a": 1.0}', scope => 'tenant');
SELECT state FROM idem_begin('held', lease => '1 day');
SELECT idem_fail('held');
SQL
$to->safe_psql('past', 'ALTER EXTENSION idempotency UPDATE');
goes_on('past', $goes_on, $goes_on_says, '23505 ID004 42501 42501', 'after its update every function goes on');
goes_on('past', <<'SQL', <<'SAYS', '', 'and new ones work, under old grants');
SET ROLE app;
BEGIN;
SELECT state FROM idem_begin('sold out');
SELECT idem_fail('sold out', '"sold out"');
COMMIT;
SELECT state, result, failed FROM idem_begin('sold out');
SQL
started
"sold out"
replayed|"sold out"|t
SAYS

for my $db (qw(now past))
{
	my $issued = $to->safe_psql($db, q{SELECT min((idem_begin(k::text, lease => '1 day')).fence) FROM generate_series(1, 40) k});

	cmp_ok($issued, '>', $fence{$db}, "$db: fences go on behind all that were issued");
}

# ---------------------------------------------------------------- purges

is($to->safe_psql('now', 'CALL idem_purge()'), '1|0|0', 'now: a purge removes what has expired');
is($to->safe_psql('past', q{SELECT count(*) FROM idem_keys WHERE key = 'expired'}), '1', 'past: it is there');
$to->append_conf('postgresql.conf', "idempotency.purge_interval = '1s'\n");
$to->restart;
ok($to->poll_query_until('past', q{SELECT count(*) = 0 FROM idem_keys WHERE key = 'expired'}), 'and the background worker removes it');
is($to->safe_psql('past', q{SELECT count(*) FROM idem_keys WHERE key = 'claimed'}), '1', 'and nothing else');
unlike(slurp_file($to->logfile), qr/PANIC|FATAL(?!.*(?:shutting down|administrator command|terminating))/, 'nothing failed');

done_testing();
