/*-------------------------------------------------------------------------
 *
 * lease_rows.c
 *	  Changes to leased rows of idem_keys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tableam.h"
#include "utils/timestamp.h"

#include "store/find.h"
#include "store/store.h"
#include "store/table.h"
#include "store/write.h"

typedef struct LeasedRow
{
	Store store;
	TupleTableSlot *slot;
	Version version;
	Change change; /* what change_leased() is to write */
} LeasedRow;

static void
close_leased(LeasedRow *row)
{
	ExecDropSingleTupleTableSlot(row->slot);
	store_close(&row->store);
}

/* Open the leased or abandoned row with that fence; false if there is none, or no longer. */
static bool
open_leased(LeasedRow *row, const IdemKey *key, int64 fence)
{
	Version *found = &row->version;

	store_open(&row->store, key->scope, SHARD_WRITE, RowExclusiveLock);
	row->slot = table_slot_create(row->store.heap, NULL);
	find_version(&row->store, key, row->slot, found);
	if ((found->state != STORE_LEASED && found->state != STORE_ABANDONED) || found->fence != fence)
	{
		close_leased(row);
		return false;
	}
	change_init(&row->change, &row->store);
	return true;
}

static bool
change_leased(LeasedRow *row, const IdemKey *key)
{
	bool changed = update_version(&row->store, key, row->slot, &row->version, &row->change);

	close_leased(row);
	return changed;
}

/* The fence stays, so that a repeated finish learns that the claim is finished. */
bool
store_lease_finish(const IdemKey *key, int64 fence, const StoreWrite *write)
{
	LeasedRow row;

	if (!open_leased(&row, key, fence))
		return false;
	set_answer(&row.change, write);
	set_time(&row.change, COL_FINISHED_AT, write->finished_at);
	set_time(&row.change, COL_EXPIRES_AT, write->expires_at);
	set_null(&row.change, COL_LEASE_UNTIL);
	return change_leased(&row, key);
}

bool
store_lease_release(const IdemKey *key, int64 fence, TimestampTz expires_at)
{
	LeasedRow row;

	if (!open_leased(&row, key, fence))
		return false;
	set_null(&row.change, COL_LEASE_UNTIL);
	set_null(&row.change, COL_FENCE);
	set_time(&row.change, COL_EXPIRES_AT, expires_at);
	return change_leased(&row, key);
}

bool
store_lease_renew(const IdemKey *key, int64 fence, const StoreRenewal *renewal)
{
	LeasedRow row;

	if (!open_leased(&row, key, fence))
		return false;
	if (renewal->phase != NULL)
	{
		set_datum(&row.change, COL_PHASE, PointerGetDatum(renewal->phase));
		set_jsonb(&row.change, COL_PROGRESS, renewal->has_progress, renewal->progress);
	}
	if (renewal->lease_until != 0)
	{
		set_time(&row.change, COL_LEASE_UNTIL, renewal->lease_until);
		set_time(&row.change, COL_EXPIRES_AT, renewal->expires_at);
	}
	return change_leased(&row, key);
}
