/*-------------------------------------------------------------------------
 *
 * lease.h
 *	  Leased claims after their begin: finish, release, extend, checkpoint.
 *
 * Whoever knows the current fence of a key's row holds the claim, late or
 * not; the claiming transaction knows it anyway.  Each change takes the key's
 * lock first, so that it and a take-over come one after the other, and the
 * later one finds the fence gone:
 *
 *		ID003	no such claim, or no fence given
 *		ID004	the claim was taken over or released: nothing is changed
 *		ID006	finished, or at this phase, already: the transaction is a
 *				repetition, and its other effects must not stay either
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LEASE_H
#define IDEM_LEASE_H

#include "fmgr.h"

#include "base/compat.h"
#include "claim/pending.h"

/* An argument that is a fence; NULL: NO_FENCE. */
static inline int64
arg_fence(FunctionCallInfo fcinfo, int n)
{
	int64 fence;

	if (PG_ARGISNULL(n))
		return NO_FENCE;
	fence = PG_GETARG_INT64(n);
	/* 0 was never issued either, but it is a fence that was given */
	return fence == NO_FENCE ? 0 : fence;
}

/*
 * Does the call mean a leased claim?  By its fence, or by being in the
 * claiming transaction ("mine": that transaction's claim, or NULL).
 */
extern bool lease_meant(const PendingClaim *mine, bool fence_given);

/* lease_until + ttl; for ever stays for ever */
extern TimestampTz lease_expiry(TimestampTz lease_until, const Interval *ttl, const IdemKey *key);

/* fence: NO_FENCE if not given */
extern void
lease_finish(const IdemKey *key, int64 fence, PendingClaim *mine, bool has_result, Datum result);
extern void lease_release(const IdemKey *key, int64 fence, PendingClaim *mine);

/* There is no open claim and no fence was given: ID006 or ID003, as fits best. */
pg_noreturn extern void lease_error_nothing_open(const IdemKey *key, const PendingClaim *mine);

/* ID003 unless the claim that this transaction has finished is still there. */
extern void lease_check_finished(const IdemKey *key, const PendingClaim *mine);

/* The same where "finished already" is no answer: ID003. */
pg_noreturn extern void lease_error_not_begun(const IdemKey *key);

#endif /* IDEM_LEASE_H */
