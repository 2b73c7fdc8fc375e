/*-------------------------------------------------------------------------
 *
 * grant.h
 *	  Privileges by job, and a hint on how to get them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_GRANT_H
#define IDEM_GRANT_H

/*
 * Add a hint to "permission denied" (42501) for a function of the extension: the call of
 * idem_grant() that would allow it.  Only sessions that have loaded the library show it.
 */
extern void grant_init(void);

#endif /* IDEM_GRANT_H */
