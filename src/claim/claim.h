/*-------------------------------------------------------------------------
 *
 * claim.h
 *	  What is decided about claims, for whoever has a face of its own:
 *	  idem_call() and the trigger.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_CLAIM_H
#define IDEM_CLAIM_H

#include "datatype/timestamp.h"

#include "base/fingerprint.h"
#include "base/key.h"
#include "claim/pending.h"
#include "store/store.h"

/* What the caller asks for. */
typedef struct ClaimRequest
{
	IdemKey key;
	Interval ttl;
	TimestampTz now; /* wall clock, taken as the call begins */
	bool has_fingerprint;
	uint8 fingerprint[FINGERPRINT_BYTES];
	const Interval *lease; /* NULL: a transaction claim */
} ClaimRequest;

typedef enum BeginState
{
	BEGIN_STARTED,
	BEGIN_REPLAYED,
	BEGIN_IN_PROGRESS,
	BEGIN_MISMATCH
} BeginState;

/* their names in SQL */
extern const char *const claim_begin_states[];

/*
 * Check key, scope and ttl (each NULL: not given), without a fingerprint and a
 * lease.  22004, 22023.
 */
extern void claim_request(ClaimRequest *request, text *key, text *scope, const Interval *ttl);

/* The ttl alone, unchecked. */
extern void claim_request_ttl(ClaimRequest *request, const Interval *ttl);

/* The moment until which to wait for a holder; wait NULL: not at all. */
extern TimestampTz claim_wait_until(const ClaimRequest *request, const Interval *wait);

/*
 * Decide a begin.  Fills "row" when the answer comes from one, "fence" for a
 * leased claim.  On started the claim is remembered and the lock kept; on
 * anything else no lock stays.
 */
extern BeginState
claim_begin(const ClaimRequest *request, TimestampTz wait_until, StoreRow *row, int64 *fence);

/* How long a caller who was told in_progress should wait, in seconds. */
extern double claim_retry_after(const StoreRow *row);

/*
 * Finish what claim_begin() started for the same request, in the same
 * transaction.  ID003 or ID006 if that is not open any more, 25006 if the transaction
 * became read-only.
 */
extern void claim_finish(const ClaimRequest *request, bool has_result, Datum result);

/* Finish an open claim of this transaction, whose entry is "claim". */
extern void
claim_finish_open(const IdemKey *key, PendingClaim *claim, bool has_result, Datum result);

/*
 * Write the key's finished row unless one is there; waits for concurrent
 * holders.  True if written.  Without "lock", no lock-table entry is needed.
 */
extern bool claim_once(const ClaimRequest *request, bool lock);

/*
 * The same in two steps, for who may have to take the row back: the row, with when it
 * expires; and that it stays, before anything can commit.
 */
extern bool claim_write(const ClaimRequest *request, bool lock, TimestampTz *expires_at);
extern void claim_stays(const ClaimRequest *request, TimestampTz expires_at);

/*
 * Would claim_once() find the key taken?  Waits for concurrent holders as that
 * does, and writes nothing.  "abandoned": a claim would take over a lease.
 */
extern bool claim_taken(const ClaimRequest *request, bool *abandoned);

#endif /* IDEM_CLAIM_H */
