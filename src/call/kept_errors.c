/*-------------------------------------------------------------------------
 *
 * kept_errors.c
 *	  Errors of a function that idem_call() stores as its answer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"

#include "base/errors.h"
#include "call/kept_errors.h"

#define CLASS_CHARS 2
#define SQLSTATE_CHARS 5

struct KeptErrors
{
	int ncodes;
	const char **codes; /* SQLSTATEs and classes */
};

static const char *const retryable_classes[] = {"08", "25", "40", "53", "55", "57",
												"58", "72", "F0", "HV", "XX", "ID"};

static const char *
check_code(const char *code)
{
	size_t len = strlen(code);

	if ((len != CLASS_CHARS && len != SQLSTATE_CHARS) ||
		strspn(code, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != len)
		error_invalid_sqlstate(code);
	for (int i = 0; i < lengthof(retryable_classes); i++)
		if (strncmp(code, retryable_classes[i], CLASS_CHARS) == 0)
			error_not_an_answer(code);
	return code;
}

const KeptErrors *
kept_errors(ArrayType *codes)
{
	KeptErrors *kept = palloc0(sizeof(KeptErrors));
	Datum *elems;
	bool *isnull;

	deconstruct_array(codes, TEXTOID, -1, false, TYPALIGN_INT, &elems, &isnull, &kept->ncodes);
	kept->codes = palloc(Max(kept->ncodes, 1) * sizeof(char *));
	for (int i = 0; i < kept->ncodes; i++)
	{
		if (isnull[i])
			error_null("element of keep_errors");
		kept->codes[i] = check_code(TextDatumGetCString(elems[i]));
	}
	return kept;
}

bool
error_is_kept(const KeptErrors *kept, int sqlstate)
{
	const char *name = unpack_sql_state(sqlstate);

	for (int i = 0; i < kept->ncodes; i++)
		if (strncmp(name, kept->codes[i], strlen(kept->codes[i])) == 0)
			return true;
	return false;
}

static void
append_field(StringInfo json, const char *name, const char *value)
{
	appendStringInfo(json, "%s\"%s\": ", json->len == 0 ? "{" : ", ", name);
	if (value == NULL)
		appendStringInfoString(json, "null");
	else
		escape_json(json, value);
}

Datum
error_jsonb(const ErrorData *edata)
{
	StringInfoData json;

	initStringInfo(&json);
	append_field(&json, "sqlstate", unpack_sql_state(edata->sqlerrcode));
	append_field(&json, "message", edata->message);
	append_field(&json, "detail", edata->detail);
	append_field(&json, "hint", edata->hint);
	append_field(&json, "schema", edata->schema_name);
	append_field(&json, "table", edata->table_name);
	append_field(&json, "column", edata->column_name);
	append_field(&json, "constraint", edata->constraint_name);
	appendStringInfoChar(&json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}
