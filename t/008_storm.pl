
# A storm: begins, claims, batches, savepoints, isolation levels, erasures,
# rollbacks and killed backends on a few keys at once.  However it went, a key
# and its effect are together, once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# %e: the SQLSTATEs of all errors, to be looked at in the end
my $node = new_node('main', conf => <<'CONF');
log_line_prefix = '%m [%p] %a %e '
log_statement = none
log_min_messages = warning
deadlock_timeout = 10ms
CONF

# No constraint that could do the work of the keys.
$node->safe_psql('postgres', 'CREATE TABLE effects (k text, src text); CREATE TABLE violations (k text, effects int)');

my $keys = 12;

# Most of a request's time passes between its begin and its finish: "sleep"
# gives the others a chance to come in between.
my %scripts = (
	'begin@4' => <<'SQL',
BEGIN;
SELECT state = 'started' AS mine FROM idem_begin('key :k') \gset
\if :mine
INSERT INTO effects VALUES ('key :k', 'begin');
\sleep 2 ms
SELECT idem_finish('key :k', ':k');
\endif
%end%
SQL
	'wait@2' => <<'SQL',
BEGIN;
SELECT state = 'started' AS mine FROM idem_begin('key :k', wait => '20 milliseconds') \gset
\if :mine
INSERT INTO effects VALUES ('key :k', 'wait');
\sleep 2 ms
SELECT idem_finish('key :k', ':k');
\endif
%end%
SQL
	'serializable@2' => <<'SQL',
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT state = 'started' AS mine FROM idem_begin('key :k') \gset
\if :mine
INSERT INTO effects VALUES ('key :k', 'serializable');
\sleep 2 ms
SELECT idem_finish('key :k', ':k');
\endif
%end%
SQL
	'repeatable@2' => <<'SQL',
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT idem_claim('key :k') AS mine \gset
\if :mine
INSERT INTO effects VALUES ('key :k', 'repeatable');
\endif
%end%
SQL
	'statement@2' => <<'SQL',
WITH c AS (SELECT * FROM idem_begin('key :k')),
	o AS (INSERT INTO effects SELECT 'key :k', 'statement' FROM c WHERE c.state = 'started' RETURNING k),
	f AS (SELECT idem_finish('key :k', to_jsonb(o)) FROM o)
SELECT c.state FROM c LEFT JOIN f ON true;
SQL
	'claim@4' => <<'SQL',
BEGIN;
SELECT idem_claim('key :k') AS mine \gset
\if :mine
INSERT INTO effects VALUES ('key :k', 'claim');
\sleep 2 ms
\endif
%end%
SQL
	'two claims@2' => <<'SQL',
BEGIN;
INSERT INTO effects SELECT 'key :k', 'two claims' WHERE idem_claim('key :k');
INSERT INTO effects SELECT 'key :l', 'two claims' WHERE idem_claim('key :l');
%end%
SQL
	'batch@4' => <<'SQL',
BEGIN;
INSERT INTO effects SELECT key, 'batch' FROM idem_claim_many(ARRAY['key :k', 'key :l', 'key :m', 'key :k']);
\sleep 2 ms
%end%
SQL
	'savepoints@2' => <<'SQL',
BEGIN;
SAVEPOINT a;
SELECT state = 'started' AS mine FROM idem_begin('key :k') \gset
SAVEPOINT b;
\if :mine
INSERT INTO effects VALUES ('key :k', 'savepoint b');
SELECT idem_finish('key :k', ':k');
\endif
ROLLBACK TO b;
\if :mine
INSERT INTO effects VALUES ('key :k', 'savepoint');
SELECT idem_finish('key :k', ':k');
\endif
\if :r < 2
ROLLBACK TO a;
\endif
INSERT INTO effects SELECT 'key :l', 'after savepoint' WHERE idem_claim('key :l');
%end%
SQL
	# So that there is always something to claim.  A forgotten key had one effect.
	'forget@6' => <<'SQL',
BEGIN;
SELECT idem_forget('key :k') AS forgotten \gset
\if :forgotten
WITH d AS (DELETE FROM effects WHERE k = 'key :k' RETURNING k)
INSERT INTO violations SELECT 'key :k', count(*) FROM d HAVING count(*) <> 1;
\endif
%end%
SQL
	'forget batch@2' => <<'SQL',
BEGIN;
WITH f AS MATERIALIZED (SELECT k FROM unnest(ARRAY['key :k', 'key :l']) k WHERE idem_forget(k))
SELECT coalesce(string_agg(k, ','), 'none') AS ks FROM f \gset
WITH f AS (SELECT unnest(string_to_array(nullif(':ks', 'none'), ',')) AS k),
	d AS (DELETE FROM effects WHERE k IN (SELECT k FROM f) RETURNING k)
INSERT INTO violations SELECT f.k, count(d.k) FROM f LEFT JOIN d USING (k) GROUP BY f.k HAVING count(d.k) <> 1;
%end%
SQL
);

