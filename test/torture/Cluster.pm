# The torture's servers and what is between them and the clients: a primary, its
# synchronous standby, PgBouncer in transaction mode, and a proxy that can fail.
package Cluster;
use strict;
use warnings;
use IO::Socket::UNIX;
use Node;
use POSIX qw(WNOHANG);
use Socket qw(SOCK_DGRAM);
use Time::HiRes qw(sleep time);

# base: folder of the run, with folders a, b, bouncer and proxy; bin: PostgreSQL's
# programs; source: folder of this file; sync: on, off or mix
sub new
{
	my ($class, %self) = @_;
	# The disk for WAL has 256 MB.  Half of it is for a standby that is behind: with asynchronous commits, the
	# primary writes on while the standby is frozen.
	my $conf = <<'CONF';
listen_addresses = ''
max_connections = 250
max_prepared_transactions = 100
shared_buffers = 64MB
shared_preload_libraries = 'idempotency'
idempotency.guess_entries = 100000
idempotency.purge_databases = 'postgres'
idempotency.purge_interval = '1s'
synchronous_standby_names = 'ANY 1 (a, b)'
wal_keep_size = 128MB
wal_retrieve_retry_interval = 100ms
max_wal_size = 64MB
min_wal_size = 32MB
wal_recycle = off
checkpoint_timeout = 30s
autovacuum_naptime = 2s
deadlock_timeout = 50ms
client_connection_check_interval = 500ms
log_line_prefix = '%m [%p] %a %e '
CONF

	# so that a crash loses something
	$conf .= "wal_writer_delay = 10s\n" if $self{sync} ne 'on';
	my @nodes = map { Node->new(name => $_, conf => $conf, base => $self{base}, bin => $self{bin}) } qw(a b);
	return bless { %self, nodes => \@nodes, primary => $nodes[0], standby => $nodes[1] }, $class;
}

sub create
{
	my ($cluster) = @_;
	my ($primary, $standby) = @$cluster{qw(primary standby)};

	$primary->create;
	$primary->start or die 'the primary does not start';
	$primary->program('psql', qw(-X -q -v ON_ERROR_STOP=1 -U torture -d postgres -h), $primary->{socket},
		'-c', 'SET synchronous_commit = local', '-c', 'CREATE EXTENSION idempotency', '-f', "$cluster->{source}/setup.sql",
		'-c', <<'SQL') or die 'setup.sql failed';
CREATE ROLE client LOGIN;
SELECT idem_grant('client', '{claims,call,throttle,tokens,lookup}');
GRANT USAGE ON SCHEMA torture TO client;
GRANT ALL ON ALL TABLES IN SCHEMA torture TO client;
SQL
	$standby->follow($primary) or die 'the standby does not start';
	$cluster->await_standby or die 'the standby does not stream';
	$cluster->start_proxy;
	$cluster->start_bouncer;
	$cluster->publish;
	return;
}

# Until something is so; false if that takes too long.
sub await
{
	my ($cluster, $is_so, $seconds) = @_;
	my $until = time + ($seconds // 40);

	until ($is_so->())
	{
		return 0 if time > $until;
		sleep 0.05;
	}
	return 1;
}

# A process of ours, with its output in a file.
sub spawn
{
	my ($cluster, $log, @command) = @_;
	my $pid = fork // die "fork: $!";

	return $pid if $pid;
	open STDOUT, '>>', "$cluster->{base}/$log.log";
	open STDERR, '>&', \*STDOUT;
	exec @command or POSIX::_exit(127);
}

# ---------------------------------------------------------------- the way to the primary

sub routes
{
	my ($cluster, @routes) = @_;

	# rename, so that no reader sees half of it
	Node::write_file("$cluster->{base}/routes.new", join '', map { "host=$_ port=5432 dbname=postgres user=client\n" } @routes);
	rename "$cluster->{base}/routes.new", "$cluster->{base}/routes" or die "routes: $!";
	return;
}

# Hide the server from clients.
sub withdraw { return $_[0]->routes }

sub publish
{
	my ($cluster) = @_;
	my ($base, $primary) = ($cluster->{base}, $cluster->{primary});

	$cluster->tell_proxy("target $primary->{socket}");
	$cluster->bouncer_config;
	kill 'HUP', $cluster->{bouncer} if $cluster->{bouncer};
	return $cluster->routes($primary->{socket}, "$base/bouncer", "$base/proxy", "$base/proxy");
}

sub start_proxy
{
	my ($cluster) = @_;
	my $dir = "$cluster->{base}/proxy";

	$cluster->{proxy} = $cluster->spawn('proxy', $^X, "$cluster->{source}/proxy.pl", $dir);
	return $cluster->await(sub { -S "$dir/control" });
}

sub tell_proxy
{
	my ($cluster, $command) = @_;
	my $socket = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Peer => "$cluster->{base}/proxy/control") or die "proxy: $!";

	$socket->send($command) // die "proxy: $!";
	return;
}

