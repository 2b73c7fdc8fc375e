/*-------------------------------------------------------------------------
 *
 * secret_keys.h
 *	  The secrets of this database that codes are hashed with.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SECRET_KEYS_H
#define IDEM_SECRET_KEYS_H

#include "common/sha2.h"
#include "utils/uuid.h"

/*
 * A secret of this database, to be named in what is computed with it: "id".  The
 * first call makes one, never the install script: a restored database must keep
 * the one that its rows were made with.  Nor is it the only one for ever: a
 * restore into a database that had made its own brings another.
 */
extern bytea *secret_current(pg_uuid_t *id);

/* The one of that id; NULL if there is none (any more). */
extern bytea *secret_by_id(const pg_uuid_t *id);

/* Leave nothing of it in memory. */
extern void secret_forget(bytea *secret);

#endif /* IDEM_SECRET_KEYS_H */
