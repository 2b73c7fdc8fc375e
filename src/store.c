/*-------------------------------------------------------------------------
 *
 * store.c
 *	  The rows of idem_keys: find, write once, erase.
 *
 * Works on the table and its primary key directly: no plans to cache, to be
 * parsed again under a caller's search_path, or to go stale; no SIREAD locks;
 * and sight of uncommitted rows.  The price is that nothing happens which
 * only the executor's ModifyTable does, so a table with triggers or rules is
 * refused rather than treated wrongly.
 *
 * Nothing here checks privileges: whoever may call the SQL function may have
 * its row written.  The only code that could be somebody's is that of an
 * expression index which the table's owner added; it runs as that owner,
 * under SECURITY_RESTRICTED_OPERATION, as in maintenance commands.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/subtrans.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "durable.h"
#include "errors.h"
#include "lock.h"
#include "relation.h"
#include "store.h"

#define TABLE_NAME "idem_keys"
#define FENCE_NAME "idem_fence"

/* numbers that are drawn before a fence sequence is held to be behind */
#define FENCE_TRIES 1000

/* a table that changes more often while it is checked is checked at each use */
#define CHECK_TRIES 100

/* how often a standby looks whether a holder has ended, in milliseconds */
#define STANDBY_POLL_MS 10

/* The columns, in the order of the install script. */
enum
{
	COL_DIGEST,
	COL_CREATED_AT,
	COL_FINISHED_AT,
	COL_EXPIRES_AT,
	COL_LEASE_UNTIL,
	COL_FENCE,
	COL_TTL,
	COL_ATTEMPT,
	COL_FINGERPRINT,
	COL_SCOPE,
	COL_KEY,
	COL_PHASE,
	COL_PROGRESS,
	COL_RESULT,
	NCOLUMNS
};

static const struct
{
	const char *name;
	Oid type;
	bool not_null;
} columns[NCOLUMNS] = {
	[COL_DIGEST] = {"digest", UUIDOID, true},
	[COL_CREATED_AT] = {"created_at", TIMESTAMPTZOID, true},
	[COL_FINISHED_AT] = {"finished_at", TIMESTAMPTZOID},
	[COL_EXPIRES_AT] = {"expires_at", TIMESTAMPTZOID, true},
	[COL_LEASE_UNTIL] = {"lease_until", TIMESTAMPTZOID},
	[COL_FENCE] = {"fence", INT8OID},
	[COL_TTL] = {"ttl", INTERVALOID},
	[COL_ATTEMPT] = {"attempt", INT4OID, true},
	[COL_FINGERPRINT] = {"fingerprint", BYTEAOID},
	[COL_SCOPE] = {"scope", TEXTOID, true},
	[COL_KEY] = {"key", TEXTOID, true},
	[COL_PHASE] = {"phase", TEXTOID},
	[COL_PROGRESS] = {"progress", JSONBOID},
	[COL_RESULT] = {"result", JSONBOID},
};

typedef struct Store
{
	Relation heap;
	Relation index; /* the primary key, on digest */
} Store;

/* A version of a row, as a look-up left it in the slot. */
typedef struct Version
{
	StoreLife life;
	ItemPointerData tid;
	TransactionId xmin; /* frozen: FrozenTransactionId */
	bool own;			/* written by this transaction */
	int64 fence;		/* or NO_FENCE */
	int32 attempt;
	StoreHolder holder; /* held: who by */
} Version;

/*
 * Where the table is; forgotten when anything about it changes, so that DROP
 * EXTENSION and CREATE EXTENSION elsewhere need no new session.
 */
static struct
{
	Oid heap;
	Oid index;
	Oid fence;
	Oid checked;	/* the table that is being checked, or was last */
	uint64 changes; /* of that table, which count while it is being checked as well */
} known;

static void
forget_known(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == known.heap)
		known.heap = InvalidOid;
	if (relid == InvalidOid || relid == known.checked)
		known.changes++;
}

void
store_init(void)
{
	CacheRegisterRelcacheCallback(forget_known, (Datum) 0);
}

/* ------------------------------------------------------------------------
 * Finding and opening the table
 * ------------------------------------------------------------------------
 */

