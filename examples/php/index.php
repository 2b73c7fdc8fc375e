<?php

// The shop of examples/README.md with PDO.

declare(strict_types=1);

ini_set('default_mimetype', '');    // answers without a body have no Content-Type
ini_set('zend.exception_ignore_args', '1');    // tokens and codes are for no log

// ---- answers

final class Answer
{
    public function __construct(
        public readonly int $status,
        public readonly array $headers = [],
        public readonly ?string $body = null,
    ) {}
}

// The business says no: rolls back to where it is caught, and has the answer.
final class Refused extends Exception
{
    public function __construct(public readonly Answer $answer)
    {
        parent::__construct($answer->body);
    }
}

const NO_STORE = ['Cache-Control' => 'no-store'];
const MAX_BODY = 1024 * 1024;
const TITLES = [
    400 => 'Bad Request', 401 => 'Unauthorized', 402 => 'Payment Required', 403 => 'Forbidden', 404 => 'Not Found',
    409 => 'Conflict', 410 => 'Gone', 413 => 'Content Too Large', 422 => 'Unprocessable Content', 429 => 'Too Many Requests',
    500 => 'Internal Server Error', 503 => 'Service Unavailable',
];

function json(int $status, array $value, array $headers = []): Answer
{
    $body = json_encode($value, JSON_THROW_ON_ERROR | JSON_UNESCAPED_SLASHES);
    return new Answer($status, $headers + ['Content-Type' => 'application/json'], $body);
}

function problem(
    int $status,
    string $detail,
    string $type = 'about:blank',
    array $headers = [],
    array $more = [],
): Answer {
    $value = ['type' => $type, 'title' => TITLES[$status], 'status' => $status, 'detail' => $detail] + $more;
    return json($status, $value, $headers + ['Content-Type' => 'application/problem+json']);
}

function again(int $status): Answer
{
    return problem($status, 'Try again.', headers: ['Retry-After' => '1']);
}

function refuse(mixed ...$problem): never
{
    throw new Refused(problem(...$problem));
}

function valid(bool $condition, string $detail): void
{
    $condition || refuse(400, $detail);
}

// The only way out, for a first answer and for its replay, so that both are the same bytes.
function send(Answer $answer): void
{
    http_response_code($answer->status);    // before Location, which would make it 302
    foreach ($answer->headers as $name => $value) {
        header("$name: $value");
    }
    if ($answer->status !== 204) {
        header('Content-Length: ' . strlen($answer->body ?? ''));
    }
    echo $answer->body;
}

// ---- requests

function matches(mixed $value, string $pattern): bool
{
    // PostgreSQL holds no U+0000
    return is_string($value) && !str_contains($value, "\0") && preg_match($pattern, $value) === 1;
}

function path(): string
{
    return strtok($_SERVER['REQUEST_URI'], '?');
}

// In a real service this is the user of the session or the token.  Whoever believes a header that the client can
// choose gives every user's answers to everybody.
function user(): string
{
    $name = $_SERVER['HTTP_X_USER'] ?? null;
    matches($name, '/\A[A-Za-z0-9._@-]{1,100}\z/') || refuse(401, 'Who are you?');
    return $name;
}

// Method and path go into the scope, and so does the user: nobody gets the answer to another user's request.
function scope(): string
{
    return user() . " {$_SERVER['REQUEST_METHOD']} " . path();
}

// The header field as it came; null if there is none.  ASCII only: what a byte above 127 means differs between servers.
function idempotencyKey(): ?string
{
    $key = $_SERVER['HTTP_IDEMPOTENCY_KEY'] ?? null;
    valid($key === null || matches($key, '/\A[\t -~]*\z/'), 'The key is not ASCII.');
    return $key;
}

// "abc" and abc are one key, and so must be what is derived from it.
function bareKey(): string
{
    $key = trim(idempotencyKey(), " \t");
    return $key[0] === '"' ? preg_replace('/\\\\(.)/', '$1', substr($key, 1, -1)) : $key;
}

// The body as it came is what idem_http_begin compares.  U+0000 would end a parameter of a statement; JSON has none.
function bodyText(): string
{
    $text = file_get_contents('php://input', length: MAX_BODY + 1);
    strlen($text) <= MAX_BODY || refuse(413, 'The body has more than 1 MiB.');
    valid(!str_contains($text, "\0"), 'The body is not JSON.');
    return $text;
}

