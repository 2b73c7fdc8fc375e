
# idem_in_flight shows which session holds which key, since when, and which ones wait for it. It shows
# sessions of this database, its leases and its prepared transactions.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemStat;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('preloaded', conf => $stat_conf);
$node->safe_psql('postgres', $stat_functions);

$node->safe_psql('postgres', <<'SQL');
CREATE DATABASE flight TEMPLATE template0;
CREATE ROLE clerk LOGIN;
CREATE ROLE monitor LOGIN;
GRANT pg_monitor TO monitor;
SQL
$node->safe_psql('flight', "CREATE EXTENSION idempotency; $stat_functions; SELECT idem_grant('clerk')");
$node->safe_psql('flight', 'CREATE TABLE note (t timestamptz)');

sub flight_is
{
	my ($select, $expected, $name, $where) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($node, 'flight', "SELECT $select FROM idem_in_flight WHERE " . ($where // 'true') . ' ORDER BY since, key', $expected, "in flight: $name");
}

my @as_clerk = (extra_params => [ '-U', 'clerk' ]);
my $clerk = $node->background_psql('flight', @as_clerk);
my ($one, $two) = map { $node->background_psql('postgres') } 1 .. 2;
my $boss = $node->background_psql('flight');
my ($first, $second, $third) = map { $node->background_psql('flight', @as_clerk) } 1 .. 3;
my ($clerk_pid, $first_pid, $second_pid, $third_pid) = map { $_->query_safe('SELECT pg_backend_pid()') } $clerk, $first, $second, $third;
my $all = 'pid, role, key, scope, held_by, lease_until, waiting';
my $superuser = $node->safe_psql('flight', 'SELECT current_user');

# open claims of another database
$one->query_safe("BEGIN; SELECT idem_begin('elsewhere'); SELECT idem_begin('elsewhere lease', lease => '1 hour')");
flight_is($all, '', 'nothing');
sql_is($node, 'flight', "SELECT oldest_claim_age, open_leases FROM idem_stat WHERE datname = 'flight'", '|0', 'gauges: nothing of other databases');
$clerk->query_safe('BEGIN');
my $before = clock($node);
$clerk->query_safe("SELECT idem_begin('order', scope => 'shop')");
my $after = clock($node);
flight_is($all, "$clerk_pid|clerk|order|shop|transaction||{}", 'a claim');
flight_is("since BETWEEN '$before' AND '$after'", 't', 'since it was begun');
# waiters in the order in which they came, not in that of their pids
waiting($second, "SELECT state FROM idem_begin('order', scope => 'shop', wait => '1 hour')");
wait_for_waiters($node, 'flight', 1);
waiting($third, "SELECT state FROM idem_begin('order', scope => 'shop', wait => '1 hour')");
wait_for_waiters($node, 'flight', 2);
waiting($first, "SELECT idem_claim('order', scope => 'shop')");
wait_for_waiters($node, 'flight', 3);
$boss->query_safe("BEGIN; SELECT idem_begin('order')");
my $boss_pid = $boss->query_safe('SELECT pg_backend_pid()');
flight_is($all, "$clerk_pid|clerk|order|shop|transaction||{$second_pid,$third_pid,$first_pid}\n$boss_pid|$superuser|order||transaction||{}", 'who waits for it; another scope is another key');
$boss->query_safe('ROLLBACK');
$clerk->query_safe("SELECT idem_finish('order', scope => 'shop')");
flight_is($all, "$clerk_pid|clerk|order|shop|transaction||{$second_pid,$third_pid,$first_pid}", 'finished, not committed');
$clerk->query_safe('COMMIT');
is(join(' ', map { $_->query_safe("SELECT '-'") } $second, $third, $first), "replayed\n- replayed\n- f\n-", 'who waited has an answer');
flight_is($all, '', 'committed');

# a claim hands over: who waited has it now, since then
$clerk->query_safe("BEGIN; SELECT idem_begin('next')");
$first->query_safe('BEGIN');
waiting($first, "SELECT state FROM idem_begin('next', wait => '1 hour')");
wait_for_waiters($node, 'flight', 1);
$before = clock($node);
$clerk->query_safe('ROLLBACK');
is($first->query_safe("SELECT '-'"), "started\n-", 'who waited has it');
flight_is("pid, key, since > '$before', waiting", "$first_pid|next|t|{}", 'handed over');
$first->query_safe('ROLLBACK');

# what a session has noted before is not shown with what it has now
$clerk->query_safe("BEGIN; SELECT idem_begin('order 2'); ROLLBACK");
flight_is($all, '', 'rolled back');
$clerk->query_safe("BEGIN; SAVEPOINT s; SELECT idem_begin('order 2')");
$before = clock($node);
$clerk->query_safe("ROLLBACK TO s; SELECT idem_begin('order 3')");
flight_is($all, "$clerk_pid|clerk|order 3||transaction||{}", 'rolled back to a savepoint');
$clerk->query_safe("SELECT idem_begin('order 2')");
flight_is("key, since > '$before'", "order 3|t\norder 2|t", 'claimed again: once, since the last time');
$first->query_safe("SELECT state FROM idem_begin('order 2')");
$clerk->query_safe("SELECT idem_release('order 2')");
flight_is('key', "order 3\norder 2", 'released: the lock stays until the transaction ends');
$clerk->query_safe('ROLLBACK');
$first->query_safe("BEGIN; SELECT idem_begin('order 2')");
flight_is($all, "$first_pid|clerk|order 2||transaction||{}", 'the same key, another session');
$first->query_safe('ROLLBACK');

# the last four are known, all are listed
$clerk->query_safe('BEGIN');
$before = clock($node);
$clerk->query_safe("SELECT idem_begin('k' || i) FROM generate_series(1, 6) i");
flight_is("pid = $clerk_pid, role, key, scope, since < '$before'", "t|clerk|||t\nt|clerk|||t\nt|clerk|k3||f\nt|clerk|k4||f\nt|clerk|k5||f\nt|clerk|k6||f", 'six claims');
sql_is($node, 'flight', "SELECT oldest_claim_age > clock_timestamp() - '$before' FROM idem_stat WHERE datname = 'flight'", 't', 'the oldest of them counts');
$clerk->query_safe('ROLLBACK');
$clerk->query_safe("BEGIN; SELECT idem_begin('k1')");
flight_is('key', 'k1', 'not mixed up with those of the last transaction');
$clerk->query_safe('ROLLBACK');

# 95 bytes, and no half of a character
$clerk->query_safe("BEGIN; SELECT idem_begin(repeat('\x{c3}\x{a4}', 60), scope => 's' || repeat('\x{c3}\x{a4}', 60)), idem_begin(repeat('x', 95)), idem_begin(repeat('x', 96), scope => repeat('\x{e2}\x{82}\x{ac}', 40))");
flight_is("key = repeat('\x{c3}\x{a4}', 47), scope = 's' || repeat('\x{c3}\x{a4}', 47), key = repeat('x', 95), scope = repeat('\x{e2}\x{82}\x{ac}', 31)", "t|t|f|f\nf|f|t|f\nf|f|t|t", 'long keys and scopes are cut');
$clerk->query_safe('ROLLBACK');

# A batch, and an application's own locks, which look alike but for their space.
$clerk->query_safe("BEGIN; SELECT idem_claim_many('{b1, b2}'); SELECT idem_claim('c'); SELECT idem_begin('mine')");
my ($classid, $objid) = split /\|/, $node->safe_psql('flight', "SELECT classid::bigint::bit(32)::int, objid::bigint::bit(32)::int FROM pg_locks WHERE locktype = 'advisory' AND pid = $clerk_pid");
$boss->query_safe("SELECT pg_advisory_lock(1), pg_advisory_lock($classid, $objid)");
waiting($first, "SELECT pg_advisory_lock($classid, $objid), pg_advisory_unlock_all()");
wait_for_waiters($node, 'flight', 1);
flight_is($all, "$clerk_pid|clerk|mine||transaction||{}", "neither a batch, nor a row that is written, nor an application's own locks");
$boss->query_safe('SELECT pg_advisory_unlock_all()');
$first->query_safe('SELECT 1');
flight_is($all, "$clerk_pid|clerk|mine||transaction||{}", 'nothing of other databases');
sql_is($node, 'postgres', "SELECT key, held_by FROM idem_in_flight WHERE key ~ 'elsewhere' AND held_by = 'transaction' ORDER BY since", "elsewhere|transaction\nelsewhere lease|transaction", 'in flight: there it is');
$one->query_safe('ROLLBACK');
# by numbers the same key as in the other database
$two->query_safe("BEGIN; SELECT idem_begin('mine')");
flight_is($all, "$clerk_pid|clerk|mine||transaction||{}", 'the same key in another database');
$_->query_safe('ROLLBACK') for $clerk, $two;

# The note of a session that has ended is not taken for another session's.
$second->query_safe("BEGIN; SELECT idem_begin('ended')");
$second->quit;
$node->poll_query_until('flight', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $second_pid");
$second = $node->background_psql('flight');
$second_pid = $second->query_safe('SELECT pg_backend_pid()');
$second->query_safe("BEGIN; SELECT idem_begin('ended', scope => 'new'); SELECT idem_begin('ended')");
flight_is('pid, key, scope', "$second_pid|ended|new\n$second_pid|ended|", 'after a session has ended');
$second->query_safe('ROLLBACK');
# nor does it say since when the same session has the lock for something else
$second->query_safe("SELECT idem_claim('forget')");
$before = clock($node);
$second->query_safe("BEGIN; SELECT idem_forget('forget')");
flight_is("pid, since > '$before'", "$second_pid|t", 'a key that is forgotten');
$second->query_safe('ROLLBACK');
# a session that only got an answer holds nothing
$second->query_safe("BEGIN; SELECT idem_begin('order', scope => 'shop'); SELECT idem_claim('order', scope => 'shop'); SELECT idem_claim_many('{b}')");
flight_is($all, '', 'replayed');
$second->query_safe('ROLLBACK');

# leases
$node->safe_psql('flight', "SELECT idem_begin('lease', lease => '1 hour', scope => 'l'); SELECT idem_begin('lapsed', lease => '1 hour'); CALL lapse('lapsed'); SELECT idem_begin('done', lease => '1 hour'); SELECT idem_finish('done', fence => fence('done')); SELECT idem_claim('claim')");
flight_is('pid, role, key, scope, held_by, waiting', '||lease|l|lease|{}', 'a running lease, no other row');
sql_is($node, 'flight', "SELECT f.lease_until = k.lease_until, since = created_at FROM idem_in_flight f JOIN idem_keys k USING (key)", 't|t', 'in flight: when the lease ends');
$node->safe_psql('flight', "SELECT idem_release('lease', 'l', fence('lease'))");
flight_is($all, '', 'a released lease');

# prepared transactions, also after a restart
$before = clock($node);
$clerk->query_safe("BEGIN; SELECT idem_begin('p'); SELECT idem_finish('p'); PREPARE TRANSACTION 'p'");
$after = clock($node);
waiting($first, "SELECT idem_claim('p')");
wait_for_waiters($node, 'flight', 1);
flight_is("pid, role, key, scope, since BETWEEN '$before' AND '$after', held_by, waiting", "|clerk|||t|transaction|{$first_pid}", 'a prepared transaction');
$_->quit for $clerk, $boss, $second, $third, $one, $two;
$node->safe_psql('flight', "SELECT pg_cancel_backend($first_pid)");
eval { $first->quit };
$node->restart;
flight_is("pid, role, key, scope, since BETWEEN '$before' AND '$after', held_by, waiting", '|clerk|||t|transaction|{}', 'a prepared transaction, after the restart');
$node->safe_psql('flight', "ROLLBACK PREPARED 'p'");
$node->stop;

done_testing();
