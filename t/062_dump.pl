
# pg_dump | pg_restore -j: what of each state is kept and what is not, and that the copy issues
# none of the fences that the original has issued since.  t/001_dump.pl and t/048_tokens_dump.pl
# have encodings and formats.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemStorm;
use IdemTest;
use List::Util qw(max min);
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "shared_preload_libraries = 'idempotency'\n");
my $dir = PostgreSQL::Test::Utils::tempdir() . '/dump';

$node->safe_psql('postgres', request_function() . <<'SQL');
CREATE ROLE app;
SELECT idem_grant('app', ARRAY['claims', 'tokens']);
CREATE TABLE handed_out (name text, secret text);
CREATE TABLE events (id text);
CREATE TRIGGER once BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION idem_once('id', '1 day', 'skip');
INSERT INTO events VALUES ('e');

SELECT request('finished');
BEGIN;
SELECT idem_begin('failed');
SELECT idem_fail('failed', '"sold out"');
COMMIT;
SELECT idem_claim('expired', '1 day');
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key = 'expired';

BEGIN;
SELECT idem_begin('leased', lease => '1 hour', request => '{"x": 1}');
SELECT idem_checkpoint('leased', 'charged', '{"id": 7}');
COMMIT;
SELECT idem_begin('abandoned', lease => '1 hour');
UPDATE idem_keys SET lease_until = clock_timestamp() WHERE key = 'abandoned';

INSERT INTO handed_out VALUES
	('token', idem_token_issue('login', '1 day', '{"user": 1}')),
	('used token', idem_token_issue('login', '1 day')),
	('expired token', idem_token_issue('login', '1 microsecond')),
	('code', idem_code_issue('otp', 'ada', '1 day')),
	('used code', idem_code_issue('otp', 'bob', '1 day'));
SELECT idem_token_redeem('login', secret) FROM handed_out WHERE name = 'used token';
SELECT idem_code_verify('otp', 'bob', secret) FROM handed_out WHERE name = 'used code';
SELECT idem_code_verify('otp', 'ada', 'x');
BEGIN;
SELECT idem_code_verify('otp', 'ada', 'y');
ROLLBACK;
SELECT idem_throttle('limit', '1 hour', 1);
SQL

my %held = map { split /\|/ } split /\n/, $node->safe_psql('postgres', 'SELECT key, fence FROM idem_keys WHERE finished_at IS NULL');

# A transaction that is open at the dump, and its key
my $open = $node->background_psql('postgres');
$open->query_safe("BEGIN; SELECT idem_begin('open'); INSERT INTO orders VALUES ('open')");

$node->command_ok([ 'pg_dump', '-Fd', '-j', '2', '-f', $dir, $node->connstr('postgres') ], 'pg_dump -Fd -j 2');
$open->query_safe("SELECT idem_finish('open', '1'); COMMIT");
$open->quit;

# The original goes on.
my $taken = $node->safe_psql('postgres', take_over('leased'));
my @later = ($taken, storm($node, 300));

$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE template0');
$node->command_ok([ 'pg_restore', '-j', '3', '--exit-on-error', '-d', $node->connstr('copy'), $dir ], 'pg_restore -j 3');

my @kept = (
	[ "SELECT state, result FROM idem_begin('finished')", 'replayed|"finished"', 'a finished key replays' ],
	[ "SELECT state, result, failed FROM idem_begin('failed')", 'replayed|"sold out"|t', 'so does a failed one' ],
	[ "SELECT count(*) FROM idem_keys WHERE key = 'expired'", 0, 'an expired one is left out' ],
	[ "SELECT idem_claim('expired')", 't', 'so it can be claimed' ],
	[ "SELECT state, phase, progress FROM idem_lookup('leased')", 'in_progress|charged|{"id": 7}', 'a lease runs on, at its recovery point' ],
	[ "SELECT state FROM idem_begin('leased', request => '{\"x\": 2}')", 'mismatch', 'and knows its request' ],
	[ "SELECT state FROM idem_lookup('abandoned')", 'abandoned', 'an abandoned claim is abandoned' ],
	[ "SELECT count(*) FROM idem_keys WHERE key = 'open'", 0, 'what was open is not there' ],
	[ "SELECT k FROM (@{[disagreeing()]}) d (k) WHERE k NOT IN ('failed', 'expired', 'e')", '', 'keys and orders agree' ],
	[ "INSERT INTO events VALUES ('e'), ('f'); SELECT string_agg(id, ' ' ORDER BY id) FROM events", 'e f', 'the trigger knows its rows' ],
	[ token('token'), 'redeemed|{"user": 1}', 'a token can be redeemed' ],
	[ token('token'), 'used|', 'once' ],
	[ token('used token'), 'used|', 'a used one cannot' ],
	[ token('expired token'), 'unknown|', 'nor an expired one' ],
	[ "SELECT attempts_left FROM idem_code_verify('otp', 'ada', 'z')", 3, 'an attempt at a code counts, unless it was rolled back' ],
	[ "SELECT state FROM handed_out, idem_code_verify('otp', 'ada', secret) WHERE name = 'code'", 'verified', 'a code can be verified' ],
	[ "SELECT state FROM handed_out, idem_code_verify('otp', 'bob', secret) WHERE name = 'used code'", 'used', 'a used one cannot' ],
	[ "SELECT allowed FROM idem_throttle('limit', '1 hour', 1)", 't', 'a limit starts afresh' ],
	[ "SET ROLE app; SELECT state FROM idem_begin('finished')", 'replayed', 'roles have their jobs' ],
);

sub token
{
	my ($name) = @_;

	return "SELECT state, payload FROM handed_out, idem_token_redeem('login', secret) WHERE name = '$name'";
}

sql_is($node, 'copy', $_->[0], $_->[1], "restored: $_->[2]") for @kept;

# Fences
my $new = $node->safe_psql('copy', take_over('leased'));
cmp_ok($new, '>', max(@later), 'restored: the first fence is above those that the original has issued since');
sql_fails($node, 'copy', "SELECT idem_finish('leased', '1', fence => $_)", 'ID004', "restored: fence $_ is superseded")
  for $held{leased}, $taken;
sql_is($node, 'copy', "SELECT idem_finish('abandoned', '1', fence => $held{abandoned})", 1, 'restored: the fence of an abandoned claim finishes it');

# A database that is made of another one is a copy, too.
$node->safe_psql('postgres', 'CREATE DATABASE clone TEMPLATE copy');
my @original = map { $node->safe_psql('copy', "SELECT request('original $_')") } 1 .. 3;
my @clone = map { $node->safe_psql('clone', "SELECT request('clone $_')") } 1 .. 3;
cmp_ok(min(@clone), '>', max(@original), 'a clone of the database goes on with fences of its own');

# So is a new extension: other systems remember the fences of the old one.
$node->safe_psql('clone', 'DROP TABLE events; DROP EXTENSION idempotency; CREATE EXTENSION idempotency');
cmp_ok($node->safe_psql('clone', "SELECT request('new')"), '>', max(@clone), 'after DROP EXTENSION and CREATE EXTENSION fences are higher still');

$node->stop('fast');

done_testing();
