/*-------------------------------------------------------------------------
 *
 * result_row.h
 *	  Rows that functions return.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RESULT_ROW_H
#define IDEM_RESULT_ROW_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "datatype/timestamp.h"
#include "fmgr.h"
#include "nodes/execnodes.h"

typedef struct RowColumn
{
	const char *name;
	Oid type; /* a built-in one */
} RowColumn;

/*
 * The row as a Datum.  "desc" caches the row type for the session; it is NULL before the
 * first call.  It cannot go stale, because it has only built-in types and released
 * signatures never change.  A look-up in the catalog would cost a tenth of a claim.
 */
extern Datum
row_datum(TupleDesc *desc, const RowColumn *columns, int ncolumns, Datum *values, bool *isnull);

/*
 * Rows that differ only in a time: row_time_template() makes the first, whose last column
 * that is not NULL is a timestamptz, and keeps it for the session; row_with_time() copies it
 * with another time.  Costs a tenth of row_datum().
 */
extern HeapTupleHeader
row_time_template(const RowColumn *columns, int ncolumns, Datum *values, bool *isnull);
extern Datum row_with_time(HeapTupleHeader template, TimestampTz time);

/*
 * How many columns does the caller expect?  The definition of an older version has "old_ncolumns"
 * and "old_nargs" arguments.  A plan that was made before ALTER EXTENSION ... UPDATE may still
 * call with the old arguments and expect the new columns.
 */
static inline int
row_ncolumns(FunctionCallInfo fcinfo, int old_nargs, int old_ncolumns, int ncolumns)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	if (rsinfo != NULL && IsA(rsinfo, ReturnSetInfo) && rsinfo->expectedDesc != NULL)
		return rsinfo->expectedDesc->natts <= old_ncolumns ? old_ncolumns : ncolumns;
	return PG_NARGS() <= old_nargs ? old_ncolumns : ncolumns;
}

/* A template row whose columns are never NULL, with "data_size" bytes of data. */
extern HeapTupleHeader row_first(const RowColumn *columns, int ncolumns, Size data_size);

#endif /* IDEM_RESULT_ROW_H */
