/*-------------------------------------------------------------------------
 *
 * partition_move.c
 *	  Rows that an UPDATE moves from one partition to another.
 *
 * The hash table lives in TopTransactionContext and is valid for one local transaction id.
 * Rows are counted by command id, which a transaction never reuses.  So a subtransaction's
 * rollback needs no undo: its inserted rows are gone as well.  (But SET CONSTRAINTS and a
 * rollback to a savepoint can fire a deferred trigger's event twice; only AFTER DELETE
 * events are then counted twice too.)
 *
 * The executor fires a BEFORE trigger under the command's own snapshot, which has the
 * command's id, whatever earlier triggers ran.
 *
 * Most commands, such as INSERT and COPY, cannot move a row, and cause no search.  Executor
 * hooks record the command ids of those that might, while they run.
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
#include "executor/executor.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "once/partition_move.h"

typedef enum MovedWhat
{
	MOVED_KEY,		 /* count: rows of key "id" moved out and not yet in again */
	MOVED_COLLECTED, /* count > 0: the partitions were searched for trigger "id" */
	MOVED_PASSED,	 /* count: moved rows that trigger "id" has let pass */
	MOVED_NOTHING,	 /* no row was moved from "rel" as of "count" deleted rows there */
	MOVED_BY		 /* "found" rows were moved by command "id", as of "count" deleted rows */
} MovedWhat;

typedef struct MovedTag
{
	MovedWhat what;
	uint32 during; /* command id; MOVED_NOTHING and MOVED_BY: subtransaction id */
	Oid rel;	   /* root of the partitions; MOVED_NOTHING and MOVED_BY: the partition */
	pg_uuid_t id;  /* digest of the key, identity of the trigger, or command id */
} MovedTag;

typedef struct MovedEntry
{
	MovedTag tag;
	int64 count;
	int64 found; /* MOVED_BY */
} MovedEntry;

/* A running command that may move rows. */
typedef struct Mover
{
	CommandId command;
	struct Mover *outer;
} Mover;

static Mover *movers = NULL;

/* start of the statement that loaded the library: its commands are unknown to the hooks */
static TimestampTz loaded_at;

static ExecutorRun_hook_type prev_executor_run = NULL;
static ExecutorFinish_hook_type prev_executor_finish = NULL;

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
 * The command that inserted a row; false if that is unknown, because the row is frozen (COPY
 * FREEZE) or its table is not a heap.
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
	bool collect; /* for moved_in() */
} Search;

/*
 * The number of rows that this transaction has deleted from the partition since its last
 * TRUNCATE, by the statistics; -1 if they are disabled.  If it is 0, as in a transaction that
 * only inserts, there is nothing to search.  It may be too high, but not too low.
 */
static int64
deleted_in(Relation rel, bool *truncated)
{
	int64 deleted = 0;
	PgStat_TableXactStatus *trans;

	*truncated = false;
	/* links a new relation cache entry to the statistics, which may have counted before */
	if (!pgstat_should_count_relation(rel))
		return -1;
	for (trans = rel->pgstat_info->trans; trans != NULL; trans = trans->upper)
	{
		deleted += trans->tuples_deleted;
		*truncated |= trans->truncdropped;
	}
	return deleted;
}

static void
collect_row(const MovedScope *scope, Relation rel, HeapTuple row)
{
	IdemKey key;

	if (scope->make_key(scope->arg, rel, row, &key))
		moved_out(scope, &key, row);
}

/* The number of rows that the command has moved; *any: has any command moved one? */
static int64
scan_partition(Relation rel, const Search *search, bool *any)
{
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = idem_table_beginscan(rel, SnapshotAny);
	MemoryContext per_row =
		AllocSetContextCreate(CurrentMemoryContext, "moved rows", ALLOCSET_SMALL_SIZES);
	int64 found = 0;

	*any = false;
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		HeapTuple row = ((BufferHeapTupleTableSlot *) slot)->base.tuple;
		MemoryContext old;

		CHECK_FOR_INTERRUPTS();
		if (!moved_is(row))
			continue;
		*any = true;
		if (!moved_by(row, search->command))
			continue;
		found++;
		if (!search->collect)
			continue;
		old = MemoryContextSwitchTo(per_row);
		collect_row(search->scope, rel, row);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_row);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(per_row);
	return found;
}

/*
 * A search's result is valid while the number of deleted rows stays the same.  A rollback lowers
 * that number, but ends the subtransaction, whose id is in the tag.  So does TRUNCATE, but not of
 * a partition that the running command may move rows from: so after one, only what was found for
 * the same command is valid.
 */
static MovedEntry *
nothing_entry(MovedWhat what, Relation rel, CommandId command, HASHACTION action)
{
	pg_uuid_t id = {0};

	memcpy(id.data, &command, sizeof(command));
	return find_entry(what, GetCurrentSubTransactionId(), RelationGetRelid(rel), &id, action);
}

