/*-------------------------------------------------------------------------
 *
 * write.c
 *	  Write rows of idem_keys: insert, take over, change.
 *
 * Nothing here checks privileges: EXECUTE on the SQL function includes the right to write
 * its row.  The only user code that could run is that of an expression index added by the
 * table's owner.  It runs as that owner, under SECURITY_RESTRICTED_OPERATION, as in
 * maintenance commands.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/relation.h"
#include "store/find.h"
#include "store/store.h"
#include "store/table.h"
#include "store/write.h"

void
change_init(Change *change, Store *store)
{
	int natts = RelationGetDescr(store->heap)->natts;

	change->values = palloc0(natts * sizeof(Datum));
	change->isnull = palloc(natts * sizeof(bool));
	memset(change->isnull, true, natts * sizeof(bool));
	change->replace = palloc0(natts * sizeof(bool));
	change->failed = store->failed;
}

void
set_datum(Change *change, int column, Datum value)
{
	change->values[column] = value;
	change->isnull[column] = false;
	change->replace[column] = true;
}

void
set_null(Change *change, int column)
{
	change->isnull[column] = true;
	change->replace[column] = true;
}

void
set_time(Change *change, int column, TimestampTz time)
{
	if (time == 0)
		set_null(change, column);
	else
		set_datum(change, column, TimestampTzGetDatum(time));
}

void
set_jsonb(Change *change, int column, bool given, Datum value)
{
	if (given)
		set_datum(change, column, value);
	else
		set_null(change, column);
}

/* NULL rather than false: it takes no space in a row. */
void
set_answer(Change *change, const StoreWrite *write)
{
	set_jsonb(change, COL_RESULT, write->has_result, write->result);
	/* definitions that can fail a claim come with the column, so somebody has dropped it */
	if (write->failed && change->failed == NO_COLUMN)
		error_columns(TABLE_NAME);
	if (write->failed)
		set_datum(change, change->failed, BoolGetDatum(true));
	else if (change->failed != NO_COLUMN)
		set_null(change, change->failed);
}

static void
set_fingerprint(Change *change, const uint8 *fingerprint)
{
	bytea *b = palloc(VARHDRSZ + FINGERPRINT_BYTES);

	SET_VARSIZE(b, VARHDRSZ + FINGERPRINT_BYTES);
	memcpy(VARDATA(b), fingerprint, FINGERPRINT_BYTES);
	set_datum(change, COL_FINGERPRINT, PointerGetDatum(b));
}

/* What a new claim sets in a row, whether new or an abandoned one that is taken over. */
static void
change_claim(Change *change, const StoreWrite *write, int32 attempt)
{
	set_datum(change, COL_ATTEMPT, Int32GetDatum(attempt));
	set_time(change, COL_FINISHED_AT, write->finished_at);
	set_time(change, COL_EXPIRES_AT, write->expires_at);
	set_time(change, COL_LEASE_UNTIL, write->lease_until);
	set_answer(change, write);
	if (write->fingerprint != NULL)
		set_fingerprint(change, write->fingerprint);
	if (write->fence == NO_FENCE)
	{
		set_null(change, COL_FENCE);
		set_null(change, COL_TTL);
	}
	else
	{
		set_datum(change, COL_FENCE, Int64GetDatum(write->fence));
		set_datum(change, COL_TTL, IntervalPGetDatum(&write->ttl));
	}
}

void
change_whole(Change *change, const StoreWrite *write)
{
	change_claim(change, write, 1);
	set_time(change, COL_CREATED_AT, write->created_at);
	set_null(change, COL_PHASE);
	set_null(change, COL_PROGRESS);
	if (write->fingerprint == NULL)
		set_null(change, COL_FINGERPRINT);
}

void
set_key(Change *change, const IdemKey *key)
{
	set_datum(change, COL_DIGEST, UUIDPGetDatum(&key->digest));
	set_datum(change, COL_SCOPE, PointerGetDatum(key->scope));
	set_datum(change, COL_KEY, PointerGetDatum(key->key));
}

static TupleTableSlot *
form_row(Store *store, const IdemKey *key, const StoreWrite *write)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(store->heap), &TTSOpsVirtual);
	int natts = slot->tts_tupleDescriptor->natts;

	/* write straight into the slot */
	Change change = {slot->tts_values, slot->tts_isnull, palloc(natts * sizeof(bool)),
					 store->failed};

	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, natts * sizeof(bool));
	change_whole(&change, write);
	set_key(&change, key);
	ExecStoreVirtualTuple(slot);
	slot->tts_tableOid = RelationGetRelid(store->heap);
	return slot;
}

