"""What t/061_clients.pl asks a Python driver: one line "NAME<tab>RESULT" for each trap of doc/clients.md.

    python3 clients.py DRIVER                  # connects as PGHOST, PGPORT and PGDATABASE say; 77 if the driver is not there
    python3 clients.py DRIVER with|without     # the same, behind PgBouncer, with the page's setting for it or without:
                                               # only how many of 40 transactions did not fail
"""
import asyncio
import datetime
import functools
import json
import os
import re
import sys
import unittest

BEGIN = 'SELECT state FROM idem_begin(%s)'
driver = sys.argv[1]
bouncer = sys.argv[2] if len(sys.argv) > 2 else None
count = 0


def key():
    global count
    count += 1
    return f'{driver} {bouncer} {count}' if bouncer else f'{driver} {count}'


def say(name, result):
    print(f'{name}\t{result}')


def sqlstate(run, of):
    try:
        return run() or 'no error'
    except Exception as error:
        return of(error)


def swap(begins, commits, rollbacks):
    """First one client alone, which may prepare its statements.  Then two that are in a transaction at once, and begin
    and commit in turn first, so they get each other's server connection."""
    resolved = 0
    for attempt in range(25):
        inside = []
        for i in [0] if attempt < 10 else [1, 0] if attempt % 2 == 0 else [0, 1]:
            try:
                begins[i](key())
                inside.append(i)
            except Exception:
                rollbacks[i]()
        for i in sorted(inside, reverse=attempt % 4 < 2):
            try:
                commits[i]()
                resolved += 1
            except Exception:
                rollbacks[i]()
    say('resolved', resolved)


def swap_dbapi(conns):
    def begin(conn, k):
        cursor = conn.cursor()
        cursor.execute(BEGIN, [k])
        cursor.execute('SELECT idem_finish(%s)', [k])
    swap([functools.partial(begin, conn) for conn in conns], [conn.commit for conn in conns], [conn.rollback for conn in conns])


def poison(execute):
    """The exceptions of the classes that a consumer parks."""
    def raised(code):
        try:
            execute(f"DO $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '{code}'; END $$")
        except Exception as error:
            return [base.__name__ for base in type(error).__mro__ if base.__name__ in ('DataError', 'IntegrityError', 'OperationalError')][0]
    say('poison', ' '.join(raised(code) for code in ('22003', '23502', '54000')))


def dbapi(module, connect, of, value, in_error):
    """psycopg and psycopg2: `with conn:` is a transaction."""
    def in_transaction(*statements):
        def run():
            with connect() as conn:
                for statement in statements:
                    conn.cursor().execute(*statement)
        return run

    say('no finish', sqlstate(in_transaction((BEGIN, [key()])), of))

    def alone():
        conn = connect()
        conn.autocommit = True
        conn.cursor().execute(BEGIN, [key()])
    say('autocommit', sqlstate(alone, of))

    k = key()

    def caught():
        with connect() as conn:
            conn.cursor().execute(BEGIN, [k])
            conn.cursor().execute('SELECT idem_finish(%s)', [k])
            try:
                conn.cursor().execute('SELECT 1/0')
            except module.DataError:
                pass
            say('transaction status', in_error(conn))
    say('caught error', sqlstate(caught, of))

    def state(the_key, request=None):
        with connect() as conn:
            cursor = conn.cursor()
            cursor.execute('SELECT state FROM idem_begin(%s, request => %s)', [the_key, request])
            row = cursor.fetchone()
            conn.rollback()
            return row[0]
    say('and the key', state(k))

    k = key()
    in_transaction(("SELECT idem_begin(%s, request => '{}')", [k]), ('SELECT idem_finish(%s)', [k]))()
    say('None', state(k))
    say('JSON null', state(k, value(None)))
    say('dict', sqlstate(in_transaction(('SELECT idem_begin(%s, request => %s)', [k, {'a': 1}])), lambda error: type(error).__name__))
    once_error(lambda sql: in_transaction([sql])(), lambda error: f'{type(error).__name__} {error.diag.constraint_name}')
    poison(lambda sql: in_transaction([sql])())

    with connect() as conn:
        cursor = conn.cursor()
        cursor.execute('SELECT state FROM idem_begin(%s, lease => %s)', [key(), datetime.timedelta(minutes=1)])
        say('timedelta', cursor.fetchone()[0])
        cursor.execute('SELECT count(*) FROM idem_claim_many(%s)', [[key(), key()]])
        say('list', cursor.fetchone()[0])


