-- The shop that all examples serve.  Run as the owner of the extension, in an empty
-- database:  psql -v ON_ERROR_STOP=1 -f examples/schema.sql
CREATE EXTENSION IF NOT EXISTS idempotency;

-- what the services connect as; scripts/examples gives it a password
CREATE ROLE shop LOGIN;
SELECT idem_grant('shop', ARRAY['claims', 'throttle', 'tokens']);

-- No unique constraint anywhere: what keeps an order from being there twice is the key of
-- the request, or the trigger below for orders that come with a number of their own.
CREATE TABLE orders (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	user_name text NOT NULL,
	item text NOT NULL,
	quantity int NOT NULL,
	order_number text,
	created_at timestamptz NOT NULL DEFAULT now()
);

-- A row without an order_number has no such key, and passes.  A number is remembered for 30
-- days, also if its row is deleted.
CREATE TRIGGER orders_once AFTER INSERT OR UPDATE ON orders
FOR EACH ROW EXECUTE FUNCTION idem_once('order_number', '30 days');

CREATE TABLE stock (
	item text PRIMARY KEY,
	available int NOT NULL CHECK (available >= 0)
);

CREATE TABLE clicks (
	user_name text NOT NULL,
	at timestamptz NOT NULL DEFAULT now()
);

-- remote_key is the key under which the payment service is called.  It is unique, because a
-- request that takes over an abandoned one finds the row that is there.
CREATE TABLE payments (
	remote_key text PRIMARY KEY,
	user_name text NOT NULL,
	amount int NOT NULL CHECK (amount > 0),
	status text NOT NULL DEFAULT 'reserved' CHECK (status IN ('reserved', 'paid', 'declined')),
	charge text
);

-- Mail to be sent.  Tokens and codes go here and never into an answer: whoever asks for one
-- must not get it, only who reads that mailbox.
CREATE TABLE outbox (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	recipient text NOT NULL,
	kind text NOT NULL CHECK (kind IN ('magic-link', 'code')),
	secret text NOT NULL
);

-- what a token or a code permits
CREATE TABLE logins (
	email text NOT NULL,
	at timestamptz NOT NULL DEFAULT now()
);

-- what a consumer does with messages, and where those go that it cannot work on
CREATE TABLE shipments (
	message_id text NOT NULL,
	order_number text NOT NULL,
	quantity int NOT NULL CHECK (quantity > 0)
);

CREATE TABLE dead_letters (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	message_id text,
	payload text, -- JSON as it came: jsonb cannot hold all of it
	error text NOT NULL
);

GRANT SELECT, INSERT ON orders, clicks, logins, shipments, dead_letters, outbox TO shop;
GRANT SELECT, INSERT, UPDATE ON payments, stock TO shop;

INSERT INTO stock VALUES ('book', 1000), ('lamp', 1000), ('gold', 0);
