
# Guesses count, whatever becomes of the transaction that makes them: rolled
# back, killed, prepared.  The table that counts them is small, gives its entries
# back, and denies when it is full.  Without shared memory a warning says what
# is lost.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $entries = 16;
# of which a purpose can have half
my $size = 2 * $entries;
my $node = new_node('preloaded', conf => <<"CONF");
shared_preload_libraries = 'idempotency'
idempotency.purge_interval = 0
idempotency.guess_entries = $size
restart_after_crash = on
max_connections = 70
CONF

# The code of a subject is what it was issued; "x" is wrong.
my $functions = <<'SQL';
CREATE TABLE c (subject text PRIMARY KEY, code text);
CREATE PROCEDURE issue(subject text, max_attempts int DEFAULT 5, ttl interval DEFAULT '1 hour') LANGUAGE sql AS $$
	INSERT INTO c VALUES (subject, idem_code_issue('otp', subject, ttl, 10, max_attempts)) ON CONFLICT (subject) DO UPDATE SET code = EXCLUDED.code $$;
CREATE FUNCTION wrong(subject text) RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' ', state, attempts_left) FROM idem_code_verify('otp', subject, 'x') $$;
CREATE FUNCTION correct(text) RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' ', state, attempts_left) FROM c, idem_code_verify('otp', subject, code) WHERE subject = $1 $$;
SQL
$node->safe_psql('postgres', $functions);

# One that is given back does not fill the table; these are.
sub empty
{
	$node->safe_psql('postgres', 'TRUNCATE idem_codes, c');
	crash($node);
	return;
}

#
# Rolled back
#
says($node, <<'SQL', "wrong 3\nwrong 2\nwrong 1\nwrong 0\nlocked 0\nlocked 0", 'rolled back: transaction, savepoint, EXCEPTION block, error');
CALL issue('a', 4);
BEGIN; SELECT wrong('a'); ROLLBACK;
BEGIN; SAVEPOINT s; SELECT wrong('a'); ROLLBACK TO s; COMMIT;
CREATE TEMP TABLE seen (answer text);
DO $$
DECLARE
	answer text;
BEGIN
	BEGIN
		answer := wrong('a');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
	INSERT INTO seen VALUES (answer);
END $$;
SELECT * FROM seen;
BEGIN;
SELECT wrong('a');
SELECT 1 / 0;
COMMIT;
SELECT wrong('a');
SELECT correct('a');
SQL
says($node, <<'SQL', "wrong 4\nwrong 3\nwrong 2\nwrong 1\nverified\nused", 'rolled back and committed in turns');
CALL issue('b');
SELECT wrong('b');
BEGIN; SELECT wrong('b'); ROLLBACK;
BEGIN; SAVEPOINT s; SELECT wrong('b'); ROLLBACK TO s; SELECT wrong('b'); COMMIT;
SELECT correct('b');
SELECT correct('b');
SQL
says($node, <<'SQL', "wrong 2\nwrong 1\nwrong 0\nlocked 0", 'the last one rolled back, the first one committed');
CALL issue('c', 3);
BEGIN;
SELECT wrong('c');
SAVEPOINT s;
SAVEPOINT t;
SELECT wrong('c');
RELEASE t;
ROLLBACK TO s;
COMMIT;
SELECT wrong('c');
SELECT wrong('c');
SQL
# a right attempt that was rolled back can be made again, and has cost none
says($node, <<'SQL', "verified\nverified\nverified\nverified\nused", 'the right attempt rolled back');
CALL issue('d', 2);
BEGIN; SELECT correct('d'); ROLLBACK;
BEGIN; SELECT correct('d'); SELECT 1 / 0; COMMIT;
BEGIN; SAVEPOINT s; SELECT correct('d'); RELEASE s; ROLLBACK;
SELECT correct('d');
SELECT correct('d');
SQL
says($node, "CALL issue('e', 1); BEGIN; SELECT correct('e'); ROLLBACK; SELECT correct('e');", "verified\nverified", 'the right attempt rolled back, when it was the last');
# and buys none: three are wrong, whatever is rolled back around them
says($node, <<'SQL', join("\n", ('verified') x 2, 'wrong 2', 'verified', 'wrong 1', 'verified', 'verified', 'wrong 0', 'locked 0', 'locked 0'), 'right and wrong ones rolled back');
CALL issue('right', 3);
BEGIN;
SAVEPOINT s; SELECT correct('right'); ROLLBACK TO s;
SAVEPOINT t; SELECT correct('right'); ROLLBACK TO t;
SAVEPOINT u; SELECT wrong('right'); ROLLBACK TO u;
SAVEPOINT v; SELECT correct('right'); ROLLBACK TO v;
ROLLBACK;
BEGIN; SELECT wrong('right'); SELECT correct('right'); ROLLBACK;
BEGIN; SAVEPOINT s; SELECT correct('right'); ROLLBACK TO s; SELECT wrong('right'); COMMIT;
SELECT correct('right');
BEGIN; SELECT wrong('right'); ROLLBACK;
SQL
# the new code goes on with the count of wrong ones
says($node, <<'SQL', "wrong 2\nverified\nwrong 1\nverified\nwrong 0\nlocked 0", 'a right one rolled back together with a new code');
CALL issue('both', 3);
SELECT wrong('both');
BEGIN; SELECT correct('both'); CALL issue('both', 3); ROLLBACK;
BEGIN; CALL issue('both', 3); SELECT wrong('both'); SAVEPOINT s; SELECT correct('both'); ROLLBACK TO s; COMMIT;
SELECT wrong('both');
SELECT correct('both');
SQL

