/*-------------------------------------------------------------------------
 *
 * claim_sql.c
 *	  idem_begin, idem_finish, idem_fail, idem_release, idem_claim and idem_check.
 *
 * The functions are not STRICT, because a NULL in an optional argument means "not given".
 * They check for NULL themselves.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "base/args.h"
#include "base/errors.h"
#include "base/fingerprint.h"
#include "base/interval.h"
#include "base/key.h"
#include "base/result_row.h"
#include "claim/claim.h"
#include "claim/lease.h"
#include "claim/pending.h"
#include "stat/stats.h"
#include "store/store.h"

PG_FUNCTION_INFO_V1(idem_begin);
PG_FUNCTION_INFO_V1(idem_finish);
PG_FUNCTION_INFO_V1(idem_fail);
PG_FUNCTION_INFO_V1(idem_release);
PG_FUNCTION_INFO_V1(idem_claim);
PG_FUNCTION_INFO_V1(idem_check);

/* key, ttl, scope, request: as idem_begin and idem_claim take them */
static void
get_request(FunctionCallInfo fcinfo, ClaimRequest *request)
{
	claim_request(request, arg_text(fcinfo, 0), arg_text(fcinfo, 2), arg_interval(fcinfo, 1));
	request->has_fingerprint = !PG_ARGISNULL(3);
	if (request->has_fingerprint)
		fingerprint_jsonb(PG_GETARG_JSONB_P(3), request->fingerprint);
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
	BEGIN_COL_FAILED, /* since 0.2.0 */
	BEGIN_NCOLS
};

/* what idem_begin of 0.1.0 has, which the library still serves */
#define BEGIN_NARGS_0_1 6
#define BEGIN_NCOLS_0_1 BEGIN_COL_FAILED

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
	[BEGIN_COL_FAILED] = {"failed", BOOLOID},
};

/* Nearly all answers: a transaction claim of a key that had no row to take over. */
static Datum
started_row(TimestampTz created_at, int ncolumns)
{
	static HeapTupleHeader new_row = NULL;
	static HeapTupleHeader old_row = NULL;
	HeapTupleHeader *row = ncolumns == BEGIN_NCOLS ? &new_row : &old_row;

	if (*row == NULL)
	{
		Datum values[BEGIN_NCOLS] = {
			[BEGIN_COL_STATE] = CStringGetTextDatum(claim_begin_states[BEGIN_STARTED]),
			[BEGIN_COL_ATTEMPT] = Int32GetDatum(1),
			[BEGIN_COL_CREATED_AT] = TimestampTzGetDatum(0),
		};
		bool isnull[BEGIN_NCOLS];

		memset(isnull, true, sizeof(isnull));
		isnull[BEGIN_COL_STATE] = isnull[BEGIN_COL_ATTEMPT] = isnull[BEGIN_COL_CREATED_AT] = false;
		*row = row_time_template(begin_columns, ncolumns, values, isnull);
	}
	return row_with_time(*row, created_at);
}

