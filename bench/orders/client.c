/*-------------------------------------------------------------------------
 *
 * client.c
 *	  The client of bench/run: places orders, each once, in one of several ways.
 *
 *	  client -c CONTESTANT -w WORK [options]
 *
 * All contestants do the same: they take a key and a payload, place an order if
 * the key is new, and end up with the answer, whether the order was placed now or
 * before: {"order": id, "payload": "..."}.  The server is found by the variables
 * of libpq, PGHOST and so on.
 *
 * Works:
 *	  first		each request has a new key; -d says how many per cent have a key
 *				that was finished before in this run
 *	  hot		all clients ask for one key, -r times altogether, then for the next
 *	  replay	a random one of the keys in bench.known, which were finished before
 *	  fill		finishes all of the keys in bench.known, once
 *	  batch		-b new keys a request
 *	  once		one request, of key -K; says "answer" or "pending"
 *
 * Prints a line of fields separated by tabs: contestant, work, clients, seconds,
 * requests, errors, requests a second, median and 99th percentile of the latency
 * in microseconds, and the number of keys that were new.
 * Every latency is kept, so the percentiles are exact.
 *
 *-------------------------------------------------------------------------
 */
#include <err.h>
#include <hiredis/hiredis.h>
#include <libpq-fe.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define MAX_CLIENTS 64
#define MAX_STATEMENTS 4
#define KEY_LEN 40
#define PENDING "pending"
#define PATIENCE 5 /* seconds to wait for another's request with the same key */

/* how long a result stays in Redis, seconds; as text */
#define KEEP_RESULT "86400"

/* between two looks at a pending key in Redis: each time twice as long, microseconds */
#define FIRST_LOOK 50
#define LAST_LOOK 1000

typedef struct Worker Worker;

/* What a request came to. */
typedef enum Outcome
{
	FAILED,
	ANSWERED,
	IN_PROGRESS
} Outcome;

typedef struct Contestant
{
	const char *name;
	Outcome (*request)(Worker *w, const char *key);
	const char *statements[MAX_STATEMENTS]; /* prepared, and run by their place here */
	bool cached;							/* speaks to Redis as well */
} Contestant;

struct Worker
{
	int number;
	pthread_t thread;
	PGconn *db;
	redisContext *cache;
	uint64_t random;
	char *answer; /* the last one, where it is put together here */
	char *batch;  /* an array of keys, as text */
	char sqlstate[6];
	uint32_t *latencies; /* tenths of a microsecond */
	size_t requests;
	size_t room;
	size_t errors;
};

static const Contestant *contestant;
static const char *work;
static int clients = 4;
static double seconds = 1;
static long requests_each; /* instead of seconds, if not 0 */
static size_t payload_size = 100;
static int duplicates;	  /* per cent */
static int repeats = 100; /* of a hot key */
static int batch_size = 1000;
static bool sequential;
static uint64_t first_number; /* of sequential keys */
static long ttl = 86400;	  /* of pending keys in Redis, seconds */
static const char *cache_place = "";
static const char *one_key;
static bool pauses; /* between the order and its record, until SIGUSR1 */

static char *payload;
static uint64_t seed;
static char **known; /* keys that were finished before */
static char **known_digests;
static int nknown;
static Worker workers[MAX_CLIENTS];
static _Atomic uint64_t finished[MAX_CLIENTS]; /* new keys, by worker */
static _Atomic uint64_t hot_requests;
static pthread_barrier_t ready;
static struct timespec started;

/* ---------------------------------------------------------------- time and chance */

static double
seconds_since(const struct timespec *then)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - then->tv_sec) + (now.tv_nsec - then->tv_nsec) / 1e9;
}

/* splitmix64: the same number always makes the same bits */
static uint64_t
mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static uint64_t
draw(Worker *w, uint64_t below)
{
	w->random = mix(w->random);
	return w->random % below;
}

