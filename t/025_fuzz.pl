
# Every function, with random arguments and such as lie on a border, in random states
# of transactions, by sessions that get in each other's way: no crash, no error but
# those that a function is allowed, and no memory that is lost.
#
# One session makes IDEM_FUZZ_CALLS calls (100000 is the full run), two others a fifth
# of that each.  The calls are the same each time, IDEM_FUZZ_SEED makes others: a number,
# or "random".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use List::Util qw(max min shuffle sum0 uniq);
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

# ---------------------------------------------------------------- what is called

# A transaction may be aborted, or its statement cancelled; such errors are allowed
# where they can come about.  What else a function may raise: besides 22004 and
# 22023, this.  Those that wait or look for keys may have to be retried.
my @wait = qw(55P03 40P01 40001);
my @write = (@wait, '25006');
my @code_write = (@write, '23505');
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

# those that are called less often: they are slow, or change what all share
my %rare = map { $_ => 1 } qw(idem_purge idem_forget_scope idem_grant idem_revoke idem_stat_reset idem_digest idem_once);

sub pick { return $_[ rand @_ ] }
sub chance { return rand() < $_[0] }

sub literal
{
	my ($s) = @_;

	return "'$s'" unless $s =~ /[\\'\n\t]/;
	$s =~ s/([\\'])/\\$1/g;
	$s =~ s/\n/\\n/g;
	$s =~ s/\t/\\t/g;
	return "E'$s'";
}

my $serial = 0;
my %state;    # of the session whose script is made
my @odd_texts = (
	'NULL', q(''), q(' '), "repeat('x', 1024)", "repeat('x', 1025)", "repeat('\xc3\xa9', 512)", "repeat('\xc3\xa9', 513)",
	"repeat('\xf0\x9f\x98\x80', 256)", "repeat('\xf0\x9f\x98\x80', 257)", "'\xc3\xa9' || repeat('x', 63)", "repeat('x', 63) || '\xc3\xa9'",
	"repeat('x', 94) || '\xc3\xa9'", "repeat('y', 1000000)", literal("%s%n%d"), literal("a\nb\tc"), literal("it's \"quoted\" \\"),
	q(U&'\\200B'), q(chr(1)), q('null'));
my @odd_intervals = (
	'NULL', q('0'), q('1 us'), q('-1 us'), q('-1 day'), q('1 mon -29 days'), q('1 mon -30 days'), q('-1 mon 32 days'), q('-1 day 25 hours'),
	q('1 day -24 hours'), q('999 years 11 mons 29 days'), q('1000 years'), q('178000000 years'), q('-178000000 years'), q('2147483647 mons'),
	q('-2147483648 mons'), q('2147483647 days'), q('-2147483648 days'), q('2147483647 mons 2147483647 days 2562047788:00:54.775807'),
	q('2562047788:00:54.775807'), q('-2562047788:00:54.775807'), q('-2147483648 mons -2147483648 days -2562047788:00:54.775807'),
	q('10 years'), q('10 years 1 us'), q('999 us'), q('290000 years'), $version >= 17 ? (q('infinity'), q('-infinity')) : ());
my @odd_jsonbs = (
	'NULL', q('null'), q('""'), q('[]'), q('{}'), q('0'), q('-0'), q('-0.0'), q('1e400'), q('-1.5e-400'), q('1E5000'), q('10.00'), q('10'), q('1e1'),
	q('true'), q('"\\u00e9\\ud83d\\ude00\\u0001"'), q('{"": {"": ""}}'), q('{"a": [1, {"b": null}, "c"], "a": 2}'), q('[[[]], {}, [{}]]'),
	"(repeat('[', 1000) || repeat(']', 1000))::jsonb", "(repeat('{\"a\":', 1000) || '1' || repeat('}', 1000))::jsonb",
	"to_jsonb(repeat('x', 99990))", "to_jsonb(repeat('x', 102396))", "to_jsonb(repeat('x', 1000000))", "to_jsonb(ARRAY[repeat('\xc3\xa9', 300), NULL])",
	"(SELECT jsonb_object_agg('k' || i, i / 7.0) FROM generate_series(1, 300) i)");
my @odd_integers = ('NULL', '0', '1', '-1', '2147483647', '-2147483648');
my @odd_bigints = (@odd_integers, '9223372036854775807', '-9223372036854775808', '2147483648');
my @functions = ((map { literal($_) } (
	'fuzz_plus', 'fuzz_plus(int, int)', 'fuzz_plus(a int, b int)', 'public.fuzz_plus', 'fuzz_plus(int)', 'fuzz_two', 'fuzz_two(int)', 'fuzz_two(text)',
	'fuzz_fails', 'fuzz_rows', 'fuzz_rows', 'fuzz_none', 'fuzz_void', 'fuzz_large', 'fuzz_types', 'fuzz_types', 'fuzz_claims', 'fuzz_claims', 'fuzz_domain', 'fuzz_changes',
	'fuzz_variadic', 'fuzz_any', 'fuzz_procedure', 'fuzz_trigger', 'other.fuzz_plus', 'Other."Odd, Name(1)"', '"other"."Odd, Name(1)"', 'nosuch.fuzz_plus',
	'nosuch', 'fuzz_plus(nosuch)', 'fuzz_plus(', 'fuzz_plus)', 'fuzz_plus(int,)', '(int)', '', ' ', '.', '"', '""', 'a.b.c', 'a.b.c.d', '1', 'fuzz_plus (int,int) x',
	'fuzz_plus(int[])', 'fuzz_plus(variadic int)', 'fuzz_plus(out int)', 'fuzz_plus(setof int)', 'fuzz_plus(int,' . 'int,' x 100 . 'int)', 'count', 'row_number', 'now',
	'pg_catalog.int4in', 'pg_catalog.jsonb_build_object', 'idem_begin', 'idem_finish', 'idem_claim', 'idem_call', 'idem_once', 'idem_lookup', 'idem_throttle', 'fuzz_plus' . 's' x 2000, 'idem_purge')),
	"'\xc3\xa9\xc3\xa9'", 'NULL');
my @args = (map { literal($_) } (
	'{}', '{}', '{"a": 1}', '{"a": 1, "b": 2}', '{"a": "1", "b": 2.0}', '{"a": 2147483647, "b": 1}', '{"a": 1.5, "b": 1}', '{"a": null, "b": null}', '{"a": "x", "b": []}', '{"A": 1}',
	'{"": 1}', '{"a": 1, "c": 1}', '[]', '1', 'null', '"a"', '{"n": 3}', '{"n": 3}', '{"n": 200000}', '{"n": -1}', '{"n": 9223372036854775808}',
	'{"t": "2020-02-30"}', '{"t": "infinity", "l": [[1, 2], [3, 4]], "r": {"a": 1, "b": "x"}}', '{"l": [[1], [2, 3]]}', '{"l": {"a": 1}, "r": [1]}', '{"r": {"a": "x"}}',
	'{"j": {"x": [1, null]}, "l": [null], "r": {}}', '{"d": 1}', '{"d": -1}', '{"d": null}', '{"key": "k1"}', '{"key": "inner"}', '{"key": "k2", "scope": "s1", "request": {"a": 1}}',
	'{"key": "k3", "result": [1]}', '{"key": "k1", "function": "idem_call", "args": {"key": "k4", "function": "fuzz_plus", "args": {"a": 1}}}', '{"key": "k5", "period": "1 s"}'));

my @good_calls = map { [ map { literal($_) } @$_ ] } (
	[ 'fuzz_plus', '{"a": 1}' ], [ 'fuzz_plus(int, int)', '{"a": 1, "b": 2}' ], [ 'fuzz_two(text)', '{"a": "x"}' ], [ 'fuzz_rows', '{"n": 3}' ], [ 'fuzz_none', '{}' ], [ 'fuzz_void', '{}' ],
	[ 'fuzz_types', '{"l": [1, 2], "r": {"a": 1, "b": "x"}}' ], [ 'fuzz_types', '{"t": "infinity", "j": {"x": [1, null]}}' ], [ 'fuzz_claims', '{"key": "k1"}' ], [ 'fuzz_domain', '{"d": 1}' ],
	[ 'fuzz_changes', '{}' ], [ 'other.fuzz_plus', '{"a": 1}' ], [ 'idem_claim', '{"key": "inner", "ttl": "1 ms"}' ], [ 'idem_throttle', '{"key": "k5", "period": "1 s"}' ],
	[ 'idem_call', '{"key": "inner", "function": "fuzz_plus", "args": {"a": 1}}' ]);

# The keys are few, so that sessions meet.  What a transaction has called with is taken
# again; :fence, :token and :code are what psql has got last.
my %last;
sub key
{
	my ($kind) = @_;

	return $last{$kind} if defined $last{$kind} && chance(0.5);
	return $last{$kind} = chance(0.1) ? pick(@odd_texts) : chance(0.1) ? "'new " . ++$serial . "'" : "'k" . int(rand(5)) . "'";
}

sub scope
{
	my ($kind) = @_;

	return $last{$kind} if exists $last{$kind} && chance(0.7);
	return $last{$kind} = chance(0.05) ? pick(@odd_texts) : pick('NULL', 'NULL', q('s1'));
}

sub array
{
	my @elems = map { key('of many') } 1 .. pick(1, 2, 5);

	return pick('NULL', q('{}'), q('{NULL}'), q('{{k1,k2},{k3,k4}}'), q('[5:6]={k1,k2}'), q('[0:1][-1:0]={{a,b},{c,d}}'), q(ARRAY['k1', NULL]),
		q(ARRAY['k1', '']), q(ARRAY['k1', repeat('x', 1025)]), 'ARRAY(SELECT $$many $$ || i % 400 FROM generate_series(1, 500) i)')
	  if chance(0.3);
	return 'ARRAY[' . join(', ', @elems) . ']::text[]';
}

sub or_odd { my ($odd, @usual) = @_; return chance(0.2) ? pick(@$odd) : pick(@usual) }
sub brief { return or_odd(\@odd_intervals, 'NULL', q('1 ms'), q('20 ms'), q('200 ms'), q('1 day')) }
sub json { return or_odd(\@odd_jsonbs, 'NULL', 'NULL', q('{"a": 1}'), q('{"a": 1.0}'), q('{"b": [true, null]}')) }

# JSON as text, and what is nearly JSON
sub text_json
{
	my $json = json();

	return $json if $json eq 'NULL';
	return "($json)::jsonb::text" if chance(0.5);
	return pick(q('1e400000'), q('"\\u0000"'), q('"\\ud83d"'), q('{"a": '), "repeat('[', 100000)", "repeat('[', 300) || repeat(']', 300)", "repeat('9', 200000)", q('{"status": 200, "headers": {}, "body": ""}'));
}

# How an argument is made, by name; by name and type where two are called the same.
my %argument = (
	key => sub { key('key') },
	keys => \&array,
	scope => sub { scope('scope') },
	ttl => \&brief,
	request => \&json,
	result => \&json,
	progress => \&json,
	payload => \&json,
	lease => sub { or_odd(\@odd_intervals, 'NULL', q('1 ms'), q('1 s')) },
	wait => sub { or_odd(\@odd_intervals, 'NULL', q('0'), q('1 ms'), q('5 ms')) },
	fence => sub { or_odd(\@odd_bigints, 'NULL', 'NULL', ':fence', ':fence') },
	phase => sub { or_odd(\@odd_texts, q('p1'), q('p2'), q('p3')) },
	function => sub {
		return pick(@functions) if chance(0.5);
		(my $name, $state{args}) = @{ pick(@good_calls) };
		return $name;
	},
	args => sub { delete $state{args} // or_odd(\@odd_jsonbs, 'NULL', @args) },
	purpose => sub { or_odd(\@odd_texts, q('login'), q('login'), q('pay')) },
	subject => sub { or_odd(\@odd_texts, q('ada'), q('ada'), q('bob'), 'NULL') },
	token => sub { or_odd(\@odd_texts, q(:'token'), q(:'token'), q(repeat('A', 43))) },
	code => sub { or_odd(\@odd_texts, q(:'code'), q(:'code'), q('0000')) },
	digits => sub { or_odd(\@odd_integers, 'NULL', '4', '10', '3', '11') },
	max_attempts => sub { or_odd(\@odd_integers, 'NULL', '3', '1000000') },
	period => sub { or_odd(\@odd_intervals, q('1 ms'), q('10 ms'), q('1 hour')) },
	max_calls => sub { or_odd(\@odd_integers, 'NULL', '2', '100') },
	cost => sub { or_odd(\@odd_integers, 'NULL', '2') },
	role => sub { pick(q('fuzz_target'), q('fuzz_target'), q('"Fuzz ""Target"""'), 'NULL', '0::oid::regrole', '4294967295::oid::regrole') },
	jobs => sub {
		pick('NULL', q('{}'), q('{NULL}'), q('{claims,nosuch}'), q('{""}'), q('{claims,claims,call}'), q('{{call},{operate}}'), q('[3:3]={tokens}'),
			"ARRAY[repeat('x', 100000)]", q('{claims,call,throttle,tokens,lookup,operate}'));
	},
	batch_size => sub { pick(@odd_integers, '10') },
	max_rows => sub { pick(@odd_bigints, '10') },
	max_duration => sub { or_odd(\@odd_intervals, 'NULL', q('1 ms')) },
	'request text' => sub { chance(0.5) ? text_json() : or_odd(\@odd_texts, q('r'), q('{"a": 1}')) },
	body => sub { or_odd(\@odd_texts, 'NULL', q('b'), text_json()) },
	headers => sub { or_odd(\@odd_texts, 'NULL', 'NULL', q('{}'), q('{"Content-Type": "text/plain", "Date": "now"}'), q('{"Connection": "a,, b", "A": "1"}'), q('{"A": 1}'), q('{"A b": "c"}'), q('{"A": "\\n"}'), text_json()) },
	status => sub { or_odd(\@odd_integers, '200', '200', '201', '404', '429', '503') },
	error => \&json,
	keep_errors => sub { pick('NULL', 'NULL', 'NULL', q('{P0001}'), q('{22,23514}'), q('{}'), q('{NULL}'), q('{40}'), q('{{22},{23}}'), q('{nosuch}'), q('{P0001,P0001,42}')) },
	ttl_s => sub { or_odd(\@odd_integers, 'NULL', 'NULL', '1', '60') },
	wait_ms => sub { or_odd([ grep { $_ ne '2147483647' } @odd_integers ], 'NULL', '0', '5') },
	lease_ms => sub { or_odd(\@odd_integers, 'NULL', 'NULL', '1', '1000') },
	'keys bigint' => sub { pick(@odd_bigints) },
	tokens => sub { pick(@odd_bigints) },
	codes => sub { pick(@odd_bigints) });

# From the catalogs, so that no function is forgotten.
my %function;
for (split /\n/, $node->safe_psql('postgres', <<'SQL'))
SELECT p.proname, p.prokind, p.pronargdefaults, p.prorettype = 'record'::regtype,
	(SELECT string_agg(coalesce(p.proargnames[i], '?') || ' ' || format_type(t, NULL), ',' ORDER BY i) FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY a(t, i)),
	has_function_privilege('public', p.oid, 'EXECUTE')
FROM pg_extension e
JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e' AND d.classid = 'pg_proc'::regclass
JOIN pg_proc p ON p.oid = d.objid
WHERE e.extname = 'idempotency' ORDER BY p.proname, p.oid
SQL
{
	my ($name, $kind, $defaults, $row, $args) = split /\|/;

	ok(!$function{$name}, "function $name has one signature");
	$function{$name} = { name => $name, kind => $kind, row => $row eq 't', args => [ split /,/, $args ], defaults => $defaults };
}
is(join(' ', grep { !$allowed{$_} } sort keys %function), '', 'it is known what each function may raise');
is(join(' ', grep { !$function{$_} } sort keys %allowed), '', 'and each is there');
is(join(', ', uniq(grep { !generator($_) } map { @{ $_->{args} } } values %function)), '', 'it is known how to make each argument');

sub generator { my ($name) = split / /, $_[0]; return $argument{ $_[0] } || $argument{$name} }

my @names = map { ($_) x ($rare{$_} ? 1 : 8) } sort grep { $allowed{$_} } keys %function;

# f(...), with some or all of the arguments, in order or by name
sub expression
{
	my ($f, $all, %value) = @_;
	my @args = @{ $f->{args} };
	my $given = $all ? @args : @args - int(rand($f->{defaults} + 1));

	my @values = map { $value{ ($_ =~ /^(\S+)/)[0] } // generator($_)->() } @args;
	if (!$all && chance(0.4))
	{
		my @chosen = grep { $_ < @args - $f->{defaults} || chance(0.4) } 0 .. $#args;
		return "$f->{name}(" . join(', ', map { ($args[$_] =~ /^(\S+)/)[0] . " => $values[$_]" } shuffle(@chosen)) . ')';
	}
	return "$f->{name}(" . join(', ', @values[ 0 .. $given - 1 ]) . ')';
}

# ---------------------------------------------------------------- a session's script

# What each line of the script may raise, and what it calls.  One line is one statement.
my ($script, @lines);

sub line
{
	my ($sql, $what, @may) = @_;

	print $script "$sql\n";
	push @may, '25P02' if $state{block};
	push @may, '57014' if $state{timeout};
	# BEGIN itself may have failed
	push @may, '25P01' if $state{timeout} || $state{chained};
	# the predicate locks of another transaction can make any statement fail
	push @may, '40001' if $state{serializable};
	push @lines, { what => $what, sql => length $sql > 500 ? substr($sql, 0, 500) . '...' : $sql, may => { map { $_ => 1 } @may }, role => $state{role} };
	return;
}

sub may_raise
{
	my ($name) = @_;

	# no one but their owner
	return ('42501') if $state{role} && !$state{role}{$name};
	return ('22004', '22023', @{ $allowed{$name} });
}

my %trigger_table;    # name => columns, and what else it may raise
my @tables;

sub change_table
{
	my $name = pick(@tables);
	my $t = $trigger_table{$name};
	my $value = $t->{value} // sub { pick(0 .. 9) };
	my $row = sub { '(' . join(', ', $value->(), pick(q('a'), q('b')), pick(q('x'), 'NULL', q(''))) . ')' };
	my @may = (@write, qw(23505 21000), @{ $t->{may} // [] });
	my $sql = pick(
		"INSERT INTO $name VALUES " . $row->(),
		"INSERT INTO $name VALUES " . join(', ', map { $row->() } 1 .. 4),
		"INSERT INTO $name VALUES " . $row->() . ' ON CONFLICT DO NOTHING',
		"UPDATE $name SET id = " . $value->() . ' WHERE id = ' . $value->(),
		"UPDATE $name SET region = " . pick(q('a'), q('b')) . ', id = id WHERE id = ' . $value->(),
		"UPDATE $name SET region = CASE region WHEN 'a' THEN 'b' ELSE 'a' END",
		"DELETE FROM $name WHERE region = " . pick(q('a'), q('b')),
		"DELETE FROM $name",
		"MERGE INTO $name t USING (VALUES " . $row->() . ') s(id, region, body) ON t.id = s.id WHEN MATCHED THEN UPDATE SET region = s.region, id = s.id WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.region, s.body)');

	@may = qw(42501 25006) if $state{role} && !$state{role}{idem_claim};
	push @{ $state{at_commit} }, @may if $t->{deferred};
	return call($sql, 'idem_once', @may);
}

# Straight, or caught by a function's exception block
sub call
{
	my ($sql, $name, @may) = @_;

	$state{calls}++;
	if (chance(0.1) && $sql !~ /:/)
	{
		return line('SELECT fuzz_try($fuzz$' . $name . '$fuzz$, $fuzz$' . "$sql" . '$fuzz$);', $name, @may, $state{timeout} ? '57014' : ());
	}
	return line("$sql;", $name, @may);
}

sub random_call
{
	return change_table() if chance(0.06);

	my $name = pick(@names);
	# two sessions that grant at once fail in PostgreSQL itself
	$name = pick(@names) while $state{number} > 0 && $name =~ /grant|revoke/;
	# most of what needs a claim gets one
	$name = 'idem_begin' if $name =~ /finish|release|extend|checkpoint/ && chance(0.5);
	my $f = $function{$name};
	my @may = may_raise($name);

	if ($f->{kind} eq 'p')
	{
		return call('CALL ' . expression($f), $name, @may);
	}
	if ($name eq 'idem_begin' && chance(0.7))
	{
		$state{calls}++;
		return line('SELECT coalesce(fence, :fence) AS fence FROM ' . expression($f) . ' \gset', $name, @may);
	}
	if ($name =~ /_(token|code)_issue/ && chance(0.7))
	{
		$state{calls}++;
		return line('SELECT ' . expression($f) . " AS $1 \\gset", $name, @may);
	}
	if ($state{block} && chance(0.05))
	{
		my $hold = chance(0.3) && !$state{timeout} ? 'WITH HOLD ' : '';

		push @{ $state{at_commit} }, @may if $hold;
		$state{calls}++;
		line('DECLARE c' . ++$serial . " CURSOR ${hold}FOR SELECT " . expression($f) . ' FROM generate_series(1, 3);', $name, @may);
		push @{ $state{cursors} }, $serial;
		return line(pick('FETCH 1', 'FETCH ALL') . " FROM c$serial;", $name, @may, '34000') if chance(0.8);
		return;
	}
	if (chance(0.1) && $name ne 'idem_once')
	{
		my $sql = expression($f, 1);

		$sql = expression($f, 1) while $sql =~ /SELECT/;
		return call('EXECUTE p_' . $sql =~ s/\(\)$//r, $name, @may);
	}
	return call('SELECT * FROM ' . expression($f), $name, @may) if $name ne 'idem_once' && chance(0.5);
	return call('SELECT (' . expression($f) . ').*', $name, @may) if $f->{row} && chance(0.2);
	return call('SELECT ' . expression($f) . ' FROM generate_series(1, 3)', $name, @may) if chance(0.1);
	return call('SELECT ' . expression($f), $name, @may);
}

# What applications do: a claim, and what becomes of it, in this transaction or, of a
# lease, a later one.
sub flow
{
	my $again = $state{lease} && chance(0.4);
	my %value = $again ? %{ $state{lease} } : (key => pick("'k" . int(rand(5)) . "'", "'flow " . ++$serial . "'"), scope => pick('NULL', 'NULL', q('s1')));

	if (!$again)
	{
		my $lease = chance(0.4) ? pick(q('1 ms'), q('20 ms'), q('1 s')) : 'NULL';

		$value{fence} = $lease eq 'NULL' ? 'NULL' : pick('NULL', ':fence');
		$state{calls}++;
		line('SELECT coalesce(fence, :fence) AS fence FROM ' . expression($function{idem_begin}, 1, %value, lease => $lease, ttl => pick('NULL', q('20 ms')), wait => pick('NULL', q('2 ms'))) . ' \gset', 'idem_begin', may_raise('idem_begin'));
		$state{lease} = $lease eq 'NULL' ? undef : { %value, fence => ':fence' };
	}
	for my $name (grep { chance(0.3) } qw(idem_extend idem_checkpoint idem_checkpoint idem_release))
	{
		next if $name =~ /extend|checkpoint/ && !$state{lease};
		call('SELECT ' . expression($function{$name}, 1, %value, lease => q('1 s'), progress => q('{"n": 1}')), $name, may_raise($name));
	}
	call('SELECT ' . expression($function{idem_finish}, 1, %value), 'idem_finish', may_raise('idem_finish')) if chance(0.7);
	return;
}

# In a block that commits and rolls back by itself
sub do_block
{
	my @names = map { my $n = pick(@names); $n = pick(@names) while $n =~ /once|grant|revoke|purge/; $n } 1 .. 3;
	my @sql = map { 'PERFORM ' . expression($function{$_}) } @names;

	return random_call() if "@sql" =~ /:[a-z']/;
	$state{calls} += @sql;
	return line('DO $do$ BEGIN ' . join('; ', map { ($_, pick('COMMIT', 'ROLLBACK')) } @sql) . '; END $do$;', 'DO', 'ID005', map { may_raise($_) } @names);
}

my @settings = (
	q(lock_timeout = '1ms'), q(synchronous_commit = off), q(idempotency.default_ttl = '1s'), q(idempotency.default_ttl = -1),
	q(idempotency.max_result_size = 0), q(idempotency.purge_batch_size = 1), q(TimeZone = 'America/St_Johns'), q(IntervalStyle = 'sql_standard'),
	q(DateStyle = 'German'), q(search_path = other, public), q(enable_indexscan = off), q(work_mem = '64kB'), q(idempotency.retry_after = 1));

sub unit
{
	my $prepared;

	# what the last transaction was about may be taken up by the next
	%last = () if chance(0.5);
	@state{qw(block timeout serializable role at_commit cursors)} = (0, 0, 0, undef, [], []);

	# or all keys would be finished in the end, for a thousand years
	if (chance(0.02))
	{
		$state{calls}++;
		line('SELECT idem_forget_scope(' . pick(q(''), q('s1')) . ');', 'idem_forget_scope', @write);
	}
	# roles: all jobs, none, or everything
	if (chance(0.15))
	{
		my $role = pick(qw(fuzz_user fuzz_user fuzz_nobody));
		line("SET ROLE $role;", 'SET');
		$state{role} = $role eq 'fuzz_user' ? \%{ $state{granted} } : {};
	}
	if (chance(0.05))
	{
		line('SET statement_timeout = 1;', 'SET');
		$state{timeout} = 1;
	}

	if (chance(0.3))
	{
		(chance(0.1) ? do_block() : random_call()) for 1 .. pick(1, 3, 6);
	}
	else
	{
		my $savepoints = 0;

		line('\set ON_ERROR_ROLLBACK ' . pick(('on') x 5, 'off'), 'psql');
		$state{serializable} = 0;
		my $level = pick('', '', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE');
		line('BEGIN' . ($level ? " ISOLATION LEVEL $level" : '') . (chance(0.1) ? ' READ ONLY' : '') . ';', 'BEGIN');
		$state{block} = 1;
		$state{serializable} = $level eq 'SERIALIZABLE';
		for (1 .. pick(1, 3, 6, 12))
		{
			my $r = rand();

			if ($r < 0.05) { line('SAVEPOINT s' . $savepoints++ . ';', 'SAVEPOINT') }
			elsif ($r < 0.09 && $savepoints) { line('ROLLBACK TO s' . int(rand($savepoints)) . ';', 'ROLLBACK TO', '3B001') }
			elsif ($r < 0.12 && $savepoints) { line('RELEASE s' . int(rand($savepoints)) . ';', 'RELEASE', '3B001') }
			elsif ($r < 0.14) { line('SET LOCAL ' . pick(@settings) . ';', 'SET') unless $state{role} }
			elsif ($r < 0.16) { line('INSERT INTO orders VALUES (' . int(rand(100)) . ');', 'INSERT', '25006', '42501') }
			elsif ($r < 0.17) { line('SELECT 1 / 0;', 'SELECT', '22012') }
			# others are to meet what is open
			elsif ($r < 0.4 && $state{number}) { line('SELECT pg_sleep(0.01);', 'SELECT') }
			elsif ($r < 0.18 && !$state{role}) { line('SELECT count(*) FROM ' . pick('idem_stat', 'idem_in_flight') . ';', 'view') }
			elsif ($r < 0.20 && @{ $state{cursors} }) { line('FETCH ALL FROM c' . pick(@{ $state{cursors} }) . ';', 'FETCH', '34000', '55000', map { @$_, '22004', '22023', '42501' } values %allowed) }
			elsif ($r < 0.6) { random_call() }
			else { flow() }
		}

		# a deferred trigger, the functions of a held cursor, the guard
		my @may = (@wait, 'ID005', @{ $state{at_commit} });
		my $r = rand();
		$state{block} = $state{at_commit} && @{ $state{at_commit} } ? 1 : 0;
		if ($r < 0.6) { line('COMMIT;', 'COMMIT', @may) }
		elsif ($r < 0.65) { line('COMMIT AND CHAIN;', 'COMMIT', @may); @state{qw(block chained)} = (1, 1); random_call(); line('ROLLBACK;', 'ROLLBACK') }
		elsif ($r < 0.75)
		{
			# an aborted one is rolled back, and then there is none; 53200: too many
			line("PREPARE TRANSACTION 'x$state{number}';", 'PREPARE', @may, qw(0A000 42710 55000));
			$state{block} = 0;
			random_call() if chance(0.3);
			line(pick('COMMIT', 'ROLLBACK') . " PREPARED 'x$state{number}';", 'PREPARED', '42704', '42501', '55000');
			$prepared = $state{role};
		}
		else { line('ROLLBACK;', 'ROLLBACK') }
	}

	# from here on nothing may fail but the end of a transaction that failed to end
	@state{qw(block chained serializable)} = (0, 0, 0);
	line('ROLLBACK;', 'ROLLBACK') if chance(0.05);
	if ($state{timeout})
	{
		# these may be cancelled as well
		$state{block} = 1;
		(line('ROLLBACK;', 'ROLLBACK'), line('SET statement_timeout = 0;', 'SET')) for 1 .. 5;
		@state{qw(block timeout)} = (0, 0);
	}
	line('RESET ROLE;', 'SET') if $state{role};
	$state{role} = undef;
	line('CLOSE ALL;', 'CLOSE') if @{ $state{cursors} };
	# the role may not have been allowed to
	line("ROLLBACK PREPARED 'x$state{number}';", 'PREPARED', '42704', '55000') if $prepared;
	line('CREATE OR REPLACE FUNCTION fuzz_changes(a int DEFAULT 1) RETURNS int LANGUAGE sql AS $$ SELECT a + ' . int(rand(100)) . ' $$;', 'CREATE') if $state{number} == 0 && chance(0.005);
	return;
}

# Write a script; what it may raise, by line
sub make_script
{
	my ($number, $ncalls, $granted) = @_;
	my $step = $ncalls / $samples;

	@lines = ();
	%state = (number => $number, calls => 0, granted => $granted, block => 0);
	open $script, '>', "$dir/script$number.sql" or die $!;
	line($_, 'psql') for ('\set fence 1', '\set token x', '\set code 1234');
	line("SET lock_timeout = '30ms';", 'SET');
	for my $f (map { $function{$_} } sort keys %function)
	{
		next if $f->{kind} eq 'p' || $f->{name} eq 'idem_once';
		my @types = map { s/^\S+ //r } @{ $f->{args} };
		line("PREPARE p_$f->{name}" . (@types ? '(' . join(', ', @types) . ')' : '') . " AS SELECT * FROM $f->{name}(" . join(', ', map { "\$$_" } 1 .. @types) . ');', 'PREPARE');
	}
	my $sampled = 0;
	while ($state{calls} < $ncalls)
	{
		unit();
		next if $state{calls} < ($sampled + 1) * $step || $number;
		$sampled++;
		line('SELECT * FROM fuzz_memory() \gset', 'memory');
		line('\echo memory ' . $state{calls} . ' :contexts :anonymous', 'psql');
	}
	line("SELECT 'the end' AS the_end \\gset", 'SELECT');
	line('\echo :the_end', 'psql');
	close $script;
	return [@lines];
}

# ---------------------------------------------------------------- the server's side

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE fuzz_user;
CREATE ROLE fuzz_nobody;
CREATE ROLE fuzz_target;
CREATE ROLE "Fuzz ""Target""";
SELECT idem_grant('fuzz_user', '{claims,call,throttle,tokens,lookup,operate}');
CREATE SCHEMA other;
GRANT USAGE ON SCHEMA public, other TO fuzz_user, fuzz_nobody;
CREATE TABLE orders (id int);
GRANT ALL ON orders TO fuzz_user;

CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE FUNCTION fuzz_plus(a int, b int DEFAULT 1) RETURNS int LANGUAGE sql AS 'SELECT a + b';
CREATE FUNCTION other.fuzz_plus(a int) RETURNS int LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION other."Odd, Name(1)"("A" int DEFAULT 3) RETURNS int LANGUAGE sql AS 'SELECT "A"';
CREATE FUNCTION fuzz_two(a int) RETURNS int LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION fuzz_two(a text) RETURNS text LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION fuzz_fails() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE 'it fails'; END $$;
CREATE FUNCTION fuzz_rows(n int DEFAULT 2) RETURNS TABLE (a int, b text) LANGUAGE sql AS 'SELECT i, i::text FROM generate_series(1, least(n, 1000)) i';
CREATE FUNCTION fuzz_none() RETURNS SETOF pair LANGUAGE sql AS 'SELECT 1, NULL LIMIT 0';
CREATE FUNCTION fuzz_void() RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION fuzz_large(n bigint DEFAULT 10) RETURNS text LANGUAGE sql AS $$ SELECT repeat('x', n::int) $$;
CREATE FUNCTION fuzz_types(t date DEFAULT NULL, l int[] DEFAULT '{1}', r pair DEFAULT NULL, j jsonb DEFAULT NULL, OUT s text, OUT u pair) LANGUAGE sql AS $$ SELECT concat(t, l, r, j), r $$;
CREATE FUNCTION fuzz_claims(key text) RETURNS boolean LANGUAGE sql AS $$ SELECT public.idem_claim(key) $$;
CREATE FUNCTION fuzz_domain(d positive DEFAULT 1) RETURNS positive LANGUAGE sql AS $$ SELECT d $$;
CREATE FUNCTION fuzz_changes(a int DEFAULT 1) RETURNS int LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION fuzz_variadic(VARIADIC a int[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION fuzz_any(a anyelement) RETURNS anyelement LANGUAGE sql AS 'SELECT a';
CREATE PROCEDURE fuzz_procedure(a int) LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION fuzz_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';

-- what a call raised, told and forgotten
CREATE FUNCTION fuzz_try(name text, call text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE call;
EXCEPTION WHEN OTHERS THEN
	RAISE WARNING 'fuzz_try % %', SQLSTATE, SQLERRM;
END $$;

-- bytes of all memory contexts, and of the process
CREATE FUNCTION fuzz_memory(OUT contexts text, OUT anonymous bigint) LANGUAGE plpgsql AS $$
BEGIN
	contexts := (SELECT string_agg(name || '=' || bytes, ',') FROM (SELECT translate(name, ', =', '') AS name, sum(used_bytes) AS bytes FROM pg_backend_memory_contexts GROUP BY 1) c);
	anonymous := 1024 * substring(pg_read_file('/proc/self/smaps_rollup') FROM 'Anonymous:\s+(\d+)')::bigint;
EXCEPTION WHEN undefined_file THEN
	anonymous := 0;
END $$;
SQL

# Tables with the trigger, good ones and bad ones
my @bad = qw(22023 39P01 0A000);
%trigger_table = (
	t_raise => {},
	t_skip => {},
	t_deferred => { deferred => 1 },
	t_parts => {},
	t_parts_skip => { may => ['39P01'] },
	t_types => { value => sub { pick('1', '1.0', '1.00', q('NaN'::numeric), 'NULL::numeric', '1e100', '-0.0', "repeat('9', 1020)::numeric", "repeat('9', 1030)::numeric") }, may => ['22023'] });
my %triggers = (
	t_raise => "AFTER INSERT OR UPDATE ON t_raise FOR EACH ROW EXECUTE FUNCTION idem_once('id', '20 ms')",
	t_skip => "BEFORE INSERT OR UPDATE ON t_skip FOR EACH ROW EXECUTE FUNCTION idem_once('id,body', '20 ms', 'skip')",
	t_parts => "AFTER INSERT OR UPDATE OR DELETE ON t_parts FOR EACH ROW EXECUTE FUNCTION idem_once('id', '20 ms')",
	t_parts_skip => "BEFORE INSERT OR UPDATE ON t_parts_skip FOR EACH ROW EXECUTE FUNCTION idem_once('id', '20 ms', 'skip')",
	t_types => "AFTER INSERT OR UPDATE ON t_types FOR EACH ROW EXECUTE FUNCTION idem_once('id', '20 ms', NULL, 's1')");
my @bad_arguments = ('', q(''), 'NULL', q('nosuch'), q('id,'), q('"'), q('id', '0'), q('id', 'nosuch'), q('id', '1 mon -29 days'), q('id', NULL, 'nosuch'), q('id', NULL, 'skip'),
	"'id', NULL, NULL, '" . 'x' x 1025 . "'", q('id', '', '', '', 'more'), q('id,id,region,body,id'), q('body'), q('ctid'));
for my $name (keys %trigger_table)
{
	my $parts = $name =~ /parts/;
	my $type = $name eq 't_types' ? 'numeric' : 'int';

	$node->safe_psql('postgres', "CREATE TABLE $name (id $type, region text, body text)" . ($parts ? ' PARTITION BY LIST (region)' : ''));
	$node->safe_psql('postgres', join '', map { "CREATE TABLE ${name}_$_ PARTITION OF $name FOR VALUES IN ('$_');" } qw(a b)) if $parts;
	$node->safe_psql('postgres', "CREATE TRIGGER once $triggers{$name}") if $triggers{$name};
	$node->safe_psql('postgres', "GRANT ALL ON $name TO fuzz_user");
}
$node->safe_psql('postgres', "CREATE CONSTRAINT TRIGGER once AFTER INSERT ON t_deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION idem_once('id', '20 ms')");
for my $i (0 .. $#bad_arguments + 3)
{
	my $name = "t_bad$i";
	my $how = $i <= $#bad_arguments ? "AFTER INSERT OR UPDATE OR DELETE ON $name FOR EACH ROW EXECUTE FUNCTION idem_once($bad_arguments[$i])"
	  : (
		"BEFORE INSERT ON $name FOR EACH STATEMENT EXECUTE FUNCTION idem_once('id')",
		"BEFORE INSERT ON $name FOR EACH ROW EXECUTE FUNCTION idem_once('id')",
		"AFTER INSERT ON $name FOR EACH ROW EXECUTE FUNCTION idem_once('g')")[ $i - $#bad_arguments - 1 ];

	$node->safe_psql('postgres', "CREATE TABLE $name (id int, region text, body text, g int GENERATED ALWAYS AS (id + 1) STORED); CREATE TRIGGER once $how; GRANT ALL ON $name TO fuzz_user");
	$trigger_table{$name} = { may => \@bad };
}
@tables = ((grep { !/bad/ } sort keys %trigger_table) x 5, grep { /bad/ } sort keys %trigger_table);

# ---------------------------------------------------------------- run

my %granted = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', q(SELECT DISTINCT proname FROM pg_proc WHERE proname LIKE 'idem%' AND has_function_privilege('fuzz_user', oid, 'EXECUTE')));
my @sessions;
for my $number (0 .. 2)
{
	push @sessions, { number => $number, lines => make_script($number, $number ? $calls / 5 : $calls, \%granted), calls => $state{calls} };
}

my $began = time();
$ENV{PGOPTIONS} = '-c client_min_messages=warning';
for my $s (@sessions)
{
	my $base = "$dir/session$s->{number}";

	$s->{run} = IPC::Run::start(
		[ 'psql', '-X', '-q', '-A', '-t', '-o', '/dev/null', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres'), '-f', "$dir/script$s->{number}.sql" ],
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
	skip 'too few calls to tell what is lost from what is kept', 1 if $calls < 20_000 || @memory < $samples;

	my %grown;
	for my $name (uniq(map { keys %$_ } @memory))
	{
		my @bytes = map { $_->{$name} // 0 } @memory[ $samples / 5 .. $samples - 1 ];
		my $growth = min(@bytes[ -3 .. -1 ]) - max(@bytes[ 0 .. 2 ]);

		# the allocator's own waste, in the process; caches may still meet what is new to them
		my $limit = $name eq 'the process' ? 2**22 : $name =~ /cache|plan|spi|index|rule|partition|function|constraint|smgr|pgstat/i ? 2**16 : 2**12;
		$grown{$name} = "@bytes" if $growth > $limit;
	}
	is(join(', ', sort keys %grown), '', 'no memory is lost') or diag(join "\n", map { "$_: $grown{$_}" } sort keys %grown);
}

$node->stop;
done_testing();
