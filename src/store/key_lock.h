/*-------------------------------------------------------------------------
 *
 * key_lock.h
 *	  The advisory lock of a key, and waits that end without an error.
 *
 * The lock lives in a tag space of its own, so it never meets the locks that
 * an application takes with pg_advisory_lock().  It belongs to the current
 * (sub)transaction: rolled back with it, else held to the end of the
 * transaction, and carried over by PREPARE TRANSACTION.  64 bits of the
 * digest make the tag: two keys that share it only ever wait for each other
 * without need, since the table's primary key decides what is a duplicate.
 *
 * Lock order: a session may hold any number of key locks; nothing is held
 * below them but buffer pins that the store gives back before it returns.
 * Deadlocks among keys are found by the server's detector (40P01).
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
 * The session keeps the lock that it has, for the key: to be seen in
 * idem_in_flight.
 */
extern void lock_show(const IdemKey *key);

/* Wait for the lock: lock_timeout, statement_timeout and deadlocks raise. */
extern void lock_wait(const IdemKey *key);

/* Wait for the lock at most until "deadline"; false if that came first. */
extern bool lock_wait_until(const IdemKey *key, TimestampTz deadline);

/* Give back what the last successful call of these took. */
extern void lock_release(const IdemKey *key);

/*
 * Run "wait", which blocks in the lock manager, at most until "deadline".
 * False if that came first; the session's own lock_timeout, if shorter, still
 * raises, as does anything else.
 */
extern bool lock_bounded(void (*wait)(void *arg), void *arg, TimestampTz deadline);

/* Have the messages of a wait name the key.  Undone by lock_context_pop(). */
typedef struct LockContext
{
	ErrorContextCallback callback;
	const IdemKey *key;
} LockContext;

extern void lock_context_push(LockContext *context, const IdemKey *key);
extern void lock_context_pop(LockContext *context);

#endif /* IDEM_KEY_LOCK_H */
