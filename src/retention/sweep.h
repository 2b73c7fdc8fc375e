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
#define SWEEP_MAX_PAGES 128

/* When a batch ends; the first that is reached. */
typedef struct SweepLimits
{
	int64 max_rows;
	int64 max_tuples; /* rows, and the TOAST chunks that go with them */
	int max_msec;
} SweepLimits;

typedef struct SweepBatch
{
	int64 deleted;
	int64 tuples;	  /* the same, with TOAST chunks */
	BlockNumber next; /* where to go on */
} SweepBatch;

/*
 * Pages of the table.  42P01 if there is no such table of the extension.  With
 * "nowait", false if the table is locked.
 */
extern bool sweep_pages(const char *table, bool nowait, BlockNumber *pages);

/*
 * Delete expired rows from page "from" on, up to page "end" or a limit; one row at
 * least if there is one.  A process that is asked to shut down (ShutdownRequestPending)
 * ends the batch at the next row.  The table may have become smaller, or empty, in the
 * meantime.  It is locked until the end of the transaction.  The caller has an active
 * snapshot.  0A000 or 55000 if the table is not as it was made.  With "nowait", false
 * if the table is locked.
 */
extern bool sweep_batch(const char *table, bool nowait, BlockNumber from, BlockNumber end,
						const SweepLimits *limits, SweepBatch *batch);

#endif /* IDEM_SWEEP_H */
