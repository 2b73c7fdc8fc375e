/*-------------------------------------------------------------------------
 *
 * lock_notes.h
 *	  Which keys the sessions' locks are for: view idem_in_flight.
 *
 * The server knows who has a lock, and who waits for it, by half of the key's
 * digest.  So each session notes in shared memory, if there is any, the text of the
 * last keys it has locked.  A note stays when its lock goes; only those whose lock is held
 * are shown.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LOCK_NOTES_H
#define IDEM_LOCK_NOTES_H

#include "storage/lock.h"

#include "base/key.h"

extern void held_init(void);

/* This session has that lock, which is of the key.  Never fails. */
extern void held_note(const LOCKTAG *tag, const IdemKey *key);

#endif /* IDEM_LOCK_NOTES_H */
