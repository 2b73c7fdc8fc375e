/*-------------------------------------------------------------------------
 *
 * http.c
 *	  idem_http_begin and idem_http_finish.
 *
 * They take and return only text, integers and booleans, which no driver needs a cast for.
 * What a client can do wrong is an answer, with a status for the client.  What the program can
 * do wrong is an error, and is found whatever the client has sent.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/args.h"
#include "base/errors.h"
#include "base/fingerprint.h"
#include "base/key.h"
#include "base/result_row.h"
#include "claim/claim.h"
#include "claim/http_answer.h"
#include "claim/http_headers.h"
#include "claim/http_key.h"
#include "claim/lease.h"
#include "store/store.h"

PG_FUNCTION_INFO_V1(idem_http_begin);
PG_FUNCTION_INFO_V1(idem_http_finish);

/* Columns of the row, in the order of the install script. */
enum
{
	HTTP_COL_RUN,
	HTTP_COL_STATUS,
	HTTP_COL_HEADERS,
	HTTP_COL_BODY,
	HTTP_COL_RETRY_AFTER,
	HTTP_COL_REPLAYED,
	HTTP_COL_FENCE,
	HTTP_NCOLS
};

static const RowColumn http_columns[HTTP_NCOLS] = {
	[HTTP_COL_RUN] = {"run", BOOLOID},
	[HTTP_COL_STATUS] = {"status", INT4OID},
	[HTTP_COL_HEADERS] = {"headers", TEXTOID},
	[HTTP_COL_BODY] = {"body", TEXTOID},
	[HTTP_COL_RETRY_AFTER] = {"retry_after", INT4OID},
	[HTTP_COL_REPLAYED] = {"replayed", BOOLOID},
	[HTTP_COL_FENCE] = {"fence", INT8OID},
};

static Datum
http_row(const HttpAnswer *answer)
{
	static TupleDesc desc = NULL;
	Datum values[HTTP_NCOLS];
	bool isnull[HTTP_NCOLS] = {0};

	values[HTTP_COL_RUN] = BoolGetDatum(answer->run);
	values[HTTP_COL_STATUS] = Int32GetDatum(answer->status);
	isnull[HTTP_COL_STATUS] = answer->status == 0;
	values[HTTP_COL_HEADERS] = PointerGetDatum(answer->headers);
	isnull[HTTP_COL_HEADERS] = answer->headers == NULL;
	values[HTTP_COL_BODY] = PointerGetDatum(answer->body);
	isnull[HTTP_COL_BODY] = answer->body == NULL;
	values[HTTP_COL_RETRY_AFTER] = Int32GetDatum(answer->retry_after);
	isnull[HTTP_COL_RETRY_AFTER] = answer->retry_after == 0;
	values[HTTP_COL_REPLAYED] = BoolGetDatum(answer->replayed);
	values[HTTP_COL_FENCE] = Int64GetDatum(answer->fence);
	isnull[HTTP_COL_FENCE] = answer->fence == NO_FENCE;
	return row_datum(&desc, http_columns, HTTP_NCOLS, values, isnull);
}

/* An integer argument as an interval; NULL if it is not given.  22023 if it is below "min". */
static const Interval *
arg_duration(FunctionCallInfo fcinfo, int n, const char *name, int min, int64 unit, Interval *out)
{
	if (PG_ARGISNULL(n))
		return NULL;
	if (PG_GETARG_INT32(n) < min)
		error_range(name, min, PG_INT32_MAX);
	memset(out, 0, sizeof(*out));
	out->time = PG_GETARG_INT32(n) * unit;
	return out;
}

/* Without a key, the checks that claim_request() would make of the scope. */
static void
check_scope(text *key, text *scope)
{
	int len;

	scope = key_scope(scope);
	key_require_scope("idempotency key", key != NULL ? key : cstring_to_text(""), scope);
	(void) key_utf8("idempotency scope", scope, 0, &len);
}

