
# What the tests of leases share: a server that loses what was not made durable, begins
# and take-overs, effects, and holders that come back too late.

package IdemLease;

use strict;
use warnings;

use Exporter 'import';
use IdemTest;
use Test::More;

our @EXPORT = qw(new_lease_node begin take_over effects_are work whole_row zombie settle);

# As in 004_durable.pl: WAL is written only on request, so that a crash loses what was not
# made durable.
sub new_lease_node
{
	my ($name, %opt) = @_;
	my $node = new_node($name, %opt, initdb => ['--wal-segsize=1'], conf => <<"CONF");
restart_after_crash = on
max_connections = 50
wal_writer_delay = 10s
checkpoint_timeout = 1h
bgwriter_lru_maxpages = 0
full_page_writes = off
@{[ $opt{conf} // '' ]}
CONF

	$node->safe_psql('postgres', 'CREATE TABLE effects (k text, what text)');
	return $node;
}

# One row of idem_begin, as a hash.
sub begin
{
	my ($node, $db, $k, $lease, $more) = @_;
	my %row;

	@row{qw(state fence attempt phase progress)} = split /\|/, $node->safe_psql($db,
		"SELECT state, fence, attempt, phase, progress FROM idem_begin('$k', lease => '$lease'" . ($more // '') . ')'), -1;
	return \%row;
}

# The same, once the running lease has run out.
sub take_over
{
	my ($node, $db, $k, $lease) = @_;
	my $row;

	eventually(sub { ($row = begin($node, $db, $k, $lease))->{state} ne 'in_progress' })
	  or die "$k was never abandoned";
	return $row;
}

sub effects_are
{
	my ($node, $db, $k, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	sql_is($node, $db, "SELECT string_agg(what, ' ' ORDER BY what) FROM effects WHERE k = '$k'", $expected, $name);
}

# A transaction: an effect, and the call that goes with it.
sub work
{
	my ($k, $what, $call) = @_;

	return "BEGIN; INSERT INTO effects VALUES ('$k', '$what'); SELECT $call; COMMIT;";
}

sub whole_row
{
	my ($node, $db, $k) = @_;

	return $node->safe_psql($db, "SELECT i, i.xmin FROM idem_keys i WHERE key = '$k'");
}

# A session with that fence is refused, whatever it calls, and its transaction
# leaves nothing behind.
sub zombie
{
	my ($node, $db, $k, $fence, $sqlstate, $name) = @_;
	my $state = "SELECT count(*), (SELECT string_agg((i, i.xmin)::text, '') FROM idem_keys i WHERE key = '$k') FROM effects;";
	my @calls = (
		"idem_finish('$k', '\"zombie\"', fence => $fence)",
		"idem_checkpoint('$k', 'zombie', '\"zombie\"', fence => $fence)",
		"idem_checkpoint('$k', 'zombie', fence => $fence, lease => '1 day')",
		"idem_extend('$k', '1 day', fence => $fence)",
		"idem_release('$k', fence => $fence)");
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	my ($ret, $out, $err) = $node->psql($db, join("\n", $state, (map { work($k, 'zombie', $_) } @calls), $state),
		on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	is(join(' ', $err =~ /ERROR:\s+(\w{5})$/mg), join(' ', ($sqlstate) x @calls), "$name: is refused");
	like($out, qr/\A(.+)\n\g1\z/, "$name: nothing has changed");
}

# Begin a page of WAL that what follows will not fill.
sub settle
{
	my ($node) = @_;

	$node->safe_psql('postgres', 'SELECT count(*) FROM idem_keys; SELECT pg_switch_wal()');
	return;
}

1;
