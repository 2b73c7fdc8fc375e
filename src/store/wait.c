/*-------------------------------------------------------------------------
 *
 * wait.c
 *	  Wait for the transaction that holds a row, or for a lease.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/subtrans.h"
#include "access/transam.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "base/compat.h"
#include "base/errors.h"
#include "store/key_lock.h"
#include "store/store.h"

/* how often a standby checks whether a holder has ended, in milliseconds */
#define STANDBY_POLL_MS 10

/* how often a session that waits for a lease looks at the row, in milliseconds */
#define LEASE_POLL_MS 50

static void
wait_for_insertion(void *arg)
{
	const StoreHolder *holder = arg;

	SpeculativeInsertionWait(holder->xid, holder->token);
}

static void
wait_for_xid(void *arg)
{
	LOCKTAG tag;

	SET_LOCKTAG_TRANSACTION(tag, *(TransactionId *) arg);
	(void) LockAcquire(&tag, ShareLock, false, false);
	(void) LockRelease(&tag, ShareLock, false);
}

/*
 * XactLockTableWait() with a deadline.  The holder may be a subtransaction that is released
 * while we wait, as a batch's is at once; then we wait for its parent, in the time that is left,
 * and so on.  The server's function waits for the top-level transaction then, which may go on
 * for long after a rollback to a savepoint has freed the key.
 */
static bool
wait_for_transaction(TransactionId xid, TimestampTz deadline)
{
	TransactionId ancestor = xid;

	for (;;)
	{
		TransactionId parent;

		if (TIMESTAMP_IS_NOEND(deadline))
			wait_for_xid(&ancestor);
		else if (!lock_bounded(wait_for_xid, &ancestor, deadline))
			return false;
		if (!TransactionIdIsInProgress(xid))
			return true;
		CHECK_FOR_INTERRUPTS();
		parent = SubTransGetParent(ancestor);
		if (TransactionIdIsValid(parent))
			ancestor = parent;
		else
			pg_usleep(1000); /* it is about to end */
	}
}

static bool
wait_for_holder(const StoreHolder *holder, TimestampTz deadline)
{
	if (holder->token != 0)
	{
		if (!TIMESTAMP_IS_NOEND(deadline))
			return lock_bounded(wait_for_insertion, unconstify(StoreHolder *, holder), deadline);
		SpeculativeInsertionWait(holder->xid, holder->token);
		return true;
	}
	return wait_for_transaction(holder->xid, deadline);
}

/*
 * On a standby the holder runs on the primary and holds no lock here.  The server's own
 * function could only poll as well, and it ignores timeouts.
 */
static bool
wait_on_standby(const StoreHolder *holder, TimestampTz deadline)
{
	static uint32 wait_event = 0;
	TimestampTz lock_deadline =
		LockTimeout > 0 ? GetCurrentTimestamp() + LockTimeout * INT64CONST(1000) : DT_NOEND;

	while (TransactionIdIsInProgress(holder->xid))
	{
		TimestampTz now = GetCurrentTimestamp();

		if (deadline <= now)
			return false;
		if (lock_deadline <= now)
			error_lock_timeout();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, STANDBY_POLL_MS,
						 idem_wait_event(&wait_event, "IdempotencyHolder"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

bool
store_wait(const IdemKey *key, const StoreHolder *holder, TimestampTz deadline)
{
	LockContext context;
	bool ended = true;

	lock_context_push(&context, key);
	if (RecoveryInProgress())
		ended = wait_on_standby(holder, deadline);
	else
		ended = wait_for_holder(holder, deadline);
	lock_context_pop(&context);
	return ended;
}

/*
 * A lease ends when its row changes or by the clock, and no lock stands for it.  So we can
 * only look again.  An event that wakes us early does not make us look sooner.
 */
bool
store_wait_lease(const IdemKey *key, TimestampTz lease_until, TimestampTz deadline)
{
	static uint32 wait_event = 0;
	LockContext context;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until = Min(lease_until, now + LEASE_POLL_MS * INT64CONST(1000));
	bool timed_out = false;

	if (deadline <= now)
		return false;
	until = Min(until, deadline);

	lock_context_push(&context, key);
	for (; now < until && !timed_out; now = GetCurrentTimestamp())
	{
		/* no longer than that, even if the clock is set back meanwhile */
		long left = Min(TimestampDifferenceMilliseconds(now, until), LEASE_POLL_MS);
		int events = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left,
							   idem_wait_event(&wait_event, "IdempotencyLease"));

		timed_out = (events & WL_TIMEOUT) != 0;
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	lock_context_pop(&context);
	return true;
}
