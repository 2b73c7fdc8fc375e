/*-------------------------------------------------------------------------
 *
 * durable.c
 *	  Never report a row that a crash could still undo.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/bufmgr.h"
#include "storage/latch.h"
#include "storage/lwlock.h"

#include "base/compat.h"
#include "store/durable.h"

/* after so many looks the standby is slow or down, and a few milliseconds do not matter */
#define QUICK_LOOKS 100

static bool
wanted(void)
{
	return synchronous_commit > SYNCHRONOUS_COMMIT_OFF && !RecoveryInProgress();
}

/*
 * Do commits wait for a standby?  The value in shared memory decides, as in
 * SyncRepWaitForLSN(): a session's own copy of the setting may be out of date, and in a
 * background worker it stays so.
 */
static bool
standby_expected(void)
{
	uint8 status;

	if (max_wal_senders == 0)
		return false;
	status = *(volatile uint8 *) &idem_sync_standbys(WalSndCtl);
	if (!idem_sync_standbys_has_bits())
		return status != 0;
	/* just started */
	if (!(status & IDEM_SYNC_STANDBY_INIT))
		return SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0';
	return (status & IDEM_SYNC_STANDBY_DEFINED) != 0;
}

static bool
standby_has(XLogRecPtr lsn, int mode)
{
	bool has;

	LWLockAcquire(SyncRepLock, LW_SHARED);
	has = WalSndCtl->lsn[mode] >= lsn;
	LWLockRelease(SyncRepLock);
	return has;
}

/*
 * Does not use SyncRepWaitForLSN().  When that is cancelled, it only warns and goes on, as
 * a commit must.  It also requires that all waiters have different LSNs.
 */
static void
wait_for_standby(XLogRecPtr lsn, int mode)
{
	int looks = 0;

	while (standby_expected() && !standby_has(lsn, mode))
	{
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 looks++ < QUICK_LOOKS ? 1 : 10, WAIT_EVENT_SYNC_REP);
		ResetLatch(MyLatch);
	}
}

/*
 * Only an asynchronous commit has a known position in WAL.  All other commits were flushed
 * before they became visible, so wait until the standby has all that is flushed by now.
 */
static void
wait_for_commit(XLogRecPtr lsn)
{
	if (!XLogRecPtrIsInvalid(lsn))
		XLogFlush(lsn);
	if (SyncRepRequested())
		wait_for_standby(GetFlushRecPtr(NULL),
						 synchronous_commit == SYNCHRONOUS_COMMIT_REMOTE_WRITE
							 ? SYNC_REP_WAIT_WRITE
							 : SYNC_REP_WAIT_FLUSH);
}

XLogRecPtr
durable_position(TransactionId xmin, Buffer buffer)
{
	/* a frozen row has lost its xid, but its page was logged when it froze, after the commit */
	return TransactionIdIsNormal(xmin) ? TransactionIdGetCommitLSN(xmin)
									   : BufferGetLSNAtomic(buffer);
}

void
durable_row(XLogRecPtr position)
{
	if (wanted())
		wait_for_commit(position);
}

void
durable_xmin(TransactionId xmin)
{
	XLogRecPtr lsn = InvalidXLogRecPtr;

	if (!wanted() || TransactionIdIsCurrentTransactionId(xmin))
		return;
	/* a transaction that has left the commit log was durable before that */
	LWLockAcquire(XactTruncationLock, LW_SHARED);
	if (TransactionIdIsNormal(xmin) && !TransactionIdPrecedes(xmin, idem_transam->oldestClogXid) &&
		TransactionIdPrecedes(xmin, ReadNextTransactionId()))
		lsn = TransactionIdGetCommitLSN(xmin);
	LWLockRelease(XactTruncationLock);
	wait_for_commit(lsn);
}

void
durable_wal(XLogRecPtr lsn)
{
	XLogFlush(lsn);
	wait_for_standby(lsn, SYNC_REP_WAIT_FLUSH);
}