static void
name_key(uint64_t number, char *key)
{
	uint64_t a = mix(seed ^ (2 * number));
	uint64_t b = mix(seed ^ (2 * number + 1));

	if (sequential)
		snprintf(key, KEY_LEN, "order-%012llu", (unsigned long long) (first_number + number));
	else
		snprintf(key, KEY_LEN, "%08x-%04x-4%03x-a%03x-%012llx", (unsigned) (a >> 32),
				 (unsigned) (a >> 16 & 0xffff), (unsigned) (a & 0xfff), (unsigned) (b >> 52),
				 (unsigned long long) (b & UINT64_C(0xffffffffffff)));
}

/* ---------------------------------------------------------------- the systems */

static void
complain(Worker *w, const char *what)
{
	/* report only the first one */
	if (w->errors++ == 0)
		fprintf(stderr, "%s: %s\n", contestant->name, what);
}

static PGresult *
check(Worker *w, PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK)
		return result;
	snprintf(w->sqlstate, sizeof(w->sqlstate), "%s", sqlstate != NULL ? sqlstate : "");
	if (strcmp(w->sqlstate, "23505") != 0)
		complain(w, PQerrorMessage(w->db));
	PQclear(result);
	return NULL;
}

/* NULL after an error, which has been counted; 23505 is none */
static PGresult *
run(Worker *w, int statement, int nvalues, const char *a, const char *b)
{
	const char *values[] = {a, b};
	char name[12];

	snprintf(name, sizeof(name), "s%d", statement);
	return check(w, PQexecPrepared(w->db, name, nvalues, values, NULL, NULL, 0));
}

static bool
command(Worker *w, const char *sql)
{
	PGresult *result = check(w, PQexec(w->db, sql));

	PQclear(result);
	return result != NULL;
}

/* Ask Redis; NULL and counted if it cannot be asked. */
static redisReply *
ask(Worker *w, const char *const *words, int nwords)
{
	redisReply *reply = redisCommandArgv(w->cache, nwords, (const char **) words, NULL);

	if (reply == NULL || reply->type == REDIS_REPLY_ERROR)
	{
		complain(w, reply != NULL ? reply->str : w->cache->errstr);
		if (reply != NULL)
			freeReplyObject(reply);
		return NULL;
	}
	return reply;
}

/* ---------------------------------------------------------------- answers */

/* The kill of bench/run strikes here. */
static void
order_is_placed(void)
{
	sigset_t signals;
	int signal;

	if (!pauses)
		return;
	puts("paused");
	fflush(stdout);
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	sigwait(&signals, &signal);
}

/* an answer that is put together here, from the order */
static Outcome
answer_of(Worker *w, const char *id, const char *what)
{
	sprintf(w->answer, "{\"order\": %s, \"payload\": \"%s\"}", id, what);
	return ANSWERED;
}

/* an answer that came; takes the result */
static Outcome
answer_in(Worker *w, PGresult *result, int column)
{
	Outcome outcome = FAILED;

	if (result == NULL)
		return FAILED;
	if (PQntuples(result) == 1 && strstr(PQgetvalue(result, 0, column), "\"order\"") != NULL)
		outcome = ANSWERED;
	else
		complain(w, "no answer");
	PQclear(result);
	return outcome;
}

/* INSERT ... RETURNING id; takes the result */
static Outcome
answer_inserted(Worker *w, PGresult *result)
{
	Outcome outcome = FAILED;

	if (result == NULL)
		return FAILED;
	outcome = answer_of(w, PQgetvalue(result, 0, 0), payload);
	PQclear(result);
	return outcome;
}

/* ---------------------------------------------------------------- contestants */

static Outcome
floor_request(Worker *w, const char *key)
{
	Outcome outcome = answer_inserted(w, run(w, 0, 1, payload, NULL));

	order_is_placed();
	return outcome;
}

static Outcome
roll_back(Worker *w)
{
	command(w, "ROLLBACK");
	return FAILED;
}

