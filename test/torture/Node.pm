# One PostgreSQL server of the torture: two of them are primary and synchronous
# standby, in changing roles.
package Node;
use strict;
use warnings;
use DBI;
use File::Path qw(remove_tree);
use POSIX ();
use Time::HiRes qw(sleep time);

# name; base: folder of the run; bin: PostgreSQL's programs; conf: settings
sub new
{
	my ($class, %self) = @_;
	my $dir = "$self{base}/$self{name}";

	# the disks may be mounts, which can be filled; logs and sockets are not there
	return bless {
		%self,
		socket => $dir,
		data_disk => "$dir/data",
		wal_disk => "$dir/wal",
		data => "$dir/data/pg",
		wal => "$dir/wal/pg",
		log => "$self{base}/$self{name}.log"
	}, $class;
}

# A program of PostgreSQL's; true if it succeeds.
sub program
{
	my ($node, $name, @args) = @_;
	my $pid = fork // die "fork: $!";

	if (!$pid)
	{
		open STDOUT, '>>', "$node->{base}/programs.log";
		open STDERR, '>&', \*STDOUT;
		exec "$node->{bin}/$name", @args or POSIX::_exit(127);
	}
	waitpid $pid, 0;
	return $? == 0;
}

sub write_file
{
	my ($path, $text) = @_;

	open my $file, '>', $path or die "$path: $!";
	print $file $text;
	close $file or die "$path: $!";
	return;
}

# What is its own: a base backup brings that of the other one.
sub configure
{
	my ($node, $more) = @_;

	write_file("$node->{data}/torture.conf", <<"CONF");
$node->{conf}
cluster_name = '$node->{name}'
unix_socket_directories = '$node->{socket}'
$more
CONF
	$node->reset;
	return;
}

# From the next start on, nothing of what ALTER SYSTEM has set.
sub reset { return write_file("$_[0]{data}/postgresql.auto.conf", '') }

sub create
{
	my ($node) = @_;

	# small segments: a full disk is met sooner
	$node->program('initdb', qw(-U torture -A trust -E UTF8 --locale=C --data-checksums --no-sync --wal-segsize=1),
		'-D', $node->{data}, '--waldir', $node->{wal})
	  or die 'initdb failed';
	open my $file, '>>', "$node->{data}/postgresql.conf" or die $!;
	print $file "include 'torture.conf'\n";
	close $file or die $!;
	$node->configure('');
	return;
}

# Make it a standby of another; false if that one went away meanwhile.
sub follow
{
	my ($node, $primary) = @_;
	my $source = "host=$primary->{socket} port=5432 user=torture";

	$node->kill_all;
	remove_tree($node->{data}, $node->{wal});
	$node->program('pg_basebackup', qw(-X stream -c fast --no-sync -d), $source, '-D', $node->{data}, '--waldir', $node->{wal})
	  or return 0;
	$node->configure("primary_conninfo = '$source'");
	write_file("$node->{data}/standby.signal", '');
	return $node->start;
}

# Until it answers, which takes a crash recovery perhaps.
sub start
{
	my ($node) = @_;
	my $until = time + 60;

	# those of a predecessor may still hold the shared memory
	until ($node->program('pg_ctl', qw(-s -w -t 40 start -D), $node->{data}, '-l', $node->{log}))
	{
		return 0 if time > $until;
		sleep 0.2;
	}
	return 1;
}

sub postmaster
{
	my ($node) = @_;

	open my $file, '<', "$node->{data}/postmaster.pid" or return;
	my ($pid) = (readline($file) // '') =~ /^(\d+)$/;
	return $pid;
}

# All of its processes, whether or not they have a postmaster.
sub pids
{
	my ($node) = @_;

	return grep { (readlink("/proc/$_/cwd") // '') =~ /^\Q$node->{data}\E( \(deleted\))?$/ } map { /(\d+)/ } glob '/proc/[0-9]*';
}

sub children
{
	my ($parent) = @_;
	my @children;

	for my $path (glob '/proc/[0-9]*/stat')
	{
		open my $stat, '<', $path or next;
		push @children, $1 if (readline($stat) // '') =~ /^(\d+) \(.*\) \S $parent /;
	}
	return @children;
}

# Fencing: when this returns, nothing of it can acknowledge anything any more.
sub kill_all
{
	my ($node) = @_;

	for (1 .. 500)
	{
		my @pids = $node->pids or return;
		my $postmaster = $node->postmaster // 0;
		# the postmaster first, it would make new ones
		kill 'KILL', grep({ $_ == $postmaster } @pids), @pids;
		sleep 0.02;
	}
	die "processes of node $node->{name} cannot be killed";
}

# Rows, or undef if that failed; $@ has the reason.  Not for long, and without
# the standby, which may be down.
sub query
{
	my ($node, $sql, @bind) = @_;

	return eval {
		my $dbh = DBI->connect(
			"dbi:Pg:host=$node->{socket};port=5432;dbname=postgres;connect_timeout=3;application_name=faults;"
			  . q{options='-c statement_timeout=10s -c lock_timeout=0 -c synchronous_commit=local'},
			'torture', '', { AutoCommit => 1, RaiseError => 1, PrintError => 0, PrintWarn => 0 });
		my $sth = $dbh->prepare($sql);
		$sth->execute(@bind);
		$sth->{NUM_OF_FIELDS} ? $sth->fetchall_arrayref : [];
	};
}

sub value
{
	my $rows = query(@_);

	return $rows && @$rows ? $rows->[0][0] : undef;
}

# The process of that kind.
sub process { return $_[0]->value('SELECT pid FROM pg_stat_activity WHERE backend_type = $1', $_[1]) }

# Does it take writes?
sub is_primary { return ($_[0]->value('SELECT pg_is_in_recovery()') // 1) eq '0' }

# Has its synchronous standby everything up to there, and will it have what is acknowledged?
sub has_standby
{
	my ($node, $lsn) = @_;

	return $node->value(
		q{SELECT count(*) FROM pg_stat_replication
		  WHERE sync_state IN ('sync', 'quorum') AND state = 'streaming' AND flush_lsn >= $1::pg_lsn}, $lsn);
}

# The text of the log from an offset on, and its new end.
sub log_since
{
	my ($node, $offset) = @_;

	open my $file, '<', $node->{log} or return ('', 0);
	seek $file, $offset, 0;
	local $/;
	my $text = readline($file) // '';
	return ($text, $offset + length $text);
}

1;