function input(): array
{
    try {
        $value = json_decode(bodyText(), true, flags: JSON_THROW_ON_ERROR);
    } catch (JsonException) {
        refuse(400, 'The body is not JSON.');
    }
    valid(is_array($value), 'The body is not a JSON object.');
    return $value;
}

// ---- the database

// PDO prepares each statement under a name, which PgBouncer in transaction mode does not know before 1.21; disabled,
// the values still travel as parameters.  'pgsql:' takes the rest from PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE.
function connect(): PDO
{
    return new PDO('pgsql:', options: [
        PDO::PGSQL_ATTR_DISABLE_PREPARES => true,
        PDO::ATTR_DEFAULT_FETCH_MODE => PDO::FETCH_ASSOC,
    ]);
}

function query(PDO $db, string $sql, mixed ...$values): PDOStatement
{
    $statement = $db->prepare($sql);
    $statement->execute($values);
    return $statement;
}

// getCode() is another number if the connection cannot be made.
function sqlState(Throwable $error): string
{
    return $error instanceof PDOException ? $error->errorInfo[0] ?? '' : '';
}

// What $work returns is answered only after COMMIT.  40001 and 40P01, also of the COMMIT, repeat it from BEGIN,
// never from a savepoint, where the same snapshot fails for ever.
function transaction(callable $work): mixed
{
    $db = connect();
    for ($attempt = 1; ; $attempt++) {
        try {
            $db->beginTransaction();
            $result = $work($db);
            $db->exec('SELECT 1');    // fails if an error has aborted the transaction; commit() returns true then
            $db->commit();
            return $result;
        } catch (Throwable $error) {
            try {
                $db->inTransaction() && $db->rollBack();
            } catch (PDOException) {
                // the connection is gone, and the transaction with it
            }
            if ($attempt === 3 || !in_array(sqlState($error), ['40001', '40P01'], true)) {
                throw $error;
            }
        }
    }
}

// What says to run, or the answer to send.
// A missing key is null, which idem_http_begin answers with 400.
// In autocommit mode, without beginTransaction(), it fails with ID005: its transaction ends without the finish.
function begin(PDO $db, ?int $leaseMs = null): array|Answer
{
    $claim = query($db, 'SELECT * FROM idem_http_begin(?, ?, ?, wait_ms => 500, lease_ms => ?)',
        idempotencyKey(), bodyText(), scope(), $leaseMs)->fetch();
    if ($claim['run']) {
        return $claim;
    }
    // A replay has the first status, 201, not 200.  Retry-After of a 409 is whole seconds already.
    $headers = json_decode($claim['headers'] ?? '{}', true, flags: JSON_THROW_ON_ERROR);
    // 400, 409 and 422 say where your API's documentation is
    $headers += $claim['replayed']
        ? ['Idempotent-Replayed' => 'true']
        : ['Link' => '<https://shop.example/docs/idempotency>; rel="describedby"'];
    return new Answer($claim['status'], $headers, $claim['body']);
}

// The scope is that of the begin: a claim is a key in a scope.
function finish(PDO $db, Answer $answer, ?int $fence = null): Answer
{
    $status = query($db, 'SELECT idem_http_finish(?, ?, ?, ?, ?, ?)',
        idempotencyKey(), $answer->status, $answer->body, json_encode($answer->headers), scope(), $fence)
        ->fetchColumn();
    return new Answer($status, $answer->headers, $answer->body);
}

// ---- orders

