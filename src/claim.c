/*-------------------------------------------------------------------------
 *
 * claim.c
 *	  The SQL face of claims: arguments checked, a state decided, a row out.
 *
 * The deciding is there for idem_call() and the trigger as well: claim.h.
 *
 * What a claim is made of is elsewhere: the key's advisory lock (lock.h), the
 * transaction's memory of it (pending.h), the row (store.h).  The order that
 * every path keeps is lock, then probe, then write.  "Busy" is what the lock
 * and an uncommitted row say; "duplicate" is what only a committed row says.
 * So a busy lock never answers by itself: the probe has the last word.
 *
 * The functions are not STRICT and check their NULLs here: an optional
 * argument that is NULL is one that was not given.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "args.h"
#include "claim.h"
#include "compat.h"
#include "errors.h"
#include "fingerprint.h"
#include "guc.h"
#include "key.h"
#include "lease.h"
#include "lock.h"
#include "pending.h"
#include "row.h"
#include "stats.h"
#include "store.h"
#include "ttl.h"

PG_FUNCTION_INFO_V1(idem_begin);
PG_FUNCTION_INFO_V1(idem_finish);
PG_FUNCTION_INFO_V1(idem_release);
PG_FUNCTION_INFO_V1(idem_claim);
PG_FUNCTION_INFO_V1(idem_claim_many);
PG_FUNCTION_INFO_V1(idem_lookup);
PG_FUNCTION_INFO_V1(idem_forget);
PG_FUNCTION_INFO_V1(idem_forget_scope);

/* ------------------------------------------------------------------------
 * Arguments
 * ------------------------------------------------------------------------
 */

void
claim_request(ClaimRequest *request, text *key, text *scope, const Interval *ttl)
{
	memset(request, 0, sizeof(*request));
	key_make(&request->key, key, scope, true);
	claim_request_ttl(request, ttl);
	(void) ttl_after(request->now, &request->ttl, "ttl", &request->key);
}

void
claim_request_ttl(ClaimRequest *request, const Interval *ttl)
{
	request->now = GetCurrentTimestamp();
	if (ttl == NULL)
		ttl_default(&request->ttl);
	else
		request->ttl = *ttl;
}

/* key, ttl, scope, request: as idem_begin and idem_claim take them */
static void
get_request(FunctionCallInfo fcinfo, ClaimRequest *request)
{
	claim_request(request, arg_text(fcinfo, 0), arg_text(fcinfo, 2), arg_interval(fcinfo, 1));
	request->has_fingerprint = !PG_ARGISNULL(3);
	if (request->has_fingerprint)
		fingerprint_jsonb(PG_GETARG_JSONB_P(3), request->fingerprint);
}

TimestampTz
claim_wait_until(const ClaimRequest *request, const Interval *wait)
{
	return wait == NULL ? request->now : ttl_wait_until(request->now, wait, &request->key);
}

static const uint8 *
request_fingerprint(const ClaimRequest *request)
{
	return request->has_fingerprint ? request->fingerprint : NULL;
}

/* Compared only where both sides gave one. */
static bool
is_mismatch(const ClaimRequest *request, const StoreRow *row)
{
	return request->has_fingerprint && row->has_fingerprint &&
		memcmp(request->fingerprint, row->fingerprint, FINGERPRINT_BYTES) != 0;
}

/* ------------------------------------------------------------------------
 * idem_begin
 * ------------------------------------------------------------------------
 */

const char *const claim_begin_states[] = {
	[BEGIN_STARTED] = "started",
	[BEGIN_REPLAYED] = "replayed",
	[BEGIN_IN_PROGRESS] = "in_progress",
	[BEGIN_MISMATCH] = "mismatch",
};

/*
 * Begin over an absent, expired or abandoned row, with the lock held.  For a
 * leased claim that is a write, and false if somebody without the lock was
 * faster.
 */
