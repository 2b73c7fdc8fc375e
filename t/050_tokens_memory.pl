
# No two tokens are alike, and a session that issues and redeems many keeps no memory.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

# Preloaded, so that it is the same for all versions.
my $node = new_node('main', conf => "shared_preload_libraries = 'idempotency'\n");

# A million takes 80 seconds; that was done by hand.
my $tokens = $ENV{IDEM_TEST_TOKENS} || 100_000;

sub in_background
{
	my ($sql) = @_;
	my %session = (out => '', err => '');

	$session{handle} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f', '-' ],
		'<', \$sql, '>', \$session{out}, '2>', \$session{err});
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
my %seen;
$seen{$_}++ for map { split /\n/, output_of($_) } @issuing;
is(scalar(keys %seen), int($tokens / 2) * 2, 'no two tokens alike');
is(scalar(grep { !/^[A-Za-z0-9_-]{43}$/ } keys %seen), 0, 'all of them are tokens');
my ($committing, undef, undef, $transaction) = split /\n/, output_of(in_background($memory));
cmp_ok($committing, '<', 50_000, "memory of a session after 3,000 more of each: $committing bytes");
cmp_ok($transaction, '<', 50_000, "memory of a transaction after 3,000 more: $transaction bytes");

done_testing();
