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
use List::Util qw(max min);
use Markdown;
use Results;

our @EXPORT = qw(plots_go_to bars size_plot lying_bars outcomes);

my $plots;    # their folder
sub plots_go_to { ($plots) = @_ }

my %colour = (floor => '#999999', five => '#7fb2d9', hand => '#3b7fb6', lock => '#2c6aa0', unique => '#1f4e79', redis => '#c0392b',
	calls => '#f7c873', cte => '#f0a830', call => '#e08a12', function => '#b96a05', trigger => '#7d4a00');
# gnuplot takes an underscore for a subscript
sub label { my ($c) = @_; (my $name = $name{$c}) =~ s/_/\\_/g; return $name }
# where there is little room
sub short_label { my ($c) = @_; return label($c) =~ s/^one function by hand/by hand/r =~ s/^five statements/by hand, 5 statements/r =~ s/^Redis as .*/Redis of Debian/r }
my $gnuplot = grep { -x "$_/gnuplot" } File::Spec->path;
my $gnuplot_head = "set encoding utf8\nset border 3 lc rgb '#444444'\nset tics nomirror\nset grid ytics lc rgb '#dddddd' lt 1\n";

sub plot
{
	my ($file, $size, $script) = @_;
	return unless $gnuplot;
	make_path($plots);
	open my $to, '|-', 'gnuplot' or die "gnuplot: $!\n";
	print $to "set terminal svg size $size font 'sans-serif,13' background rgb 'white'\nset output '$plots/$file.svg'\n$gnuplot_head$script";
	close $to or die "gnuplot failed\n";
	out('![' . $file . '](' . basename($plots) . "/$file.svg)");
}

# A bar for each contestant, with its spread.
sub bars
{
	my ($file, $title, $label, $log, @groups) = @_;    # a group: title, work
	my ($script, $x, $data, $n, @tics) = ('', 0, '', 0);

	for my $group (@groups)
	{
		my ($what, $work, $figure) = @$group;
		my $from = $x;
		for my $c (@all)
		{
			my @v = values_of($work, $c, $figure) or next;
			$data .= sprintf "%d %g %g %g 0x%s\n", $x++, median(@v), min(@v), max(@v), substr $colour{$c}, 1;
		}
		next if $x == $from;
		# a % in it would be a format
		push @tics, sprintf "'%s' %g", $what =~ s/%/%%/r, ($from + $x - 1) / 2;
		$x += 1.5;
		$n++;
	}
	return unless $n;
	$script = "\$d << E\n${data}E\nset title '$title'\nset ylabel '$label'\nset style fill solid\nset boxwidth 0.9\n"
		. 'set xtics scale 0 (' . join(', ', @tics) . ")\nset xrange [-1:" . ($x - 0.5) . "]\n"
		. ($log ? "set logscale y\nset yrange [*:*]\n" : "set yrange [0:*]\nset format y '%.0f'\n")
		. "set key outside right top reverse Left samplen 1 spacing 1.1\n"
		. 'plot $d using 1:2:5 with boxes lc rgb variable notitle, $d using 1:3:(0):($4-$3) with vectors nohead lc rgb "#222222" notitle'
		. join('', map { ", NaN with boxes lc rgb '$colour{$_}' title '" . label($_) . "'" } grep { my $c = $_; grep { values_of($_->[1], $c, $_->[2]) } @groups } @all)
		. "\n";
	plot($file, '960,420', $script);
}

sub size_plot
{
	my %line = (hand => [ '#3b7fb6', 'by hand' ], function => [ '#e08a12', 'ours' ]);
	my @sizes = @_;
	my $script = '';
	my $most = max(map { my $w = $_; map { values_of($w, $_, 'per_s') } keys %line } grep { /^size/ } keys %figure);

	$script .= "set multiplot layout 1,3 margins 0.10,0.99,0.34,0.88 spacing 0.03,0\nset logscale x\nset format x '10^{%L}'\nset format y '%.0f'\n"
		. "set yrange [0:" . $most * 1.05 . "]\nset xlabel 'keys in the table'\nset xrange [" . $sizes[0] / 2 . ':' . $sizes[-1] * 2 . "]\n"
		. "set ylabel 'requests a second'\n";
	for my $what ([ first => 'first runs' ], [ checkpoint => 'first runs, right after a checkpoint' ], [ replay => 'replays' ])
	{
		my @curves;
		for my $kind (qw(uuid seq))
		{
			for my $c (qw(hand function))
			{
				my $data = '';
				for my $n (@sizes)
				{
					my @v = values_of("size.$kind.$n.$what->[0]", $c, 'per_s') or next;
					$data .= sprintf "%d %g %g %g\n", $n * ($c eq 'hand' ? 0.96 : 1.04), median(@v), min(@v), max(@v);
				}
				next unless $data;
				my $block = "\$$what->[0]$kind$c";
				$script .= "$block << E\n${data}E\n";
				my $style = "lc rgb '$line{$c}[0]' pt " . ($kind eq 'uuid' ? '7' : '6') . ($kind eq 'uuid' ? '' : ' dt 2');
				push @curves, "$block using 1:3:(0):(\$4-\$3) with vectors nohead lc rgb '$line{$c}[0]' notitle, $block using 1:2 with linespoints $style ps 0.6 title '$line{$c}[1], "
					. ($kind eq 'uuid' ? 'uuids' : 'sequential') . "'";
			}
		}
		$script .= "set title '$what->[1]'\n" . ($what->[0] eq 'first' ? "set key at screen 0.5, screen 0.19 center top samplen 2 width 2\n" : "unset key\nset format y ''\nunset ylabel\n")
			. 'plot ' . join(', ', @curves) . "\n" if @curves;
	}
	plot('sizes', '960,460', $script . "unset multiplot\n");
}

