# Every SQL block of the README and of doc/ runs as printed, and where a text
# block follows it, that is what psql shows, errors included.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemDocs;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('docs');
$node->init;
# what a page purges, no worker has purged before
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'idempotency'\nidempotency.purge_interval = 0\n");
$node->start;

my $shown = 0;
# t/065_switch_over.pl runs the one that needs two servers, t/070_citus.pl the one that needs Citus
# README.md comes last, so that the role granted there is its own, and not a translation's
for my $file ((grep { !/switch-over|scale/ } sort glob('doc/*.md doc/*/*.md')), 'README.md')
{
	(my $db = $file) =~ s/\W/_/g;
	my @blocks = blocks($file);

	# a page and its translation create the same roles
	for my $role (map { $_->[1] =~ /^CREATE ROLE (\w+)/mg } grep { $_->[0] eq 'sql' } @blocks)
	{
		$node->safe_psql('postgres', qq(ALTER ROLE $role RENAME TO "$role before $db"))
		  if $node->safe_psql('postgres', "SELECT 1 FROM pg_roles WHERE rolname = '$role'");
	}
	$node->safe_psql('postgres', qq(CREATE DATABASE "$db"));
	$node->safe_psql($db, 'CREATE EXTENSION idempotency')
	  unless grep { $_->[0] eq 'sql' && $_->[1] =~ /^CREATE EXTENSION idempotency\b/m } @blocks;
	while (my $block = shift @blocks)
	{
		next unless $block->[0] eq 'sql';

		my ($out, $err);
		my $shows = @blocks && $blocks[0][0] eq 'text';
		my $fails = $shows && $blocks[0][1] =~ /^ERROR:/m;
		my $ok = IPC::Run::run(
			[
				'psql', '-XqP', 'pager=off', '-v', 'ON_ERROR_STOP=' . ($fails ? 0 : 1), '-d',
				$node->connstr($db)
			],
			'<', \$block->[1], '>', \$out, $fails ? '2>&1' : ('2>', \$err));
		ok($ok, "$file:$block->[2] runs") or diag($err);
		if ($shows)
		{
			# the number of a fence is another one each time
			my ($got, $printed) = map { trimmed($_) =~ s/^(ERROR:  fence )\d+/$1N/mr } $out, $blocks[0][1];
			is($got, $printed, "$file:$block->[2] shows what is printed");
			$shown++;
		}
	}
}
cmp_ok($shown, '>', 0, 'some blocks have their output printed');

# What the application of the README and the how-to pages runs, its role may; granting, purging, looking and moving are the owner's.
my %used = map { $_ => 1 } map { $_->[1] =~ /\b(idem_\w+)\(/g } grep { $_->[0] eq 'sql' } map { blocks($_) } 'README.md', grep { !/migrate/ } glob('doc/howto/*.md');
my $may = q{SELECT bool_and(has_function_privilege('shop_api', oid, 'EXECUTE')) FROM pg_proc WHERE proname = '%s'};
is($node->safe_psql('README_md', sprintf $may, $_), 't', "README: the role granted under Install may call $_")
  for grep { !/^idem_(grant|purge|lookup|digest)$/ } sort keys %used;

$node->stop;
done_testing();
