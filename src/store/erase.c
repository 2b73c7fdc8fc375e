/*-------------------------------------------------------------------------
 *
 * erase.c
 *	  Delete rows of idem_keys before they expire.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/relation.h"
#include "store/find.h"
#include "store/store.h"
#include "store/table.h"

static void
find_version_only(Store *store, const IdemKey *key, Version *found)
{
	TupleTableSlot *slot = table_slot_create(store->heap, NULL);

	find_version(store, key, slot, found);
	ExecDropSingleTupleTableSlot(slot);
}

bool
store_forget(const IdemKey *key, StoreRow *row)
{
	Store store;
	Version found;
	TM_Result result = TM_Deleted;

	memset(row, 0, sizeof(*row));
	store_open(&store, key->scope, SHARD_ERASE, RowExclusiveLock);
	relation_check_published(store.heap, CMD_DELETE);
	do
	{
		CHECK_FOR_INTERRUPTS();
		find_version_only(&store, key, &found);
		if (found.state == STORE_HELD || found.state == STORE_ABSENT)
			break;
		if (found.own)
			CommandCounterIncrement();
		result = idem_tuple_delete(store.heap, &found.tid, GetCurrentCommandId(true),
								   GetActiveSnapshot(), true);
		if (result != TM_Ok && result != TM_Updated && result != TM_Deleted)
			elog(ERROR, "unexpected table_tuple_delete status: %d", (int) result);
	} while (result != TM_Ok);
	store_close(&store);

	row->state = found.state;
	row->holder = found.holder;
	return result == TM_Ok && found.state != STORE_EXPIRED;
}

int64
store_forget_scope(text *scope)
{
	Store store;
	OwnSql sql;
	OwnParam param = PARAM(TEXTOID, PointerGetDatum(scope));
	int64 deleted;

	/* raises an error if the table is not as this library expects */
	store_open(&store, scope, SHARD_ERASE, RowExclusiveLock);
	own_sql_start_on(&sql, RelationGetRelid(store.heap), RowExclusiveLock);
	deleted =
		own_sql_run(&sql, "DELETE FROM ONLY %s WHERE scope OPERATOR(pg_catalog.=) $1", 1, &param);
	own_sql_end(&sql);
	store_close(&store);
	return deleted;
}
