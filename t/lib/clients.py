"""What t/061_clients.pl asks a Python driver: one line "NAME<tab>RESULT" for each trap of doc/clients.md.

    python3 clients.py DRIVER    # connects as PGHOST, PGPORT and PGDATABASE say; 77 if the driver is not there
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
count = 0


def key():
    global count
    count += 1
    return f'{driver} {count}'


def say(name, result):
    print(f'{name}\t{result}')


def sqlstate(run, of):
    try:
        return run() or 'no error'
    except Exception as error:
        return of(error)


def dbapi(module, connect, of, value):
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


def psycopg():
    import psycopg as module
    from psycopg.types.json import Jsonb
    dbapi(module, lambda: module.connect(''), lambda error: error.sqlstate, Jsonb)


def psycopg2():
    import psycopg2 as module
    from psycopg2.extras import Json
    dbapi(module, lambda: module.connect(''), lambda error: error.pgcode, Json)


def asyncpg():
    import asyncpg as module

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
        say('timedelta', await conn.fetchval('SELECT state FROM idem_begin($1, lease => $2)', key(), datetime.timedelta(minutes=1)))

    asyncio.run(trial())


def sqlalchemy():
    import sqlalchemy as sa
    from sqlalchemy.dialects.postgresql import JSONB
    engine = sa.create_engine('postgresql+psycopg2://')

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

    def state(type_):
        with engine.begin() as conn:
            statement = sa.text('SELECT state FROM idem_begin(:k, request => :r)').bindparams(sa.bindparam('r', type_=type_))
            return conn.execute(statement, {'k': k, 'r': None}).scalar()
    say('None', state(JSONB(none_as_null=True)))
    say('JSON null', state(JSONB()))

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
    settings.configure(DEFAULT_CHARSET='utf-8', ALLOWED_HOSTS=['*'], DATABASES={'default': {'ENGINE': 'django.db.backends.postgresql', 'NAME': os.environ['PGDATABASE']}})
    django.setup()
    from django.db import connection, transaction
    from django.test import TestCase, TransactionTestCase
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
{'psycopg': psycopg, 'psycopg2': psycopg2, 'asyncpg': asyncpg, 'sqlalchemy': sqlalchemy, 'django': django}[driver]()
