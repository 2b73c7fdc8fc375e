/*-------------------------------------------------------------------------
 *
 * sweep.h
 *	  Rows whose time has run out: found page by page, and deleted.
 *
 * For the tables whose rows are dead from "expires_at" on.  No index tells where such
 * rows are: one would cost every claim, and be changed with it, what a look at every
 * page costs once in a while.  Rows lie in the order in which they were made, more or
 * less, so pages that have dead rows lie together.
 *
 * A row that somebody else has locked, or is changing, stays.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SWEEP_H
#define IDEM_SWEEP_H

#include "storage/block.h"

/* A batch reads no more pages than that. */
#define SWEEP_MAX_PAGES 1024

typedef struct SweepBatch
{
	int64 deleted;
	BlockNumber next; /* where to go on */
} SweepBatch;

/* Pages of the table.  42P01 if there is no such table of the extension. */
extern BlockNumber sweep_pages(const char *table);

/*
 * Delete expired rows from page "from" on: up to max_rows, up to page "end", or for
 * max_msec, whichever ends first.  The table is locked until the end of the
 * transaction.  The caller has an active snapshot.  0A000 or 55000 if the table is
 * not as it was made.
 */
extern void sweep_batch(const char *table, BlockNumber from, BlockNumber end, int64 max_rows,
						int max_msec, SweepBatch *batch);

#endif /* IDEM_SWEEP_H */
