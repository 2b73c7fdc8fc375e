/*-------------------------------------------------------------------------
 *
 * table.c
 *	  Open idem_keys and its primary key.
 *
 * The store works on the table and its primary key directly, not through SQL.  So there are
 * no plans to cache, to go stale, or to parse again under a caller's search_path; it takes
 * no SIREAD locks; and it can see uncommitted rows.  But it does none of the work of the
 * executor's ModifyTable, so it refuses a table with triggers or rules.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/relation.h"
#include "store/store.h"
#include "store/table.h"

#define FENCE_NAME "idem_fence"
#define FENCE_RUN_NAME "idem_fence_run"

/* if a table changes more often than this during its check, check it at each use */
#define CHECK_TRIES 100

static const struct
{
	const char *name;
	Oid type;
	bool not_null;
} columns[NCOLUMNS] = {
	[COL_DIGEST] = {"digest", UUIDOID, true},
	[COL_CREATED_AT] = {"created_at", TIMESTAMPTZOID, true},
	[COL_FINISHED_AT] = {"finished_at", TIMESTAMPTZOID},
	[COL_EXPIRES_AT] = {"expires_at", TIMESTAMPTZOID, true},
	[COL_LEASE_UNTIL] = {"lease_until", TIMESTAMPTZOID},
	[COL_FENCE] = {"fence", INT8OID},
	[COL_TTL] = {"ttl", INTERVALOID},
	[COL_ATTEMPT] = {"attempt", INT4OID, true},
	[COL_FINGERPRINT] = {"fingerprint", BYTEAOID},
	[COL_SCOPE] = {"scope", TEXTOID, true},
	[COL_KEY] = {"key", TEXTOID, true},
	[COL_PHASE] = {"phase", TEXTOID},
	[COL_PROGRESS] = {"progress", JSONBOID},
	[COL_RESULT] = {"result", JSONBOID},
};

/*
 * The OIDs of the table, its primary key and its sequences.  Forgotten when anything about
 * the table changes, so that DROP EXTENSION and CREATE EXTENSION in another session do not
 * require a new session here.
 */
static struct
{
	Oid heap;
	Oid index;
	Oid fence;
	Oid fence_run;	/* InvalidOid before the update from 0.1.0 */
	int failed;		/* its column "failed", or NO_COLUMN */
	Oid checked;	/* the table that is being checked, or was checked last */
	uint64 changes; /* number of changes to that table, also during the check */
} known;

/* A shard that was checked before. */
typedef struct KnownShard
{
	Oid heap; /* the key */
	Oid index;
	int failed;
	int tenant_column;
} KnownShard;

static HTAB *known_shards = NULL;
static uint64 changes_of_any = 0; /* of whatever relation */

static void
forget_shards(Oid relid)
{
	changes_of_any++;
	if (known_shards == NULL)
		return;
	if (OidIsValid(relid))
		(void) hash_search(known_shards, &relid, HASH_REMOVE, NULL);
	else
	{
		hash_destroy(known_shards);
		known_shards = NULL;
	}
}

static void
forget_known(Datum arg, Oid relid)
{
	forget_shards(relid);
	shard_forget(relid);
	if (relid == InvalidOid || relid == known.heap)
		known.heap = InvalidOid;
	if (relid == InvalidOid || relid == known.checked)
		known.changes++;
}

void
store_init(void)
{
	CacheRegisterRelcacheCallback(forget_known, (Datum) 0);
}

static bool
is_column(TupleDesc desc, int i, const char *name, Oid type, bool not_null)
{
	Form_pg_attribute att = TupleDescAttr(desc, i);

	return att->atttypid == type && att->attnotnull == not_null &&
		strcmp(NameStr(att->attname), name) == 0;
}

static bool
is_tenant_column(TupleDesc desc, int i)
{
	return is_column(desc, i, TENANT_COLUMN_NAME, TupleDescAttr(desc, i)->atttypid, true);
}

