/*-------------------------------------------------------------------------
 *
 * store.h
 *	  The rows of idem_keys: find, write once, erase.
 *
 * The states of a row
 * -------------------
 *
 *	absent		No version of the row counts.  The key is free.
 *	held		Written by a transaction that is still running.  All sessions
 *				see it, unlike under a snapshot.  This is how idem_claim_many,
 *				which takes no lock per key, holds its keys.
 *	leased		A leased claim whose lease is running.  It belongs to the
 *				caller that knows its fence.
 *	abandoned	A leased claim whose lease has run out or was released.  If it
 *				ran out, its fence stays valid until a take-over issues a new
 *				one.  Its recovery point is kept.
 *	finished	Its result is the answer to every later caller.
 *	expired		Finished or abandoned, and its time has run out.  It counts as
 *				absent, but it still has its entry in the primary key, so it is
 *				updated instead of inserted anew.
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
 * Every change to a leased row needs the key's lock (key_lock.h), which the caller takes.
 * So no other session changes the row between a look and a write.  The caller may release
 * the lock after the write, because an abandoned row that an uncommitted transaction has
 * changed counts as held.
 *
 * Look-ups see the newest state, whatever the transaction's snapshot, and take no SIREAD
 * locks.  If the isolation level promises a snapshot, they report whether that snapshot can
 * see the row.  Never report a row that a crash could still undo: if synchronous_commit
 * asks for durability, a look-up first flushes the other transaction's commit.
 *
 * A transaction claim has no row until it is finished: see pending.h and key_lock.h.  The
 * store takes no key locks and knows nothing of claims; it relies on the primary key alone
 * to keep a second row out.
 *
 * Every function may raise 0A000 if idem_keys is not a plain, logged, local heap without
 * triggers, and 55000 if its columns are not those that this library expects.
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

/* fences are positive; this is a value that no caller passes by mistake */
#define NO_FENCE PG_INT64_MIN

/* The transaction that holds a row.  Private to the store. */
typedef struct StoreHolder
{
	TransactionId xid;
	uint32 token; /* not 0: the insertion is still speculative */
} StoreHolder;

typedef struct StoreRow
{
	StoreState state;
	StoreHolder holder; /* if held: for store_wait() */

	/*
	 * If leased, abandoned or finished: committed after the snapshot that the isolation
	 * level promises.  To act on the row is then a serialization failure (40001).
	 */
	bool unseen;

	/* Nobody has looked; "absent" is what the caller expects. */
	bool unlooked;

	/* The current transaction wrote the newest version. */
	bool own;

	/* if leased, abandoned or finished: the row, copied to the current memory context */
	bool has_fingerprint;
	uint8 fingerprint[FINGERPRINT_BYTES];
	bool has_result;
	Datum result; /* jsonb */
	bool failed;  /* finished by a failure: the result is its error */
	int64 fence;  /* or NO_FENCE; of an expired row as well */
	Interval ttl; /* leased and abandoned */
	int32 attempt;
	text *phase;			 /* or NULL */
	bool has_progress;		 /* set for abandoned rows, and by store_lookup() */
	Datum progress;			 /* jsonb */
	TimestampTz lease_until; /* 0: none */
	TimestampTz created_at;
	TimestampTz finished_at; /* 0: not finished */
	TimestampTz expires_at;
} StoreRow;

typedef struct StoreWrite
{
	const uint8 *fingerprint; /* NULL: none; a take-over then keeps the stored one */
	bool has_result;
	Datum result; /* jsonb */
	bool failed;  /* 55000 if the table lacks the column */
	TimestampTz created_at;
	TimestampTz finished_at; /* 0: a leased row */
	TimestampTz expires_at;

	/* leased rows only */
	TimestampTz lease_until;
	int64 fence;
	Interval ttl;
} StoreWrite;

/* What idem_extend and idem_checkpoint change. */
typedef struct StoreRenewal
{
	text *phase; /* NULL: phase and progress stay */
	bool has_progress;
	Datum progress;			 /* jsonb */
	TimestampTz lease_until; /* 0: the lease stays */
	TimestampTz expires_at;	 /* with the new lease */
} StoreRenewal;

extern void store_init(void);

/*
 * Does Citus distribute the keys by tenant?  Then each scope is a tenant: see shard.h.  For a
 * caller that claims next.
 */
extern bool store_is_distributed(void);