static Outcome
five_request(Worker *w, const char *key)
{
	PGresult *claimed;
	Outcome outcome;
	bool is_new;

	if (!command(w, "BEGIN"))
		return FAILED;
	claimed = run(w, 0, 1, key, NULL);
	if (claimed == NULL)
		return roll_back(w);
	is_new = strcmp(PQcmdTuples(claimed), "1") == 0;
	PQclear(claimed);
	if (is_new)
	{
		outcome = answer_inserted(w, run(w, 1, 1, payload, NULL));
		order_is_placed();
		if (outcome == ANSWERED)
		{
			PGresult *recorded = run(w, 2, 2, key, w->answer);

			outcome = recorded != NULL ? ANSWERED : FAILED;
			PQclear(recorded);
		}
	}
	else
		outcome = answer_in(w, run(w, 3, 1, key, NULL), 0);
	if (outcome == FAILED)
		return roll_back(w);
	return command(w, "COMMIT") ? outcome : FAILED;
}

/* a function in the database that returns the answer */
static Outcome
function_request(Worker *w, const char *key)
{
	Outcome outcome = answer_in(w, run(w, 0, 2, key, payload), 0);

	order_is_placed();
	return outcome;
}

/* a constraint or a trigger: the violation is caught, and the order looked up */
static Outcome
violation_request(Worker *w, const char *key)
{
	PGresult *result;
	Outcome outcome;

	w->sqlstate[0] = '\0';
	outcome = answer_inserted(w, run(w, 0, 2, key, payload));
	order_is_placed();
	if (outcome == ANSWERED || strcmp(w->sqlstate, "23505") != 0)
		return outcome;
	result = run(w, 1, 1, key, NULL);
	if (result == NULL)
		return FAILED;
	if (PQntuples(result) == 1)
		outcome = answer_of(w, PQgetvalue(result, 0, 0), PQgetvalue(result, 0, 1));
	else
		complain(w, "the order is not there");
	PQclear(result);
	return outcome;
}

static Outcome
redis_request(Worker *w, const char *key)
{
	char seconds_pending[24];
	/* with GET, which Redis has from 7 on, a replay is one round trip */
	const char *const claim[] = {"SET", key, PENDING, "NX", "GET", "EX", seconds_pending};
	const char *const record[] = {"SET", key, w->answer, "EX", KEEP_RESULT};
	const char *const give_up[] = {"DEL", key};
	struct timespec begun;
	useconds_t look = FIRST_LOOK;
	redisReply *reply;
	Outcome outcome;

	snprintf(seconds_pending, sizeof(seconds_pending), "%ld", ttl);
	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (;;)
	{
		bool is_new;
		bool is_pending;

		reply = ask(w, claim, 7);
		if (reply == NULL)
			return FAILED;
		is_new = reply->type == REDIS_REPLY_NIL;
		is_pending = !is_new && strcmp(reply->str, PENDING) == 0;
		outcome = !is_new && strstr(reply->str, "\"order\"") != NULL ? ANSWERED : FAILED;
		freeReplyObject(reply);
		if (is_new)
			break;
		if (!is_pending)
			return outcome;
		if (one_key != NULL || seconds_since(&begun) > PATIENCE)
			return IN_PROGRESS;
		usleep(look);
		look = look < LAST_LOOK / 2 ? 2 * look : LAST_LOOK;
	}

	outcome = answer_inserted(w, run(w, 0, 1, payload, NULL));
	order_is_placed();
	for (int tries = 0;; tries++)
	{
		reply = outcome == ANSWERED ? ask(w, record, 5) : ask(w, give_up, 2);
		if (reply != NULL)
			break;
		/* both can be said again, should Redis have gone in between */
		if (tries > 0 || redisReconnect(w->cache) != REDIS_OK)
			return FAILED;
	}
	freeReplyObject(reply);
	return outcome;
}

/* "started", "replayed" and so on */
static bool
is_state(PGresult *result, const char *state)
{
	return strcmp(PQgetvalue(result, 0, 0), state) == 0;
}

