/*-------------------------------------------------------------------------
 *
 * find.c
 *	  Look up the row of a key: its newest state, or its state under a snapshot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/xact.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/errors.h"
#include "store/durable.h"
#include "store/find.h"
#include "store/peek.h"
#include "store/store.h"
#include "store/table.h"

/* Did the last look meet no entry in the primary key? */
static bool likely_new = true;

static IndexScanDesc
begin_scan(Store *store, const IdemKey *key, Snapshot snapshot)
{
	IndexScanDesc scan = idem_index_beginscan(store->heap, store->index, snapshot, 1);
	ScanKeyData skey;

	ScanKeyInit(&skey, 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(&key->digest));
	index_rescan(scan, &skey, 1, NULL, 0);
	return scan;
}

void
version_scan_begin(VersionScan *scan, Store *store)
{
	scan->store = store;
	InitDirtySnapshot(scan->dirty);
	ScanKeyInit(&scan->key, 1, BTEqualStrategyNumber, F_UUID_EQ, (Datum) 0);
	scan->scan = idem_index_beginscan(store->heap, store->index, &scan->dirty, 1);
}

void
version_scan_rest(VersionScan *scan)
{
	idem_index_rescan_unpinned(scan->scan, &scan->key, 1);
}

void
version_scan_end(VersionScan *scan)
{
	index_endscan(scan->scan);
}

static HeapTupleHeader
slot_header(TupleTableSlot *slot)
{
	Assert(TTS_IS_BUFFERTUPLE(slot));
	return ((BufferHeapTupleTableSlot *) slot)->base.tuple->t_data;
}

static Buffer
slot_buffer(TupleTableSlot *slot)
{
	Assert(TTS_IS_BUFFERTUPLE(slot));
	return ((BufferHeapTupleTableSlot *) slot)->buffer;
}