static bool
start_claim(const ClaimRequest *request, const StoreRow *row, int64 *fence)
{
	const IdemKey *key = &request->key;
	StoreWrite write = {.fence = NO_FENCE};

	if (XactReadOnly)
		error_read_only(key, "claim");

	*fence = NO_FENCE;
	if (request->lease == NULL)
	{
		pending_begin(key, &request->ttl, request->now, request_fingerprint(request), row->life,
					  row->fence);
		return true;
	}

	write.fingerprint = request_fingerprint(request);
	write.created_at = request->now;
	write.ttl = request->ttl;
	write.lease_until = ttl_after(GetCurrentTimestamp(), request->lease, "lease", key);
	write.expires_at = lease_expiry(write.lease_until, &request->ttl, key);
	write.fence = store_new_fence(row->fence);
	if (!store_claim(key, &write, row, true))
		return false;
	pending_lease(key, write.fence, write.expires_at);
	*fence = write.fence;
	return true;
}

static void
count_begin(BeginState state, const StoreRow *row)
{
	static const StatCounter counters[] = {
		[BEGIN_STARTED] = STAT_STARTED,
		[BEGIN_REPLAYED] = STAT_REPLAYED,
		[BEGIN_IN_PROGRESS] = STAT_IN_PROGRESS,
		[BEGIN_MISMATCH] = STAT_MISMATCHED,
	};

	stats_count(counters[state], 1);
	if (state == BEGIN_STARTED && row->life == STORE_ABANDONED)
		stats_count(STAT_TAKEN_OVER, 1);
}

/*
 * The lease of a claim that this transaction has begun, or changed, has run out
 * before its end.  To take it over from ourselves would do the work twice in
 * one transaction.  Where the whole row has expired, the transaction cannot
 * commit any more.
 */
static bool
is_own_lapsed(const IdemKey *key, const StoreRow *row)
{
	if (!row->own)
		return false;
	if (row->life == STORE_EXPIRED && pending_leased(key, NO_FENCE))
		error_expired_before_commit(key);
	return row->life == STORE_ABANDONED && row->fence != NO_FENCE &&
		pending_leased(key, row->fence);
}

static BeginState
try_begin(const ClaimRequest *request, TimestampTz wait_until, StoreRow *row, int64 *fence)
{
	const IdemKey *key = &request->key;
	PendingClaim *mine = pending_find(key);
	bool locked;

	/* one claim, one begin: waiting for ourselves would be for ever */
	if (mine != NULL && mine->state == PENDING_OPEN)
		return BEGIN_IN_PROGRESS;

	locked = lock_try(key);
	for (;;)
	{
		bool own_lapsed;
		bool mismatch;

		CHECK_FOR_INTERRUPTS();
		store_probe(key, row);
		own_lapsed = is_own_lapsed(key, row);
		mismatch = is_mismatch(request, row);

		/* what a row tells comes before who is busy */
		if (!mismatch && locked && !own_lapsed && !row->unseen &&
			(row->life == STORE_ABSENT || row->life == STORE_EXPIRED ||
			 row->life == STORE_ABANDONED))
		{
			if (!start_claim(request, row, fence))
				continue;
			lock_show(key);
			return BEGIN_STARTED;
		}
		if (locked)
			lock_release(key);

		if (row->unseen && (row->life != STORE_LEASED || mismatch))
			error_serialization(key);
		if (mismatch)
			return BEGIN_MISMATCH;
		if (own_lapsed)
			return BEGIN_IN_PROGRESS;
		if (row->life == STORE_FINISHED)
			return BEGIN_REPLAYED;
		if (row->life == STORE_LEASED)
			return BEGIN_IN_PROGRESS;

		if (row->life == STORE_HELD)
		{
			if (!store_wait(key, row, wait_until))
				return BEGIN_IN_PROGRESS;
			locked = lock_try(key);
		}
		else
		{
			if (!lock_wait_until(key, wait_until))
				return BEGIN_IN_PROGRESS;
			locked = true;
		}
	}
}

BeginState
claim_begin(const ClaimRequest *request, TimestampTz wait_until, StoreRow *row, int64 *fence)
{
	BeginState state = try_begin(request, wait_until, row, fence);

	count_begin(state, row);
	return state;
}