/* Look up the key's row as it is now. */
extern void store_probe(const IdemKey *key, StoreRow *row);

/*
 * Was the key of this session's last look new?  Then the next one probably is, too.  Nothing
 * may depend on it but the order of steps.
 */
extern bool store_likely_new(void);

/*
 * Wait until the transaction that holds the row ends, or until "deadline" (DT_NOEND: as
 * long as the session's timeouts allow).  False if the deadline passed first.  Probe again
 * afterwards.
 */
extern bool store_wait(const IdemKey *key, const StoreHolder *holder, TimestampTz deadline);

/*
 * Wait until the lease ends by the clock, until it is time to look at the row again, or until
 * "deadline".  False, at once, if the deadline has passed.  Probe again afterwards.
 */
extern bool store_wait_lease(const IdemKey *key, TimestampTz lease_until, TimestampTz deadline);

/*
 * Write the finished row of a transaction claim.  "seen" is what begin saw: an absent or
 * expired row, or an abandoned one with "seen_fence", which is taken over.  Waits for
 * uncommitted writers of the same key; 40001 if one of them commits.
 */
extern void
store_finish(const IdemKey *key, const StoreWrite *write, StoreState seen, int64 seen_fence);

/*
 * Write a finished or a leased row over "row", the result of the last probe: absent,
 * expired, or abandoned, which is taken over.  If the row has changed since, returns false
 * and writes nothing: probe again.  So it does for a row that is "unlooked" if the table has
 * further indexes, since one of them could raise an error that a look would have prevented.
 */
extern bool store_claim(const IdemKey *key, const StoreWrite *write, const StoreRow *row);

/*
 * Look up and write the rows of many keys, with the table opened once.  Look-ups may be
 * reported only after store_batch_end(), which makes them durable.  If keys are distributed,
 * all must have that scope (0A000).
 */
typedef struct StoreBatch StoreBatch;

extern StoreBatch *store_batch_begin(text *scope);
extern StoreState store_batch_probe(StoreBatch *batch, const IdemKey *key, bool *unseen);

/*
 * Is the next key likely to have no row, by the last look, and is it safe to write it without
 * one?  An index of the owner's may object to a row that only replaces an expired one.
 */
extern bool store_batch_likely_new(StoreBatch *batch);

/* Unpin the pages of the last look-up; needed before a wait outside the batch. */
extern void store_batch_rest(StoreBatch *batch);

/*
 * Write finished rows for keys whose rows were absent, in the order of digests and without
 * repeats.  Waits for transactions that have written one of them since.  False if nothing
 * was written, because one of those has committed, or because the transaction has used this
 * often enough.  The same pointer in "writes" stands for the same row.
 */
extern bool store_batch_write(StoreBatch *batch, const IdemKey *const *keys,
							  const StoreWrite *const *writes, int n);
extern void store_batch_end(StoreBatch *batch);

/*
 * Change the leased or abandoned row with that fence.  False if there is no such row, or no
 * longer: probe again to find out why.
 */
extern bool store_lease_finish(const IdemKey *key, int64 fence, const StoreWrite *write);
extern bool store_lease_release(const IdemKey *key, int64 fence, TimestampTz expires_at);
extern bool store_lease_renew(const IdemKey *key, int64 fence, const StoreRenewal *renewal);

/*
 * A fence that was never issued before and never will be again.  55000 if it is not greater
 * than "last", the fence that the row has now: the sequence was set back, or was not copied
 * together with the table.
 */
extern int64 store_new_fence(const IdemKey *key, int64 last);

/*
 * The row as the active snapshot sees it.  False if there is none, if it has expired, or if
 * our own transaction claim has written it.  For callers that only read: it takes no part
 * in the protocol of claims.
 */
extern bool store_lookup(const IdemKey *key, StoreRow *row);

/*
 * Has the key's newest row expired, or was it created no earlier than "at", when an earlier
 * row of the key was to expire?  False if no row counts.
 */
extern bool store_has_expired(const IdemKey *key, TimestampTz at);

/*
 * Erase a row in any state, committed or our own.  True if an unexpired row was erased.
 * Fills only the state and the holder of "row"; if the row is held, nothing was erased:
 * wait and try again.
 */
extern bool store_forget(const IdemKey *key, StoreRow *row);

/* Erase all rows of a scope with a sequential scan.  Returns their number. */
extern int64 store_forget_scope(text *scope);

#endif /* IDEM_STORE_H */
