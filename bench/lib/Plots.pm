# The plots of a page, by gnuplot; without gnuplot, none.
package Plots;

use strict;
use warnings;
use utf8;
use open qw(:encoding(UTF-8));
use Exporter qw(import);
use File::Basename qw(basename);
use File::Path qw(make_path);
use File::Spec;
use List::Util qw(max min sum);
use Markdown;
use Results;

our @EXPORT = qw(plots_go_to panels size_plot outcomes);

my $plots;    # their folder
sub plots_go_to { ($plots) = @_ }

# In pixels.  A phone shows a picture about 343 wide, so none is much wider.
use constant { WIDTH => 400, NAMES => 160, EDGE => 8, HEAD => 44, LINE => 14, ROW => 26, AXIS => 24 };

my %colour = (floor => '#8a8a8a', map({ $_ => '#2f77b0' } qw(five hand lock unique)), map({ $_ => '#c0392b' } qw(redis redis-rdb)),
	map { $_ => '#c9740a' } @ours);
my $gnuplot = grep { -x "$_/gnuplot" } File::Spec->path;

# A text in lines of so many letters at most (no word is longer), each with its place: downwards, around 0.
sub broken
{
	my ($text, $most) = @_;
	my @lines = $text =~ /(.{1,$most})(?: |$)/g;

	return map { [ $lines[$_], LINE * ($_ - $#lines / 2) ] } 0 .. $#lines;
}

# gnuplot counts in parts of the picture, and upwards.
sub across { return sprintf '%.4f', $_[0] / WIDTH }
sub down { return sprintf '(1 - %g / height)', $_[0] }

# What a panel shows, and how to read it.
sub heading
{
	my ($y, $title, $how) = @_;
	return "set label 1 '{/:Bold $title}' at screen " . across(EDGE) . ', screen ' . down($y + 15)
		. "\nset label 2 '$how' at screen " . across(EDGE) . ', screen ' . down($y + 32) . " tc rgb '#444444'\n";
}

# $alt says what the picture shows to those who do not see it.
sub plot
{
	my ($file, $alt, $height, $script) = @_;
	return unless $gnuplot && $height;
	make_path($plots);
	open my $to, '|-', 'gnuplot' or die "gnuplot: $!\n";
	print $to "set encoding utf8\nset terminal svg size ${\WIDTH},$height name '$file' font 'sans-serif,13' background rgb 'white'\nset output '$plots/$file.svg'\n"
		. "height = $height.0\nset multiplot\nset lmargin at screen " . across(NAMES) . "\nset rmargin at screen " . across(WIDTH - EDGE) . "\nset tics nomirror\nset key noautotitle\n"
		. "${script}unset multiplot\n";
	close $to or die "gnuplot failed\n";
	out("![$alt](" . basename($plots) . "/$file.svg)");
}

# Panels one below the other, each with a scale of its own.  In each, a contestant has its name, a bar (or a dot on
# a logarithmic axis), its spread as whiskers, and its median as text.
sub panels
{
	my ($file, $alt, $how, @panels) = @_;    # $how: reading, contestants, dots; a panel: title, work, figure
	my ($script, $height) = ('', 0);

	for my $panel (@panels)
	{
		my ($title, $work, $figure) = @$panel;
		my @rows = grep { @$_ > 1 } map { [ $_, values_of($work, $_, $figure) ] } @{ $how->{contestants} // \@all } or next;
		my ($top, $bottom) = ($height + HEAD, $height + HEAD + ROW * @rows);
		my ($y, $data, $least, $most, @tics) = (0, '', 'inf', 0);
		for (@rows)
		{
			my ($c, @v) = @$_;
			push @tics, map { sprintf "'%s' %g", $_->[0], $y + $_->[1] / ROW } broken($name{$c}, 21);
			$data .= sprintf qq(%d %g %g %g 0x%s "%s"\n), $y++, median(@v), min(@v), max(@v), substr($colour{$c}, 1), ($how->{dots} ? \&milliseconds : \&number)->(median(@v));
			($least, $most) = (min($least, @v), max($most, @v));
		}
		my $width = WIDTH - NAMES - EDGE;
		my $with_text = $width / ($width - 64);
		$script .= heading($height, $title, $how->{reading}) . "\$d << E\n${data}E\nset tmargin at screen " . down($top) . "\nset bmargin at screen " . down($bottom) . "\n"
			. "set yrange [$y - 0.5:-0.5]\nset ytics scale 0 noenhanced textcolor 'black' (" . join(', ', @tics) . ")\n";
		if ($how->{dots})
		{
			$least /= 1.2;
			$script .= "set border 1 lc rgb '#888888'\nset grid xtics lc rgb '#dddddd' lt 1\nset logscale x\nset xrange [$least:" . $least * ($most / $least)**$with_text . "]\n"
				. "set xtics textcolor 'black' (" . join(', ', map { my $e = $_; map { "'" . $_ * 10**($e - 3) . "' ${_}e$e" } 1, 2, 5 } 0 .. 6) . ")\n"
				. "plot \$d using ($least):1:(1e9):(0) with vectors nohead lc rgb '#dddddd', \$d using 2:1:3:4:5 with xerrorbars pt 7 ps 0.7 lc rgb variable";
			$bottom += AXIS;
		}
		else
		{
			$script .= "set border 2 lc rgb '#888888'\nunset xtics\nset style fill solid\nset xrange [0:" . ($most || 1) * $with_text . "]\n"
				. "plot \$d using (0):1:(0):2:(\$1-0.34):(\$1+0.34):5 with boxxyerror lc rgb variable, \$d using 2:1:3:4 with xerrorbars pt -1 lc rgb '#222222'";
		}
		$script .= ", \$d using 4:1:6 with labels left offset 0.7,0\n";
		$height = $bottom + EDGE;
	}
	plot($file, $alt, $height, $script);
}

# Lines over the number of keys, in panels, each line with its name at its end.
sub size_plot
{
	my ($file, $alt, @sizes) = @_;
	my ($tall, $apart) = (170, 30);    # a panel, the names
	my $height = 0;
	my $script = 'set lmargin at screen ' . across(70) . "\nset rmargin at screen " . across(WIDTH - NAMES - 20) . "\nset border 3 lc rgb '#888888'\nset grid ytics lc rgb '#dddddd' lt 1\n"
		. "set logscale x\nset format x '10^{%L}'\nset xtics textcolor 'black'\nunset mxtics\nset xlabel 'keys in the table' offset 0, 0.7\nset xrange [$sizes[0] / 1.5:$sizes[-1] * 1.5]\n";

	for my $what ([ first => 'first runs' ], [ checkpoint => 'first runs, right after a checkpoint' ], [ replay => 'replays' ])
	{
		my ($most, @lines) = 0;
		for my $kind ([ uuid => 'uuids', '' ], [ seq => 'sequential', 'dt 2' ])
		{
			for my $c (qw(hand function))
			{
				my @points = grep { @$_ > 1 } map { [ $_, values_of("size.$kind->[0].$_.$what->[0]", $c, 'per_s') ] } @sizes or next;
				$_ = [ $_->[0] * 1.12**(@lines - 1.5), median(@$_[ 1 .. $#$_ ]), min(@$_[ 1 .. $#$_ ]), max(@$_[ 1 .. $#$_ ]) ] for @points;
				$most = max($most, map { $_->[3] } @points);
				push @lines, { name => "$name{$c}, $kind->[1]", look => "lc rgb '$colour{$c}' $kind->[2]", colour => $colour{$c}, points => \@points };
			}
		}
		next unless @lines;

		my $step = 10**int(log($most) / log(10));
		$step /= $most / $step < 2 ? 5 : $most / $step < 3 ? 2 : 1;
		$script .= "unset arrow\nunset label\n" . heading($height, $what->[1], 'requests a second, median and spread, higher is better')
			. 'set tmargin at screen ' . down($height + HEAD) . "\nset bmargin at screen " . down($height + HEAD + $tall) . "\n"
			. "set yrange [0:$most * 1.05]\nset ytics textcolor 'black' (" . join(', ', map { "'" . number($_ * $step) . "' " . $_ * $step } 0 .. $most / $step) . ")\n";

		# the names stand as near to the ends of the lines as they can, in their order
		my $at = -$apart;
		@lines = sort { $a->{points}[-1][1] <=> $b->{points}[-1][1] } @lines;
		$_->{end} = $_->{points}[-1][1] / ($most * 1.05) * $tall for @lines;
		$_->{at} = $at = max($at + $apart, $_->{end}) for @lines;
		my $lower = max($at + $apart / 2 - $tall, sum(map { $_->{at} - $_->{end} } @lines) / @lines);

		my @plots;
		for my $line (@lines)
		{
			my ($x, $y) = @{ $line->{points}[-1] };
			my $block = '$line' . @plots;
			my $at = sub { return sprintf 'graph %s, %g', $_[0], ($line->{at} - $lower - $_[1]) / $tall };
			$script .= "$block << E\n" . join('', map { "@$_\n" } @{ $line->{points} }) . "E\nset arrow from $x, $y to " . $at->(1.08, 0) . " nohead lc rgb '#bbbbbb'\n"
				. join '', map { "set label '$_->[0]' at " . $at->(1.1, $_->[1]) . " tc rgb '$line->{colour}'\n" } broken($line->{name}, 21);
			push @plots, "$block using 1:3:(0):(\$4-\$3) with vectors nohead lc rgb '$line->{colour}', $block using 1:2 with linespoints pt 7 ps 0.5 $line->{look}";
		}
		$script .= 'plot ' . join(', ', @plots) . "\n";
		$height += HEAD + $tall + 2 * AXIS + EDGE;
	}
	plot($file, $alt, $height, $script);
}

# What is left of a request whose parts were killed: a table in colours.
sub outcomes
{
	my ($file, $alt, $contestants, $kills) = @_;    # a kill: its moment in the results, its name
	my @shown = grep { $fate{$_} } @$contestants or return;
	my ($letters, $left, $row) = (13, 116, 46);
	my $top = HEAD + LINE * max(map { scalar broken($_->[1], $letters) } @$kills) + 4;
	my $bottom = $top + $row * @shown;
	my $script = heading(0, 'orders placed, by what was killed', '“once” is right; grey: no such kill') . "unset border\nunset tics\nset lmargin at screen " . across($left)
		. "\nset tmargin at screen " . down($top) . "\nset bmargin at screen " . down($bottom) . "\nset xrange [0:" . @$kills . "]\nset yrange [" . @shown . ":0]\n";
	my $write = sub {
		my ($text, $x, $y, $how) = @_;
		$script .= join '', map { "set label '$_->[0]' at $x, " . ($y + $_->[1] / $row) . " $how\n" } broken($text, $letters);
	};

	for my $y (0 .. $#shown)
	{
		$write->($name{ $shown[$y] }, -0.07, $y + 0.5, 'right');
		for my $x (0 .. $#$kills)
		{
			my $fate = $fate{ $shown[$y] }{ $kills->[$x][0] };
			my ($ground, $ink) = !defined $fate ? ('#eeeeee', 'black') : $fate eq 'once' ? ('#cfe8cf', '#1d3d1d') : ('#c0392b', 'white');
			$script .= sprintf "set object rect from %g,%g to %g,%g fc rgb '$ground' fs solid noborder\n", $x + 0.02, $y + 0.04, $x + 0.98, $y + 0.96;
			$write->(lc($fate // ''), $x + 0.5, $y + 0.5, "center tc rgb '$ink'");
		}
	}
	$write->($kills->[$_][1], $_ + 0.5, (HEAD - $top) / $row / 2, 'center') for 0 .. $#$kills;
	plot($file, $alt, $bottom + EDGE, "${script}plot NaN\n");
}

1;
