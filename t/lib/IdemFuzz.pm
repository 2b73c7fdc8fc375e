
# What the fuzzer's sessions do: scripts for psql in which each line is one statement, and for
# each line what it may raise.  A script is a row of units; a unit is a transaction, or some
# statements outside of one, in one role.

package IdemFuzz;

use strict;
use warnings;

use Exporter 'import';
use IdemFuzzValues;
use List::Util qw(shuffle);

our @EXPORT = qw(prepare_scripts make_script @wait @write);

# Whoever waits or looks for a key may have to try again, and no one writes where it is read only.
our @wait = qw(55P03 40P01 40001);
our @write = (@wait, '25006');

# Functions that are called less often: they are slow, or change what all share.
my %rare = map { $_ => 1 } qw(idem_purge idem_forget_scope idem_grant idem_revoke idem_stat_reset idem_digest idem_once);

# What is there: functions by name, what each may raise, tables with the trigger by name, and
# which functions fuzz_user may call.
my ($functions, $allowed, $tables, $granted);

# Names to pick from, what is wanted more often several times.
my (@names, @tables);

# Of the session whose script is made: its number, how many calls there have been, and what
# its transaction is like.  What each line of the script may raise, and what it calls.
my (%state, $script, @lines);

sub prepare_scripts
{
	my (%what) = @_;

	($functions, $allowed, $tables, $granted) = @what{qw(functions allowed tables granted)};
	know_version($what{version});
	@names = map { ($_) x ($rare{$_} ? 1 : 8) } sort grep { $allowed->{$_} } keys %$functions;
	@tables = ((grep { !/bad/ } sort keys %$tables) x 5, grep { /bad/ } sort keys %$tables);
	return;
}

# ---------------------------------------------------------------- lines

sub line
{
	my ($sql, $what, @may) = @_;

	print $script "$sql\n";
	push @may, '25P02' if $state{block};
	push @may, '57014' if $state{timeout};
	# BEGIN itself may have failed
	push @may, '25P01' if $state{timeout} || $state{chained};
	# the predicate locks of another transaction can make any statement fail
	push @may, '40001' if $state{serializable};
	push @lines, { what => $what, sql => length $sql > 500 ? substr($sql, 0, 500) . '...' : $sql, may => { map { $_ => 1 } @may }, role => $state{role} };
	return;
}

sub may_raise
{
	my ($name) = @_;

	# no one but their owner
	return ('42501') if $state{role} && !$state{role}{$name};
	return ('22004', '22023', @{ $allowed->{$name} });
}

# ---------------------------------------------------------------- calls

