// The shop of examples/README.md with Fastify and pg.
import { createHash } from 'node:crypto';
import { STATUS_CODES } from 'node:http';
import Fastify from 'fastify';
import pg from 'pg';

// Queries without a name are not prepared on the server, so PgBouncer in transaction mode needs no setting.
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10, connectionTimeoutMillis: 30_000 });
// Without listeners, a connection that the server closes ends the process: one for those in the pool, one for those in use.
pool.on('error', error => app.log.warn(`a connection was lost: ${error.message}`));
pool.on('connect', client => client.on('error', () => {}));

const app = Fastify({ logger: { level: 'warn' }, frameworkErrors: onError });
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
app.addContentTypeParser('application/json', { parseAs: 'buffer' }, async (request, bytes) => {
  try {
    request.text = utf8.decode(bytes);    // as it came, which idem_http_begin compares
    return JSON.parse(request.text);
  } catch {
    throw problem(400, 'The body is not JSON in UTF-8.');
  }
});
// What a byte above 127 means in a header differs between servers, and control characters are no text.
app.addHook('onRequest', async request => valid(/^[\t -~]*$/.test(request.headers['idempotency-key'] ?? ''), 'The key is not ASCII.'));

// ---- answers

function problem(status, detail, { type = 'about:blank', headers = {}, ...members } = {}) {
  return {
    status,
    headers: { 'Content-Type': 'application/problem+json', ...headers },
    body: JSON.stringify({ type, title: STATUS_CODES[status], status, detail, ...members }),
  };
}

const json = (status, value, headers = {}) =>
  ({ status, headers: { 'Content-Type': 'application/json', ...headers }, body: JSON.stringify(value) });

// The only way out, for a first answer and for its replay, so that both are the same bytes.
function send(reply, { status, headers, body, replayed }) {
  if (replayed) headers = { ...headers, 'Idempotent-Replayed': 'true' };
  return reply.code(status).headers(headers).send(body === null ? undefined : Buffer.from(body));
}

const again = problem(503, 'Try again.', { headers: { 'Retry-After': '1' } });
const mayHelp = error => /^(08|53|57P0|55P03|40001|40P01|E[A-Z]+$)/.test(error.code) ||
  /^(Connection terminated|timeout exceeded|Client has encountered)/.test(error.message);

app.setErrorHandler(onError);
function onError(error, request, reply) {
  if (error.body) return send(reply, error);    // a problem that was thrown
  if (error.statusCode < 500) return send(reply, problem(error.statusCode, 'The request cannot be read.'));
  request.log.error(error);
  return send(reply, mayHelp(error) ? again : problem(500, 'This did not work.'));
}

app.setNotFoundHandler((request, reply) => send(reply, problem(404, 'There is nothing.')));

// Text that PostgreSQL can hold: no U+0000, no half of a surrogate pair.  test() alone would make text of null and of arrays.
const matches = (value, pattern) => typeof value === 'string' && !/[\0\p{Surrogate}]/u.test(value) && pattern.test(value);

function valid(condition, detail) {
  if (!condition) throw problem(400, detail);
}

// In a real service this is the user of the session or the token.  Whoever believes a header
// that the client can choose gives every user's answers to everybody.
function user(request) {
  const name = request.headers['x-user'];
  if (!matches(name, /^[A-Za-z0-9._@-]{1,100}$/)) throw problem(401, 'Who are you?');
  return name;
}

// ---- the database

// A transaction.  What it returns is answered only after COMMIT; 40001 and 40P01, also of the
// COMMIT, repeat it from BEGIN, never from a savepoint, where the same snapshot fails for ever.
async function transaction(work) {
  for (let attempt = 1; ; attempt++) {
    let client, failure;
    try {
      client = await pool.connect();
      await client.query('BEGIN');
      const result = await work(client);
      // COMMIT of a transaction that an error has aborted "succeeds": it says ROLLBACK
      if ((await client.query('COMMIT')).command !== 'COMMIT') throw new Error('the transaction was rolled back');
      return result;
    } catch (error) {
      failure = error;
      await client?.query('ROLLBACK').catch(() => { failure.broken = true; });
      if (attempt < 3 && ['40001', '40P01'].includes(failure.code)) continue;
      throw failure;
    } finally {
      client?.release(failure?.broken);
    }
  }
}

