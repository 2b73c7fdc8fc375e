/*-------------------------------------------------------------------------
 *
 * grant.h
 *	  Privileges by job, and the hint on how to get them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_GRANT_H
#define IDEM_GRANT_H

/*
 * From now on "permission denied" for a function of the extension (42501) hints at the
 * call of idem_grant() that allows it, in sessions that have loaded the library.
 */
extern void grant_init(void);

#endif /* IDEM_GRANT_H */
