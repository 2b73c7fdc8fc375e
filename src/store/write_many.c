/*-------------------------------------------------------------------------
 *
 * write_many.c
 *	  Look up and write the rows of many keys, with the table opened once.
 *
 * Rows are written in a subtransaction: some of them with one WAL record for each page, then
 * their index entries in the order of digests, then the next ones.  A row without an index
 * entry is nobody's yet: no other session finds it, and a crash or a rollback leaves a dead
 * row.  A row with an entry holds its key.
 *
 * If the index has another row of a key, whether committed or not, the subtransaction is
 * rolled back, which frees all of its keys at once, and the caller looks at them again, or
 * claims them one by one.  So no session waits in here: one that waits for a key holds only
 * those that come before it, and batches cannot deadlock.  To delete the one row instead would
 * not free its key: other sessions take a row that a running transaction has inserted and
 * deleted for a row that may yet come back.
 *
 * The server remembers some subtransactions of each transaction in shared memory.  With
 * more than that, all sessions take longer to find out which rows they can see.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/subtransaction.h"
#include "store/durable.h"
#include "store/find.h"
#include "store/index_entries.h"
#include "store/key_lock.h"
#include "store/store.h"
#include "store/table.h"
#include "store/write.h"

/* rows in memory, and in one call of the table's insertion: COPY has like limits */
#define ROWS_AT_ONCE 200
#define BYTES_AT_ONCE 65536

/* leave the application some of its own */
#define MAX_SUBTRANSACTIONS (PGPROC_MAX_CACHED_SUBXIDS * 3 / 4)

struct StoreBatch
{
	Store store;
	VersionScan scan;
	TupleTableSlot *found;

	bool answers;		 /* a look-up has reported another transaction's row */
	XLogRecPtr position; /* the last of them in WAL */

	TupleDesc desc; /* a copy, so that no resource owner keeps track of the slots */
	TupleTableSlot **rows;
	MemoryContext context;	 /* reset after each write */
	MemoryContext in_memory; /* of the rows, below that */
};

/* The subtransactions that this transaction has used. */
static struct
{
	LocalTransactionId transaction;
	int count;
} used;

StoreBatch *
store_batch_begin(text *scope)
{
	StoreBatch *batch = palloc0(sizeof(StoreBatch));

	store_open(&batch->store, scope, SHARD_WRITE, RowExclusiveLock);
	version_scan_begin(&batch->scan, &batch->store);
	batch->found = table_slot_create(batch->store.heap, NULL);
	batch->position = InvalidXLogRecPtr;
	batch->context =
		AllocSetContextCreate(CurrentMemoryContext, "rows of a batch", ALLOCSET_DEFAULT_SIZES);
	return batch;
}

void
store_batch_end(StoreBatch *batch)
{
	version_scan_end(&batch->scan);
	ExecDropSingleTupleTableSlot(batch->found);
	for (int i = 0; batch->rows != NULL && i < ROWS_AT_ONCE; i++)
		ExecDropSingleTupleTableSlot(batch->rows[i]);
	MemoryContextDelete(batch->context);
	/* the wait for a standby may be long, so it comes last */
	if (batch->answers)
		durable_row(batch->position);
	store_close(&batch->store);
	pfree(batch);
}

bool
store_batch_likely_new(StoreBatch *batch)
{
	return store_likely_new() && has_only_primary_key(&batch->store);
}

static void
check_tenant(StoreBatch *batch, const IdemKey *key)
{
	if (batch->store.tenant_column != NO_COLUMN && !key_same_text(batch->store.scope, key->scope))
		error_many_tenants(batch->store.scope, key->scope);
}

StoreState
store_batch_probe(StoreBatch *batch, const IdemKey *key, bool *unseen)
{
	Version version;

	check_tenant(batch, key);
	version_scan_find(&batch->scan, key, batch->found, &version);
	*unseen = false;
	if (!version.own &&
		(version.state == STORE_LEASED || version.state == STORE_ABANDONED ||
		 version.state == STORE_FINISHED))
	{
		*unseen = version_is_unseen(&batch->store, batch->found);
		batch->position = Max(batch->position, version_position(&version, batch->found));
		batch->answers = true;
	}
	return version.state;
}

void
store_batch_rest(StoreBatch *batch)
{
	version_scan_rest(&batch->scan);
	ExecClearTuple(batch->found);
}

/* ------------------------------------------------------------------------
 * Writing
 * ------------------------------------------------------------------------
 */

