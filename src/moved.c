/*-------------------------------------------------------------------------
 *
 * moved.c
 *	  Rows that an UPDATE moves from one partition to another.
 *
 * What is known lives in TopTransactionContext, under the transaction's local
 * id: a later one finds it gone.  The rows of a command are counted under its
 * command id, which a transaction never uses again, so nothing needs to be
 * undone when a subtransaction is rolled back: its inserted rows go as well.
 * (But a deferred trigger's event can be fired twice by SET CONSTRAINTS and a
 * rollback to a savepoint; only AFTER DELETE events are then counted twice too.)
 *
 * A BEFORE trigger is fired by the executor under the command's own snapshot,
 * which has the command's id, whatever ran in triggers before it.
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

typedef enum MovedWhat
{
	MOVED_KEY,		 /* "id" has moved out that many times more than in */
	MOVED_COLLECTED, /* for the trigger "id" the partitions were searched */
	MOVED_NOTHING	 /* in partition "rel", while so many are deleted there */
} MovedWhat;

typedef struct MovedTag
{
	MovedWhat what;
	uint32 during; /* command id; MOVED_NOTHING: subtransaction id */
	Oid rel;	   /* root of the partitions, or the partition */
	pg_uuid_t id;  /* digest of the key, or identity of the trigger */
} MovedTag;

typedef struct MovedEntry
{
	MovedTag tag;
	int64 count;
} MovedEntry;

static HTAB *moved = NULL;
static LocalTransactionId moved_transaction = InvalidLocalTransactionId;

static MovedEntry *
find_entry(MovedWhat what, uint32 during, Oid rel, const pg_uuid_t *id, HASHACTION action)
{
	MovedTag tag;
	MovedEntry *entry;
	bool found;

	if (moved_transaction != idem_local_transaction())
	{
		HASHCTL ctl = {.keysize = sizeof(MovedTag),
					   .entrysize = sizeof(MovedEntry),
					   .hcxt = TopTransactionContext};

		if (action != HASH_ENTER)
			return NULL;
		moved = hash_create("rows moved between partitions", 64, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		moved_transaction = idem_local_transaction();
	}

	memset(&tag, 0, sizeof(tag));
	tag.what = what;
	tag.during = during;
	tag.rel = rel;
	if (id != NULL)
		tag.id = *id;
	entry = hash_search(moved, &tag, action, &found);
	if (action == HASH_ENTER && !found)
		entry->count = 0;
	return entry;
}

bool
moved_is(HeapTuple old)
{
	return (old->t_data->t_infomask & HEAP_XMAX_INVALID) == 0 &&
		HeapTupleHeaderIndicatesMovedPartitions(old->t_data) &&
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetUpdateXid(old->t_data));
}

static bool
moved_by(HeapTuple old, CommandId command)
{
	return moved_is(old) && HeapTupleHeaderGetCmax(old->t_data) == command;
}

/*
 * The command that has inserted a row; false if it does not tell, being frozen
 * (COPY FREEZE), or of a table that is no heap.
 */
static bool
inserted_by(Relation rel, HeapTuple inserted, CommandId *command)
{
	if (rel->rd_tableam != GetHeapamTableAmRoutine() ||
		HeapTupleHeaderXminFrozen(inserted->t_data) ||
		!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(inserted->t_data)))
		return false;
	*command = HeapTupleHeaderGetCmin(inserted->t_data);
	return true;
}

void
moved_out(const MovedScope *scope, const IdemKey *key, HeapTuple old)
{
	find_entry(MOVED_KEY, HeapTupleHeaderGetCmax(old->t_data), scope->root, &key->digest,
			   HASH_ENTER)
		->count++;
}

bool
moved_in(const MovedScope *scope, const IdemKey *key, Relation rel, HeapTuple inserted)
{
	CommandId command;
	MovedEntry *entry;

	if (!inserted_by(rel, inserted, &command))
		return false;
	entry = find_entry(MOVED_KEY, command, scope->root, &key->digest, HASH_FIND);
	if (entry == NULL)
		return false;
	if (--entry->count == 0)
		(void) find_entry(MOVED_KEY, command, scope->root, &key->digest, HASH_REMOVE);
	return true;
}

/* ------------------------------------------------------------------------
 * Searching
 * ------------------------------------------------------------------------
 */

typedef struct Search
{
	const MovedScope *scope;
	CommandId command;

	/* told of each moved row; false ends the search */
	bool (*found)(struct Search *search, const IdemKey *key, HeapTuple old);
	const IdemKey *wanted;
	bool is_there;
} Search;

