/*-------------------------------------------------------------------------
 *
 * commit_guard.h
 *	  Run a check before a transaction commits or is prepared, before anything else does.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_COMMIT_GUARD_H
#define IDEM_COMMIT_GUARD_H

/* "check" raises to forbid the commit.  It may run more than once. */
extern void commit_guard_init(void (*check)(void));

/* The current transaction is checked from now on. */
extern void commit_guard_arm(void);

/* The last check of this transaction has run: what begins now would not be checked. */
extern bool commit_guard_is_over(void);

#endif /* IDEM_COMMIT_GUARD_H */