static void
make_slots(StoreBatch *batch)
{
	if (batch->rows != NULL)
		return;
	batch->desc = CreateTupleDescCopy(RelationGetDescr(batch->store.heap));
	batch->rows = palloc_array(TupleTableSlot *, ROWS_AT_ONCE);
	for (int i = 0; i < ROWS_AT_ONCE; i++)
		batch->rows[i] = MakeSingleTupleTableSlot(batch->desc, &TTSOpsHeapTuple);
}

static void
clear_slots(StoreBatch *batch)
{
	for (int i = 0; i < ROWS_AT_ONCE; i++)
		ExecClearTuple(batch->rows[i]);
}

/* Returns how many rows it has inserted, as many as may be in memory. */
static int
insert_rows(StoreBatch *batch, const IdemKey *const *keys, const StoreWrite *const *writes, int n,
			Change *change)
{
	MemoryContext old = MemoryContextSwitchTo(batch->in_memory);
	Size bytes = 0;
	int count = 0;

	while (count < Min(n, ROWS_AT_ONCE) && bytes < BYTES_AT_ONCE)
	{
		HeapTuple row;

		check_tenant(batch, keys[count]);
		if (count == 0 || writes[count] != writes[count - 1])
			change_whole(change, writes[count]);
		set_key(change, keys[count]);
		row = heap_form_tuple(batch->desc, change->values, change->isnull);
		ExecStoreHeapTuple(row, batch->rows[count++], true);
		bytes += row->t_len;
	}
	/* without a bulk-insert state, since that passes over the space that a purge has freed */
	table_multi_insert(batch->store.heap, batch->rows, count, GetCurrentCommandId(true), 0, NULL);
	MemoryContextSwitchTo(old);
	return count;
}

/* False if a key has, or may have, another row. */
static bool
insert_entries(StoreBatch *batch, IndexWriter *indexes, const IdemKey *const *keys, int n)
{
	LockContext context;
	bool inserted = true;

	/* a unique index that the table's owner has added may wait */
	lock_context_push(&context, keys[0]);
	for (int i = 0; i < n && inserted; i++)
	{
		CHECK_FOR_INTERRUPTS();
		context.key = keys[i];
		inserted = index_writer_insert(indexes, keys[i], batch->rows[i]);
	}
	lock_context_pop(&context);
	return inserted;
}

/* False as above. */
static bool
write_rows(StoreBatch *batch, const IdemKey *const *keys, const StoreWrite *const *writes, int n)
{
	MemoryContext old = MemoryContextSwitchTo(batch->context);
	IndexWriter indexes;
	Change change;
	bool written = true;

	batch->in_memory = AllocSetContextCreate(batch->context, "rows", ALLOCSET_DEFAULT_SIZES);
	change_init(&change, &batch->store);
	index_writer_begin(&indexes, &batch->store);
	for (int done = 0; done < n && written;)
	{
		int count = insert_rows(batch, keys + done, writes + done, n - done, &change);

		written = insert_entries(batch, &indexes, keys + done, count);
		clear_slots(batch);
		MemoryContextReset(batch->in_memory);
		done += count;
	}
	index_writer_end(&indexes);
	MemoryContextSwitchTo(old);
	return written;
}

static bool
may_use_subtransaction(void)
{
	if (used.transaction != idem_local_transaction())
	{
		used.transaction = idem_local_transaction();
		used.count = 0;
	}
	return used.count++ < MAX_SUBTRANSACTIONS;
}

bool
store_batch_write(StoreBatch *batch, const IdemKey *const *keys, const StoreWrite *const *writes,
				  int n)
{
	Subtransaction sub;
	volatile bool written = false;
	volatile bool rolled_back = false;

	if (!may_use_subtransaction())
		return false;
	/* locks that are taken in a subtransaction go with it, so the table is open already */
	store_batch_rest(batch);
	make_slots(batch);
	subtransaction_begin(&sub);
	PG_TRY();
	{
		written = write_rows(batch, keys, writes, n);
		if (written)
			subtransaction_commit(&sub);
	}
	PG_CATCH();
	{
		ErrorData *error = subtransaction_catch(&sub);

		/*
		 * An index of the owner's objects to a second row of a key before we can roll back.
		 * If it objects for another reason, who claims the keys one by one gets the error again.
		 */
		if (error->sqlerrcode != ERRCODE_UNIQUE_VIOLATION &&
			error->sqlerrcode != ERRCODE_EXCLUSION_VIOLATION)
			ReThrowError(error);
		FreeErrorData(error);
		clear_slots(batch);
		rolled_back = true;
	}
	PG_END_TRY();
	if (!written && !rolled_back)
		subtransaction_rollback(&sub);
	MemoryContextReset(batch->context);
	return written;
}