/* Columns of idem_begin's row, in the order of the install script. */
enum
{
	BEGIN_COL_STATE,
	BEGIN_COL_RESULT,
	BEGIN_COL_RETRY_AFTER,
	BEGIN_COL_FENCE,
	BEGIN_COL_ATTEMPT,
	BEGIN_COL_PHASE,
	BEGIN_COL_PROGRESS,
	BEGIN_COL_CREATED_AT,
	BEGIN_COL_FINISHED_AT,
	BEGIN_COL_EXPIRES_AT,
	BEGIN_NCOLS
};

static const RowColumn begin_columns[BEGIN_NCOLS] = {
	[BEGIN_COL_STATE] = {"state", TEXTOID},
	[BEGIN_COL_RESULT] = {"result", JSONBOID},
	[BEGIN_COL_RETRY_AFTER] = {"retry_after", FLOAT8OID},
	[BEGIN_COL_FENCE] = {"fence", INT8OID},
	[BEGIN_COL_ATTEMPT] = {"attempt", INT4OID},
	[BEGIN_COL_PHASE] = {"phase", TEXTOID},
	[BEGIN_COL_PROGRESS] = {"progress", JSONBOID},
	[BEGIN_COL_CREATED_AT] = {"created_at", TIMESTAMPTZOID},
	[BEGIN_COL_FINISHED_AT] = {"finished_at", TIMESTAMPTZOID},
	[BEGIN_COL_EXPIRES_AT] = {"expires_at", TIMESTAMPTZOID},
};

double
claim_retry_after(const StoreRow *row)
{
	if (row->life != STORE_LEASED)
		return idem_retry_after / 1000.0;
	if (TIMESTAMP_IS_NOEND(row->lease_until))
		return get_float8_infinity();
	return Max(row->lease_until - GetCurrentTimestamp(), 0) / (double) USECS_PER_SEC;
}

static Datum
begin_row(const ClaimRequest *request, BeginState state, const StoreRow *row, int64 fence)
{
	static TupleDesc desc = NULL;
	Datum values[BEGIN_NCOLS] = {0};
	bool isnull[BEGIN_NCOLS];
	bool taken_over = row->life == STORE_ABANDONED;

#define SET(col, datum) (values[col] = (datum), isnull[col] = false)
	memset(isnull, true, sizeof(isnull));
	SET(BEGIN_COL_STATE, CStringGetTextDatum(claim_begin_states[state]));
	switch (state)
	{
		case BEGIN_STARTED:
			if (fence != NO_FENCE)
				SET(BEGIN_COL_FENCE, Int64GetDatum(fence));
			SET(BEGIN_COL_ATTEMPT, Int32GetDatum(taken_over ? row->attempt + 1 : 1));
			if (taken_over && row->phase != NULL)
				SET(BEGIN_COL_PHASE, PointerGetDatum(row->phase));
			if (taken_over && row->has_progress)
				SET(BEGIN_COL_PROGRESS, row->progress);
			SET(BEGIN_COL_CREATED_AT,
				TimestampTzGetDatum(taken_over ? row->created_at : request->now));
			break;
		case BEGIN_IN_PROGRESS:
			SET(BEGIN_COL_RETRY_AFTER, Float8GetDatum(claim_retry_after(row)));
			break;
		case BEGIN_REPLAYED:
			if (row->has_result)
				SET(BEGIN_COL_RESULT, row->result);
			SET(BEGIN_COL_ATTEMPT, Int32GetDatum(row->attempt));
			break;
		case BEGIN_MISMATCH:
			break;
	}
	if (state == BEGIN_REPLAYED || state == BEGIN_MISMATCH)
	{
		/* somebody else's request is told when, but nothing of what */
		SET(BEGIN_COL_CREATED_AT, TimestampTzGetDatum(row->created_at));
		if (row->life == STORE_FINISHED)
			SET(BEGIN_COL_FINISHED_AT, TimestampTzGetDatum(row->finished_at));
		SET(BEGIN_COL_EXPIRES_AT, TimestampTzGetDatum(row->expires_at));
	}
#undef SET

	return row_datum(&desc, begin_columns, BEGIN_NCOLS, values, isnull);
}