static void
check_columns(TupleDesc desc)
{
	bool same = desc->natts >= NCOLUMNS;

	for (int i = 0; same && i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		/* a column that was added by hand and dropped again leaves a trace */
		if (i >= NCOLUMNS)
			same = att->attisdropped;
		else
			same = !att->attisdropped && att->atttypid == columns[i].type &&
				att->attnotnull == columns[i].not_null &&
				strcmp(NameStr(att->attname), columns[i].name) == 0;
	}
	if (!same)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("columns of table \"%s\" are not those that version %s of the library knows",
					TABLE_NAME, IDEM_VERSION),
			 errhint("Run ALTER EXTENSION %s UPDATE, and undo changes to the table made by hand.",
					 EXTENSION_NAME)));
}

/* InvalidOid if there is none, or none that is good. */
static Oid
find_primary_key(Relation rel)
{
	Oid pkey = idem_primary_key(rel);

	if (OidIsValid(pkey))
	{
		Relation index = index_open(pkey, AccessShareLock);
		bool good = IndexRelationGetNumberOfKeyAttributes(index) == 1 &&
			index->rd_index->indkey.values[0] == COL_DIGEST + 1 && index->rd_index->indisvalid &&
			index->rd_index->indimmediate && index->rd_rel->relam == BTREE_AM_OID;

		index_close(index, NoLock);
		if (good)
			return pkey;
	}
	return InvalidOid;
}

pg_noreturn static void
error_no_primary_key(void)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		 errmsg("table \"%s\" lacks its primary key", TABLE_NAME),
		 errhint(
			 "ALTER TABLE ... ADD PRIMARY KEY (digest) brings it back; until then nothing could keep "
			 "duplicates out.")));
}

/*
 * What is found holds for one moment only if nothing has changed in the meantime.
 * REINDEX CONCURRENTLY puts another index in the primary key's place while we hold
 * our lock; then the one that was primary a moment ago is no more.  That commit may
 * be seen before its invalidation messages come, so before the key is held to be
 * missing, the list of indexes is made anew.
 */
static void
check_table(Relation heap)
{
	bool renewed = false;
	bool same;
	Oid index;

	known.checked = RelationGetRelid(heap);
	for (int i = 0;; i++)
	{
		uint64 changes = known.changes;

		CHECK_FOR_INTERRUPTS();
		relation_check_plain(heap);
		check_columns(RelationGetDescr(heap));
		index = find_primary_key(heap);
		known.fence = relation_find(FENCE_NAME);
		same = changes == known.changes;
		if (i < CHECK_TRIES && !same)
			continue;
		if (OidIsValid(index))
			break;
		if (renewed)
			error_no_primary_key();
		RelationCacheInvalidateEntry(RelationGetRelid(heap));
		renewed = true;
	}
	known.index = index;
	known.heap = same ? RelationGetRelid(heap) : InvalidOid;
}

/*
 * Locks are kept to the end of the transaction: finish then takes over what
 * begin has opened.
 */
static void
store_open(Store *store, LOCKMODE lockmode)
{
	for (;;)
	{
		Oid relid = OidIsValid(known.heap) ? known.heap : relation_find(TABLE_NAME);
		bool checked = OidIsValid(known.heap);

		store->heap = try_relation_open(relid, lockmode);
		if (store->heap == NULL)
		{
			/* dropped just now; look again, and fail if it is really gone */
			known.heap = InvalidOid;
			continue;
		}
		if (checked && known.heap == relid)
			break;

		check_table(store->heap);
		break;
	}
	store->index = index_open(known.index, lockmode);
}

static void
store_close(Store *store)
{
	index_close(store->index, NoLock);
	table_close(store->heap, NoLock);
}

/* ------------------------------------------------------------------------
 * Reading
 * ------------------------------------------------------------------------
 */

