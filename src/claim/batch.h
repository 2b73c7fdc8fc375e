/*-------------------------------------------------------------------------
 *
 * batch.h
 *	  Claim or import many keys at once: idem_claim_many(), the statement trigger,
 *	  idem_import_many().
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BATCH_H
#define IDEM_BATCH_H

#include "base/key.h"
#include "claim/claim.h"
#include "store/store.h"

typedef struct BatchKey
{
	IdemKey key;
	int64 position;		   /* the caller's */
	bool claimed;		   /* or imported; false at first */
	const StoreWrite *row; /* to import; NULL in all of a batch of claims */
} BatchKey;

/* Sort by digest; a repeated key by position. */
extern void batch_sort(BatchKey *keys, int64 n);

/*
 * Claim each of the sorted keys as claim_once() does without a lock, but a repeated key only
 * where it comes first.  "request" has no fingerprint; its key does not matter.  With "stop",
 * stop at the first key that is taken or repeated, and return it; else NULL.
 */
extern BatchKey *batch_claim(const ClaimRequest *request, BatchKey *keys, int64 n, bool stop);

/* Import each of the sorted keys as claim_import() does, with the same exception. */
extern void batch_import(BatchKey *keys, int64 n);

#endif /* IDEM_BATCH_H */
