
# An asynchronous standby that is promoted lacks the newest of what the primary did: keys and
# orders, always both of a request.  And fences: those that only the primary knew are never
# issued again, whether or not the primary goes on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemStorm;
use IdemTest;
use List::Util qw(max min);
use PostgreSQL::Test::Cluster;
use Test::More;

sub promote
{
	my ($node) = @_;

	$node->promote;
	return $node->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') || die 'not promoted';
}

my $primary = new_node('primary', streaming => 1);
$primary->safe_psql('postgres', request_function());
my $standby = new_standby($primary);

#
# The standby gets the first part of a storm, and not the rest
#
my @known = storm($primary, 200);
my $first = $primary->safe_psql('postgres', "SELECT fence FROM idem_begin('shared', lease => '1 hour')");
cut_off($primary, $standby);
my @storm = start_storm($primary, 4, 20_000);
ok($primary->poll_query_until('postgres', 'SELECT count(*) > 2000 FROM orders'), 'a storm that the standby does not get');
my $zombie = $primary->safe_psql('postgres', take_over('shared'));
$primary->stop('immediate');
my @lost = (end_storm(@storm), $zombie);
cmp_ok(scalar @lost, '>', 1000, 'with fences that only the primary knows');
promote($standby);

is($standby->safe_psql('postgres', disagreeing()), '', 'promoted: keys and orders agree');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM orders'), 200, 'promoted: what had arrived is kept');

my $new = $standby->safe_psql('postgres', take_over('shared'));
my @after = ($new, storm($standby, 500));
is(scalar @after, 501, 'promoted: fences of a new storm');
is(twice(@known, $first, @lost, @after), '', 'promoted: no fence is issued twice');
cmp_ok(min(@after), '>', max(@known, $first, @lost), 'promoted: new ones are higher, as other systems expect');
sql_fails($standby, 'postgres', "SELECT idem_finish('shared', '1', fence => $zombie)", 'ID004', 'promoted: the last holder on the primary is superseded');
sql_is($standby, 'postgres', "SELECT idem_finish('shared', '2', fence => $new)", '2', 'promoted: the new one finishes');

# The old primary comes back by mistake.
$primary->start;
my @astray = storm($primary, 200);
is(scalar @astray, 200, 'the old primary goes on');
is(twice(@known, $first, @lost, @after, @astray), '', 'with fences of its own');
$primary->stop('fast');

#
# The standby knows no fence at all of the primary's run, which begins when nothing arrives any more
#
my $second = PostgreSQL::Test::Cluster->new('second');
$standby->stop('fast');
$standby->start;
$standby->safe_psql('postgres', 'ALTER SYSTEM RESET primary_conninfo');
$standby->backup('second');
$second->init_from_backup($standby, 'second', has_streaming => 1);
$second->start;
my $session = $second->background_psql('postgres');
is($session->query_safe("SELECT state FROM idem_begin('shared')"), 'replayed', 'a session reads before the promotion');
cut_off($standby, $second);
my @unknown = storm($standby, 200);
$standby->stop('immediate');
promote($second);
my @newest = ($session->query_safe("SELECT fence FROM idem_begin('after', lease => '1 hour')"), storm($second, 200));
is(scalar @newest, 201, 'promoted: fences, the first one in the session of before');
cmp_ok(min(@newest), '>', max(@unknown), 'promoted: and all are higher than those of the primary');
$session->quit;

#
# Within a run, fences follow each other
#
my @fences = map { $second->safe_psql('postgres', take_over('run')) } 1 .. 3;
is($fences[2] - $fences[0], 2, 'a run goes on with the next number, in each session');

# A sequence that is ahead of the clock: the primary is restarted when its standby has lost contact,
# and both go on from the same number.
$second->safe_psql('postgres', "SELECT setval('idem_fence', nextval('idem_fence') + 1000000000000000)");
my ($ahead) = storm($second, 1);
my $third = PostgreSQL::Test::Cluster->new('third');
$second->safe_psql('postgres', 'ALTER SYSTEM RESET primary_conninfo');
$second->backup('third');
$third->init_from_backup($second, 'third', has_streaming => 1);
$third->start;
cut_off($second, $third);
crash($second);
promote($third);
my @both = (storm($second, 100), storm($third, 100));
is(scalar @both, 200, 'ahead of the clock, a restarted primary and its promoted standby go on');
cmp_ok(min(@both), '>=', $ahead + 2**20, 'they leave a gap');
is(twice(@both), '', 'and not the same one');
$third->stop('fast');

# Several sessions want the first fence of a run at once.
crash($second);
my @at_once = end_storm(start_storm($second, 8, 20));
is(scalar @at_once, 160, 'sessions begin a run together');
is(twice(@both, @at_once), '', 'and get different fences');

$second->stop('fast');

done_testing();