static IndexScanDesc
begin_scan(Store *store, const IdemKey *key, Snapshot snapshot)
{
	IndexScanDesc scan = idem_index_beginscan(store->heap, store->index, snapshot, 1);
	ScanKeyData skey;

	ScanKeyInit(&skey, 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(&key->digest));
	index_rescan(scan, &skey, 1, NULL, 0);
	return scan;
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

/* The life of a version that is committed or ours. */
static StoreLife
slot_life(TupleTableSlot *slot)
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

/*
 * Has its own transaction taken a version back that it has not committed yet?  Both
 * in one subtransaction, so that no savepoint brings it back.
 */
static bool
is_taken_back(TupleTableSlot *slot)
{
	HeapTupleHeader header = slot_header(slot);
	bool taken_back;

	LockBuffer(slot_buffer(slot), BUFFER_LOCK_SHARE);
	taken_back = (header->t_infomask & (HEAP_XMAX_INVALID | HEAP_XMAX_IS_MULTI)) == 0 &&
		!HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask) &&
		HeapTupleHeaderGetRawXmax(header) == HeapTupleHeaderGetRawXmin(header);
	LockBuffer(slot_buffer(slot), BUFFER_LOCK_UNLOCK);
	return taken_back;
}

/* Which index entries a scan has met. */
typedef struct Entries
{
	int count;
	uint64 hash; /* of their TIDs */
} Entries;

/* index_getnext_slot(), and the entries that it met on its way */
static bool
next_version(IndexScanDesc scan, TupleTableSlot *slot, Entries *entries)
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
		if (index_fetch_heap(scan, slot))
			return true;
	}
}

/*
 * Look for the version that counts; leave it in the slot, unless it is held.
 *
 * SnapshotDirty shows what is committed or ours, and what other transactions
 * have inserted but not committed, with who they are.  An expired version
 * that another transaction is replacing is followed by the replacement, on
 * the same HOT chain or behind an index entry of its own: hence the search
 * goes on after it, and without a successor its deleter is a purge.
 *
 * A version that another transaction is replacing still answers, wherever its
 * successor was met.  An abandoned one has no answer: who replaces it holds the key.
 *
 * A version that was taken back holds the key only if there is none that can
 * answer: it is nothing, but whoever wrote the key beside it would wait for its
 * end.
 */
static void
scan_versions(Store *store, const IdemKey *key, TupleTableSlot *slot, Version *found,
			  Entries *entries)
{
	SnapshotData dirty;
	IndexScanDesc scan;
	StoreHolder held = {.xid = InvalidTransactionId};
	StoreHolder taken_back = {.xid = InvalidTransactionId};

	memset(found, 0, sizeof(*found));
	found->life = STORE_ABSENT;
	memset(entries, 0, sizeof(*entries));

	InitDirtySnapshot(dirty);
	scan = begin_scan(store, key, &dirty);
	while (next_version(scan, slot, entries))
	{
		StoreLife life;

		if (TransactionIdIsValid(dirty.xmin))
		{
			StoreHolder holder = {.xid = dirty.xmin, .token = dirty.speculativeToken};

			if (is_taken_back(slot))
			{
				taken_back = holder;
				continue;
			}
			held = holder;
			continue;
		}

		life = slot_life(slot);

		/* somebody is taking it over, and may have given the key's lock back */
		if (life == STORE_ABANDONED && TransactionIdIsValid(dirty.xmax))
		{
			held = (StoreHolder){.xid = dirty.xmax};
			continue;
		}

		found->tid = slot->tts_tid;
		found->xmin = HeapTupleHeaderGetXmin(slot_header(slot));
		found->own = TransactionIdIsCurrentTransactionId(found->xmin);
		found->fence = get_fence(slot);
		found->attempt = get_attempt(slot);
		found->life = life;
		if (found->life != STORE_EXPIRED)
			break;
	}
	index_endscan(scan);

	if (TransactionIdIsValid(held.xid) &&
		(found->life == STORE_ABSENT || found->life == STORE_EXPIRED))
	{
		found->life = STORE_HELD;
		found->holder = held;
	}
	if (TransactionIdIsValid(taken_back.xid) &&
		(found->life == STORE_ABSENT || (found->life == STORE_EXPIRED && !found->own)))
	{
		found->life = STORE_HELD;
		found->holder = taken_back;
	}
	/* its page is not to stay pinned while the holder is waited for */
	if (found->life == STORE_HELD)
		ExecClearTuple(slot);
}