# A statement that is cancelled, a client that goes away, a backend that is killed.
$node->safe_psql('postgres', "CALL issue('f')");
says($node, "BEGIN; SELECT wrong('f'); SET statement_timeout = '10ms'; SELECT pg_sleep(100); COMMIT", 'wrong 4', 'cancelled');
says($node, "BEGIN; SELECT wrong('f');", 'wrong 3', 'the client goes away');
says($node, "BEGIN; SELECT wrong('f'); SELECT pg_terminate_backend(pg_backend_pid());", 'wrong 2', 'killed');
says($node, "BEGIN; SELECT wrong('f'); ROLLBACK;", 'wrong 1', 'all of them counted');

# Re-issuing does not reset the count, nor does re-issuing and rolling that back.
says($node, <<'SQL', "wrong 2\nwrong 1\nwrong 0\nlocked 0\nlocked 0", 're-issued');
CALL issue('g', 3);
BEGIN; SELECT wrong('g'); ROLLBACK;
CALL issue('g', 3);
BEGIN; SELECT wrong('g'); ROLLBACK;
BEGIN; CALL issue('g', 3); SELECT wrong('g'); ROLLBACK;
CALL issue('g', 3);
BEGIN; SELECT wrong('g'); ROLLBACK;
SELECT correct('g');
SQL
# after it would have expired a count begins anew, of rolled-back attempts too
says($node, <<'SQL', "wrong 0\nlocked 0\nwrong 0", 're-issued after the first would have expired');
CALL issue('h', 1);
BEGIN; SELECT wrong('h'); ROLLBACK;
CALL issue('h', 1);
SELECT wrong('h');
UPDATE idem_codes SET counted_until = clock_timestamp() WHERE subject = 'h';
CALL issue('h', 1);
SELECT wrong('h');
SQL
# the right attempt does not count against the next code
says($node, <<'SQL', "verified\nverified\nwrong 0\nlocked 0", 'a right attempt');
CALL issue('i', 1);
SELECT correct('i');
CALL issue('i', 1);
SELECT correct('i');
CALL issue('i', 1);
SELECT wrong('i');
SELECT wrong('i');
SQL
# nor does it make up for a wrong one of a new code that was rolled back
says($node, <<'SQL', "verified\nwrong 2\nwrong 1\nverified\nwrong 0\nlocked 0", 'a right attempt, and a new code that is rolled back');
CALL issue('j', 3);
SELECT correct('j');
BEGIN; CALL issue('j', 3); SELECT wrong('j'); ROLLBACK;
CALL issue('j', 3);
SELECT wrong('j');
SELECT correct('j');
BEGIN; CALL issue('j', 3); SELECT wrong('j'); ROLLBACK;
CALL issue('j', 3);
SELECT correct('j');
SQL
says($node, <<'SQL', "verified\nverified\nwrong 0\nlocked 0", 'a right attempt and a new code in one transaction');
CALL issue('k', 1);
BEGIN; SELECT correct('k'); CALL issue('k', 1); SELECT correct('k'); CALL issue('k', 1); SELECT wrong('k'); SELECT correct('k'); COMMIT;
SQL