static Outcome
calls_request(Worker *w, const char *key)
{
	PGresult *claim;
	Outcome outcome;

	if (!command(w, "BEGIN"))
		return FAILED;
	claim = run(w, 0, 1, key, NULL);
	if (claim == NULL)
		return roll_back(w);
	if (is_state(claim, "started"))
	{
		PQclear(claim);
		outcome = answer_inserted(w, run(w, 1, 1, payload, NULL));
		order_is_placed();
		if (outcome == ANSWERED)
			outcome = answer_in(w, run(w, 2, 2, key, w->answer), 0);
	}
	else if (is_state(claim, "replayed"))
		outcome = answer_in(w, claim, 1);
	else
	{
		PQclear(claim);
		outcome = IN_PROGRESS;
	}
	if (outcome == FAILED)
		return roll_back(w);
	return command(w, "COMMIT") ? outcome : FAILED;
}

/* a statement that returns state and result; takes the result */
static Outcome
answer_stated(Worker *w, PGresult *result)
{
	if (result != NULL && is_state(result, "in_progress"))
	{
		PQclear(result);
		return IN_PROGRESS;
	}
	return answer_in(w, result, 1);
}

static Outcome
cte_request(Worker *w, const char *key)
{
	Outcome outcome = answer_stated(w, run(w, 0, 2, key, payload));

	order_is_placed();
	return outcome;
}

static Outcome
call_request(Worker *w, const char *key)
{
	Outcome outcome;

	sprintf(w->answer, "{\"payload\": \"%s\"}", payload);
	outcome = answer_stated(w, run(w, 0, 2, key, w->answer));
	order_is_placed();
	return outcome;
}

/* idem_begin alone, of a key that is known: no transaction around it */
static Outcome
begin_request(Worker *w, const char *key)
{
	return answer_stated(w, run(w, 0, 1, key, NULL));
}

/* the least that a replay can cost: its row, by the primary key */
static Outcome
select_request(Worker *w, const char *digest)
{
	return answer_in(w, run(w, 0, 1, digest, NULL), 0);
}

/* key is an array of keys */
static Outcome
batch_request(Worker *w, const char *keys)
{
	PGresult *result = run(w, 0, 1, keys, NULL);
	bool all;

	if (result == NULL)
		return FAILED;
	all = PQntuples(result) == batch_size;
	PQclear(result);
	if (!all)
		complain(w, "not all of a batch was new");
	return all ? ANSWERED : FAILED;
}

#define INSERT_ORDER \
	"INSERT INTO bench.orders (customer, item, payload) VALUES (7, 'book', $1) RETURNING id"
#define INSERT_KEYED(table) \
	"INSERT INTO " table " (key, customer, item, payload) VALUES ($1, 7, 'book', $2) RETURNING id"

