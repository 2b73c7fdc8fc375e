
# Tokens and codes, and the key of the codes, are found neither in a table nor in the log.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use MIME::Base64;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();

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

my (undef, $out, $err) = with_secrets(<<'SQL', @tokens, @codes);
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

# Nor does the server tell a client who asks for plans.
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

done_testing();
