/*-------------------------------------------------------------------------
 *
 * lease.h
 *	  Finish, release, extend and checkpoint leased claims.
 *
 * A caller that knows the current fence of a key's row holds the claim, even after the
 * lease has run out.  The claiming transaction need not pass the fence.  Each change takes
 * the key's lock first.  So a change and a take-over never overlap, and the later of the
 * two finds that the fence is no longer current:
 *
 *		ID003	no such claim, or no fence given
 *		ID004	the claim was taken over or released: nothing is changed
 *		ID006	the claim is already finished, or already at this phase: this
 *				transaction repeats earlier work and must roll back as a whole
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LEASE_H
#define IDEM_LEASE_H

#include "fmgr.h"

#include "base/compat.h"
#include "claim/pending.h"

/* The fence in argument n; NO_FENCE if it is NULL. */
static inline int64
arg_fence(FunctionCallInfo fcinfo, int n)
{
	int64 fence;

	if (PG_ARGISNULL(n))
		return NO_FENCE;
	fence = PG_GETARG_INT64(n);
	/* keep "given, but invalid" apart from "not given": 0 is never issued either */
	return fence == NO_FENCE ? 0 : fence;
}

/*
 * Is the call about a leased claim?  It is if a fence was given, or if this transaction has
 * leased the key ("mine": the claim of this transaction, or NULL).
 */
extern bool lease_meant(const PendingClaim *mine, bool fence_given);

/* lease_until + ttl; infinity stays infinity */
extern TimestampTz lease_expiry(TimestampTz lease_until, const Interval *ttl, const IdemKey *key);

/* fence: NO_FENCE if not given */
extern void
lease_finish(const IdemKey *key, int64 fence, PendingClaim *mine, const ClaimAnswer *answer);
extern void lease_release(const IdemKey *key, int64 fence, PendingClaim *mine);

/* There is no open claim and no fence was given: ID006 if it is finished, else ID003. */
pg_noreturn extern void lease_error_nothing_open(const IdemKey *key, const PendingClaim *mine);

/* ID003 unless the row that this transaction has finished is still there. */
extern void lease_check_finished(const IdemKey *key, const PendingClaim *mine);

/* There is no claim to release and no fence was given: ID003. */
pg_noreturn extern void lease_error_not_begun(const IdemKey *key);

#endif /* IDEM_LEASE_H */
