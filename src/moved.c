/*-------------------------------------------------------------------------
 *
 * moved.c
 *	  Rows that an UPDATE moves from one partition to another.
 *
 * What is known lives in TopTransactionContext, under the transaction's local
 * id: a later one finds it gone.  The rows of a command are counted under its
 * command id, which a transaction never uses again, so nothing needs to be
 * undone when a subtransaction is rolled back: its inserted rows go as well.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "moved.h"

typedef struct MovedTag
{
	pg_uuid_t digest; /* all zeros: "root" was searched for what "command" has moved */
	CommandId command;
	Oid root;
} MovedTag;

typedef struct MovedEntry
{
	MovedTag tag;
	int64 count;
} MovedEntry;

static HTAB *moved = NULL;
static LocalTransactionId moved_transaction = InvalidLocalTransactionId;

static MovedEntry *
find_entry(const pg_uuid_t *digest, CommandId command, Oid root, HASHACTION action)
{
	MovedTag tag;
	MovedEntry *entry;
	bool found;

	if (moved_transaction != idem_local_transaction())
	{
		HASHCTL ctl = {.keysize = sizeof(MovedTag),
					   .entrysize = sizeof(MovedEntry),
					   .hcxt = TopTransactionContext};

		if (action == HASH_FIND)
			return NULL;
		moved = hash_create("rows moved between partitions", 64, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		moved_transaction = idem_local_transaction();
	}

	memset(&tag, 0, sizeof(tag));
	if (digest != NULL)
		tag.digest = *digest;
	tag.command = command;
	tag.root = root;
	entry = hash_search(moved, &tag, action, &found);
	if (action == HASH_ENTER && !found)
		entry->count = 0;
	return entry;
}

/* Deleted by the current transaction to be inserted into another partition. */
static bool
is_moved(HeapTuple old)
{
	return (old->t_data->t_infomask & HEAP_XMAX_INVALID) == 0 &&
		HeapTupleHeaderIndicatesMovedPartitions(old->t_data) &&
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetUpdateXid(old->t_data));
}

void
moved_out(const IdemKey *key, HeapTuple old)
{
	if (is_moved(old))
		find_entry(&key->digest, HeapTupleHeaderGetCmax(old->t_data), InvalidOid, HASH_ENTER)
			->count++;
}

bool
moved_in(const IdemKey *key, HeapTuple inserted)
{
	MovedEntry *entry =
		find_entry(&key->digest, HeapTupleHeaderGetCmin(inserted->t_data), InvalidOid, HASH_FIND);

	if (entry == NULL || entry->count == 0)
		return false;
	entry->count--;
	return true;
}

/* ------------------------------------------------------------------------
 * Searching
 * ------------------------------------------------------------------------
 */

/* Told of each moved row; false ends the search. */
typedef bool (*FoundMoved)(void *arg, const IdemKey *key, HeapTuple old);

typedef struct Search
{
	MovedKey make_key;
	void *make_key_arg;
	FoundMoved found;
	void *found_arg;
} Search;

/*
 * The statistics know whether this transaction has deleted anything there, if
 * they are kept at all.  It saves a transaction which only inserts from
 * reading anything.
 */
static bool
may_have_deleted(Relation rel)
{
	PgStat_TableXactStatus *trans;

	if (!CheckRelationLockedByMe(rel, RowExclusiveLock, true))
		return false;
	if (!rel->pgstat_enabled)
		return true;
	if (rel->pgstat_info == NULL)
		return false;
	for (trans = rel->pgstat_info->trans; trans != NULL; trans = trans->upper)
		if (trans->tuples_deleted > 0)
			return true;
	return false;
}

static bool
search_partition(Relation rel, const Search *search)
{
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = idem_table_beginscan(rel, SnapshotAny);
	MemoryContext per_row =
		AllocSetContextCreate(CurrentMemoryContext, "moved rows", ALLOCSET_SMALL_SIZES);
	bool more = true;

	while (more && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		HeapTuple row = ((BufferHeapTupleTableSlot *) slot)->base.tuple;
		MemoryContext old;
		IdemKey key;

		CHECK_FOR_INTERRUPTS();
		if (!is_moved(row))
			continue;
		old = MemoryContextSwitchTo(per_row);
		if (search->make_key(search->make_key_arg, rel, row, &key))
			more = search->found(search->found_arg, &key, row);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_row);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(per_row);
	return more;
}

static void
search_partitions(Oid root, const Search *search)
{
	ListCell *lc;
	bool more = true;

	foreach(lc, find_all_inheritors(root, NoLock, NULL))
	{
		Oid relid = lfirst_oid(lc);
		Relation rel;

		/* what we have deleted from is ours to lock at once */
		if (!more || !ConditionalLockRelationOid(relid, AccessShareLock))
			continue;
		rel = try_relation_open(relid, NoLock);
		if (rel != NULL)
		{
			if (rel->rd_rel->relkind == RELKIND_RELATION &&
				rel->rd_tableam == GetHeapamTableAmRoutine() && may_have_deleted(rel))
				more = search_partition(rel, search);
			relation_close(rel, NoLock);
		}
		UnlockRelationOid(relid, AccessShareLock);
	}
}

typedef struct Collect
{
	CommandId command;
} Collect;

static bool
collect_row(void *arg, const IdemKey *key, HeapTuple old)
{
	if (HeapTupleHeaderGetCmax(old->t_data) == ((Collect *) arg)->command)
		moved_out(key, old);
	return true;
}

void
moved_collect(Oid root, HeapTuple inserted, MovedKey make_key, void *arg)
{
	Collect collect = {.command = HeapTupleHeaderGetCmin(inserted->t_data)};
	Search search = {make_key, arg, collect_row, &collect};
	MovedEntry *done = find_entry(NULL, collect.command, root, HASH_ENTER);

	if (done->count++ == 0)
		search_partitions(root, &search);
}

typedef struct Find
{
	const IdemKey *key;
	bool found;
} Find;

static bool
find_row(void *arg, const IdemKey *key, HeapTuple old)
{
	Find *find = arg;

	find->found = key_cmp(key, find->key) == 0;
	return !find->found;
}

bool
moved_any(Oid root, const IdemKey *key, MovedKey make_key, void *arg)
{
	Find find = {.key = key};
	Search search = {make_key, arg, find_row, &find};

	search_partitions(root, &search);
	return find.found;
}

bool
moved_from(Oid relid, ItemPointer tid)
{
	Relation rel = table_open(relid, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	bool result = table_tuple_fetch_row_version(rel, tid, SnapshotAny, slot) &&
		TTS_IS_BUFFERTUPLE(slot) && is_moved(((BufferHeapTupleTableSlot *) slot)->base.tuple);

	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return result;
}
