
# sqlsmith makes random statements out of what it finds in the catalogs, and calls
# functions with whatever has the right type: nothing crashes, and no internal error
# comes out of the extension.  IDEM_FUZZ_SEED repeats a run.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my ($sqlsmith) = grep { -x } map { "$_/sqlsmith" } split /:/, $ENV{PATH};
plan skip_all => 'sqlsmith is not installed' unless $sqlsmith;

my $seed = $ENV{IDEM_FUZZ_SEED} // int(rand(2**31));
note("IDEM_FUZZ_SEED=$seed");

my $node = new_node('main', conf => <<'CONF');
shared_preload_libraries = 'idempotency'
idempotency.guess_entries = 16
idempotency.throttle_entries = 50
restart_after_crash = off
log_error_verbosity = verbose
track_functions = all
CONF

# sqlsmith does not qualify the catalogs it reads, so we can choose what it finds: the
# extension, and hardly any other function; later, all but the volatile ones, which may stop
# processes, write files, and such.
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE smith LOGIN;
SELECT idem_grant('smith', '{claims,call,throttle,tokens,lookup,operate}');
GRANT pg_monitor TO smith;

CREATE SCHEMA few;
CREATE VIEW few.pg_proc AS
SELECT oid, proname, pronamespace, prorettype, proargtypes, proretset, prokind FROM pg_catalog.pg_proc
WHERE pronamespace = 'public'::regnamespace OR oid IN ('repeat'::regproc, 'make_interval'::regproc, 'int8larger'::regproc, 'max(text)'::regprocedure, 'max(bigint)'::regprocedure);
CREATE SCHEMA most;
CREATE VIEW most.pg_proc AS
SELECT * FROM pg_catalog.pg_proc WHERE provolatile <> 'v' OR pronamespace = 'public'::regnamespace;
GRANT USAGE ON SCHEMA few TO smith;
GRANT SELECT ON few.pg_proc TO smith;

-- it tries these with types that are no ranges, and most statements would not parse
SET allow_system_table_mods = on;
UPDATE pg_operator SET oprresult = 0 WHERE 'anyrange'::regtype IN (oprleft, oprright) OR 'anymultirange'::regtype IN (oprleft, oprright) OR 'anyenum'::regtype IN (oprleft, oprright);

-- what arguments are made of
CREATE TABLE material (t text, s text, i interval, j jsonb, b bigint, n int, l text[], r regrole, d double precision, u uuid, z timestamptz);
INSERT INTO material
SELECT 'k' || g, CASE g % 3 WHEN 0 THEN NULL ELSE 's' || g % 3 END, make_interval(secs => (g - 2) * 10 ^ (g - 5)), jsonb_build_object('a', g), g, g - 2, ARRAY['k1', 'k' || g],
	'smith'::regrole, g, idem_digest('k' || g), now()
FROM generate_series(1, 12) g;
INSERT INTO material VALUES ('fuzz_plus', 'claims', '1 day', '{"a": 1, "b": 2}', -1, 6, '{claims}', 'pg_monitor'), ('fuzz_plus(int,int)', '', '-1 mon 40 days', 'null', 0, 2147483647, '{NULL}', 0);
GRANT ALL ON material TO smith;
CREATE FUNCTION fuzz_plus(a int, b int) RETURNS int LANGUAGE sql AS 'SELECT a + b';

