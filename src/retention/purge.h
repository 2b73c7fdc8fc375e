/*-------------------------------------------------------------------------
 *
 * purge.h
 *	  A purge: one pass over all tables of the extension, in batches.
 *
 * A purge continues where the last one ended, if that is known: in each table, and in the
 * order of the tables.  So many short purges do the work of a long one.
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
	int64 batch_size;	  /* rows and their TOAST chunks, deleted in one transaction */
	int64 max_rows;		  /* rows deleted in total */
	TimestampTz deadline; /* DT_NOEND: none */

	/* Commit the batch and start a transaction for the next.  NULL: purge a single batch. */
	void (*commit)(void);
	bool tells;	 /* report progress as NOTICE */
	bool nowait; /* skip locked tables */

	int64 removed[PURGE_NTABLES]; /* rows */
	int64 tuples;				  /* rows and TOAST chunks, of all tables */
	int64 dead[PURGE_NTABLES];	  /* the same, of each, if positions are not known */
	int64 pages_read;
	bool locked[PURGE_NTABLES];
	bool complete; /* the pass over all tables */
} Purge;

/* Call in a transaction, without an active snapshot. */
extern void purge_run(Purge *purge);

/* The name of a table, by its number. */
extern const char *purge_table_name(int table);

/* Rows removed from all tables. */
extern int64 purge_removed(const Purge *purge);

#endif /* IDEM_PURGE_H */