/*
 * A row that is there all the time can be missed by one scan: its old version was
 * replaced when we came to look at it, and the new one, of an update that is not HOT,
 * got its index entry after we had read the page of the index.  But then the next scan
 * meets an entry that the last one did not.  So a key is absent if no entry was met,
 * or none that the last scan had not found dead already.  Likewise a holder may have
 * ended between the look at its version and that at the one before.
 */
static void
find_version(Store *store, const IdemKey *key, TupleTableSlot *slot, Version *found)
{
	Entries before;
	Entries entries = {0};

	do
	{
		CHECK_FOR_INTERRUPTS();
		before = entries;
		scan_versions(store, key, slot, found, &entries);
	} while ((found->life == STORE_ABSENT && entries.count > 0 &&
			  (entries.count != before.count || entries.hash != before.hash)) ||
			 (found->life == STORE_HELD && !TransactionIdIsInProgress(found->holder.xid)));
}

/* Copy what callers need; the slot's page may go afterwards. */
static void
read_row(TupleTableSlot *slot, StoreRow *row, bool with_progress)
{
	bool isnull;
	Datum d;

	d = slot_getattr(slot, COL_FINGERPRINT + 1, &isnull);
	row->has_fingerprint = !isnull;
	if (!isnull)
	{
		bytea *b = DatumGetByteaPP(d);

		if (VARSIZE_ANY_EXHDR(b) != FINGERPRINT_BYTES)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("fingerprint in table \"%s\" has %d bytes, not %d", TABLE_NAME,
							(int) VARSIZE_ANY_EXHDR(b), FINGERPRINT_BYTES)));
		memcpy(row->fingerprint, VARDATA_ANY(b), FINGERPRINT_BYTES);
	}

	d = slot_getattr(slot, COL_RESULT + 1, &isnull);
	row->has_result = !isnull;
	if (!isnull)
		row->result = PointerGetDatum(PG_DETOAST_DATUM_COPY(d));

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
	TupleTableSlot *slot;
	Version found;
	XLogRecPtr position = InvalidXLogRecPtr;
	bool answers;

	memset(row, 0, sizeof(*row));
	store_open(&store, RowExclusiveLock);
	slot = table_slot_create(store.heap, NULL);

	find_version(&store, key, slot, &found);
	row->life = found.life;
	row->holder = found.holder;
	row->fence = found.fence;
	row->own = found.own;
	answers =
		found.life == STORE_LEASED || found.life == STORE_ABANDONED || found.life == STORE_FINISHED;
	if (answers)
	{
		if (!found.own)
		{
			row->unseen = IsolationUsesXactSnapshot() &&
				!table_tuple_satisfies_snapshot(store.heap, slot, GetTransactionSnapshot());
			position = durable_position(found.xmin, slot_buffer(slot));
		}
		/* it can be megabytes, and only who takes over needs it */
		read_row(slot, row, found.life == STORE_ABANDONED);
	}

	/* before the wait for a standby: the slot pins a page, and VACUUM may want it */
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
	store_open(&store, AccessShareLock);
	slot = table_slot_create(store.heap, NULL);

	/*
	 * All versions, each put to the snapshot by hand: the same answer as a
	 * scan under that snapshot, without its SIREAD locks on whole pages,
	 * which would set transactions on different keys against each other.
	 */
	scan = begin_scan(&store, key, SnapshotAny);
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		TransactionId xmin;

		if (!table_tuple_satisfies_snapshot(store.heap, slot, GetActiveSnapshot()))
			continue;
		xmin = HeapTupleHeaderGetXmin(slot_header(slot));
		own = TransactionIdIsCurrentTransactionId(xmin);
		row->life = slot_life(slot);
		/* our changes of a leased claim are shown: what they are about was committed before */
		found = row->life != STORE_EXPIRED &&
			(!own || row->life != STORE_FINISHED || get_fence(slot) != NO_FENCE);
		if (found)
		{
			if (!own)
				position = durable_position(xmin, slot_buffer(slot));
			read_row(slot, row, true);
		}
		break;
	}
	/* before the wait for a standby: scan and slot pin pages, and VACUUM may want them */
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	if (found && !own)
		durable_row(position);
	store_close(&store);
	return found;
}

