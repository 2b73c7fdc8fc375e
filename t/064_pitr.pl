
# Point-in-time recovery into the middle of a storm, and a copy of the data directory without
# any recovery: keys and orders agree, a repeated storm does each request once, and no fence is
# issued twice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemStorm;
use IdemTest;
use List::Util qw(max min);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('original', streaming => 1, archiving => 1);
$node->safe_psql('postgres', request_function());
my @before = storm($node, 100);
$node->backup('base');

#
# A storm, and a moment in the middle of it
#
my $holder = $node->safe_psql('postgres', "SELECT fence FROM idem_begin('shared', lease => '1 hour')");
my @storm = start_storm($node, 4, 5000);
ok($node->poll_query_until('postgres', 'SELECT count(*) > 1000 FROM orders'), 'a storm');
my $target = $node->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
ok($node->poll_query_until('postgres', 'SELECT count(*) > 3000 FROM orders'), 'goes on');
my $zombie = $node->safe_psql('postgres', take_over('shared'));
my @after = ($zombie, end_storm(@storm));
is(scalar @after, 20001, 'to its end');
my $archived = $node->safe_psql('postgres', 'SELECT pg_walfile_name(pg_switch_wal())');
$node->poll_query_until('postgres', "SELECT last_archived_wal >= '$archived' FROM pg_stat_archiver") or die 'not archived';

my $restored = PostgreSQL::Test::Cluster->new('restored');
$restored->init_from_backup($node, 'base', has_restoring => 1, standby => 0);
$restored->append_conf('postgresql.conf', "recovery_target_lsn = '$target'\nrecovery_target_action = 'promote'");
$restored->start;
ok($restored->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), 'restored to the moment');

my $orders = $restored->safe_psql('postgres', 'SELECT count(*) FROM orders');
cmp_ok($orders, '>', 1000, 'what came before is there');
cmp_ok($orders, '<', 20100, 'what came after is not');
is($restored->safe_psql('postgres', disagreeing()), '', 'keys and orders agree');
is($restored->safe_psql('postgres', "SELECT count(*) FROM idem_keys l FULL JOIN idem_keys k ON l.key = 'lease ' || k.key "
		. "WHERE (l.key IS NULL AND k.finished_at IS NOT NULL) OR (k.key IS NULL AND l.key LIKE 'lease %')"),
	0, 'and so do leases');

# the clients repeat all of their requests
my @repeated = repeat_storm($restored, 2, 4, 5000);
is($restored->safe_psql('postgres', 'SELECT count(*), count(DISTINCT k) FROM orders'), '20100|20100', 'repeated, each request has had its effect once');
is($restored->safe_psql('postgres', disagreeing()), '', 'keys and orders agree');

my @again = ($restored->safe_psql('postgres', take_over('shared')), @repeated);
is(scalar @again, 20001, 'a fence for each of them');
is(twice(@before, $holder, @after, @again), '', 'no fence is issued twice');
cmp_ok(min(@again), '>', max(@before, @after), 'and new ones are higher');
sql_fails($restored, 'postgres', "SELECT idem_finish('shared', '1', fence => $_)", 'ID004', "fence $_ is superseded") for $holder, $zombie;
sql_is($restored, 'postgres', "SELECT idem_finish('shared', '2', fence => $again[0])", 2, 'the new holder finishes');
$restored->stop('fast');

#
# A copy that is started as it is: on the same timeline, as after a restart
#
my $copy = PostgreSQL::Test::Cluster->new('copy');
$node->backup('copy');
my @since = storm($node, 300);
$copy->init_from_backup($node, 'copy');
$copy->start;
is($copy->safe_psql('postgres', 'SELECT timeline_id FROM pg_control_checkpoint()'), 1, 'a copy goes on, on its timeline');
is($copy->safe_psql('postgres', disagreeing()), '', 'keys and orders agree');
my @copied = storm($copy, 100);
cmp_ok(min(@copied), '>', max(@since), 'its fences are above those that the original has issued since');
is(twice(@since, @copied, storm($node, 100)), '', 'and not issued by the original, which goes on');
$copy->stop('fast');
$node->stop('fast');

done_testing();
