<?php
// What t/061_clients.pl asks Laravel's database layer: see clients.py.

declare(strict_types=1);

use Illuminate\Database\Capsule\Manager;
use Illuminate\Database\Connection;
use Illuminate\Database\DatabaseTransactionsManager;
use Illuminate\Database\Eloquent\Model;
use Illuminate\Database\QueryException;

// before the autoloader of Debian, whose classes say by warnings that PHP 8.2 is newer
error_reporting(E_ALL & ~E_DEPRECATED);
if (!extension_loaded('pdo_pgsql') || !stream_resolve_include_path('Illuminate/Database/autoload.php')) {
    echo "PHP has no pdo_pgsql, or no Laravel\n";
    exit(77);
}
require_once 'Illuminate/Database/autoload.php';

function say(string $name, mixed $result): void
{
    echo "$name\t", is_string($result) ? $result : json_encode($result), "\n";
}

function outcome(callable $work, bool $class = false): mixed
{
    try {
        return $work() ?? 'no error';
    } catch (PDOException $error) {
        return ($class ? (new ReflectionClass($error))->getShortName() . ' ' : '') . $error->getCode();
    }
}

$manager = new Manager();
foreach (['default', 'other'] as $name) {
    $manager->addConnection([
        'driver' => 'pgsql', 'host' => getenv('PGHOST'), 'port' => getenv('PGPORT'), 'database' => getenv('PGDATABASE'),
        'username' => getenv('PGUSER'), 'password' => getenv('PGPASSWORD') ?: '', 'charset' => 'utf8',
        'options' => ($argv[1] ?? null) === 'with' ? [PDO::PGSQL_ATTR_DISABLE_PREPARES => true] : [],
    ], $name);
}
if (isset($argv[1])) {
    require __DIR__ . '/clients_swap.php';
    swap("laravel $argv[1]", array_map(function (string $name) use ($manager): array {
        $db = $manager->getConnection($name);
        return [
            'begin' => function (string $key) use ($db): void {
                $db->beginTransaction();
                $db->select('SELECT state FROM idem_begin(?)', [$key]);
                $db->select('SELECT idem_finish(?)', [$key]);
            },
            'commit' => fn () => $db->commit(),
            'rollback' => fn () => $db->rollBack(),
        ];
    }, ['default', 'other']));
    exit;
}
$manager->bootEloquent();
$db = $manager->getConnection();
$db->setTransactionManager(new DatabaseTransactionsManager());

const BEGIN = 'SELECT state FROM idem_begin(?)';
$state = fn (string $key): string => $db->selectOne("SELECT coalesce((SELECT state FROM idem_lookup(?)), 'free') AS s", [$key])->s;
$fired = 0;
$count = function () use ($db, &$fired): void {
    $db->afterCommit(function () use (&$fired): void {
        $fired++;
    });
};

say('autocommit', outcome(fn () => $db->select(BEGIN, ['laravel 1']), true));
say('no finish', outcome(fn () => $db->transaction(function (Connection $db) use ($count): void {
    $count();
    $db->select(BEGIN, ['laravel 1']);
}), true));
say('afterCommit of ID005', $fired);
$db->transaction(fn () => null);
say('afterCommit of ID005, after the next', $fired);

$fired = 0;
say('caught error', outcome(fn () => $db->transaction(function (Connection $db) use ($count): void {
    $count();
    $db->select(BEGIN, ['laravel 1']);
    $db->select('SELECT idem_finish(?)', ['laravel 1']);
    say('errorInfo', (function () use ($db) {
        try {
            $db->select('SELECT 1/0');
        } catch (QueryException $error) {
            return $error->errorInfo[0];
        }
    })());
})));
say('and the key', $state('laravel 1'));
say('and afterCommit', $fired);

// a nested transaction is a savepoint
$db->transaction(function (Connection $db) use ($count): void {
    $count();
    $db->select('SELECT idem_claim(?)', ['laravel 2']);
    outcome(fn () => $db->transaction(function (Connection $db): void {
        $db->select('SELECT idem_claim(?)', ['laravel 3']);
        $db->select('SELECT 1/0');
    }));
});
say('nested', $state('laravel 2') . ' ' . $state('laravel 3'));
say('afterCommit of all', $fired);