def psycopg():
    import psycopg as module
    from psycopg.pq import TransactionStatus
    from psycopg.types.json import Jsonb
    if bouncer:
        return swap_dbapi([module.connect('', **({'prepare_threshold': None} if bouncer == 'with' else {})) for _ in range(2)])
    dbapi(module, lambda: module.connect(''), lambda error: error.sqlstate, Jsonb,
          lambda conn: conn.info.transaction_status == TransactionStatus.INERROR)

    # 40001 in a nested transaction, where it comes again, until somebody repeats the outer one
    k = key()

    def late():
        with module.connect('') as conn:
            conn.isolation_level = module.IsolationLevel.REPEATABLE_READ
            conn.execute('SELECT count(*) FROM pg_class')
            with module.connect('') as other:
                other.execute('SELECT idem_begin(%s)', [k])
                other.execute('SELECT idem_finish(%s)', [k])
            for _ in range(2):
                try:
                    with conn.transaction():
                        conn.execute(BEGIN, [k])
                except module.errors.SerializationFailure as error:
                    yield error.sqlstate
    say('nested', ' '.join(late()))


def psycopg_pool():
    """A pool's connection that is terminated in its transaction."""
    import psycopg as module
    from psycopg.pq import TransactionStatus
    from psycopg_pool import ConnectionPool
    k = key()

    def terminated():
        with pool.connection() as conn:
            conn.execute(BEGIN, [k])
            conn.execute('SELECT idem_finish(%s)', [k])
            with module.connect('', autocommit=True) as other:
                other.execute('SELECT pg_terminate_backend(%s, 60000)', [conn.info.backend_pid])
            try:
                conn.execute('SELECT 1')
            except module.OperationalError:
                pass
            say('in transaction', conn.info.transaction_status == TransactionStatus.INTRANS)
    with ConnectionPool('', min_size=1, max_size=1) as pool:
        say('terminated', sqlstate(terminated, lambda error: error))
        with pool.connection() as conn:
            say('and the key', conn.execute('SELECT idem_claim(%s)', [k]).fetchone()[0])


def psycopg2():
    import psycopg2 as module
    from psycopg2.extensions import TRANSACTION_STATUS_INERROR
    from psycopg2.extras import Json
    if bouncer:
        return swap_dbapi([module.connect('') for _ in range(2)])
    dbapi(module, lambda: module.connect(''), lambda error: error.pgcode, Json,
          lambda conn: conn.get_transaction_status() == TRANSACTION_STATUS_INERROR)


def asyncpg():
    import asyncpg as module

    async def behind_bouncer():
        conns = [await module.connect(**({'statement_cache_size': 0} if bouncer == 'with' else {})) for _ in range(2)]
        resolved = 0
        for attempt in range(25):
            inside = []
            for conn in conns[:1] if attempt < 10 else conns[::-1] if attempt % 2 == 0 else conns:
                transaction = conn.transaction()
                k = key()
                try:
                    await transaction.start()
                    inside.append(transaction)
                    await conn.fetch(BEGIN.replace('%s', '$1'), k)
                    await conn.fetch('SELECT idem_finish($1)', k)
                except Exception:
                    if transaction in inside:
                        inside.remove(transaction)
                        await transaction.rollback()
            for transaction in inside if attempt % 4 < 2 else reversed(inside):
                await transaction.commit()
                resolved += 1
        say('resolved', resolved)
    if bouncer:
        return asyncio.run(behind_bouncer())

    async def trial():
        conn = await module.connect()

        async def error_of(run):
            try:
                await run()
                return 'no error'
            except module.PostgresError as error:
                return error.sqlstate

        async def no_finish():
            async with conn.transaction():
                await conn.fetch('SELECT idem_begin($1)', key())
        say('no finish', await error_of(no_finish))
        say('autocommit', await error_of(lambda: conn.fetch('SELECT idem_begin($1)', key())))

        k = key()

        async def caught():
            async with conn.transaction():
                await conn.fetch('SELECT idem_begin($1)', k)
                await conn.fetch('SELECT idem_finish($1)', k)
                try:
                    await conn.fetch('SELECT 1/0')
                except module.DivisionByZeroError:
                    pass
        say('caught error', await error_of(caught))
        transaction = conn.transaction()
        await transaction.start()
        say('and the key', await conn.fetchval('SELECT state FROM idem_begin($1)', k))
        say('jsonb', type(await conn.fetchval('SELECT idem_finish($1, $2)', k, '{"a": 1}')).__name__)
        await transaction.commit()
        for name, sql, value in (('dict', 'SELECT idem_begin($1, request => $2)', {'a': 1}),
                                 ('interval as text', 'SELECT idem_begin($1, lease => $2)', '1 min')):
            try:
                await conn.fetch(sql, key(), value)
            except module.DataError as error:
                say(name, f'{type(error).__name__} {error.sqlstate}')
        await conn.set_type_codec('jsonb', encoder=json.dumps, decoder=json.loads, schema='pg_catalog')
        async with conn.transaction():
            await conn.fetch('SELECT idem_begin($1)', k := key())
            say('set_type_codec', type(await conn.fetchval('SELECT idem_finish($1, $2)', k, {'a': 1})).__name__)
        say('timedelta', await conn.fetchval('SELECT state FROM idem_begin($1, lease => $2)', key(), datetime.timedelta(minutes=1)))

    asyncio.run(trial())