static const Contestant contestants[] = {
	{"floor", floor_request, {INSERT_ORDER}, false},
	{"five",
	 five_request,
	 {"INSERT INTO bench.hand_keys (key) VALUES ($1) ON CONFLICT DO NOTHING", INSERT_ORDER,
	  "UPDATE bench.hand_keys SET status = 'done', result = $2 WHERE key = $1",
	  "SELECT result FROM bench.hand_keys WHERE key = $1"},
	 false},
	{"hand", function_request, {"SELECT bench.place_by_hand($1, $2)"}, false},
	{"lock", function_request, {"SELECT bench.place_by_lock($1, $2)"}, false},
	{"unique",
	 violation_request,
	 {INSERT_KEYED("bench.unique_orders"),
	  "SELECT id, payload FROM bench.unique_orders WHERE key = $1"},
	 false},
	{"redis", redis_request, {INSERT_ORDER}, true},
	{"calls",
	 calls_request,
	 {"SELECT state, result FROM idem_begin($1, wait => '5 s')", INSERT_ORDER,
	  "SELECT idem_finish($1, $2)"},
	 false},
	{"cte",
	 cte_request,
	 {"WITH c AS (SELECT * FROM idem_begin($1, wait => '5 s')), "
	  "o AS (INSERT INTO bench.orders (customer, item, payload) SELECT 7, 'book', $2 FROM c "
	  "WHERE c.state = 'started' RETURNING id), "
	  "f AS (SELECT idem_finish($1, jsonb_build_object('order', o.id, 'payload', $2::text)) "
	  "AS result FROM o) "
	  "SELECT c.state, coalesce(f.result, c.result) FROM c LEFT JOIN f ON true"},
	 false},
	{"call",
	 call_request,
	 {"SELECT state, result FROM idem_call($1, 'bench.place_order', $2, wait => '5 s')"},
	 false},
	{"function", function_request, {"SELECT bench.place_once($1, $2)"}, false},
	{"trigger",
	 violation_request,
	 {INSERT_KEYED("bench.trigger_orders"),
	  "SELECT id, payload FROM bench.trigger_orders WHERE key = $1"},
	 false},
	{"begin", begin_request, {"SELECT state, result FROM idem_begin($1)"}, false},
	{"select", select_request, {"SELECT result FROM idem_keys WHERE digest = $1"}, false},
	{"claim_many", batch_request, {"SELECT key FROM idem_claim_many($1)"}, false},
	{"same_rows",
	 batch_request,
	 {"INSERT INTO bench.same_rows (digest, created_at, finished_at, expires_at, attempt, scope, "
	  "key) SELECT k::uuid, t, t, t + interval '24 hours', 1, '', k "
	  "FROM unnest($1::text[]) k, clock_timestamp() t ON CONFLICT DO NOTHING RETURNING key"},
	 false},
	{"inbox",
	 batch_request,
	 {"INSERT INTO bench.inbox (key) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING "
	  "RETURNING key"},
	 false},
};

/* ---------------------------------------------------------------- workers */

static bool
is_work(const char *name)
{
	return strcmp(work, name) == 0;
}

static uint64_t
new_number(Worker *w)
{
	return atomic_load(&finished[w->number]) * clients + w->number;
}

/* an array of new keys */
static const char *
name_batch(Worker *w)
{
	char *end = w->batch;

	for (int i = 0; i < batch_size; i++)
	{
		*end++ = i == 0 ? '{' : ',';
		name_key(new_number(w), end);
		finished[w->number]++;
		end += strlen(end);
	}
	strcpy(end, "}");
	return w->batch;
}

/* The next request's key, made in buf or found elsewhere; NULL at the end. */
static const char *
next_key(Worker *w, char *buf)
{
	if (one_key != NULL)
		return w->requests == 0 ? one_key : NULL;
	if (requests_each != 0 && w->requests == requests_each)
		return NULL;
	if (is_work("fill"))
	{
		size_t i = w->requests * clients + w->number;

		return i < nknown ? known[i] : NULL;
	}
	if (requests_each == 0 && seconds_since(&started) >= seconds)
		return NULL;
	if (is_work("batch"))
		return name_batch(w);
	if (is_work("replay"))
	{
		uint64_t i = draw(w, nknown);

		return contestant->request == select_request ? known_digests[i] : known[i];
	}
	if (is_work("hot"))
		name_key(hot_requests++ / repeats, buf);
	else
	{
		uint64_t number = new_number(w);

		if (duplicates > 0 && draw(w, 100) < duplicates)
		{
			int whose = draw(w, clients);
			uint64_t n = finished[whose];

			/* none yet: a new one */
			if (n > 0)
			{
				name_key(draw(w, n) * clients + whose, buf);
				return buf;
			}
		}
		name_key(number, buf);
	}
	return buf;
}

static void
note_latency(Worker *w, double s)
{
	if (w->requests == w->room)
	{
		w->room = w->room == 0 ? 65536 : 2 * w->room;
		w->latencies = realloc(w->latencies, w->room * sizeof(w->latencies[0]));
		if (w->latencies == NULL)
			err(1, NULL);
	}
	w->latencies[w->requests++] = s < 400 ? s * 1e7 : 4e9;
}

