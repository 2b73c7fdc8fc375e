/*-------------------------------------------------------------------------
 *
 * row_key.h
 *	  The idempotency key made from columns of a row.
 *
 * One column: its value as text.  Several: each value's length in characters, a
 * colon and the value, separated by commas, so that ('a', 'bc') and ('ab', 'c')
 * differ.  The text does not depend on the session's settings: timestamps are
 * ISO 8601, those with time zone in UTC.  Values that are equal make equal
 * keys for integers, uuid, text of a deterministic collation, char(n), numeric
 * (1.0 = 1.00), boolean, date and timestamps, and domains over these; for other
 * types equal text makes equal keys.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ROW_KEY_H
#define IDEM_ROW_KEY_H

#include "access/htup.h"
#include "nodes/pg_list.h"
#include "utils/rel.h"

typedef struct RowKeyColumn
{
	AttrNumber number;
	Oid type; /* of a domain: its base type */
	bool needs_settings;
	FmgrInfo output;
} RowKeyColumn;

typedef struct RowKey
{
	int ncolumns;
	RowKeyColumn *columns;
} RowKey;

/*
 * Allocates in the current memory context.  If a column does not exist, returns false and
 * sets *missing to its name.
 */
extern bool rowkey_make(RowKey *out, Relation rel, List *names, const char **missing);

/* Palloc'd; NULL if a value is NULL. */
extern text *rowkey_text(RowKey *key, Relation rel, HeapTuple row);

/* The values for a message, "a, bc", cut at KEY_MESSAGE_CHARS characters. */
extern char *rowkey_display(RowKey *key, Relation rel, HeapTuple row);

#endif /* IDEM_ROW_KEY_H */
