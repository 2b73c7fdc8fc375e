/*-------------------------------------------------------------------------
 *
 * pending.h
 *	  The claims of the current transaction, and the commit guard.
 *
 * A transaction claim is not in the table before it is finished; until then
 * it is an entry here and an advisory lock (key_lock.h).  Entries follow the
 * subtransactions: rolled back, a begin inside is forgotten, and a finish or
 * a release inside is undone.
 *
 * The guard: a transaction with an open claim, or with a key that it wrote and
 * whose time has run out, cannot commit nor PREPARE (ID005); otherwise its effect
 * would stay and the key be forgotten.
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
	PENDING_LEASED,	  /* a leased claim of this transaction: its row tells its state */
	PENDING_CHANGED,  /* a leased claim of another transaction that this one has changed */
	PENDING_FINISHED, /* its row is written, not committed */
	PENDING_RELEASED, /* given up; kept for a rollback to undo */
	PENDING_WRITTEN	  /* no claim: a row written without a begin, see pending_written() */
} PendingState;

typedef struct PendingClaim
{
	slist_node node; /* newest first */
	dlist_node by_key;
	IdemKey key;
	PendingState state;
	SubTransactionId begun_in;
	SubTransactionId ended_in; /* finished or released in; while open: none */

	/* open: what finish needs to know */
	Interval ttl;
	TimestampTz begun_at;
	bool has_fingerprint;
	uint8 fingerprint[FINGERPRINT_BYTES];
	StoreState seen; /* what begin saw in the table */
	int64 fence;	 /* of the abandoned row that begin saw; leased: of this claim */

	TimestampTz expires_at; /* unless open: when the row expires, at the earliest */
	bool merged;			/* written: stands for others as well, which expire no earlier */
	bool begun_with_xid;
	CommandId begun_cid; /* to see whether anything was written since */

	/* the innermost subtransaction at whose start nothing was written since, or invalid */
	SubTransactionId clean_since;
} PendingClaim;

extern void pending_init(void);

/*
 * The newest claim of the key that is open, leased or finished, or NULL.
 */
extern PendingClaim *pending_find(const IdemKey *key);

/*
 * Has this transaction begun or changed a leased claim of the key?  With a
 * fence: under that fence.
 */
extern bool pending_leased(const IdemKey *key, int64 fence);

/* Remember an open claim.  The caller holds the key's lock. */
extern PendingClaim *pending_begin(const IdemKey *key, const Interval *ttl, TimestampTz begun_at,
								   const uint8 *fingerprint, StoreState seen, int64 seen_fence);

/*
 * Remember the fence of a leased claim, whose row is written: in the claiming
 * transaction it need not be given.
 */
extern void pending_lease(const IdemKey *key, int64 fence, TimestampTz expires_at);

/*
 * The row of a leased claim under that fence, begun in this transaction or not,
 * was changed to live until then.
 */
extern void pending_changed(const IdemKey *key, int64 fence, TimestampTz expires_at);

extern void pending_finish(PendingClaim *claim, TimestampTz expires_at);
extern void pending_release(PendingClaim *claim);

/*
 * A row was written without a begin; the guard sees to it that it does not
 * expire before the commit, if it is still there.  Of very many, only the first to
 * expire is kept, and whether it is there does not matter then.
 */
extern void pending_written(const IdemKey *key, TimestampTz expires_at);

/* Has the transaction written anything since the claim was begun? */
extern bool pending_has_written(const PendingClaim *claim);

#endif /* IDEM_PENDING_H */