async function one(client, sql, ...values) {
  return (await client.query(sql, values)).rows[0];
}

// Method and path go into the scope, and so does the user: nobody gets the answer to another user's request.
const scopeOf = request => `${user(request)} ${request.method} ${request.routeOptions.url}`;

// The answer to send, or, if there is none yet, what says to run.
// A missing key is null, which idem_http_begin answers with 400.
// In autocommit mode it fails with ID005: its transaction ends without the finish.
async function begin(client, request, lease = null) {
  const claim = await one(client,
    'SELECT * FROM idem_http_begin($1, $2, $3, wait_ms => 500, lease_ms => $4)',
    request.headers['idempotency-key'] ?? null, request.text, scopeOf(request), lease);
  if (claim.run) return claim;
  // A replay has the first status, 201, not 200.  Retry-After of a 409 is whole seconds already.
  const headers = JSON.parse(claim.headers ?? '{}');
  // 400, 409 and 422 say where your API's documentation is
  if (!claim.replayed) headers.Link = '<https://shop.example/docs/idempotency>; rel="describedby"';
  return { ...claim, headers };
}

// The scope is that of the begin: a claim is a key in a scope.
async function finish(client, request, answer, fence = null) {
  const { status } = await one(client, 'SELECT idem_http_finish($1, $2, $3, $4, $5, $6) AS status',
    request.headers['idempotency-key'], answer.status, answer.body, JSON.stringify(answer.headers), scopeOf(request), fence);
  return { ...answer, status };
}

// ---- orders

async function placeOrder(client, who, { item, quantity, order_number = null }) {
  const order = await one(client, `INSERT INTO orders (user_name, item, quantity, order_number)
    VALUES ($1, $2, $3, $4) RETURNING id, item, quantity, order_number`, who, item, quantity, order_number);
  order.id = Number(order.id);
  const { rowCount } = await client.query(
    'UPDATE stock SET available = available - $2 WHERE item = $1 AND available >= $2', [item, quantity]);
  if (!rowCount) throw problem(422, `There is not enough of ${item}.`, { type: '/problems/sold-out' });
  return json(201, order, { Location: `/orders/${order.id}` });
}

// What the business refuses: a problem, or a row that the trigger orders_once has seen before.
function refusal(error) {
  if (error.code === '23505' && error.constraint === 'orders_once')
    return problem(409, 'This order number is taken.', { type: '/problems/order-number-taken' });
  if (error.body) return error;
  throw error;
}

app.post('/orders', async (request, reply) => {
  const who = user(request), order = request.body;
  valid(matches(order?.item, /^[a-z0-9-]{1,60}$/), 'item is missing or wrong');
  valid(Number.isInteger(order.quantity) && order.quantity >= 1 && order.quantity <= 100, 'quantity is 1 to 100');
  valid(order.order_number == null || matches(order.order_number, /^[A-Za-z0-9-]{1,60}$/), 'order_number is wrong');
  if (request.headers['idempotency-key'] === undefined && order.order_number != null)
    return send(reply, await transaction(client => placeOrder(client, who, order).catch(error => { throw refusal(error); })));

  return send(reply, await transaction(async client => {
    const claim = await begin(client, request);
    if (!claim.run) return claim;
    await client.query('SAVEPOINT work');
    const answer = await placeOrder(client, who, order).catch(async error => {
      // A business failure is an answer, too: undo the work, and store the answer with its status.
      const refused = refusal(error);
      await client.query('ROLLBACK TO SAVEPOINT work');
      return refused;
    });
    return finish(client, request, answer);
  }));
});

// ---- clicks

app.post('/clicks', async (request, reply) => {
  const who = user(request);
  // Whole seconds until one call more is allowed, rounded up: who comes back a moment too early is refused again.
  // reset_after is until all five are, a minute for each.
  const { allowed, remaining, seconds } = await one(pool, `
    SELECT allowed, remaining, ceil(reset_after - 60 * (4 - remaining))::int AS seconds
    FROM idem_throttle($1, '5 min', 5, 'clicks')`, who);
  reply.headers({ 'RateLimit-Policy': '"clicks";q=5;w=300', 'RateLimit': `"clicks";r=${remaining};t=${seconds}` });
  if (!allowed) return send(reply, problem(429, 'Too many clicks.', { headers: { 'Retry-After': `${seconds}` } }));
  await pool.query('INSERT INTO clicks (user_name) VALUES ($1)', [who]);
  return reply.code(204).send();
});

