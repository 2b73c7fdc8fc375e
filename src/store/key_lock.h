/*-------------------------------------------------------------------------
 *
 * key_lock.h
 *	  The advisory lock of a key, and waits that time out without an error.
 *
 * The lock has its own tag space, so it never conflicts with the locks that an application
 * takes with pg_advisory_lock().  It belongs to the current (sub)transaction: it is
 * released if that rolls back, else held to the end of the transaction; PREPARE TRANSACTION
 * keeps it.  The tag is 64 bits of the digest.  Two keys with the same tag may wait for
 * each other without need, and no more: the primary key decides what is a duplicate.
 *
 * Lock order: a session may hold any number of key locks.  Below them it holds only buffer
 * pins, which the store releases before it returns.  The server's deadlock detector finds
 * deadlocks among keys (40P01).
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_LOCK_H
#define IDEM_KEY_LOCK_H

#include "datatype/timestamp.h"
#include "storage/lock.h"

#include "base/key.h"

/* Take the lock if it is free.  53200 if the lock table is full. */
extern bool lock_try(const IdemKey *key);

/*
 * The session is going to keep the lock that it holds on the key: show it in
 * idem_in_flight.
 */
extern void lock_show(const IdemKey *key);

/* Wait for the lock.  lock_timeout, statement_timeout and deadlocks raise errors. */
extern void lock_wait(const IdemKey *key);

/* Wait for the lock until "deadline"; false if it passed first. */
extern bool lock_wait_until(const IdemKey *key, TimestampTz deadline);

/* Release the lock that the last successful call of these functions took. */
extern void lock_release(const IdemKey *key);

/*
 * Run "wait", which blocks in the lock manager, until "deadline" at most.  False if that
 * passed first.  The session's own lock_timeout, if shorter, still raises its error, and
 * so does anything else.
 */
extern bool lock_bounded(void (*wait)(void *arg), void *arg, TimestampTz deadline);

/* Name the key in the error messages of a wait, until lock_context_pop(). */
typedef struct LockContext
{
	ErrorContextCallback callback;
	const IdemKey *key;
} LockContext;

extern void lock_context_push(LockContext *context, const IdemKey *key);
extern void lock_context_pop(LockContext *context);

#endif /* IDEM_KEY_LOCK_H */
