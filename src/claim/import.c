/*-------------------------------------------------------------------------
 *
 * import.c
 *	  idem_import and idem_import_many: rows of work that was done elsewhere.
 *
 * Nobody knows the request of a row that is imported without one, so its answer is replayed to
 * every request, also by functions that always have one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/args.h"
#include "base/errors.h"
#include "base/fingerprint.h"
#include "base/interval.h"
#include "base/key.h"
#include "claim/batch.h"
#include "claim/claim.h"
#include "claim/key_array.h"

PG_FUNCTION_INFO_V1(idem_import);
PG_FUNCTION_INFO_V1(idem_import_many);

/* The arguments of both functions, which take a value or an array of each. */
enum
{
	ARG_KEY,
	ARG_RESULT,
	ARG_SCOPE,
	ARG_CREATED_AT,
	ARG_EXPIRES_AT,
	ARG_REQUEST,
	ARG_FAILED,
	NARGS
};

/* the arrays, by their names in SQL */
static const struct
{
	const char *name;
	Oid type;
} array_args[NARGS] = {
	[ARG_KEY] = {"idempotency keys", TEXTOID},
	[ARG_RESULT] = {"results", JSONBOID},
	[ARG_SCOPE] = {"scopes", TEXTOID},
	[ARG_CREATED_AT] = {"created_at", TIMESTAMPTZOID},
	[ARG_EXPIRES_AT] = {"expires_at", TIMESTAMPTZOID},
	[ARG_REQUEST] = {"requests", JSONBOID},
	[ARG_FAILED] = {"failed", BOOLOID},
};

/* What all rows of a call have in common. */
typedef struct Import
{
	TimestampTz now;
	Interval ttl; /* of a row without expires_at, from its created_at on */
	text *scope;  /* of a row without scope */
} Import;

/* The row of a key. */
typedef struct ImportRow
{
	StoreWrite write;
	uint8 fingerprint[FINGERPRINT_BYTES];
} ImportRow;

static void
import_init(Import *import)
{
	import->now = GetCurrentTimestamp();
	ttl_default(&import->ttl);
	import->scope = key_scope(NULL);
}

static TimestampTz
import_created_at(const Import *import, const NullableDatum *arg, const IdemKey *key)
{
	TimestampTz created_at;

	if (arg->isnull)
		return import->now;
	created_at = DatumGetTimestampTz(arg->value);
	if (created_at > import->now || TIMESTAMP_IS_NOBEGIN(created_at))
		error_created_at(timestamptz_to_str(created_at), key);
	/* 0, which is 2000-01-01 00:00 UTC, says in a StoreWrite that there is no time */
	return created_at == 0 ? 1 : created_at;
}

/* False if the row has expired, and so is not to be written. */
static bool
import_row(const Import *import, const NullableDatum *args, const IdemKey *key, ImportRow *row)
{
	StoreWrite *write = &row->write;

	memset(row, 0, sizeof(*row));
	write->fence = NO_FENCE;
	write->created_at = import_created_at(import, &args[ARG_CREATED_AT], key);
	/* nobody knows how long the work took */
	write->finished_at = write->created_at;
	write->expires_at = args[ARG_EXPIRES_AT].isnull
		? ttl_after(write->created_at, &import->ttl, "ttl", key)
		: DatumGetTimestampTz(args[ARG_EXPIRES_AT].value);

	write->failed = !args[ARG_FAILED].isnull && DatumGetBool(args[ARG_FAILED].value);
	write->has_result = !args[ARG_RESULT].isnull;
	write->result = args[ARG_RESULT].value;
	if (write->has_result)
		check_stored_jsonb(write->result, key, write->failed ? "error" : "result");

	if (args[ARG_REQUEST].isnull)
		memcpy(row->fingerprint, fingerprint_any, FINGERPRINT_BYTES);
	else
		fingerprint_jsonb(DatumGetJsonbP(args[ARG_REQUEST].value), row->fingerprint);
	write->fingerprint = row->fingerprint;
	return write->expires_at > import->now;
}

/*
 * idem_import(key text, result jsonb, scope text, created_at timestamptz, expires_at timestamptz,
 *			   request jsonb, failed boolean) RETURNS boolean
 */
