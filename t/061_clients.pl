
# The traps of doc/clients.md, as the server shows them to every client, and as the drivers do
# that Debian has.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IdemBouncer;
use IdemWire;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "shared_preload_libraries = 'idempotency'\n");

#
# Any client
#
my $client = IdemWire->new($node, 'postgres');
my $other = IdemWire->new($node, 'postgres');

sub value { my ($c, $sql, @key) = @_; my $answer = $c->query($sql, map { [ 0, $_ ] } @key); return $answer->{error} // $answer->{rows}[0][0] }
sub run { my ($c, @statements) = @_; return map { $c->query($_)->{error} // () } @statements }

# COMMIT of an aborted transaction is no error; only its command tag tells.
is_deeply([ run($client, 'BEGIN', "SELECT idem_begin('aborted')", "INSERT INTO pg_class VALUES (NULL)") ], [ '23502' ], 'an error that is caught');
is(value($client, "SELECT idem_finish('aborted')"), '25P02', 'a finish after it fails');
my $commit = $client->query('COMMIT');
is_deeply([ $commit->{error}, $commit->{tag} ], [ undef, 'ROLLBACK' ], 'COMMIT says ROLLBACK, without an error');
is_deeply([ run($client, 'BEGIN', "SELECT idem_begin('too late')", "SELECT idem_finish('too late', '1')", 'SELECT 1/0') ], [ '22012' ], 'an error after the finish');
is($client->query('COMMIT')->{tag}, 'ROLLBACK', 'the same');
is(value($client, 'SELECT idem_claim($1)', $_), 't', "$_: nothing was stored") for 'aborted', 'too late';
$client->query('BEGIN');
$client->query("SELECT idem_claim('good')");
is($client->query('COMMIT')->{tag}, 'COMMIT', 'control: a good one');

# ID005: autocommit, and a begin without a finish
is(value($client, 'SELECT state FROM idem_begin($1)', 'alone'), 'ID005', 'autocommit: the begin fails');
is_deeply([ run($client, 'BEGIN', "SELECT idem_begin('open')") ], [], 'a begin');
is(value($client, 'COMMIT'), 'ID005', 'without a finish: COMMIT fails');

# 40001 in a savepoint: the snapshot is the transaction's.
is_deeply([ run($client, 'BEGIN ISOLATION LEVEL REPEATABLE READ', 'SELECT count(*) FROM pg_class') ], [], 'a snapshot');
is_deeply([ run($other, 'BEGIN', "SELECT idem_begin('late')", "SELECT idem_finish('late')", 'COMMIT') ], [], 'another client is first');
for my $attempt (1 .. 3)
{
	$client->query('SAVEPOINT s');
	is(value($client, "SELECT state FROM idem_begin('late')"), '40001', "in a savepoint, attempt $attempt");
	$client->query('ROLLBACK TO s');
}
$client->query('ROLLBACK');
is(value($client, "SELECT state FROM idem_begin('late')"), 'replayed', 'in a new transaction: the answer');

# Of a row that is taken apart each column is a call: the first begins, and its fence is lost.
my $columns = $client->query("SELECT (idem_begin('columns', lease => '1 min')).*");
is_deeply([ @{ $columns->{rows}[0] }[ 0, 3 ] ], [ 'started', undef ], '(idem_begin(...)).* begins, and says nothing of the fence');
is_deeply($client->query("SELECT state, fence IS NOT NULL FROM idem_begin('from', lease => '1 min')")->{rows}, [ [ 'started', 't' ] ], 'FROM idem_begin(...) does');

# JSON null is a request, SQL NULL is none.
is_deeply([ run($client, 'BEGIN', "SELECT idem_begin('json', request => '{}')", "SELECT idem_finish('json')", 'COMMIT') ], [], 'a request');
is(value($client, 'SELECT state FROM idem_begin($1, request => $2)', 'json', undef), 'replayed', 'NULL: whatever it was');
is(value($client, 'SELECT state FROM idem_begin($1, request => $2)', 'json', 'null'), 'mismatch', 'JSON null: another one');

# What an ORM that quotes twice stores
is(value($client, "SELECT jsonb_typeof(\$1)", '"{\"a\": 1}"'), 'string', 'JSON in JSON is a string');

# 'skip': an INSERT that is skipped returns no row.
$node->safe_psql('postgres', "CREATE TABLE inbox (id int GENERATED ALWAYS AS IDENTITY, k text); CREATE TRIGGER once BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION idem_once('k', NULL, 'skip')");
is_deeply($client->query("INSERT INTO inbox (k) VALUES ('a') RETURNING id")->{rows}, [ [1] ], 'skip: the first returns its row');
my $again = $client->query("INSERT INTO inbox (k) VALUES ('a') RETURNING id");
is_deeply([ $again->{error}, $again->{tag}, $again->{rows} ], [ undef, 'INSERT 0 0', [] ], 'skip: the second none, and no error');

#
# Python, Ruby, PHP and Go
#
my %base = ('no finish' => 'ID005', 'caught error' => 'no error', 'and the key' => 'started');
my %dbapi = (%base, 'transaction status' => 'True', autocommit => 'ID005', None => 'replayed', 'JSON null' => 'mismatch', dict => 'ProgrammingError',
	raise => 'UniqueViolation once', poison => 'DataError IntegrityError OperationalError', timedelta => 'started', list => 2);
my %python = (
	psycopg => { %dbapi, nested => '40001 40001' },
	psycopg_pool => { terminated => 'no error', 'in transaction' => 'False', 'and the key' => 'True' },
	psycopg2 => \%dbapi,
	asyncpg => { %base, autocommit => 'ID005', jsonb => 'str', set_type_codec => 'dict', dict => 'DataError 22000',
		'interval as text' => 'DataError 22000', timedelta => 'started' },
	sqlalchemy => { 'no finish' => 'ID005', 'caught error' => 'no error', connect => '[True, True]', begin => '[True, False]',
		None => 'replayed', 'JSON null' => 'mismatch', 'null()' => 'replayed', CAST => 'replayed', raise => 'IntegrityError once', skip => "['no error', 'FlushError']" },
	django => { 'no finish' => 'ID005', on_commit => 0, 'caught error' => 'no error', 'and the key' => 'True', jsonb => 'str',
		set_rollback => 'nothing raised', 'set_rollback, and the key' => 'True', Hidden => 'passes',
		Checked => 'fails: True', Good => 'passes', Committed => 'fails: True', raise => 'IntegrityError once',
		decorator => q(['201 {"call": 1} None', '201 {"call": 1} true', '422 problem None', '400 problem None', '422 {"call": 2} None', '422 {"call": 2} true']),
		'decorator, failures' => q(['ValueError', '22023', '201 {"call": 5} None']) });

my %any = (autocommit => 'ID005', 'no finish' => 'ID005', 'caught error' => 'no error', 'and the key' => 'free');
my %ruby = (
	pg => { %any, transaction_status => 'true', Hash => 'replayed', String => 'mismatch', jsonb => 'String', bigint => 'Integer',
		poison => 'PG::DataException PG::IntegrityConstraintViolation PG::ProgramLimitExceeded', return => 'finished', break => 'finished', throw => 'finished', raise => 'free' },
	activerecord => { %any, 'query cache' => '[true, true]', find_by_sql => '[true, true]', throttle => '[8, 8]',
		'throttle, exec_query' => '[7, 6]', exec_query => '[true, false]', uncached => '[true, false]',
		return => 'finished', 'Rollback, requires_new false' => 'finished', 'Rollback, requires_new true' => 'free',
		'no finish, with a model' => 'ID005', after_commit => 0, 'after_commit, committed' => 1,
		raise => 'ActiveRecord::RecordNotUnique', skip => '[true, nil]' });

my %php = (%any, 'caught error' => 'true', run => 'true', finish => 201, commit => 'true', replayed => 'true', jsonb => 'string');

my %laravel = (autocommit => 'QueryException ID005', 'no finish' => 'PDOException ID005', 'afterCommit of ID005' => 0,
	'afterCommit of ID005, after the next' => 1, errorInfo => '22012', 'caught error' => 'no error', 'and the key' => 'free',
	'and afterCommit' => 1, nested => 'finished free', 'afterCommit of all' => 2,
	'attempts: 40001' => 'QueryException 40001, 3', 'attempts: 40001 of the COMMIT' => 'PDOException 40001, 3',
	'attempts: deadlock detected' => 'QueryException 40P01, 3', 'attempts: its German message' => 'QueryException 40P01, 1',
	'attempts: 55P03' => 'QueryException 55P03, 1', 'attempts: inner alone' => 'QueryException 40001, 1',
	'attempts: outer' => 'QueryException 40001, 3', 'connection lost' => 'sent 2', 'connection lost, in a transaction' => 'HY000',
	interval => 'started', jsonb => 'string', named => 'replayed', 'array as text' => 2, array => 'Array to string conversion',
	raise => 'QueryException 23505', skip => 'Undefined array key 0');

my %go = (
	pgx => { %any, caught => '22012', 'caught error' => 'true', map => 'started', string => 'replayed', bytes => 'replayed',
		another => 'mismatch', array => 2, BeginFunc => 'no', savepoint => 'finished free', constraint => 'true' },
	pq => { %any, caught => '22012', 'caught error' => 'true', Duration => '<nil>', notice => 'WARNING', 'and the lease' => 'true', 'interval as text' => 'started',
		string => 'replayed', bytes => 'mismatch', array => 2, slice => 'true', constraint => 'once' });

our @where;    # PgBouncer, if that is between

# The lines "NAME<tab>RESULT" of a program; undef if it is not there, or says that its driver is not.
sub said
{
	my ($name, @command) = @_;
	local %ENV = (PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres', PGUSER => scalar getpwuid($<), PGSSLMODE => 'disable',
		PYTHONDONTWRITEBYTECODE => 1, %ENV{ grep { !/^PG(HOST|PORT|DATABASE|USER|SSLMODE)$/ } keys %ENV }, @where);
	my ($out, $err) = ('', '');
	my $ran = eval { IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(180)); 1 };

	return undef if !$ran || $? >> 8 == 77;
	diag("$name: $err") if $?;
	my %said = map { split /\t/, $_, 2 } split /\n/, $out;
	note("$name ", delete $said{version}) if exists $said{version};
	return \%said;
}

sub same_as_said
{
	my ($name, $expected, @command) = @_;
  SKIP:
	{
		my $said = said($name, @command) or skip "$name is not installed", 1;
		is_deeply($said, $expected, $name);
	}
}

# The same client behind PgBouncer, with each setting that the page gives, and, if it has to fail there, without.
my @bouncer = start_bouncer($node);
# one that keeps the prepared statements of its clients apart
my @newer_bouncer = start_bouncer($node, 200);

sub behind_bouncer
{
	my ($name, $key, $settings, $fails, @command) = @_;
  SKIP:
	{
		skip 'PgBouncer is not installed', 1 if !@bouncer;
		local @where = @bouncer;
		for my $setting (@$settings, $fails ? 'without' : ())
		{
			my $said = said($name, @command, $setting) or skip "$name is not installed", 1;
			my ($resolved, $stored) = ($said->{resolved} // -1, stored($node, "$key $setting"));

			note("$name, $setting: of 40 transactions $resolved did not fail, and $stored were stored");
			is($stored, $resolved, "$name, $setting: what did not fail is stored");
			ok($setting eq 'without' ? $resolved < 40 : $resolved == 40, "$name behind PgBouncer, $setting");
		}
		if ($fails && @newer_bouncer)
		{
			local @where = @newer_bouncer;
			# without, too, but with keys of its own
			my $resolved = said($name, @command, 'newer')->{resolved} // -1;

			is($resolved, 40, "$name behind PgBouncer with max_prepared_statements, without");
			is(stored($node, "$key newer"), 40, "$name behind PgBouncer with max_prepared_statements: all are stored");
		}
	}
}

my $lib = "$FindBin::RealBin/lib";
same_as_said("Python's $_", $python{$_}, '/usr/bin/python3', "$lib/clients.py", $_) for sort keys %python;
same_as_said("Ruby's $_", $ruby{$_}, '/usr/bin/ruby', "$lib/clients.rb", $_) for sort keys %ruby;
same_as_said("PHP's PDO", \%php, '/usr/bin/php', "$lib/clients.php");
behind_bouncer("Python's $_", $_, ['with'], /^(psycopg|asyncpg)$/ ? 1 : 0, '/usr/bin/python3', "$lib/clients.py", $_) for grep { $_ ne 'psycopg_pool' } sort keys %python;
behind_bouncer("Ruby's $_", $_, ['with'], 1, '/usr/bin/ruby', "$lib/clients.rb", $_) for sort keys %ruby;
behind_bouncer("PHP's PDO", 'php', ['with'], 1, '/usr/bin/php', "$lib/clients.php");
behind_bouncer("PHP's Laravel", 'laravel', ['with'], 1, '/usr/bin/php', "$lib/clients_laravel.php");
same_as_said("PHP's Laravel", \%laravel, '/usr/bin/php', "$lib/clients_laravel.php");

# Debian's libraries for Go are found the old way, without modules.
my $gocode = '/usr/share/gocode';
my %import = (pgx => 'github.com/jackc/pgx/v4', pq => 'github.com/lib/pq');
for my $driver (sort keys %go)
{
  SKIP:
	{
		skip "Go's $driver is not installed", 1 if !-x '/usr/bin/go' || !-d "$gocode/src/$import{$driver}";
		my $program = PostgreSQL::Test::Utils::tempdir() . "/$driver";
		local @ENV{qw(GO111MODULE GOPATH GOCACHE GOFLAGS)} = ('off', $gocode, PostgreSQL::Test::Utils::tempdir(), '');
		PostgreSQL::Test::Utils::system_or_bail('/usr/bin/go', 'build', '-o', $program, "$lib/clients_$driver.go");
		same_as_said("Go's $driver", $go{$driver}, $program);
		behind_bouncer("Go's $driver", $driver, $driver eq 'pgx' ? [qw(describe capacity simple)] : ['with'], $driver eq 'pgx', $program);
	}
}

#
# Java: pgjdbc knows TCP only, where a password is asked for.
#
my %java = (
	pgjdbc => { %any, state => 'FAILED', setString => '42883', '::jsonb' => 'started', PGobject => 'started', unspecified => 'started',
		Duration => '07006', '::interval' => 'started', make_interval => 'started', int => 400, long => '42883',
		autosave => 'finished', constraint => '23505 once' },
	spring => { %any, 'caught error' => '22012', nested => 'finished free', raise => 'DuplicateKeyException' });
my %jpa = (
	jpa => { 'no finish' => 'RollbackException ID005', 'caught error' => 'RollbackException', 'and the key' => 'free',
		'without a transaction' => 'PersistenceException ID005', text => 'PersistenceException 42883', CAST => 'started', '::jsonb' => 'started',
		null => 'started', named => 'in_progress', jsonb => 'PGobject', claim => 'true false', 'raise, persist' => 'RollbackException 23505',
		'raise, flush' => 'PersistenceException 23505', 'skip 0' => 'id 1', 'skip 1' => 'id 2', 'skip, rows' => '1' },
	spring => { 'no finish' => 'TransactionSystemException ID005', 'one connection' => 'true',
		'caught JDBC error' => 'DataIntegrityViolationException 22012', 'and the key' => 'free', 'caught JPA error' => 'TransactionSystemException',
		'checked exception' => 'finished', rollbackFor => 'free' });
my @jars = map { "/usr/share/java/$_.jar" } qw(postgresql spring3-core spring3-beans spring3-transaction spring3-jdbc commons-logging);
my @jpa_jars = map { "/usr/share/java/$_.jar" } qw(spring3-orm spring3-aop eclipselink eclipselink-jpa-2.1-spec);
SKIP:
{
	skip "Java's pgjdbc and Spring JDBC are not installed", 4 if grep { !-e } '/usr/bin/javac', @jars;
	my $password = join '', map { chr(97 + int rand 26) } 1 .. 32;

	$node->safe_psql('postgres', "CREATE ROLE java LOGIN PASSWORD '$password'; SELECT idem_grant('java', ARRAY['claims', 'lookup']); CREATE TABLE java_once (k text);
		CREATE TRIGGER once AFTER INSERT ON java_once FOR EACH ROW EXECUTE FUNCTION idem_once('k'); GRANT ALL ON java_once TO java");
	unlink $node->data_dir . '/pg_hba.conf';
	$node->append_conf('pg_hba.conf', "local all all trust\nhost postgres java 127.0.0.1/32 scram-sha-256\n");
	$node->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'\n");
	$node->restart;
	local @ENV{qw(JDBC_URL JDBC_USER JDBC_PASSWORD)} = ('jdbc:postgresql://127.0.0.1:' . $node->port . '/postgres', 'java', $password);
	my $classes = PostgreSQL::Test::Utils::tempdir();
	my $jpa = !grep { !-e } @jpa_jars;
	my $path = join ':', $classes, @jars, @jpa_jars;

	# Spring 4 reads no classes that are newer
	PostgreSQL::Test::Utils::system_or_bail('/usr/bin/javac', '--release', '8', '-Xlint:-options', '-cp', $path, '-d', $classes,
		"$lib/Clients.java", $jpa ? "$lib/ClientsJpa.java" : ());
	my @java = ('/usr/bin/java', '-cp', $path);
	same_as_said("Java's $_", $java{$_}, @java, 'Clients', $_) for sort keys %java;
	my $behind_bouncer = sub {
		my ($key, $class) = @_;
		my %bouncer = @bouncer;
		local @ENV{qw(JDBC_URL JDBC_USER JDBC_PASSWORD)} = ("jdbc:postgresql://127.0.0.1:$bouncer{PGPORT}/postgres", @bouncer{qw(PGUSER PGPASSWORD)}) if @bouncer;
		behind_bouncer("Java's $key", $key, ['with'], 1, @java, $class, $key);
	};
	$behind_bouncer->($_, 'Clients') for sort keys %java;

	skip "Java's EclipseLink and Spring ORM are not installed", 2 if !$jpa;
	mkdir "$classes/META-INF" or die "META-INF: $!";
	append_to_file("$classes/META-INF/persistence.xml", <<'XML');
<persistence xmlns="http://xmlns.jcp.org/xml/ns/persistence" version="2.1">
  <persistence-unit name="clients" transaction-type="RESOURCE_LOCAL">
    <provider>org.eclipse.persistence.jpa.PersistenceProvider</provider>
    <class>ClientsJpa$Raise</class>
    <class>ClientsJpa$Skip</class>
    <exclude-unlisted-classes>true</exclude-unlisted-classes>
    <properties><property name="eclipselink.logging.level" value="OFF"/></properties>
  </persistence-unit>
</persistence>
XML
	$node->safe_psql('postgres', "CREATE TABLE jpa_raise (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k text);
		CREATE TRIGGER once AFTER INSERT ON jpa_raise FOR EACH ROW EXECUTE FUNCTION idem_once('k');
		CREATE TABLE jpa_skip (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, k text);
		CREATE TRIGGER once BEFORE INSERT ON jpa_skip FOR EACH ROW EXECUTE FUNCTION idem_once('k', NULL, 'skip');
		GRANT ALL ON jpa_raise, jpa_skip, jpa_raise_id_seq, jpa_skip_id_seq TO java");
	same_as_said("Java's JPA, $_", $jpa{$_}, @java, 'ClientsJpa', $_) for sort keys %jpa;
	$behind_bouncer->('jpa', 'ClientsJpa');
}

#
# Perl
#
SKIP:
{
	skip "Perl's DBD::Pg is not installed", 7 if !eval { require DBI; require DBD::Pg; 1 };
	my $db = DBI->connect('dbi:Pg:dbname=postgres;host=' . $node->host . ';port=' . $node->port, '', '', { RaiseError => 1, PrintError => 0, PrintWarn => 0 });

	eval { $db->do('SELECT idem_begin(?)', undef, 'perl') };
	is($db->state, 'ID005', 'DBD::Pg: autocommit');
	$db->begin_work;
	$db->do('SELECT idem_begin(?)', undef, 'perl');
	eval { $db->commit };
	is($db->state, 'ID005', 'DBD::Pg: no finish');
	$db->begin_work;
	$db->do('SELECT idem_begin(?, request => ?)', undef, 'perl', '{}');
	$db->do('SELECT idem_finish(?, ?)', undef, 'perl', '{}');
	eval { $db->do('SELECT 1/0') };
	is($db->ping, 4, 'DBD::Pg: ping knows an aborted transaction');
	ok($db->commit, 'DBD::Pg: whose commit is true');
	is_deeply($db->selectrow_arrayref('SELECT idem_claim(?)', undef, 'perl'), [1], 'DBD::Pg: and stores nothing');
	is_deeply($db->selectrow_arrayref('SELECT count(*) FROM idem_claim_many(?)', undef, [ 'perl 1', 'perl 2', 'perl 1' ]), [2], 'DBD::Pg: an array');
	$db->do("CREATE TABLE perl_once (k text); CREATE TRIGGER once AFTER INSERT ON perl_once FOR EACH ROW EXECUTE FUNCTION idem_once('k')");
	eval { $db->do("INSERT INTO perl_once VALUES ('a'), ('a')") };
	is($db->state, '23505', 'DBD::Pg: state');
	$db->disconnect;

	skip 'PgBouncer is not installed', 4 if !@bouncer;
	my %bouncer = @bouncer;
	for my $setting ('with', 'without')
	{
		my @db = map { DBI->connect("dbi:Pg:dbname=postgres;host=$bouncer{PGHOST};port=$bouncer{PGPORT};sslmode=disable", @bouncer{qw(PGUSER PGPASSWORD)},
			{ RaiseError => 1, PrintError => 0, PrintWarn => 0, $setting eq 'with' ? (pg_server_prepare => 0) : () }) } 0, 1;
		# an application keeps statements
		my @sth = map { my $db = $_; [ map { $db->prepare($_) } 'SELECT idem_begin(?)', 'SELECT idem_finish(?)' ] } @db;
		my ($resolved, $count) = (0, 0);

		# see swap of clients.py
		for my $attempt (0 .. 24)
		{
			my @inside;
			for my $i ($attempt < 10 ? 0 : $attempt % 2 == 0 ? (1, 0) : (0, 1))
			{
				my $k = "perl $setting " . ++$count;
				push @inside, $i if eval { $db[$i]->begin_work; $_->execute($k), $_->finish for @{ $sth[$i] }; 1 };
				eval { $db[$i]->rollback } if !@inside || $inside[-1] != $i;
			}
			@inside = reverse @inside if $attempt % 4 >= 2;
			eval { $db[$_]->commit; $resolved++ } for @inside;
		}
		is(stored($node, "perl $setting"), $resolved, "DBD::Pg, $setting: what did not fail is stored");
		ok($setting eq 'without' ? $resolved < 40 : $resolved == 40, "DBD::Pg behind PgBouncer, $setting");
		note("DBD::Pg, $setting: $resolved of 40");
	}
}

done_testing();
