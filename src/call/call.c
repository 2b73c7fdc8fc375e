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
#include "base/subtransaction.h"
#include "call/find_function.h"
#include "call/kept_errors.h"
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
	CALL_COL_FAILED, /* since 0.2.0 */
	CALL_NCOLS
};

/* what idem_call of 0.1.0 has, which the library still serves */
#define CALL_NARGS_0_1 6
#define CALL_NCOLS_0_1 CALL_COL_FAILED

static const RowColumn call_columns[CALL_NCOLS] = {
	[CALL_COL_STATE] = {"state", TEXTOID},
	[CALL_COL_RESULT] = {"result", JSONBOID},
	[CALL_COL_RETRY_AFTER] = {"retry_after", FLOAT8OID},
	[CALL_COL_FAILED] = {"failed", BOOLOID},
};

/* The columns of the row that is returned. */
typedef struct CallAnswer
{
	const char *state;
	bool has_result;
	Datum result;
	bool has_retry_after;
	double retry_after;
	bool has_failed;
	bool failed;
} CallAnswer;

static void
call_context(void *arg)
{
	RunContext *context = arg;

	errcontext("call of function \"%s\" under idempotency key \"%s\"",
			   key_text_display(context->function), key_display(context->key));
}

static Datum
call_row(const CallAnswer *answer, int ncolumns)
{
	static TupleDesc desc = NULL;
	static TupleDesc old_desc = NULL;
	Datum values[CALL_NCOLS];
	bool isnull[CALL_NCOLS] = {false, !answer->has_result, !answer->has_retry_after,
							   !answer->has_failed};

	values[CALL_COL_STATE] = CStringGetTextDatum(answer->state);
	values[CALL_COL_RESULT] = answer->result;
	values[CALL_COL_RETRY_AFTER] = Float8GetDatum(answer->retry_after);
	values[CALL_COL_FAILED] = BoolGetDatum(answer->failed);
	if (ncolumns == CALL_NCOLS_0_1)
		return row_datum(&old_desc, call_columns, CALL_NCOLS_0_1, values, isnull);
	return row_datum(&desc, call_columns, CALL_NCOLS, values, isnull);
}

/*
 * Run the function.  An error that is to be kept undoes what the function has done and becomes
 * the answer.
 */
static void
run(Function *function, Jsonb *args, const KeptErrors *kept, ClaimAnswer *answer)
{
	Subtransaction sub;
	/* that it can no longer be called is no error of the function, so never an answer */
	Callee *callee = function_callee(function, args);

	if (kept == NULL)
	{
		answer->has_result = function_run(callee, args, &answer->result);
		return;
	}

	subtransaction_begin(&sub);
	PG_TRY();
	{
		answer->has_result = function_run(callee, args, &answer->result);
		subtransaction_commit(&sub);
	}
	PG_CATCH();
	{
		ErrorData *edata = subtransaction_catch(&sub);

		if (!error_is_kept(kept, edata->sqlerrcode))
			ReThrowError(edata);
		*answer = (ClaimAnswer){.failed = true, .has_result = true, .result = error_jsonb(edata)};
		FreeErrorData(edata);
	}
	PG_END_TRY();
}

/*
 * After BEGIN_STARTED: run the function and write the row.  An error that is not kept also
 * ends the claim.
 */
static void
run_and_finish(const ClaimRequest *request, Function *function, Jsonb *args, const KeptErrors *kept,
			   CallAnswer *out)
{
	ClaimAnswer answer = {0};

	run(function, args, kept, &answer);
	if (answer.has_result)
		check_stored_jsonb(answer.result, &request->key, answer.failed ? "error" : "result");
	claim_finish(request, &answer);
	*out = (CallAnswer){
		.state = "finished",
		.has_result = answer.has_result,
		.result = answer.result,
		.has_failed = true,
		.failed = answer.failed,
	};
}

/* The answer of a begin that has not started anything. */
static void
answer_begin(BeginState state, const StoreRow *row, CallAnswer *out)
{
	*out = (CallAnswer){.state = claim_begin_states[state]};
	if (state == BEGIN_REPLAYED)
	{
		out->has_result = row->has_result;
		out->result = row->result;
		out->has_failed = true;
		out->failed = row->failed;
	}
	else if (state == BEGIN_IN_PROGRESS)
	{
		out->has_retry_after = true;
		out->retry_after = claim_retry_after(row);
	}
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
 * identities.  Waits for a result that is still uncommitted.  False if there is none.
 */
static bool
replay_dropped(ClaimRequest *request, TimestampTz wait_until, text *function, List *identities,
			   Jsonb *args, CallAnswer *out)
{
	StoreRow row = {0};
	int64 fence;
	BeginState state;
	bool held;

	if (identities == NIL)
		return false;
	store_probe(&request->key, &row);
	held = row.state == STORE_HELD;
	if (held && store_wait(&request->key, &row.holder, wait_until))
		store_probe(&request->key, &row);
	if (row.state == STORE_ABSENT || row.state == STORE_EXPIRED || row.state == STORE_ABANDONED)
		return false;

	dropped_fingerprint(request, identities, args, &row);
	state = claim_begin(request, wait_until, &row, &fence);
	if (held && state == BEGIN_MISMATCH)
	{
		/* the fingerprint of the held row was unknown before, so compare again */
		store_probe(&request->key, &row);
		dropped_fingerprint(request, identities, args, &row);
		state = claim_begin(request, wait_until, &row, &fence);
	}
	if (state == BEGIN_STARTED)
	{
		/* the row has gone since we looked; the error ends the claim */
		(void) function_find(function, args);
		error_serialization(&request->key);
	}
	/* it may be a wrong name: "does not exist" helps the caller more than "mismatch" */
	if (state == BEGIN_MISMATCH)
		return false;
	answer_begin(state, &row, out);
	return true;
}

/*
 * idem_call(key text, function text, args jsonb, ttl interval, scope text,
 *			 wait interval, keep_errors text[]) RETURNS record
 */
Datum
idem_call(PG_FUNCTION_ARGS)
{
	ClaimRequest request;
	RunContext context = {.key = &request.key};
	Jsonb *args = PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2);
	TimestampTz wait_until;
	Function *function;
	StoreRow row = {0};
	int64 fence;
	CallAnswer answer = {0};
	const KeptErrors *kept = NULL;

	refuse_in_parallel("idem_call");
	claim_request(&request, arg_text(fcinfo, 0), arg_text(fcinfo, 4), arg_interval(fcinfo, 3));
	wait_until = claim_wait_until(&request, arg_interval(fcinfo, 5));
	if (PG_NARGS() > CALL_NARGS_0_1 && !PG_ARGISNULL(6))
		kept = kept_errors(PG_GETARG_ARRAYTYPE_P(6));
	/* before ALTER EXTENSION ... UPDATE, as 0.1.0 did */
	request.strict = PG_NARGS() > CALL_NARGS_0_1;
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
		if (!replay_dropped(&request, wait_until, context.function, identities, args, &answer))
			function = function_find(context.function, args);
	}
	if (function != NULL)
	{
		BeginState state;

		fingerprint_call(function_identity(function), args, request.fingerprint);
		request.has_fingerprint = true;
		state = claim_begin(&request, wait_until, &row, &fence);
		if (state == BEGIN_STARTED)
			run_and_finish(&request, function, args, kept, &answer);
		else
			answer_begin(state, &row, &answer);
	}

	error_context_stack = context.callback.previous;
	return call_row(&answer, row_ncolumns(fcinfo, CALL_NARGS_0_1, CALL_NCOLS_0_1, CALL_NCOLS));
}
