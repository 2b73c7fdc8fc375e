/*-------------------------------------------------------------------------
 *
 * claim.h
 *	  Claim a key and finish the claim, without the SQL interface.  Used by the SQL
 *	  functions, by idem_call() and by the trigger.
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
	bool insert_first;	   /* claim_once: see write_first(); batch_claim: see batch.c */
	bool strict;		   /* a result without a fingerprint is another request's */
	const Interval *lease; /* NULL: a transaction claim */
	int max_attempts;	   /* abandoned claims begun so often are not taken over; 0: no limit */
} ClaimRequest;

typedef enum BeginState
{
	BEGIN_STARTED,
	BEGIN_REPLAYED,
	BEGIN_IN_PROGRESS,
	BEGIN_MISMATCH,
	BEGIN_EXHAUSTED
} BeginState;

/* their names in SQL */
extern const char *const claim_begin_states[];

/*
 * Fill the request from key, scope and ttl (each NULL: not given) and check them.  The
 * request has no fingerprint and no lease.  Raises 22004 or 22023.
 */
extern void claim_request(ClaimRequest *request, text *key, text *scope, const Interval *ttl);

/* Set the time and the ttl only; the ttl is not checked. */
extern void claim_request_ttl(ClaimRequest *request, const Interval *ttl);

/* Until when to wait for a holder.  wait NULL: do not wait. */
extern TimestampTz claim_wait_until(const ClaimRequest *request, const Interval *wait);

/*
 * Begin a claim.  Fills "row" if the answer comes from a row, and "fence" for a leased
 * claim.  On BEGIN_STARTED the claim is remembered and the key's lock stays held; otherwise
 * the lock is released.
 */
extern BeginState
claim_begin(const ClaimRequest *request, TimestampTz wait_until, StoreRow *row, int64 *fence);

/* How many seconds a caller that got in_progress should wait before it retries. */
extern double claim_retry_after(const StoreRow *row);

/*
 * Finish the claim that claim_begin() started for the same request in the same transaction.
 * ID003 or ID006 if it is no longer open; 25006 if the transaction became read-only.
 */
extern void claim_finish(const ClaimRequest *request, const ClaimAnswer *answer);

/* Finish "claim", an open claim of this transaction. */
extern void claim_finish_open(const IdemKey *key, PendingClaim *claim, const ClaimAnswer *answer);

/*
 * Finish the claim that this transaction has begun, or the leased claim with that fence
 * (NO_FENCE: not given).  ID003, ID004 or ID006 if there is none; 25006.
 */
extern void claim_finish_any(const IdemKey *key, int64 fence, const ClaimAnswer *answer);

/*
 * Write the key's finished row unless there is one already.  Waits for concurrent holders.
 * True if written.  Without "lock", a claim of a free key needs no entry in the lock table.
 */
extern bool claim_once(const ClaimRequest *request, bool lock);

/*
 * The same in two steps, for a caller that may have to undo the write.  claim_write() writes
 * the row and returns when it expires.  claim_stays() confirms that the row stays; call it
 * before anything can commit.
 */
extern bool claim_write(const ClaimRequest *request, bool lock, TimestampTz *expires_at);
extern void claim_stays(const ClaimRequest *request, TimestampTz expires_at);

/* The row that claim_once() writes. */
extern StoreWrite claim_finished_row(const ClaimRequest *request);

/*
 * Would claim_once() find the key taken?  Waits for concurrent holders as claim_once()
 * does, but writes nothing.  "abandoned": a claim would take over an abandoned lease.
 */
extern bool claim_taken(const ClaimRequest *request, bool *abandoned);

/*
 * Write the finished row of work that was done elsewhere, unless a row of the key counts: a
 * finished one, or a leased claim, even an abandoned one.  True if written.  Takes no lock, as
 * claim_once() without "lock": waits for uncommitted rows, and a transaction claim of another
 * session finds the row when it finishes (40001).  The commit guard does not look at the row,
 * since no work of this transaction depends on it.  55P03 if this transaction has the key open.
 */
extern bool claim_import(const IdemKey *key, const StoreWrite *write);

#endif /* IDEM_CLAIM_H */
