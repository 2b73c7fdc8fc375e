
# The programs of doc/howto/from-redis.md, as printed there, in the order of its steps, while clients of
# two versions work on the same keys: each request has its effect once, and one answer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemDocs;
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $keys = 20_000; # that are in Redis before
my $fresh = 200;   # more in each phase
my $calls = 250;   # of each of four clients of a version
my $python = '/usr/bin/python3';

# Debian's packages
for my $needed ([ 'redis-server', '--version' ], [ 'redis-cli', '--version' ], [ $python, '-c', 'import psycopg, redis; assert psycopg.Connection.broken' ])
{
	plan skip_all => "redis-server, python3-redis or python3-psycopg is missing"
	  unless eval { IPC::Run::run($needed, '>', \my $out, '2>', \my $err) };
}

my $dir = PostgreSQL::Test::Utils::tempdir();
my @blocks = blocks("$FindBin::RealBin/../doc/howto/from-redis.md");

sub language
{
	my ($name) = @_;
	return join "\n\n", map { $_->[1] } grep { $_->[0] eq $name } @blocks;
}

append_to_file("$dir/page.py", language('python'));
append_to_file("$dir/import-redis", language('sh'));
chmod 0755, "$dir/import-redis";

my $node = new_node('main');
my $port = PostgreSQL::Test::Cluster::get_free_port();

$ENV{REDIS_URL} = "redis://127.0.0.1:$port";
$ENV{PYTHONPATH} = $dir;
$ENV{PYTHONDONTWRITEBYTECODE} = 1;