/*
 * idem_begin(key text, ttl interval, scope text, request jsonb,
 *			  lease interval, wait interval) RETURNS record
 */
Datum
idem_begin(PG_FUNCTION_ARGS)
{
	ClaimRequest request;
	StoreRow row = {0};
	TimestampTz wait_until;
	BeginState state;
	int64 fence = NO_FENCE;

	refuse_in_parallel("idem_begin");
	get_request(fcinfo, &request);
	request.lease = arg_interval(fcinfo, 4);
	if (request.lease != NULL)
		(void) ttl_after(request.now, request.lease, "lease", &request.key);
	wait_until = claim_wait_until(&request, arg_interval(fcinfo, 5));

	state = claim_begin(&request, wait_until, &row, &fence);
	return begin_row(&request, state, &row, fence);
}

/* ------------------------------------------------------------------------
 * idem_finish, idem_release
 * ------------------------------------------------------------------------
 */

/* Finish this transaction's own claim: the one write of it. */
static void
finish_open(const IdemKey *key, PendingClaim *claim, bool has_result, Datum result)
{
	StoreWrite write = {.has_result = has_result, .result = result, .fence = NO_FENCE};

	write.fingerprint = claim->has_fingerprint ? claim->fingerprint : NULL;
	write.created_at = claim->begun_at;
	write.finished_at = GetCurrentTimestamp();
	write.expires_at = ttl_after(write.finished_at, &claim->ttl, "ttl", key);

	store_finish(key, &write, claim->seen, claim->fence);
	pending_finish(claim, write.expires_at);
	stats_count(STAT_FINISHED, 1);
}

/* What ran in between may have done with the claim what it liked. */
void
claim_finish(const ClaimRequest *request, bool has_result, Datum result)
{
	const IdemKey *key = &request->key;
	PendingClaim *mine = pending_find(key);

	if (XactReadOnly)
		error_read_only(key, "finish");
	if (mine == NULL || mine->state != PENDING_OPEN)
		lease_error_nothing_open(key, mine);
	if (mine->has_fingerprint != request->has_fingerprint ||
		(mine->has_fingerprint &&
		 memcmp(mine->fingerprint, request->fingerprint, FINGERPRINT_BYTES) != 0))
		error_no_claim(key);
	finish_open(key, mine, has_result, result);
}

/*
 * idem_finish(key text, result jsonb, scope text, fence bigint) RETURNS jsonb
 */
Datum
idem_finish(PG_FUNCTION_ARGS)
{
	IdemKey key;
	PendingClaim *mine;
	Datum result = (Datum) 0;
	bool has_result;

	refuse_in_parallel("idem_finish");
	key_make(&key, arg_text(fcinfo, 0), arg_text(fcinfo, 2), true);
	has_result = arg_stored_jsonb(fcinfo, 1, &key, "result", &result);
	mine = pending_find(&key);
	if (mine == NULL && PG_ARGISNULL(3))
		lease_error_nothing_open(&key, mine);
	if (XactReadOnly)
		error_read_only(&key, "finish");
	if (lease_meant(mine, !PG_ARGISNULL(3)))
		lease_finish(&key, arg_fence(fcinfo, 3), mine, has_result, result);
	else if (mine != NULL && mine->state == PENDING_OPEN)
		finish_open(&key, mine, has_result, result);
	else
		lease_error_nothing_open(&key, mine);

	if (!has_result)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}

/*
 * idem_release(key text, scope text, fence bigint) RETURNS boolean
 *
 * The lock stays: where a savepoint is rolled back, the claim is open again.
 */