#
# Prepared transactions
#
says($node, <<'SQL', "wrong 2\nwrong 1\nwrong 0\nlocked 0", 'prepared: committed, and rolled back');
CALL issue('p', 3);
BEGIN; SELECT wrong('p'); PREPARE TRANSACTION 'p';
COMMIT PREPARED 'p';
BEGIN; SELECT wrong('p'); PREPARE TRANSACTION 'p';
ROLLBACK PREPARED 'p';
BEGIN; SELECT wrong('p'); ROLLBACK;
SELECT correct('p');
SQL
says($node, <<'SQL', "verified\nverified\nverified\nwrong 0\nlocked 0", 'a right attempt prepared: rolled back, and committed');
CALL issue('q', 1);
BEGIN; SELECT correct('q'); PREPARE TRANSACTION 'q';
ROLLBACK PREPARED 'q';
BEGIN; SELECT correct('q'); PREPARE TRANSACTION 'q';
COMMIT PREPARED 'q';
CALL issue('q', 1);
SELECT correct('q');
CALL issue('q', 1);
BEGIN; SELECT wrong('q'); ROLLBACK;
SELECT correct('q');
SQL

#
# The table gives its entries back
#
empty();
my $many = 40 * $entries;
$node->safe_psql('postgres', <<"SQL");
DO \$\$
BEGIN
	FOR i IN 1 .. $many LOOP
		CALL issue('many ' || i);
		COMMIT;
		PERFORM wrong('many ' || i);
		COMMIT;
		PERFORM correct('many ' || i);
		COMMIT;
	END LOOP;
END \$\$;
SQL
sql_is($node, 'postgres', 'SELECT attempts, used_at IS NOT NULL, count(*) FROM idem_codes GROUP BY 1, 2', "2|t|$many", 'many attempts, all committed, do not fill it');
# nor in subtransactions that are
$node->safe_psql('postgres', <<"SQL");
TRUNCATE idem_codes, c;
DO \$\$
BEGIN
	FOR i IN 1 .. $many LOOP
		BEGIN
			CALL issue('many ' || i);
			PERFORM wrong('many ' || i);
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
		COMMIT;
	END LOOP;
END \$\$;
SQL
sql_is($node, 'postgres', 'SELECT attempts, count(*) FROM idem_codes GROUP BY 1', "1|$many", 'nor in subtransactions');
# rolled back first: the commit settles that as well
$node->safe_psql('postgres', <<"SQL");
TRUNCATE idem_codes, c;
DO \$\$
BEGIN
	FOR i IN 1 .. $many LOOP
		CALL issue('many ' || i);
		COMMIT;
		PERFORM wrong('many ' || i);
		ROLLBACK;
		PERFORM wrong('many ' || i);
		COMMIT;
	END LOOP;
END \$\$;
SQL
sql_is($node, 'postgres', 'SELECT attempts, count(*) FROM idem_codes GROUP BY 1', "2|$many", 'nor when one before was rolled back');

