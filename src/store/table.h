/*-------------------------------------------------------------------------
 *
 * table.h
 *	  Open idem_keys and its primary key; the columns of the table.
 *
 * Private to this folder.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_TABLE_H
#define IDEM_TABLE_H

#include "utils/rel.h"

#include "store/shard.h"

#define TABLE_NAME "idem_keys"

/* The columns, in the order of the install script. */
enum
{
	COL_DIGEST,
	COL_CREATED_AT,
	COL_FINISHED_AT,
	COL_EXPIRES_AT,
	COL_LEASE_UNTIL,
	COL_FENCE,
	COL_TTL,
	COL_ATTEMPT,
	COL_FINGERPRINT,
	COL_SCOPE,
	COL_KEY,
	COL_PHASE,
	COL_PROGRESS,
	COL_RESULT,
	NCOLUMNS
};

/* Since 0.2.0 there is a column "failed" as well; Store has its place. */
#define FAILED_NAME "failed"
#define NO_COLUMN (-1)

typedef struct Store
{
	Relation heap;
	Relation index; /* the primary key, on digest */
	int failed;		/* its column, or NO_COLUMN before ALTER EXTENSION ... UPDATE */

	/* of a shard: its column "tenant", and the tenant's value; else NO_COLUMN */
	int tenant_column;
	Datum tenant;
	text *scope; /* whose tenant it is */
} Store;

/*
 * Open the table that has the keys of the scope.  Its locks are held to the end of the transaction, so a finish works on
 * the table that its begin has opened.  0A000 if idem_keys is not a plain, logged, local
 * heap without triggers; 55000 if its columns are not those that this library expects, or
 * if its primary key is missing.  If keys are distributed, see also shard.h.
 */
extern void store_open(Store *store, text *scope, ShardUse use, LOCKMODE lockmode);
extern void store_close(Store *store);

/* Is the index on the digest alone, or on digest and tenant where "tenant" is a column? */
extern bool is_key_of(Relation index, int tenant);

/*
 * The sequence that issues fences, and the one that says which run moved it last: since
 * 0.2.0, else InvalidOid.  Open the table first.
 */
extern Oid store_fence_sequence(void);
extern Oid store_fence_run_sequence(void);

#endif /* IDEM_TABLE_H */