static HttpAnswer
begin_answer(BeginState state, const StoreRow *row, int64 fence)
{
	switch (state)
	{
		case BEGIN_STARTED:
			return (HttpAnswer){.run = true, .fence = fence};
		case BEGIN_REPLAYED:
			return http_stored(row);
		case BEGIN_IN_PROGRESS:
			return http_in_progress(claim_retry_after(row));
		case BEGIN_MISMATCH:
			return http_mismatch();
		case BEGIN_EXHAUSTED: /* only with max_attempts */
			break;
	}
	elog(ERROR, "unexpected state of a claim: %s", claim_begin_states[state]);
}

/*
 * idem_http_begin(key text, request text, scope text, ttl_s integer, wait_ms integer,
 *				   lease_ms integer) RETURNS record
 */
Datum
idem_http_begin(PG_FUNCTION_ARGS)
{
	Interval ttl_space, wait_space, lease_space;
	const Interval *ttl, *wait, *lease;
	text *key;
	HttpKeyState key_state;
	ClaimRequest request;
	StoreRow row = {0};
	int64 fence = NO_FENCE;
	BeginState state;
	HttpAnswer answer;

	refuse_in_parallel("idem_http_begin");
	ttl = arg_duration(fcinfo, 3, "ttl_s", 1, USECS_PER_SEC, &ttl_space);
	wait = arg_duration(fcinfo, 4, "wait_ms", 0, USECS_PER_SEC / 1000, &wait_space);
	lease = arg_duration(fcinfo, 5, "lease_ms", 1, USECS_PER_SEC / 1000, &lease_space);

	key_state = http_key(arg_text(fcinfo, 0), &key);
	if (key_state != HTTP_KEY_VALID)
	{
		check_scope(arg_text(fcinfo, 0), arg_text(fcinfo, 2));
		answer = http_bad_key(key_state);
		return http_row(&answer);
	}

	claim_request(&request, key, arg_text(fcinfo, 2), ttl);
	request.lease = lease;
	if (!PG_ARGISNULL(1))
	{
		fingerprint_text(PG_GETARG_TEXT_PP(1), request.fingerprint);
		request.has_fingerprint = true;
		request.strict = true;
	}
	state = claim_begin(&request, claim_wait_until(&request, wait), &row, &fence);
	answer = begin_answer(state, &row, fence);
	return http_row(&answer);
}

static void
check_status(int status, const IdemKey *key)
{
	HttpStatusUse use = http_status_use(status);

	if (use == HTTP_STATUS_TRY_AGAIN)
		error_http_try_again(key, status);
	if (use == HTTP_STATUS_NOT_FINAL)
		error_http_status(key, status);
}

/* The same limit as for other results; a body that exceeds it alone is not even copied. */
static Datum
stored_result(const IdemKey *key, int status, text *headers, text *body)
{
	Datum result;

	if (body != NULL && VARSIZE_ANY_EXHDR(body) > (Size) idem_max_result_size)
		error_too_large(key, "body", VARSIZE_ANY_EXHDR(body), idem_max_result_size);
	result = http_result(status, headers == NULL ? NULL : http_headers_kept(headers), body);
	check_stored_jsonb(result, key, "answer");
	return result;
}

/*
 * idem_http_finish(key text, status integer, body text, headers text, scope text,
 *					fence bigint) RETURNS integer
 */
Datum
idem_http_finish(PG_FUNCTION_ARGS)
{
	text *key_text;
	IdemKey key;
	ClaimAnswer answer = {.has_result = true};
	int status;

	refuse_in_parallel("idem_http_finish");
	if (http_key(arg_text(fcinfo, 0), &key_text) == HTTP_KEY_MALFORMED)
		error_http_key(arg_text(fcinfo, 0));
	key_make(&key, key_text, arg_text(fcinfo, 4), true);
	if (PG_ARGISNULL(1))
		error_null("status");
	status = PG_GETARG_INT32(1);
	check_status(status, &key);

	answer.result = stored_result(&key, status, arg_text(fcinfo, 3), arg_text(fcinfo, 2));
	claim_finish_any(&key, arg_fence(fcinfo, 5), &answer);
	PG_RETURN_INT32(status);
}
