
# Every function, with random arguments and such as lie on a border, in random states
# of transactions, by sessions that get in each other's way: no crash, no error but
# those that a function is allowed, and no memory that is lost.
#
# One session makes IDEM_FUZZ_CALLS calls (100000 is the full run), two others a fifth
# of that each.  The calls are the same each time, IDEM_FUZZ_SEED makes others: a number,
# or "random".
#
# IdemFuzzValues.pm makes arguments, IdemFuzz.pm calls and transactions, IdemFuzzObjects.pm what
# is called and written to; below is what each function may raise, and what is looked at.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemFuzz;
use IdemFuzzObjects;
use IdemFuzzValues;
use IdemTest;
use IPC::Run;
use List::Util qw(max min sum0 uniq);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $calls = $ENV{IDEM_FUZZ_CALLS} || 20_000;
my $seed = $ENV{IDEM_FUZZ_SEED} // 25;
$seed = int(rand(2**31)) if $seed eq 'random';
my $samples = 20;
my $dir = PostgreSQL::Test::Utils::tempdir();

note("IDEM_FUZZ_SEED=$seed IDEM_FUZZ_CALLS=$calls");
srand($seed);

# Small tables in shared memory, so that they are full now and then.
my $node = new_node('main', conf => <<'CONF');
shared_preload_libraries = 'idempotency'
idempotency.throttle_entries = 50
idempotency.guess_entries = 16
idempotency.purge_interval = 1
idempotency.max_result_size = 100kB
idempotency.default_ttl = 1s
restart_after_crash = off
log_min_messages = log
log_statement = none
deadlock_timeout = 5ms
autovacuum = on
autovacuum_naptime = 1s
CONF
my $version = $node->safe_psql('postgres', "SELECT current_setting('server_version_num')::int / 10000");

# ---------------------------------------------------------------- what may be raised

# A transaction may be aborted, or its statement cancelled; such errors are allowed
# where they can come about.  What else a function may raise: besides 22004 and
# 22023, this.  Those that wait or look for keys may have to be retried
# (@wait, @write).
my %allowed = (
	idem_digest => [],
	idem_begin => [ @write, 'ID005' ],
	idem_finish => [ @write, qw(54000 ID003 ID004 ID005 ID006) ],
	idem_fail => [ @write, qw(54000 ID003 ID004 ID005 ID006) ],
	idem_http_begin => [ @write, 'ID005' ],
	idem_http_finish => [ @write, qw(54000 ID003 ID004 ID005 ID006) ],
	idem_check => ['ID005'],
	idem_release => [ @write, qw(ID003 ID004 ID006) ],
	idem_extend => [ @write, qw(ID003 ID004 ID006) ],
	idem_checkpoint => [ @write, qw(54000 ID003 ID004 ID006) ],
	idem_claim => [ @write, qw(ID002 ID005) ],
	idem_claim_many => [ @write, 'ID005' ],
	idem_import => [ @write, qw(54000 ID005) ],
	idem_import_many => [ @write, qw(54000 ID005) ],
	# its own, and those of the function and of its arguments' types
	idem_call => [ @write, qw(54000 ID005 0A000 22P02 22003 22007 22008 23514 3F000 42501 42601 42602 42704 42725 42883 54023 P0001) ],
	# of calls that are none of a trigger
	idem_once => ['39P01'],
	idem_token_issue => [ @write, '54000' ],
	idem_token_redeem => [@write],
	idem_token_peek => [],
	idem_token_revoke => [@write],
	idem_token_revoke_all => [@write],
	idem_code_issue => [@write],
	idem_code_verify => [@write],
	idem_throttle => [],
	idem_lookup => [],
	idem_forget => [@write],
	idem_forget_scope => [@write],
	idem_purge => ['25006'],
	idem_stat_counters => [],
	idem_stat_reset => [],
	idem_held_keys => [],
	idem_grant => [ @write, '42704' ],
	idem_revoke => [ @write, '42704' ],
);

# which may be one of the others
push @{ $allowed{idem_call} }, map { @{ $allowed{$_} } } grep { $_ ne 'idem_call' } keys %allowed;

# From the catalogs, so that no function is forgotten, but for the one that needs Citus (t/069_shards.pl),
# and the one that only the planner can call.
my %function;
for (split /\n/, $node->safe_psql('postgres', <<'SQL'))
SELECT p.proname, p.prokind, p.pronargdefaults, p.prorettype = 'record'::regtype,
	(SELECT string_agg(coalesce(p.proargnames[i], '?') || ' ' || format_type(t, NULL), ',' ORDER BY i) FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY a(t, i)),
	has_function_privilege('public', p.oid, 'EXECUTE')
FROM pg_extension e
JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e' AND d.classid = 'pg_proc'::regclass
JOIN pg_proc p ON p.oid = d.objid
WHERE e.extname = 'idempotency' AND p.proname NOT IN ('idem_distribute', 'idem_tenant_support') ORDER BY p.proname, p.oid
SQL
{
	my ($name, $kind, $defaults, $row, $args) = split /\|/;

	ok(!$function{$name}, "function $name has one signature");
	$function{$name} = { name => $name, kind => $kind, row => $row eq 't', args => [ split /,/, $args ], defaults => $defaults };
}
is(join(' ', grep { !$allowed{$_} } sort keys %function), '', 'it is known what each function may raise');
is(join(' ', grep { !$function{$_} } sort keys %allowed), '', 'and each is there');
is(join(', ', uniq(grep { !generator($_) } map { @{ $_->{args} } } values %function)), '', 'it is known how to make each argument');

