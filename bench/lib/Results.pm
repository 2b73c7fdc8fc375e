# What a run of bench/run has measured, and its medians, spreads and ratios.
package Results;

use strict;
use warnings;
use utf8;
use open qw(:encoding(UTF-8));
use Exporter qw(import);
use List::Util qw(sum0);

our @EXPORT = qw(%name @rivals @ours @all @once %figure %text @loads %commits %dates %rounds $run $version
	read_results median values_of typical ratios ratio @moments %fate kills bad_kills sizes growth);

our %name = (floor => 'no protection', five => 'five statements', hand => 'one function by hand',
	lock => 'one function by hand, with a lock',
	unique => 'unique constraint', redis => 'Redis', calls => 'ours: three calls', cte => 'ours: one statement',
	call => 'ours: idem_call', function => 'ours: in a function', trigger => 'ours: trigger', begin => 'idem_begin alone',
	select => 'SELECT by primary key', claim_many => 'idem_claim_many', same_rows => 'INSERT of the same rows',
	inbox => 'INSERT into an inbox by hand', 'redis-rdb' => 'Redis as Debian sets it up');
our @rivals = qw(floor five hand lock unique redis);
our @ours = qw(calls cte call function trigger);
our @all = (@rivals, @ours);
our @once = qw(cte call function);    # in one round trip, with an answer to replay

our (%figure, %text, @loads, %commits, %dates, %rounds, $run, $version);

sub read_results
{
	my ($file) = @_;

	open my $in, '<', $file or die "$file: $!\n";
	while (<$in>)
	{
		chomp;
		my ($r, $commit, $date, $pg, $work, $contestant, $round, $figures, $end) = split /\t/;
		next unless defined $end && $end eq '.';
		($run, $version) = ($r, $pg);
		$commits{$commit} = 1;
		$dates{substr $date, 0, 10} = 1;
		if ($work eq 'machine') { $text{$contestant} = $figures; next }
		if ($work eq 'load') { push @loads, [ $contestant, $figures ]; next }
		$rounds{$work}{$round} = 1;
		$figure{$work}{$contestant}{$round} = { map { split /=/, $_, 2 } split / /, $figures };
	}
	close $in;
	die "$file has no results\n" unless %figure;
	tell_fates();
}

sub median
{
	my @v = sort { $a <=> $b } @_;
	return undef unless @v;
	return @v % 2 ? $v[ $#v / 2 ] : ($v[ @v / 2 - 1 ] + $v[ @v / 2 ]) / 2;
}

sub values_of
{
	my ($work, $contestant, $what) = @_;
	my $of = ($figure{$work} // {})->{$contestant} // {};

	return map { $of->{$_}{$what} } grep { defined $of->{$_}{$what} } sort { $a <=> $b } keys %$of;
}

sub typical { return median(values_of(@_)) }

# of two contestants: those of one round have run one after the other
sub ratios
{
	my ($work, $a, $b, $what) = @_;
	my ($of, $to) = map { ($figure{$work} // {})->{$_} // {} } $a, $b;

	$what //= 'per_s';
	return map { $of->{$_}{$what} / $to->{$_}{$what} } grep { $to->{$_} && $to->{$_}{$what} } sort keys %$of;
}

sub ratio { return median(ratios(@_)) }

our @moments = ([ 'during.client', 'client, while the order is being placed' ],
	[ 'during.server', 'PostgreSQL, while the order is being placed' ],
	[ 'after.client', 'client, between the order and its record' ],
	[ 'after.server', 'PostgreSQL, between the order and its record' ],
	[ 'after.redis', 'Redis, between the order and its record' ],
	[ 'done.redis', 'Redis, after the answer' ]);

sub fate
{
	my ($f) = @_;
	my $first = $f->{retry} eq 'answer' ? '' : $f->{retry} eq 'pending' ? 'stuck, then ' : 'an error, then ';

	return "${first}lost" if $f->{orders_last} == 0;
	return $first . ($f->{orders_last} > 1 ? 'TWICE' : $f->{last} eq 'answer' ? 'once' : 'once, no answer');
}

our %fate;
sub tell_fates
{
	for my $moment (@moments)
	{
		my $of = $figure{"crash.$moment->[0]"} // {};
		$fate{$_}{ $moment->[0] } = fate($of->{$_}{1}) for keys %$of;
	}
}

# kills of these contestants, and those after which anything was left but one order and its answer
sub kills { return sum0(map { scalar keys %{ $fate{$_} // {} } } @_) }
sub bad_kills { return sum0(map { scalar grep { $_ ne 'once' } values %{ $fate{$_} // {} } } @_) }

# how many keys the tables held
sub sizes { return sort { $a <=> $b } keys %{ { map { /^size\.\w+\.(\d+)/ ? ($1 => 1) : () } keys %figure } } }

# time with the most keys / with the fewest
sub growth
{
	my ($kind, $what, $contestant) = @_;
	my ($few, $many) = map { typical("size.$kind.$_.$what", $contestant, 'per_s') } (sizes())[ 0, -1 ];

	return $few && $many ? $few / $many : ();
}

1;