# new codes take over what was rolled back, and what was never issued holds nothing
$node->safe_psql('postgres', <<"SQL");
TRUNCATE idem_codes, c;
DO \$\$
BEGIN
	FOR i IN 1 .. $many LOOP
		CALL issue('many ' || i);
		COMMIT;
		PERFORM wrong('many ' || i);
		ROLLBACK;
		CALL issue('many ' || i);
		COMMIT;
		CALL issue('never ' || i);
		PERFORM wrong('never ' || i);
		ROLLBACK;
		BEGIN
			CALL issue('never ' || i);
			PERFORM wrong('never ' || i);
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END \$\$;
SQL
sql_is($node, 'postgres', 'SELECT attempts, count(*) FROM idem_codes GROUP BY 1', "1|$many", 'nor when a new code is issued, or the first one rolled back');
says($node, "SELECT wrong('many 1')", 'wrong 3', 'the table is not full');

# nor by right attempts that are rolled back
$node->safe_psql('postgres', <<"SQL");
TRUNCATE idem_codes, c;
DO \$\$
BEGIN
	FOR i IN 1 .. $many LOOP
		CALL issue('many ' || i);
		COMMIT;
		PERFORM correct('many ' || i);
		ROLLBACK;
	END LOOP;
END \$\$;
SQL
says($node, "SELECT correct('many $many'); SELECT wrong('many 1')", "verified\nwrong 4", 'nor by right ones that are rolled back');

#
# And denies when it is full
#
empty();
my $log_start = -s $node->logfile;
$node->safe_psql('postgres', join '', map { "CALL issue('full $_'); BEGIN; SELECT wrong('full $_'); ROLLBACK;" } 1 .. $entries);
my (undef, $out, $err) = $node->psql('postgres', "CALL issue('new'); SELECT wrong('new'); SELECT correct('new')");
is($out, "locked 0\nlocked 0", 'full: an attempt is refused, right or wrong');
like($err, qr/WARNING:  a guess at a code was refused.*hold $entries of $size entries of the table of guesses, of which $entries are free.*guess_entries/s, 'with a warning');
# What is free is for other purposes, of which each leaves as much as it takes, and for other databases.  A purpose
# shares what it may hold with one in a thousand others, which the server's key decides: then the next one is tried.
sub other_purpose
{
	my ($database, $n, @purposes) = @_;
	my $got = 0;

	while (!$got && @purposes)
	{
		my $name = shift @purposes;

		$got = () = $node->safe_psql($database, join '',
			map { "SELECT idem_code_issue('$name', '$_', '1 hour') IS NULL; BEGIN; SELECT 'wrong' FROM idem_code_verify('$name', '$_', 'x') WHERE state = 'wrong'; ROLLBACK;" } 1 .. $n) =~ /wrong/g;
	}
	return $got;
}
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', "CREATE EXTENSION idempotency; $functions");
is(other_purpose('postgres', $entries, 'login', 'mail'), $entries / 2, 'another purpose has half of what is free');
is(other_purpose('other', $entries, 'otp', 'login'), $entries / 4, 'the same one in another database half of the rest');
is(other_purpose('postgres', 1, 'fourth', 'fifth'), 1, 'and there is one for another');
# they keep nothing when they have been settled
$node->safe_psql('other', "SELECT idem_code_verify(purpose, subject, 'x') FROM idem_codes");
$node->safe_psql('postgres', "SELECT idem_code_verify(purpose, subject, 'x') FROM idem_codes WHERE purpose <> 'otp'");
says($node, "SELECT wrong('new')", 'locked 0', 'which leaves the first one as it was');
like(slurp_file($node->logfile, $log_start), qr/WARNING:  a guess at a code was refused/, 'in the log as well');
sql_is($node, 'postgres', "SELECT attempts, used_at FROM idem_codes WHERE subject = 'new'", '0|', 'and not counted');
says($node, "SELECT wrong('full 1')", 'wrong 3', 'who has an entry can make an attempt');
# whose commit gives the entry back
says($node, "SELECT wrong('new'); SELECT correct('new')", "wrong 4\nverified", 'one has become free');
says($node, "CALL issue('next'); BEGIN; SELECT wrong('next'); ROLLBACK; BEGIN; SELECT wrong('full 1'); ROLLBACK;", "wrong 4\nlocked 0", 'and is taken again');
# an expired entry is reused; until then none is forgotten
says($node, "SELECT wrong('full $_')", 'wrong 3', "full $_ is remembered") for 2, $entries;
empty();
my $ttl = "'2 seconds'";
$node->safe_psql('postgres', join '', map { "CALL issue('full $_', ttl => $ttl); BEGIN; SELECT wrong('full $_'); ROLLBACK;" } 1 .. $entries);
$node->safe_psql('postgres', "CALL issue('waiting')");
ok( $node->poll_query_until('postgres', "SELECT correct('waiting')", 'verified'), 'when the entries have expired, attempts are taken again');
sql_is($node, 'postgres', "SELECT state FROM idem_code_verify('otp', 'full 1', 'x')", 'expired', 'the codes they were for have');

