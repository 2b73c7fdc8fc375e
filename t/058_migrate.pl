
# The recipe of doc/migrate.md, as printed there, while both are in use: clients of the old version
# of an application work on its table, the copy runs beside them, then clients of the new version
# work beside those of the old one on the same keys.  Each request has its effect once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $transactions = 150; # of each session

my ($recipe) = slurp_file("$FindBin::RealBin/../doc/migrate.md") =~ /^## Coming from (.*?)^## Leaving/ms;
my ($table, $trigger, $copy, $missing) = $recipe =~ /^```sql\n(.*?)^```$/msg;

my $node = new_node('main', conf => "deadlock_timeout = '10ms'\n");

# The old version answers from its table; the new one does as step 4 says.  pgbench repeats what ends
# with 40001 or 40P01, and gives up after any other error.
$node->safe_psql('postgres', <<"SQL");
CREATE TABLE effects (key text, version text);
$table
CREATE FUNCTION old_version(k text) RETURNS text LANGUAGE plpgsql AS \$\$
DECLARE
	answer text;
BEGIN
	INSERT INTO api_requests (tenant, key, request) VALUES ('acme', k, '{"item": 1}') ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		RETURN response FROM api_requests WHERE tenant = 'acme' AND key = k;
	END IF;
	INSERT INTO effects VALUES (k, 'old');
	UPDATE api_requests SET status = 201, response = 'old ' || k WHERE tenant = 'acme' AND key = k RETURNING response INTO answer;
	RETURN answer;
END \$\$;
CREATE FUNCTION new_version(k text) RETURNS text LANGUAGE plpgsql AS \$\$
DECLARE
	claim record := idem_http_begin(k, '{"item": 1}', 'api acme', wait_ms => 60000);
BEGIN
	IF NOT claim.run THEN
		RETURN claim.body;
	END IF;
	INSERT INTO effects VALUES (k, 'new');
	PERFORM idem_http_finish(k, 201, 'new ' || k, '{"Content-Type": "application/json"}', 'api acme');
	INSERT INTO api_requests (tenant, key, request, status, response) VALUES ('acme', k, '{"item": 1}', 201, 'new ' || k);
	RETURN 'new ' || k;
EXCEPTION WHEN unique_violation THEN
	RAISE serialization_failure;
END \$\$;
CREATE TABLE answers (key text, answer text);
SQL

my @tries = ('-M', 'prepared', '--max-tries', '1000');
my $old = "\\set k random(1, 400)\nINSERT INTO answers SELECT 'key ' || :k, old_version('key ' || :k);\n";
my $new = "\\set k random(1, 800)\nINSERT INTO answers SELECT 'key ' || :k, new_version('key ' || :k);\n";

# the old version alone, and the copy beside it
my $err = '';
my $storm = IPC::Run::start(pgbench_command($node, $old, '-c', '4', '-t', $transactions, @tries), '>', \my $out, '2>', \$err);

$node->safe_psql('postgres', $trigger);
$node->safe_psql('postgres', $copy);
sql_is($node, 'postgres', $missing, '0', 'the copy has all keys');
ok($storm->finish, 'the old version went on') or diag($err);
sql_is($node, 'postgres', $missing, '0', 'and what it has stored since');

# both
$err = '';
$storm = IPC::Run::start(pgbench_command($node, $old =~ s/400/800/r, '-c', '4', '-t', $transactions, @tries), '>', \$out, '2>', \$err);
ok(pgbench($node, $new, '-c', '4', '-t', $transactions, @tries), 'the new version beside the old one');
ok($storm->finish, 'the old version beside the new one') or diag($err);
sql_is($node, 'postgres', "SELECT count(DISTINCT version) FROM effects WHERE key IN (SELECT key FROM answers)", '2', 'both had requests that were the first');
sql_is($node, 'postgres', $missing, '0', 'no key is missing');
sql_is($node, 'postgres', 'SELECT key, count(*) FROM effects GROUP BY key HAVING count(*) > 1', '', 'nothing ran twice');
sql_is($node, 'postgres', 'SELECT key FROM answers EXCEPT SELECT key FROM effects', '', 'and everything once');
sql_is($node, 'postgres', 'SELECT key, array_agg(DISTINCT answer) FROM answers GROUP BY key HAVING count(DISTINCT answer) > 1', '', 'a key has one answer');
sql_is($node, 'postgres', 'SELECT count(*) FROM answers WHERE answer IS NULL', '0', 'which nobody missed');

done_testing();
