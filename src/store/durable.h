/*-------------------------------------------------------------------------
 *
 * durable.h
 *	  Never report a row that a crash could still undo.
 *
 * A commit can be visible before it is durable: if it was asynchronous, if its wait for a
 * synchronous standby was cancelled, or if it never waited (synchronous_commit = local).
 * Durable means flushed here, and also by a synchronous standby if our own commit would
 * wait for one.  With synchronous_commit = off, durable_row() and durable_xmin() do
 * nothing; nor do they on a standby, which has only what is durable.
 *
 * 57014 if the wait for the standby is cancelled.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_DURABLE_H
#define IDEM_DURABLE_H

#include "access/xlogdefs.h"
#include "storage/buf.h"

/*
 * Make a row that another transaction committed durable, in two steps: get its position in
 * WAL while its buffer is pinned, then wait after the pin is released, so that VACUUM does
 * not wait too.  "xmin" is what HeapTupleHeaderGetXmin returns: FrozenTransactionId if the
 * row is frozen.
 */
extern XLogRecPtr durable_position(TransactionId xmin, Buffer buffer);
extern void durable_row(XLogRecPtr position);

/*
 * The same for a row that was read with SQL and may be our own.  Its xmin does not show
 * whether the row is frozen: the commit log may no longer have that transaction, or the xid
 * may have been used again.
 */
extern void durable_xmin(TransactionId xmin);

/*
 * Make WAL durable up to a position.  Ignores synchronous_commit, because other sessions
 * rely on it.
 */
extern void durable_wal(XLogRecPtr lsn);

#endif /* IDEM_DURABLE_H */
