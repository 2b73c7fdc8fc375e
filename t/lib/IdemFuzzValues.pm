
# What the fuzzer calls with: for each argument, by its name, usual values and such as lie on
# a border.

package IdemFuzzValues;

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw(pick chance next_number new_keys generator know_version);

sub pick { return $_[ rand @_ ] }
sub chance { return rand() < $_[0] }

# For names that nobody had yet.
my $serial = 0;
sub next_number { return ++$serial }

sub literal
{
	my ($s) = @_;

	return "'$s'" unless $s =~ /[\\'\n\t]/;
	$s =~ s/([\\'])/\\$1/g;
	$s =~ s/\n/\\n/g;
	$s =~ s/\t/\\t/g;
	return "E'$s'";
}

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
	q('10 years'), q('10 years 1 us'), q('999 us'), q('290000 years'));
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
sub new_keys { %last = (); return }

sub key
{
	my ($kind) = @_;

	return $last{$kind} if defined $last{$kind} && chance(0.5);
	return $last{$kind} = chance(0.1) ? pick(@odd_texts) : chance(0.1) ? "'new " . next_number() . "'" : "'k" . int(rand(5)) . "'";
}

sub scope
{
	my ($kind) = @_;

	return $last{$kind} if exists $last{$kind} && chance(0.7);
	return $last{$kind} = chance(0.05) ? pick(@odd_texts) : pick('NULL', 'NULL', q('s1'));
}

# how many elements a batch has, as far as they are to fit
my $elements = 1;

sub array
{
	$elements = pick(1, 2, 5);
	my @elems = map { key('of many') } 1 .. $elements;

	return pick('NULL', q('{}'), q('{NULL}'), q('{{k1,k2},{k3,k4}}'), q('[5:6]={k1,k2}'), q('[0:1][-1:0]={{a,b},{c,d}}'), q(ARRAY['k1', NULL]),
		q(ARRAY['k1', '']), q(ARRAY['k1', repeat('x', 1025)]), 'ARRAY(SELECT $$many $$ || i % 400 FROM generate_series(1, 500) i)')
	  if chance(0.3);
	return 'ARRAY[' . join(', ', @elems) . ']::text[]';
}

# what belongs to each key of a batch
sub beside_keys
{
	my ($type, $make) = @_;

	return pick('NULL', 'NULL', 'NULL', q('{}'), q('{NULL}')) if chance(0.7);
	return 'ARRAY[' . join(', ', map { $make->() } 1 .. $elements) . "]::${type}[]";
}

sub or_odd { my ($odd, @usual) = @_; return chance(0.2) ? pick(@$odd) : pick(@usual) }
sub brief { return or_odd(\@odd_intervals, 'NULL', q('1 ms'), q('20 ms'), q('200 ms'), q('1 day')) }
sub moment { return pick('NULL', 'NULL', q('now'), q('-infinity'), q('infinity'), q('4713-11-24 BC'), q('2000-01-01'), q('294276-12-31'), q('yesterday'), q('tomorrow')) }
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
my $next_args;    # that suit the function which was picked
my %argument = (
	key => sub { key('key') },
	keys => \&array,
	scope => sub { scope('scope') },
	ttl => \&brief,
	request => \&json,
	result => \&json,
	error => \&json,
	progress => \&json,
	payload => \&json,
	lease => sub { or_odd(\@odd_intervals, 'NULL', q('1 ms'), q('1 s')) },
	# a wait for a lease may last, and no other session is there to end it
	wait => sub { or_odd([ 'NULL', q('1 us'), q('999 us'), q('-1 us'), q('-1 day'), q('1 mon -30 days'), q('-2147483648 mons') ], 'NULL', q('0'), q('1 ms'), q('5 ms')) },
	fence => sub { or_odd(\@odd_bigints, 'NULL', 'NULL', ':fence', ':fence') },
	phase => sub { or_odd(\@odd_texts, q('p1'), q('p2'), q('p3')) },
	function => sub {
		return pick(@functions) if chance(0.5);
		(my $name, $next_args) = @{ pick(@good_calls) };
		return $name;
	},
	keep_errors => sub { pick('NULL', 'NULL', q('{}'), q('{22,23,P0001}'), q('{22012}'), q('{40}'), q('{NULL}'), q('{""}'), q('{{23},{22}}'), q('{XX000}'), q('{2350}'), q('{0A,22,23,42,P0}')) },
	args => sub { my $fitting = $next_args; undef $next_args; return $fitting // or_odd(\@odd_jsonbs, 'NULL', @args) },
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
	results => sub { beside_keys('jsonb', \&json) },
	requests => sub { beside_keys('jsonb', \&json) },
	scopes => sub { beside_keys('text', sub { scope('scope') }) },
	created_at => sub { chance(0.5) ? 'NULL' : moment() },
	expires_at => \&moment,
	failed => sub { pick('NULL', 'true', 'false') },
	'created_at timestamp with time zone[]' => sub { beside_keys('timestamptz', \&moment) },
	'expires_at timestamp with time zone[]' => sub { beside_keys('timestamptz', \&moment) },
	'failed boolean[]' => sub { beside_keys('boolean', sub { pick('NULL', 'true', 'false') }) },
	max_duration => sub { or_odd(\@odd_intervals, 'NULL', q('1 ms')) },
	'request text' => sub { chance(0.5) ? text_json() : or_odd(\@odd_texts, q('r'), q('{"a": 1}')) },
	body => sub { or_odd(\@odd_texts, 'NULL', q('b'), text_json()) },
	headers => sub { or_odd(\@odd_texts, 'NULL', 'NULL', q('{}'), q('{"Content-Type": "text/plain", "Date": "now"}'), q('{"Connection": "a,, b", "A": "1"}'), q('{"A": 1}'), q('{"A b": "c"}'), q('{"A": "\\n"}'), text_json()) },
	status => sub { or_odd(\@odd_integers, '200', '200', '201', '404', '429', '503') },
	ttl_s => sub { or_odd(\@odd_integers, 'NULL', 'NULL', '1', '60') },
	wait_ms => sub { or_odd([ grep { $_ ne '2147483647' } @odd_integers ], 'NULL', '0', '5') },
	lease_ms => sub { or_odd(\@odd_integers, 'NULL', 'NULL', '1', '1000') },
	'keys bigint' => sub { pick(@odd_bigints) },
	tokens => sub { pick(@odd_bigints) },
	codes => sub { pick(@odd_bigints) });

# Of a name and type as in "key text": what makes a value, undef if nobody knows.
sub generator
{
	my ($name) = split / /, $_[0];

	return $argument{ $_[0] } || $argument{$name};
}

# Servers from 17 on have more intervals.
sub know_version
{
	my ($version) = @_;

	push @odd_intervals, q('infinity'), q('-infinity') if $version >= 17;
	return;
}

1;
