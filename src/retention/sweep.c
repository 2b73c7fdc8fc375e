/*-------------------------------------------------------------------------
 *
 * sweep.c
 *	  Find expired rows page by page and delete them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/relation.h"
#include "retention/sweep.h"

/* about what a TOAST chunk holds; deleting one costs as much as deleting a row */
#define CHUNK_BYTES 2000

/*
 * Retry if the table is dropped between look-up and lock.  NULL: the table is locked, or it is a
 * shard that is gone.
 */
static Relation
open_table(const SweepTable *table, LOCKMODE lockmode, bool nowait)
{
	Relation rel = NULL;

	while (rel == NULL)
	{
		Oid relid = OidIsValid(table->shard) ? table->shard : relation_find(table->name);

		if (nowait && !ConditionalLockRelationOid(relid, lockmode))
			return NULL;
		rel = try_table_open(relid, nowait ? NoLock : lockmode);
		if (rel == NULL && OidIsValid(table->shard))
			return NULL;
	}
	relation_check_plain(rel);
	return rel;
}

bool
sweep_pages(const SweepTable *table, bool nowait, BlockNumber *pages)
{
	Relation rel = open_table(table, AccessShareLock, nowait);

	if (rel == NULL)
		return false;
	*pages = RelationGetNumberOfBlocks(rel);
	table_close(rel, AccessShareLock);
	return true;
}

static AttrNumber
expiry_column(Relation rel)
{
	AttrNumber attnum = get_attnum(RelationGetRelid(rel), "expires_at");

	if (attnum == InvalidAttrNumber || get_atttype(RelationGetRelid(rel), attnum) != TIMESTAMPTZOID)
		error_no_expiry_column(RelationGetRelationName(rel));
	return attnum;
}

static bool
is_expired(TupleTableSlot *slot, AttrNumber expiry, TimestampTz now)
{
	bool isnull;
	Datum value = slot_getattr(slot, expiry, &isnull);

	return !isnull && DatumGetTimestampTz(value) <= now;
}

/* The row, and the TOAST chunks that are deleted with it. */
static int64
count_tuples(TupleTableSlot *slot)
{
	TupleDesc desc = slot->tts_tupleDescriptor;
	int64 n = 1;

	slot_getallattrs(slot);
	for (int i = 0; i < desc->natts; i++)
	{
		struct varatt_external toast;

		if (slot->tts_isnull[i] || TupleDescAttr(desc, i)->attlen != -1 ||
			!VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(slot->tts_values[i])))
			continue;
		VARATT_EXTERNAL_GET_POINTER(toast, DatumGetPointer(slot->tts_values[i]));
		n += VARATT_EXTERNAL_GET_EXTSIZE(toast) / CHUNK_BYTES + 1;
	}
	return n;
}

/*
 * Would deleting another row of average cost exceed the time limit?  A row of megabytes takes
 * a good part of it.
 */
static bool
is_late(const SweepBatch *batch, const SweepLimits *limits, TimestampTz started)
{
	int64 spent = GetCurrentTimestamp() - started;

	return spent + spent / batch->deleted >= limits->max_msec * INT64CONST(1000);
}

/*
 * The clock is read once for each deleted row and each page.  Until a row is deleted, no
 * other session can be waiting.
 */
static bool
is_full(const SweepBatch *batch, const SweepLimits *limits, bool look, TimestampTz started)
{
	return batch->deleted >= limits->max_rows || batch->tuples >= limits->max_tuples ||
		ShutdownRequestPending || (look && batch->deleted > 0 && is_late(batch, limits, started));
}

static void
delete_expired(Relation rel, TableScanDesc scan, const SweepLimits *limits, SweepBatch *batch)
{
	AttrNumber expiry = expiry_column(rel);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TimestampTz now = GetCurrentTimestamp();
	BlockNumber page = InvalidBlockNumber;

	relation_check_published(rel, CMD_DELETE);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool look = page != ItemPointerGetBlockNumber(&slot->tts_tid);

		CHECK_FOR_INTERRUPTS();
		page = ItemPointerGetBlockNumber(&slot->tts_tid);
		if (is_expired(slot, expiry, now) &&
			idem_tuple_delete(rel, &slot->tts_tid, GetCurrentCommandId(true), GetActiveSnapshot(),
							  false) == TM_Ok)
		{
			look = true;
			batch->deleted++;
			batch->tuples += count_tuples(slot);
		}
		if (is_full(batch, limits, look, now))
		{
			batch->next = page;
			break;
		}
	}
	ExecDropSingleTupleTableSlot(slot);
}

bool
sweep_batch(const SweepTable *table, bool nowait, BlockNumber from, BlockNumber end,
			const SweepLimits *limits, SweepBatch *batch)
{
	Relation rel = open_table(table, RowExclusiveLock, nowait);
	BlockNumber pages;
	BlockNumber stop = end;

	if (rel == NULL)
		return false;
	pages = RelationGetNumberOfBlocks(rel);
	if (from < end && end - from > SWEEP_MAX_PAGES)
		stop = from + SWEEP_MAX_PAGES;
	batch->deleted = 0;
	batch->tuples = 0;
	/* if the table has shrunk to less than that, there is nothing left to read */
	batch->next = stop < pages ? stop : end;
	stop = Min(stop, pages);
	if (from < stop)
	{
		/* large tables go through a ring of buffers, as in a sequential scan */
		TableScanDesc scan = table_beginscan_strat(rel, GetActiveSnapshot(), 0, NULL, true, false);

		heap_setscanlimits(scan, from, stop - from);
		delete_expired(rel, scan, limits, batch);
		table_endscan(scan);
	}
	table_close(rel, NoLock);
	return true;
}
