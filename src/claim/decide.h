/*-------------------------------------------------------------------------
 *
 * decide.h
 *	  What a claim does next: the rules alone, without I/O or locks.
 *
 * A claim looks at its key's row, decides, and acts: it writes, waits and looks
 * again, or answers.  idem_begin, idem_claim, the batch and the trigger share
 * these rules; claim.c carries them out.
 *
 * Three rules matter most:
 *
 *	- Only a committed row, or one of this transaction, can say that a key is taken for
 *	  good.  A busy lock or an uncommitted row only says "wait".
 *	- A request that differs from the stored one is refused before anything else is said.
 *	- A row that the transaction's snapshot cannot see is never acted upon.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_DECIDE_H
#define IDEM_DECIDE_H

#include "store/store.h"

typedef enum ClaimDecision
{
	DECIDE_CLAIM,	   /* the key is free: write */
	DECIDE_FINISHED,   /* the row's result is the answer */
	DECIDE_MISMATCH,   /* the row belongs to a different request */
	DECIDE_LEASED,	   /* somebody's lease is running */
	DECIDE_OWN_LAPSED, /* a lease of this very transaction has run out */
	DECIDE_UNSEEN,	   /* committed after the transaction's snapshot: 40001 */
	DECIDE_WAIT_ROW,   /* an uncommitted row: wait for its transaction */
	DECIDE_WAIT_LOCK   /* free, but another session holds the key's lock */
} ClaimDecision;

/* All that a decision depends on. */
typedef struct ClaimView
{
	StoreState state; /* of the row */
	bool unseen;	  /* the transaction's snapshot cannot see the row */
	bool mismatch;	  /* both requests are known, and they differ */
	bool own_lapsed;  /* the lease that ran out is this transaction's */
	bool may_claim;	  /* the key's lock is held, or not needed */
} ClaimView;

extern ClaimDecision decide_claim(const ClaimView *view);

#endif /* IDEM_DECIDE_H */
