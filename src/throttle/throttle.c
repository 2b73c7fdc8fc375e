/*-------------------------------------------------------------------------
 *
 * throttle.c
 *	  idem_throttle(): rate limits in shared memory.
 *
 * The generic cell rate algorithm (ITU-T I.371): a limit of "max_calls" calls in "period"
 * has a theoretical arrival time, after which it is unused.  A call advances it by
 * period / max_calls, starting from now if it has passed.  The call is allowed if the new
 * time is at most one period away.  A rejected call changes nothing.
 *
 * The arithmetic is exact: times are in microseconds, multiplied by max_calls, which needs
 * up to 80 bits.  Times returned to the caller are rounded up to a microsecond, so that a
 * caller that waits that long finds what was promised.
 *
 * The clock never steps back; if it did, the arrival time would stay unchanged.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/args.h"
#include "base/errors.h"
#include "base/interval.h"
#include "base/key.h"
#include "base/result_row.h"
#include "stat/stats.h"
#include "throttle/rate_table.h"

PG_FUNCTION_INFO_V1(idem_throttle);

#define MIN_PERIOD INT64CONST(1000)
#define MAX_PERIOD RATE_LIMIT_MAX_AHEAD

typedef struct Call
{
	int64 now;
	int64 period;
	int max_calls;
	int cost;

	/* the result; times in microseconds */
	bool allowed;
	int remaining;
	int64 retry_after;
	int64 reset_after;
} Call;

/* ------------------------------------------------------------------------
 * The algorithm
 * ------------------------------------------------------------------------
 */

/* Both are positive.  Most dividends fit 64 bits, and 128-bit division is slow. */
static inline int64
divide(int128 dividend, int64 divisor)
{
	if (dividend <= PG_INT64_MAX)
		return (int64) dividend / divisor;
	return (int64) (dividend / divisor);
}

static inline int64
divide_up(int128 dividend, int64 divisor)
{
	return divide(dividend + divisor - 1, divisor);
}

/* "debt" is how far away the arrival time is; "burst" is how far it may be. */
static bool
decide(RateLimitState *state, void *arg)
{
	Call *call = arg;
	int128 burst = (int128) call->period * call->max_calls;
	int128 debt =
		((int128) state->arrival - call->now) * call->max_calls + (int128) state->fraction;
	int128 wanted;

	debt = Max(debt, 0);
	wanted = debt + (int128) call->period * call->cost;
	call->allowed = wanted <= burst;
	call->retry_after = 0;
	if (call->allowed)
	{
		int64 ahead = divide(wanted, call->max_calls);

		debt = wanted;
		state->arrival = call->now + ahead;
		state->fraction = (uint32) (wanted - (int128) ahead * call->max_calls);
	}
	else
		call->retry_after = divide_up(wanted - burst, call->max_calls);
	call->remaining = debt < burst ? (int) divide(burst - debt, call->period) : 0;
	call->reset_after = divide_up(debt, call->max_calls);
	return call->allowed;
}

/* ------------------------------------------------------------------------
 * Arguments
 * ------------------------------------------------------------------------
 */

static int64
arg_period(FunctionCallInfo fcinfo, int n, text *key)
{
	int128 period;

	if (PG_ARGISNULL(n))
		error_null("period");
	period = ttl_usecs(PG_GETARG_INTERVAL_P(n));
	if (period < MIN_PERIOD || period > MAX_PERIOD)
		error_period(key);
	return (int64) period;
}

static int
arg_count(FunctionCallInfo fcinfo, int n, const char *what, text *key)
{
	int count = PG_ARGISNULL(n) ? 1 : PG_GETARG_INT32(n);

	if (count < 1)
		error_range(psprintf("%s of throttle key \"%s\"", what, key_text_display(key)), 1,
					PG_INT32_MAX);
	return count;
}

static void
check_cost(const Call *call, text *key)
{
	if (call->cost > call->max_calls)
		error_cost(key, call->cost, call->max_calls);
}

/* Calls with equal identities share a limit. */
typedef struct Identity
{
	int64 period;
	int max_calls;
	int scope_len;
	Oid database;				  /* the scope is this and its text */
	char text[2 * KEY_MAX_BYTES]; /* scope, then key */
} Identity;

