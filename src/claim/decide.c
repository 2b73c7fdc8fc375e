/*-------------------------------------------------------------------------
 *
 * decide.c
 *	  Decide what a claim does next: pure rules, no I/O, no locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "claim/decide.h"

/* The contents of a held row are unknown until its transaction ends: we can only wait. */
ClaimDecision
decide_claim(const ClaimView *view)
{
	/* a retry with a new snapshot is the right answer here, whatever else is true */
	if (view->unseen && (view->state != STORE_LEASED || view->mismatch))
		return DECIDE_UNSEEN;
	if (view->mismatch)
		return DECIDE_MISMATCH;
	if (view->own_lapsed)
		return DECIDE_OWN_LAPSED;
	if (view->exhausted)
		return DECIDE_EXHAUSTED;

	switch (view->state)
	{
		case STORE_FINISHED:
			return DECIDE_FINISHED;
		case STORE_LEASED:
			return DECIDE_LEASED;
		case STORE_HELD:
			return DECIDE_WAIT_ROW;
		case STORE_ABSENT:
		case STORE_EXPIRED:
		case STORE_ABANDONED:
			break;
	}
	return view->may_claim ? DECIDE_CLAIM : DECIDE_WAIT_LOCK;
}