static void
connect_systems(Worker *w)
{
	w->db = PQconnectdb("");
	if (PQstatus(w->db) != CONNECTION_OK)
		errx(1, "%s", PQerrorMessage(w->db));
	for (int i = 0; i < MAX_STATEMENTS && contestant->statements[i] != NULL; i++)
	{
		char name[12];
		PGresult *result;

		snprintf(name, sizeof(name), "s%d", i);
		result = PQprepare(w->db, name, contestant->statements[i], 0, NULL);
		if (PQresultStatus(result) != PGRES_COMMAND_OK)
			errx(1, "%s", PQerrorMessage(w->db));
		PQclear(result);
	}
	if (!contestant->cached)
		return;
	if (cache_place[0] == '/')
		w->cache = redisConnectUnix(cache_place);
	else
		w->cache = redisConnect(cache_place, 6379);
	if (w->cache == NULL || w->cache->err != 0)
		errx(1, "Redis: %s", w->cache != NULL ? w->cache->errstr : "no memory");
}

static void *
labour(void *arg)
{
	Worker *w = arg;
	char buf[KEY_LEN];
	const char *key;

	connect_systems(w);
	w->answer = malloc(payload_size + 100);
	w->batch = malloc((size_t) batch_size * KEY_LEN + 2);
	if (w->answer == NULL || w->batch == NULL)
		err(1, NULL);
	pthread_barrier_wait(&ready); /* all are connected */
	pthread_barrier_wait(&ready); /* the clock runs */
	while ((key = next_key(w, buf)) != NULL)
	{
		struct timespec begun;
		size_t errors = w->errors;
		Outcome outcome;

		clock_gettime(CLOCK_MONOTONIC, &begun);
		outcome = contestant->request(w, key);
		note_latency(w, seconds_since(&begun));
		if (outcome != ANSWERED && w->errors == errors && one_key == NULL)
			complain(w, outcome == IN_PROGRESS ? "still in progress" : "failed");
		if (outcome == ANSWERED && key == buf && strcmp(work, "first") == 0)
		{
			char newest[KEY_LEN];

			/* was it the new one? */
			name_key(new_number(w), newest);
			if (strcmp(newest, key) == 0)
				finished[w->number]++;
		}
		if (one_key != NULL)
			puts(outcome == ANSWERED ? "answer" : outcome == IN_PROGRESS ? "pending" : "failed");
	}
	PQfinish(w->db);
	if (w->cache != NULL)
		redisFree(w->cache);
	return NULL;
}

/* ---------------------------------------------------------------- the run */

static void
load_known(void)
{
	PGconn *db = PQconnectdb("");
	PGresult *result = PQexec(db, "SELECT key, digest FROM bench.known ORDER BY digest");

	if (PQresultStatus(result) != PGRES_TUPLES_OK || PQntuples(result) == 0)
		errx(1, "no known keys: %s", PQerrorMessage(db));
	nknown = PQntuples(result);
	known = malloc(nknown * sizeof(char *));
	known_digests = malloc(nknown * sizeof(char *));
	if (known == NULL || known_digests == NULL)
		err(1, NULL);
	for (int i = 0; i < nknown; i++)
	{
		/* they live in the result, which is kept */
		known[i] = PQgetvalue(result, i, 0);
		known_digests[i] = PQgetvalue(result, i, 1);
	}
	PQfinish(db);
}

/* Letters that neither JSON escapes nor PostgreSQL can compress. */
static void
make_payload(void)
{
	static const char letters[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

	payload = malloc(payload_size + 1);
	if (payload == NULL)
		err(1, NULL);
	for (size_t i = 0; i < payload_size; i++)
		payload[i] = letters[mix(i) % 64];
	payload[payload_size] = '\0';
}

static int
compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *) a;
	uint32_t y = *(const uint32_t *) b;

	return (x > y) - (x < y);
}

