/*-------------------------------------------------------------------------
 *
 * decide.h
 *	  Decide what a claim does next: pure rules, no I/O, no locks.
 *
 * A claim looks at its key's row, decides, and acts: it writes, waits and looks
 * again, or answers.  idem_begin, idem_claim, the batch and the trigger share
 * these rules; claim.c carries them out.
 *
 * Three rules matter most:
 *
 *	- Only a row that is committed, or written by this transaction, makes a key taken for
 *	  good.  A busy lock or an uncommitted row only means "wait".
 *	- A request that differs from the stored one is refused before any other answer.
 *	- Never act on a row that the transaction's snapshot cannot see.
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
	DECIDE_LEASED,	   /* a lease on the key is running */
	DECIDE_OWN_LAPSED, /* this transaction's own lease has run out */
	DECIDE_EXHAUSTED,  /* abandoned, and begun as often as the caller allows */
	DECIDE_UNSEEN,	   /* committed after the transaction's snapshot: 40001 */
	DECIDE_WAIT_ROW,   /* an uncommitted row: wait for its transaction */
	DECIDE_WAIT_LOCK   /* free, but another session holds the key's lock */
} ClaimDecision;

/* Everything that a decision depends on. */
typedef struct ClaimView
{
	StoreState state; /* the row's state */
	bool unseen;	  /* the transaction's snapshot cannot see the row */
	bool mismatch;	  /* both requests are known, and they differ */
	bool own_lapsed;  /* the lease that ran out is this transaction's */
	bool exhausted;	  /* it has been begun as often as the caller allows */
	bool may_claim;	  /* the key's lock is held, or not needed */
} ClaimView;

extern ClaimDecision decide_claim(const ClaimView *view);

#endif /* IDEM_DECIDE_H */
