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
#include "claim/key_array.h"

PG_FUNCTION_INFO_V1(idem_claim_many);

/* The keys of the array; all are checked before any is claimed. */
static BatchKey *
get_batch(ArrayType *array, text *scope, int *nkeys)
{
	ArrayElements keys;
	BatchKey *batch;

	key_array_elements(&keys, array, "idempotency keys", TEXTOID);
	batch = MemoryContextAllocHuge(CurrentMemoryContext, Max(keys.n, 1) * sizeof(BatchKey));
	for (int i = 0; i < keys.n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		key_array_key(&batch[i], &keys, i, scope, i);
	}
	*nkeys = keys.n;
	return batch;
}

/* In the order of the caller's array. */
static void
put_claimed(ReturnSetInfo *rsinfo, BatchKey *batch, int nkeys)
{
	text **claimed = MemoryContextAllocHuge(CurrentMemoryContext, Max(nkeys, 1) * sizeof(text *));

	for (int i = 0; i < nkeys; i++)
		claimed[batch[i].position] = batch[i].claimed ? batch[i].key.key : NULL;
	for (int i = 0; i < nkeys; i++)
	{
		Datum value = PointerGetDatum(claimed[i]);
		bool isnull = false;

		if (claimed[i] != NULL)
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
	}
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

	refuse_in_parallel("idem_claim_many");
	/* with one OUT column the server's result type is the column's, not a row type */
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (PG_ARGISNULL(0))
		error_null("array of idempotency keys");
	claim_request_ttl(&request, arg_interval(fcinfo, 1));
	batch = get_batch(PG_GETARG_ARRAYTYPE_P(0), scope, &nkeys);
	(void) ttl_after(request.now, &request.ttl, "ttl", nkeys > 0 ? &batch[0].key : NULL);

	batch_sort(batch, nkeys);
	(void) batch_claim(&request, batch, nkeys, false);

	put_claimed(rsinfo, batch, nkeys);
	return (Datum) 0;
}