/* ------------------------------------------------------------------------
 * Waiting
 * ------------------------------------------------------------------------
 */

static void
wait_for_insertion(void *arg)
{
	const StoreHolder *holder = arg;

	SpeculativeInsertionWait(holder->xid, holder->token);
}

static void
wait_for_xid(void *arg)
{
	LOCKTAG tag;

	SET_LOCKTAG_TRANSACTION(tag, *(TransactionId *) arg);
	(void) LockAcquire(&tag, ShareLock, false, false);
	(void) LockRelease(&tag, ShareLock, false);
}

/*
 * XactLockTableWait() with a deadline.  The holder may be a subtransaction whose
 * savepoint is released while we wait; then the transaction above is waited for, in
 * the time that is left.
 */
static bool
wait_for_transaction(TransactionId xid, TimestampTz deadline)
{
	for (bool first = true;; first = false)
	{
		if (!lock_bounded(wait_for_xid, &xid, deadline))
			return false;
		if (!TransactionIdIsInProgress(xid))
			return true;
		/* it has its xid, and not yet its lock */
		if (!first)
			pg_usleep(1000);
		CHECK_FOR_INTERRUPTS();
		xid = SubTransGetTopmostTransaction(xid);
	}
}

static bool
wait_for_holder(const StoreHolder *holder, TimestampTz deadline)
{
	if (holder->token != 0)
	{
		if (!TIMESTAMP_IS_NOEND(deadline))
			return lock_bounded(wait_for_insertion, unconstify(StoreHolder *, holder), deadline);
		SpeculativeInsertionWait(holder->xid, holder->token);
		return true;
	}
	if (!TIMESTAMP_IS_NOEND(deadline))
		return wait_for_transaction(holder->xid, deadline);
	XactLockTableWait(holder->xid, NULL, NULL, XLTW_None);
	return true;
}

/*
 * On a standby the holder runs elsewhere and holds no lock here, so the server
 * itself could only poll, and would not stop at a timeout.
 */