Datum
idem_import(PG_FUNCTION_ARGS)
{
	Import import;
	IdemKey key;
	ImportRow row;

	refuse_in_parallel("idem_import");
	import_init(&import);
	key_make(&key, arg_text(fcinfo, ARG_KEY), arg_text(fcinfo, ARG_SCOPE), true);
	PreventCommandIfReadOnly("idem_import()");
	if (!import_row(&import, fcinfo->args, &key, &row))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(claim_import(&key, &row.write));
}

/* ------------------------------------------------------------------------
 * Batches
 * ------------------------------------------------------------------------
 */

/* An array that is NULL has no values: nothing is given for any key. */
static void
get_arrays(FunctionCallInfo fcinfo, ArrayElements arrays[NARGS])
{
	memset(arrays, 0, NARGS * sizeof(ArrayElements));
	for (int arg = 0; arg < NARGS; arg++)
	{
		if (PG_ARGISNULL(arg))
			continue;
		key_array_elements(&arrays[arg], PG_GETARG_ARRAYTYPE_P(arg), array_args[arg].name,
						   array_args[arg].type);
		if (arrays[arg].n != arrays[ARG_KEY].n)
			error_array_length(array_args[arg].name, arrays[arg].n, arrays[ARG_KEY].n);
	}
}

static void
get_elements(const ArrayElements arrays[NARGS], int i, NullableDatum args[NARGS])
{
	for (int arg = 0; arg < NARGS; arg++)
	{
		args[arg].isnull = arrays[arg].n == 0 || arrays[arg].isnull[i];
		args[arg].value = args[arg].isnull ? (Datum) 0 : arrays[arg].values[i];
	}
}

/*
 * Make keys and rows; all are checked before any is written.  Those that have expired are left
 * out.  Returns the number of the others.
 */
static int
get_rows(const Import *import, const ArrayElements arrays[NARGS], MemoryContext per_key,
		 BatchKey *batch, ImportRow *rows)
{
	int n = 0;

	for (int i = 0; i < arrays[ARG_KEY].n; i++)
	{
		NullableDatum args[NARGS];
		text *scope = import->scope;
		MemoryContext old;
		bool kept;

		CHECK_FOR_INTERRUPTS();
		get_elements(arrays, i, args);
		if (!args[ARG_SCOPE].isnull)
			scope = DatumGetTextPP(args[ARG_SCOPE].value);
		key_array_key(&batch[n], &arrays[ARG_KEY], i, scope, n);

		/* fingerprints leave copies of the requests behind */
		old = MemoryContextSwitchTo(per_key);
		kept = import_row(import, args, &batch[n].key, &rows[n]);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_key);
		if (kept)
			n++;
	}
	return n;
}

/* Of equal keys, the first one in the caller's order is written. */
static int64
write_rows(BatchKey *batch, int n, const ImportRow *rows)
{
	int64 written = 0;

	for (int i = 0; i < n; i++)
		batch[i].row = &rows[i].write;
	batch_sort(batch, n);
	batch_import(batch, n);
	for (int i = 0; i < n; i++)
		if (batch[i].claimed)
			written++;
	return written;
}

/*
 * idem_import_many(keys text[], results jsonb[], scopes text[], created_at timestamptz[],
 *					expires_at timestamptz[], requests jsonb[], failed boolean[]) RETURNS bigint
 *
 * Writes in digest order, so that two batches cannot deadlock.  NULL instead of keys is what
 * array_agg() makes of no rows.
 */
Datum
idem_import_many(PG_FUNCTION_ARGS)
{
	Import import;
	ArrayElements arrays[NARGS];
	BatchKey *batch;
	ImportRow *rows;
	MemoryContext per_key;
	Size nkeys;
	int n;

	refuse_in_parallel("idem_import_many");
	PreventCommandIfReadOnly("idem_import_many()");
	import_init(&import);
	get_arrays(fcinfo, arrays);
	nkeys = Max(arrays[ARG_KEY].n, 1);
	batch = MemoryContextAllocHuge(CurrentMemoryContext, nkeys * sizeof(BatchKey));
	rows = MemoryContextAllocHuge(CurrentMemoryContext, nkeys * sizeof(ImportRow));
	per_key =
		AllocSetContextCreate(CurrentMemoryContext, "idem_import_many", ALLOCSET_DEFAULT_SIZES);
	n = get_rows(&import, arrays, per_key, batch, rows);
	PG_RETURN_INT64(write_rows(batch, n, rows));
}
