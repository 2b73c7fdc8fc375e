/*-------------------------------------------------------------------------
 *
 * store.h
 *	  The rows of idem_keys: find, write once, erase.
 *
 * The state of a row, and who may see it
 * -------------------------------------
 *
 *	absent		No version of the row counts.  The key is free.
 *	held		Written by a transaction that is still running.  Seen by
 *				everybody, unlike under a snapshot: it is how idem_claim_many,
 *				which takes no lock per key, holds its keys.
 *	leased		A leased claim whose lease is running: the claim of whoever
 *				knows its fence.
 *	abandoned	A leased claim whose lease has run out or was released.  Its
 *				fence still counts until somebody takes over, which gives it a
 *				new one; its recovery point is kept.
 *	finished	Its result is the answer to every later caller.
 *	expired		Finished or abandoned, and its time has run out.  It counts as
 *				absent, yet it still occupies its place in the primary key, so
 *				it is replaced rather than inserted anew.
 *
 * Leased, abandoned and finished rows are committed, or written by the current
 * transaction.
 *
 *		absent --write--> held --commit--> finished --time--> expired
 *		   ^                |                  ^                 |  |
 *		   +----rollback----+                  |    held <-------+  |
 *		   |                +--commit--> leased/abandoned --time----+
 *		   +--------------------------purge-------------------------+
 *
 * A leased row is only ever changed under the key's lock (key_lock.h), which the
 * caller takes: so its states do not change between a look and a write.  The lock may
 * be given back after the write: an abandoned row that an uncommitted transaction has
 * changed is held.
 *
 * Look-ups see the newest state, whatever the transaction's snapshot, and
 * take no SIREAD locks.  Where the isolation level promises a snapshot, they
 * tell of a row that this snapshot does not see it.  Before a row of another transaction is reported, its
 * commit is flushed, if synchronous_commit asks for durability: an answer
 * must not outlive, in a crash, what it was read from.
 *
 * A transaction claim that is begun and not finished has no row: see
 * pending.h and key_lock.h.  The store takes no key locks and knows no claims; it
 * relies on the primary key alone to keep a second row out.
 *
 * Errors of every call: 0A000 if idem_keys is not a plain, logged, local heap
 * without triggers; 55000 if its columns are not those of this library.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_H
#define IDEM_STORE_H

#include "datatype/timestamp.h"

#include "base/fingerprint.h"
#include "base/key.h"

typedef enum StoreState
{
	STORE_ABSENT,
	STORE_HELD,
	STORE_LEASED,
	STORE_ABANDONED,
	STORE_FINISHED,
	STORE_EXPIRED
} StoreState;

/* fences are positive; what a caller may pass by mistake is something else */
#define NO_FENCE PG_INT64_MIN

/* Who holds a held row: the store's own affair. */
typedef struct StoreHolder
{
	TransactionId xid;
	uint32 token; /* not 0: its insertion is still speculative */
} StoreHolder;

typedef struct StoreRow
{
	StoreState state;
	StoreHolder holder; /* held: for store_wait() */

	/*
	 * Leased, abandoned, finished: committed after the snapshot that the
	 * isolation level promises.  Acting on it then means 40001.
	 */
	bool unseen;

	/* The newest version was written by the current transaction. */
	bool own;

	/* leased, abandoned, finished: the row, copied to the current memory context */
	bool has_fingerprint;
	uint8 fingerprint[FINGERPRINT_BYTES];
	bool has_result;
	Datum result; /* jsonb */
	int64 fence;  /* or NO_FENCE; of an expired row as well */
	Interval ttl; /* leased and abandoned */
	int32 attempt;
	text *phase;			 /* or NULL */
	bool has_progress;		 /* told of abandoned rows, and by store_lookup() */
	Datum progress;			 /* jsonb */
	TimestampTz lease_until; /* 0: none */
	TimestampTz created_at;
	TimestampTz finished_at; /* 0: not finished */
	TimestampTz expires_at;
} StoreRow;

typedef struct StoreWrite
{
	const uint8 *fingerprint; /* NULL: none; a take-over then keeps the old one */
	bool has_result;
	Datum result; /* jsonb */
	TimestampTz created_at;
	TimestampTz finished_at; /* 0: a leased row */
	TimestampTz expires_at;

	/* leased rows only */
	TimestampTz lease_until;
	int64 fence;
	Interval ttl;
} StoreWrite;

/* What extend and checkpoint change. */
typedef struct StoreRenewal
{
	text *phase; /* NULL: phase and progress stay */
	bool has_progress;
	Datum progress;			 /* jsonb */
	TimestampTz lease_until; /* 0: the lease stays */
	TimestampTz expires_at;	 /* of the new lease */
} StoreRenewal;

extern void store_init(void);

/* What is there now. */
extern void store_probe(const IdemKey *key, StoreRow *row);

/*
 * Wait for the holder of a held row to end, at most until "deadline"
 * (DT_NOEND: as long as the session's timeouts allow); false if that came
 * first.  Probe again afterwards.
 */
extern bool store_wait(const IdemKey *key, const StoreRow *row, TimestampTz deadline);

/*
 * Write a finished row, to finish a transaction claim.  "seen" is what begin
 * saw: an absent or expired row, or an abandoned one with "seen_fence", which
 * is taken over.  Waits for uncommitted writers of the same key; 40001 if one
 * of them commits.
 */
extern void
store_finish(const IdemKey *key, const StoreWrite *write, StoreState seen, int64 seen_fence);

/*
 * Write a finished or a leased row over what "row", the last probe, tells:
 * absent, expired, or abandoned, which is taken over.  Without an error if
 * that has changed: false, nothing written, probe again.
 */
extern bool store_claim(const IdemKey *key, const StoreWrite *write, const StoreRow *row);

/*
 * Changes to the leased or abandoned row with that fence.  False if there is
 * no such row (any more): probe again for the reason.
 */
extern bool store_lease_finish(const IdemKey *key, int64 fence, const StoreWrite *write);
extern bool store_lease_release(const IdemKey *key, int64 fence, TimestampTz expires_at);
extern bool store_lease_renew(const IdemKey *key, int64 fence, const StoreRenewal *renewal);

/*
 * A number that was never issued before, nor will be again.  55000 if it is not
 * above "last", the fence of the row that it is for: the sequence was set back,
 * or did not come along when the table was copied.
 */
extern int64 store_new_fence(int64 last);

/*
 * The row, as the active snapshot sees it; false if there is none or it has
 * expired, or if our own transaction claim has written it.  For read-only callers: takes part in no claim.
 */
extern bool store_lookup(const IdemKey *key, StoreRow *row);

/* Has the key's newest row, if there is one, expired, or taken the place of one that did so "at"? */
extern bool store_has_expired(const IdemKey *key, TimestampTz at);

/*
 * Erase a row, committed or our own, in whatever state.  True if an unexpired row was
 * erased.  "row" tells the state; if it is held, nothing was erased: wait and try again.
 */
extern bool store_forget(const IdemKey *key, StoreRow *row);

/* Erase all rows of a scope, which is a sequential scan; how many. */
extern int64 store_forget_scope(text *scope);

#endif /* IDEM_STORE_H */
