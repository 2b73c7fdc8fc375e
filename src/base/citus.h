/*-------------------------------------------------------------------------
 *
 * citus.h
 *	  What the catalogs of Citus say about this node, its tables and its shards.
 *
 * Without Citus there are no such catalogs, and the answers are those of a server that stands
 * alone.  The catalogs are in pg_catalog, where only a superuser can create them.  They are
 * read under the newest snapshot, whatever the isolation level.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_CITUS_H
#define IDEM_CITUS_H

#include "nodes/pg_list.h"
#include "utils/rel.h"

/* pg_dist_local_group, which changes when this node joins a cluster; InvalidOid without Citus. */
extern Oid citus_group_catalog(void);

/* This node's group in the cluster; 0 on a coordinator, and without Citus. */
extern int32 citus_group(void);

/* Does Citus distribute the table, or otherwise keep it in its metadata? */
extern bool citus_has_table(Oid relid);

/* Does it distribute the table by the hash of a column, with one copy of each row? */
extern bool citus_hashes_table(Oid relid);

/* Is the table a shard, going by its name? */
extern bool citus_is_shard(Relation rel);

/* The shards of a distributed table, on all nodes: pointers to int64. */
extern List *citus_shards(Oid relid);

/* Is there a placement of the shard on this node? */
extern bool citus_has_shard(int64 shard);

/*
 * The function that idem_distribute() has made of another one, by its name without "_for"; InvalidOid if there is
 * none.  It is known by its support function, which nobody but a superuser can give to a function.
 */
extern Oid citus_find_function_for(const char *name, Oid schema, Oid extension);

#endif /* IDEM_CITUS_H */
