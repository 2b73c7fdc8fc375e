
# PostgreSQL 18 takes the extension from a folder that has nothing else, as an image of
# CloudNativePG is mounted: packaging/cloudnativepg/Dockerfile copies the same folder.

use strict;
use warnings;

use File::Find;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('image', schema => undef);

plan skip_all => 'extension_control_path is new in PostgreSQL 18' if $node->pg_version < 18;

my $image = PostgreSQL::Test::Utils::tempdir() . '/image';
{
	local %ENV = %ENV;

	delete @ENV{ 'MAKEFLAGS', 'MAKELEVEL', 'MFLAGS', 'MAKEOVERRIDES' };
	system_or_bail('make', '-s', '-C', "$FindBin::RealBin/..", 'with_llvm=no', 'PG_CONFIG=pg_config', "IMAGE=$image", 'install-image');
}

my @files;
find({ no_chdir => 1, wanted => sub { push @files, s{^\Q$image\E/}{}r if !-d } }, $image);
is(join("\n", map { s/--.*/--*.sql/r } sort @files), <<'END' =~ s/\n\z//r, 'the files of the image');
lib/idempotency.so
share/extension/idempotency--*.sql
share/extension/idempotency--*.sql
share/extension/idempotency--*.sql
share/extension/idempotency.control
END

# The installed extension is there as well: what is used says which of the two it is.
my $control = "$image/share/extension/idempotency.control";
my $text = slurp_file($control);
$text =~ s/^comment = .*/comment = 'from the image'/m or die 'no comment';
unlink $control;
append_to_file($control, $text);

$node->append_conf('postgresql.conf', <<"CONF");
extension_control_path = '$image/share:\$system'
dynamic_library_path = '$image/lib:\$libdir'
shared_preload_libraries = 'idempotency'
CONF
$node->restart;
is($node->safe_psql('postgres', "SELECT comment FROM pg_available_extensions WHERE name = 'idempotency'"), 'from the image', 'the control file');
is($node->safe_psql('postgres', <<'SQL'), "t\nt\nf", 'created at an earlier version, updated, used');
CREATE EXTENSION idempotency VERSION '0.1.0';
SELECT idem_claim('k');
ALTER EXTENSION idempotency UPDATE;
SELECT extversion = default_version FROM pg_extension JOIN pg_available_extensions ON name = extname WHERE extname = 'idempotency';
SELECT idem_claim('k');
SQL
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'idempotency purge launcher'"), '1', 'the background worker runs');

# both what was preloaded and what functions are in
is($node->safe_psql('postgres', <<'SQL'), "f\n$image/lib/idempotency.so", 'the library');
SELECT idem_claim('k');
SELECT string_agg(DISTINCT m[1], ' ') FROM regexp_matches(pg_read_file('/proc/self/maps'), '(/\S*/idempotency[.]so)', 'g') m;
SQL

done_testing();