def sqlalchemy():
    import sqlalchemy as sa
    from sqlalchemy.dialects.postgresql import JSONB
    engine = sa.create_engine('postgresql+psycopg2://')
    if bouncer:
        return swap_sqlalchemy(sa, engine)

    def no_finish():
        with engine.begin() as conn:
            conn.execute(sa.text('SELECT idem_begin(:k)'), {'k': key()})
    say('no finish', sqlstate(no_finish, lambda error: error.orig.pgcode))

    k = key()

    def caught():
        with engine.begin() as conn:
            conn.execute(sa.text('SELECT idem_begin(:k)'), {'k': k})
            conn.execute(sa.text('SELECT idem_finish(:k)'), {'k': k})
            try:
                conn.execute(sa.text('SELECT 1/0'))
            except sa.exc.DataError:
                pass
    say('caught error', sqlstate(caught, lambda error: error.orig.pgcode))

    def claim(block):
        with block() as conn:
            return conn.execute(sa.text('SELECT idem_claim(:k)'), {'k': k}).scalar()
    say('connect', [claim(engine.connect) for _ in range(2)])
    say('begin', [claim(engine.begin) for _ in range(2)])

    k = key()
    with engine.begin() as conn:
        conn.execute(sa.text("SELECT idem_begin(:k, request => '{}')"), {'k': k})
        conn.execute(sa.text('SELECT idem_finish(:k)'), {'k': k})

    def state(type_, value=None):
        with engine.begin() as conn:
            statement = sa.text('SELECT state FROM idem_begin(:k, request => :r)').bindparams(sa.bindparam('r', type_=type_))
            return conn.execute(statement, {'k': k, 'r': value}).scalar()
    say('None', state(JSONB(none_as_null=True)))
    say('JSON null', state(JSONB()))
    with engine.begin() as conn:
        say('null()', conn.execute(sa.select(sa.column('state')).select_from(
            sa.func.idem_begin(k, sa.null()).table_valued('state'))).scalar())
        say('CAST', conn.execute(sa.text('SELECT state FROM idem_begin(:k, request => CAST(:r AS jsonb))'), {'k': k, 'r': '{}'}).scalar())

    def execute(sql):
        with engine.begin() as conn:
            conn.execute(sa.text(sql))
    once_error(execute, lambda error: f'{type(error).__name__} {error.orig.diag.constraint_name}')

    # a row that is skipped has no id for the ORM
    from sqlalchemy.orm import Session, declarative_base

    class Row(declarative_base()):
        __tablename__ = 'skip_sqlalchemy'
        id = sa.Column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
        k = sa.Column(sa.Text)
    Row.metadata.create_all(engine)
    execute("CREATE TRIGGER once BEFORE INSERT ON skip_sqlalchemy FOR EACH ROW EXECUTE FUNCTION idem_once('k', NULL, 'skip')")

    def add():
        with Session(engine) as session, session.begin():
            session.add(Row(k='a'))
    say('skip', [sqlstate(add, lambda error: type(error).__name__) for _ in range(2)])


def swap_sqlalchemy(sa, engine):
    conns = [engine.connect() for _ in range(2)]
    open_ = {}

    def begin(i, k):
        open_[i] = conns[i].begin()
        conns[i].execute(sa.text('SELECT idem_begin(:k)'), {'k': k})
        conns[i].execute(sa.text('SELECT idem_finish(:k)'), {'k': k})
    swap([functools.partial(begin, i) for i in range(2)], [lambda i=i: open_[i].commit() for i in range(2)], [lambda i=i: open_[i].rollback() for i in range(2)])