-- a table that is guarded, and sets and rows in a form that it can use
CREATE TABLE guarded (id bigint, t text, body jsonb);
CREATE TRIGGER once AFTER INSERT OR UPDATE ON guarded FOR EACH ROW EXECUTE FUNCTION idem_once('id');
CREATE TABLE dropped (id bigint, t text, body jsonb);
CREATE TRIGGER once BEFORE INSERT OR UPDATE ON dropped FOR EACH ROW EXECUTE FUNCTION idem_once('id,t', '1 min', 'skip');
INSERT INTO guarded SELECT g, 'x', NULL FROM generate_series(1, 3) g;
GRANT ALL ON guarded, dropped TO smith;
INSERT INTO dropped SELECT g, 'x', NULL FROM generate_series(1, 3) g;
CREATE FUNCTION claim_many(text[]) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.idem_claim_many($1)';
CREATE FUNCTION lookup(text, text) RETURNS text LANGUAGE sql AS 'SELECT max(l::text) FROM public.idem_lookup($1, $2) l';
CREATE FUNCTION held() RETURNS text LANGUAGE sql AS 'SELECT max(key) FROM public.idem_held_keys()';
CREATE FUNCTION purge(int) RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE a bigint; b bigint; c bigint; BEGIN CALL public.idem_purge($1, NULL, NULL, a, b, c); RETURN a; END $$;
CREATE FUNCTION begins(text) RETURNS text LANGUAGE sql AS 'SELECT state FROM public.idem_begin($1)';
CREATE FUNCTION begins(text, jsonb, interval) RETURNS bigint LANGUAGE sql AS $$ SELECT fence FROM public.idem_begin($1, request => $2, lease => '1 min', wait => $3) $$;
CREATE FUNCTION finishes(text, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT public.idem_finish($1, $2)';
CREATE FUNCTION calls(text, jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT result FROM public.idem_call($1, 'fuzz_plus', $2) $$;
CREATE FUNCTION redeem(text) RETURNS text LANGUAGE sql AS $$ SELECT state FROM public.idem_token_redeem('login', $1) $$;
CREATE FUNCTION token(text, jsonb) RETURNS text LANGUAGE sql AS $$ SELECT public.idem_token_issue('login', '1 min', $2, $1) $$;
CREATE FUNCTION peek(text) RETURNS text LANGUAGE sql AS $$ SELECT state FROM public.idem_token_peek('login', $1) $$;
CREATE FUNCTION code(text) RETURNS text LANGUAGE sql AS $$ SELECT public.idem_code_issue('login', $1, '1 min') $$;
CREATE FUNCTION verify(text, text) RETURNS text LANGUAGE sql AS $$ SELECT state FROM public.idem_code_verify('login', $1, $2) $$;
CREATE FUNCTION allowed(text, interval) RETURNS boolean LANGUAGE sql AS 'SELECT allowed FROM public.idem_throttle($1, $2)';
SQL

# Each statement is rolled back, and given up after a second.
sub smith
{
	my ($what, $role, $schema, $queries, $seed) = @_;
	my ($out, $at, $deadline) = ('', '', 0);

	my $run = do {
		local $ENV{PGOPTIONS} = "-c search_path=$schema,pg_catalog,public";
		IPC::Run::start(
			[ $sqlsmith, '--target=' . $node->connstr('postgres') . " user=$role application_name=smith", "--seed=$seed", "--max-queries=$queries", '--exclude-catalog' ],
			'<', \undef, '>&', \$out);
	};
	# one whose server is gone tries for ever; as long as there are new queries, it is only slow
	my $ended = 0;
	while (1)
	{
		$run->pump_nb;
		last if $ended = !$run->pumpable;
		my (undef, $now) = $node->psql('postgres', "SELECT max(query_start) FROM pg_stat_activity WHERE application_name = 'smith'");
		($at, $deadline) = ($now, time + $PostgreSQL::Test::Utils::timeout_default) if !$deadline || ($now // '') ne '' && $now ne $at;
		last if time > $deadline;
		usleep(200_000);
	}
	$ended ? $run->finish : $run->kill_kill;
	ok($ended && $run->full_result(0) == 0, "$what: sqlsmith came to its end") or diag($out);
	sql_is($node, 'postgres', 'SELECT 1', '1', "$what: the server goes on");
	return;
}

# Functions of the extension, with how often each was called without an error; -1: never started.
sub calls
{
	return map { split /\|/ } split /\n/, $node->safe_psql('postgres', <<'SQL');
SELECT p.proname, coalesce(s.calls, -1)
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid LEFT JOIN pg_stat_user_functions s ON s.funcid = p.oid
WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency') AND d.deptype = 'e' AND d.classid = 'pg_proc'::regclass
SQL
}

my ($superuser) = $node->safe_psql('postgres', 'SELECT current_user');
my (%called, @missed);

# which functions it calls, and with what, is up to sqlsmith: until most of them were
for my $round (0 .. 4)
{
	smith("round $round, all jobs", 'smith', 'few', 2000, $seed + $round);
	smith("round $round, superuser", $superuser, 'most', 300, $seed + $round);
	%called = calls();
	@missed = grep { $called{$_} < 0 } sort keys %called;
	last if @missed <= keys(%called) / 3;
}
note('calls without an error: ', join ', ', map { "$_ $called{$_}" } grep { $called{$_} >= 0 } sort keys %called);
cmp_ok(scalar(@missed), '<=', keys(%called) / 3, 'most functions were called') or diag("not called: @missed");

my %files = map { s/.*\///r => 1 } glob("$FindBin::RealBin/../src/*.c $FindBin::RealBin/../src/*/*.c");
my ($entry, @internal) = ('');
open my $log, '<', $node->logfile or die $!;
while (<$log>)
{
	if (/(?:ERROR|FATAL):\s+XX/) { $entry = $_ }
	elsif ($entry && /LOCATION:\s+\w+, (\S+?):\d+/) { push @internal, "$entry$_" if $files{$1} || $entry =~ /idempotency/; $entry = '' }
}
close $log;
is(join('', @internal), '', 'no internal error of the extension');
unlike(slurp_file($node->logfile), qr/terminated by signal|PANIC:|TRAP:|server process .* exited with exit code/, 'nothing crashed');

$node->stop;
done_testing();