// ---- payments

// "abc" and abc are one key, and so must be what is derived from it.
function bareKey(request) {
  const key = request.headers['idempotency-key'].replace(/^[ \t]+|[ \t]+$/g, '');
  return key.startsWith('"') ? key.slice(1, -1).replace(/\\(.)/g, '$1') : key;
}

// The charge, or null if it was declined.
async function charge(remoteKey, amount) {
  const response = await fetch(`${process.env.PAYMENT_URL}/charges`, {
    method: 'POST', signal: AbortSignal.timeout(10_000),
    headers: { 'Content-Type': 'application/json', 'Idempotency-Key': remoteKey }, body: JSON.stringify({ amount }),
  });
  if (response.status === 402) return null;
  const charged = response.status === 201 ? (await response.json()).charge : undefined;
  if (typeof charged !== 'string') throw new Error(`the payment service says ${response.status}`);    // it may have charged
  return charged;
}

app.post('/payments', async (request, reply) => {
  const who = user(request), amount = request.body?.amount, scope = scopeOf(request);
  valid(Number.isInteger(amount) && amount >= 1 && amount <= 1_000_000, 'amount is 1 to 1000000');
  let remoteKey;

  // Committed before the call, so that all see the claim in progress, until it is finished or its lease is over.
  const claim = await transaction(async client => {
    const claim = await begin(client, request, 30_000);
    if (!claim.run) return claim;
    remoteKey = createHash('sha256').update(`${scope}\n${bareKey(request)}`).digest('hex');
    await client.query(`INSERT INTO payments (remote_key, user_name, amount) VALUES ($1, $2, $3)
      ON CONFLICT DO NOTHING`, [remoteKey, who, amount]);
    return claim;
  });
  if (!claim.run) return send(reply, claim);

  let paid;
  try {
    paid = await charge(remoteKey, amount);
  } catch (error) {
    // We do not know whether it was charged.  The next attempt asks again, under the same key.
    request.log.warn(error.message);
    await pool.query('SELECT idem_release($1, $2, $3)', [bareKey(request), scope, claim.fence])
      .catch(error => request.log.warn(error.message));    // then the lease ends by itself
    return send(reply, again);
  }
  const answer = paid !== null ? json(201, { charge: paid, amount })
    : problem(402, 'The card was declined.', { type: '/problems/declined' });
  try {
    return send(reply, await transaction(async client => {
      await client.query('UPDATE payments SET status = $2, charge = $3 WHERE remote_key = $1',
        [remoteKey, paid !== null ? 'paid' : 'declined', paid]);
      return finish(client, request, answer, claim.fence);
    }));
  } catch (error) {
    // another request has taken over, or has finished already: its answer is the answer
    if (['ID004', 'ID006'].includes(error.code))
      return send(reply, problem(409, 'Try again.', { headers: { 'Retry-After': '1' } }));
    throw error;
  }
});

// ---- magic links and codes

function emailOf(request) {
  const email = typeof request.body?.email === 'string' ? request.body.email.trim().toLowerCase() : '';
  valid(matches(email, /^[^@]+@[^@]+$/) && email.length <= 100, 'email is missing or wrong');
  return email;
}

// The token goes from the database into the mail, and not through this program's logs.
app.post('/magic-links', async (request, reply) => {
  await pool.query(`INSERT INTO outbox (recipient, kind, secret)
    SELECT $1, 'magic-link', idem_token_issue('login', '15 min', subject => $1)`, [emailOf(request)]);
  return reply.code(202).send();
});

const noStore = { headers: { 'Cache-Control': 'no-store' } };
const noToken = state => state === 'unknown' ? problem(404, 'There is no such link.', noStore)
  : problem(410, 'This link was used before, or is too old.', noStore);

function tokenOf(request) {
  if (!matches(request.params.token, /./)) throw noToken('unknown');    // no text, so never issued
  return request.params.token;
}

// A scanner of the mail server follows the link: looking burns nothing.
app.get('/magic-links/:token', async (request, reply) => {
  const { state } = await one(pool, "SELECT * FROM idem_token_peek('login', $1)", tokenOf(request));
  return send(reply, state === 'valid' ? json(200, { state }, noStore.headers) : noToken(state));
});

