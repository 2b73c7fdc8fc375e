/*-------------------------------------------------------------------------
 *
 * databases.h
 *	  The databases of the server, and where the last purge of each ended.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_DATABASES_H
#define IDEM_DATABASES_H

#include "nodes/pg_list.h"
#include "port/atomics.h"

typedef struct Database
{
	Oid oid;
	char *name;
} Database;

extern void databases_init(void);

/* All databases that can be connected to.  Call in a transaction, with a snapshot. */
extern List *databases_read(void);

/*
 * Those of them that a list of names has.  A name is taken as it is written, or else in lower
 * case, as in SQL.  "tell": write to the log which of the names no database has.
 */
extern List *databases_named(List *databases, const char *names, bool tell);

/*
 * What purges of this session's database leave to the next one: where the last one ended, and
 * how much they have deleted; at first all are 0.  NULL if that is not known: without shared
 * memory, or with very many databases.  Not kept over a restart.  Call in a transaction.
 */
#define DATABASE_NPOSITIONS 7
extern pg_atomic_uint64 *database_positions(void);

#endif /* IDEM_DATABASES_H */
