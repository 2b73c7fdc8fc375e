/*-------------------------------------------------------------------------
 *
 * find.h
 *	  Find the version of a row of idem_keys that counts.
 *
 * Private to this folder.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_FIND_H
#define IDEM_FIND_H

#include "access/genam.h"
#include "access/skey.h"
#include "access/xlogdefs.h"
#include "executor/tuptable.h"
#include "utils/snapshot.h"

#include "store/store.h"
#include "store/table.h"

/* A version of a row; the look-up leaves the row itself in the slot. */
typedef struct Version
{
	StoreState state;
	ItemPointerData tid;
	TransactionId xmin; /* frozen: FrozenTransactionId */
	bool own;			/* written by this transaction */
	int64 fence;		/* or NO_FENCE */
	int32 attempt;
	StoreHolder holder; /* if held: the transaction that holds it */
} Version;

/*
 * Find the version that counts, and leave it in the slot unless it is held.  The slot pins
 * its page: clear it before a wait.
 */
extern void find_version(Store *store, const IdemKey *key, TupleTableSlot *slot, Version *found);

/* One scan descriptor for many keys. */
typedef struct VersionScan
{
	Store *store;
	SnapshotData dirty;
	IndexScanDesc scan; /* has a pointer to "dirty" */
	ScanKeyData key;
} VersionScan;

extern void version_scan_begin(VersionScan *scan, Store *store);
extern void
version_scan_find(VersionScan *scan, const IdemKey *key, TupleTableSlot *slot, Version *found);

/* Unpin the pages of the last look-up; needed before a wait. */
extern void version_scan_rest(VersionScan *scan);
extern void version_scan_end(VersionScan *scan);

/*
 * Of a version that another transaction has committed, while it is in the slot: can the
 * snapshot that the isolation level promises not see it?  And its position in WAL, for
 * durable_row().
 */
extern bool version_is_unseen(Store *store, TupleTableSlot *slot);
extern XLogRecPtr version_position(const Version *found, TupleTableSlot *slot);

#endif /* IDEM_FIND_H */
