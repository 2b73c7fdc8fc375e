/*-------------------------------------------------------------------------
 *
 * call.c
 *	  idem_call(): run a function once, in one round trip.
 *
 * It begins, runs the function and finishes.  It looks up the function and checks the names
 * of its arguments before the begin.  So a bad call raises its error whatever the key's
 * state, and no caller gets the result of a function that it may not execute.
 *
 * Stored results can still be replayed after the function was dropped, or its parameters
 * were renamed.  The stored fingerprint then shows whether the caller means that function:
 * it must be the fingerprint of a call, with these arguments, of a function with that name
 * in a schema that the look-up would have searched.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "base/args.h"
#include "base/errors.h"
#include "base/fingerprint.h"
#include "base/result_row.h"
#include "call/find_function.h"
#include "call/run_function.h"
#include "claim/claim.h"

PG_FUNCTION_INFO_V1(idem_call);

typedef struct RunContext
{
	ErrorContextCallback callback;
	const IdemKey *key;
	text *function;
} RunContext;

/* Columns of the row, in the order of the install script. */
enum
{
	CALL_COL_STATE,
	CALL_COL_RESULT,
	CALL_COL_RETRY_AFTER,
	CALL_NCOLS
};

static const RowColumn call_columns[CALL_NCOLS] = {
	[CALL_COL_STATE] = {"state", TEXTOID},
	[CALL_COL_RESULT] = {"result", JSONBOID},
	[CALL_COL_RETRY_AFTER] = {"retry_after", FLOAT8OID},
};

static void
call_context(void *arg)
{
	RunContext *context = arg;

	errcontext("call of function \"%s\" under idempotency key \"%s\"",
			   key_text_display(context->function), key_display(context->key));
}

static Datum
call_row(const char *state, bool has_result, Datum result, double *retry_after)
{
	static TupleDesc desc = NULL;
	Datum values[CALL_NCOLS] = {0};
	bool isnull[CALL_NCOLS] = {false, !has_result, retry_after == NULL};

	values[CALL_COL_STATE] = CStringGetTextDatum(state);
	values[CALL_COL_RESULT] = result;
	if (retry_after != NULL)
		values[CALL_COL_RETRY_AFTER] = Float8GetDatum(*retry_after);
	return row_datum(&desc, call_columns, CALL_NCOLS, values, isnull);
}

/*
 * After BEGIN_STARTED: run the function and write the row.  An error also ends the claim.
 */
static Datum
run_and_finish(const ClaimRequest *request, Function *function, Jsonb *args)
{
	Datum result = (Datum) 0;
	bool has_result = function_run(function, args, &result);

	if (has_result)
		check_stored_jsonb(result, &request->key, "result");
	claim_finish(request, has_result, result);
	return call_row("finished", has_result, result, NULL);
}

static Datum
decide_and_run(const ClaimRequest *request, TimestampTz wait_until, Function *function, Jsonb *args)
{
	StoreRow row = {0};
	int64 fence;
	BeginState state = claim_begin(request, wait_until, &row, &fence);
	double retry_after;

	switch (state)
	{
		case BEGIN_STARTED:
			return run_and_finish(request, function, args);
		case BEGIN_REPLAYED:
			return call_row(claim_begin_states[state], row.has_result, row.result, NULL);
		case BEGIN_IN_PROGRESS:
			retry_after = claim_retry_after(&row);
			return call_row(claim_begin_states[state], false, (Datum) 0, &retry_after);
		case BEGIN_MISMATCH:
			break;
	}
	return call_row(claim_begin_states[state], false, (Datum) 0, NULL);
}

/*
 * Set the fingerprint of a call of a function that does not exist: the stored one if it
 * could be the caller's, else any that differs from it.
 */
static void
dropped_fingerprint(ClaimRequest *request, List *identities, Jsonb *args, const StoreRow *row)
{
	ListCell *lc;

	foreach(lc, identities)
	{
		fingerprint_call(lfirst(lc), args, request->fingerprint);
		if (row->has_fingerprint &&
			memcmp(request->fingerprint, row->fingerprint, FINGERPRINT_BYTES) == 0)
			break;
	}
	request->has_fingerprint = true;
}

/*
 * Replay the result of a function that can no longer be called and has one of these
 * identities.  Waits for a result that is still uncommitted.  NULL if there is none.
 */
static Datum
replay_dropped(ClaimRequest *request, TimestampTz wait_until, text *function, List *identities,
			   Jsonb *args)
{
	StoreRow row = {0};
	int64 fence;
	BeginState state;
	bool held;
	double retry_after;

	if (identities == NIL)
		return (Datum) 0;
	store_probe(&request->key, &row);
	held = row.state == STORE_HELD;
	if (held && store_wait(&request->key, &row.holder, wait_until))
		store_probe(&request->key, &row);
	if (row.state == STORE_ABSENT || row.state == STORE_EXPIRED || row.state == STORE_ABANDONED)
		return (Datum) 0;

	dropped_fingerprint(request, identities, args, &row);
	state = claim_begin(request, wait_until, &row, &fence);
	if (held && state == BEGIN_MISMATCH)
	{
		/* the fingerprint of the held row was unknown before, so compare again */
		store_probe(&request->key, &row);
		dropped_fingerprint(request, identities, args, &row);
		state = claim_begin(request, wait_until, &row, &fence);
	}
	switch (state)
	{
		case BEGIN_STARTED:
			/* the row has gone since we looked; the error ends the claim */
			(void) function_find(function, args);
			error_serialization(&request->key);
			break;
		case BEGIN_IN_PROGRESS:
			retry_after = claim_retry_after(&row);
			return call_row(claim_begin_states[state], false, (Datum) 0, &retry_after);
		case BEGIN_REPLAYED:
			return call_row(claim_begin_states[state], row.has_result, row.result, NULL);
		case BEGIN_MISMATCH:
			/* it may be a wrong name: "does not exist" helps the caller more than "mismatch" */
			break;
	}
	return (Datum) 0;
}

/*
 * idem_call(key text, function text, args jsonb, ttl interval, scope text,
 *			 wait interval) RETURNS record
 */
Datum
idem_call(PG_FUNCTION_ARGS)
{
	ClaimRequest request;
	RunContext context = {.key = &request.key};
	Jsonb *args = PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2);
	TimestampTz wait_until;
	Function *function;
	Datum row = (Datum) 0;

	refuse_in_parallel("idem_call");
	claim_request(&request, arg_text(fcinfo, 0), arg_text(fcinfo, 4), arg_interval(fcinfo, 3));
	wait_until = claim_wait_until(&request, arg_interval(fcinfo, 5));
	context.function = arg_text(fcinfo, 1);
	if (context.function == NULL)
		error_null("function");

	context.callback.callback = call_context;
	context.callback.arg = &context;
	context.callback.previous = error_context_stack;
	error_context_stack = &context.callback;

	function = function_find_if_any(context.function, args);
	if (function == NULL || !function_takes(function, args))
	{
		List *identities = function == NULL ? function_identities(context.function)
											: list_make1(function_identity(function));

		function = NULL;
		row = replay_dropped(&request, wait_until, context.function, identities, args);
		if (row == (Datum) 0)
			function = function_find(context.function, args);
	}
	if (function != NULL)
	{
		fingerprint_call(function_identity(function), args, request.fingerprint);
		request.has_fingerprint = true;
		row = decide_and_run(&request, wait_until, function, args);
	}

	error_context_stack = context.callback.previous;
	return row;
}
