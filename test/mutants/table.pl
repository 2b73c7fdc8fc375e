#!/usr/bin/env perl
# Reads the tables of mutants, for test/mutants/run.
#
#   table.pl check ROOT         every edit fits exactly once, every test exists; else says what is wrong
#   table.pl list               one line a mutant: name, oldest PostgreSQL, tests, files, separated by tabs
#   table.pl tests ROOT         one line a test: name, the files that it is made of, separated by blanks
#   table.pl changed            of a diff of tables on standard input: mutants with new lines
#   table.pl apply NAME ROOT    changes the files below ROOT
#
# A table is a *.txt file in this folder; README.md there describes its lines.
use strict;
use warnings;
use File::Basename;
use File::Find;

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

# Files that a file of a test names: modules of Perl, looked for in some folders, modules that it
# builds, and paths below the root, also folders and patterns.  Not other tests, and not what is tested.
sub named_files
{
	my ($root, $file, $folders) = @_;
	my %named;

	foreach my $line (split /\n/, text_of($root, $file) // '')
	{
		next if $line =~ /^\s*(?:#|--)/;
		push @$folders, $1 if $line =~ m{^use lib "\$FindBin::RealBin/\.\./([\w/]+)"};
		$named{"$_/$1.pm"} = 1 foreach $line =~ /^use (\w+)/ ? @$folders : ();
		$named{"test/modules/$_"} = 1 foreach $line =~ /\bbuild_module\('(\w+)'\)/g;
		while ($line =~ m{([\w.*/-]+)}g)
		{
			my $path = $1 =~ s{^(?:.*\.\./|/)}{}r;

			next if $path !~ m{\w/[\w*]|^\w+\.md$} || $path =~ m{^src/|^test/mutants/};
			$named{$_} = 1 foreach map { s{^\Q$root\E/}{}r } glob("$root/$path");
		}
	}
	foreach my $folder (grep { m{^(?:t|sql|specs|test)/\w} && -d "$root/$_" } keys %named)
	{
		find({ no_chdir => 1, wanted => sub { $named{ $File::Find::name =~ s{^\Q$root\E/}{}r } = 1 } }, "$root/$folder");
	}
	return grep { -f "$root/$_" && !m{^(?:t/[0-9]|sql/[^/]+$|specs/[^/]+$)} } sort keys %named;
}

# What a test is made of: its file, what it expects, and what these files use.
sub test_files
{
	my ($root, $test) = @_;
	my @files = test_file($test);
	my @folders = ('t/lib');
	my %seen;

	if ($test !~ m{^t/})
	{
		push @files, 'test/temp.conf', map { s{^\Q$root\E/}{}r } glob("$root/expected/${test}.out $root/expected/${test}_[0-9].out");
	}
	# the list grows
	for (my $i = 0; $i < @files; $i++)
	{
		push @files, named_files($root, $files[$i], \@folders) if !$seen{ $files[$i] }++ && $files[$i] !~ m{^(?:expected|doc)/|\.md$};
	}
	return sort keys %seen;
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
elsif ($command eq 'tests' && @ARGV == 1)
{
	my $root = shift;
	my %tests = map { $_ => 1 } map { @{ $_->{tests} } } @$mutants;

	print "$_ ", join(' ', test_files($root, $_)), "\n" foreach sort keys %tests;
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
	die "usage: table.pl check ROOT | list | tests ROOT | changed | apply NAME ROOT\n";
}
