
# doc/howto/switch-over.md, block by block, with clients that write until the old server is frozen and
# then repeat all of their requests on the new one: nothing is done twice, and nothing is lost.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use IdemDocs;
use IdemStorm;
use IdemTest;
use List::Util qw(max min);
use PostgreSQL::Test::Utils;
use Test::More;

my $preload = "shared_preload_libraries = 'idempotency'\n";
my %server = (
	old => new_node('old', streaming => 'logical', schema => undef, conf => $preload),
	new => new_node('new', schema => undef, conf => $preload));
my ($old, $new) = @server{qw(old new)};

# Blocks in order; each begins with a comment that says where it runs.
my @blocks = grep { $_->[0] =~ /^(sql|text)$/ } blocks("$FindBin::RealBin/../doc/howto/switch-over.md");

sub run_block
{
	my ($name, $sql) = @_;
	my ($out, $err);
	my $connstr = $old->connstr('postgres');

	$sql =~ s/'host=old dbname=shop'/\$c\$$connstr\$c\$/;
	ok( IPC::Run::run([ 'psql', '-XqP', 'pager=off', '-v', 'ON_ERROR_STOP=1', '-d', $server{$name}->connstr('postgres') ],
			'<', \$sql, '>', \$out, '2>', \$err),
		"$name server: runs") or diag($sql, $err);
	return trimmed($out);
}

# Run the next block, which must contain the text, and return what it prints.
sub step
{
	my ($contains) = @_;
	my ($language, $sql, $line) = @{ shift @blocks };
	my ($where) = $sql =~ /\A-- (old|new|both) servers?\n/ or die "line $line: where does it run?";
	my @expected = @blocks && $blocks[0][0] eq 'text' ? (shift @blocks) : ();

	like($sql, qr/\Q$contains\E/, "line $line: $contains");
	my @out = map { run_block($_, $sql) } $where eq 'both' ? qw(old new) : $where;
	is($out[0], trimmed($expected[0][1]), "line $line: shows what is printed") if @expected;
	is($out[1], $out[0], "line $line: both show the same") if @out > 1;
	return $out[0];
}

sub agree
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return sql_is($new, 'postgres', <<'SQL', '0', $name);
SELECT count(*) FROM (SELECT key FROM idem_keys WHERE key LIKE '%-%' AND key NOT LIKE 'lease%') i
FULL JOIN (SELECT item, count(*) AS n FROM orders GROUP BY item) o ON i.key = o.item
WHERE i.key IS NULL OR o.item IS NULL OR o.n <> 1
SQL
}

step('CREATE EXTENSION idempotency');
$old->safe_psql('postgres', <<'SQL');
CREATE FUNCTION request(k text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	fence bigint := (SELECT b.fence FROM idem_begin('lease ' || k, lease => '1 hour') b);
BEGIN
	IF (SELECT state FROM idem_begin(k)) = 'started' THEN
		INSERT INTO orders (item) VALUES (k);
		PERFORM idem_finish(k, to_jsonb(k));
	END IF;
	RETURN fence;
END $$;
CREATE TABLE handed_out (name text PRIMARY KEY, secret text);
INSERT INTO handed_out VALUES ('token', idem_token_issue('login', '1 day')), ('code', idem_code_issue('otp', 'ada', '1 day'));
SELECT idem_claim('expired', '1 day'), idem_claim('expired for good', '1 day');
UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key LIKE 'expired%';
BEGIN;
SELECT idem_begin('failed');
SELECT idem_fail('failed', '"sold out"');
COMMIT;
SQL
my $fence = $old->safe_psql('postgres', "SELECT fence FROM idem_begin('held', lease => '1 hour')");
my @before = storm($old, 100);

step('CREATE PUBLICATION');

# the restore, as the document has it
my $handed_out = $old->safe_psql('postgres', 'SELECT format($$INSERT INTO handed_out VALUES (%L, %L);$$, name, secret) FROM handed_out');
IPC::Run::run([ 'pg_dumpall', '--roles-only', '-d', $old->connstr('postgres') ], '|', [ 'psql', '-Xq', '-d', $new->connstr('postgres') ],
	'>', '/dev/null', '2>', '/dev/null');
IPC::Run::run([ 'pg_dump', '--schema-only', '--no-publications', '-d', $old->connstr('postgres') ], '|',
	[ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $new->connstr('postgres') ], '>', '/dev/null')
	or die 'no schema';
$new->safe_psql('postgres', $handed_out);

# Clients write from before the copy until they are stopped.
my @storm = start_storm($old, 3, 30_000);
$old->poll_query_until('postgres', 'SELECT count(*) > 500 FROM orders') or die 'no storm';
step('CREATE SUBSCRIPTION');
is($blocks[0][1] =~ /srsubstate/, 1, 'then one waits');
$new->poll_query_until('postgres', "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel") or die 'does not follow';
like(step('srsubstate'), qr/^ t$/m, 'it follows');

# An expired key is claimed again by an UPDATE, which would be lost if the new server had purged the row.
sql_is($new, 'postgres', 'CALL idem_purge()', '0|0|0', 'nothing is purged while it follows');
sql_is($old, 'postgres', "SELECT idem_claim('expired')", 't', 'an expired key is claimed again');
$old->poll_query_until('postgres', 'SELECT count(*) > 3000 FROM orders') or die 'no storm';

step('purge_interval = 0');
step('default_transaction_read_only');
my @old_fences = (@before, end_storm(@storm));
cmp_ok(scalar @old_fences, '>', 3000, 'clients wrote until they were stopped');
sql_is($old, 'postgres', "SELECT state FROM idem_begin('failed')", 'replayed', 'frozen: replays');
sql_fails($old, 'postgres', "SELECT idem_begin('new')", '25006', 'frozen: begins nothing');

step('confirmed_flush_lsn');
step('bit_xor');
agree('keys and orders agree');

step('setval');
sql_is($new, 'postgres', 'CALL idem_purge()', '1|0|0', 'then it purges');
is($old->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots'), 0, 'the slot is dropped');

# Fences, before the sequence is set by hand: it need not be.
sql_is($new, 'postgres', "SELECT idem_finish('held', '1', fence => $fence)", '1', 'who has a fence of the old server finishes');
my $taken = $new->safe_psql('postgres', take_over('lease 1-1-1'));
cmp_ok($taken, '>', max(@old_fences), 'a take-over has a fence above those of the old server');
step('idem_fence');
is(scalar @blocks, 0, 'that was all');

# The clients repeat everything.
my @repeated = repeat_storm($new, 2, 3, 3000);
agree('repeated: each request once');
is(twice(@old_fences, $taken, @repeated), '', 'no fence is issued twice');
sql_is($new, 'postgres', "SELECT state, result, failed FROM idem_begin('failed')", 'replayed|"sold out"|t', 'a failure replays');
sql_is($new, 'postgres', "SELECT idem_claim('expired')", 'f', 'what was claimed again after its expiry is known');
sql_is($new, 'postgres', "SELECT state FROM handed_out, idem_token_redeem('login', secret) WHERE name = 'token'", 'redeemed', 'a token can be redeemed');
sql_is($new, 'postgres', "SELECT state FROM handed_out, idem_code_verify('otp', 'ada', secret) WHERE name = 'code'", 'verified', 'a code can be verified');
sql_is($new, 'postgres', "SET ROLE shop_api; SELECT state FROM idem_begin('failed')", 'replayed', 'the role has its jobs');

$_->stop('fast') for $new, $old;

done_testing();