# A re-issue keeps the count for as long as its code lives, which is longer than the first one.
empty();
$node->safe_psql('postgres', <<"SQL");
CALL issue('long', 2, '4 seconds');
BEGIN; SELECT wrong('long'); ROLLBACK;
BEGIN; SELECT wrong('long'); ROLLBACK;
CALL issue('long', 2, '1 hour');
@{[ join '', map { "CALL issue('full $_', ttl => '1 second'); BEGIN; SELECT wrong('full $_'); ROLLBACK;" } 2 .. $entries ]}
CALL issue('waiting');
SQL
ok( $node->poll_query_until('postgres', "SELECT counted_until < clock_timestamp() FROM idem_codes WHERE subject = 'long'"), 'the first code would have expired');
ok( $node->poll_query_until('postgres', "SELECT correct('waiting')", 'verified'), 'and so have all others');
says($node, "SELECT correct('long')", 'locked 0', 'but not the count of the one that lives');
# and one whose new code is shorter, for as long as the count goes on
empty();
$node->safe_psql('postgres', <<"SQL");
CALL issue('short', 1, '1 hour');
CALL issue('short', 1, '3 seconds');
BEGIN; SELECT wrong('short'); ROLLBACK;
@{[ join '', map { "CALL issue('full $_', ttl => '1 second'); BEGIN; SELECT wrong('full $_'); ROLLBACK;" } 2 .. $entries ]}
CALL issue('waiting');
SQL
ok( $node->poll_query_until('postgres', "SELECT correct('waiting')", 'verified'), 'shorter ones have expired');
says($node, "CALL issue('short', 1, '1 hour'); SELECT correct('short')", 'locked 0', 'the count goes on until the first one would have');

# A database made from another has the same series, and a count of its own.
empty();
$node->safe_psql('postgres', "CALL issue('copied', 1)");
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
says($node, "BEGIN; SELECT wrong('copied'); ROLLBACK; SELECT correct('copied')", "wrong 0\nlocked 0", 'the original');
sql_is($node, 'copy', "SELECT correct('copied')", 'verified', 'the copy');

# A code that lives longer than a day is counted until then.
empty();
$node->safe_psql('postgres', "CALL issue('month', 1, '1 mon'); BEGIN; SELECT wrong('month'); ROLLBACK;");
$node->stop;
my $bytes = slurp_file($node->data_dir . '/pg_stat/idempotency_guess.stat');
# 32 of every file, the key, and how many; then series, database, count, and until when
my ($count, undef, $until) = unpack 'x48 q x20 L q', $bytes;
$node->start;
is($count, 1, 'one rolled-back attempt is kept over a restart');
is($until, $node->safe_psql('postgres', "SELECT extract(epoch FROM expires_at - '2000-01-01 00:00:00+00') * 1000000 FROM idem_codes WHERE subject = 'month'") =~ s/\..*//r, 'until its code expires, in a month');
says($node, "SELECT correct('month')", 'locked 0', 'and counts');

#
# A crash: committed attempts stay
#
$node->safe_psql('postgres', "CALL issue('crash', 3); SELECT wrong('crash'); SELECT wrong('crash')");
my $victim = $node->background_psql('postgres');
$victim->query_safe("BEGIN; SELECT wrong('crash')");
kill_backend($node, $victim);
says($node, "SELECT wrong('crash'); SELECT correct('crash')", "wrong 0\nlocked 0", 'committed attempts are counted after a crash');

#
# 50 at once: never more than max_attempts are evaluated, the right one among them or not
#

# A sequence counts what a rollback does not undo.
sub storm
{
	my ($server, $max, $script) = @_;

	$server->safe_psql('postgres', <<"SQL");
DROP SEQUENCE IF EXISTS evaluated;
CREATE SEQUENCE evaluated;
DROP SEQUENCE IF EXISTS verified;
CREATE SEQUENCE verified;
DELETE FROM idem_codes;
CALL issue('storm', $max);
SQL
	pgbench($server, $script, '-c', '50', '-t', '4', '--max-tries', '1000');
	return split /\|/, $server->safe_psql('postgres', <<'SQL');
SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM evaluated), (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM verified)
SQL
}

