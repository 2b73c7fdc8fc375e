#!/usr/bin/env perl
# Reads the tables of mutants, for test/mutants/run.
#
#   table.pl check ROOT         every edit fits exactly once, every test exists; else says what is wrong
#   table.pl list               one line a mutant: name, oldest PostgreSQL, tests, files, separated by tabs
#   table.pl changed            of a diff of tables on standard input: mutants with new lines
#   table.pl apply NAME ROOT    changes the files below ROOT
#
# A table is a *.txt file in this folder; README.md there describes its lines.
use strict;
use warnings;
use File::Basename;

my $here = dirname(__FILE__);

sub read_tables
{
	my (@mutants, %seen, @errors);

	foreach my $table (sort glob("$here/*.txt"))
	{
		open my $in, '<:utf8', $table or die "cannot open $table: $!\n";
		while (my $line = <$in>)
		{
			my $place = basename($table) . ":$.";

			chomp $line;
			next if $line =~ /^(#|\s*$)/;
			if ($line =~ /^\t(\S+): (.+?) ==>(?: (.*))?$/)
			{
				my %edit = (file => $1, find => $2, put => $3 // '');

				# without the file: one that was only renamed changes nothing
				$edit{line} = substr($line, length("\t$1: "));
				if (@mutants) { push @{ $mutants[-1]{edits} }, \%edit; }
				else { push @errors, "$place: an edit without a mutant"; }
			}
			elsif ($line =~ /^([a-z0-9-]+): (\S.*\S) \[(\S[^\[\]]*)\](?: (\d+)\+)?$/)
			{
				push @errors, "$place: \"$1\" is there twice" if $seen{$1}++;
				push @mutants, { name => $1, line => $line, place => $place, tests => [ split ' ', $3 ], version => $4 // 0, edits => [] };
			}
			else { push @errors, "$place: neither a mutant nor an edit"; }
		}
		close $in;
	}
	push @errors, map { "$_->{place}: $_->{name} has no edit" } grep { !@{ $_->{edits} } } @mutants;
	return (\@mutants, \@errors);
}

# White space of any kind and length matches any other, so that clang-format may break lines anew.
sub pattern
{
	my ($find) = @_;
	my $words = join '\s+', map { quotemeta } split /(?:\s|<NL>)+/, $find;

	return qr/(?<!\w)$words(?!\w)/ if $find =~ /^\w.*\w$/;
	return qr/$words/;
}

sub test_file
{
	my ($test) = @_;

	return $test =~ m{^t/} ? $test : $test =~ /^iso-/ ? "specs/$test.spec" : "sql/$test.sql";
}

# By reference, so that the tree is read once.
my %text;

sub text_of
{
	my ($root, $file) = @_;

	if (!exists $text{$file})
	{
		local $/;
		open my $in, '<:utf8', "$root/$file" or return;
		$text{$file} = <$in>;
		close $in;
	}
	return $text{$file};
}

# The text with the edit made, or what is wrong.
sub edited
{
	my ($text, $edit) = @_;
	my $pattern = pattern($edit->{find});
	my $times = () = $text =~ /$pattern/g;

	return (undef, "found $times times, not once: $edit->{find}") if $times != 1;
	(my $put = $edit->{put}) =~ s/<NL>/\n/g;
	$text =~ s/$pattern/$put/;
	return ($text, undef);
}

sub apply
{
	my ($mutant, $root) = @_;
	my (%changed, @errors);

	foreach my $edit (@{ $mutant->{edits} })
	{
		my $text = $changed{ $edit->{file} } // text_of($root, $edit->{file});
		my $error;

		if (!defined $text)
		{
			push @errors, "$mutant->{place}: $mutant->{name}: there is no file $edit->{file}";
			next;
		}
		($text, $error) = edited($text, $edit);
		if (defined $error) { push @errors, "$mutant->{place}: $mutant->{name}: $edit->{file}: $error"; }
		else { $changed{ $edit->{file} } = $text; }
	}
	return (\%changed, \@errors);
}

my $command = shift // '';
my ($mutants, $errors) = read_tables();

if ($command eq 'check' && @ARGV == 1)
{
	my $root = shift;

	# what is patched is a script that is installed, or leads to this version
	my ($version) = (text_of($root, 'idempotency.control') // '') =~ /^default_version *= *'(.*)'/m;

	foreach my $mutant (@$mutants)
	{
		push @$errors, @{ (apply($mutant, $root))[1] };
		foreach my $test (@{ $mutant->{tests} })
		{
			push @$errors, "$mutant->{place}: $mutant->{name}: there is no test $test" unless -f "$root/" . test_file($test);
		}
		foreach my $edit (@{ $mutant->{edits} })
		{
			push @$errors, "$mutant->{place}: $mutant->{name}: $edit->{file} is not a script of this version"
			  if $edit->{file} =~ /^idempotency--/ && $edit->{file} !~ /--\Q$version\E\.sql$/;
		}
	}
	print map { "$_\n" } @$errors;
	exit(@$errors ? 1 : 0);
}
die map { "$_\n" } @$errors if @$errors;
if ($command eq 'list')
{
	foreach my $mutant (@$mutants)
	{
		my %files = map { $_->{file} => 1 } @{ $mutant->{edits} };

		print join("\t", @$mutant{ 'name', 'version' }, "@{ $mutant->{tests} }", join(' ', sort keys %files)), "\n";
	}
}
elsif ($command eq 'changed')
{
	my %new;

	while (my $line = <STDIN>)
	{
		$new{$2} += $1 eq '+' ? 1 : -1 if $line =~ /^([+-])(?:\t\S+: )?(\S.*)$/;
	}
	foreach my $mutant (@$mutants)
	{
		print "$mutant->{name}\n"
		  if grep { ($new{$_} // 0) > 0 } $mutant->{line}, map { $_->{line} } @{ $mutant->{edits} };
	}
}
elsif ($command eq 'apply' && @ARGV == 2)
{
	my ($name, $root) = @ARGV;
	my ($mutant) = grep { $_->{name} eq $name } @$mutants;
	my ($changed, $wrong) = apply($mutant // die("there is no mutant \"$name\"\n"), $root);

	die map { "$_\n" } @$wrong if @$wrong;
	foreach my $file (keys %$changed)
	{
		open my $out, '>:utf8', "$root/$file" or die "cannot write $root/$file: $!\n";
		print $out $changed->{$file};
		close $out or die "cannot write $root/$file: $!\n";
	}
}
else
{
	die "usage: table.pl check ROOT | list | changed | apply NAME ROOT\n";
}
