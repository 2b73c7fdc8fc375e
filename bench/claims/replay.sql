\set r random(1, 10000)
SELECT bench.place_:contestant('again-' || :r);
