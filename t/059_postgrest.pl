
# examples/postgrest: orders once without a program, by the triggers of a view.  First by
# PostgreSQL alone, with the SQL that PostgREST sends for POST /orders (its
# src/library/PostgREST/Query, version 14), then through PostGraphile, where npm can bring it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use HTTP::Tiny;
use IdemTest;
use IdemBouncer;
use IdemNpm;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $example = "$FindBin::RealBin/../examples/postgrest";
my $node = new_node('main', schema => undef);
my $json = JSON::PP->new->canonical->utf8->allow_nonref;

$node->safe_psql('postgres', slurp_file("$example/schema.sql"));

sub literal { my ($text) = @_; return $text =~ s/'/''/gr =~ s/^|$/'/gr }

# The begin of PostgREST's transaction: who asks, and what for.
sub preamble
{
	my ($key, %opt) = @_;
	my %headers = (host => 'localhost', defined $key ? ('idempotency-key' => $key) : ());
	my %claims = (role => 'web_user', exists $opt{user} ? (defined $opt{user} ? (sub => $opt{user}) : ()) : (sub => 'ada'));
	my %setting = (
		'search_path' => '"api", "public"',
		'role' => 'web_user',
		'request.jwt.claims' => $json->encode(\%claims),
		'request.method' => 'POST',
		'request.path' => $opt{path} // '/orders',
		'request.headers' => $json->encode(\%headers),
		'request.cookies' => '{}');

	return 'BEGIN; select ' . join(', ', map { "set_config('$_', " . literal($setting{$_}) . ', true)' } qw(search_path role request.jwt.claims
		request.method request.path request.headers request.cookies)) . ' \g /dev/null' . "\n";
}

