/*-------------------------------------------------------------------------
 *
 * key_lock.c
 *	  The advisory lock of a key, and waits that time out without an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/errors.h"
#include "base/subtransaction.h"
#include "store/key_lock.h"
#include "store/lock_notes.h"

/*
 * field4 of the tag.  SQL's pg_advisory_*() functions use 1 and 2; any other value is a
 * separate space.
 */
#define KEY_LOCK_SPACE 0x1DE0

static void
key_locktag(LOCKTAG *tag, const IdemKey *key)
{
	uint32 half[2];

	memcpy(half, key->digest.data, sizeof(half));
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, half[0], half[1], KEY_LOCK_SPACE);
}

/*
 * The lock must last exactly as long as the (sub)transaction's entry for the claim.  So the
 * transaction's resource owner owns it, not that of the portal which happens to run: a
 * cursor outlives savepoints, and a failed one ends before its transaction.
 */
static ResourceOwner
enter_transaction_owner(void)
{
	ResourceOwner owner = CurrentResourceOwner;

	CurrentResourceOwner = CurTransactionResourceOwner;
	return owner;
}

/*
 * LockAcquire() with an error of our own when the lock table is full: the caller may not
 * know that a claim takes a lock.
 */
static bool
acquire(const IdemKey *key, bool dont_wait)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = enter_transaction_owner();
	LockAcquireResult result;
	LOCKTAG tag;

	key_locktag(&tag, key);
	PG_TRY();
	{
		result = LockAcquire(&tag, ExclusiveLock, false, dont_wait);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		CurrentResourceOwner = owner;
		if (geterrcode() != ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();

		/* same SQLSTATE if the backend itself is out of memory */
		if (strcmp(edata->message_id, "out of shared memory") != 0)
			PG_RE_THROW();
		FlushErrorState();
		error_lock_table_full(key);
	}
	PG_END_TRY();
	CurrentResourceOwner = owner;

	return result != LOCKACQUIRE_NOT_AVAIL;
}

bool
lock_try(const IdemKey *key)
{
	return acquire(key, true);
}

void
lock_show(const IdemKey *key)
{
	LOCKTAG tag;

	key_locktag(&tag, key);
	lock_notes_add(&tag, key);
}

static void
context_callback(void *arg)
{
	errcontext("while waiting for idempotency key \"%s\"", key_display(((LockContext *) arg)->key));
}

void
lock_context_push(LockContext *context, const IdemKey *key)
{
	context->key = key;
	context->callback.callback = context_callback;
	context->callback.arg = context;
	context->callback.previous = error_context_stack;
	error_context_stack = &context->callback;
}

void
lock_context_pop(LockContext *context)
{
	error_context_stack = context->callback.previous;
}

void
lock_wait(const IdemKey *key)
{
	LockContext context;

	lock_context_push(&context, key);
	(void) acquire(key, false);
	lock_context_pop(&context);
}

void
lock_release(const IdemKey *key)
{
	ResourceOwner owner = enter_transaction_owner();
	LOCKTAG tag;

	key_locktag(&tag, key);
	(void) LockRelease(&tag, ExclusiveLock, false);
	CurrentResourceOwner = owner;
}

static void
wait_for_lock(void *arg)
{
	lock_wait(arg);
}

/*
 * The wait itself takes the lock, in a subtransaction; our (sub)transaction inherits it
 * when that ends.  If we released the lock and tried again, several waiters could pass it
 * around among themselves until they time out.
 */
bool
lock_wait_until(const IdemKey *key, TimestampTz deadline)
{
	return lock_bounded(wait_for_lock, unconstify(IdemKey *, key), deadline);
}

/*
 * The server has only one way to end a lock wait early: lock_timeout, which raises an
 * error.  So we run the wait with our own lock_timeout in a subtransaction, and go on after
 * it has rolled back.  The subtransaction writes nothing, so it takes no xid.
 */
bool
lock_bounded(void (*wait)(void *arg), void *arg, TimestampTz deadline)
{
	Subtransaction sub;
	int session_timeout = LockTimeout;
	volatile bool ours = false;
	volatile bool done = false;
	long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

	if (left <= 0)
		return false;

	subtransaction_begin(&sub);
	PG_TRY();
	{
		if (session_timeout == 0 || left < session_timeout)
		{
			LockTimeout = (int) Min(left, INT_MAX);
			ours = true;
		}
		wait(arg);

		/* our timer may have fired after the lock was granted, before it was disabled */
		CHECK_FOR_INTERRUPTS();
		LockTimeout = session_timeout;
		subtransaction_commit(&sub);
		done = true;
	}
	PG_CATCH();
	{
		ErrorData *edata;

		LockTimeout = session_timeout;
		edata = subtransaction_catch(&sub);
		if (!ours || edata->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			ReThrowError(edata);
		FreeErrorData(edata);
	}
	PG_END_TRY();
	return done;
}
