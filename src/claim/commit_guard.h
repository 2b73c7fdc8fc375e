/*-------------------------------------------------------------------------
 *
 * commit_guard.h
 *	  Check a transaction before it commits or is prepared, ahead of all other callbacks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_COMMIT_GUARD_H
#define IDEM_COMMIT_GUARD_H

/* "check" raises an error to prevent the commit.  It may run more than once. */
extern void commit_guard_init(void (*check)(void));

/* Have the current transaction checked. */
extern void commit_guard_arm(void);

/* Has the last check of this transaction run?  A claim begun now would go unchecked. */
extern bool commit_guard_is_over(void);

#endif /* IDEM_COMMIT_GUARD_H */