my $evaluate = <<'SQL';
SELECT nextval('evaluated') FROM idem_code_verify('otp', 'storm', 'x') WHERE state IN ('wrong', 'verified');
SQL
my $right = <<'SQL';
SELECT nextval('evaluated'), CASE state WHEN 'verified' THEN nextval('verified') END
FROM c, idem_code_verify('otp', 'storm', code) WHERE subject = 'storm' AND state IN ('wrong', 'verified');
SQL
my ($evaluated, $verified) = storm($node, 7, $evaluate);
is($evaluated, 7, '50 sessions, 200 wrong attempts, committed: 7 evaluated');
($evaluated) = storm($node, 7, "BEGIN;\n${evaluate}ROLLBACK;\n");
is($evaluated, 7, 'rolled back: 7 evaluated');
($evaluated) = storm($node, 7, "\\set r random(0, 2)\nBEGIN;\nSAVEPOINT s;\n$evaluate\\if :r = 0\nROLLBACK TO s;\n\\endif\n\\if :r = 1\nROLLBACK;\n\\else\nCOMMIT;\n\\endif\n");
is($evaluated, 7, 'both, and savepoints: 7 evaluated');
($evaluated) = storm($node, 7, "\\set r random(0, 3)\n\\if :r = 0\nCALL issue('storm', 7);\n\\endif\nBEGIN;\n$evaluate\\if :r < 2\nROLLBACK;\n\\else\nCOMMIT;\n\\endif\n");
is($evaluated, 7, 'with new codes in between: 7 evaluated');
($evaluated) = storm($node, 7, "\\set r random(0, 1)\nBEGIN;\nSAVEPOINT s;\n\\if :r = 0\nSELECT state FROM c, idem_code_verify('otp', 'storm', code) WHERE subject = 'storm';\n\\set s random(0, 1)\n\\if :s = 0\nROLLBACK TO s;\n$evaluate\\endif\n\\else\n$evaluate\\endif\nROLLBACK;\n");
cmp_ok($evaluated, '<=', 7, "right ones in between, all rolled back: $evaluated evaluated");
($evaluated) = storm($node, 7, "BEGIN ISOLATION LEVEL SERIALIZABLE;\n${evaluate}COMMIT;\n");
cmp_ok($evaluated, '<=', 7, "SERIALIZABLE: $evaluated evaluated");
($evaluated, $verified) = storm($node, 7, "\\set r random(0, 9)\n\\if :r = 0\n$right\\else\n$evaluate\\endif\n");
cmp_ok($evaluated, '<=', 7, "the right one among them: $evaluated evaluated");
cmp_ok($verified, '<=', 1, "verified at most once: $verified");
($evaluated, $verified) = storm($node, 7, $right);
is("$evaluated $verified", '1 1', 'all of them right: verified once');

#
# Uniform: by chance these fail once in 10^9 runs
#
my $codes = 6000;
my %seen = (first => {}, last => {}, both => {});
for my $code (split /\n/, $node->safe_psql('postgres', "SELECT idem_code_issue('uniform', 'ada', '1 day', 4) FROM generate_series(1, $codes)"))
{
	$seen{first}{ substr($code, 0, 1) }++;
	$seen{last}{ substr($code, 3, 1) }++;
	$seen{both}{ substr($code, 0, 2) }++;
}
# quantiles of chi-square, of 9 and of 99 degrees of freedom
for my $what ([ 'first', 10, 60 ], [ 'last', 10, 60 ], [ 'both', 100, 200 ])
{
	my ($part, $values, $limit) = @$what;
	my $expected = $codes / $values;
	my $chi2 = ($values - keys %{ $seen{$part} }) * $expected;

	$chi2 += ($_ - $expected)**2 / $expected for values %{ $seen{$part} };
	cmp_ok($chi2, '<', $limit, "digits are uniform, $part: chi-square $chi2");
}

