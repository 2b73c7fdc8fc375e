<?php
// What clients.php and clients_laravel.php do behind PgBouncer: see swap() of clients.py.

declare(strict_types=1);

/** Two clients, each with begin(key), commit() and rollback(). */
function swap(string $name, array $clients): void
{
    $resolved = $count = 0;
    $rolled = function (array $client, callable $work): bool {
        try {
            $work();
            return true;
        } catch (PDOException) {
            try {
                $client['rollback']();
            } catch (PDOException) {
                // it was not in a transaction any more
            }
            return false;
        }
    };
    for ($attempt = 0; $attempt < 25; $attempt++) {
        $inside = [];
        foreach ($attempt < 10 ? [0] : ($attempt % 2 == 0 ? [1, 0] : [0, 1]) as $i) {
            $key = "$name " . ++$count;
            if ($rolled($clients[$i], fn () => $clients[$i]['begin']($key))) {
                $inside[] = $clients[$i];
            }
        }
        foreach ($attempt % 4 < 2 ? $inside : array_reverse($inside) as $client) {
            $resolved += (int) $rolled($client, $client['commit']);
        }
    }
    echo "resolved\t$resolved\n";
}
