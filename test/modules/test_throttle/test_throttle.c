/*-------------------------------------------------------------------------
 *
 * test_throttle.c
 *	  What tests need of the throttle and no user should reach: its clock and its hash.
 *
 * The hash is compiled from the extension's own source.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"

#include "base/compat.h"
#include "base/siphash.c"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(set_clock);
PG_FUNCTION_INFO_V1(siphash_bytes);

/*
 * set_clock(microseconds bigint) RETURNS void
 *
 * Stops the clock of idem_throttle in this session at the given time; NULL returns to the
 * real clock.  Not STRICT.
 */
Datum
set_clock(PG_FUNCTION_ARGS)
{
	static int64 stopped_at;
	void **clock = find_rendezvous_variable("idempotency_throttle_clock");

	if (!PG_ARGISNULL(0))
		stopped_at = PG_GETARG_INT64(0);
	*clock = PG_ARGISNULL(0) ? NULL : &stopped_at;
	PG_RETURN_VOID();
}

/*
 * siphash_bytes(key bytea, data bytea) RETURNS bytea
 *
 * The bytes are in the order of the paper.
 */
Datum
siphash_bytes(PG_FUNCTION_ARGS)
{
	bytea *key = PG_GETARG_BYTEA_PP(0);
	bytea *data = PG_GETARG_BYTEA_PP(1);
	bytea *result = palloc(VARHDRSZ + sizeof(SipHash));
	SipHashKey words;
	SipHash hash;

	if (VARSIZE_ANY_EXHDR(key) != sizeof(words))
		elog(ERROR, "key of SipHash must have %zu bytes", sizeof(words));
	for (int i = 0; i < 2; i++)
		words.half[i] = load_word((uint8 *) VARDATA_ANY(key) + 8 * i);
	hash = siphash(&words, VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data));
	for (int i = 0; i < 2; i++)
		hash.half[i] = load_word((uint8 *) &hash.half[i]);
	SET_VARSIZE(result, VARHDRSZ + sizeof(SipHash));
	memcpy(VARDATA(result), &hash, sizeof(hash));
	PG_RETURN_BYTEA_P(result);
}