/*
 * Finds the place of column "failed", and of "tenant" in a shard.  A column that was added by
 * hand and dropped again still has an attribute, which may come before them.
 */
static void
check_columns(const char *name, TupleDesc desc, int *failed, int *tenant)
{
	bool same = desc->natts >= NCOLUMNS;

	*failed = NO_COLUMN;
	if (tenant != NULL)
		*tenant = NO_COLUMN;
	for (int i = 0; same && i < desc->natts; i++)
	{
		if (TupleDescAttr(desc, i)->attisdropped)
			same = i >= NCOLUMNS;
		else if (i < NCOLUMNS)
			same = is_column(desc, i, columns[i].name, columns[i].type, columns[i].not_null);
		else if (tenant != NULL && is_tenant_column(desc, i))
			*tenant = i;
		else
		{
			same = *failed == NO_COLUMN && is_column(desc, i, FAILED_NAME, BOOLOID, false);
			*failed = i;
		}
	}
	if (!same || (tenant != NULL && *tenant == NO_COLUMN))
		error_columns(name);
}

bool
is_key_of(Relation index, int tenant)
{
	int nkeys = IndexRelationGetNumberOfKeyAttributes(index);
	const int2vector *columns = &index->rd_index->indkey;

	if (columns->values[0] != COL_DIGEST + 1)
		return false;
	return tenant == NO_COLUMN ? nkeys == 1 : nkeys == 2 && columns->values[1] == tenant + 1;
}

/* On the digest, and the tenant if there is one; InvalidOid if there is none that we can use. */
static Oid
find_primary_key(Relation rel, int tenant)
{
	Oid pkey = idem_primary_key(rel);

	if (OidIsValid(pkey))
	{
		Relation index = index_open(pkey, AccessShareLock);
		bool good = is_key_of(index, tenant) && index->rd_index->indisvalid &&
			index->rd_index->indimmediate && index->rd_rel->relam == BTREE_AM_OID;

		index_close(index, NoLock);
		if (good)
			return pkey;
	}
	return InvalidOid;
}

/*
 * The findings are consistent only if nothing has changed during the check.  REINDEX
 * CONCURRENTLY replaces the index of the primary key while we hold our lock, and the index
 * that we found is then no longer the primary key's.  We may see that commit before its
 * invalidation messages arrive.  So before we report the key as missing, we have the list
 * of indexes rebuilt.
 */
static void
check_table(Relation heap)
{
	bool renewed = false;
	bool same;
	Oid index;

	known.checked = RelationGetRelid(heap);
	for (int i = 0;; i++)
	{
		uint64 changes = known.changes;

		CHECK_FOR_INTERRUPTS();
		relation_check_plain(heap);
		check_columns(TABLE_NAME, RelationGetDescr(heap), &known.failed, NULL);
		index = find_primary_key(heap, NO_COLUMN);
		known.fence = relation_find(FENCE_NAME);
		known.fence_run = relation_find_if_any(FENCE_RUN_NAME);
		same = changes == known.changes;
		if (i < CHECK_TRIES && !same)
			continue;
		if (OidIsValid(index))
			break;
		if (renewed)
			error_no_primary_key(TABLE_NAME, "digest");
		RelationCacheInvalidateEntry(RelationGetRelid(heap));
		renewed = true;
	}
	known.index = index;
	known.heap = same ? RelationGetRelid(heap) : InvalidOid;
}

/*
 * The table that was checked before, unless it has changed since.  The lock brings in all
 * changes that were committed before it was granted, and forget_known() learns of them; so
 * the table need not be looked up in the catalog.  NULL: look it up and check it.
 */
static Relation
open_known(LOCKMODE lockmode)
{
	Oid relid = known.heap;

	if (!OidIsValid(relid))
		return NULL;
	LockRelationOid(relid, lockmode);
	if (known.heap == relid)
		return relation_open(relid, NoLock);
	UnlockRelationOid(relid, lockmode);
	return NULL;
}

