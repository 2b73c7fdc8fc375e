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
#include "executor/tuptable.h"

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

extern void find_version(Store *store, const IdemKey *key, TupleTableSlot *slot, Version *found);

#endif /* IDEM_FIND_H */
