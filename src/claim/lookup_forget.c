/*-------------------------------------------------------------------------
 *
 * lookup_forget.c
 *	  idem_lookup, idem_forget and idem_forget_scope, for operators.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/args.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/key.h"
#include "store/key_lock.h"
#include "store/store.h"

PG_FUNCTION_INFO_V1(idem_lookup);
PG_FUNCTION_INFO_V1(idem_forget);
PG_FUNCTION_INFO_V1(idem_forget_scope);

static const char *
lookup_state(StoreState state)
{
	switch (state)
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
 *			   phase, progress, lease_until, created_at, finished_at, expires_at, failed)
 *
 * The definition of 0.1.0 has no "failed": the server ignores values beyond the last column.
 */
Datum
idem_lookup(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	IdemKey key;
	StoreRow row;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	key_make(&key, arg_text(fcinfo, 0), arg_text(fcinfo, 1), false);
	if (store_lookup(&key, &row))
	{
		Datum values[] = {CStringGetTextDatum(lookup_state(row.state)),
						  row.result,
						  Int32GetDatum(row.attempt),
						  PointerGetDatum(row.phase),
						  row.progress,
						  TimestampTzGetDatum(row.lease_until),
						  TimestampTzGetDatum(row.created_at),
						  TimestampTzGetDatum(row.finished_at),
						  TimestampTzGetDatum(row.expires_at),
						  BoolGetDatum(row.failed)};
		bool isnull[] = {false,
						 !row.has_result,
						 false,
						 row.phase == NULL,
						 !row.has_progress,
						 row.lease_until == 0,
						 false,
						 row.finished_at == 0,
						 false,
						 row.finished_at == 0};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	}
	return (Datum) 0;
}

/*
 * idem_forget(key text, scope text) RETURNS boolean
 *
 * Waits for a concurrent claim of the key, so that no row is left behind.
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
		if (row.state != STORE_HELD)
			PG_RETURN_BOOL(erased);

		/* release it: the holder may use the key again, and would wait for our lock */
		lock_release(&key);
		(void) store_wait(&key, &row.holder, DT_NOEND);
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
