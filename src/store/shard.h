/*-------------------------------------------------------------------------
 *
 * shard.h
 *	  Where the keys of a scope are, if Citus has distributed them.
 *
 * idem_distribute() makes a table of keys that is distributed by tenant, and the scope of a
 * key is then its tenant.  A key is in the shard that has the tenant's other rows, so it
 * commits with them, in one local transaction.  The store opens the shard itself; a claim
 * whose shard is on another node must be sent there.
 *
 * A shard can move to another node at any time.  Before each write the shard is locked, as
 * Citus does before its own writes: a move waits until the transaction ends.  Looks do not
 * lock, since a transaction that has looked and then waits for its write would deadlock with
 * a move that waits for an earlier write.  So what a look sees may be out of date, and a
 * write that finds the shard gone fails with 40001.
 *
 * Private to this folder, but for shard_tables() and shard_check_written().
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SHARD_H
#define IDEM_SHARD_H

#include "nodes/pg_list.h"
#include "utils/rel.h"

#define TENANT_TABLE_NAME "idem_tenant_keys"
#define TENANT_COLUMN_NAME "tenant"

/* What for: claims may be refused where looks at plain keys are not; writes lock the shard. */
typedef enum ShardUse
{
	SHARD_LOOK_UP,
	SHARD_ERASE,
	SHARD_CLAIM,
	SHARD_WRITE
} ShardUse;

#define shard_is_written(use) ((use) == SHARD_WRITE || (use) == SHARD_ERASE)
#define shard_is_claimed(use) ((use) == SHARD_CLAIM || (use) == SHARD_WRITE)

/* A relation has changed: for the relcache callback. */
extern void shard_forget(Oid relid);

/*
 * Are the keys distributed?  "keys" is idem_keys, open and locked.  0A000 if there is a table with
 * the name of the distributed one that is something else.
 */
extern bool shard_in_use(Relation keys);

/* 0A000 if this node is a worker, unless idempotency.allow_keys_on_worker is on. */
extern void shard_refuse_worker(Relation keys);

/* Is it known that there is no Citus?  Then shard_in_use() need not be asked. */
extern bool shard_no_citus;

/*
 * The shard of a scope, and its tenant in the type of the distribution column.  It may be dropped
 * before it is opened.  22023 if the scope is not a tenant as the type writes it; 40001 if the shard was on this
 * node and no longer is, 55000 if it never was.
 */
extern Oid shard_find(Relation keys, text *scope, ShardUse use, Datum *tenant);

/*
 * Before a commit: are the shards that the transaction has written still on this node?  Locks them
 * again, as a split of another shard may have shifted the lock.  40001 if one is gone.
 */
extern void shard_check_written(void);

/*
 * The shards on this node, as OIDs; NIL if the keys are not distributed.  With "nowait", false if
 * idem_keys is locked.
 */
extern bool shard_tables(bool nowait, List **tables);

/* This node's group in the cluster. */
extern int32 shard_group(void);

#endif /* IDEM_SHARD_H */
