
# The blocks of a document, for the tests that run them.

package IdemDocs;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils;

our @EXPORT = qw(blocks trimmed);

# Fenced blocks of a file: [language, text, line], indentation taken off.
sub blocks
{
	my ($file) = @_;
	my (@blocks, $block, $indent);
	my $n = 0;

	for my $line (split /\n/, slurp_file($file))
	{
		$n++;
		if ($block && $line =~ /^\s*```$/)
		{
			push @blocks, $block;
			undef $block;
		}
		elsif ($block)
		{
			$line =~ s/^$indent//;
			$block->[1] .= "$line\n";
		}
		elsif ($line =~ /^(\s*)```(\w*)$/)
		{
			$indent = $1;
			$block = [ $2, '', $n ];
		}
	}
	die "$file: unfinished block" if $block;
	return @blocks;
}

# psql pads cells with blanks that an editor may have cut
sub trimmed
{
	my ($text) = @_;

	$text =~ s/[ \t]+$//mg;
	$text =~ s/\n+\z//;
	return $text;
}

1;