def decorator(connection, transaction):
    """Django's, as doc/clients.md has it."""
    from django.http import HttpResponse
    from django.test import RequestFactory
    with open(os.path.join(os.path.dirname(__file__), '../../doc/clients.md')) as page:
        code = re.search('```python\n(def idempotent.*?)```', page.read(), re.S).group(1)
    names = dict(functools=functools, json=json, connection=connection, transaction=transaction, HttpResponse=HttpResponse)
    exec(code, names)
    calls = []

    @names['idempotent']
    def view(request):
        calls.append(request)
        status = json.loads(request.body)['status']
        if status == 0:
            raise ValueError('as told')
        return HttpResponse('{"call": %d}' % len(calls), status=status, content_type='application/json')

    def call(k, status):
        request = RequestFactory().post('/orders', json.dumps({'status': status}), content_type='application/json',
                                        **({} if k is None else {'HTTP_IDEMPOTENCY_KEY': k}))
        request.user = 'ada'
        try:
            answer = view(request)
        except Exception as error:
            return getattr(error.__cause__, 'pgcode', type(error).__name__)
        own = answer.content.decode() if answer.get('Content-Type') == 'application/json' else 'problem'
        return f'{answer.status_code} {own} {answer.get("Idempotent-Replayed")}'

    say('decorator', [call('d1', 201), call('d1', 201), call('d1', 200), call(None, 201), call('d2', 422), call('d2', 422)])
    say('decorator, failures', [call('d3', 0), call('d3', 500), call('d3', 201)])


def once_error(execute, of):
    """What the second of two equal rows raises; execute(sql) is a transaction."""
    execute(f'CREATE TABLE once_{driver} (k text)')
    execute(f"CREATE TRIGGER once AFTER INSERT ON once_{driver} FOR EACH ROW EXECUTE FUNCTION idem_once('k')")
    execute(f"INSERT INTO once_{driver} VALUES ('a')")
    say('raise', sqlstate(lambda: execute(f"INSERT INTO once_{driver} VALUES ('a')"), of))


def django():
    import django
    from django.conf import settings
    settings.configure(DEFAULT_CHARSET='utf-8', ALLOWED_HOSTS=['*'],
                       DATABASES={name: {'ENGINE': 'django.db.backends.postgresql', 'NAME': os.environ['PGDATABASE']} for name in ('default', 'other')})
    django.setup()
    from django.db import connection, transaction
    from django.test import TestCase, TransactionTestCase
    if bouncer:
        from django.db import connections
        conns = [connections[name] for name in ('default', 'other')]
        for conn in conns:
            conn.set_autocommit(False)
        return swap_dbapi(conns)
    fired = []

    def view(finish=False, k=None):
        k = k or key()
        with transaction.atomic():
            transaction.on_commit(lambda: fired.append(k))
            with connection.cursor() as cursor:
                cursor.execute(BEGIN, [k])
                if finish:
                    cursor.execute('SELECT idem_finish(%s)', [k])

    def check():
        with connection.cursor() as cursor:
            cursor.execute('SELECT idem_check()')

    def of(error):
        return error.__cause__.pgcode

    say('no finish', sqlstate(view, of))
    say('on_commit', len(fired))

    k = key()

    def caught():
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(BEGIN, [k])
                cursor.execute('SELECT idem_finish(%s)', [k])
                try:
                    cursor.execute('SELECT 1/0')
                except django.db.DataError:
                    pass
    say('caught error', sqlstate(caught, of))
    with connection.cursor() as cursor:
        cursor.execute('SELECT idem_claim(%s)', [k])
        say('and the key', cursor.fetchone()[0])

    def rolled_back():
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(BEGIN, ['django rolled back'])
                cursor.execute('SELECT idem_finish(%s, %s)', ['django rolled back', json.dumps({'a': 1})])
                say('jsonb', type(cursor.fetchone()[0]).__name__)
            transaction.set_rollback(True)
        return 'nothing raised'
    say('set_rollback', sqlstate(rolled_back, of))
    with connection.cursor() as cursor:
        cursor.execute('SELECT idem_claim(%s)', ['django rolled back'])
        say('set_rollback, and the key', cursor.fetchone()[0])

    decorator(connection, transaction)
    once_error(lambda sql: connection.cursor().execute(sql), lambda error: f'{type(error).__name__} {error.__cause__.diag.constraint_name}')

    class Hidden(TestCase):
        def test(self):
            view()

    class Checked(TestCase):
        def test(self):
            view()
            check()

    class Good(TestCase):
        def test(self):
            view(finish=True)
            check()

    class Committed(TransactionTestCase):
        available_apps = []

        def test(self):
            view()

    for case in (Hidden, Checked, Good, Committed):
        result = unittest.TestResult()
        case('test').run(result) if case is Committed else unittest.TestSuite([case('test')]).run(result)
        say(case.__name__, 'passes' if result.wasSuccessful() else 'fails: ' + str('ID005' in str(result.errors) or 'claimed but not finished' in str(result.errors)))


try:
    __import__(driver)
    if driver in ('sqlalchemy', 'django'):
        __import__('psycopg2')
except ImportError as error:
    print(error)
    sys.exit(77)
{'psycopg': psycopg, 'psycopg_pool': psycopg_pool, 'psycopg2': psycopg2, 'asyncpg': asyncpg, 'sqlalchemy': sqlalchemy, 'django': django}[driver]()
