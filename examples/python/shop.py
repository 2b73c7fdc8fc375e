"""The shop of examples/README.md with FastAPI and psycopg 3."""
import asyncio
import hashlib
import json
import logging
import os
import re
from http import HTTPStatus
from typing import Any, List, Optional

import httpx
import psycopg
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg.errors import DeadlockDetected, SerializationFailure, UniqueViolation
from psycopg.pq import TransactionStatus
from psycopg.rows import namedtuple_row
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, Field, conint, constr
from starlette.exceptions import HTTPException as StarletteHTTPException

log = logging.getLogger(__name__)


async def body_text(request: Request):
    """The body as it came, which idem_http_begin compares.  For every endpoint: what is not JSON in UTF-8 is
    refused here, since json.loads also takes UTF-16, and half a surrogate pair."""
    try:
        return (await request.body()).decode()
    except UnicodeDecodeError:
        raise HTTPException(400, 'The body is not UTF-8.')


class LimitBody:
    """Refuses a body of more than 1 MiB while it comes; neither Starlette nor uvicorn has a limit."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        size = 0

        async def limited():
            nonlocal size
            message = await receive()
            size += len(message.get('body', b''))
            if size > 1024 * 1024:
                raise HTTPException(413, 'The body has more than 1 MiB.')
            return message
        await self.app(scope, limited, send)


app = FastAPI(dependencies=[Depends(body_text)])
app.add_middleware(LimitBody)
# prepare_threshold: psycopg prepares, with names, what it has sent five times; PgBouncer in transaction mode
# before 1.21 gives the next transaction a connection that does not know the name.
pool = AsyncConnectionPool(os.environ['DATABASE_URL'], max_size=10, timeout=30, open=False,
                           kwargs={'prepare_threshold': None, 'row_factory': namedtuple_row})
payment_service = httpx.AsyncClient(base_url=os.environ['PAYMENT_URL'])
app.add_event_handler('startup', pool.open)
app.add_event_handler('shutdown', pool.close)

# ---- answers


def problem(status, detail, type='about:blank', headers=None, **members):
    content = {'type': type, 'title': HTTPStatus(status).phrase, 'status': status, 'detail': detail, **members}
    return JSONResponse(content, status, headers, media_type='application/problem+json')


def stored(claim):
    """What idem_http_begin says instead of "run".  A replay has the first status, 201, not 200; Retry-After
    of a 409 is whole seconds already."""
    headers = json.loads(claim.headers or '{}')
    if claim.replayed:
        headers['Idempotent-Replayed'] = 'true'
    else:    # 400, 409 and 422 say where your API's documentation is
        headers['Link'] = '<https://shop.example/docs/idempotency>; rel="describedby"'
    return Response(claim.body, claim.status, headers)


class Refused(Exception):
    """The business says no: rolls back to where it is caught, and has the answer."""

    def __init__(self, answer):
        self.answer = answer


@app.exception_handler(Refused)
async def refused(request, error):
    return error.answer


@app.exception_handler(StarletteHTTPException)
async def http_error(request, error):
    return problem(error.status_code, error.detail, headers=error.headers)


@app.exception_handler(RequestValidationError)
async def invalid(request, error):
    first = error.errors()[0]
    return problem(400, f'{".".join(map(str, first["loc"]))}: {first["msg"]}')


@app.exception_handler(psycopg.OperationalError)
async def try_again(request, error):
    # no connection, none free (PoolTimeout), 55P03, and 40001 and 40P01 after the last attempt; never stored
    log.warning('%s %s', error.sqlstate, error)
    return problem(503, 'Try again.', headers={'Retry-After': '1'})


@app.exception_handler(Exception)
async def unexpected(request, error):    # uvicorn logs it
    return problem(500, 'This did not work.')

# ---- requests


def current_user(x_user: List[str] = Header(default=[])):
    # In a real service this is the user of the session or the token.  Whoever believes a header that the
    # client can choose gives every user's answers to everybody.
    name = ', '.join(x_user)
    if not re.fullmatch('[A-Za-z0-9._@-]{1,100}', name):
        raise HTTPException(401, 'Who are you?')
    return name


class Once:
    """Runs a request once: begin, the work and finish in one transaction."""

    def __init__(self, request: Request, user: str = Depends(current_user), body: str = Depends(body_text)):
        # Header() takes one of two fields; joined, as HTTP says, they are malformed.
        fields = request.headers.getlist('Idempotency-Key')
        self.key, self.body, self.user = ', '.join(fields) if fields else None, body, user
        # ASCII only: what a byte above 127 means in a header differs between servers.
        if re.search('[^\t -~]', self.key or ''):
            raise HTTPException(400, 'The key is not ASCII.')
        # Method and path go into the scope, and so does the user: nobody gets the answer to another's request.
        self.scope = f'{user} {request.method} {request.url.path}'

    async def begin(self, conn, lease_ms=None):
        # A missing key is None, which idem_http_begin answers with 400.
        # On an autocommit connection it fails with ID005: its transaction ends without the finish.
        return await one(conn, 'SELECT * FROM idem_http_begin(%s, %s, %s, wait_ms => 500, lease_ms => %s)',
                         self.key, self.body, self.scope, lease_ms)

    async def finish(self, conn, answer, fence=None):
        # The scope is that of the begin: a claim is a key in a scope.
        row = await one(conn, 'SELECT idem_http_finish(%s, %s, %s, %s, %s, %s) AS status', self.key, answer.status_code,
                        answer.body.decode(), json.dumps(dict(answer.headers)), self.scope, fence)
        answer.status_code = row.status
        return answer

    @property
    def bare_key(self):
        """ "abc" and abc are one key, and so must be what is derived from it."""
        key = self.key.strip(' \t')
        return re.sub(r'\\(.)', r'\1', key[1:-1]) if key.startswith('"') else key

# ---- the database


async def transaction(work):
    """What work(conn) returns is answered only after COMMIT.  40001 and 40P01, also of the COMMIT, repeat it from
    BEGIN, never from a savepoint, where the same snapshot fails for ever."""
    for attempt in range(1, 4):
        try:
            async with pool.connection() as conn:    # ends with COMMIT, or with ROLLBACK if there is an exception
                result = await work(conn)
                # COMMIT of a transaction that an error has aborted "succeeds", also if the error was caught
                if conn.info.transaction_status != TransactionStatus.INTRANS:
                    raise psycopg.InternalError('the transaction was aborted')
            return result
        except (SerializationFailure, DeadlockDetected):
            if attempt == 3:
                raise


async def one(conn, sql, *values):
    return await (await conn.execute(sql, values)).fetchone()

# ---- orders

Text = constr(strict=True, regex=r'^[^\0\ud800-\udfff]*\Z')    # what PostgreSQL can hold; \Z, since $ allows a line feed


class Order(BaseModel):
    item: constr(strict=True, regex=r'^[a-z0-9-]{1,60}\Z')
    quantity: conint(strict=True, ge=1, le=100)
    order_number: Optional[constr(strict=True, regex=r'^[A-Za-z0-9-]{1,60}\Z')] = None


async def place_order(conn, user, order):
    try:
        row = await one(conn, """INSERT INTO orders (user_name, item, quantity, order_number)
            VALUES (%s, %s, %s, %s) RETURNING id""", user, order.item, order.quantity, order.order_number)
    except UniqueViolation as error:    # the SQLSTATE of the trigger is that of a unique constraint
        if error.diag.constraint_name != 'orders_once':
            raise
        raise Refused(problem(409, 'This order number is taken.', '/problems/order-number-taken'))
    taken = await conn.execute('UPDATE stock SET available = available - %(quantity)s '
                               'WHERE item = %(item)s AND available >= %(quantity)s', order.dict())
    if taken.rowcount == 0:
        raise Refused(problem(422, f'There is not enough of {order.item}.', '/problems/sold-out'))
    return JSONResponse({'id': row.id, **order.dict()}, 201, {'Location': f'/orders/{row.id}'})


@app.post('/orders')
async def post_order(order: Order, once: Once = Depends()):
    if once.key is None and order.order_number is not None:
        return await transaction(lambda conn: place_order(conn, once.user, order))

    async def work(conn):
        claim = await once.begin(conn)
        if not claim.run:
            return stored(claim)
        try:
            async with conn.transaction():    # inside a transaction it is a savepoint
                answer = await place_order(conn, once.user, order)
        except Refused as error:
            answer = error.answer    # a business failure is an answer, too: the work is undone, the answer stored
        return await once.finish(conn, answer)
    return await transaction(work)

# ---- clicks


@app.post('/clicks')
async def post_click(user: str = Depends(current_user)):
    async with pool.connection() as conn:
        # Whole seconds until one call more is allowed, rounded up: who comes back a moment too early is refused again.
        # reset_after is until all five are, a minute for each.
        call = await one(conn, """SELECT allowed, remaining, ceil(reset_after - 60 * (4 - remaining))::int AS seconds
            FROM idem_throttle(%s, '5 min', 5, 'clicks')""", user)
        headers = {'RateLimit-Policy': '"clicks";q=5;w=300', 'RateLimit': f'"clicks";r={call.remaining};t={call.seconds}'}
        if not call.allowed:
            return problem(429, 'Too many clicks.', headers={**headers, 'Retry-After': str(call.seconds)})
        await conn.execute('INSERT INTO clicks (user_name) VALUES (%s)', [user])
    return Response(status_code=204, headers=headers)

# ---- payments


class Payment(BaseModel):
    amount: conint(strict=True, ge=1, le=1_000_000)


async def charge(remote_key, amount):
    """The charge, or None if it was declined."""
    call = payment_service.post('/charges', json={'amount': amount}, headers={'Idempotency-Key': remote_key}, timeout=None)
    response = await asyncio.wait_for(call, 10)    # all of it; httpx limits each read
    if response.status_code == 402:
        return None
    charged = response.json()['charge'] if response.status_code == 201 else None
    if not isinstance(charged, str):    # it may have charged
        raise ValueError(f'the payment service says {response.status_code}')
    return charged


@app.post('/payments')
async def post_payment(payment: Payment, once: Once = Depends()):
    async def reserve(conn):
        claim = await once.begin(conn, lease_ms=30_000)
        if not claim.run:
            return claim, None
        remote_key = hashlib.sha256(f'{once.scope}\n{once.bare_key}'.encode()).hexdigest()
        await conn.execute('INSERT INTO payments (remote_key, user_name, amount) VALUES (%s, %s, %s) '
                           'ON CONFLICT DO NOTHING', [remote_key, once.user, payment.amount])
        return claim, remote_key

    # Committed before the call, so that all see the claim in progress, until it is finished or its lease is over.
    claim, remote_key = await transaction(reserve)
    if not claim.run:
        return stored(claim)
    try:
        paid = await charge(remote_key, payment.amount)
    except Exception as error:
        # We do not know whether it was charged.  The next attempt asks again, under the same key.
        log.warning('%r', error)
        try:
            await transaction(lambda conn: one(conn, 'SELECT idem_release(%s, %s, %s)', once.bare_key, once.scope, claim.fence))
        except psycopg.Error as error:
            log.warning('%r', error)    # then the lease ends by itself
        raise HTTPException(503, 'Try again.', {'Retry-After': '1'})

    async def settle(conn):
        await conn.execute('UPDATE payments SET status = %s, charge = %s WHERE remote_key = %s',
                           ['declined' if paid is None else 'paid', paid, remote_key])
        answer = (problem(402, 'The card was declined.', '/problems/declined') if paid is None
                  else JSONResponse({'charge': paid, 'amount': payment.amount}, 201))
        return await once.finish(conn, answer, claim.fence)
    try:
        return await transaction(settle)
    except psycopg.Error as error:
        # another request has taken over, or has finished already: its answer is the answer
        if error.sqlstate in ('ID004', 'ID006'):
            raise HTTPException(409, 'Try again.', {'Retry-After': '1'})
        raise

# ---- magic links and codes


class Mail(BaseModel):    # in one form in all calls
    email: constr(strict=True, strip_whitespace=True, to_lower=True, max_length=100,
                  regex=r'^[^@\0\ud800-\udfff]+@[^@\0\ud800-\udfff]+\Z')


class TypedCode(Mail):
    code: Text


NO_STORE = {'Cache-Control': 'no-store'}


def no_token(state):
    if state == 'unknown':
        return problem(404, 'There is no such link.', headers=NO_STORE)
    return problem(410, 'This link was used before, or is too old.', headers=NO_STORE)


def link_token(token: str):
    if '\0' in token:    # the driver would refuse it
        raise Refused(no_token('unknown'))
    return token


@app.post('/magic-links')
async def post_magic_link(mail: Mail):
    # The token goes from the database into the mail, and not through this program's logs.
    await transaction(lambda conn: conn.execute("""INSERT INTO outbox (recipient, kind, secret)
        SELECT %(email)s, 'magic-link', idem_token_issue('login', '15 min', subject => %(email)s)""", mail.dict()))
    return Response(status_code=202)


@app.get('/magic-links/{token}')
async def peek(token: str = Depends(link_token)):
    # A scanner of the mail server follows the link: looking burns nothing.
    row = await transaction(lambda conn: one(conn, "SELECT * FROM idem_token_peek('login', %s)", token))
    return JSONResponse({'state': 'valid'}, 200, NO_STORE) if row.state == 'valid' else no_token(row.state)


@app.post('/magic-links/{token}')
async def redeem(token: str = Depends(link_token)):
    async def work(conn):
        row = await one(conn, "SELECT * FROM idem_token_redeem('login', %s)", token)
        if row.state != 'redeemed':
            return no_token(row.state)
        await conn.execute('INSERT INTO logins (email) VALUES (%s)', [row.subject])
        return JSONResponse({'email': row.subject}, 200, NO_STORE)
    return await transaction(work)


@app.post('/codes')
async def post_code(mail: Mail):
    await transaction(lambda conn: conn.execute("""INSERT INTO outbox (recipient, kind, secret)
        SELECT %(email)s, 'code', idem_code_issue('login', %(email)s, '5 min', max_attempts => 3)""", mail.dict()))
    return Response(status_code=202)


@app.post('/codes/verify')
async def verify_code(typed: TypedCode):
    async def work(conn):
        row = await one(conn, "SELECT * FROM idem_code_verify('login', %s, %s)", typed.email, typed.code)
        if row.state in ('wrong', 'locked'):    # returned, not raised: it commits, or the attempt would not count
            return problem(403, 'This is not the code.', attempts_left=row.attempts_left)
        if row.state != 'verified':
            return problem(410, 'There is no such code any more; ask for a new one.')
        await conn.execute('INSERT INTO logins (email) VALUES (%s)', [typed.email])
        return JSONResponse({'verified': True})
    return await transaction(work)

# ---- a consumer


class Batch(BaseModel):
    messages: List[Any] = Field(max_items=100)


def usable(message_id):
    return (isinstance(message_id, str) and re.fullmatch('[^\0\ud800-\udfff]+', message_id) is not None
            and len(message_id.encode()) <= 1024)


@app.post('/deliveries')
async def post_deliveries(batch: Batch):
    # idem_claim_many returns keys, not payloads: by_id leads back to those.
    by_id, without_id = {}, []
    for message in batch.messages:
        message = message if isinstance(message, dict) else {}
        payload = json.dumps(message['payload']) if 'payload' in message else None
        if usable(message.get('id')):
            by_id.setdefault(message['id'], payload)
        else:
            without_id.append((None, payload, 'no usable id'))    # it would fail the whole batch

    async def work(conn):
        parked, new = list(without_id), 0
        claimed = await conn.execute("SELECT key FROM idem_claim_many(%s, '7 days', 'deliveries')", [list(by_id)])
        for row in await claimed.fetchall():
            try:
                async with conn.transaction():
                    await conn.execute("""INSERT INTO shipments SELECT %s, p.order_number, p.quantity
                        FROM jsonb_to_record(%s::jsonb) AS p(order_number text, quantity int)""", [row.key, by_id[row.key]])
                new += 1
            except psycopg.Error as error:
                # Poison is what will always fail: class 22 (bad values), 23 (constraints), 54 (too large, too deep).  It is
                # parked, still claimed.  Anything else fails the batch, and the broker sends it again.
                if (error.sqlstate or '')[:2] not in ('22', '23', '54'):
                    raise
                parked.append((row.key, by_id[row.key], str(error)))
        async with conn.cursor() as cursor:
            await cursor.executemany('INSERT INTO dead_letters (message_id, payload, error) VALUES (%s, %s, %s)', parked)
        return JSONResponse({'received': len(batch.messages), 'new': new, 'parked': len(parked)})
    return await transaction(work)


@app.get('/healthz')
async def healthz():
    async with pool.connection(timeout=5) as conn:
        await conn.execute('SELECT 1')
    return {'up': True}