static void
print_figures(double elapsed)
{
	size_t n = 0;
	size_t errors = 0;
	uint64_t new_keys = (hot_requests + repeats - 1) / repeats;
	uint32_t *all;

	for (int i = 0; i < clients; i++)
	{
		new_keys += finished[i];
		n += workers[i].requests;
		errors += workers[i].errors;
	}
	all = malloc((n + 1) * sizeof(all[0]));
	if (all == NULL || n == 0)
		errx(1, "no requests");
	n = 0;
	for (int i = 0; i < clients; i++)
	{
		memcpy(all + n, workers[i].latencies, workers[i].requests * sizeof(all[0]));
		n += workers[i].requests;
	}
	qsort(all, n, sizeof(all[0]), compare);
	printf("%s\t%s\t%d\t%.3f\t%zu\t%zu\t%.1f\t%.1f\t%.1f\t%llu\n", contestant->name, work, clients,
		   elapsed, n, errors, n / elapsed, all[(n - 1) / 2] / 10.0, all[(n - 1) * 99 / 100] / 10.0,
		   (unsigned long long) new_keys);
}

static const Contestant *
find_contestant(const char *name)
{
	for (size_t i = 0; i < sizeof(contestants) / sizeof(contestants[0]); i++)
	{
		if (strcmp(contestants[i].name, name) == 0)
			return &contestants[i];
	}
	errx(2, "no contestant %s", name);
}

int
main(int argc, char **argv)
{
	const char *name = NULL;
	int option;

	while ((option = getopt(argc, argv, "c:w:j:s:n:p:d:r:b:k:t:R:K:P")) != -1)
	{
		switch (option)
		{
			case 'c':
				name = optarg;
				break;
			case 'w':
				work = optarg;
				break;
			case 'j':
				clients = atoi(optarg);
				break;
			case 's':
				seconds = atof(optarg);
				break;
			case 'n': /* requests of each client, instead of seconds */
				requests_each = atol(optarg);
				break;
			case 'p':
				payload_size = atol(optarg);
				break;
			case 'd':
				duplicates = atoi(optarg);
				break;
			case 'r':
				repeats = atoi(optarg);
				break;
			case 'b':
				batch_size = atoi(optarg);
				break;
			case 'k': /* sequential keys from this number on, instead of uuids */
				sequential = true;
				first_number = strtoull(optarg, NULL, 10);
				break;
			case 't':
				ttl = atol(optarg);
				break;
			case 'R': /* the socket of Redis, or its address */
				cache_place = optarg;
				break;
			case 'K':
				one_key = optarg;
				break;
			case 'P': /* stop where the kill is to strike, until SIGUSR1 */
				pauses = true;
				break;
			default:
				errx(2, "no such option");
		}
	}
	if (name == NULL || work == NULL || clients < 1 || clients > MAX_CLIENTS || repeats < 1 ||
		batch_size < 1)
		errx(2, "usage: client -c CONTESTANT -w WORK [options]");
	contestant = find_contestant(name);
	if (is_work("once") != (one_key != NULL))
		errx(2, "-w once has a key, by -K, and nothing else has");
	if (one_key != NULL)
		clients = 1;
	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		err(1, "getrandom");
	if (is_work("replay") || is_work("fill"))
		load_known();
	make_payload();
	signal(SIGPIPE, SIG_IGN); /* a Redis that has gone is an error of the write */
	if (pauses)
	{
		sigset_t signals;

		/* for the worker to wait for */
		sigemptyset(&signals);
		sigaddset(&signals, SIGUSR1);
		pthread_sigmask(SIG_BLOCK, &signals, NULL);
	}

	pthread_barrier_init(&ready, NULL, clients + 1);
	for (int i = 0; i < clients; i++)
	{
		workers[i].number = i;
		workers[i].random = mix(seed + i);
		if (pthread_create(&workers[i].thread, NULL, labour, &workers[i]) != 0)
			err(1, "pthread_create");
	}
	pthread_barrier_wait(&ready);
	clock_gettime(CLOCK_MONOTONIC, &started);
	pthread_barrier_wait(&ready);
	for (int i = 0; i < clients; i++)
		pthread_join(workers[i].thread, NULL);
	if (one_key == NULL)
		print_figures(seconds_since(&started));
	return 0;
}