# f(...), with some or all of the arguments, in order or by name
sub expression
{
	my ($f, $all, %value) = @_;
	my @args = @{ $f->{args} };
	my $given = $all ? @args : @args - int(rand($f->{defaults} + 1));

	my @values = map { $value{ ($_ =~ /^(\S+)/)[0] } // generator($_)->() } @args;
	if (!$all && chance(0.4))
	{
		my @chosen = grep { $_ < @args - $f->{defaults} || chance(0.4) } 0 .. $#args;
		return "$f->{name}(" . join(', ', map { ($args[$_] =~ /^(\S+)/)[0] . " => $values[$_]" } shuffle(@chosen)) . ')';
	}
	return "$f->{name}(" . join(', ', @values[ 0 .. $given - 1 ]) . ')';
}

# A statement on a table with the trigger
sub change_table
{
	my $name = pick(@tables);
	my $t = $tables->{$name};
	my $value = $t->{value} // sub { pick(0 .. 9) };
	my $row = sub { '(' . join(', ', $value->(), pick(q('a'), q('b')), pick(q('x'), 'NULL', q(''))) . ')' };
	my @may = (@write, qw(23505 21000), @{ $t->{may} // [] });
	my $sql = pick(
		"INSERT INTO $name VALUES " . $row->(),
		"INSERT INTO $name VALUES " . join(', ', map { $row->() } 1 .. 4),
		"INSERT INTO $name VALUES " . $row->() . ' ON CONFLICT DO NOTHING',
		"UPDATE $name SET id = " . $value->() . ' WHERE id = ' . $value->(),
		"UPDATE $name SET region = " . pick(q('a'), q('b')) . ', id = id WHERE id = ' . $value->(),
		"UPDATE $name SET region = CASE region WHEN 'a' THEN 'b' ELSE 'a' END",
		"DELETE FROM $name WHERE region = " . pick(q('a'), q('b')),
		"DELETE FROM $name",
		"MERGE INTO $name t USING (VALUES " . $row->() . ') s(id, region, body) ON t.id = s.id WHEN MATCHED THEN UPDATE SET region = s.region, id = s.id WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.region, s.body)');

	@may = qw(42501 25006) if $state{role} && !$state{role}{idem_claim};
	push @{ $state{at_commit} }, @may if $t->{deferred};
	return call($sql, 'idem_once', @may);
}

# Straight, or caught by a function's exception block
sub call
{
	my ($sql, $name, @may) = @_;

	$state{calls}++;
	if (chance(0.1) && $sql !~ /:/)
	{
		return line('SELECT fuzz_try($fuzz$' . $name . '$fuzz$, $fuzz$' . "$sql" . '$fuzz$);', $name, @may, $state{timeout} ? '57014' : ());
	}
	return line("$sql;", $name, @may);
}

# Any function, or a statement that fires a trigger, in one of the ways that there are to call
sub random_call
{
	return change_table() if chance(0.06);

	my $name = pick(@names);
	# two sessions that grant at once fail in PostgreSQL itself
	$name = pick(@names) while $state{number} > 0 && $name =~ /grant|revoke/;
	# most of what needs a claim gets one
	$name = 'idem_begin' if $name =~ /finish|release|extend|checkpoint/ && chance(0.5);
	my $f = $functions->{$name};
	my @may = may_raise($name);

	if ($f->{kind} eq 'p')
	{
		return call('CALL ' . expression($f), $name, @may);
	}
	if ($name eq 'idem_begin' && chance(0.7))
	{
		$state{calls}++;
		return line('SELECT coalesce(fence, :fence) AS fence FROM ' . expression($f) . ' \gset', $name, @may);
	}
	if ($name =~ /_(token|code)_issue/ && chance(0.7))
	{
		$state{calls}++;
		return line('SELECT ' . expression($f) . " AS $1 \\gset", $name, @may);
	}
	if ($state{block} && chance(0.05))
	{
		my $hold = chance(0.3) && !$state{timeout} ? 'WITH HOLD ' : '';
		my $n = next_number();

		push @{ $state{at_commit} }, @may if $hold;
		$state{calls}++;
		line("DECLARE c$n CURSOR ${hold}FOR SELECT " . expression($f) . ' FROM generate_series(1, 3);', $name, @may);
		push @{ $state{cursors} }, $n;
		return line(pick('FETCH 1', 'FETCH ALL') . " FROM c$n;", $name, @may, '34000') if chance(0.8);
		return;
	}
	if (chance(0.1) && $name ne 'idem_once')
	{
		my $sql = expression($f, 1);

		$sql = expression($f, 1) while $sql =~ /SELECT/;
		return call('EXECUTE p_' . $sql =~ s/\(\)$//r, $name, @may);
	}
	return call('SELECT * FROM ' . expression($f), $name, @may) if $name ne 'idem_once' && chance(0.5);
	return call('SELECT (' . expression($f) . ').*', $name, @may) if $f->{row} && chance(0.2);
	return call('SELECT ' . expression($f) . ' FROM generate_series(1, 3)', $name, @may) if chance(0.1);
	return call('SELECT ' . expression($f), $name, @may);
}

# What applications do: a claim, and what becomes of it, in this transaction or, of a
# lease, a later one.
sub flow
{
	my $again = $state{lease} && chance(0.4);
	my %value = $again ? %{ $state{lease} } : (key => pick("'k" . int(rand(5)) . "'", "'flow " . next_number() . "'"), scope => pick('NULL', 'NULL', q('s1')));

	if (!$again)
	{
		my $lease = chance(0.4) ? pick(q('1 ms'), q('20 ms'), q('1 s')) : 'NULL';

		$value{fence} = $lease eq 'NULL' ? 'NULL' : pick('NULL', ':fence');
		$state{calls}++;
		line('SELECT coalesce(fence, :fence) AS fence FROM ' . expression($functions->{idem_begin}, 1, %value, lease => $lease, ttl => pick('NULL', q('20 ms')), wait => pick('NULL', q('2 ms'))) . ' \gset', 'idem_begin', may_raise('idem_begin'));
		$state{lease} = $lease eq 'NULL' ? undef : { %value, fence => ':fence' };
	}
	for my $name (grep { chance(0.3) } qw(idem_extend idem_checkpoint idem_checkpoint idem_release))
	{
		next if $name =~ /extend|checkpoint/ && !$state{lease};
		call('SELECT ' . expression($functions->{$name}, 1, %value, lease => q('1 s'), progress => q('{"n": 1}')), $name, may_raise($name));
	}
	call('SELECT ' . expression($functions->{idem_finish}, 1, %value), 'idem_finish', may_raise('idem_finish')) if chance(0.7);
	return;
}

# In a block that commits and rolls back by itself
sub do_block
{
	my @names = map { my $n = pick(@names); $n = pick(@names) while $n =~ /once|grant|revoke|purge/; $n } 1 .. 3;
	my @sql = map { 'PERFORM ' . expression($functions->{$_}) } @names;

	return random_call() if "@sql" =~ /:[a-z']/;
	$state{calls} += @sql;
	return line('DO $do$ BEGIN ' . join('; ', map { ($_, pick('COMMIT', 'ROLLBACK')) } @sql) . '; END $do$;', 'DO', 'ID005', map { may_raise($_) } @names);
}

my @settings = (
	q(lock_timeout = '1ms'), q(synchronous_commit = off), q(idempotency.default_ttl = '1s'), q(idempotency.default_ttl = -1),
	q(idempotency.max_result_size = 0), q(idempotency.purge_batch_size = 1), q(TimeZone = 'America/St_Johns'), q(IntervalStyle = 'sql_standard'),
	q(DateStyle = 'German'), q(search_path = other, public), q(enable_indexscan = off), q(work_mem = '64kB'), q(idempotency.retry_after = 1));

# ---------------------------------------------------------------- transactions

# One of the statements of a block
sub block_statement
{
	my ($savepoints) = @_;
	my $r = rand();

	if ($r < 0.05) { line('SAVEPOINT s' . $$savepoints++ . ';', 'SAVEPOINT') }
	elsif ($r < 0.09 && $$savepoints) { line('ROLLBACK TO s' . int(rand($$savepoints)) . ';', 'ROLLBACK TO', '3B001') }
	elsif ($r < 0.12 && $$savepoints) { line('RELEASE s' . int(rand($$savepoints)) . ';', 'RELEASE', '3B001') }
	elsif ($r < 0.14) { line('SET LOCAL ' . pick(@settings) . ';', 'SET') unless $state{role} }
	elsif ($r < 0.16) { line('INSERT INTO orders VALUES (' . int(rand(100)) . ');', 'INSERT', '25006', '42501') }
	elsif ($r < 0.17) { line('SELECT 1 / 0;', 'SELECT', '22012') }
	# others are to meet what is open
	elsif ($r < 0.4 && $state{number}) { line('SELECT pg_sleep(0.01);', 'SELECT') }
	elsif ($r < 0.18 && !$state{role}) { line('SELECT count(*) FROM ' . pick('idem_stat', 'idem_in_flight') . ';', 'view') }
	elsif ($r < 0.20 && @{ $state{cursors} })
	{
		line('FETCH ALL FROM c' . pick(@{ $state{cursors} }) . ';', 'FETCH', '34000', '55000', map { @$_, '22004', '22023', '42501' } values %$allowed);
	}
	elsif ($r < 0.6) { random_call() }
	else { flow() }
	return;
}

# Commits, prepares or rolls back.  True if what was prepared may be left over.
sub end_block
{
	# a deferred trigger, the functions of a held cursor, the guard
	my @may = (@wait, 'ID005', @{ $state{at_commit} });
	my $r = rand();

	$state{block} = @{ $state{at_commit} } ? 1 : 0;
	if ($r < 0.6) { line('COMMIT;', 'COMMIT', @may) }
	elsif ($r < 0.65)
	{
		line('COMMIT AND CHAIN;', 'COMMIT', @may);
		@state{qw(block chained)} = (1, 1);
		random_call();
		line('ROLLBACK;', 'ROLLBACK');
	}
	elsif ($r < 0.75)
	{
		# an aborted one is rolled back, and then there is none
		line("PREPARE TRANSACTION 'x$state{number}';", 'PREPARE', @may, qw(0A000 42710 55000));
		$state{block} = 0;
		random_call() if chance(0.3);
		line(pick('COMMIT', 'ROLLBACK') . " PREPARED 'x$state{number}';", 'PREPARED', '42704', '42501', '55000');
		# the role may not have been allowed to
		return 1 if $state{role};
	}
	else { line('ROLLBACK;', 'ROLLBACK') }
	return 0;
}

sub block
{
	my $savepoints = 0;

	line('\set ON_ERROR_ROLLBACK ' . pick(('on') x 5, 'off'), 'psql');
	$state{serializable} = 0;
	my $level = pick('', '', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE');
	line('BEGIN' . ($level ? " ISOLATION LEVEL $level" : '') . (chance(0.1) ? ' READ ONLY' : '') . ';', 'BEGIN');
	$state{block} = 1;
	$state{serializable} = $level eq 'SERIALIZABLE';
	block_statement(\$savepoints) for 1 .. pick(1, 3, 6, 12);
	return end_block();
}

sub unit
{
	my $prepared = 0;

	# what the last transaction was about may be taken up by the next
	new_keys() if chance(0.5);
	@state{qw(block timeout serializable role at_commit cursors)} = (0, 0, 0, undef, [], []);

	# or all keys would be finished in the end, for a thousand years
	if (chance(0.02))
	{
		$state{calls}++;
		line('SELECT idem_forget_scope(' . pick(q(''), q('s1')) . ');', 'idem_forget_scope', @write);
	}
	# roles: all jobs, none, or everything
	if (chance(0.15))
	{
		my $role = pick(qw(fuzz_user fuzz_user fuzz_nobody));
		line("SET ROLE $role;", 'SET');
		$state{role} = $role eq 'fuzz_user' ? $granted : {};
	}
	if (chance(0.05))
	{
		line('SET statement_timeout = 1;', 'SET');
		$state{timeout} = 1;
	}

	if (chance(0.3))
	{
		(chance(0.1) ? do_block() : random_call()) for 1 .. pick(1, 3, 6);
	}
	else
	{
		$prepared = block();
	}

	# from here on nothing may fail but the end of a transaction that failed to end
	@state{qw(block chained serializable)} = (0, 0, 0);
	line('ROLLBACK;', 'ROLLBACK') if chance(0.05);
	if ($state{timeout})
	{
		# these may be cancelled as well
		$state{block} = 1;
		(line('ROLLBACK;', 'ROLLBACK'), line('SET statement_timeout = 0;', 'SET')) for 1 .. 5;
		@state{qw(block timeout)} = (0, 0);
	}
	line('RESET ROLE;', 'SET') if $state{role};
	$state{role} = undef;
	line('CLOSE ALL;', 'CLOSE') if @{ $state{cursors} };
	line("ROLLBACK PREPARED 'x$state{number}';", 'PREPARED', '42704', '55000') if $prepared;
	line('CREATE OR REPLACE FUNCTION fuzz_changes(a int DEFAULT 1) RETURNS int LANGUAGE sql AS $$ SELECT a + ' . int(rand(100)) . ' $$;', 'CREATE')
	  if $state{number} == 0 && chance(0.005);
	return;
}

# ---------------------------------------------------------------- a session's script

# Writes the script of a session.  Of the first, memory is looked at so many times, "samples".
# Returns the number, the lines and how many calls there are.
sub make_script
{
	my ($number, $file, $ncalls, $samples) = @_;
	my $step = $ncalls / $samples;
	my $sampled = 0;

	@lines = ();
	%state = (number => $number, calls => 0, block => 0);
	open $script, '>', $file or die "$file: $!";
	line($_, 'psql') for ('\set fence 1', '\set token x', '\set code 1234');
	line("SET lock_timeout = '30ms';", 'SET');
	for my $f (map { $functions->{$_} } sort keys %$functions)
	{
		next if $f->{kind} eq 'p' || $f->{name} eq 'idem_once';
		my @types = map { s/^\S+ //r } @{ $f->{args} };
		line("PREPARE p_$f->{name}" . (@types ? '(' . join(', ', @types) . ')' : '') . " AS SELECT * FROM $f->{name}(" . join(', ', map { "\$$_" } 1 .. @types) . ');', 'PREPARE');
	}
	while ($state{calls} < $ncalls)
	{
		unit();
		next if $state{calls} < ($sampled + 1) * $step || $number;
		$sampled++;
		line('SELECT * FROM fuzz_memory() \gset', 'memory');
		line('\echo memory ' . $state{calls} . ' :contexts :anonymous', 'psql');
	}
	line("SELECT 'the end' AS the_end \\gset", 'SELECT');
	line('\echo :the_end', 'psql');
	close $script;
	return { number => $number, file => $file, lines => [@lines], calls => $state{calls} };
}

1;