# ---------------------------------------------------------------- run

create_roles_and_functions($node);
my %granted = map { $_ => 1 } split /\n/,
  $node->safe_psql('postgres', q(SELECT DISTINCT proname FROM pg_proc WHERE proname LIKE 'idem%' AND has_function_privilege('fuzz_user', oid, 'EXECUTE')));
prepare_scripts(
	version => $version,
	functions => \%function,
	allowed => \%allowed,
	tables => create_trigger_tables($node),
	granted => \%granted);
my @sessions = map { make_script($_, "$dir/script$_.sql", $_ ? $calls / 5 : $calls, $samples) } 0 .. 2;

my $began = time();
$ENV{PGOPTIONS} = '-c client_min_messages=warning';
for my $s (@sessions)
{
	my $base = "$dir/session$s->{number}";

	$s->{run} = IPC::Run::start(
		[ 'psql', '-X', '-q', '-A', '-t', '-o', '/dev/null', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres'), '-f', $s->{file} ],
		'<', '/dev/null', '>', "$base.out", '2>', "$base.err");
}
for my $s (@sessions)
{
	$s->{run}->finish;
	is($s->{run}->result(0), 0, "session $s->{number} came to its end");
	like(slurp_file("$dir/session$s->{number}.out"), qr/^the end$/m, "session $s->{number} went on after each error");
}
my $total = sum0(map { $_->{calls} } @sessions);
note(sprintf '%d calls in %.1f s', $total, time() - $began);

# ---------------------------------------------------------------- what was said

my (%seen, %failed, @wrong, @internal);
for my $s (@sessions)
{
	my ($at);

	open my $err, '<', "$dir/session$s->{number}.err" or die $!;
	while (<$err>)
	{
		my ($nr, $level, $state, $message) = /^psql:.*?\.sql:(\d+): (ERROR|FATAL|PANIC|WARNING):\s+(\w{5}): (.*)/ or next;
		my $line = $s->{lines}[ $nr - 1 ];

		if ($level eq 'WARNING')
		{
			($state, $message) = $message =~ /^fuzz_try (\w{5}) (.*)/ or next;
		}
		$seen{$state}{ $line->{what} }++;
		$failed{ $line->{what} }++;
		push @internal, "$message: $line->{sql}" if $state =~ /^XX/;
		push @wrong, "session $s->{number}, line $nr, $line->{what}: $state: $message\n    $line->{sql}" unless $line->{may}{$state} && $level ne 'FATAL';
	}
	close $err;
}
my %made;
$made{ $_->{what} }++ for map { @{ $_->{lines} } } @sessions;
note('without an error: ', join ', ', map { sprintf '%s %.0f %%', $_, 100 - 100 * ($failed{$_} // 0) / $made{$_} } grep { $made{$_} } sort keys %function);

is(scalar(@internal), 0, 'no internal error') or diag(join "\n", @internal[ 0 .. min($#internal, 20) ]);
is(scalar(@wrong), 0, 'no error but those that are allowed') or diag(join "\n", @wrong[ 0 .. min($#wrong, 40) ]);
is(join(' ', grep { !$made{$_} || ($failed{$_} // 0) >= $made{$_} } sort grep { $_ ne 'idem_once' || $calls > 1000 } keys %function), '', 'each function has been called, and not always failed');
for my $state (sort keys %seen)
{
	my $by = $seen{$state};
	note("$state ", sum0(values %$by), ': ', join ', ', map { "$_ $by->{$_}" } sort { $by->{$b} <=> $by->{$a} || $a cmp $b } keys %$by);
}

my $log = slurp_file($node->logfile);
unlike($log, qr/terminated by signal|PANIC:|TRAP:|server process .* exited with exit code/, 'nothing crashed');
sql_is($node, 'postgres', "SELECT count(*) > 0, (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory') FROM idem_keys", 't|0', 'the server goes on, and no lock is left');

# ---------------------------------------------------------------- memory

# Bytes by context, from a fifth of the calls on, when the caches know all that they will.
my @memory;
for (slurp_file("$dir/session0.out") =~ /^memory (.*)$/mg)
{
	my ($n, $contexts, $process) = split;
	push @memory, { 'the process' => $process, map { /(.*)=(.*)/ } split /,/, $contexts };
	note(sprintf 'after %d calls: %.0f kB in %d kinds of memory contexts, %.0f kB of the process', $n, sum0(map { /=(.*)/ } split /,/, $contexts) / 1024, scalar(split /,/, $contexts), $process / 1024);
}
is(scalar(@memory), $samples, 'memory was looked at');
SKIP:
{
	skip 'too few calls to distinguish what is lost from what is kept', 1 if $calls < 20_000 || @memory < $samples;

	my %grown;
	for my $name (uniq(map { keys %$_ } @memory))
	{
		my @bytes = map { $_->{$name} // 0 } @memory[ $samples / 5 .. $samples - 1 ];
		my $growth = min(@bytes[ -3 .. -1 ]) - max(@bytes[ 0 .. 2 ]);

		# the allocator's own waste, in the process; caches may still meet what is new to them, and
		# the query that looks has a row for each context
		my $limit = $name eq 'the process' ? 2**22 : $name =~ /cache|plan|spi|index|rule|partition|function|constraint|smgr|pgstat|ExprContext|tuplestore/i ? 2**16 : 2**12;
		$grown{$name} = "@bytes" if $growth > $limit;
	}
	is(join(', ', sort keys %grown), '', 'no memory is lost') or diag(join "\n", map { "$_: $grown{$_}" } sort keys %grown);
}

$node->stop;
done_testing();
