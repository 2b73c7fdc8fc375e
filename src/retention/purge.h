/*-------------------------------------------------------------------------
 *
 * purge.h
 *	  A purge: all tables of the extension, once through, batch by batch.
 *
 * A purge resumes where the last one ended, if that is known: in each table, and in the
 * order of tables.  So many short purges do the work of a long one.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_PURGE_H
#define IDEM_PURGE_H

#include "datatype/timestamp.h"

enum
{
	PURGE_KEYS,
	PURGE_TOKENS,
	PURGE_CODES,
	PURGE_NTABLES
};

typedef struct Purge
{
	int64 batch_size;	  /* rows deleted in a transaction, with their TOAST chunks */
	int64 max_rows;		  /* rows deleted in all */
	TimestampTz deadline; /* DT_NOEND: none */

	/* Commit the batch and start a transaction for the next.  NULL: purge a single batch. */
	void (*commit)(void);
	bool tells;	 /* report progress as NOTICE */
	bool nowait; /* skip locked tables */

	int64 removed[PURGE_NTABLES];
	int64 tuples; /* the same, of all tables, with TOAST chunks */
	int64 pages_read;
	bool locked[PURGE_NTABLES];
	bool complete; /* all tables, once through */
} Purge;

/* Call in a transaction, without an active snapshot. */
extern void purge_run(Purge *purge);

/* The name of a table, by its number. */
extern const char *purge_table_name(int table);

/* Rows removed from all tables. */
extern int64 purge_removed(const Purge *purge);

#endif /* IDEM_PURGE_H */