/* Get the number of rows that the command has moved from an earlier search, if that is valid. */
static bool
found_before(Relation rel, const Search *search, int64 deleted, bool truncated, int64 *found)
{
	MovedEntry *nothing = nothing_entry(MOVED_NOTHING, rel, InvalidCommandId, HASH_FIND);
	MovedEntry *by = nothing_entry(MOVED_BY, rel, search->command, HASH_FIND);

	*found = 0;
	if (!truncated && nothing != NULL && nothing->count == deleted)
		return true;
	if (by == NULL || by->count != deleted || (search->collect && by->found > 0))
		return false;
	*found = by->found;
	return true;
}

static int64
search_partition(Relation rel, const Search *search)
{
	bool truncated;
	int64 deleted = deleted_in(rel, &truncated);
	int64 found;
	bool any;

	if (deleted == 0)
		return 0;
	if (deleted > 0 && found_before(rel, search, deleted, truncated, &found))
		return found;

	found = scan_partition(rel, search, &any);
	if (!any && !truncated)
		nothing_entry(MOVED_NOTHING, rel, InvalidCommandId, HASH_ENTER)->count = deleted;
	else
	{
		MovedEntry *by = nothing_entry(MOVED_BY, rel, search->command, HASH_ENTER);

		by->count = deleted;
		by->found = found;
	}
	return found;
}

/* The number of moved rows.  Searches only partitions that this transaction has written. */
static int64
search_partitions(const Search *search)
{
	ListCell *lc;
	int64 found = 0;

	foreach(lc, find_all_inheritors(search->scope->root, NoLock, NULL))
	{
		Relation rel;

		if (!idem_relation_locked_by_me(lfirst_oid(lc), RowExclusiveLock))
			continue;
		rel = relation_open(lfirst_oid(lc), NoLock);
		if (rel->rd_rel->relkind == RELKIND_RELATION &&
			rel->rd_tableam == GetHeapamTableAmRoutine())
			found += search_partition(rel, search);
		relation_close(rel, NoLock);
	}
	return found;
}

void
moved_collect(const MovedScope *scope, Relation rel, HeapTuple inserted)
{
	Search search = {.scope = scope, .collect = true};

	if (inserted_by(rel, inserted, &search.command) &&
		find_entry(MOVED_COLLECTED, search.command, scope->root, &scope->identity, HASH_ENTER)
				->count++ == 0)
		(void) search_partitions(&search);
}

/* Is the command an UPDATE or a MERGE, or does its WITH contain one? */
static bool
may_move(CommandId command)
{
	if (GetCurrentStatementStartTimestamp() == loaded_at)
		return true;
	for (Mover *mover = movers; mover != NULL; mover = mover->outer)
		if (mover->command == command)
			return true;
	return false;
}

void
moved_let_pass(const MovedScope *scope)
{
	find_entry(MOVED_PASSED, GetActiveSnapshot()->curcid, scope->root, &scope->identity, HASH_ENTER)
		->count++;
}

bool
moved_more(const MovedScope *scope)
{
	Search search = {.scope = scope, .command = GetActiveSnapshot()->curcid};
	int64 found;
	MovedEntry *passed;

	if (!may_move(search.command))
		return false;
	found = search_partitions(&search);
	passed = find_entry(MOVED_PASSED, search.command, scope->root, &scope->identity, HASH_FIND);
	return found > (passed == NULL ? 0 : passed->count);
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

/* ------------------------------------------------------------------------
 * Commands
 * ------------------------------------------------------------------------
 */

static bool
query_may_move(const QueryDesc *query)
{
	return query->operation == CMD_UPDATE || query->operation == CMD_MERGE ||
		query->plannedstmt->hasModifyingCTE;
}

static void
next_run(idem_executor_run_args)
{
	if (prev_executor_run != NULL)
		prev_executor_run(idem_executor_run_pass);
	else
		standard_ExecutorRun(idem_executor_run_pass);
}

static void
next_finish(QueryDesc *queryDesc)
{
	if (prev_executor_finish != NULL)
		prev_executor_finish(queryDesc);
	else
		standard_ExecutorFinish(queryDesc);
}

static void
executor_run(idem_executor_run_args)
{
	Mover mover = {.outer = movers};

	if (!query_may_move(queryDesc))
	{
		next_run(idem_executor_run_pass);
		return;
	}
	mover.command = queryDesc->estate->es_output_cid;
	movers = &mover;
	PG_TRY();
	{
		next_run(idem_executor_run_pass);
	}
	PG_FINALLY();
	{
		movers = mover.outer;
	}
	PG_END_TRY();
}

/* ExecutorFinish completes an UPDATE in WITH whose rows were not all read. */
static void
executor_finish(QueryDesc *queryDesc)
{
	Mover mover = {.outer = movers};

	if (!query_may_move(queryDesc))
	{
		next_finish(queryDesc);
		return;
	}
	mover.command = queryDesc->estate->es_output_cid;
	movers = &mover;
	PG_TRY();
	{
		next_finish(queryDesc);
	}
	PG_FINALLY();
	{
		movers = mover.outer;
	}
	PG_END_TRY();
}

void
moved_init(void)
{
	loaded_at = GetCurrentStatementStartTimestamp();
	prev_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = executor_run;
	prev_executor_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = executor_finish;
}