app.post('/magic-links/:token', async (request, reply) => send(reply, await transaction(async client => {
  const { state, subject } = await one(client, "SELECT * FROM idem_token_redeem('login', $1)", tokenOf(request));
  if (state !== 'redeemed') return noToken(state);
  await client.query('INSERT INTO logins (email) VALUES ($1)', [subject]);
  return json(200, { email: subject }, noStore.headers);
})));

app.post('/codes', async (request, reply) => {
  await pool.query(`INSERT INTO outbox (recipient, kind, secret)
    SELECT $1, 'code', idem_code_issue('login', $1, '5 min', max_attempts => 3)`, [emailOf(request)]);
  return reply.code(202).send();
});

app.post('/codes/verify', async (request, reply) => {
  const email = emailOf(request);
  valid(matches(request.body.code, /^/), 'code is missing or wrong');
  // a wrong attempt commits as well, or it would not count
  return send(reply, await transaction(async client => {
    const { state, attempts_left } =
      await one(client, "SELECT * FROM idem_code_verify('login', $1, $2)", email, request.body.code);
    if (['wrong', 'locked'].includes(state)) return problem(403, 'This is not the code.', { attempts_left });
    if (state !== 'verified') return problem(410, 'There is no such code any more; ask for a new one.');
    await client.query('INSERT INTO logins (email) VALUES ($1)', [email]);
    return json(200, { verified: true });
  }));
});

// ---- a consumer

app.post('/deliveries', async (request, reply) => {
  const messages = request.body?.messages;
  valid(Array.isArray(messages) && messages.length <= 100, 'messages is missing or wrong');
  const usable = id => matches(id, /^[^]/) && Buffer.byteLength(id) <= 1024;
  // JSON.parse has rounded what is not a safe integer, such as an id of 64 bits: it must not go on as another one.
  const asItCame = (name, value) => {
    if (Number.isInteger(value) && !Number.isSafeInteger(value)) throw new RangeError('an integer is too large');
    return value;
  };
  const payloadOf = message => {
    try {
      return JSON.stringify(message?.payload, asItCame);
    } catch (error) {
      return JSON.stringify(error.message);    // also if it is too deep; a string is parked below
    }
  };
  const park = (client, id, message, error) =>
    client.query('INSERT INTO dead_letters (message_id, payload, error) VALUES ($1, $2, $3)', [id, payloadOf(message), error]);

  return send(reply, await transaction(async client => {
    let parked = 0, worked = 0;
    // idem_claim_many returns keys, not payloads: byId leads back to those.
    const byId = new Map();
    for (const message of messages) {
      if (usable(message?.id)) {
        if (!byId.has(message.id)) byId.set(message.id, message);
      } else {
        await park(client, null, message, 'no usable id');    // it would fail the whole batch
        parked++;
      }
    }
    const { rows } = await client.query("SELECT key FROM idem_claim_many($1, '7 days', 'deliveries')", [[...byId.keys()]]);
    for (const { key } of rows) {
      await client.query('SAVEPOINT message');
      try {
        await client.query(`INSERT INTO shipments SELECT $1, p.order_number, p.quantity
          FROM jsonb_to_record($2::jsonb) AS p(order_number text, quantity int)`, [key, payloadOf(byId.get(key)) ?? 'null']);
        worked++;
      } catch (error) {
        // Poison is what will always fail: class 22 (bad values), 23 (constraints), 54 (too large, too deep).  It is
        // parked, still claimed.  Anything else fails the batch, and the broker sends it again.
        if (!/^(22|23|54)/.test(error.code)) throw error;
        await client.query('ROLLBACK TO SAVEPOINT message');
        await park(client, key, byId.get(key), error.message);
        parked++;
      }
    }
    return json(200, { received: messages.length, new: worked, parked });
  }));
});

app.get('/healthz', async (request, reply) => {
  const up = await pool.query('SELECT 1').then(() => true, () => false);
  return up ? reply.send({ up }) : send(reply, again);
});

await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT ?? 8080) });
// What runs is answered first: a payment that is cut off leaves its client waiting for the end of the lease.
process.on('SIGTERM', () => app.close().then(() => process.exit()));
