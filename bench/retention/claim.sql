\set r random(1, 9000000000000000000)
SELECT idem_claim('order-' || :r, '1 second');