my ($redis_out, $redis_err) = ('', '');
my $redis = IPC::Run::start([ 'redis-server', '--port', $port, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', $dir ], '<', \undef, '>', \$redis_out, '2>', \$redis_err);

END { $redis->kill_kill if $redis }

sub redis
{
	my ($out, $err) = ('', '');

	IPC::Run::run([ 'redis-cli', '-u', $ENV{REDIS_URL}, '--raw', @_ ], '>', \$out, '2>', \$err);
	return $out =~ s/\n\z//r;
}

sub query { return $node->safe_psql('postgres', $_[0]) }

eventually(sub { redis('PING') eq 'PONG' }) or die "redis-server did not start: $redis_out";
# with the jobs that the page says
query(<<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE importer LOGIN;
SELECT idem_grant('app', '{claims, lookup}'), idem_grant('importer', '{operate}');
ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE ON TABLES TO app;
SQL
query(language('sql'));
query('ALTER TABLE orders ALTER id RESTART WITH 1000001; CREATE TABLE answers (key text, answer text)');

# What the page's import prints.
sub import_redis
{
	my ($out, $err) = ('', '');
	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres', PGUSER => 'importer');

	ok(IPC::Run::run(["$dir/import-redis"], '>', \$out, '2>', \$err), 'the import') or diag($err);
	return $out;
}

my @client = ($python, "$FindBin::RealBin/lib/from_redis.py", $ENV{REDIS_URL}, $node->connstr('postgres') . ' user=app');
my $phase = 0;

# Clients of some versions, each with keys of all phases and those that were there before.
sub start_clients
{
	my @versions = @_;
	my @known = map { ("a$_-", $fresh) } 1 .. ++$phase;

	return map
	{
		my ($out, $err) = ('', '');
		[ $_, IPC::Run::start([ @client, 'storm', $_, $calls, 'r-', $keys, @known ], '>', \$out, '2>', \$err), \$out, \$err ]
	} @versions;
}

sub end_clients
{
	for my $client (@_)
	{
		my ($version, $run, $out, $err) = @$client;
		my $file = "$dir/answers $phase $version";

		ok($run->finish, "phase $phase: no request of the $version version failed") or diag($$err);
		append_to_file($file, $$out);
		query("\\copy answers FROM '$file' WITH (FORMAT csv, QUOTE E'\\x01', DELIMITER E'\\t')");
	}
	is(query('SELECT key, count(*) FROM orders GROUP BY key HAVING count(*) > 1'), '', "phase $phase: nothing ran twice");
	is(query("SELECT key FROM orders WHERE key LIKE 'r-%'"), '', "phase $phase: nor what was done before");
	return;
}

# What one client says.
sub asked
{
	my ($what, $version, $key) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ @client, $what, $version, $key ], '>', \$out, '2>', \$err);
	diag($err) if $err;
	return $out =~ s/\A\Q$key\E\t|\n\z//gr;
}

my $odd = qq(a "quoted" \\ 'line'\r\n\ttab,\x01\x02 /\$\$ \xe2\x82\xac);
redis('EVAL', "for i = 1, $keys do redis.call('SET', 'idem:r-' .. i, '{\"order\": ' .. i .. '}', 'EX', 86400) end", 0);
redis('SET', 'idem:odd', $odd, 'EX', 3600);
redis('SET', 'idem:empty', '', 'EX', 3600);
redis('SET', "idem:odd k\xc3\xa9y: 'x'", 'x', 'EX', 3600);
redis('SET', 'idem:for ever', 'f');
redis('SET', 'idem:dead', 'pending', 'EX', 3600);
redis('HSET', 'idem:hash', 'status', '201');
redis('SET', 'session:1', 'not a key');

# 1. import beside the old version
my @clients = start_clients('old');
like(import_redis(), qr/^imported \d\d+$/m, 'imports');
end_clients(@clients);
cmp_ok(query("SELECT count(*) FROM idem_keys WHERE key LIKE 'r-%'"), '==', $keys, 'what was there');

# 2. the version that uses both beside the old one
end_clients(start_clients('old', 'both'));
is(asked('die', 'both', 'killed'), '', 'a client is killed before it stores the answer in Redis');
is(redis('GET', 'idem:killed'), 'pending', 'so that its key is pending there');
is(asked('ask', 'old', 'killed'), 'None', 'the old version answers 409');
like(asked('ask', 'both', 'killed'), qr/^\{"order": \d+\}$/, 'the version that uses both knows the answer');
is(asked('ask', 'old', 'killed'), asked('ask', 'both', 'killed'), 'and then the old one, too');
is(asked('die', 'old', 'killed old'), '', 'a client of the old version is killed');
is(asked('ask', 'both', 'killed old'), 'None', 'nobody knows whether that was done');

# 3. the old version is gone: the import beside the one that uses both
@clients = start_clients('both');
like(import_redis(), qr/^imported [1-9]/m, 'more imports');
my @again = split /\n/, import_redis();
is(join(' ', grep { !/^imported 0$|^pending idem:a\d/ } sort @again), 'pending idem:dead pending idem:killed old', 'then there is nothing left, but for what is pending');
end_clients(@clients);

# 5. the new version beside the one that uses both
end_clients(start_clients('both', 'new'));

# 6. alone, without Redis
redis('SHUTDOWN', 'NOSAVE');
$redis->finish;
end_clients(start_clients('new'));

is(query('SELECT string_agg(DISTINCT item, $$ $$ ORDER BY item) FROM orders'), 'both new old', 'each version had requests that were the first');
is(query("SELECT key FROM answers WHERE key NOT LIKE 'r-%' EXCEPT SELECT key FROM orders"), '', 'every request had its effect');
is(query('SELECT key FROM answers GROUP BY key HAVING count(DISTINCT answer) > 1'), '', 'a key has one answer');
is(query(q(SELECT key FROM answers JOIN orders USING (key) WHERE answer <> format('{"order": %s}', id))), '', 'its own');
is(query(q(SELECT key FROM answers WHERE key LIKE 'r-%' AND answer <> format('{"order": %s}', substr(key, 3)))), '', 'and what was in Redis is as it was');
cmp_ok(query("SELECT count(*) FROM answers WHERE key LIKE 'r-%'"), '>', 0, 'which some have asked for');
is(asked('ask', 'new', 'odd'), $odd, 'each byte of it');
is(asked('ask', 'new', 'empty'), '', 'even none');
is(asked('ask', 'new', "odd k\xc3\xa9y: 'x'"), 'x', 'an odd key');
is(query("SELECT key FROM idem_keys WHERE key IN ('dead', 'killed old', 'hash', '1') OR key LIKE 'idem:%'"), '', 'what is not an answer is not imported');
is(query("SELECT expires_at FROM idem_keys WHERE key = 'for ever'"), 'infinity', 'what has no end in Redis has none here');
is(query("SELECT expires_at - created_at BETWEEN '50 min' AND '1 hour' FROM idem_keys WHERE key = 'odd'"), 't', 'what has one keeps it');

undef $redis;
$node->stop('fast');

done_testing();
