
# What the tests of idem_stat share: its counters, and what a script moves of them.

package IdemStat;

use strict;
use warnings;

use CPAN::Meta::YAML;
use Exporter 'import';
use FindBin;
use IdemTest;
use Test::More;

our @EXPORT = qw($stat_conf $stat_functions @counters $columns %last counters changes moved moves clock exporter_queries exported);

# How the servers are set up whose counters the tests look at.
our $stat_conf = <<'CONF';
shared_preload_libraries = 'idempotency'
idempotency.purge_interval = 0
idempotency.throttle_entries = 16
restart_after_crash = on
max_connections = 50
CONF

our @counters = qw(started replayed in_progress mismatched finished released taken_over claimed duplicates
  throttle_allowed throttle_rejected throttle_evicted tokens_issued tokens_redeemed tokens_refused
  codes_issued codes_verified codes_refused purged guard_errors failed exhausted);
our $columns = join ', ', @counters;

our $stat_functions = wait_until_procedure() . <<'SQL';
-- what a key's row would be when time has passed
CREATE PROCEDURE lapse(k text) LANGUAGE sql AS $$ UPDATE idem_keys SET lease_until = clock_timestamp() WHERE key = k $$;
CREATE PROCEDURE expire(k text) LANGUAGE sql AS $$ UPDATE idem_keys SET expires_at = clock_timestamp() WHERE key = k $$;
CREATE FUNCTION fence(k text) RETURNS bigint LANGUAGE sql AS $$ SELECT fence FROM idem_keys WHERE key = k $$;
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS $$ SELECT 2 * n $$;
CREATE FUNCTION fails() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE division_by_zero; END $$;
CREATE TABLE secrets (name text PRIMARY KEY, secret text);
CREATE FUNCTION redeem(n text) RETURNS text LANGUAGE sql AS $$ SELECT state FROM secrets, idem_token_redeem('reset', secret) WHERE name = n $$;
CREATE FUNCTION verify(n text) RETURNS text LANGUAGE sql AS $$ SELECT state FROM secrets, idem_code_verify('otp', n, secret) WHERE name = n $$;
CREATE FUNCTION throttle(k text) RETURNS boolean LANGUAGE sql AS $$ SELECT allowed FROM idem_throttle(k, '1 hour') $$;
CREATE TABLE strict (k text);
CREATE TRIGGER once AFTER INSERT OR UPDATE OR DELETE ON strict FOR EACH ROW EXECUTE FUNCTION idem_once('k');
CREATE TABLE lax (k text);
CREATE TRIGGER once BEFORE INSERT ON lax FOR EACH ROW EXECUTE FUNCTION idem_once('k', '1 day', 'skip');
SQL

# The row of that database, as a hash; none are NULL.
sub counters
{
	my ($server, $db) = @_;
	my %row;

	@row{@counters} = split /\|/, $server->safe_psql($db, "SELECT $columns FROM idem_stat WHERE datname = current_database()"), -1;
	return \%row;
}

# "started 1 finished 1"
sub changes
{
	my ($before, $after) = @_;

	return join ' ', map { "$_ " . ($after->{$_} - $before->{$_}) } grep { $after->{$_} ne $before->{$_} } @counters;
}

# By database: the counters at the last look.
our %last;

# What has moved since then, so that nothing may come late either.
sub moved
{
	my ($server, $db, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $now = counters($server, $db);

	is(changes($last{$db}, $now), $expected, $name);
	$last{$db} = $now;
	return;
}

# A script of a session, what it moves, and the SQLSTATEs of its errors.
sub moves
{
	my ($server, $name, $sql, $expected, $errors) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, undef, $err) = $server->psql('postgres', $sql, on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	my $now = counters($server, 'postgres');

	is(changes($last{postgres}, $now) . ' / ' . join(' ', $err =~ /(?:ERROR|FATAL):\s+(\w{5})\s*$/mg), "$expected / " . ($errors // ''), $name)
	  || diag($err);
	$last{postgres} = $now;
	return;
}

sub clock
{
	my ($server) = @_;

	return $server->safe_psql('postgres', 'SELECT clock_timestamp()');
}

# The queries of postgres_exporter, by name.
sub exporter_queries
{
	my $yaml = CPAN::Meta::YAML->read("$FindBin::RealBin/../doc/postgres_exporter.yaml");

	return $yaml ? $yaml->[0] : undef;
}

# One row, as a hash, and the columns in order.
sub exported
{
	my ($server, $sql, @extra) = @_;
	my ($ret, $out, $err) = $server->psql('postgres', $sql, extra_params => [ '--pset=tuples_only=off', '--pset=footer=off', @extra ]);
	my ($names, @values) = split /\n/, $out;
	my (%row, @names);

	diag($err) if $ret;
	@names = split /\|/, $names;
	@row{@names} = map { split /\|/, $_, -1 } @values;
	return (\%row, \@names, scalar @values);
}

1;
