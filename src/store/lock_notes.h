/*-------------------------------------------------------------------------
 *
 * lock_notes.h
 *	  Record which keys sessions have locked, for the view idem_in_flight.
 *
 * The server's lock table has only half of a key's digest.  So each session also records in
 * shared memory, if there is any, the text of the last keys that it has locked.  A note
 * outlives its lock; the view shows only notes whose lock is held.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LOCK_NOTES_H
#define IDEM_LOCK_NOTES_H

#include "storage/lock.h"

#include "base/key.h"

extern void lock_notes_init(void);

/* Record that this session holds that lock, on the key.  Never fails. */
extern void lock_notes_add(const LOCKTAG *tag, const IdemKey *key);

#endif /* IDEM_LOCK_NOTES_H */