function placeOrder(PDO $db, string $user, string $item, int $quantity, ?string $number): Answer
{
    try {
        $id = query($db, 'INSERT INTO orders (user_name, item, quantity, order_number)
            VALUES (?, ?, ?, ?) RETURNING id', $user, $item, $quantity, $number)->fetchColumn();
    } catch (PDOException $error) {
        // PDO tells the trigger's name only in the message
        if (sqlState($error) === '23505' && str_contains($error->getMessage(), '"orders_once"')) {
            refuse(409, 'This order number is taken.', '/problems/order-number-taken');
        }
        throw $error;
    }
    $stock = query($db, 'UPDATE stock SET available = available - :quantity
        WHERE item = :item AND available >= :quantity', quantity: $quantity, item: $item);
    if ($stock->rowCount() === 0) {
        refuse(422, "There is not enough of $item.", '/problems/sold-out');
    }
    $order = ['id' => $id, 'item' => $item, 'quantity' => $quantity, 'order_number' => $number];
    return json(201, $order, ['Location' => "/orders/$id"]);
}

function postOrder(): Answer
{
    $user = user();
    ['item' => $item, 'quantity' => $quantity, 'order_number' => $number] =
        input() + ['item' => null, 'quantity' => null, 'order_number' => null];
    valid(matches($item, '/\A[a-z0-9-]{1,60}\z/'), 'item is missing or wrong');
    valid(is_int($quantity) && $quantity >= 1 && $quantity <= 100, 'quantity is 1 to 100');
    valid($number === null || matches($number, '/\A[A-Za-z0-9-]{1,60}\z/'), 'order_number is wrong');
    if (idempotencyKey() === null && $number !== null) {
        return transaction(fn (PDO $db) => placeOrder($db, $user, $item, $quantity, $number));
    }

    return transaction(function (PDO $db) use ($user, $item, $quantity, $number) {
        $claim = begin($db);
        if ($claim instanceof Answer) {
            return $claim;
        }
        $db->exec('SAVEPOINT work');
        try {
            $answer = placeOrder($db, $user, $item, $quantity, $number);
        } catch (Refused $refused) {
            // A business failure is an answer, too: undo the work, and store the answer with its status.
            $db->exec('ROLLBACK TO SAVEPOINT work');
            $answer = $refused->answer;
        }
        return finish($db, $answer);
    });
}

// ---- clicks

function postClick(): Answer
{
    $user = user();
    $db = connect();
    // Whole seconds until one call more is allowed, rounded up: who comes back a moment too early is refused again.
    // reset_after is until all five are, a minute for each.
    $call = query($db, "SELECT allowed, remaining, ceil(reset_after - 60 * (4 - remaining))::int AS seconds
        FROM idem_throttle(?, '5 min', 5, 'clicks')", $user)->fetch();
    $headers = [
        'RateLimit-Policy' => '"clicks";q=5;w=300',
        'RateLimit' => "\"clicks\";r={$call['remaining']};t={$call['seconds']}",
    ];
    if (!$call['allowed']) {
        return problem(429, 'Too many clicks.', headers: $headers + ['Retry-After' => $call['seconds']]);
    }
    query($db, 'INSERT INTO clicks (user_name) VALUES (?)', $user);
    return new Answer(204, $headers);
}

// ---- payments

// The charge, or null if it was declined.
function charge(string $remoteKey, int $amount): ?string
{
    $curl = curl_init(getenv('PAYMENT_URL') . '/charges');
    curl_setopt_array($curl, [
        CURLOPT_POSTFIELDS => json_encode(['amount' => $amount]),
        CURLOPT_HTTPHEADER => ['Content-Type: application/json', "Idempotency-Key: $remoteKey"],
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 10,
    ]);
    $body = curl_exec($curl);
    $status = curl_getinfo($curl, CURLINFO_RESPONSE_CODE);
    if ($body === false || !in_array($status, [201, 402], true)) {
        throw new RuntimeException("the payment service says $status " . curl_error($curl));
    }
    if ($status === 402) {
        return null;
    }
    return json_decode($body, false, flags: JSON_THROW_ON_ERROR)->charge
        ?? throw new RuntimeException('the payment service names no charge');    // it may have charged
}

function postPayment(): Answer
{
    $user = user();
    $amount = input()['amount'] ?? null;
    valid(is_int($amount) && $amount >= 1 && $amount <= 1_000_000, 'amount is 1 to 1000000');

    // Committed before the call, so that all see the claim in progress, until it is finished or its lease is over.
    $claim = transaction(function (PDO $db) use ($user, $amount) {
        $claim = begin($db, leaseMs: 30_000);
        if ($claim instanceof Answer) {
            return $claim;
        }
        $claim['remote_key'] = hash('sha256', scope() . "\n" . bareKey());
        query($db, 'INSERT INTO payments (remote_key, user_name, amount) VALUES (?, ?, ?) ON CONFLICT DO NOTHING',
            $claim['remote_key'], $user, $amount);
        return $claim;
    });
    if ($claim instanceof Answer) {
        return $claim;
    }

    try {
        $charge = charge($claim['remote_key'], $amount);
    } catch (Throwable $error) {
        // We do not know whether it was charged.  The next attempt asks again, under the same key.
        error_log($error->getMessage());
        try {
            query(connect(), 'SELECT idem_release(?, ?, ?)', bareKey(), scope(), $claim['fence']);
        } catch (PDOException $error) {
            error_log($error->getMessage());    // then the lease ends by itself
        }
        return again(503);
    }

    $answer = $charge === null
        ? problem(402, 'The card was declined.', '/problems/declined')
        : json(201, ['charge' => $charge, 'amount' => $amount]);
    try {
        return transaction(function (PDO $db) use ($claim, $charge, $answer) {
            query($db, 'UPDATE payments SET status = ?, charge = ? WHERE remote_key = ?',
                $charge === null ? 'declined' : 'paid', $charge, $claim['remote_key']);
            return finish($db, $answer, $claim['fence']);
        });
    } catch (PDOException $error) {
        // another request has taken over, or has finished already: its answer is the answer
        return in_array(sqlState($error), ['ID004', 'ID006'], true) ? again(409) : throw $error;
    }
}

// ---- magic links and codes

// One form of an address in all calls.  strtolower() is for ASCII; mb_strtolower() wants the extension mbstring.
function emailOf(array $input): string
{
    $email = is_string($input['email'] ?? null) ? strtolower(trim($input['email'], " \t\r\n")) : '';
    valid(matches($email, '/\A(?=.{3,100}\z)[^@]+@[^@]+\z/su'), 'email is missing or wrong');
    return $email;
}

function noToken(string $state): Answer
{
    return $state === 'unknown'
        ? problem(404, 'There is no such link.', headers: NO_STORE)
        : problem(410, 'This link was used before, or is too old.', headers: NO_STORE);
}

// The token goes from the database into the mail, and not through this program's logs.
function postMagicLink(): Answer
{
    $email = emailOf(input());
    query(connect(), "INSERT INTO outbox (recipient, kind, secret)
        SELECT :email, 'magic-link', idem_token_issue('login', '15 min', subject => :email)", email: $email);
    return new Answer(202, NO_STORE);
}

// A scanner of the mail server follows the link: looking burns nothing.
function peekMagicLink(string $token): Answer
{
    $state = query(connect(), "SELECT state FROM idem_token_peek('login', ?)", $token)->fetchColumn();
    return $state === 'valid' ? json(200, ['state' => 'valid'], NO_STORE) : noToken($state);
}

function redeemMagicLink(string $token): Answer
{
    return transaction(function (PDO $db) use ($token) {
        $login = query($db, "SELECT * FROM idem_token_redeem('login', ?)", $token)->fetch();
        if ($login['state'] !== 'redeemed') {
            return noToken($login['state']);
        }
        query($db, 'INSERT INTO logins (email) VALUES (?)', $login['subject']);
        return json(200, ['email' => $login['subject']], NO_STORE);
    });
}

function postCode(): Answer
{
    $email = emailOf(input());
    query(connect(), "INSERT INTO outbox (recipient, kind, secret)
        SELECT :email, 'code', idem_code_issue('login', :email, '5 min', max_attempts => 3)", email: $email);
    return new Answer(202);
}

function verifyCode(): Answer
{
    $input = input();
    $email = emailOf($input);
    $code = $input['code'] ?? null;
    valid(matches($code, '//'), 'code is missing or wrong');
    return transaction(function (PDO $db) use ($email, $code) {
        $attempt = query($db, "SELECT * FROM idem_code_verify('login', ?, ?)", $email, $code)->fetch();
        if ($attempt['state'] === 'verified') {
            query($db, 'INSERT INTO logins (email) VALUES (?)', $email);
            return json(200, ['verified' => true]);
        }
        // an answer, not thrown: a wrong attempt commits, or it would not count
        return in_array($attempt['state'], ['wrong', 'locked'], true)
            ? problem(403, 'This is not the code.', more: ['attempts_left' => $attempt['attempts_left']])
            : problem(410, 'There is no such code any more; ask for a new one.');
    });
}

// ---- a consumer

function park(PDO $db, ?string $id, ?string $payload, string $error): void
{
    query($db, 'INSERT INTO dead_letters (message_id, payload, error) VALUES (?, ?, ?)', $id, $payload, $error);
}

// json_decode() refuses the whole batch for half a surrogate pair, and for a member whose name begins with U+0000.
// With U+FFFD and U+0000 in their place it takes them, and PostgreSQL refuses only the message that has them.
function messages(): array
{
    $other = '\\\\(?:[^u]|ud[89ab][0-9a-f]{2}\\\\ud[c-f][0-9a-f]{2})';
    $text = preg_replace("/$other(*SKIP)(*FAIL)|\\\\u(?:0000|d[89a-f][0-9a-f]{2})/i", '\ufffd\u0000', bodyText());
    // Objects, since {} would come out as an array []; what is no int as text, since a float is another number.
    $messages = json_decode($text ?? '', flags: JSON_BIGINT_AS_STRING)->messages ?? null;
    valid(is_array($messages) && count($messages) <= 100, 'messages is missing or wrong');
    return $messages;
}

function payloadOf(mixed $message): ?string
{
    if (!is_object($message) || !property_exists($message, 'payload')) {
        return null;
    }
    $json = json_encode($message->payload, JSON_PRESERVE_ZERO_FRACTION);
    return $json === false ? json_encode(json_last_error_msg()) : $json;    // 1e999; a string is parked below
}

function postDeliveries(): Answer
{
    $messages = messages();
    return transaction(function (PDO $db) use ($messages) {
        $new = $parked = 0;
        // idem_claim_many returns keys, not payloads: this array leads back to those.
        $payloads = [];
        foreach ($messages as $message) {
            $id = $message->id ?? null;
            if (matches($id, '/\A.{1,1024}\z/s')) {
                $payloads += [$id => payloadOf($message)];    // the first of equal ids
            } else {
                park($db, null, payloadOf($message), 'no usable id');    // it would fail the whole batch
                $parked++;
            }
        }
        // PDO has no arrays
        $keys = query($db, "SELECT key
            FROM idem_claim_many(ARRAY(SELECT json_array_elements_text(?)), '7 days', 'deliveries')",
            json_encode(array_keys($payloads), JSON_THROW_ON_ERROR))->fetchAll(PDO::FETCH_COLUMN);
        foreach ($keys as $key) {
            $db->exec('SAVEPOINT message');
            try {
                query($db, 'INSERT INTO shipments SELECT ?, p.order_number, p.quantity
                    FROM jsonb_to_record(?::jsonb) AS p(order_number text, quantity int)',
                    $key, $payloads[$key]);
                $new++;
            } catch (PDOException $error) {
                // Poison is what will always fail: class 22 (bad values), 23 (constraints), 54 (too large, too deep).  It is
                // parked, still claimed.  Anything else fails the batch, and the broker sends it again.
                preg_match('/^(22|23|54)/', sqlState($error)) || throw $error;
                $db->exec('ROLLBACK TO SAVEPOINT message');
                park($db, $key, $payloads[$key], $error->getMessage());
                $parked++;
            }
        }
        return json(200, ['received' => count($messages), 'new' => $new, 'parked' => $parked]);
    });
}

function getHealth(): Answer
{
    return json(200, ['up' => query(connect(), 'SELECT true')->fetchColumn()]);
}

// ---- the way in

function answer(): Answer
{
    $request = "{$_SERVER['REQUEST_METHOD']} " . path();
    if (preg_match('#\A(GET|POST) /magic-links/([^/]+)\z#', $request, $found)) {
        $token = rawurldecode($found[2]);
        return match (true) {
            !matches($token, '/./su') => noToken('unknown'),
            $found[1] === 'GET' => peekMagicLink($token),
            default => redeemMagicLink($token),
        };
    }
    return match ($request) {
        'POST /orders' => postOrder(),
        'POST /clicks' => postClick(),
        'POST /payments' => postPayment(),
        'POST /magic-links' => postMagicLink(),
        'POST /codes' => postCode(),
        'POST /codes/verify' => verifyCode(),
        'POST /deliveries' => postDeliveries(),
        'GET /healthz' => getHealth(),
        default => problem(404, 'There is nothing.'),
    };
}

try {
    $answer = answer();
} catch (Refused $refused) {
    $answer = $refused->answer;
} catch (Throwable $error) {
    error_log((string) $error);
    // No connection (HY000 is libpq's own, such as one that was lost), none free, 55P03, and 40001 and 40P01 after the
    // last attempt; never stored.
    $answer = preg_match('/^(08|53|57P0|55P03|40001|40P01|HY000)/', sqlState($error))
        ? again(503)
        : problem(500, 'This did not work.');
}
send($answer);
