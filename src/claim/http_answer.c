/*-------------------------------------------------------------------------
 *
 * http_answer.c
 *	  Answers to HTTP requests: problems, and those that are stored.
 *
 * The body is a JSON string in the stored result, not JSON itself: jsonb would sort the keys
 * and rewrite the numbers, and the body need not be JSON.
 *
 * A row may have been finished by another function than idem_http_finish:
 *
 *		{"status", "headers", "body"}	taken for an answer, if each of them can be one; without
 *										the fields that idem_http_finish does not store
 *		another result					200 and the result as JSON
 *		no result						204
 *		error of a failure				a problem: the error if it is an object, else its text as
 *										the detail; the status is the error's own, or 422
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "base/compat.h"
#include "claim/http_answer.h"
#include "claim/http_headers.h"

#define BAD_REQUEST 400
#define CONFLICT 409
#define UNPROCESSABLE 422

HttpStatusUse
http_status_use(int status)
{
	if (status < 200 || status > 599)
		return HTTP_STATUS_NOT_FINAL;
	if (status == 408 || status == 425 || status == 429 || status >= 500)
		return HTTP_STATUS_TRY_AGAIN;
	return HTTP_STATUS_STORED;
}

/* ------------------------------------------------------------------------
 * Problems
 * ------------------------------------------------------------------------
 */

/* The type "about:blank" means that the status says it all; the title is then the status's. */
static const char *
problem_title(int status)
{
	switch (status)
	{
		case BAD_REQUEST:
			return "Bad Request";
		case CONFLICT:
			return "Conflict";
		default:
			return "Unprocessable Content";
	}
}

/* RFC 9457; detail may be NULL */
static HttpAnswer
problem(int status, const char *detail)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfo(&body, "{\"type\": \"about:blank\", \"title\": \"%s\", \"status\": %d",
					 problem_title(status), status);
	if (detail != NULL)
	{
		appendStringInfoString(&body, ", \"detail\": ");
		escape_json(&body, detail);
	}
	appendStringInfoChar(&body, '}');
	return (HttpAnswer){
		.status = status,
		.headers = cstring_to_text("{\"Content-Type\": \"application/problem+json\"}"),
		.body = cstring_to_text_with_len(body.data, body.len),
		.fence = NO_FENCE,
	};
}

HttpAnswer
http_bad_key(HttpKeyState state)
{
	switch (state)
	{
		case HTTP_KEY_MISSING:
			return problem(BAD_REQUEST, "The header field Idempotency-Key is missing.");
		case HTTP_KEY_EMPTY:
			return problem(BAD_REQUEST, "The header field Idempotency-Key is empty.");
		case HTTP_KEY_TOO_LONG:
			return problem(BAD_REQUEST,
						   psprintf("The header field Idempotency-Key has more than %d bytes.",
									KEY_MAX_BYTES));
		case HTTP_KEY_MALFORMED:
			return problem(BAD_REQUEST,
						   "The header field Idempotency-Key begins with a double quote, but is "
						   "not a structured string.");
		case HTTP_KEY_NO_TEXT:
			return problem(BAD_REQUEST, "The header field Idempotency-Key is not UTF-8.");
		case HTTP_KEY_VALID:
			break;
	}
	elog(ERROR, "unexpected state %d of a key", (int) state);
}

HttpAnswer
http_mismatch(void)
{
	return problem(UNPROCESSABLE, "This Idempotency-Key was used with another request.");
}

HttpAnswer
http_in_progress(double retry_after)
{
	HttpAnswer answer =
		problem(CONFLICT, "A request with this Idempotency-Key is still being processed.");

	answer.retry_after = (int) Min(Max(ceil(retry_after), 1), PG_INT32_MAX);
	answer.headers = cstring_to_text(
		psprintf("{\"Content-Type\": \"application/problem+json\", \"Retry-After\": \"%d\"}",
				 answer.retry_after));
	return answer;
}

/* ------------------------------------------------------------------------
 * Stored answers
 * ------------------------------------------------------------------------
 */