/*
 * Is this the primary key, or its copy under REINDEX CONCURRENTLY?  Both then get entries,
 * and either may see a duplicate first.
 */
static bool
is_key_index(Relation index)
{
	return index->rd_index->indisunique && index->rd_index->indnkeyatts == 1 &&
		index->rd_index->indkey.values[0] == COL_DIGEST + 1 &&
		RelationGetIndexPredicate(index) == NIL;
}

/* The key indexes that got an entry, and the names that they had then. */
typedef struct KeyIndexes
{
	List *oids;
	List *names; /* char * */
} KeyIndexes;

/*
 * REINDEX CONCURRENTLY may have renamed the index since and marked it dead.  It is then no
 * longer in the table's list of indexes.
 */
static bool
is_key_index_name(const KeyIndexes *indexes, const char *name)
{
	ListCell *oid;
	ListCell *old;

	forboth(oid, indexes->oids, old, indexes->names)
	{
		const char *now = get_rel_name(lfirst_oid(oid));

		if (strcmp(lfirst(old), name) == 0 || (now != NULL && strcmp(now, name) == 0))
			return true;
	}
	return false;
}

/*
 * Insert the index entries of a heap tuple just written.  A duplicate key sets "conflict";
 * without "conflict" it raises 23505.
 */
static void
insert_index_entries(Store *store, TupleTableSlot *slot, bool *conflict, bool only_summarizing,
					 KeyIndexes *keys)
{
	EState *estate = CreateExecutorState();
	ResultRelInfo *rri = makeNode(ResultRelInfo);
	bool has_code = false;
	OwnerContext saved;

	InitResultRelInfo(rri, store->heap, 0, NULL, 0);
	ExecOpenIndices(rri, false);
	for (int i = 0; i < rri->ri_NumIndices; i++)
	{
		Relation index = rri->ri_IndexRelationDescs[i];
		IndexInfo *info = rri->ri_IndexRelationInfo[i];

		if (is_key_index(index))
		{
			keys->oids = lappend_oid(keys->oids, RelationGetRelid(index));
			keys->names = lappend(keys->names, pstrdup(RelationGetRelationName(index)));
		}
		if (info->ii_Expressions != NIL || info->ii_Predicate != NIL)
			has_code = true;
	}

	owner_become(store->heap, &saved);
	if (has_code)
		idem_restrict_search_path();
	idem_insert_index_tuples(rri, slot, estate, conflict != NULL ? keys->oids : NIL, conflict,
							 only_summarizing);
	owner_leave(&saved);

	ExecCloseIndices(rri);
	FreeExecutorState(estate);
}

/*
 * The same for a key that must have no other row: a duplicate means that another writer
 * was faster, so the transaction must be retried.
 */
