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
 * The row as a Datum.  "desc" keeps the row type, NULL before the first call:
 * made once a session, as it consists of built-in types only and released
 * signatures never change, so it cannot go stale; looking it up in the catalog
 * would cost a tenth of a claim.
 */
extern Datum
row_datum(TupleDesc *desc, const RowColumn *columns, int ncolumns, Datum *values, bool *isnull);

/* A row to copy, whose columns never are NULL, of "data_size" bytes in all. */
extern HeapTupleHeader row_first(const RowColumn *columns, int ncolumns, Size data_size);

#endif /* IDEM_RESULT_ROW_H */
