
# An answer survives a crash: if it comes from another transaction's row, that row is on
# disk before the answer, even if that transaction committed asynchronously.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

# Nothing but the commits themselves writes WAL out: no checkpoint, no page of
# a table that would be evicted, and no walwriter, which would also wake up for
# every full page of WAL.
my $node = new_node('main', initdb => ['--wal-segsize=1'], conf => <<'CONF');
wal_writer_delay = 10s
checkpoint_timeout = 1h
bgwriter_lru_maxpages = 0
full_page_writes = off
CONF

$node->safe_psql('postgres', 'CREATE TABLE orders (k text)');

# Have all pages touched, and begin a page of WAL that the next transaction
# will not fill.
sub settle
{
	$node->safe_psql('postgres', <<'SQL');
INSERT INTO orders VALUES ('settle');
SELECT idem_claim('settle ' || random());
SELECT count(*) FROM orders, idem_keys;
SELECT pg_switch_wal();
SQL
}

# Commits the key and its order; the only answer went to this session, which asked for no
# durability.
sub run_asynchronously
{
	my ($k, $how) = @_;

	settle();
	$node->safe_psql('postgres', <<"SQL");
SET synchronous_commit = off;
BEGIN;
INSERT INTO orders VALUES ('$k');
$how;
COMMIT;
SQL
}

my $finish = "SELECT idem_begin('%1\$s', request => '1'); SELECT idem_finish('%1\$s', '\"done\"')";

sub survivors
{
	my ($k) = @_;

	return $node->safe_psql('postgres',
		"SELECT (SELECT count(*) FROM orders WHERE k = '$k'), (SELECT count(*) FROM idem_keys WHERE key = '$k')");
}

# The control: the same, with an answer read from the table by hand, is lost.
# The walwriter may wake up in between, hence several tries.
my $lost = 0;
for my $try (1 .. 5)
{
	my $k = "control $try";

	run_asynchronously($k, sprintf($finish, $k));
	die 'the order is not there'
	  unless $node->safe_psql('postgres', "SELECT count(*) FROM orders WHERE k = '$k'") eq '1';
	crash($node);
	my $found = survivors($k);
	$lost = 1 if $found eq '0|0';
	last if $lost || !ok($found eq '1|1', "control: order and key together: $found");
}
ok($lost, 'control: without an answer, a crash loses the asynchronous commit');

# How it was done, which statement asks, its answer, what happened in between.  A
# frozen row no longer shows which commit has to be on disk.
my @rounds = (
	[ 'idem_begin', $finish, q{SELECT state, result FROM idem_begin('%s')}, 'replayed|"done"' ],
	[ 'idem_begin in a transaction', $finish, q{BEGIN; SELECT state FROM idem_begin('%s')}, 'replayed' ],
	[ 'idem_begin, read only', $finish, q{BEGIN READ ONLY; SELECT state FROM idem_begin('%s')}, 'replayed' ],
	[ 'mismatch', $finish, q{SELECT state FROM idem_begin('%s', request => '2')}, 'mismatch' ],
	[ 'idem_claim', $finish, q{SELECT idem_claim('%s')}, 'f' ],
	[ 'idem_claim_many', $finish, q{SELECT count(*) FROM idem_claim_many(ARRAY['%s'])}, '0' ],
	[ 'idem_claim_many of many', $finish, q{BEGIN; SELECT count(*) FROM idem_claim_many(ARRAY['%s'] || ARRAY(SELECT 'new ' || i FROM generate_series(1, 9) i))}, '9' ],
	[ 'idem_lookup', $finish, q{SELECT state FROM idem_lookup('%s')}, 'finished' ],
	[ 'finished in a savepoint', "SAVEPOINT a; $finish; RELEASE a", q{SELECT state FROM idem_begin('%s')}, 'replayed' ],
	[ 'frozen', $finish, q{SELECT state FROM idem_begin('%s')}, 'replayed', 'VACUUM (FREEZE) idem_keys' ],
	[ 'claimed', q{SELECT idem_claim('%s')}, q{SELECT state FROM idem_begin('%s')}, 'replayed' ],
	[ 'imported', $finish, q{SELECT idem_import('%s')}, 'f' ],
	[ 'imported in a batch', q{SELECT idem_import_many(ARRAY['another', '%s'])}, q{SELECT state FROM idem_begin('%s')}, 'replayed' ],
	[ 'claimed in a batch', q{SELECT idem_claim_many(ARRAY['other', '%s'])}, q{SELECT idem_claim('%s')}, 'f' ],
);
for my $round (@rounds)
{
	my ($name, $how, $ask, $answer, $between) = @$round;
	my $k = "key of $name";

	run_asynchronously($k, sprintf($how, $k));
	$node->safe_psql('postgres', $between) if defined $between;
	sql_is($node, 'postgres', sprintf($ask, $k), $answer, "$name: the answer");
	crash($node);
	is(survivors($k), '1|1', "$name: order and key are there after a crash");
}

# A session that waited for the asynchronous commit.
settle();
my $holder = $node->background_psql('postgres');
$holder->query_safe(<<"SQL");
SET synchronous_commit = off;
BEGIN;
INSERT INTO orders VALUES ('waited for');
@{[sprintf $finish, 'waited for']};
SQL
my $waiter = $node->background_psql('postgres');
$waiter->query_until(qr/waiting/, "\\echo waiting\nSELECT state FROM idem_begin('waited for', wait => '1 hour');\n");
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
  or die 'nobody waits';
$holder->query_safe('COMMIT');
is($waiter->query('SELECT 1'), "replayed\n1", 'waited: the answer');
crash($node);
is(survivors('waited for'), '1|1', 'waited: order and key are there after a crash');

# What is used up.  The row of a code that is used stays, and what is verified or redeemed is its order.
my %secrets = (
	token => [ "SELECT idem_token_issue('login', '1 hour')", q{(SELECT state FROM idem_token_redeem('login', '%s'))} ],
	code => [ "SELECT idem_code_issue('login', 'ada', '1 hour')", q{(SELECT state FROM idem_code_verify('login', 'ada', '%s'))} ]);
for my $kind (sort keys %secrets)
{
	my ($issue, $use) = @{ $secrets{$kind} };
	for my $between ('', 'VACUUM (FREEZE) idem_tokens, idem_codes')
	{
		my $name = $between ? "$kind, frozen" : $kind;
		my $ask = 'SELECT ' . sprintf($use, $node->safe_psql('postgres', $issue));

		run_asynchronously($name, $ask);
		$node->safe_psql('postgres', $between);
		sql_is($node, 'postgres', $ask, 'used', "$name: the answer");
		crash($node);
		is(survivors($name), '1|0', "$name: its order is there after a crash");
		sql_is($node, 'postgres', $ask, 'used', "$name: and it still is used");
	}
}

# The sessions died with the server.
eval { $_->quit } for $holder, $waiter;

done_testing();
