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

/* A template row whose columns are never NULL, with "data_size" bytes of data. */
extern HeapTupleHeader row_first(const RowColumn *columns, int ncolumns, Size data_size);

#endif /* IDEM_RESULT_ROW_H */
