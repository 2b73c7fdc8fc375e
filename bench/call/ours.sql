\set r random(1, 9000000000000000000)
SELECT * FROM idem_call('order-' || :r, 'bench.place_order', '{"customer": 7, "item": "book"}');
