
# Keys survive pg_dump and restore, into another encoding as well: a restore
# that forgot them, or did not recognize them, would run every request twice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');
my $dir = PostgreSQL::Test::Utils::tempdir();

# Latin letters with accents, one byte in LATIN1 and two in UTF-8: "e" with an
# acute is shorter than "zz" in one encoding and sorts behind it in the other.
my $request = '{"é": 1, "zz": 2, "aé": [10.50, "ñandú", null], "abc": {"ÿÿ": true, "zzz": {}, "ö": "ß"}}';

# the same, and not the same, as jsonb has it
my $same = '{"abc": {"ö": "ß", "zzz": {}, "ÿÿ": true}, "zz": 2.0, "aé": [10.5, "ñandú", null], "é": 1}';
my $other = '{"zz": 1, "é": 2, "aé": [10.50, "ñandú", null], "abc": {"ÿÿ": true, "zzz": {}, "ö": "ß"}}';

# as an SQL literal has it
my $accents = "clé d''été";

sub claim
{
	my ($key, $scope, $request, $ttl) = @_;

	return "SELECT state, result FROM idem_begin('$key', $ttl, '$scope', '$request')";
}

# Every row, without what a time zone could change the look of.
my $rows = "SELECT digest, key, scope, fingerprint, result, attempt, extract(epoch FROM expires_at) "
  . "FROM idem_keys ORDER BY digest";

$node->safe_psql('postgres', <<"SQL");
CREATE ROLE app;
CREATE ROLE operator;
SELECT idem_grant('app');
SELECT idem_grant('operator', '{lookup}');
SELECT idem_claim('expired', '1 second');
BEGIN;
@{[claim('plain', '', '{}', "'1 day'")]};
SELECT idem_finish('plain', '{"order": 1}', '');
COMMIT;
BEGIN;
@{[claim($accents, 'Zürich', $request, "'2000 years'")]};
SELECT idem_finish('$accents', '{"ordré": "ñ"}', 'Zürich');
COMMIT;
BEGIN;
SELECT idem_begin('for ever', '2000 years');
SELECT idem_finish('for ever');
COMMIT;
SELECT idem_claim_many(ARRAY['ä', 'ö', 'back\\slash "quoted"'], scope => 'batch');
SQL

$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM idem_lookup('expired')")
  or die 'the key did not expire';

my $before = $node->safe_psql('postgres', "$rows");
like($before, qr/expired/, 'an expired key is still in the table');

sub dump_to
{
	my ($db, $file, @options) = @_;

	$node->command_ok([ 'pg_dump', @options, '-f', "$dir/$file", '-d', $node->connstr($db) ],
		"pg_dump of $db into $file");
}

sub restore_from
{
	my ($db, $file, $encoding) = @_;

	$node->safe_psql('postgres',
		"CREATE DATABASE $db ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
	if ($file =~ /\.sql$/)
	{
		$node->command_ok(
			[ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($db), '-f', "$dir/$file" ],
			"restore of $file into $db, $encoding");
	}
	else
	{
		$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr($db), "$dir/$file" ],
			"restore of $file into $db, $encoding");
	}
}

