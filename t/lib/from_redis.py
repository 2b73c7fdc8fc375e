# Clients for t/071_from_redis.pl, which has put the programs of doc/howto/from-redis.md into page.py.
#
#   from_redis.py REDIS_URL CONNINFO storm VERSION CALLS PREFIX NUMBER [PREFIX NUMBER ...]
#   from_redis.py REDIS_URL CONNINFO ask VERSION KEY
#   from_redis.py REDIS_URL CONNINFO die VERSION KEY
#
# storm: four clients, each of which makes that many calls, with a prefix and a number up to the one
# after it as the key, and repeats what is answered by 409.  ask: one call.  die: one call, of a client
# that ends before it stores the answer in Redis.  Each answer is printed as "KEY <TAB> ANSWER".

import os
import random
import sys
import threading
import time

import psycopg
import redis

import page

url, conninfo, what, version, *rest = sys.argv[1:]
order = getattr(page, f"order_{version}")
answers = []
failed = []


class Dying(redis.Redis):
    def set(self, name, value, nx=False, **options):
        if not nx:
            os._exit(9)
        return super().set(name, value, nx=nx, **options)


def connect(kind=redis.Redis):
    r = None if version == "new" else kind.from_url(url, decode_responses=True)
    return r, psycopg.connect(conninfo, autocommit=True)


def client(calls, choices):
    try:
        r, db = connect()
        for _ in range(calls):
            prefix, number = random.choice(choices)
            key = f"{prefix}{random.randint(1, int(number))}"
            end = time.monotonic() + 180
            while (answer := order(r, db, key, version)) is None:
                assert time.monotonic() < end, f"{key} is stuck"
                time.sleep(0.001)
            answers.append(f"{key}\t{answer}")
    except BaseException as error:
        failed.append(error)


if what == "storm":
    calls, *rest = rest
    threads = [threading.Thread(target=client, args=(int(calls), list(zip(rest[::2], rest[1::2])))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(*answers, sep="\n")
    for error in failed:
        print(repr(error), file=sys.stderr)
    sys.exit(bool(failed))
else:
    r, db = connect(Dying if what == "die" else redis.Redis)
    print(rest[0], order(r, db, rest[0], version), sep="\t")