Datum
idem_release(PG_FUNCTION_ARGS)
{
	IdemKey key;
	PendingClaim *mine;

	refuse_in_parallel("idem_release");
	key_make(&key, arg_text(fcinfo, 0), arg_text(fcinfo, 1), true);
	mine = pending_find(&key);
	if (lease_meant(mine, !PG_ARGISNULL(2)))
	{
		if (XactReadOnly)
			error_read_only(&key, "release");
		lease_release(&key, arg_fence(fcinfo, 2), mine);
		PG_RETURN_BOOL(true);
	}
	if (mine == NULL)
		lease_error_not_begun(&key);
	if (mine->state == PENDING_FINISHED)
	{
		lease_check_finished(&key, mine);
		PG_RETURN_BOOL(false);
	}

	if (pending_has_written(mine))
		ereport(
			WARNING,
			(errmsg("transaction has written since idempotency key \"%s\" was claimed",
					key_display(&key)),
			 errdetail(
				 "If it commits, what it has written stays, and a repeated request runs again."),
			 errhint("Roll back instead of releasing the claim.")));
	pending_release(mine);
	stats_count(STAT_RELEASED, 1);
	PG_RETURN_BOOL(true);
}

/* ------------------------------------------------------------------------
 * idem_claim, idem_claim_many
 * ------------------------------------------------------------------------
 */

static StoreWrite
make_write(const ClaimRequest *request)
{
	TimestampTz now = GetCurrentTimestamp();

	return (StoreWrite){
		.fingerprint = request_fingerprint(request),
		.created_at = now,
		.finished_at = now,
		.expires_at = ttl_after(now, &request->ttl, "ttl", &request->key),
		.fence = NO_FENCE,
	};
}

/* A row that claims are answered from must be seen, and of the same request. */
static void
check_same_request(const ClaimRequest *request, const StoreRow *row)
{
	if (row->unseen)
		error_serialization(&request->key);
	if (is_mismatch(request, row))
	{
		stats_count(STAT_MISMATCHED, 1);
		error_mismatch(&request->key);
	}
}

/*
 * "lock": a concurrent begin holds its key by the lock alone, so a single
 * claim takes it and waits for the outcome.  A batch takes none, as it would
 * fill the lock table; there the begin's finish finds the row (40001).
 */
static bool
try_claim(const ClaimRequest *request, bool lock, TimestampTz *expires_at)
{
	const IdemKey *key = &request->key;
	PendingClaim *mine = pending_find(key);
	StoreRow row;

	if (mine != NULL && mine->state == PENDING_OPEN)
		error_own_claim(key);

	if (XactReadOnly)
	{
		store_probe(key, &row);
		if (row.life != STORE_FINISHED)
			error_read_only(key, "claim");
		check_same_request(request, &row);
		return false;
	}

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (lock)
			lock_wait(key);
		store_probe(key, &row);

		if (row.life == STORE_LEASED)
			error_leased(key);
		if (is_own_lapsed(key, &row))
			error_own_claim(key);
		if (row.life == STORE_ABANDONED)
		{
			check_same_request(request, &row);
			if (!lock)
			{
				/* a leased row is changed under its lock only, by a batch as well */
				lock = true;
				continue;
			}
		}

		if (row.life == STORE_ABSENT || row.life == STORE_EXPIRED || row.life == STORE_ABANDONED)
		{
			StoreWrite write = make_write(request);

			if (store_claim(key, &write, &row, lock))
			{
				*expires_at = write.expires_at;

				/*
				 * From now on the row itself holds the key, so that a transaction may
				 * claim more keys than the lock table has room for.
				 */
				if (lock)
					lock_release(key);
				return true;
			}
		}

		/* held or finished, or it became so just now: not our lock to keep */
		if (lock)
			lock_release(key);
		if (row.life == STORE_FINISHED)
		{
			check_same_request(request, &row);
			return false;
		}
		if (row.life == STORE_HELD)
			(void) store_wait(key, &row, DT_NOEND);
	}
}

bool
claim_write(const ClaimRequest *request, bool lock, TimestampTz *expires_at)
{
	bool written = try_claim(request, lock, expires_at);

	if (!written)
		stats_count(STAT_DUPLICATES, 1);
	return written;
}

void
claim_stays(const ClaimRequest *request, TimestampTz expires_at)
{
	pending_written(&request->key, expires_at);
	stats_count(STAT_CLAIMED, 1);
}

bool
claim_once(const ClaimRequest *request, bool lock)
{
	TimestampTz expires_at;

	if (!claim_write(request, lock, &expires_at))
		return false;
	claim_stays(request, expires_at);
	return true;
}