# PostgREST's query for one row or an array of rows.
sub insert
{
	my ($body) = @_;
	my $rows = $body =~ /^\s*\{/ ? 'json_to_record' : 'json_to_recordset';
	my $payload = literal($body);

	return <<"SQL";
WITH pgrst_source AS (INSERT INTO "api"."orders"("item", "quantity") SELECT "pgrst_body"."item", "pgrst_body"."quantity"
FROM (SELECT $payload\:\:json AS json_data) pgrst_payload, LATERAL (SELECT "item", "quantity" FROM $rows(pgrst_payload.json_data)
AS _("item" text, "quantity" integer) ) pgrst_body
RETURNING "api"."orders"."id", "api"."orders"."item", "api"."orders"."quantity", "api"."orders"."created_at")
SELECT '' AS total_result_set, pg_catalog.count(_postgrest_t) AS page_total, array[]::text[] AS header,
coalesce(json_agg(_postgrest_t), '[]') AS body, nullif(current_setting('response.headers', true), '') AS response_headers,
nullif(current_setting('response.status', true), '') AS response_status, '' AS response_inserted
FROM (SELECT "orders".* FROM "pgrst_source" AS "orders" ) _postgrest_t;
SQL
}

# What PostgREST makes of an error: its src/library/PostgREST/Error.hs.
sub refusal
{
	my ($error) = @_;

	return { state => $1 // '', error => $error } unless $error =~ /ERROR:  (?=PGRST)(.*?): (\{.*\})\nDETAIL:  (\{.*\})/ || $error =~ /ERROR:  (\w{5}): /;
	return { state => $1, error => $error } unless $1 eq 'PGRST';
	my ($message, $detail) = map { $json->decode($_) } $2, $3;
	return { state => 'PGRST', status => $detail->{status}, headers => $detail->{headers}, body => $message };
}

# POST /orders: a transaction in a connection of its own.
sub post
{
	my ($key, $body, %opt) = @_;
	my ($ret, $out, $err) = $node->psql('postgres', preamble($key, %opt) . insert($body) . ($opt{end} // 'COMMIT') . ';',
		extra_params => [ '-F', "\x1f", '-v', 'VERBOSITY=verbose', '-U', 'authenticator' ]);

	return refusal($err) if $ret;
	my (undef, $rows, undef, $text, $headers, $status) = split /\x1f/, $out;
	return { status => $status || 201, rows => $rows, text => $text, replayed => $headers eq '[{"Idempotent-Replayed": "true"}]' ? 1 : 0 };
}

sub orders { return $node->safe_psql('postgres', 'SELECT count(*) FROM shop.orders') }
sub stock { return $node->safe_psql('postgres', q(SELECT available FROM shop.stock WHERE item = 'book')) }

sub is_new
{
	my ($answer, $rows, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(join(' ', map { $_ // '' } @$answer{qw(status rows replayed)}), "201 $rows 0", "$name: new") || diag(explain($answer));
}

sub is_replay
{
	my ($answer, $first, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is_deeply($answer, { %$first, replayed => 1 }, "$name: the same answer, byte for byte") || diag(explain($answer));
}

sub is_refused
{
	my ($answer, $status, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is($answer->{status} // $answer->{state}, $status, "$name: $status") || diag(explain($answer));
}

# one row
my $first = post('"order-1"', '{"item": "book", "quantity": 2}');

is_new($first, 1, 'one row');
is_replay(post('order-1', '{"quantity":2,"item":"book"}'), $first, 'one row');
is_replay(post('order-1', '[{"quantity":2,"item":"book"}]'), $first, 'one row, as an array');
is(orders() . ' ' . stock(), '1 998', 'one order');
$node->safe_psql('postgres', 'UPDATE shop.orders SET quantity = 3');
is_replay(post('order-1', '{"item": "book", "quantity": 2}'), $first, 'the order has changed since');
is_refused(post('order-1', '{"item": "book", "quantity": 1}'), 422, 'another quantity');
is_new(post('order-1', '{"item": "book", "quantity": 2}', user => 'bob'), 1, "another user's key");
is_new(post('order-1', '{"item": "book", "quantity": 2}', path => '/rpc/orders'), 1, 'another path');
is_refused(post('order-1', '{"item": "book", "quantity": 2}', user => undef), 401, 'no user');
is(orders(), 3, 'three orders');

# what is wrong with a key
is_refused(post(undef, '{"item": "book", "quantity": 2}'), 400, 'no key');
is_refused(post('', '{"item": "book", "quantity": 2}'), 400, 'an empty key');
is_refused(post('"a', '{"item": "book", "quantity": 2}'), 400, 'a malformed key');
is(orders(), 3, 'still three orders');

# several rows: two that are equal stay two
my $lamp = '{"item": "lamp", "quantity": 1}';
my $book = '{"item": "book", "quantity": 1}';
my $bulk = post('bulk', "[$lamp, $lamp, $book]");

is_new($bulk, 3, 'three rows');
is(orders(), 6, 'two equal rows are two orders');
is(scalar(keys %{ { map { $_->{id} => 1 } @{ $json->decode($bulk->{text}) } } }), 3, 'each with an id of its own');
is_replay(post('bulk', "[$lamp, $lamp, $book]"), $bulk, 'three rows');
is_refused(post('bulk', "[$lamp, $lamp]"), 422, 'fewer rows');
is_refused(post('bulk', "[$lamp, $lamp, $book, $book]"), 422, 'more rows');
is_refused(post('bulk', "[$lamp, $book, $lamp]"), 422, 'another order of rows');
is_refused(post('bulk', '[]'), 422, 'no rows');
is(orders(), 6, 'none of these has left an order');
is_new(post('none', '[]'), 0, 'no rows');
is_replay(post('none', '[]'), { status => 201, rows => 0, text => '[]' }, 'no rows');
is_refused(post('none', "[$lamp]"), 422, 'a row in place of none');

my $many = '[' . join(', ', ($book) x 500) . ']';
my $large = post('many', $many);

is_new($large, 500, 'many rows');
is_replay(post('many', $many), $large, 'many rows');
is(stock(), 998 - 2 - 2 - 1 - 500, 'the stock was counted once for each');

# text that could be taken for the end of a line
my $item = "a\nb\\\"'\xe9\x{2028}";
my $odd = $json->encode({ item => $item, quantity => 1 });
$node->safe_psql('postgres', 'INSERT INTO shop.stock SELECT item, 10 FROM json_to_record(' . literal($odd) . ') AS _(item text)');
my $strange = post('odd', "[$odd, $lamp]");

is_new($strange, 2, 'odd text');
is($json->decode($strange->{text})->[0]{item}, $item, 'as it was sent');
is_replay(post('odd', "[$odd, $lamp]"), $strange, 'odd text');

# what fails leaves neither orders nor the key
my $before = orders();

is_refused(post('sold', "[$lamp, {\"item\": \"gold\", \"quantity\": 1}]"), 422, 'sold out');
is(post('sold', "[$lamp, {\"item\": \"lamp\", \"quantity\": -1}]")->{state}, '23514', 'a row that no order can be');
is(orders(), $before, 'no order of it stays');
is_new(post('sold', "[$lamp]", end => 'ROLLBACK'), 1, 'Prefer: tx=rollback');
is_new(post('sold', "[$lamp]"), 1, 'the key is free');

# two requests at once: the second is told to come back, and gets the answer then
my $session = $node->background_psql('postgres', extra_params => [ '-U', 'authenticator' ], on_error_stop => 0);

$session->query_until(qr/inserted/, preamble('slow') . insert("[$lamp, $lamp]") . "\\echo inserted\n");
my $busy = post('slow', "[$lamp, $lamp]");
is_refused($busy, 409, 'while the first runs');
like($busy->{headers}{'Retry-After'}, qr/^[1-9][0-9]*$/, 'with Retry-After, whole seconds');
is_deeply([ sort keys %{ $busy->{headers} } ], [ 'Link', 'Retry-After' ], 'a link to the documentation, and no field that PostgREST sets');
is_new(post('other', "[$book]"), 1, 'another key does not wait'); # lamp's stock is locked
$session->query_safe('COMMIT');
$before = orders();
my $second = post('slow', "[$lamp, $lamp]");
is("@$second{qw(status rows replayed)}", '201 2 1', 'then it is a replay');
is(orders(), $before, 'and no order');

# a pooled connection: nothing of one request is left for the next
for my $key ('slow', 'fresh 1', 'fresh 2')
{
	is($session->query_safe(preamble($key) . insert("[$lamp, $lamp]") . 'COMMIT;') =~ /Idempotent-Replayed/ ? 1 : 0, $key eq 'slow' ? 1 : 0, "a pooled connection: $key");
}
is(orders(), $before + 4, 'each ran once');
$session->quit;

# several INSERTs of one transaction, as of a GraphQL request, are several claims
sub two { return post('two', $lamp, end => insert($_[0] // $lamp) . 'COMMIT') }

$before = orders();
is_new(two(), 1, 'two statements');
is(orders(), $before + 2, 'two orders');
is(two()->{replayed}, 1, 'both replayed');
is(orders(), $before + 2, 'still two');
is_refused(two($book), 422, 'another second statement');

# no more than it needs
for my $sql ('SELECT * FROM shop.orders', 'INSERT INTO shop.orders (user_name, item, quantity) VALUES (1, 2, 3)', q(SELECT * FROM idem.idem_http_begin('order-1')),
	'UPDATE api.orders SET quantity = 1', 'DELETE FROM api.orders')
{
	sql_fails($node, 'postgres', "SET ROLE web_user; $sql", '42501', "web_user: $sql");
}
is($node->safe_psql('postgres', preamble('x', user => 'bob') . 'SELECT count(*) FROM api.orders; COMMIT;'), 1, "a user sees the user's own orders");

SKIP:
{
	my $folder = npm_ci("$example/postgraphile") or skip 'PostGraphile: npm does not bring it here', 1;
	my $err = '';
	my $url;

	# A server of that database; its address is in $url.
	my $start = sub {
		my ($database) = @_;
		local @ENV{qw(DATABASE_URL PORT)} = ($database, 0);
		my $out = '';
		my $server = IPC::Run::start([ 'node', "$folder/server.js" ], '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timer(180));
		my $is_up = eventually(sub { $server->pump_nb; return $out =~ /listening on/ || !$server->pumpable }) && $out =~ /listening on (\d+)/;

		$url = "http://127.0.0.1:" . ($1 // 0) . '/graphql';
		ok($is_up, 'PostGraphile runs') || diag($err);
		return $server;
	};
	my $server = $start->('postgresql:///postgres?user=authenticator&port=' . $node->port . '&host=' . $node->host);

	my $graphql = sub {
		my ($key, @orders) = @_;
		my $n = 0;
		my $query = 'mutation {' . join(' ', map { 'm' . $n++ . ": createOrder(input: {order: {item: \"$_->[0]\", quantity: $_->[1]}}) { order { id item quantity createdAt } }" } @orders) . '}';
		my $answer = HTTP::Tiny->new->post($url, {
			headers => { 'Content-Type' => 'application/json', 'X-User' => 'ada', defined $key ? ('Idempotency-Key' => $key) : () },
			content => $json->encode({ query => $query }) });

		return eval { $json->decode($answer->{content}) } // { failed => $answer };
	};
	my $code = sub { my ($answer) = @_; return join(' ', map { eval { $json->decode($_->{message})->{code} } // $_->{message} } @{ $answer->{errors} // [] }) };

	$before = orders();
	my $one = $graphql->('"graphql-1"', [ 'book', 1 ]);
	ok($one->{data}{m0}{order}{id}, 'PostGraphile: an order') || diag(explain($one), $err);
	is_deeply($graphql->('graphql-1', [ 'book', 1 ]), $one, 'PostGraphile: replayed');
	is(orders(), $before + 1, 'PostGraphile: one order');
	is($code->($graphql->('graphql-1', [ 'book', 2 ])), '422', 'PostGraphile: another request');
	is($code->($graphql->('graphql-1', [ 'book', 1 ], [ 'book', 1 ])), '422 422', 'PostGraphile: a mutation more');
	is($code->($graphql->(undef, [ 'book', 1 ])), '400', 'PostGraphile: no key');
	is(orders(), $before + 1, 'PostGraphile: still one order');

	my $pair = $graphql->('graphql-2', [ 'lamp', 1 ], [ 'lamp', 1 ]);
	is(orders(), $before + 3, 'PostGraphile: two equal mutations are two orders') || diag(explain($pair));
	is_deeply($graphql->('graphql-2', [ 'lamp', 1 ], [ 'lamp', 1 ]), $pair, 'PostGraphile: both replayed');
	is(orders(), $before + 3, 'PostGraphile: still two');

	$before = orders();
	my $half = $graphql->('graphql-3', [ 'book', 1 ], [ 'book', 0 ]);
	like($half->{errors}[0]{message}, qr/orders_quantity_check/, 'PostGraphile: the second mutation fails');
	ok($half->{data}{m0}{order}{id}, 'PostGraphile: which is a savepoint, so the first one is there');
	is(orders(), $before + 1, 'PostGraphile: in the table too');

	$server->signal('TERM');
	eval { $server->finish };

	# Behind PgBouncer two of them come to one server connection.  Its queries have names, its mutations have none.
	my @bouncer = start_bouncer($node) or skip 'PgBouncer is not installed', 1;
	my %bouncer = @bouncer;
	for my $setting ('with', 'without')
	{
		local $ENV{POSTGRAPHILE_PREPARED_STATEMENT_CACHE_SIZE} = $setting eq 'with' ? 0 : 100;
		my @said;
		my @servers = map {
			my $started = $start->("postgresql://$bouncer{PGUSER}:$bouncer{PGPASSWORD}\@$bouncer{PGHOST}:$bouncer{PGPORT}/postgres");
			my $answer = HTTP::Tiny->new->post($url, { headers => { 'Content-Type' => 'application/json', 'X-User' => 'ada' },
				content => $json->encode({ query => '{ allOrders { nodes { id } } }' }) });
			my $data = eval { $json->decode($answer->{content})->{data}{allOrders} };

			push @said, ($data ? 'orders' : $answer->{content} =~ /prepared statement/ ? 'prepared statement' : $answer->{content});
			push @said, $graphql->("bouncer-$setting-$_", [ 'book', 1 ])->{data}{m0}{order}{id} ? 'an order' : 'none';
			$started;
		} 1, 2;
		is_deeply(\@said, [ 'orders', 'an order', $setting eq 'with' ? 'orders' : 'prepared statement', 'an order' ], "PostGraphile behind PgBouncer, $setting");
		for my $started (@servers)
		{
			$started->signal('TERM');
			eval { $started->finish };
		}
	}
}

$node->stop;
done_testing();