#
# Not preloaded
#
$node->stop;
my $bare = new_node('bare', conf => "idempotency.guess_entries = $size\nmax_connections = 70\n");
my $version = $bare->safe_psql('postgres', 'SHOW server_version_num');
$bare->safe_psql('postgres', "SET client_min_messages = error; $functions");
(undef, $out, $err) = $bare->psql('postgres', <<'SQL');
CALL issue('a', 3);
BEGIN; SELECT wrong('a'); ROLLBACK;
BEGIN; SELECT wrong('a'); ROLLBACK;
CALL issue('a', 3);
SELECT wrong('a');
SELECT correct('a');
SQL
if ($version < 170000)
{
	my @warnings = $err =~ /WARNING:  (.*)/g;

	is("@warnings", 'guesses at codes are forgotten when the calling transaction rolls back', 'no shared memory: one warning a session');
	is($out, "wrong 2\nwrong 2\nwrong 2\nverified", 'and attempts that are rolled back do not count');
	(undef, undef, $err) = $bare->psql('postgres', "SELECT wrong('a')");
	unlike($err, qr/WARNING/, 'where nothing is counted there is none');
	(undef, undef, $err) = $bare->psql('postgres', "CALL issue('a'); SELECT wrong('a')");
	like($err, qr/WARNING:  guesses at codes/, 'the next session has its warning');
}
else
{
	is($err, '', 'shared memory without preload: no warning');
	is($out, "wrong 2\nwrong 1\nwrong 0\nlocked 0", 'and attempts that are rolled back count');
	# the first session sets the size, from the server's settings
	$bare->safe_psql('postgres', 'DELETE FROM idem_codes');
	$bare->restart;
	$bare->safe_psql('postgres', join('', map { "CALL issue('full $_'); BEGIN; SELECT wrong('full $_'); ROLLBACK;" } 1 .. $entries),
		extra_params => [ '-v', 'ON_ERROR_STOP=0' ]);
	says($bare, "CALL issue('new'); SELECT wrong('new')", 'locked 0', 'a full table denies');
	says($bare, "SELECT wrong('full 1'); SELECT wrong('new')", "wrong 3\nwrong 4", 'one becomes free');
}
# only the server's configuration can choose the size
like((failure($bare, 'postgres', "LOAD 'idempotency'; SET idempotency.guess_entries = 100000"))[0], qr/^55P02$/, 'the size is not for sessions to choose');
(undef, $out) = $bare->psql('postgres', "SET idempotency.guess_entries = 100000; LOAD 'idempotency'; SHOW idempotency.guess_entries", on_error_stop => 0);
is($out, $size, 'not before the library is loaded either');
# committed ones count everywhere
says($bare, "CALL issue('k', 2); SELECT wrong('k'); CALL issue('k', 2); SELECT wrong('k'); SELECT correct('k');", "wrong 1\nwrong 0\nlocked 0", 'committed attempts count');
($evaluated) = storm($bare, 7, $evaluate);
is($evaluated, 7, 'not preloaded, 50 sessions: 7 evaluated');
$bare->stop;

# With it preloaded it is the server's setting.
$bare->append_conf('postgresql.conf', "shared_preload_libraries = 'idempotency'\nidempotency.guess_entries = 17\n");
$bare->start;
sql_is($bare, 'postgres', 'SHOW idempotency.guess_entries', '17', 'preloaded: by the configuration');
sql_fails($bare, 'postgres', 'SET idempotency.guess_entries = 100', '55P02', 'which needs a restart');

done_testing();