static Datum
begin_row(const ClaimRequest *request, BeginState state, const StoreRow *row, int64 fence,
		  int ncolumns)
{
	static TupleDesc desc = NULL;
	static TupleDesc old_desc = NULL;
	Datum values[BEGIN_NCOLS] = {0};
	bool isnull[BEGIN_NCOLS];
	bool abandoned = row->state == STORE_ABANDONED;

	if (state == BEGIN_STARTED && fence == NO_FENCE && !abandoned)
		return started_row(request->now, ncolumns);

#define SET(col, datum) (values[col] = (datum), isnull[col] = false)
	memset(isnull, true, sizeof(isnull));
	SET(BEGIN_COL_STATE, CStringGetTextDatum(claim_begin_states[state]));
	switch (state)
	{
		case BEGIN_STARTED:
			if (fence != NO_FENCE)
				SET(BEGIN_COL_FENCE, Int64GetDatum(fence));
			SET(BEGIN_COL_ATTEMPT, Int32GetDatum(abandoned ? row->attempt + 1 : 1));
			SET(BEGIN_COL_CREATED_AT,
				TimestampTzGetDatum(abandoned ? row->created_at : request->now));
			break;
		case BEGIN_IN_PROGRESS:
			SET(BEGIN_COL_RETRY_AFTER, Float8GetDatum(claim_retry_after(row)));
			break;
		case BEGIN_REPLAYED:
			if (row->has_result)
				SET(BEGIN_COL_RESULT, row->result);
			SET(BEGIN_COL_ATTEMPT, Int32GetDatum(row->attempt));
			SET(BEGIN_COL_FAILED, BoolGetDatum(row->failed));
			break;
		case BEGIN_EXHAUSTED:
			SET(BEGIN_COL_ATTEMPT, Int32GetDatum(row->attempt));
			break;
		case BEGIN_MISMATCH:
			break;
	}
	if (abandoned && (state == BEGIN_STARTED || state == BEGIN_EXHAUSTED))
	{
		/* its recovery point */
		if (row->phase != NULL)
			SET(BEGIN_COL_PHASE, PointerGetDatum(row->phase));
		if (row->has_progress)
			SET(BEGIN_COL_PROGRESS, row->progress);
	}
	if (state == BEGIN_REPLAYED || state == BEGIN_MISMATCH || state == BEGIN_EXHAUSTED)
	{
		/* a mismatch reports the times of the stored request, but not its result */
		SET(BEGIN_COL_CREATED_AT, TimestampTzGetDatum(row->created_at));
		if (row->state == STORE_FINISHED)
			SET(BEGIN_COL_FINISHED_AT, TimestampTzGetDatum(row->finished_at));
		SET(BEGIN_COL_EXPIRES_AT, TimestampTzGetDatum(row->expires_at));
	}
#undef SET

	if (ncolumns == BEGIN_NCOLS_0_1)
		return row_datum(&old_desc, begin_columns, BEGIN_NCOLS_0_1, values, isnull);
	return row_datum(&desc, begin_columns, BEGIN_NCOLS, values, isnull);
}

/*
 * idem_begin(key text, ttl interval, scope text, request jsonb,
 *			  lease interval, wait interval, max_attempts integer) RETURNS record
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
	if (PG_NARGS() > BEGIN_NARGS_0_1 && !PG_ARGISNULL(6))
	{
		request.max_attempts = PG_GETARG_INT32(6);
		if (request.max_attempts < 1)
			error_range("max_attempts", 1, PG_INT32_MAX);
	}

	state = claim_begin(&request, wait_until, &row, &fence);
	return begin_row(&request, state, &row, fence,
					 row_ncolumns(fcinfo, BEGIN_NARGS_0_1, BEGIN_NCOLS_0_1, BEGIN_NCOLS));
}

/* What idem_finish and idem_fail return: what they have stored. */
static Datum
finish(FunctionCallInfo fcinfo, const IdemKey *key, int64 fence, const ClaimAnswer *answer)
{
	claim_finish_any(key, fence, answer);
	if (!answer->has_result)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(answer->result);
}

/*
 * idem_finish(key text, result jsonb, scope text, fence bigint) RETURNS jsonb
 */
Datum
idem_finish(PG_FUNCTION_ARGS)
{
	IdemKey key;
	ClaimAnswer answer = {0};

	refuse_in_parallel("idem_finish");
	key_make(&key, arg_text(fcinfo, 0), arg_text(fcinfo, 2), true);
	answer.has_result = arg_stored_jsonb(fcinfo, 1, &key, "result", &answer.result);
	return finish(fcinfo, &key, arg_fence(fcinfo, 3), &answer);
}

/*
 * idem_fail(key text, error jsonb, scope text, fence bigint, ttl interval) RETURNS jsonb
 */
Datum
idem_fail(PG_FUNCTION_ARGS)
{
	IdemKey key;
	ClaimAnswer answer = {.failed = true, .ttl = arg_interval(fcinfo, 4)};

	refuse_in_parallel("idem_fail");
	key_make(&key, arg_text(fcinfo, 0), arg_text(fcinfo, 2), true);
	answer.has_result = arg_stored_jsonb(fcinfo, 1, &key, "error", &answer.result);
	if (answer.ttl != NULL)
		(void) ttl_after(GetCurrentTimestamp(), answer.ttl, "ttl", &key);
	return finish(fcinfo, &key, arg_fence(fcinfo, 3), &answer);
}

/*
 * idem_release(key text, scope text, fence bigint) RETURNS boolean
 *
 * The key's lock stays held, because rolling back to a savepoint reopens the claim.
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

/*
 * idem_check() RETURNS void
 *
 * For tests that roll back, and so never reach the commit guard.
 */
Datum
idem_check(PG_FUNCTION_ARGS)
{
	refuse_in_parallel("idem_check");
	pending_check();
	PG_RETURN_VOID();
}
