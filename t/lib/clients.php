<?php
// What t/061_clients.pl asks PHP's PDO: see clients.py.

declare(strict_types=1);

if (!extension_loaded('pdo_pgsql')) {
    echo "PHP has no pdo_pgsql\n";
    exit(77);
}

function say(string $name, mixed $result): void
{
    echo "$name\t", is_string($result) ? $result : var_export($result, true), "\n";
}

function sqlstate(callable $work): string
{
    try {
        $work();
        return 'no error';
    } catch (PDOException $error) {
        return $error->errorInfo[0];
    }
}

if (isset($argv[1])) {
    require __DIR__ . '/clients_swap.php';
    $client = function () use ($argv): array {
        $db = new PDO('pgsql:', options: [PDO::PGSQL_ATTR_DISABLE_PREPARES => $argv[1] === 'with']);
        // an application keeps statements
        $begin = $db->prepare('SELECT state FROM idem_begin(?)');
        $finish = $db->prepare('SELECT idem_finish(?)');
        return [
            'begin' => function (string $key) use ($db, $begin, $finish): void {
                $db->beginTransaction();
                $begin->execute([$key]);
                $finish->execute([$key]);
            },
            'commit' => fn () => $db->commit(),
            'rollback' => fn () => $db->rollBack(),
        ];
    };
    swap("php $argv[1]", [$client(), $client()]);
    exit;
}

$db = new PDO('pgsql:', options: [PDO::PGSQL_ATTR_DISABLE_PREPARES => true]);
$value = function (string $sql, mixed ...$values) use ($db): mixed {
    $statement = $db->prepare($sql);
    $statement->execute($values);
    return $statement->fetchColumn();
};
const BEGIN = 'SELECT state FROM idem_begin(?)';

say('version', phpversion());
say('autocommit', sqlstate(fn () => $value(BEGIN, 'php 1')));

$db->beginTransaction();
$value(BEGIN, 'php 1');
say('no finish', sqlstate(fn () => $db->commit()));

$db->beginTransaction();
$value(BEGIN, 'php 1');
$value('SELECT idem_finish(?)', 'php 1');
sqlstate(fn () => $value('SELECT 1/0'));
say('caught error', $db->commit());
say('and the key', $value("SELECT coalesce((SELECT state FROM idem_lookup(?)), 'free')", 'php 1'));

// text and integers need no cast
$db->beginTransaction();
say('run', $value('SELECT run FROM idem_http_begin(?, ?, ?, wait_ms => ?, lease_ms => ?)', 'php 2', '{"a": 1}', 'ada', 500, null));
say('finish', $value('SELECT idem_http_finish(?, ?, ?, ?, ?)', 'php 2', 201, '{"b": 2}', '{"Content-Type": "application/json"}', 'ada'));
say('commit', $db->commit());
say('replayed', $value('SELECT replayed FROM idem_http_begin(?, ?, ?)', 'php 2', '{"a":1}', 'ada'));

$db->beginTransaction();
$value(BEGIN, 'php 3');
say('jsonb', gettype($value('SELECT idem_finish(?, ?)', 'php 3', '{"a": 1}')));
$db->rollBack();
