/*-------------------------------------------------------------------------
 *
 * sweep.c
 *	  Rows whose time has run out: found page by page, and deleted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "relation.h"
#include "sweep.h"

/* how many rows are looked at between looks at the clock; more than a page has */
#define ROWS_PER_LOOK 512

/* It may be dropped between the look-up and the lock. */
static Relation
open_table(const char *table, LOCKMODE lockmode)
{
	Relation rel = NULL;

	while (rel == NULL)
		rel = try_table_open(relation_find(table), lockmode);
	relation_check_plain(rel);
	return rel;
}

BlockNumber
sweep_pages(const char *table)
{
	Relation rel = open_table(table, AccessShareLock);
	BlockNumber pages = RelationGetNumberOfBlocks(rel);

	table_close(rel, AccessShareLock);
	return pages;
}

static AttrNumber
expiry_column(Relation rel)
{
	AttrNumber attnum = get_attnum(RelationGetRelid(rel), "expires_at");

	if (attnum == InvalidAttrNumber || get_atttype(RelationGetRelid(rel), attnum) != TIMESTAMPTZOID)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no column \"expires_at\" of type timestamptz",
						RelationGetRelationName(rel)),
				 errhint("Undo changes to the table made by hand.")));
	return attnum;
}

static bool
is_expired(TupleTableSlot *slot, AttrNumber expiry, TimestampTz now)
{
	bool isnull;
	Datum value = slot_getattr(slot, expiry, &isnull);

	return !isnull && DatumGetTimestampTz(value) <= now;
}

void
sweep_batch(const char *table, BlockNumber from, BlockNumber end, int64 max_rows, int max_msec,
			SweepBatch *batch)
{
	Relation rel = open_table(table, RowExclusiveLock);
	AttrNumber expiry = expiry_column(rel);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TimestampTz now = GetCurrentTimestamp();
	TableScanDesc scan;
	int64 seen = 0;

	relation_check_published(rel, CMD_DELETE);
	batch->deleted = 0;
	end = Min(end, RelationGetNumberOfBlocks(rel));
	if (from < end && end - from > SWEEP_MAX_PAGES)
		end = from + SWEEP_MAX_PAGES;
	batch->next = end;
	/* large tables go through a ring of buffers, as in a sequential scan */
	scan = table_beginscan_strat(rel, GetActiveSnapshot(), 0, NULL, true, false);
	if (from < end)
		heap_setscanlimits(scan, from, end - from);
	while (from < end && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		if (is_expired(slot, expiry, now) &&
			idem_tuple_delete(rel, &slot->tts_tid, GetCurrentCommandId(true), GetActiveSnapshot(),
							  false) == TM_Ok)
			batch->deleted++;
		if (batch->deleted >= max_rows ||
			(++seen % ROWS_PER_LOOK == 0 &&
			 TimestampDifferenceExceeds(now, GetCurrentTimestamp(), max_msec)))
		{
			batch->next = ItemPointerGetBlockNumber(&slot->tts_tid);
			break;
		}
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
}
