/*-------------------------------------------------------------------------
 *
 * result_row.c
 *	  Rows that functions return.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "base/result_row.h"

#define MAX_FIRST_COLUMNS 8

static TupleDesc
row_type(const RowColumn *columns, int ncolumns)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	TupleDesc desc = CreateTemplateTupleDesc(ncolumns);

	for (int i = 0; i < ncolumns; i++)
		TupleDescInitEntry(desc, i + 1, columns[i].name, columns[i].type, -1, 0);
	idem_tupledesc_finalize(desc);
	desc = BlessTupleDesc(desc);
	MemoryContextSwitchTo(old);
	return desc;
}

Datum
row_datum(TupleDesc *desc, const RowColumn *columns, int ncolumns, Datum *values, bool *isnull)
{
	if (*desc == NULL)
		*desc = row_type(columns, ncolumns);
	return HeapTupleGetDatum(heap_form_tuple(*desc, values, isnull));
}

HeapTupleHeader
row_time_template(const RowColumn *columns, int ncolumns, Datum *values, bool *isnull)
{
	TupleDesc desc = row_type(columns, ncolumns);
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	HeapTupleHeader row =
		DatumGetHeapTupleHeader(HeapTupleGetDatum(heap_form_tuple(desc, values, isnull)));

	MemoryContextSwitchTo(old);
	return row;
}

/* The time is the last thing in the row: nothing is added after the last value. */
Datum
row_with_time(HeapTupleHeader template, TimestampTz time)
{
	Size size = HeapTupleHeaderGetDatumLength(template);
	char *row = palloc(size);

	memcpy(row, template, size);
	memcpy(row + size - sizeof(time), &time, sizeof(time));
	return HeapTupleHeaderGetDatum((HeapTupleHeader) row);
}

/*
 * A template row for columns of fixed length that are never NULL.  All zero; never freed.
 */
HeapTupleHeader
row_first(const RowColumn *columns, int ncolumns, Size data_size)
{
	TupleDesc desc = row_type(columns, ncolumns);
	Datum values[MAX_FIRST_COLUMNS] = {0};
	bool isnull[MAX_FIRST_COLUMNS] = {0};
	MemoryContext old;
	HeapTupleHeader row;

	Assert(ncolumns <= MAX_FIRST_COLUMNS);
	old = MemoryContextSwitchTo(TopMemoryContext);
	row = DatumGetHeapTupleHeader(HeapTupleGetDatum(heap_form_tuple(desc, values, isnull)));
	MemoryContextSwitchTo(old);
	if (HeapTupleHeaderGetDatumLength(row) != row->t_hoff + data_size)
		elog(ERROR, "unexpected layout of a row");
	return row;
}
