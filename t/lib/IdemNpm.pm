# What a folder with a package-lock.json asks of npm.

package IdemNpm;

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(basename);
use File::Copy qw(copy);
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(npm_ci);

# A copy of the folder with the packages of its lock file; undef, and why, if npm does not bring them.
sub npm_ci
{
	my ($from) = @_;
	my $folder = PostgreSQL::Test::Utils::tempdir() . '/' . basename($from);
	my ($out, $err) = ('', '');

	mkdir $folder or die "$folder: $!";
	for my $file (glob "$from/*.{js,json,prisma}")
	{
		copy($file, $folder) or die "$file: $!";
	}
	local $ENV{HOME} = $folder;
	# Node.js does not know the system's certificates by itself
	local $ENV{NODE_EXTRA_CA_CERTS} = $ENV{NODE_EXTRA_CA_CERTS} // '/etc/ssl/certs/ca-certificates.crt';
	my $installed = eval {
		IPC::Run::run([ 'npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund', '--fetch-retries=1', '--loglevel=error', '--prefix', $folder ],
			'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(400));
	};
	diag("npm ci: $@$err") if !$installed;
	return $installed ? $folder : undef;
}

1;