bool
claim_taken(const ClaimRequest *request, bool *abandoned)
{
	const IdemKey *key = &request->key;
	PendingClaim *mine = pending_find(key);
	StoreRow row;

	if (mine != NULL && mine->state == PENDING_OPEN)
		error_own_claim(key);
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		store_probe(key, &row);
		if (row.life != STORE_HELD)
			break;
		(void) store_wait(key, &row, DT_NOEND);
	}
	if (row.life == STORE_LEASED)
		error_leased(key);
	*abandoned = row.life == STORE_ABANDONED;
	if (row.life != STORE_FINISHED)
		return false;
	check_same_request(request, &row);
	stats_count(STAT_DUPLICATES, 1);
	return true;
}

/*
 * idem_claim(key text, ttl interval, scope text, request jsonb) RETURNS boolean
 */
Datum
idem_claim(PG_FUNCTION_ARGS)
{
	ClaimRequest request;

	refuse_in_parallel("idem_claim");
	get_request(fcinfo, &request);
	PG_RETURN_BOOL(claim_once(&request, true));
}

typedef struct BatchKey
{
	IdemKey key;
	int position; /* in the caller's array */
	bool claimed;
} BatchKey;

static int
by_digest(const void *a, const void *b)
{
	const BatchKey *x = a;
	const BatchKey *y = b;
	int c = key_cmp(&x->key, &y->key);

	if (c != 0)
		return c;
	return x->position < y->position ? -1 : 1;
}

static int
by_position(const void *a, const void *b)
{
	const BatchKey *x = a;
	const BatchKey *y = b;

	return x->position < y->position ? -1 : 1;
}

#define error_element(number_, errcode_, what_) \
	ereport(ERROR, \
			(errcode(errcode_), \
			 errmsg("element %d of the idempotency keys must not be %s", (number_), (what_)), \
			 errhint("Pass only what can be a key: ARRAY(SELECT id FROM ... WHERE id <> '').")))

/*
 * So that the one bad element of a batch is found.  Only where the length may be wrong, in
 * UTF-8 as well: key_make() checks it in any case.
 */
static void
check_element(text *element, int number)
{
	int len = VARSIZE_ANY_EXHDR(element);

	if (len == 0)
		error_element(number, ERRCODE_INVALID_PARAMETER_VALUE, "empty");
	if (len > KEY_MAX_BYTES / MAX_CONVERSION_GROWTH)
		(void) key_utf8(psprintf("element %d of the idempotency keys", number), element, 1, &len);
}

/* All keys of the array, checked before any is claimed. */
static BatchKey *
get_batch(ArrayType *array, text *scope, int *nkeys)
{
	BatchKey *batch;
	Datum *elems;
	bool *isnull;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("idempotency keys must be a one-dimensional array"),
				 errdetail("The array has %d dimensions.", ARR_NDIM(array))));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elems, &isnull, nkeys);

	batch = MemoryContextAllocHuge(CurrentMemoryContext, Max(*nkeys, 1) * sizeof(BatchKey));
	for (int i = 0; i < *nkeys; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (isnull[i])
			error_element(i + 1, ERRCODE_NULL_VALUE_NOT_ALLOWED, "null");
		check_element(DatumGetTextPP(elems[i]), i + 1);
		key_make(&batch[i].key, DatumGetTextPP(elems[i]), scope, true);
		batch[i].position = i;
		batch[i].claimed = false;
	}
	return batch;
}

/*
 * idem_claim_many(keys text[], ttl interval, scope text) RETURNS TABLE (key text)
 *
 * Claims in digest order, so that two batches cannot deadlock, each key once;
 * answers in the order given.
 */
