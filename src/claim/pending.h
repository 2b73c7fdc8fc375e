/*-------------------------------------------------------------------------
 *
 * pending.h
 *	  The claims of the current transaction, and the commit guard.
 *
 * A transaction claim has no row until it is finished; until then it is an entry here and
 * an advisory lock (key_lock.h).  Entries follow subtransactions: when a subtransaction
 * rolls back, a claim begun in it is forgotten, and a finish or release in it is undone.
 *
 * The commit guard: a transaction cannot commit or PREPARE while it has an open claim, or
 * if a key that it wrote has expired (ID005).  Otherwise its effects would stay while the
 * key is forgotten.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_PENDING_H
#define IDEM_PENDING_H

#include "access/xact.h"
#include "datatype/timestamp.h"
#include "lib/ilist.h"

#include "base/fingerprint.h"
#include "base/key.h"
#include "store/store.h"

typedef enum PendingState
{
	PENDING_OPEN,	  /* begun; the work is under way */
	PENDING_LEASED,	  /* a leased claim of this transaction: the row has its state */
	PENDING_CHANGED,  /* another transaction's leased claim, changed by this one */
	PENDING_FINISHED, /* its row is written, not committed */
	PENDING_RELEASED, /* released; kept so that a rollback can undo that */
	PENDING_WRITTEN	  /* not a claim: a row written without a begin, see pending_written() */
} PendingState;

/* What a finish stores. */
typedef struct ClaimAnswer
{
	bool failed; /* the result is the error of a failure */
	bool has_result;
	Datum result;		 /* jsonb */
	const Interval *ttl; /* NULL: that of the claim */
} ClaimAnswer;

typedef struct PendingClaim
{
	slist_node node; /* newest first */
	dlist_node by_key;
	IdemKey key;
	PendingState state;
	SubTransactionId begun_in;
	SubTransactionId ended_in; /* where it was finished or released; none while open */

	/* while open: what finish needs */
	Interval ttl;
	TimestampTz begun_at;
	bool has_fingerprint;
	uint8 fingerprint[FINGERPRINT_BYTES];
	StoreState seen; /* what begin saw in the table */
	int64 fence;	 /* of the abandoned row that begin saw; if leased, of this claim */

	TimestampTz expires_at; /* unless open: the earliest time at which the row expires */
	bool merged;			/* written: stands for other rows too, which expire no earlier */
	bool begun_with_xid;
	CommandId begun_cid; /* shows whether anything was written since */

	/*
	 * The innermost subtransaction that began before anything was written after the claim,
	 * or invalid.
	 */
	SubTransactionId clean_since;
} PendingClaim;

extern void pending_init(void);

/*
 * The newest claim of the key that is open, leased or finished, or NULL.
 */
extern PendingClaim *pending_find(const IdemKey *key);

/* Has this transaction begun a claim of the key, and not finished it?  A lease is no such claim. */
extern bool pending_is_open(const IdemKey *key);

/*
 * Has this transaction begun or changed a leased claim of the key?  With a
 * fence: under that fence.
 */
extern bool pending_leased(const IdemKey *key, int64 fence);

/* Remember an open claim.  The caller holds the key's lock. */
extern PendingClaim *pending_begin(const IdemKey *key, const Interval *ttl, TimestampTz begun_at,
								   const uint8 *fingerprint, StoreState seen, int64 seen_fence);

/*
 * Remember the fence of a leased claim whose row is written.  The claiming transaction
 * then need not pass it.
 */
extern void pending_lease(const IdemKey *key, int64 fence, TimestampTz expires_at);

/*
 * The row of the leased claim with that fence was changed and now expires at that time.
 * Any transaction may have begun the claim.
 */
extern void pending_changed(const IdemKey *key, int64 fence, TimestampTz expires_at);

extern void pending_finish(PendingClaim *claim, TimestampTz expires_at);
extern void pending_release(PendingClaim *claim);

/*
 * A row was written without a begin.  If it still exists at commit, the commit guard checks
 * that it has not expired.  When there are very many such rows, one entry, the first to
 * expire, stands for several; it then counts even if its row is gone.
 */
extern void pending_written(const IdemKey *key, TimestampTz expires_at);

/*
 * Check now what the commit guard would check at a commit (ID005), without counting it as an
 * error of the guard.
 */
extern void pending_check(void);

/* Has the transaction written anything since the claim was begun? */
extern bool pending_has_written(const PendingClaim *claim);

#endif /* IDEM_PENDING_H */
