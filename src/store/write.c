/*-------------------------------------------------------------------------
 *
 * write.c
 *	  Write rows of idem_keys: insert, take over, change.
 *
 * Nothing here checks privileges: EXECUTE on the SQL function includes the right to write
 * its row.  The only user code that could run is that of an expression index added by the
 * table's owner: see index_entries.c.  relation_check_plain() has made sure that the table
 * is a heap, so rows are inserted with heap_insert(): an executor's slot would copy them
 * once more.
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
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/relation.h"
#include "store/find.h"
#include "store/index_entries.h"
#include "store/store.h"
#include "store/table.h"
#include "store/write.h"

/* columns of a row that is formed on the stack */
#define FORM_COLUMNS (NCOLUMNS + 6)

void
change_init(Change *change, Store *store)
{
	int natts = RelationGetDescr(store->heap)->natts;

	change->values = palloc0(natts * sizeof(Datum));
	change->isnull = palloc(natts * sizeof(bool));
	memset(change->isnull, true, natts * sizeof(bool));
	change->replace = palloc0(natts * sizeof(bool));
	change->store = store;
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
	if (write->failed && change->store->failed == NO_COLUMN)
		error_columns(TABLE_NAME);
	if (write->failed)
		set_datum(change, change->store->failed, BoolGetDatum(true));
	else if (change->store->failed != NO_COLUMN)
		set_null(change, change->store->failed);
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
	if (change->store->tenant_column != NO_COLUMN)
		set_datum(change, change->store->tenant_column, change->store->tenant);
}

static HeapTuple
form_row(Store *store, const IdemKey *key, const StoreWrite *write)
{
	TupleDesc desc = RelationGetDescr(store->heap);
	Datum values[FORM_COLUMNS];
	bool isnull[FORM_COLUMNS];
	bool replace[FORM_COLUMNS];
	Change change = {values, isnull, replace, store};

	/* more columns than that only if some were added and dropped again */
	if (desc->natts > FORM_COLUMNS)
		change_init(&change, store);
	else
		memset(isnull, true, sizeof(isnull));
	change_whole(&change, write);
	set_key(&change, key);
	return heap_form_tuple(desc, change.values, change.isnull);
}

static void
insert_row(Store *store, const IdemKey *key, const StoreWrite *write)
{
	HeapTuple tuple = form_row(store, key, write);

	heap_insert(store->heap, tuple, GetCurrentCommandId(true), 0, NULL);
	index_entries_or_40001(store, key, tuple, false);
	heap_freetuple(tuple);
}

/*
 * Insert, but neither wait for nor fail on a concurrent duplicate, as INSERT ... ON
 * CONFLICT does.
 */
static bool
insert_row_if_free(Store *store, const IdemKey *key, const StoreWrite *write)
{
	HeapTuple tuple = form_row(store, key, write);
	TransactionId xid = GetCurrentTransactionId();
	uint32 token = SpeculativeInsertionLockAcquire(xid);
	bool inserted;

	HeapTupleHeaderSetSpeculativeToken(tuple->t_data, token);
	heap_insert(store->heap, tuple, GetCurrentCommandId(true), HEAP_INSERT_SPECULATIVE, NULL);
	inserted = index_entries_if_free(store, key, tuple);
	if (inserted)
		heap_finish_speculative(store->heap, &tuple->t_self);
	else
		heap_abort_speculative(store->heap, &tuple->t_self);
	SpeculativeInsertionLockRelease(xid);
	heap_freetuple(tuple);
	return inserted;
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
		index_entries_or_40001(store, key, ExecFetchSlotHeapTuple(slot, false, NULL),
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

	store_open(&store, key->scope, SHARD_WRITE, RowExclusiveLock);
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
	bool written = false;

	store_open(&store, key->scope, SHARD_WRITE, RowExclusiveLock);
	/* a leased row will be updated: refuse now rather than after the work */
	if (write->finished_at == 0)
		relation_check_published(store.heap, CMD_UPDATE);
	if (row->state == STORE_ABSENT)
		written = (!row->unlooked || has_only_primary_key(&store)) &&
			insert_row_if_free(&store, key, write);
	else
	{
		TupleTableSlot *slot = table_slot_create(store.heap, NULL);
		Version found;

		find_version(&store, key, slot, &found);
		if (found.state == row->state &&
			(found.state == STORE_EXPIRED || found.fence == row->fence))
			written = take_over(&store, key, slot, &found, write);
		ExecDropSingleTupleTableSlot(slot);
	}
	store_close(&store);
	return written;
}