# Bars that lie, in panels side by side, the contestants' names at the left.  A panel: title, work, figure.
sub lying_bars
{
	my ($file, $contestants, @panels) = @_;
	my @shown = grep { my $c = $_; grep { values_of($_->[1], $c, $_->[2]) } @panels } @$contestants;
	my $tics = join ', ', map { "'" . short_label($shown[$_]) . "' $_" } 0 .. $#shown;
	my $left = 0.225;
	my $width = (0.995 - $left) / (@panels || 1);
	my $height = 40 + 24 * @shown;
	my $script = "set multiplot\nset border 2 lc rgb '#888888'\nset ytics textcolor rgb 'black'\nunset grid\nunset xtics\nset style fill solid\nset tmargin at screen " . (1 - 30 / $height) . "\nset bmargin at screen 0.02\n"
		. 'set yrange [' . (@shown - 0.4) . ":-0.6]\n";

	return unless @shown;
	for my $i (0 .. $#panels)
	{
		my ($title, $work, $figure) = @{ $panels[$i] };
		my @medians = map { typical($work, $_, $figure) } @shown;
		my $most = max(grep { defined } @medians) or next;
		my $data = join '', map { defined $medians[$_] ? sprintf("%d %g 0x%s \"%s\"\n", $_, $medians[$_], substr($colour{ $shown[$_] }, 1), number($medians[$_])) : '' } 0 .. $#shown;
		$script .= "\$d$i << E\n${data}E\nset title \"$title\" offset 0,-0.6\nset ytics scale 0 (" . ($i ? join(', ', map { "'' $_" } 0 .. $#shown) : $tics) . ")\n"
			. 'set lmargin at screen ' . ($left + $i * $width + ($i ? 0.012 : 0)) . "\nset rmargin at screen " . ($left + ($i + 1) * $width) . "\n"
			. 'set xrange [0:' . $most * (1.1 + 0.1 * @panels) . "]\n"
			. "plot \$d$i using (0):1:(0):2:(\$1-0.36):(\$1+0.36):3 with boxxyerror lc rgb variable notitle, '' using 2:1:4 with labels left offset 0.5,0 notitle\n";
	}
	return plot($file, "760,$height", $script . "unset multiplot\n");
}

# What is left of a request whose parts were killed: a table in colours.
sub outcomes
{
	my ($file, $contestants, $kills) = @_;    # a kill: its moment in the results, title
	my @shown = grep { $fate{$_} } @$contestants;
	my $script = "unset border\nunset tics\nunset grid\nset lmargin at screen 0.225\nset rmargin at screen 0.995\nset tmargin at screen 0.995\nset bmargin at screen 0.01\n"
		. 'set xrange [0:' . @$kills . "]\nset yrange [" . @shown . ":-1.25]\n";

	return unless @shown;
	for my $x (0 .. $#$kills)
	{
		$script .= sprintf "set label \"%s\" at %g,-0.78 center\n", $kills->[$x][1], $x + 0.5;
		for my $y (0 .. $#shown)
		{
			my $fate = $fate{ $shown[$y] }{ $kills->[$x][0] };
			$script .= sprintf "set object rect from %g,%g to %g,%g fc rgb '%s' fs solid noborder\nset label \"%s\" at %g,%g center tc rgb '%s'\n",
				$x + 0.01, $y + 0.04, $x + 0.99, $y + 0.96, (!defined $fate ? '#eeeeee' : $fate eq 'once' ? '#cfe8cf' : '#c0392b'),
				lc($fate // ''), $x + 0.5, $y + 0.5, defined $fate && $fate ne 'once' ? '#ffffff' : '#1d3d1d';
		}
	}
	$script .= join '', map { sprintf "set label \"%s\" at -0.02,%g right\n", short_label($shown[$_]), $_ + 0.5 } 0 .. $#shown;
	return plot($file, '760,' . (38 + 30 * @shown), "${script}plot NaN notitle\n");
}

1;