# How often it has done something.
sub proxy_did
{
	my ($cluster, $what) = @_;

	open my $log, '<', "$cluster->{base}/proxy/log" or return 0;
	return scalar grep { $_ eq "$what\n" } <$log>;
}

sub bouncer_config
{
	my ($cluster) = @_;
	my $dir = "$cluster->{base}/bouncer";

	Node::write_file("$dir/pgbouncer.ini", <<"INI");
[databases]
postgres = host=$cluster->{primary}{socket} port=5432 user=client pool_size=5
[pgbouncer]
listen_addr =
listen_port = 5432
unix_socket_dir = $dir
auth_type = any
pool_mode = transaction
max_client_conn = 200
server_reset_query =
server_login_retry = 0.2
server_connect_timeout = 3
query_wait_timeout = 5
log_connections = 0
log_disconnections = 0
INI
	return;
}

sub start_bouncer
{
	my ($cluster) = @_;
	my ($program) = grep { -x } qw(/usr/sbin/pgbouncer /usr/bin/pgbouncer /usr/local/sbin/pgbouncer);

	$cluster->bouncer_config;
	# a killed one's
	unlink "$cluster->{base}/bouncer/.s.PGSQL.5432";
	$cluster->{bouncer} = $cluster->spawn('bouncer', $program // 'pgbouncer', "$cluster->{base}/bouncer/pgbouncer.ini");
	return;
}

sub stop_bouncer
{
	my ($cluster, $signal) = @_;

	kill $signal, $cluster->{bouncer};
	waitpid $cluster->{bouncer}, 0;
	return;
}

# ---------------------------------------------------------------- changing roles

# The primary answers, by itself or started.
sub recover
{
	my ($cluster) = @_;
	my $primary = $cluster->{primary};

	# what a crashing postmaster starts anew is not down
	return 1 if $cluster->await(sub { $primary->is_primary || !$primary->pids }) && $primary->is_primary;
	return $primary->start && $primary->is_primary;
}

# In the background: clients are to work meanwhile, or wait for it.
sub rebuild_standby
{
	my ($cluster) = @_;
	my ($primary, $standby) = @$cluster{qw(primary standby)};

	$cluster->{rebuild} = fork // die "fork: $!";
	return if $cluster->{rebuild};
	$SIG{INT} = $SIG{TERM} = 'DEFAULT';
	for (1 .. 20)
	{
		POSIX::_exit(0) if eval { $standby->follow($primary) };
		# it may be a fault that another one is in the way of
		sleep 0.5;
	}
	POSIX::_exit(1);
}

sub is_rebuilding
{
	my ($cluster) = @_;

	delete $cluster->{rebuild} if $cluster->{rebuild} && waitpid($cluster->{rebuild}, WNOHANG) != 0;
	return $cluster->{rebuild};
}

# The standby is there, and has all that was acknowledged.
sub await_standby
{
	my ($cluster) = @_;
	my $primary = $cluster->{primary};

	$cluster->await(sub { !$cluster->is_rebuilding }) or return 0;
	my $lsn = $primary->value('SELECT pg_current_wal_lsn()') // return 0;
	return $cluster->await(sub { $primary->has_standby($lsn) });
}

# The primary dies, the standby takes its place.
sub fail_over
{
	my ($cluster) = @_;
	my ($old, $new) = @$cluster{qw(primary standby)};

	# before anything is promoted, or the old one could still acknowledge
	$old->kill_all;
	$cluster->withdraw;
	# it does not look for more, once it can do anything again
	my $receiver = $new->process('walreceiver');
	kill $_, $receiver // () for qw(TERM CONT);
	$new->program('pg_ctl', qw(-s -w -t 40 promote -D), $new->{data}) or return 0;
	@$cluster{qw(primary standby)} = ($new, $old);
	$cluster->publish;
	$cluster->rebuild_standby;
	return 1;
}

1;