static bool
wait_on_standby(const StoreRow *row, TimestampTz deadline)
{
	static uint32 wait_event = 0;
	TimestampTz lock_deadline =
		LockTimeout > 0 ? GetCurrentTimestamp() + LockTimeout * INT64CONST(1000) : DT_NOEND;

	while (TransactionIdIsInProgress(row->holder.xid))
	{
		TimestampTz now = GetCurrentTimestamp();

		if (deadline <= now)
			return false;
		if (lock_deadline <= now)
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("canceling statement due to lock timeout")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, STANDBY_POLL_MS,
						 idem_wait_event(&wait_event, "IdempotencyHolder"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

bool
store_wait(const IdemKey *key, const StoreRow *row, TimestampTz deadline)
{
	LockContext context;
	bool ended = true;

	lock_context_push(&context, key);
	if (RecoveryInProgress())
		ended = wait_on_standby(row, deadline);
	else
		ended = wait_for_holder(&row->holder, deadline);
	lock_context_pop(&context);
	return ended;
}

/* ------------------------------------------------------------------------
 * Writing
 * ------------------------------------------------------------------------
 */

/* New contents of some columns; as many as the table has, dropped ones included. */
typedef struct Change
{
	Datum *values;
	bool *isnull;
	bool *replace;
} Change;

static void
change_init(Change *change, Store *store)
{
	int natts = RelationGetDescr(store->heap)->natts;

	change->values = palloc0(natts * sizeof(Datum));
	change->isnull = palloc(natts * sizeof(bool));
	memset(change->isnull, true, natts * sizeof(bool));
	change->replace = palloc0(natts * sizeof(bool));
}

static void
set_datum(Change *change, int column, Datum value)
{
	change->values[column] = value;
	change->isnull[column] = false;
	change->replace[column] = true;
}

static void
set_null(Change *change, int column)
{
	change->isnull[column] = true;
	change->replace[column] = true;
}

static void
set_time(Change *change, int column, TimestampTz time)
{
	if (time == 0)
		set_null(change, column);
	else
		set_datum(change, column, TimestampTzGetDatum(time));
}

static void
set_jsonb(Change *change, int column, bool given, Datum value)
{
	if (given)
		set_datum(change, column, value);
	else
		set_null(change, column);
}

static void
set_fingerprint(Change *change, const uint8 *fingerprint)
{
	bytea *b = palloc(VARHDRSZ + FINGERPRINT_BYTES);

	SET_VARSIZE(b, VARHDRSZ + FINGERPRINT_BYTES);
	memcpy(VARDATA(b), fingerprint, FINGERPRINT_BYTES);
	set_datum(change, COL_FINGERPRINT, PointerGetDatum(b));
}

/* What a new claim changes in a row, be it new or an abandoned one taken over. */
static void
change_claim(Change *change, const StoreWrite *write, int32 attempt)
{
	set_datum(change, COL_ATTEMPT, Int32GetDatum(attempt));
	set_time(change, COL_FINISHED_AT, write->finished_at);
	set_time(change, COL_EXPIRES_AT, write->expires_at);
	set_time(change, COL_LEASE_UNTIL, write->lease_until);
	set_jsonb(change, COL_RESULT, write->has_result, write->result);
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

/* All of a row but its identity, for a key that counts as absent. */
static void
change_whole(Change *change, const StoreWrite *write)
{
	change_claim(change, write, 1);
	set_time(change, COL_CREATED_AT, write->created_at);
	set_null(change, COL_PHASE);
	set_null(change, COL_PROGRESS);
	if (write->fingerprint == NULL)
		set_null(change, COL_FINGERPRINT);
}

static TupleTableSlot *
form_row(Store *store, const IdemKey *key, const StoreWrite *write)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(store->heap), &TTSOpsVirtual);
	int natts = slot->tts_tupleDescriptor->natts;

	/* straight into the slot */
	Change change = {slot->tts_values, slot->tts_isnull, palloc(natts * sizeof(bool))};

	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, natts * sizeof(bool));
	change_whole(&change, write);
	set_datum(&change, COL_DIGEST, UUIDPGetDatum(&key->digest));
	set_datum(&change, COL_SCOPE, PointerGetDatum(key->scope));
	set_datum(&change, COL_KEY, PointerGetDatum(key->key));
	ExecStoreVirtualTuple(slot);
	slot->tts_tableOid = RelationGetRelid(store->heap);
	return slot;
}

/*
 * The primary key, or its double: REINDEX CONCURRENTLY has both take entries,
 * and either may be the one that sees a duplicate first.
 */
static bool
is_key_index(Relation index)
{
	return index->rd_index->indisunique && index->rd_index->indnkeyatts == 1 &&
		index->rd_index->indkey.values[0] == COL_DIGEST + 1 &&
		RelationGetIndexPredicate(index) == NIL;
}

/* The key indexes that took an entry, and the names that they had. */
typedef struct KeyIndexes
{
	List *oids;
	List *names; /* char * */
} KeyIndexes;

/*
 * REINDEX CONCURRENTLY may have renamed the index since, and marked it dead; then it is
 * not in the table's list any more.
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
 * Insert the index entries of a heap tuple just written.  With "conflict", a
 * duplicate key is told there, else it raises 23505.
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
 * The same, for a row that must not be there: a duplicate means that its
 * writer was faster, so the transaction has to be retried.
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

		/* an owner's own unique index speaks for itself */
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
 * Insert without waiting for, or failing over, a duplicate that appears in
 * between: the way of INSERT ... ON CONFLICT.
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
 * The same for who holds the key's lock, and so has nobody beside it but those
 * who take none: batches and triggers.  What makes an insertion speculative is
 * there for two who see each other's rows and would both wait; of such a pair
 * only the one that comes second sees a row, and only here it may be this one.
 * So the row is a plain one, without the second record in WAL; should it really
 * come second, it is taken back.
 *
 * Not where changes are decoded from WAL: a row that was inserted and deleted is
 * sent to subscribers, who have the other's already, and a speculative one is not.
 */
static bool
insert_row_if_free_locked(Store *store, TupleTableSlot *slot)
{
	KeyIndexes keys = {0};
	bool conflict = false;
	TM_Result result;

	table_tuple_insert(store->heap, slot, GetCurrentCommandId(true), 0, NULL);
	insert_index_entries(store, slot, &conflict, false, &keys);
	if (!conflict)
		return true;

	/* a command cannot delete what it has itself inserted */
	CommandCounterIncrement();
	result = idem_tuple_delete(store->heap, &slot->tts_tid, GetCurrentCommandId(true),
							   GetActiveSnapshot(), true);
	if (result != TM_Ok)
		elog(ERROR, "unexpected table_tuple_delete status: %d", (int) result);
	return false;
}

/*
 * Change the version in the slot.  Unchanged columns stay as they are stored,
 * so that no toasted value is written again.  Waits for a purge that is
 * deleting it.  False if somebody else has deleted or changed it: look again.
 */
static bool
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

	/* a command cannot update what it has itself inserted */
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

/* Put a claim over an expired or an abandoned version. */
static bool
take_over(Store *store, const IdemKey *key, TupleTableSlot *old, const Version *version,
		  const StoreWrite *write)
{
	Change change;

	change_init(&change, store);
	if (version->life == STORE_ABANDONED)
		change_claim(&change, write, version->attempt + 1);
	else
		change_whole(&change, write);
	return update_version(store, key, old, version, &change);
}

static void
wait_for_version(const IdemKey *key, const Version *held)
{
	StoreRow row = {.holder = held->holder};

	(void) store_wait(key, &row, DT_NOEND);
}

/*
 * One try to write over what is there now; true if written.  The version that
 * begin saw may have been purged since, and its TID given to another row: so
 * it is searched again.
 */
static bool
try_finish(Store *store, const IdemKey *key, const StoreWrite *write, int64 seen_fence)
{
	TupleTableSlot *slot = table_slot_create(store->heap, NULL);
	Version found;
	bool written = false;

	find_version(store, key, slot, &found);
	switch (found.life)
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
			wait_for_version(key, &found);
			break;
		case STORE_LEASED:
		case STORE_FINISHED:
			error_serialization(key);
	}
	ExecDropSingleTupleTableSlot(slot);
	return written;
}

