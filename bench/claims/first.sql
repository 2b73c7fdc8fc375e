\set r random(1, 9000000000000000000)
SELECT bench.place_:contestant('order-' || :r);
