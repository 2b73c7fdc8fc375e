/*-------------------------------------------------------------------------
 *
 * nothing.c
 *	  What idem_throttle would cost if it did nothing: the same arguments, the
 *	  same row of four columns.
 *
 * Both have what PostgreSQL does for any such call: the arguments made and passed, the
 * function found and called, a column taken out of its row.
 *
 * "nothing" also makes its row as ours does (src/base/result_row.c): a descriptor that is kept,
 * and heap_form_tuple each time.  "constant" does not; it returns one row that was
 * made by the first call.
 *
 * Neither looks at its arguments, reads the clock, hashes, takes a lock, or counts.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/memutils.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(nothing);
PG_FUNCTION_INFO_V1(constant);

static TupleDesc
row_type(void)
{
	static TupleDesc desc = NULL;
	MemoryContext old;

	if (desc != NULL)
		return desc;
	old = MemoryContextSwitchTo(TopMemoryContext);
	desc = CreateTemplateTupleDesc(4);
	TupleDescInitEntry(desc, 1, "allowed", BOOLOID, -1, 0);
	TupleDescInitEntry(desc, 2, "remaining", INT4OID, -1, 0);
	TupleDescInitEntry(desc, 3, "retry_after", FLOAT8OID, -1, 0);
	TupleDescInitEntry(desc, 4, "reset_after", FLOAT8OID, -1, 0);
#if PG_VERSION_NUM >= 190000
	TupleDescFinalize(desc);
#endif
	desc = BlessTupleDesc(desc);
	MemoryContextSwitchTo(old);
	return desc;
}

static Datum
row(void)
{
	bool isnull[4] = {0};
	Datum values[] = {BoolGetDatum(true), Int32GetDatum(0), Float8GetDatum(0), Float8GetDatum(60)};

	return HeapTupleGetDatum(heap_form_tuple(row_type(), values, isnull));
}

/* nothing(key text, period interval, max_calls int, scope text, cost int) RETURNS record */
Datum
nothing(PG_FUNCTION_ARGS)
{
	return row();
}

/* constant(the same) */
Datum
constant(PG_FUNCTION_ARGS)
{
	static Datum kept = 0;

	if (kept == 0)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		kept = row();
		MemoryContextSwitchTo(old);
	}
	PG_RETURN_DATUM(kept);
}