// attempts: which errors are repeated, where they come from, and what of it a nested transaction repeats
$db->unprepared("CREATE FUNCTION fail_late() RETURNS trigger LANGUAGE plpgsql AS
    \$\$ BEGIN RAISE EXCEPTION 'at the commit' USING ERRCODE = '40001'; END \$\$;
    CREATE TABLE laravel_late (k text);
    CREATE CONSTRAINT TRIGGER late AFTER INSERT ON laravel_late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail_late()");
function raise(string $code, string $message = 'as told'): string
{
    return "DO \$\$ BEGIN RAISE EXCEPTION '$message' USING ERRCODE = '$code'; END \$\$";
}
$attempts = function (string $statement, int $outer, ?int $inner = null) use ($db): string {
    $ran = 0;
    $work = function (Connection $db) use ($statement, &$ran): void {
        $ran++;
        $db->statement($statement);
    };
    $nested = fn (Connection $db) => $db->transaction($work, $inner);
    return outcome(fn () => $db->transaction($inner === null ? $work : $nested, $outer), true) . ", $ran";
};
say('attempts: 40001', $attempts(raise('40001'), 3));
say('attempts: 40001 of the COMMIT', $attempts("INSERT INTO laravel_late VALUES ('a')", 3));
say('attempts: deadlock detected', $attempts(raise('40P01', 'deadlock detected'), 3));
say('attempts: its German message', $attempts(raise('40P01', 'Verklemmung entdeckt'), 3));
say('attempts: 55P03', $attempts(raise('55P03'), 3));
say('attempts: inner alone', $attempts(raise('40001'), 1, 3));
say('attempts: outer', $attempts(raise('40001'), 3, 1));

// Outside of a transaction a statement is sent again if the connection is lost.  A sequence keeps what was undone.
$db->unprepared('CREATE SEQUENCE sent');
$lost = "SELECT n, CASE WHEN n = 1 THEN pg_terminate_backend(pg_backend_pid()) END FROM nextval('sent') n";
say('connection lost', outcome(fn () => 'sent ' . $db->selectOne($lost)->n));
$db->unprepared('ALTER SEQUENCE sent RESTART');
say('connection lost, in a transaction', outcome(fn () => $db->transaction(fn (Connection $db) => 'sent ' . $db->selectOne($lost)->n)));
$db->reconnect();

// what can be passed, and what comes back
$db->transaction(function (Connection $db): void {
    $row = $db->selectOne('SELECT * FROM idem_begin(?, request => ?, lease => ?)', ['laravel 4', json_encode(['a' => 1]), '1 min']);
    say('interval', $row->state);
    say('jsonb', gettype($db->selectOne('SELECT idem_finish(?, ?, fence => ?) AS r', ['laravel 4', json_encode(['b' => 1]), $row->fence])->r));
});
say('named', $db->selectOne('SELECT state FROM idem_begin(:key, request => :request)', ['key' => 'laravel 4', 'request' => '{"a":1}'])->state);
say('array as text', $db->selectOne('SELECT count(*) AS n FROM idem_claim_many(?)', ['{laravel 5,laravel 6,laravel 5}'])->n);

// 'raise' and 'skip'
foreach (['raise' => 'AFTER', 'skip' => 'BEFORE'] as $mode => $when) {
    $db->unprepared("CREATE TABLE laravel_$mode (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k text);
        CREATE TRIGGER once $when INSERT ON laravel_$mode FOR EACH ROW EXECUTE FUNCTION idem_once('k', NULL, '$mode')");
}
// PHP's warnings are exceptions, as in Laravel
set_error_handler(fn (int $number, string $text) => throw new ErrorException($text));
$warned = function (callable $work): mixed {
    try {
        return $work();
    } catch (ErrorException $error) {
        return $error->getMessage();
    }
};
say('array', $warned(fn () => $db->select('SELECT * FROM idem_claim_many(?)', [['laravel 7']])));

class Raise extends Model
{
    protected $table = 'laravel_raise';
    protected $guarded = [];
    public $timestamps = false;
}
class Skip extends Raise
{
    protected $table = 'laravel_skip';
}
Raise::create(['k' => 'a']);
say('raise', outcome(fn () => Raise::create(['k' => 'a']) && null, true));
Skip::create(['k' => 'a']);
say('skip', $warned(fn () => Skip::create(['k' => 'a'])->id));