Datum
idem_claim_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ClaimRequest request = {0};
	text *scope = arg_text(fcinfo, 2);
	BatchKey *batch;
	int nkeys;
	MemoryContext per_key;

	refuse_in_parallel("idem_claim_many");
	/* one column is not a row type to the server */
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (PG_ARGISNULL(0))
		error_null("array of idempotency keys");
	claim_request_ttl(&request, arg_interval(fcinfo, 1));
	batch = get_batch(PG_GETARG_ARRAYTYPE_P(0), scope ? scope : cstring_to_text(""), &nkeys);
	(void) ttl_after(request.now, &request.ttl, "ttl", nkeys > 0 ? &batch[0].key : NULL);

	/* a probe and an insertion leave a few kilobytes behind */
	per_key =
		AllocSetContextCreate(CurrentMemoryContext, "idem_claim_many", ALLOCSET_DEFAULT_SIZES);

	qsort(batch, nkeys, sizeof(BatchKey), by_digest);
	for (int i = 0; i < nkeys; i++)
	{
		MemoryContext old;

		if (i > 0 && key_cmp(&batch[i].key, &batch[i - 1].key) == 0)
			continue;
		old = MemoryContextSwitchTo(per_key);
		request.key = batch[i].key;
		batch[i].claimed = claim_once(&request, false);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_key);
	}

	qsort(batch, nkeys, sizeof(BatchKey), by_position);
	for (int i = 0; i < nkeys; i++)
	{
		Datum value = PointerGetDatum(batch[i].key.key);
		bool isnull = false;

		if (batch[i].claimed)
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
	}
	return (Datum) 0;
}

/* ------------------------------------------------------------------------
 * idem_lookup, idem_forget, idem_forget_scope
 * ------------------------------------------------------------------------
 */

static const char *
lookup_state(StoreLife life)
{
	switch (life)
	{
		case STORE_LEASED:
			return "in_progress";
		case STORE_ABANDONED:
			return "abandoned";
		default:
			return "finished";
	}
}

/*
 * idem_lookup(key text, scope text) RETURNS TABLE (state, result, attempt,
 *			   phase, progress, lease_until, created_at, finished_at, expires_at)
 */
Datum
idem_lookup(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	IdemKey key;
	StoreRow row;

	InitMaterializedSRF(fcinfo, 0);
	key_make(&key, arg_text(fcinfo, 0), arg_text(fcinfo, 1), false);
	if (store_lookup(&key, &row))
	{
		Datum values[] = {CStringGetTextDatum(lookup_state(row.life)),
						  row.result,
						  Int32GetDatum(row.attempt),
						  PointerGetDatum(row.phase),
						  row.progress,
						  TimestampTzGetDatum(row.lease_until),
						  TimestampTzGetDatum(row.created_at),
						  TimestampTzGetDatum(row.finished_at),
						  TimestampTzGetDatum(row.expires_at)};
		bool isnull[] = {false,
						 !row.has_result,
						 false,
						 row.phase == NULL,
						 !row.has_progress,
						 row.lease_until == 0,
						 false,
						 row.finished_at == 0,
						 false};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	}
	return (Datum) 0;
}

/*
 * idem_forget(key text, scope text) RETURNS boolean
 *
 * Waits for a concurrent claim of the key, so that what it erases is all.
 */
Datum
idem_forget(PG_FUNCTION_ARGS)
{
	IdemKey key;
	StoreRow row;
	bool erased;

	refuse_in_parallel("idem_forget");
	key_make(&key, arg_text(fcinfo, 0), arg_text(fcinfo, 1), false);
	if (XactReadOnly)
		error_read_only(&key, "forget");
	for (;;)
	{
		lock_wait(&key);
		erased = store_forget(&key, &row);
		if (row.life != STORE_HELD)
			PG_RETURN_BOOL(erased);

		/* the holder may ask for the key once more, and would wait for our lock */
		lock_release(&key);
		(void) store_wait(&key, &row, DT_NOEND);
	}
}

/*
 * idem_forget_scope(scope text) RETURNS bigint
 */
Datum
idem_forget_scope(PG_FUNCTION_ARGS)
{
	refuse_in_parallel("idem_forget_scope");
	if (PG_ARGISNULL(0))
		error_null("idempotency scope");
	PreventCommandIfReadOnly("idem_forget_scope()");
	PG_RETURN_INT64(store_forget_scope(PG_GETARG_TEXT_PP(0)));
}
