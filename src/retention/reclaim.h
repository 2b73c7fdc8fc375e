/*-------------------------------------------------------------------------
 *
 * reclaim.h
 *	  Make the space of purged rows available to new ones.
 *
 * Autovacuum does that as well, but at most once in "autovacuum_naptime".  By then, keys that
 * live for less than a second have made a table that is many times as large as it need be.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RECLAIM_H
#define IDEM_RECLAIM_H

/*
 * Vacuum the table, its indexes and its TOAST table, if it pays: so many tuples were deleted since
 * the last time.  Returns false if it did not pay yet, or if it is to be tried again: another
 * session has a lock that keeps vacuum out.  What takes long is left to autovacuum: a vacuum is
 * not begun if there are many pages to read, and is cancelled after max_msec.
 *
 * Call in a transaction that has changed nothing, and commit it afterwards: the lock that keeps
 * other vacuums out is held until then.
 */
extern bool reclaim_space(const char *table, int64 deleted, int max_msec);

#endif /* IDEM_RECLAIM_H */
