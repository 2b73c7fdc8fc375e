\set r random(1, 9000000000000000000)
SELECT bench.place_by_hand('order-' || :r, 7, 'book');