Datum
http_result(int status, const char *headers, text *body)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfo(&json, "{\"status\": %d, \"headers\": %s, \"body\": ", status,
					 headers != NULL ? headers : "null");
	if (body == NULL)
		appendStringInfoString(&json, "null");
	else
		escape_json(&json, text_to_cstring(body));
	appendStringInfoChar(&json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

static text *
container_text(JsonbContainer *container, int size)
{
	return cstring_to_text(JsonbToCString(NULL, container, size));
}

static bool
get_member(JsonbContainer *object, const char *name, JsonbValue *v)
{
	return getKeyJsonValueFromContainer(object, name, strlen(name), v) != NULL;
}

/* The status that the object names and that can be stored, or 0. */
static int
get_status(JsonbContainer *object)
{
	JsonbValue v;
	const char *digits;

	if (!get_member(object, "status", &v) || v.type != jbvNumeric)
		return 0;
	digits = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(v.val.numeric)));
	if (strlen(digits) != 3 || strspn(digits, "0123456789") != 3)
		return 0;
	return http_status_use(atoi(digits)) == HTTP_STATUS_STORED ? atoi(digits) : 0;
}

/* Fill from a result that idem_http_finish has stored, or one that looks like it. */
static bool
from_result(Jsonb *result, bool failed, HttpAnswer *answer)
{
	JsonbValue headers, body;
	char *kept = NULL;

	if (!JB_ROOT_IS_OBJECT(result) || JB_ROOT_COUNT(result) != 3)
		return false;
	if (!get_member(&result->root, "headers", &headers) ||
		!get_member(&result->root, "body", &body))
		return false;
	answer->status = get_status(&result->root);
	if (answer->status < (failed ? BAD_REQUEST : 1))
		return false;
	if (headers.type == jbvBinary)
		kept = http_headers_of_row(headers.val.binary.data);
	if (headers.type != jbvNull && kept == NULL)
		return false;
	if (body.type != jbvNull && body.type != jbvString)
		return false;

	if (kept != NULL)
		answer->headers = cstring_to_text(kept);
	if (body.type == jbvString)
		answer->body = cstring_to_text_with_len(body.val.string.val, body.val.string.len);
	return true;
}

/* The text of a JSON value that is no object; NULL of null. */
static const char *
value_text(Jsonb *value)
{
	JsonbValue v;

	if (JB_ROOT_IS_SCALAR(value) && JsonbExtractScalar(&value->root, &v))
	{
		if (v.type == jbvNull)
			return NULL;
		if (v.type == jbvString)
			return pnstrdup(v.val.string.val, v.val.string.len);
	}
	return JsonbToCString(NULL, &value->root, VARSIZE(value));
}

static HttpAnswer
from_error(Jsonb *error)
{
	HttpAnswer answer;
	JsonbValue sqlstate;
	int status;

	if (error == NULL || !JB_ROOT_IS_OBJECT(error))
		return problem(UNPROCESSABLE, error == NULL ? NULL : value_text(error));

	answer = problem(UNPROCESSABLE, NULL);
	/* an error that idem_call has kept: its message and detail may have values of rows */
	if (get_member(&error->root, "sqlstate", &sqlstate))
		return answer;
	answer.body = container_text(&error->root, VARSIZE(error));
	status = get_status(&error->root);
	/* a failure is no success, whatever the error says; from_result() does the same */
	if (status >= BAD_REQUEST)
		answer.status = status;
	return answer;
}

HttpAnswer
http_stored(const StoreRow *row)
{
	Jsonb *result = row->has_result ? DatumGetJsonbP(row->result) : NULL;
	HttpAnswer answer = {.fence = NO_FENCE};

	if (result == NULL || !from_result(result, row->failed, &answer))
	{
		if (row->failed)
			answer = from_error(result);
		else if (result == NULL)
			answer = (HttpAnswer){.status = 204, .fence = NO_FENCE};
		else
			answer = (HttpAnswer){
				.status = 200,
				.headers = cstring_to_text("{\"Content-Type\": \"application/json\"}"),
				.body = container_text(&result->root, VARSIZE(result)),
				.fence = NO_FENCE,
			};
	}
	answer.replayed = true;
	return answer;
}
