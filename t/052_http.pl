
# idem_http_begin and idem_http_finish as drivers call them, through the extended protocol:
# parameters without types, with types, in binary, NULL in each place; two clients at once;
# and in databases of other encodings.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use Digest::MD5 qw(md5_hex);
use IdemTest;
use IdemWire;
use Test::More;
use Time::HiRes qw(time);

use constant { BOOL => 16, INT8 => 20, INT2 => 21, INT4 => 23, TEXT => 25, UNKNOWN => 705, VARCHAR => 1043 };

my $node = new_node('main');
my $client = IdemWire->new($node, 'postgres');
my $other = IdemWire->new($node, 'postgres');

sub row { my ($answer) = @_; return $answer->{error} // join('|', map { $_ // 'NULL' } map { @$_ } @{ $answer->{rows} }) }

# how a driver may send a text, an integer (1) and a bigint (2), which a fence needs
my %driver = (
	'no types' => sub { my ($integer, $value) = @_; return [ 0, $value ] },
	'unknown' => sub { my ($integer, $value) = @_; return [ UNKNOWN, $value ] },
	'text and int4' => sub { my ($integer, $value) = @_; return [ (TEXT, INT4, INT8)[$integer], $value ] },
	'varchar and int2' => sub { my ($integer, $value) = @_; return [ (VARCHAR, INT2, INT8)[$integer], $value ] },
	'binary' => sub { my ($integer, $value) = @_; return [ (TEXT, INT4, INT8)[$integer], $integer && defined $value ? pack($integer == 2 ? 'q>' : 'N', $value) : $value, 1 ] },
	'no types, text in binary' => sub { my ($integer, $value) = @_; return [ 0, $value, !$integer ] });
my @begin_integers = (0, 0, 0, 1, 1, 1);
my @finish_integers = (0, 1, 0, 0, 0, 2);

sub parameters
{
	my ($how, $integers, @values) = @_;

	return map { $driver{$how}->($integers->[$_], $values[$_]) } 0 .. $#values;
}

sub begin { my ($c, $how, @values) = @_; return $c->query('SELECT * FROM idem_http_begin($1, $2, $3, $4, $5, $6)', parameters($how, \@begin_integers, @values)) }
sub finish { my ($c, $how, @values) = @_; return $c->query('SELECT idem_http_finish($1, $2, $3, $4, $5, $6)', parameters($how, \@finish_integers, @values)) }

for my $how (sort keys %driver)
{
	my $body = '{"b":1,"a":1e2,"e":"' . "\xf0\x9f\x98\x80" . '\ud83d"}';
	my @all = ("$how all", '{"a": 1}', 'scope', 3600, 100, undef);

	$client->query('BEGIN');
	my $answer = begin($client, $how, @all);
	is(row($answer), 't|NULL|NULL|NULL|NULL|f|NULL', "$how: run");
	is("@{ $answer->{types} }", join(' ', BOOL, INT4, TEXT, TEXT, INT4, BOOL, INT8), "$how: the columns are of plain types");
	is(row(finish($client, $how, "$how all", 201, $body, '{"A": "b"}', 'scope', undef)), '201', "$how: finished");
	$client->query('COMMIT');
	is(row(begin($other, $how, @all)), 'f|201|{"A": "b"}|' . $body . '|NULL|t|NULL', "$how: replayed");
	like(row(begin($other, $how, $all[0], '{"a": 2}', @all[ 2 .. 5 ])), qr/^f\|422\|.*"status": 422.*\|NULL\|f\|NULL$/, "$how: another request");

	# NULL in each place
	for my $null (1 .. 4)
	{
		my @some = @all;

		$some[0] = "$how $null";
		$some[$null] = undef;
		$client->query('BEGIN');
		is(row(begin($client, $how, @some)), 't|NULL|NULL|NULL|NULL|f|NULL', "$how: begin, parameter " . ($null + 1) . ' is NULL');
		is(row(finish($client, $how, $some[0], 200, $null == 1 ? undef : 'b', $null == 3 ? undef : '{}', $some[2], undef)), '200', "$how: finish, likewise");
		is(row($client->query('COMMIT')), '', "$how: committed");
		is(row(begin($client, $how, @some)), join('|', 'f|200', $null == 3 ? 'NULL' : '{}', $null == 1 ? 'NULL' : 'b', 'NULL|t|NULL'), "$how: replayed");
	}
	like(row(begin($client, $how, (undef) x 6)), qr/^f\|400\|/, "$how: all are NULL");
	is(row(finish($client, $how, (undef) x 6)), '22004', "$how: finish, no key");
	is(row(finish($client, $how, 'k', (undef) x 5)), '22004', "$how: finish, no status");
	is(row(begin($client, $how, 'k', undef, undef, 0, undef, undef)), '22023', "$how: no ttl");

	# a lease
	my $fence = (split /\|/, row(begin($client, $how, "$how lease", undef, undef, undef, undef, 30000)))[6];
	like(row(begin($other, $how, "$how lease", undef, undef, undef, undef, undef)), qr/^f\|409\|.*"Retry-After": "(?:30|29)".*\|(?:30|29)\|f\|NULL$/, "$how: under a lease");
	is(row(finish($other, $how, "$how lease", 200, '', undef, undef, $fence)), '200', "$how: finished by fence");
	is(row(begin($client, $how, "$how lease", (undef) x 5)), 'f|200|NULL||NULL|t|NULL', "$how: replayed, and empty is not NULL");
}
is(row($client->query('SELECT idem_http_begin($1, fence => $2)', [ 0, 'k' ], [ 0, 1 ])), '42883', 'the test sees errors');
is(row($client->query('SELECT (idem_http_begin($1, lease_ms => 60000)).fence > 0', [ 0, 'int8' ])), 't', 'a fence');
is(row($client->query('SELECT idem_http_finish($1, 200, fence => $2)', [ 0, 'int8' ], [ INT8, pack('q>', 1 << 40), 1 ])), 'ID004', 'a fence of 64 bits');

# a megabyte
my $large = join('', map { chr(32 + $_ * 7 % 95) } 1 .. 1_000_000);
$client->query('BEGIN');
begin($client, 'no types', 'large', $large, (undef) x 4);
finish($client, 'no types', 'large', 200, $large, (undef) x 3);
$client->query('COMMIT');
my $answer = begin($other, 'binary', 'large', $large, (undef) x 4);
is(md5_hex($answer->{rows}[0][3]), md5_hex($large), 'a megabyte comes back');

#
# At once
#
$client->query('BEGIN');
begin($client, 'no types', 'both', (undef) x 5);
like(row(begin($other, 'no types', 'both', (undef) x 5)), qr/^f\|409\|.*"Retry-After": "1".*\|1\|f\|NULL$/, 'in progress');
my $began = time;
like(row(begin($other, 'no types', 'both', (undef) x 3, 300, undef)), qr/^f\|409\|/, 'waited in vain');
cmp_ok(time - $began, '>=', 0.3, 'for as long as it may');
$other->send_query('SELECT run, status, body, replayed FROM idem_http_begin($1, wait_ms => 60000)', [ 0, 'both' ]);
finish($client, 'no types', 'both', 202, 'done', (undef) x 3);
$client->query('COMMIT');
is(row($other->answer), 'f|202|done|t', 'waited for the answer');
# who rolls back leaves the work to the other
$client->query('BEGIN');
begin($client, 'no types', 'one', (undef) x 5);
$other->query('BEGIN');
$other->send_query('SELECT run FROM idem_http_begin($1, wait_ms => 60000)', [ 0, 'one' ]);
$client->query('ROLLBACK');
is(row($other->answer), 't', 'the next attempt runs');
$other->query('ROLLBACK');

#
# Other encodings
#
$node->safe_psql('postgres', "CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'; CREATE DATABASE latin1 TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'; CREATE DATABASE win1252 TEMPLATE template0 ENCODING 'WIN1252' LC_COLLATE 'C' LC_CTYPE 'C'");
$node->safe_psql($_, 'CREATE EXTENSION idempotency') for qw(bytes latin1 win1252);

my $bytes = IdemWire->new($node, 'bytes', client_encoding => 'SQL_ASCII');
like(row(begin($bytes, 'no types', "k\xff", (undef) x 5)), qr/^f\|400\|.*is not UTF-8/, 'bytes: a key that is no text');
for my $request ("\xff", "\"\xff\"", '"\u00e9"', '{"a": "\u0041\n"}', "{\"\xc3\xa9\": 1}")
{
	$bytes->query('BEGIN');
	is(row(begin($bytes, 'no types', "k $request" =~ s/\xff/ff/r, $request, (undef) x 4)), 't|NULL|NULL|NULL|NULL|f|NULL', 'bytes: any request');
	is(row(finish($bytes, 'no types', "k $request" =~ s/\xff/ff/r, 200, "b\xff\\u00e9\"", "{\"A\": \"\xff\\u0041\"}", undef, undef)), '200', 'bytes: any body');
	$bytes->query('COMMIT');
	is(row(begin($bytes, 'no types', "k $request" =~ s/\xff/ff/r, $request, (undef) x 4)), "f|200|{\"A\": \"\xffA\"}|b\xff\\u00e9\"|NULL|t|NULL", 'bytes: replayed');
}
like(row(begin($bytes, 'no types', 'k {"a": "\u0041\n"}', '{"a":"A\u000a"}', (undef) x 4)), qr/^f\|200/, 'bytes: escapes of ASCII are those characters');

my $latin1 = IdemWire->new($node, 'latin1', client_encoding => 'UTF8');
$latin1->query('BEGIN');
is(row(begin($latin1, 'no types', "\xc3\xa9" x 512, "{\"\xc3\xa9\": \"\\u0416\"}", (undef) x 4)), 't|NULL|NULL|NULL|NULL|f|NULL', 'latin1: 1024 bytes in UTF-8');
is(row(finish($latin1, 'no types', "\xc3\xa9" x 512, 200, "\xc3\xa9", (undef) x 3)), '200', 'latin1: finished');
$latin1->query('COMMIT');
is(row(begin($latin1, 'no types', "\xc3\xa9" x 512, "{\"\xc3\xa9\": \"\\u0416\"}", (undef) x 4)), "f|200|NULL|\xc3\xa9|NULL|t|NULL", 'latin1: replayed');
like(row(begin($latin1, 'no types', "\xc3\xa9" x 512 . 'k', (undef) x 5)), qr/^f\|400\|.*more than 1024 bytes/, 'latin1: too long in UTF-8');

# 0x81 is no character, but WIN1252 has no invalid bytes
my $win1252 = IdemWire->new($node, 'win1252', client_encoding => 'WIN1252');
like(row(begin($win1252, 'no types', "k\x81", (undef) x 5)), qr/^f\|400\|.*is not UTF-8/, 'win1252: a key without UTF-8');
for my $request ("\x81", "{\"a\": \"\x81\"}", "\xe9" x 5000 . "\x81", "{\"\xe9\": 1}")
{
	my $key = 'k ' . md5_hex($request);

	$win1252->query('BEGIN');
	is(row(begin($win1252, 'no types', $key, $request, (undef) x 4)), 't|NULL|NULL|NULL|NULL|f|NULL', 'win1252: any request');
	is(row(finish($win1252, 'no types', $key, 200, "b\x81", (undef) x 3)), '200', 'win1252: any body');
	$win1252->query('COMMIT');
	is(row(begin($win1252, 'no types', $key, $request, (undef) x 4)), "f|200|NULL|b\x81|NULL|t|NULL", 'win1252: replayed');
	like(row(begin($win1252, 'no types', $key, "$request x", (undef) x 4)), qr/^f\|422/, 'win1252: another request');
}
# the same fingerprint in any encoding
my $stored = "SELECT encode(fingerprint, 'hex') FROM idem_keys WHERE key = 'print'";
my %print;
for my $c ([ 'latin1', $latin1 ], [ 'postgres', $client ])
{
	my ($database, $session) = @$c;

	for my $request ("{\"\xc3\xa9\": 1}", "\xc3\xa9 no JSON")
	{
		$session->query('BEGIN');
		begin($session, 'no types', 'print', $request, (undef) x 4);
		finish($session, 'no types', 'print', 200, (undef) x 4);
		push @{ $print{$request} }, row($session->query($stored));
		$session->query('ROLLBACK');
	}
}
is($_->[0], $_->[1], 'the fingerprint is that of the UTF-8') for values %print;
isnt($print{"{\"\xc3\xa9\": 1}"}[0], $print{"\xc3\xa9 no JSON"}[0], 'and of the request');

# a standby answers from what is stored
$client->query('BEGIN READ ONLY');
is(row($client->query('SELECT status FROM idem_http_begin($1)', [ 0, 'both' ])), '202', 'read-only: replayed');
is(row($client->query('SELECT status FROM idem_http_begin($1)', [ 0, 'new' ])), '25006', 'read-only: nothing new');
$client->query('ROLLBACK');

done_testing();
