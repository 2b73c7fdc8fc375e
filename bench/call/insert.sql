INSERT INTO bench.orders (customer, item) VALUES (7, 'book') RETURNING id;