static Relation
open_and_check(LOCKMODE lockmode)
{
	Relation heap;

	/* one that is dropped just now is looked up again, which fails if it is really gone */
	do
		heap = try_relation_open(relation_find(TABLE_NAME), lockmode);
	while (heap == NULL);
	check_table(heap);
	return heap;
}

static inline Relation
open_keys(LOCKMODE lockmode)
{
	Relation heap = open_known(lockmode);

	return heap != NULL ? heap : open_and_check(lockmode);
}

/* ------------------------------------------------------------------------
 * Shards
 * ------------------------------------------------------------------------
 */

static void
check_shard(Relation heap, KnownShard *shard)
{
	const char *name = RelationGetRelationName(heap);

	relation_check_plain(heap);
	shard->heap = RelationGetRelid(heap);
	check_columns(name, RelationGetDescr(heap), &shard->failed, &shard->tenant_column);
	shard->index = find_primary_key(heap, shard->tenant_column);
	if (!OidIsValid(shard->index))
	{
		/* as in check_table() */
		RelationCacheInvalidateEntry(RelationGetRelid(heap));
		shard->index = find_primary_key(heap, shard->tenant_column);
	}
	if (!OidIsValid(shard->index))
		error_no_primary_key(name, "digest, tenant");
}

/* Nothing is remembered of a shard that changes during its check. */
static KnownShard
know_shard(Relation heap)
{
	Oid relid = RelationGetRelid(heap);
	HASHCTL control = {.keysize = sizeof(Oid), .entrysize = sizeof(KnownShard)};
	KnownShard *entry = NULL;
	KnownShard shard;
	uint64 changes = changes_of_any;

	if (known_shards != NULL)
		entry = hash_search(known_shards, &relid, HASH_FIND, NULL);
	if (entry != NULL)
		return *entry;
	check_shard(heap, &shard);
	if (changes != changes_of_any)
		return shard;
	if (known_shards == NULL)
		known_shards =
			hash_create("idempotency checked shards", 64, &control, HASH_ELEM | HASH_BLOBS);
	entry = hash_search(known_shards, &relid, HASH_ENTER, NULL);
	*entry = shard;
	return shard;
}

/* The shard of the scope, in place of idem_keys, which stays locked. */
static void
open_shard(Store *store, text *scope, ShardUse use, LOCKMODE lockmode)
{
	Relation heap;
	KnownShard shard;

	do
	{
		CHECK_FOR_INTERRUPTS();
		heap = try_relation_open(shard_find(store->heap, scope, use, &store->tenant), lockmode);
	} while (heap == NULL);
	table_close(store->heap, NoLock);
	shard = know_shard(heap);
	store->heap = heap;
	store->index = index_open(shard.index, lockmode);
	store->failed = shard.failed;
	store->tenant_column = shard.tenant_column;
	store->scope = scope;
}

/*
 * Locks are held to the end of the transaction, so a finish works on the table that its
 * begin has opened.
 */
void
store_open(Store *store, text *scope, ShardUse use, LOCKMODE lockmode)
{
	store->heap = open_keys(lockmode);
	if (!shard_no_citus && shard_in_use(store->heap))
		open_shard(store, scope, use, lockmode);
	else
	{
		if (!shard_no_citus && shard_is_claimed(use))
			shard_refuse_worker(store->heap);
		store->index = index_open(known.index, lockmode);
		store->failed = known.failed;
		store->tenant_column = NO_COLUMN;
	}
}

bool
store_is_distributed(void)
{
	/* the lock of a claim, which comes next: one that is upgraded can deadlock */
	Relation keys = open_keys(RowExclusiveLock);
	bool distributed = !shard_no_citus && shard_in_use(keys);

	table_close(keys, NoLock);
	return distributed;
}

void
store_close(Store *store)
{
	index_close(store->index, NoLock);
	table_close(store->heap, NoLock);
}

Oid
store_fence_sequence(void)
{
	return known.fence;
}

Oid
store_fence_run_sequence(void)
{
	return known.fence_run;
}
