
# The blocks of a document, for the tests that run them.

package IdemDocs;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils;

our @EXPORT = qw(blocks trimmed promql);

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

# The queries of a document's blocks for Prometheus, a list for each block.  A query begins at the
# margin; its further lines are indented.
sub promql
{
	my ($file) = @_;

	return map
	{
		my $text = $_->[1] =~ s/^#.*\n//mgr;
		[ map { s/\s+/ /gr =~ s/ $//r } $text =~ /^(\S.*\n(?:[ \t]+\S.*\n)*)/mg ]
	} grep { $_->[0] eq 'promql' } blocks($file);
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
