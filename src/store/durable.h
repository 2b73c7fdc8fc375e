/*-------------------------------------------------------------------------
 *
 * durable.h
 *	  An answer is not given from a commit that could still be lost.
 *
 * A commit is visible before it is durable if it was asynchronous, or if the wait for
 * a synchronous standby was cancelled, or never wanted (synchronous_commit = local).
 * Durable means flushed, by a synchronous standby as well if our own commit would wait
 * for one; with synchronous_commit = off it means nothing, and a standby has only what
 * is durable.
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
 * Of a row committed by another transaction, in two steps: the position in WAL, while its
 * buffer is pinned, and the wait, when it is no more, so that no vacuum waits as well.
 * "xmin" as HeapTupleHeaderGetXmin has it, frozen where the row is.
 */
extern XLogRecPtr durable_position(TransactionId xmin, Buffer buffer);
extern void durable_row(XLogRecPtr position);

/*
 * The same of a row that SQL has read, maybe our own.  Its xmin does not tell if it is
 * frozen: that transaction may be forgotten, or have a younger namesake.
 */
extern void durable_xmin(TransactionId xmin);

/*
 * What WAL has up to a position, whatever synchronous_commit says: others rely on it.
 */
extern void durable_wal(XLogRecPtr lsn);

#endif /* IDEM_DURABLE_H */