void
store_finish(const IdemKey *key, const StoreWrite *write, StoreLife seen, int64 seen_fence)
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
store_claim(const IdemKey *key, const StoreWrite *write, const StoreRow *row, bool locked)
{
	Store store;
	TupleTableSlot *slot;
	bool written = false;

	store_open(&store, RowExclusiveLock);
	/* a leased row will be updated: better refused before the work than after it */
	if (write->finished_at == 0)
		relation_check_published(store.heap, CMD_UPDATE);
	if (row->life == STORE_ABSENT)
	{
		slot = form_row(&store, key, write);
		if (locked && !RelationIsLogicallyLogged(store.heap))
			written = insert_row_if_free_locked(&store, slot);
		else
			written = insert_row_if_free(&store, slot);
	}
	else
	{
		Version found;

		slot = table_slot_create(store.heap, NULL);
		find_version(&store, key, slot, &found);
		if (found.life == row->life && (found.life == STORE_EXPIRED || found.fence == row->fence))
			written = take_over(&store, key, slot, &found, write);
	}
	ExecDropSingleTupleTableSlot(slot);
	store_close(&store);
	return written;
}

/* ------------------------------------------------------------------------
 * Leased rows
 * ------------------------------------------------------------------------
 */

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

/* Open the leased or abandoned row with that fence; false if there is none (any more). */
static bool
open_leased(LeasedRow *row, const IdemKey *key, int64 fence)
{
	Version *found = &row->version;

	store_open(&row->store, RowExclusiveLock);
	row->slot = table_slot_create(row->store.heap, NULL);
	find_version(&row->store, key, row->slot, found);
	if ((found->life != STORE_LEASED && found->life != STORE_ABANDONED) || found->fence != fence)
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

/* The fence stays: who repeats the finish is told that it is done. */
bool
store_lease_finish(const IdemKey *key, int64 fence, const StoreWrite *write)
{
	LeasedRow row;

	if (!open_leased(&row, key, fence))
		return false;
	set_jsonb(&row.change, COL_RESULT, write->has_result, write->result);
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

/*
 * From a sequence, whose advance survives a rollback.  It must survive a crash as
 * well, and the promotion of a synchronous standby, from the moment the number is out,
 * whether its claim commits or not, and even if its session does not care; so WAL
 * is durable as far as the sequence's page was last logged, which is once every 32
 * numbers.
 */
int64
store_new_fence(int64 last)
{
	Store store;
	Relation sequence;
	Buffer buffer;
	XLogRecPtr lsn;
	int64 fence = 0;

	store_open(&store, RowExclusiveLock);
	/* numbers that another session has cached may lie behind */
	for (int i = 0; i < FENCE_TRIES && fence <= Max(last, 0); i++)
		fence = nextval_internal(known.fence, false);

	sequence = relation_open(known.fence, AccessShareLock);
	if (sequence->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		relation_refuse(TABLE_NAME,
						"Its sequence is not logged: a crash would issue fences again.");
	buffer = ReadBuffer(sequence, 0);
	lsn = BufferGetLSNAtomic(buffer);
	ReleaseBuffer(buffer);
	relation_close(sequence, NoLock);
	durable_wal(lsn);
	store_close(&store);

	if (fence <= Max(last, 0))
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("sequence \"%s\" is behind the fences in table \"%s\"", FENCE_NAME, TABLE_NAME),
			 errhint(
				 "Set it past max(fence) with setval(); logical replication does not copy it.")));
	return fence;
}

/* ------------------------------------------------------------------------
 * Erasing
 * ------------------------------------------------------------------------
 */

static void
find_version_only(Store *store, const IdemKey *key, Version *found)
{
	TupleTableSlot *slot = table_slot_create(store->heap, NULL);

	find_version(store, key, slot, found);
	ExecDropSingleTupleTableSlot(slot);
}

bool
store_has_expired(const IdemKey *key, TimestampTz at)
{
	Store store;
	TupleTableSlot *slot;
	Version found;
	bool expired;

	store_open(&store, RowExclusiveLock);
	slot = table_slot_create(store.heap, NULL);
	find_version(&store, key, slot, &found);
	expired = found.life == STORE_EXPIRED;
	if (found.life == STORE_LEASED || found.life == STORE_ABANDONED || found.life == STORE_FINISHED)
		expired = get_timestamp(slot, COL_CREATED_AT) >= at;
	ExecDropSingleTupleTableSlot(slot);
	store_close(&store);
	return expired;
}

bool
store_forget(const IdemKey *key, StoreRow *row)
{
	Store store;
	Version found;
	TM_Result result = TM_Deleted;

	memset(row, 0, sizeof(*row));
	store_open(&store, RowExclusiveLock);
	relation_check_published(store.heap, CMD_DELETE);
	do
	{
		CHECK_FOR_INTERRUPTS();
		find_version_only(&store, key, &found);
		if (found.life == STORE_HELD || found.life == STORE_ABSENT)
			break;
		if (found.own)
			CommandCounterIncrement();
		result = idem_tuple_delete(store.heap, &found.tid, GetCurrentCommandId(true),
								   GetActiveSnapshot(), true);
		if (result != TM_Ok && result != TM_Updated && result != TM_Deleted)
			elog(ERROR, "unexpected table_tuple_delete status: %d", (int) result);
	} while (result != TM_Ok);
	store_close(&store);

	row->life = found.life;
	row->holder = found.holder;
	return result == TM_Ok && found.life != STORE_EXPIRED;
}

int64
store_forget_scope(text *scope)
{
	Store store;
	OwnSql sql;
	OwnParam param = PARAM(TEXTOID, PointerGetDatum(scope));
	int64 deleted;

	/* refuses a table that it does not know */
	store_open(&store, RowExclusiveLock);
	own_sql_start(&sql, TABLE_NAME, RowExclusiveLock);
	deleted =
		own_sql_run(&sql, "DELETE FROM ONLY %s WHERE scope OPERATOR(pg_catalog.=) $1", 1, &param);
	own_sql_end(&sql);
	store_close(&store);
	return deleted;
}