static void
insert_index_entries_or_40001(Store *store, const IdemKey *key, TupleTableSlot *slot,
							  bool only_summarizing)
{
	MemoryContext context = CurrentMemoryContext;
	KeyIndexes *keys = palloc0(sizeof(KeyIndexes));

	PG_TRY();
	{
		insert_index_entries(store, slot, NULL, only_summarizing, keys);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		if (geterrcode() != ERRCODE_UNIQUE_VIOLATION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();

		/* a unique index that the table's owner added keeps its own error */
		if (edata->constraint_name == NULL || !is_key_index_name(keys, edata->constraint_name))
			ReThrowError(edata);
		error_serialization(key);
	}
	PG_END_TRY();
}

static void
insert_row(Store *store, const IdemKey *key, const StoreWrite *write)
{
	TupleTableSlot *slot = form_row(store, key, write);

	table_tuple_insert(store->heap, slot, GetCurrentCommandId(true), 0, NULL);
	insert_index_entries_or_40001(store, key, slot, false);
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * Insert, but neither wait for nor fail on a concurrent duplicate, as INSERT ... ON
 * CONFLICT does.
 */
static bool
insert_row_if_free(Store *store, TupleTableSlot *slot)
{
	TransactionId xid = GetCurrentTransactionId();
	uint32 token = SpeculativeInsertionLockAcquire(xid);
	KeyIndexes keys = {0};
	bool conflict = false;

	table_tuple_insert_speculative(store->heap, slot, GetCurrentCommandId(true), 0, NULL, token);
	insert_index_entries(store, slot, &conflict, false, &keys);
	table_tuple_complete_speculative(store->heap, slot, token, !conflict);
	SpeculativeInsertionLockRelease(xid);
	return !conflict;
}

/*
 * Update the version in the slot.  Unchanged columns keep their stored form, so that no
 * toasted value is written again.  Waits for a purge that is deleting the version.  False
 * if another transaction has deleted or changed it: look again.
 */
bool
update_version(Store *store, const IdemKey *key, TupleTableSlot *old, const Version *version,
			   Change *change)
{
	TupleDesc desc = RelationGetDescr(store->heap);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsHeapTuple);
	HeapTuple tuple = ExecCopySlotHeapTuple(old);
	ItemPointerData tid = version->tid;
	IdemUpdateIndexes update_indexes;
	TM_Result result;

	relation_check_published(store->heap, CMD_UPDATE);

	/* a command cannot update a row that it has itself inserted */
	if (version->own)
		CommandCounterIncrement();

	tuple = heap_modify_tuple(tuple, desc, change->values, change->isnull, change->replace);
	ExecStoreHeapTuple(tuple, slot, true);
	slot->tts_tableOid = RelationGetRelid(store->heap);
	result = idem_tuple_update(store->heap, &tid, slot, GetCurrentCommandId(true),
							   GetActiveSnapshot(), &update_indexes);
	if (result == TM_Ok && idem_update_needs_indexes(update_indexes))
		insert_index_entries_or_40001(store, key, slot,
									  idem_update_only_summarizing(update_indexes));
	else if (result != TM_Ok && result != TM_Updated && result != TM_Deleted)
		elog(ERROR, "unexpected table_tuple_update status: %d", (int) result);

	ExecDropSingleTupleTableSlot(slot);
	return result == TM_Ok;
}

/* Write a claim over an expired or an abandoned version. */
static bool
take_over(Store *store, const IdemKey *key, TupleTableSlot *old, const Version *version,
		  const StoreWrite *write)
{
	Change change;

	change_init(&change, store);
	if (version->state == STORE_ABANDONED)
		change_claim(&change, write, version->attempt + 1);
	else
		change_whole(&change, write);
	return update_version(store, key, old, version, &change);
}

/*
 * Try once to write over the current version; true if written.  A purge may have removed
 * the version that begin saw, and another row may have its TID now.  So look it up again.
 */
static bool
try_finish(Store *store, const IdemKey *key, const StoreWrite *write, int64 seen_fence)
{
	TupleTableSlot *slot = table_slot_create(store->heap, NULL);
	Version found;
	bool written = false;

	find_version(store, key, slot, &found);
	switch (found.state)
	{
		case STORE_ABSENT:
			insert_row(store, key, write);
			written = true;
			break;
		case STORE_EXPIRED:
			written = take_over(store, key, slot, &found, write);
			break;
		case STORE_ABANDONED:
			if (found.fence != seen_fence)
				error_serialization(key);
			written = take_over(store, key, slot, &found, write);
			break;
		case STORE_HELD:
			(void) store_wait(key, &found.holder, DT_NOEND);
			break;
		case STORE_LEASED:
		case STORE_FINISHED:
			error_serialization(key);
	}
	ExecDropSingleTupleTableSlot(slot);
	return written;
}

void
store_finish(const IdemKey *key, const StoreWrite *write, StoreState seen, int64 seen_fence)
{
	Store store;

	store_open(&store, RowExclusiveLock);
	if (seen == STORE_ABSENT)
		insert_row(&store, key, write);
	else
		while (!try_finish(&store, key, write, seen_fence))
			CHECK_FOR_INTERRUPTS();
	store_close(&store);
}

bool
store_claim(const IdemKey *key, const StoreWrite *write, const StoreRow *row)
{
	Store store;
	TupleTableSlot *slot;
	bool written = false;

	store_open(&store, RowExclusiveLock);
	/* a leased row will be updated: refuse now rather than after the work */
	if (write->finished_at == 0)
		relation_check_published(store.heap, CMD_UPDATE);
	if (row->state == STORE_ABSENT)
	{
		slot = form_row(&store, key, write);
		written = insert_row_if_free(&store, slot);
	}
	else
	{
		Version found;

		slot = table_slot_create(store.heap, NULL);
		find_version(&store, key, slot, &found);
		if (found.state == row->state &&
			(found.state == STORE_EXPIRED || found.fence == row->fence))
			written = take_over(&store, key, slot, &found, write);
	}
	ExecDropSingleTupleTableSlot(slot);
	store_close(&store);
	return written;
}