my $dir = PostgreSQL::Test::Utils::tempdir();
my @files;
for my $name (sort keys %scripts)
{
	my ($file, $weight) = split /@/, $name;
	my $sql = $scripts{$name};

	$file =~ s/ /_/g;
	$sql =~ s/%end%/\\if :r = 0\nROLLBACK;\n\\else\nCOMMIT;\n\\endif/;
	append_to_file("$dir/$file.sql",
		"\\set k random(1, $keys)\n\\set l random(1, $keys)\n\\set m random(1, $keys)\n\\set r random(0, 5)\n$sql");
	push @files, '-f', "$dir/$file.sql\@$weight";
}

# A round ends when its 8 clients have done their work or were killed.
my $killed = 0;
my $worked = 0;
my $killer = $node->background_psql('postgres');
for my $round (1 .. 8)
{
	my ($out, $err) = ('', '');
	my $bench = IPC::Run::start(
		[ 'pgbench', '-n', '-c', '8', '-j', '2', '-t', '300', '--max-tries', '1000', '--random-seed', $round,
			@files, $node->connstr('postgres') . ' application_name=storm' ],
		'<', \undef, '>', \$out, '2>', \$err,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	my $victims = 0;

	# kill in the middle of transactions; spare some, so that the round goes on
	while ($bench->pumpable)
	{
		$victims += $killer->query_safe(<<'SQL') if $victims < 4;
SELECT count(pg_terminate_backend(pid)) FROM (
	SELECT pid FROM pg_stat_activity WHERE application_name = 'storm' AND backend_type = 'client backend'
		AND (state = 'idle in transaction' OR state = 'active') ORDER BY random() LIMIT 1) v
SQL
		$bench->pump_nb;
		usleep(50_000);
	}
	$bench->finish;
	$killed += $victims;
	$worked += $1 if $out =~ m{actually processed: (\d+)/};
	note($out, $err);

	# Its sessions may take a moment to go.
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'storm'")
	  or die 'sessions stay';

	sql_is($node, 'postgres', 'SELECT * FROM violations', '', "round $round: no forgotten key had none or two effects");
	sql_is($node, 'postgres', 'SELECT k, count(*), array_agg(src) FROM effects GROUP BY k HAVING count(*) > 1',
		'', "round $round: no key has two effects");
	sql_is($node, 'postgres', "SELECT k FROM effects e WHERE NOT EXISTS (SELECT FROM idem_keys i WHERE i.key = e.k)",
		'', "round $round: no effect lacks its key");
	sql_is($node, 'postgres', "SELECT key FROM idem_keys i WHERE NOT EXISTS (SELECT FROM effects e WHERE e.k = i.key)",
		'', "round $round: no key lacks its effect");
	sql_is($node, 'postgres', "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", '0', "round $round: no lock is left");
}
$killer->quit;

# There was a storm.
cmp_ok($killed, '>', 0, "backends were killed: $killed");
cmp_ok($worked, '>', 1000, "transactions went through: $worked");
my $sources = $node->safe_psql('postgres', 'SELECT string_agg(DISTINCT src, $$, $$) FROM effects');
note("effects at the end by: $sources");

# The clients got only errors that they can expect: try again, or killed.
my %states;
my $log = slurp_file($node->logfile);
$states{$1}++ while $log =~ /\] storm (\w{5}) (?:ERROR|FATAL|PANIC|WARNING):/g;
note(join ', ', map { "$_: $states{$_}" } sort keys %states);
is(join(' ', grep { !/^(40001|40P01|57P01)$/ } sort keys %states), '', 'no error but of serialization, deadlock, shutdown');

done_testing();
