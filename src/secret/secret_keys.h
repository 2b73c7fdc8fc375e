/*-------------------------------------------------------------------------
 *
 * secret_keys.h
 *	  The secret keys of this database, used to hash codes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SECRET_KEYS_H
#define IDEM_SECRET_KEYS_H

#include "common/sha2.h"
#include "utils/uuid.h"

/*
 * The current secret of this database.  Store its "id" with whatever is computed from it.
 * The first call creates the secret; the install script never does, because a restored
 * database must keep the secret that its rows were made with.  There can be several: a
 * restore into a database that already has a secret adds another.
 */
extern bytea *secret_current(pg_uuid_t *id);

/* The secret of that id; NULL if it does not exist, or no longer. */
extern bytea *secret_by_id(const pg_uuid_t *id);

/* Erase the secret from memory and free it. */
extern void secret_forget(bytea *secret);

#endif /* IDEM_SECRET_KEYS_H */
