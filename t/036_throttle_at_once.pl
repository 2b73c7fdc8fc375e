
# Many sessions at once: the throttle admits as many as it says, counts each call, and
# loses no entry.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IdemThrottle;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_throttle_node('preloaded');

my $one = "SELECT nextval('admitted') FROM idem_throttle('%s', '10 years', %s) WHERE allowed;\n";
is(storm($node, 'one', 10, sprintf $one, 'one', 'NULL'), 1, '50 sessions, 500 calls: one is admitted');
counts($node, '1|499|0', 'and 499 are not');
is(storm($node, 'rolled_back', 10, "BEGIN;\n" . sprintf($one, 'rolled back', 1) . "ROLLBACK;\n"), 1, 'rolled back: one is admitted');
counts($node, '1|499|0', 'rolled back as well');
is( storm(
		$node, 'mixed', 10, "\\set r random(0, 2)\nBEGIN;\nSAVEPOINT s;\n" . sprintf($one, 'mixed', 7) . "\\if :r = 0\nROLLBACK TO s;\n\\endif\n\\if :r = 1\nROLLBACK;\n\\else\nCOMMIT;\n\\endif\n"),
	7, 'max_calls 7, some rolled back: 7 are admitted');
counts($node, '7|493|0', 'and 493 are not');
# without a lock these would lose each other's calls
is(storm($node, 'loops', 2, "SELECT count(nextval('admitted')) FROM generate_series(1, 1000) i, idem_throttle('loops', '10 years', 20000, cost => 1 + 0 * i) WHERE allowed;\n"),
	20000, 'max_calls 20000, 100000 calls in loops: 20000 are admitted');
counts($node, '20000|80000|0', 'and 80000 are not');
# by the real clock
my $began = time();
my $admitted = storm($node, 'pace', 20, "SELECT count(nextval('admitted')) FROM generate_series(1, 20) i, idem_throttle('pace', '50 ms', 1 + 0 * i) WHERE allowed;\n");
my $most = int((time() - $began) / 0.05) + 1;
cmp_ok($admitted, '<=', $most, "one in 50 ms: $admitted are admitted, of $most periods");
cmp_ok($admitted, '>=', 2, 'time goes on');

# Evictions in two partitions, whose locks are often wanted at once, and a limit that
# ends after all others, which they must neither forget nor lose.
restart($node, entries => 1024, empty => 1);
$admitted = storm($node, 'evictions', 10, <<'SQL');
SELECT count(nextval('admitted')) FROM generate_series(1, 5) i, idem_throttle('last', '10 years', 200, cost => 1 + 0 * i) WHERE allowed;
SELECT count(*) FROM generate_series(1, 395) i, idem_throttle('e' || (random() * 4000)::int, '1 hour', 2 + 0 * i);
SQL
is($admitted, 200, 'with evictions in between: 200 are admitted');
my @counted = split /\|/, counted($node);
is($counted[0] + $counted[1], 200_000, "no call is lost: $counted[0] allowed, $counted[1] rejected");
cmp_ok($counted[2], '>', 10_000, "$counted[2] were evicted");
# no entry has been lost, nor is one there twice
my $longer = "SELECT count(*) FILTER (WHERE allowed) FROM generate_series(1, 1000) i, idem_throttle('y' || i, '9 years', 1 + 0 * i)";
is($node->safe_psql('postgres', $longer), 1000, 'new ones of a longer period');
counts($node, '1000|0|1000', 'take the places of others');
is($node->safe_psql('postgres', $longer), 0, 'and keep them');

# Many partitions are filled at once: the first that finds no free entry is the 50001st.
restart($node, entries => 50000, empty => 1);
storm($node, 'filled', 4, "SELECT count(*) FROM generate_series(1, 500) i, idem_throttle('f' || random(), '1 hour', 1 + 0 * i);\n");
counts($node, '100000|0|50000', '50 sessions fill a table of 50000, and again');
$node->stop;
is(-s throttle_file($node), 76 + 32 * 50000, 'there are 50000');

done_testing();
