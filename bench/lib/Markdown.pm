# How figures and prose are written in a page of Markdown.
package Markdown;

use strict;
use warnings;
use utf8;
use open qw(:encoding(UTF-8));
use Exporter qw(import);
use File::Basename qw(dirname);
use File::Path qw(make_path);
use List::Util qw(max min);
use Results;

our @EXPORT = qw(number two spread with_spread milliseconds thousands out table write_page);

# 1234567 is 1,234,567; small ones keep what counts
sub number
{
	my ($x) = @_;
	return '' unless defined $x;
	my $s = sprintf $x == 0 || abs $x >= 100 ? '%.0f' : abs $x >= 10 ? '%.1f' : '%.2f', $x;
	$s = '0' if $x == 0;
	1 while $s =~ s/^(-?\d+)(\d{3})/$1,$2/;
	return $s;
}
sub two { return defined $_[0] ? sprintf('%.2f', $_[0]) : '' }
sub spread { return @_ ? two(min @_) . '–' . two(max @_) : '' }
sub with_spread { return @_ ? two(median(@_)) . ' (' . spread(@_) . ')' : '' }
sub milliseconds { return defined $_[0] ? sprintf($_[0] >= 100000 ? '%.0f' : $_[0] >= 10000 ? '%.1f' : '%.2f', $_[0] / 1000) : '' }

my @lines;    # of the page
sub out { push @lines, map({ wrapped($_) } @_), '' }

# Prose in lines of 112 columns at most; tables, headings and code stay.
sub wrapped
{
	my ($text) = @_;

	return $text if $text =~ /^(?:[|#]|```)/;
	return join "\n", map { filled($_) } split /\n/, $text;
}

sub filled
{
	my ($line, @words) = split / /, $_[0];
	my $indent = $line eq '-' ? '  ' : '';
	my @filled;

	for my $word (@words)
	{
		if (length("$line $word") > 112) { push @filled, $line; $line = "$indent$word" }
		else { $line .= " $word" }
	}
	return join "\n", @filled, $line;
}

sub table
{
	my ($head, @rows) = @_;
	@rows = grep { grep { defined && length } @$_[ 1 .. $#$_ ] } @rows;
	return unless @rows;
	out(join "\n", map({ my $row = $_; '| ' . join(' | ', map { $_ // '' } @$row) . ' |' } $head),
		'| --- |' . ' ---: |' x (@$head - 1),
		map({ my $row = $_; '| ' . join(' | ', map { $_ // '' } @$row) . ' |' } @rows));
}

sub thousands { my ($n) = @_; return $n =~ /^1(0*)$/ ? '10^' . length $1 : number($n) }

sub write_page
{
	my ($page) = @_;

	make_path(dirname $page);
	pop @lines while @lines && $lines[-1] eq '';
	open my $to, '>', $page or die "$page: $!\n";
	print $to join("\n", @lines), "\n";
	close $to or die "$page: $!\n";
}

1;