/*
 * The statistics know how much this transaction has deleted there, if they are
 * kept at all (else -1).  It saves a transaction which only inserts from
 * reading anything.
 */
static int64
deleted_in(Relation rel)
{
	int64 deleted = 0;
	PgStat_TableXactStatus *trans;

	if (!rel->pgstat_enabled)
		return -1;
	/* the relation cache has forgotten, not the statistics */
	if (rel->pgstat_info == NULL)
		return idem_tuples_deleted(RelationGetRelid(rel));
	for (trans = rel->pgstat_info->trans; trans != NULL; trans = trans->upper)
		deleted += trans->tuples_deleted;
	return deleted;
}

/* False: the search is over. */
static bool
search_partition(Relation rel, Search *search)
{
	TupleTableSlot *slot;
	TableScanDesc scan;
	MemoryContext per_row;
	int64 deleted = deleted_in(rel);
	MovedEntry *nothing;
	bool moved_here = false;
	bool more = true;

	/* the number can only return by a rollback, which leaves the subtransaction */
	nothing = find_entry(MOVED_NOTHING, GetCurrentSubTransactionId(), RelationGetRelid(rel), NULL,
						 HASH_FIND);
	if (deleted == 0 || (deleted > 0 && nothing != NULL && nothing->count == deleted))
		return true;

	slot = table_slot_create(rel, NULL);
	scan = idem_table_beginscan(rel, SnapshotAny);
	per_row = AllocSetContextCreate(CurrentMemoryContext, "moved rows", ALLOCSET_SMALL_SIZES);
	while (more && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		HeapTuple row = ((BufferHeapTupleTableSlot *) slot)->base.tuple;
		MemoryContext old;
		IdemKey key;

		CHECK_FOR_INTERRUPTS();
		if (!moved_by(row, search->command))
			continue;
		moved_here = true;
		old = MemoryContextSwitchTo(per_row);
		if (search->scope->make_key(search->scope->arg, rel, row, &key))
			more = search->found(search, &key, row);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_row);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(per_row);

	if (!moved_here && deleted > 0)
		find_entry(MOVED_NOTHING, GetCurrentSubTransactionId(), RelationGetRelid(rel), NULL,
				   HASH_ENTER)
			->count = deleted;
	return more;
}

/* Only where this transaction has written: those are locked, for sure. */
static void
search_partitions(Search *search)
{
	ListCell *lc;
	bool more = true;

	foreach(lc, find_all_inheritors(search->scope->root, NoLock, NULL))
	{
		Relation rel;

		if (!more || !idem_relation_locked_by_me(lfirst_oid(lc), RowExclusiveLock))
			continue;
		rel = relation_open(lfirst_oid(lc), NoLock);
		if (rel->rd_rel->relkind == RELKIND_RELATION &&
			rel->rd_tableam == GetHeapamTableAmRoutine())
			more = search_partition(rel, search);
		relation_close(rel, NoLock);
	}
}

static bool
collect_row(Search *search, const IdemKey *key, HeapTuple old)
{
	moved_out(search->scope, key, old);
	return true;
}

void
moved_collect(const MovedScope *scope, Relation rel, HeapTuple inserted)
{
	Search search = {.scope = scope, .found = collect_row};

	if (inserted_by(rel, inserted, &search.command) &&
		find_entry(MOVED_COLLECTED, search.command, scope->root, &scope->identity, HASH_ENTER)
				->count++ == 0)
		search_partitions(&search);
}

static bool
compare_row(Search *search, const IdemKey *key, HeapTuple old)
{
	search->is_there = key_cmp(key, search->wanted) == 0;
	return !search->is_there;
}

bool
moved_any(const MovedScope *scope, const IdemKey *key)
{
	Search search = {.scope = scope, .found = compare_row, .wanted = key};

	search.command = GetActiveSnapshot()->curcid;
	search_partitions(&search);
	return search.is_there;
}

bool
moved_from(Oid relid, ItemPointer tid)
{
	Relation rel = table_open(relid, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	bool result = rel->rd_tableam == GetHeapamTableAmRoutine() &&
		table_tuple_fetch_row_version(rel, tid, SnapshotAny, slot) &&
		moved_by(((BufferHeapTupleTableSlot *) slot)->base.tuple, GetActiveSnapshot()->curcid);

	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return result;
}