# The restored database gives the answers of the original.
sub check
{
	my ($db) = @_;

	# all rows but one
	is( $node->safe_psql($db, $rows),
		join("\n", grep { !/expired/ } split /\n/, $before),
		"$db: every live key, byte for byte, and no expired one");
	sql_is($node, $db, 'SELECT count(*) FROM idem_keys WHERE digest <> idem_digest(key, scope)',
		'0', "$db: digests are what this encoding computes");

	sql_is($node, $db, claim('plain', '', '{}', 'NULL'), 'replayed|{"order": 1}', "$db: replays");
	sql_is($node, $db, claim($accents, 'Zürich', $request, 'NULL'),
		'replayed|{"ordré": "ñ"}', "$db: replays with accents");
	sql_is($node, $db, claim($accents, 'Zürich', $same, 'NULL'),
		'replayed|{"ordré": "ñ"}', "$db: an equal request matches");
	sql_is($node, $db, claim($accents, 'Zürich', $other, 'NULL'),
		'mismatch|', "$db: another request does not");
	sql_is($node, $db, "SELECT state, expires_at FROM idem_begin('for ever')",
		'replayed|infinity', "$db: for ever stays for ever");
	sql_is($node, $db, "SELECT * FROM idem_claim_many(ARRAY['ä', 'new', 'ö', 'back\\slash \"quoted\"'], scope => 'batch')",
		'new', "$db: of a batch only the new key");
	sql_is($node, $db, "BEGIN; SELECT state FROM idem_begin('expired'); ROLLBACK",
		'started', "$db: the expired key is free");
	sql_is($node, $db, "BEGIN; SELECT state FROM idem_begin('$accents'); ROLLBACK",
		'started', "$db: the same key in another scope is free");

	# what was granted is granted still, and nothing else
	sql_is($node, $db, "SET ROLE app; SELECT state FROM idem_begin('plain')", 'replayed', "$db: grant of claims");
	sql_fails($node, $db, "SET ROLE app; SELECT idem_lookup('plain')", '42501', "$db: no grant of lookup");
	sql_is($node, $db, "SET ROLE operator; SELECT state FROM idem_lookup('plain')", 'finished', "$db: grant of lookup");
	sql_fails($node, $db, 'SET ROLE app; SELECT FROM idem_keys', '42501', "$db: table stays closed");

	# put it back as it was
	$node->safe_psql($db, "SELECT idem_forget('new', 'batch')");
}

dump_to('postgres', 'utf8.sql');
dump_to('postgres', 'utf8.dump', '-Fc');

# The check itself, where nothing was restored.
sql_is($node, 'postgres', claim($accents, 'Zürich', $same, 'NULL'),
	'replayed|{"ordré": "ñ"}', 'original: an equal request matches');
sql_is($node, 'postgres', claim($accents, 'Zürich', $other, 'NULL'),
	'mismatch|', 'original: another request does not');

restore_from('utf8_plain', 'utf8.sql', 'UTF8');
check('utf8_plain');
restore_from('utf8_custom', 'utf8.dump', 'UTF8');
check('utf8_custom');

# To LATIN1, and from there back to UTF-8; the second dump in the encoding of
# its own database as well as in UTF-8.
restore_from('latin1', 'utf8.sql', 'LATIN1');
check('latin1');
sql_is($node, 'latin1', "SELECT octet_length(key) FROM idem_keys WHERE scope = 'Zürich'", '9', 'latin1: is in LATIN1');

dump_to('latin1', 'latin1.sql');
dump_to('latin1', 'latin1.dump', '-Fc', '-E', 'UTF8');
restore_from('back_plain', 'latin1.sql', 'UTF8');
check('back_plain');
restore_from('back_custom', 'latin1.dump', 'UTF8');
check('back_custom');

# A claim made in LATIN1 from scratch is the same in UTF-8.
$node->safe_psql('latin1', <<"SQL");
BEGIN;
@{[claim('né là', 'Zürich', $request, 'NULL')]};
SELECT idem_finish('né là', '"ü"', 'Zürich');
COMMIT;
SQL
dump_to('latin1', 'born.sql');
restore_from('born', 'born.sql', 'UTF8');
sql_is($node, 'born', claim('né là', 'Zürich', $same, 'NULL'), 'replayed|"ü"', 'a claim made in LATIN1 replays in UTF-8');
sql_is($node, 'born', claim('né là', 'Zürich', $other, 'NULL'), 'mismatch|', 'and still knows its request');

# SQL_ASCII holds what it is given: the bytes of UTF-8 here.
restore_from('ascii', 'utf8.sql', 'SQL_ASCII');
check('ascii');
sql_fails($node, 'ascii', q{SET client_encoding = 'SQL_ASCII'; SELECT idem_claim(E'caf\xe9')},
	'22021', 'ascii: a key that is not UTF-8 is refused');

# Without data there are no keys, and the extension works.
dump_to('postgres', 'schema.sql', '--schema-only');
restore_from('bare', 'schema.sql', 'UTF8');
sql_is($node, 'bare', 'SELECT count(*) FROM idem_keys', '0', 'schema only: no keys');
sql_is($node, 'bare', "SELECT idem_claim('plain')", 't', 'schema only: claims work');

done_testing();