static SipHash
identify(Identity *identity, const Call *call, text *key, text *scope)
{
	int key_len;
	const char *key_bytes = key_utf8("throttle key", key, 1, &key_len);
	const char *scope_bytes;

	identity->period = call->period;
	identity->database = MyDatabaseId;
	identity->max_calls = call->max_calls;
	scope_bytes = key_utf8("throttle scope", scope, 0, &identity->scope_len);
	memcpy(identity->text, scope_bytes, identity->scope_len);
	memcpy(identity->text + identity->scope_len, key_bytes, key_len);
	return rate_limit_id(identity, offsetof(Identity, text) + identity->scope_len + key_len);
}

/* ------------------------------------------------------------------------
 * idem_throttle
 * ------------------------------------------------------------------------
 */

/*
 * The real clock, unless a C module has pointed this rendezvous variable at a time, as that
 * of the tests does.
 */
static int64
get_now(void)
{
	static int64 **test_clock = NULL;

	if (test_clock == NULL)
		test_clock = (int64 **) find_rendezvous_variable("idempotency_throttle_clock");
	return *test_clock == NULL ? rate_limit_now() : **test_clock;
}

/* Columns of idem_throttle's row, in the order of the install script. */
static const RowColumn throttle_columns[] = {
	{"allowed", BOOLOID},
	{"remaining", INT4OID},
	{"retry_after", FLOAT8OID},
	{"reset_after", FLOAT8OID},
};

/* The layout that heap_form_tuple gives them. */
typedef struct ThrottleRow
{
	bool allowed;
	int32 remaining;
	float8 retry_after;
	float8 reset_after;
} ThrottleRow;

/*
 * These rows differ only in their columns, which have fixed offsets.  So copying one and
 * overwriting its columns gives what heap_form_tuple builds, in a third of the time.
 */
static Datum
throttle_row(const Call *call)
{
	static HeapTupleHeader first = NULL;
	HeapTupleHeader header;
	ThrottleRow row;

	/* the padding between columns as well */
	memset(&row, 0, sizeof(row));
	row.allowed = call->allowed;
	row.remaining = call->remaining;
	row.retry_after = call->retry_after / (double) USECS_PER_SEC;
	row.reset_after = call->reset_after / (double) USECS_PER_SEC;

	if (first == NULL)
		first = row_first(throttle_columns, lengthof(throttle_columns), sizeof(ThrottleRow));
	header = palloc(HeapTupleHeaderGetDatumLength(first));
	memcpy(header, first, HeapTupleHeaderGetDatumLength(first) - sizeof(row));
	memcpy((char *) header + header->t_hoff, &row, sizeof(row));
	return PointerGetDatum(header);
}

/*
 * idem_throttle(key text, period interval, max_calls int, scope text, cost int)
 *		RETURNS record
 */
Datum
idem_throttle(PG_FUNCTION_ARGS)
{
	text *key = arg_text(fcinfo, 0);
	text *scope = key_scope(arg_text(fcinfo, 3));
	Identity identity; /* large, so not zeroed */
	RateLimitScope limit_scope;
	Call call;
	SipHash id;

	refuse_in_worker("idem_throttle");
	if (key == NULL)
		error_null("throttle key");
	key_require_scope("throttle key", key, scope);
	call.period = arg_period(fcinfo, 1, key);
	call.max_calls = arg_count(fcinfo, 2, "max_calls", key);
	call.cost = arg_count(fcinfo, 4, "cost", key);
	check_cost(&call, key);
	if (!rate_limit_available())
		error_no_shared_memory("idem_throttle");

	id = identify(&identity, &call, key, scope);
	limit_scope.data = &identity.database;
	limit_scope.len = offsetof(Identity, text) - offsetof(Identity, database) + identity.scope_len;
	call.now = get_now();
	if (rate_limit_change(&id, &limit_scope, call.now, decide, &call))
		stats_count(STAT_THROTTLE_EVICTED, 1);
	stats_count(call.allowed ? STAT_THROTTLE_ALLOWED : STAT_THROTTLE_REJECTED, 1);
	return throttle_row(&call);
}
