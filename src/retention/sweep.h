/*-------------------------------------------------------------------------
 *
 * sweep.h
 *	  Find expired rows page by page and delete them.
 *
 * For tables whose rows are dead from "expires_at" on.  There is no index on it: every claim
 * would have to maintain that index, while a scan of all pages is needed only now and then.
 * Rows lie roughly in insertion order, so pages with dead rows lie together.
 *
 * A row that another transaction has locked or is changing stays.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SWEEP_H
#define IDEM_SWEEP_H

#include "storage/block.h"

/* The most pages that a batch reads. */
#define SWEEP_MAX_PAGES 128

/* A batch ends at the first limit it reaches. */
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
	BlockNumber next; /* where the next batch starts */
} SweepBatch;

/*
 * The number of pages.  42P01 if the extension has no such table.  With
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
