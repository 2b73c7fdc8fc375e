/*-------------------------------------------------------------------------
 *
 * sweep.h
 *	  Find expired rows page by page and delete them.
 *
 * For tables whose rows are dead from "expires_at" on.  There is no index on it: every claim
 * would have to maintain that index, while a scan of all pages is needed only now and then.
 * Rows lie roughly in insertion order, so pages with dead rows lie together.
 *
 * A sweep skips a row that another transaction has locked or is changing.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SWEEP_H
#define IDEM_SWEEP_H

#include "storage/block.h"

/* The most pages that a batch reads. */
#define SWEEP_MAX_PAGES 128

/* A member of the extension, by name, or a shard of its table of keys. */
typedef struct SweepTable
{
	const char *name;
	Oid shard; /* or InvalidOid */
} SweepTable;

/* A batch ends at the first limit that it reaches. */
typedef struct SweepLimits
{
	int64 max_rows;
	int64 max_tuples; /* rows, and the TOAST chunks that go with them */
	int max_msec;
} SweepLimits;

typedef struct SweepBatch
{
	int64 deleted;
	int64 tuples;	  /* deleted rows and their TOAST chunks */
	BlockNumber next; /* where the next batch starts */
} SweepBatch;

/*
 * Get the number of pages.  With "nowait", returns false if the table is locked.  False for a
 * shard that is gone.  42P01 if the extension has no such table.
 */
extern bool sweep_pages(const SweepTable *table, bool nowait, BlockNumber *pages);

/*
 * Delete expired rows from page "from" on, until page "end" or a limit.  Deletes at least one
 * row if there is one.  If the process is asked to shut down (ShutdownRequestPending), the batch
 * ends at the next row.  The table may have shrunk since "end" was determined, and may even be
 * empty.
 *
 * The caller must have an active snapshot.  The table stays locked until the transaction ends.
 * With "nowait", returns false if the table is locked by others; also for a shard that is gone.  0A000 or 55000 if the table was
 * altered.
 */
extern bool sweep_batch(const SweepTable *table, bool nowait, BlockNumber from, BlockNumber end,
						const SweepLimits *limits, SweepBatch *batch);

#endif /* IDEM_SWEEP_H */
