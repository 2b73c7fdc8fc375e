
# Leaving for a plain table, as doc/howto/migrate.md has it, while clients write: every order has its
# key in the plain table, and clients that repeat all of their requests there do none twice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use IdemDocs;
use IdemStorm;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');

$node->safe_psql('postgres', request_function());

# The blocks under the heading: the count, the copy, a request afterwards.
my ($count, $leave, $request) = map { $_->[1] } grep { $_->[0] eq 'sql' && $_->[1] =~ /plain_keys|FROM idem_keys WHERE expires_at > now/ }
  blocks("$FindBin::RealBin/../doc/howto/migrate.md");
like($count, qr/AS live/, 'a block that counts');
like($leave, qr/DROP EXTENSION idempotency;\nCOMMIT/, 'a block that leaves');
like($request, qr/ON CONFLICT DO NOTHING/, 'a block with a request afterwards');

# Its first half is a transaction; what follows is an example.
$leave =~ s/(?<=^COMMIT;\n).*//ms;

$node->safe_psql('postgres', "SELECT idem_claim('expired', '1 day'); UPDATE idem_keys SET expires_at = clock_timestamp()");
$node->safe_psql('postgres', "BEGIN; SELECT idem_begin('failed'); SELECT idem_fail('failed', '\"sold out\"'); COMMIT; SELECT idem_begin('leased', lease => '1 hour')");
is($node->safe_psql('postgres', $count), '2|1', 'live keys and unfinished ones');

my @storm = start_storm($node, 4, 10_000);
$node->poll_query_until('postgres', 'SELECT count(*) > 1000 FROM orders') or die 'no storm';

# a claim that is open, and one that comes while the extension is on its way out
my ($holder, $late) = map { $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]) } 1 .. 2;
$late->query_safe("SELECT state FROM idem_begin('failed')");
$holder->query_safe("BEGIN; SELECT state FROM idem_begin('open'); INSERT INTO orders VALUES ('open')");
my ($out, $err) = ('', '');
my $file = PostgreSQL::Test::Utils::tempdir() . '/leave.sql';
append_to_file($file, $leave);
my $leaver = IPC::Run::start([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f', $file ], '>', \$out, '2>', \$err);
ok( $node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE relation = 'idem_keys'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted"),
	'who leaves waits for the open claim');
waiting($late, "BEGIN; INSERT INTO orders VALUES ('late'); SELECT state FROM idem_begin('late'); SELECT idem_finish('late'); COMMIT");
ok( $node->poll_query_until('postgres', "SELECT count(*) >= 1 FROM pg_locks WHERE relation = 'idem_keys'::regclass AND mode <> 'AccessExclusiveLock' AND NOT granted"),
	'later claims wait for him');
$holder->query_safe("SELECT idem_finish('open', '1'); COMMIT");
ok(IPC::Run::finish($leaver), 'left') or diag($err);
is($late->query('SELECT 1'), 1, 'the later claim has ended');
like($late->{stderr}, qr/ERROR:  (42883|42P01)/, 'with an error');
$_->quit for $holder, $late;
end_storm(@storm);

my $disagreeing = disagreeing() =~ s/FROM idem_keys WHERE finished_at IS NOT NULL/FROM plain_keys WHERE key <> 'failed'/r;
is($node->safe_psql('postgres', $disagreeing), '', 'every order has its key in the plain table, and every key its order');
is($node->safe_psql('postgres', "SELECT count(*) FROM orders WHERE k = 'late'"), 0, 'who came too late has no order');
is($node->safe_psql('postgres', "SELECT result, failed FROM plain_keys WHERE key = 'failed'"), '"sold out"|t', 'a failure is kept');
is($node->safe_psql('postgres', "SELECT count(*) FROM plain_keys WHERE key IN ('expired', 'leased')"), 0, 'what is expired or not finished is not');

# Requests as in the last block, for all that were sent before.
my ($insert) = $request =~ /(INSERT.*?ON CONFLICT DO NOTHING)/s;
$insert =~ s/'r-8'/k/;
$node->safe_psql('postgres', <<"SQL");
DO \$\$
DECLARE
	k text;
BEGIN
	FOR i IN 0 .. 39999 LOOP
		k := '1-' || 1 + i % 4 || '-' || 1 + i / 4;
		$insert;
		IF FOUND THEN
			INSERT INTO orders VALUES (k);
		END IF;
	END LOOP;
END \$\$;
SQL
is($node->safe_psql('postgres', $disagreeing), '', 'repeated, each request is done once');
is($node->safe_psql('postgres', 'SELECT count(*) FROM orders'), 40001, 'and all are done');

$node->stop('fast');

done_testing();
