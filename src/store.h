/*-------------------------------------------------------------------------
 *
 * store.h
 *	  The rows of idem_keys: find, write once, erase.
 *
 * The life of a row, and who may see it
 * -------------------------------------
 *
 *	absent		No version of the row counts.  The key is free.
 *	held		Written by a transaction that is still running.  Seen by
 *				everybody, unlike under a snapshot: it is how idem_claim_many,
 *				which takes no lock per key, holds its keys.
 *	finished	Committed, or written by the current transaction, and not yet
 *				expired.  Its result is the answer to every later caller.
 *	expired		As finished, but its time has run out.  It counts as absent,
 *				yet it still occupies its place in the primary key, so it is
 *				replaced rather than inserted anew.
 *
 *		absent ---write---> held ---commit---> finished ---time---> expired
 *		   ^                  |                                      |   |
 *		   +-----rollback-----+         held <-------replace---------+   |
 *		   +-----------------------------purge---------------------------+
 *
 * Look-ups see the newest state, whatever the transaction's snapshot, and
 * take no SIREAD locks.  Where the isolation level promises a snapshot, a
 * finished row that this snapshot does not see raises 40001, as ON CONFLICT
 * does.  Before a row of another transaction is reported as finished, its
 * commit is flushed, if synchronous_commit asks for durability: an answer
 * must not outlive, in a crash, what it was read from.
 *
 * A transaction claim that is begun and not finished has no row: see
 * pending.h and lock.h.  The store takes no key locks and knows no claims; it
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

#include "fingerprint.h"
#include "key.h"

typedef enum StoreLife
{
	STORE_ABSENT,
	STORE_HELD,
	STORE_FINISHED,
	STORE_EXPIRED
} StoreLife;

typedef struct StoreRow
{
	StoreLife life;

	/* held: who by.  For store_wait() only. */
	TransactionId holder;
	uint32 holder_token;

	/* finished: the row; result is a copy in the current memory context */
	bool has_fingerprint;
	uint8 fingerprint[FINGERPRINT_BYTES];
	bool has_result;
	Datum result; /* jsonb */
	int32 attempt;
	TimestampTz created_at;
	TimestampTz finished_at;
	TimestampTz expires_at;
} StoreRow;

typedef struct StoreWrite
{
	const uint8 *fingerprint; /* NULL: none */
	bool has_result;
	Datum result; /* jsonb */
	TimestampTz created_at;
	TimestampTz finished_at;
	TimestampTz expires_at;
} StoreWrite;

extern void store_init(void);

/* What is there now.  May raise 40001, see above. */
extern void store_probe(const IdemKey *key, StoreRow *row);

/*
 * Wait for the holder of a held row to end, at most until "deadline"
 * (DT_NOEND: as long as the session's timeouts allow); false if that came
 * first.  Probe again afterwards.
 */
extern bool store_wait(const IdemKey *key, const StoreRow *row, TimestampTz deadline);

/*
 * Write a finished row.  "replaces": an expired one was seen.  Waits for
 * uncommitted writers of the same key; 40001 if one of them commits.
 */
extern void store_finish(const IdemKey *key, const StoreWrite *write, bool replaces);

/*
 * Write a finished row if the key is free, without waiting and without an
 * error if it is not: false, nothing written, probe again.  "row" is what the
 * last probe told: absent or expired.
 */
extern bool store_claim(const IdemKey *key, const StoreWrite *write, const StoreRow *row);

/*
 * The committed row, as the active snapshot sees it; false if there is none
 * or it has expired.  For read-only callers: takes part in no claim.
 */
extern bool store_lookup(const IdemKey *key, StoreRow *row);

/*
 * Erase a row, committed or our own, expired or not.  Waits for uncommitted
 * writers.  True if an unexpired row was erased.
 */
extern bool store_forget(const IdemKey *key);

/* Erase all rows of a scope, which is a sequential scan; how many. */
extern int64 store_forget_scope(text *scope);

#endif /* IDEM_STORE_H */