static TimestampTz
get_timestamp(TupleTableSlot *slot, int column)
{
	bool isnull;
	Datum d = slot_getattr(slot, column + 1, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(d);
}

/* The state of a version that is committed or our own. */
static StoreState
slot_state(TupleTableSlot *slot)
{
	TimestampTz now = GetCurrentTimestamp();

	if (get_timestamp(slot, COL_EXPIRES_AT) <= now)
		return STORE_EXPIRED;
	if (get_timestamp(slot, COL_FINISHED_AT) != 0)
		return STORE_FINISHED;
	return get_timestamp(slot, COL_LEASE_UNTIL) > now ? STORE_LEASED : STORE_ABANDONED;
}

static int64
get_fence(TupleTableSlot *slot)
{
	bool isnull;
	Datum d = slot_getattr(slot, COL_FENCE + 1, &isnull);

	return isnull ? NO_FENCE : DatumGetInt64(d);
}

static int32
get_attempt(TupleTableSlot *slot)
{
	bool isnull;

	return DatumGetInt32(slot_getattr(slot, COL_ATTEMPT + 1, &isnull));
}

static void
describe_version(Version *found, TupleTableSlot *slot, StoreState state)
{
	found->tid = slot->tts_tid;
	found->xmin = HeapTupleHeaderGetXmin(slot_header(slot));
	found->own = TransactionIdIsCurrentTransactionId(found->xmin);
	found->fence = get_fence(slot);
	found->attempt = get_attempt(slot);
	found->state = state;
}

/* The index entries that a scan has met. */
typedef struct Entries
{
	int count;
	uint64 hash; /* of their TIDs */
} Entries;

/*
 * index_getnext_slot() that also records the index entries it meets, and makes the slot if an
 * entry needs one: most look-ups meet none.
 */
static bool
next_version(IndexScanDesc scan, TupleTableSlot **slot, Entries *entries)
{
	for (;;)
	{
		if (!scan->xs_heap_continue)
		{
			ItemPointer tid = index_getnext_tid(scan, ForwardScanDirection);

			if (tid == NULL)
				return false;
			entries->count++;
			entries->hash = hash_combine64(
				entries->hash, hash_bytes_extended((unsigned char *) tid, sizeof(*tid), 0));
		}
		if (*slot == NULL)
			*slot = table_slot_create(scan->heapRelation, NULL);
		if (index_fetch_heap(scan, *slot))
			return true;
	}
}

/*
 * Find the version that counts, and leave it in the slot unless it is held.
 *
 * SnapshotDirty shows versions that are committed or our own, and versions that other
 * transactions have inserted but not committed, with their xids.  If another transaction is
 * replacing an expired version, the replacement is on the same HOT chain or has its own
 * index entry.  So the search goes on after an expired version; if it has no successor, a
 * purge is deleting it.
 *
 * Any other version that a transaction is replacing still gives the answer, wherever the
 * scan met its successor.  An abandoned version gives no answer: the transaction that is
 * replacing it holds the key.
 */
static void
scan_versions(VersionScan *scan, TupleTableSlot **made, Version *found, Entries *entries)
{
	SnapshotData *dirty = &scan->dirty;
	StoreHolder held = {.xid = InvalidTransactionId};

	memset(found, 0, sizeof(*found));
	found->state = STORE_ABSENT;
	memset(entries, 0, sizeof(*entries));

	index_rescan(scan->scan, &scan->key, 1, NULL, 0);
	while (next_version(scan->scan, made, entries))
	{
		TupleTableSlot *slot = *made;
		StoreState state;

		if (TransactionIdIsValid(dirty->xmin))
		{
			held = (StoreHolder){.xid = dirty->xmin, .token = dirty->speculativeToken};
			continue;
		}

		state = slot_state(slot);

		/* another transaction is taking it over, and may have released the key's lock */
		if (state == STORE_ABANDONED && TransactionIdIsValid(dirty->xmax))
		{
			held = (StoreHolder){.xid = dirty->xmax};
			continue;
		}

		describe_version(found, slot, state);
		if (found->state != STORE_EXPIRED)
			break;
		/* the next fetch uses the slot's own memory, also if it finds nothing */
		ExecMaterializeSlot(slot);
	}

	if (TransactionIdIsValid(held.xid) &&
		(found->state == STORE_ABSENT || found->state == STORE_EXPIRED))
	{
		found->state = STORE_HELD;
		found->holder = held;
	}
	/* do not pin the page while we wait for the holder */
	if (found->state == STORE_HELD)
		ExecClearTuple(*made);
}

/*
 * One scan can miss a row that exists all the time.  A non-HOT update may replace the old
 * version before we look at it, and add the new index entry after we have read the index
 * page.  But then the next scan meets an entry that the last one did not.  So a key is
 * absent if a scan meets no entry, or only the entries that the scan before found dead.
 * Similarly, a holder may end after we have looked at its version and before we look at the
 * version that it replaces.
 */
static void
find_and_make_slot(VersionScan *scan, const IdemKey *key, TupleTableSlot **slot, Version *found)
{
	Entries before;
	Entries entries = {0};

	scan->key.sk_argument = UUIDPGetDatum(&key->digest);
	do
	{
		CHECK_FOR_INTERRUPTS();
		before = entries;
		scan_versions(scan, slot, found, &entries);
	} while ((found->state == STORE_ABSENT && entries.count > 0 &&
			  (entries.count != before.count || entries.hash != before.hash)) ||
			 (found->state == STORE_HELD && !TransactionIdIsInProgress(found->holder.xid)));
	likely_new = entries.count == 0;
}

bool
store_likely_new(void)
{
	return likely_new;
}

/* Does the row of this entry give the answer, as scan_versions() says? */
static bool
entry_answers(IndexFetchTableData *fetch, SnapshotData *dirty, ItemPointer tid,
			  TupleTableSlot *slot, Version *found)
{
	bool more = false;
	bool dead = false;
	StoreState state;

	if (!table_index_fetch_tuple(fetch, tid, dirty, slot, &more, &dead) ||
		TransactionIdIsValid(dirty->xmin))
		return false;
	state = slot_state(slot);
	if (state != STORE_LEASED && state != STORE_FINISHED)
		return false;
	describe_version(found, slot, state);
	return true;
}

/* Releases the leaf page.  "scan" is NULL if there is none yet. */
static bool
look_at_entry(Store *store, VersionScan *scan, ItemPointer tid, Buffer leaf, TupleTableSlot **slot,
			  Version *found)
{
	bool answers;

	if (*slot == NULL)
		*slot = table_slot_create(store->heap, NULL);
	if (scan != NULL)
		answers = entry_answers(scan->scan->xs_heapfetch, &scan->dirty, tid, *slot, found);
	else
	{
		IndexFetchTableData *fetch = idem_index_fetch_begin(store->heap);
		SnapshotData dirty;

		InitDirtySnapshot(dirty);
		answers = entry_answers(fetch, &dirty, tid, *slot, found);
		table_index_fetch_end(fetch);
	}
	ReleaseBuffer(leaf);
	if (answers)
	{
		pgstat_count_index_tuples(store->index, 1);
		pgstat_count_heap_fetch(store->index);
	}
	else
		ExecClearTuple(*slot);
	return answers;
}

/*
 * Look at the first index entry alone.  That is enough for a key that has none, and for one
 * whose first entry leads to the version that counts, as nearly all do.  False: only a scan
 * finds out.
 */
static inline bool
peek_version(Store *store, VersionScan *scan, const IdemKey *key, TupleTableSlot **slot,
			 Version *found)
{
	ItemPointerData tid;
	Buffer leaf;
	PeekResult seen = peek(store, key, &tid, &leaf);
	bool answers = seen == PEEK_ABSENT;

	likely_new = seen == PEEK_ABSENT;
	memset(found, 0, sizeof(*found));
	found->state = STORE_ABSENT;
	if (seen == PEEK_ENTRY)
		answers = look_at_entry(store, scan, &tid, leaf, slot, found);
	/* otherwise the scan counts */
	if (answers)
		pgstat_count_index_scan(store->index);
	return answers;
}

/* Makes the slot if an entry needs one: most look-ups meet none. */
static void
probe_version(Store *store, const IdemKey *key, TupleTableSlot **slot, Version *found)
{
	VersionScan scan;

	if (peek_version(store, NULL, key, slot, found))
		return;
	version_scan_begin(&scan, store);
	find_and_make_slot(&scan, key, slot, found);
	version_scan_end(&scan);
}

void
find_version(Store *store, const IdemKey *key, TupleTableSlot *slot, Version *found)
{
	probe_version(store, key, &slot, found);
}

void
version_scan_find(VersionScan *scan, const IdemKey *key, TupleTableSlot *slot, Version *found)
{
	if (!peek_version(scan->store, scan, key, &slot, found))
		find_and_make_slot(scan, key, &slot, found);
}

bool
version_is_unseen(Store *store, TupleTableSlot *slot)
{
	return IsolationUsesXactSnapshot() &&
		!table_tuple_satisfies_snapshot(store->heap, slot, GetTransactionSnapshot());
}

XLogRecPtr
version_position(const Version *found, TupleTableSlot *slot)
{
	return durable_position(found->xmin, slot_buffer(slot));
}

/* Copy what callers need; the slot's page may be unpinned afterwards. */
static void
read_row(const Store *store, TupleTableSlot *slot, StoreRow *row, bool with_progress)
{
	bool isnull;
	Datum d;

	d = slot_getattr(slot, COL_FINGERPRINT + 1, &isnull);
	row->has_fingerprint = !isnull;
	if (!isnull)
	{
		bytea *b = DatumGetByteaPP(d);

		if (VARSIZE_ANY_EXHDR(b) != FINGERPRINT_BYTES)
			error_fingerprint_size(TABLE_NAME, (int) VARSIZE_ANY_EXHDR(b), FINGERPRINT_BYTES);
		memcpy(row->fingerprint, VARDATA_ANY(b), FINGERPRINT_BYTES);
	}

	d = slot_getattr(slot, COL_RESULT + 1, &isnull);
	row->has_result = !isnull;
	if (!isnull)
		row->result = PointerGetDatum(PG_DETOAST_DATUM_COPY(d));

	if (store->failed != NO_COLUMN)
	{
		d = slot_getattr(slot, store->failed + 1, &isnull);
		row->failed = !isnull && DatumGetBool(d);
	}

	if (with_progress)
	{
		d = slot_getattr(slot, COL_PROGRESS + 1, &isnull);
		row->has_progress = !isnull;
		if (!isnull)
			row->progress = PointerGetDatum(PG_DETOAST_DATUM_COPY(d));
	}

	d = slot_getattr(slot, COL_PHASE + 1, &isnull);
	row->phase = isnull ? NULL : DatumGetTextPCopy(d);

	d = slot_getattr(slot, COL_TTL + 1, &isnull);
	if (!isnull)
		row->ttl = *DatumGetIntervalP(d);

	row->fence = get_fence(slot);
	row->attempt = get_attempt(slot);
	row->lease_until = get_timestamp(slot, COL_LEASE_UNTIL);
	row->created_at = get_timestamp(slot, COL_CREATED_AT);
	row->finished_at = get_timestamp(slot, COL_FINISHED_AT);
	row->expires_at = get_timestamp(slot, COL_EXPIRES_AT);
}

void
store_probe(const IdemKey *key, StoreRow *row)
{
	Store store;
	TupleTableSlot *slot = NULL;
	Version found;
	XLogRecPtr position = InvalidXLogRecPtr;
	bool answers;

	memset(row, 0, sizeof(*row));
	store_open(&store, key->scope, SHARD_CLAIM, RowExclusiveLock);

	probe_version(&store, key, &slot, &found);
	row->state = found.state;
	row->holder = found.holder;
	row->fence = found.fence;
	row->own = found.own;
	answers = found.state == STORE_LEASED || found.state == STORE_ABANDONED ||
		found.state == STORE_FINISHED;
	if (answers)
	{
		if (!found.own)
		{
			row->unseen = version_is_unseen(&store, slot);
			position = version_position(&found, slot);
		}
		/* progress can be megabytes, and only a take-over needs it */
		read_row(&store, slot, row, found.state == STORE_ABANDONED);
	}

	/* drop the slot before waiting for a standby: it pins a page that VACUUM may need */
	if (slot != NULL)
		ExecDropSingleTupleTableSlot(slot);
	if (answers && !found.own)
		durable_row(position);
	store_close(&store);
}

bool
store_lookup(const IdemKey *key, StoreRow *row)
{
	Store store;
	TupleTableSlot *slot;
	IndexScanDesc scan;
	XLogRecPtr position = InvalidXLogRecPtr;
	bool own = false;
	bool found = false;

	memset(row, 0, sizeof(*row));
	store_open(&store, key->scope, SHARD_LOOK_UP, AccessShareLock);
	slot = table_slot_create(store.heap, NULL);

	/*
	 * Scan all versions and test each against the snapshot here.  The answer is that of a
	 * scan under the snapshot.  But such a scan takes SIREAD locks on whole pages, so
	 * transactions on different keys would conflict.
	 */
	scan = begin_scan(&store, key, SnapshotAny);
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		TransactionId xmin;

		if (!table_tuple_satisfies_snapshot(store.heap, slot, GetActiveSnapshot()))
			continue;
		xmin = HeapTupleHeaderGetXmin(slot_header(slot));
		own = TransactionIdIsCurrentTransactionId(xmin);
		row->state = slot_state(slot);
		/* show our changes of a leased claim, but not our finish of a transaction claim */
		found = row->state != STORE_EXPIRED &&
			(!own || row->state != STORE_FINISHED || get_fence(slot) != NO_FENCE);
		if (found)
		{
			if (!own)
				position = durable_position(xmin, slot_buffer(slot));
			read_row(&store, slot, row, true);
		}
		break;
	}
	/* end both before waiting for a standby: they pin pages that VACUUM may need */
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	if (found && !own)
		durable_row(position);
	store_close(&store);
	return found;
}

bool
store_has_expired(const IdemKey *key, TimestampTz at)
{
	Store store;
	TupleTableSlot *slot;
	Version found;
	bool expired;

	store_open(&store, key->scope, SHARD_CLAIM, RowExclusiveLock);
	slot = table_slot_create(store.heap, NULL);
	find_version(&store, key, slot, &found);
	expired = found.state == STORE_EXPIRED;
	if (found.state == STORE_LEASED || found.state == STORE_ABANDONED ||
		found.state == STORE_FINISHED)
		expired = get_timestamp(slot, COL_CREATED_AT) >= at;
	ExecDropSingleTupleTableSlot(slot);
	store_close(&store);
	return expired;
}
