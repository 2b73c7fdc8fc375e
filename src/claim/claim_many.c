/*-------------------------------------------------------------------------
 *
 * claim_many.c
 *	  idem_claim_many: one transaction claims an array of keys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

#include "base/args.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/interval.h"
#include "base/key.h"
#include "claim/batch.h"
#include "claim/claim.h"

PG_FUNCTION_INFO_V1(idem_claim_many);

static int
by_position(const void *a, const void *b)
{
	const BatchKey *x = a;
	const BatchKey *y = b;

	return x->position < y->position ? -1 : 1;
}

/* The keys of the array; all are checked before any is claimed. */
static BatchKey *
get_batch(ArrayType *array, text *scope, int *nkeys)
{
	BatchArray keys;
	BatchKey *batch;

	batch_array(&keys, array, "idempotency keys", TEXTOID);
	batch = MemoryContextAllocHuge(CurrentMemoryContext, Max(keys.n, 1) * sizeof(BatchKey));
	for (int i = 0; i < keys.n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		batch_key(&batch[i], &keys, i, scope, i);
	}
	*nkeys = keys.n;
	return batch;
}

/*
 * idem_claim_many(keys text[], ttl interval, scope text) RETURNS TABLE (key text)
 *
 * Claims each key once, in digest order, so that two batches cannot deadlock.  Returns the
 * keys in the order given.
 */
Datum
idem_claim_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ClaimRequest request = {0};
	text *scope = key_scope(arg_text(fcinfo, 2));
	BatchKey *batch;
	int nkeys;
	MemoryContext per_key;

	refuse_in_parallel("idem_claim_many");
	/* with one OUT column the server's result type is the column's, not a row type */
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (PG_ARGISNULL(0))
		error_null("array of idempotency keys");
	claim_request_ttl(&request, arg_interval(fcinfo, 1));
	batch = get_batch(PG_GETARG_ARRAYTYPE_P(0), scope, &nkeys);
	(void) ttl_after(request.now, &request.ttl, "ttl", nkeys > 0 ? &batch[0].key : NULL);

	/* each probe and insertion leaves a few kilobytes allocated */
	per_key =
		AllocSetContextCreate(CurrentMemoryContext, "idem_claim_many", ALLOCSET_DEFAULT_SIZES);

	batch_sort(batch, nkeys);
	for (int i = 0; i < nkeys; i++)
	{
		MemoryContext old;

		if (batch_is_repeated(batch, i))
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
