/*-------------------------------------------------------------------------
 *
 * purge.h
 *	  A purge: all tables of the extension, once through, batch by batch.
 *
 * It goes on where the last one ended, if that is known, in each table, and from
 * one table to the next, so that many short purges are as good as a long one.
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

	/* Commit the batch, and begin a transaction for the next.  NULL: it is the only one. */
	void (*commit)(void);
	bool tells;	 /* progress, as NOTICE */
	bool nowait; /* leave out a table that is locked */

	int64 removed[PURGE_NTABLES];
	int64 tuples; /* the same, of all tables, with TOAST chunks */
	int64 pages_read;
	bool locked[PURGE_NTABLES];
	bool complete; /* all tables, once through */
} Purge;

/* In a transaction, without an active snapshot of the caller's. */
extern void purge_run(Purge *purge);

/* Of a table, by its number. */
extern const char *purge_table_name(int table);

/* Of all tables. */
extern int64 purge_removed(const Purge *purge);

#endif /* IDEM_PURGE_H */
