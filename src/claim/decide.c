/*-------------------------------------------------------------------------
 *
 * decide.c
 *	  What a claim does next: the rules alone, without I/O or locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "claim/decide.h"

/* A held row is of unknown content until its transaction ends: it can only be waited for. */
ClaimDecision
decide_claim(const ClaimView *view)
{
	/* retrying with a new snapshot is right for these, whatever else holds */
	if (view->unseen && (view->state != STORE_LEASED || view->mismatch))
		return DECIDE_UNSEEN;
	if (view->mismatch)
		return DECIDE_MISMATCH;
	if (view->own_lapsed)
		return DECIDE_OWN_LAPSED;

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
