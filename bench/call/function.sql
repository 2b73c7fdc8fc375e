SELECT bench.place_order(7, 'book');
