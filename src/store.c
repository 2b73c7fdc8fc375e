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
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
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
#include "errors.h"
#include "lock.h"
#include "store.h"

#define EXTENSION_NAME "idempotency"
#define TABLE_NAME "idem_keys"

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
} columns[NCOLUMNS] = {
	[COL_DIGEST] = {"digest", UUIDOID},
	[COL_CREATED_AT] = {"created_at", TIMESTAMPTZOID},
	[COL_FINISHED_AT] = {"finished_at", TIMESTAMPTZOID},
	[COL_EXPIRES_AT] = {"expires_at", TIMESTAMPTZOID},
	[COL_LEASE_UNTIL] = {"lease_until", TIMESTAMPTZOID},
	[COL_FENCE] = {"fence", INT8OID},
	[COL_ATTEMPT] = {"attempt", INT4OID},
	[COL_FINGERPRINT] = {"fingerprint", BYTEAOID},
	[COL_SCOPE] = {"scope", TEXTOID},
	[COL_KEY] = {"key", TEXTOID},
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
	TransactionId xmin;	  /* frozen: FrozenTransactionId */
	bool own;			  /* written by this transaction */
	TransactionId holder; /* held: who by */
	uint32 holder_token;  /* held: its insertion is still speculative */
} Version;

/*
 * Where the table is; forgotten when anything about it changes, so that DROP
 * EXTENSION and CREATE EXTENSION elsewhere need no new session.
 */
static struct
{
	Oid heap;
	Oid index;
} known;

static void
forget_known(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == known.heap)
		known.heap = InvalidOid;
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

static Oid
extension_schema(Oid extension)
{
	Relation rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData skey;
	SysScanDesc scan;
	HeapTuple tuple;
	Oid schema = InvalidOid;

	ScanKeyInit(&skey, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &skey);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return schema;
}

/* By membership in the extension: a table of that name alone proves nothing. */
static Oid
find_table(void)
{
	Oid extension = get_extension_oid(EXTENSION_NAME, true);
	Oid relid = InvalidOid;

	if (OidIsValid(extension))
		relid = get_relname_relid(TABLE_NAME, extension_schema(extension));
	if (!OidIsValid(relid) || getExtensionOfObject(RelationRelationId, relid) != extension)
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("table \"%s\" of extension \"%s\" does not exist", TABLE_NAME, EXTENSION_NAME),
			 errhint("Run CREATE EXTENSION %s.", EXTENSION_NAME)));
	return relid;
}

static void
refuse(const char *detail)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
		 errmsg("cannot keep idempotency keys in table \"%s\"", TABLE_NAME),
		 errdetail("%s", detail),
		 errhint(
			 "The table must stay the plain, logged, local table that CREATE EXTENSION made.")));
}

/*
 * TRUNCATE triggers are the owner's own safety catch and do no harm, unless
 * they are internal: a sharding engine marks its tables with such a one.
 */
static void
check_triggers(TriggerDesc *triggers)
{
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger *t = &triggers->triggers[i];

		if (t->tgenabled == TRIGGER_DISABLED)
			continue;
		if (t->tgisinternal ||
			(t->tgtype & ~TRIGGER_TYPE_ROW & ~TRIGGER_TYPE_BEFORE) != TRIGGER_TYPE_TRUNCATE)
			refuse(psprintf("It has the trigger \"%s\", which would not fire.", t->tgname));
	}
}

static void
check_columns(TupleDesc desc)
{
	bool same = desc->natts == NCOLUMNS;

	for (int i = 0; same && i < NCOLUMNS; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		same = !att->attisdropped && att->atttypid == columns[i].type &&
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

static void
check_table(Relation rel)
{
	if (rel->rd_rel->relkind != RELKIND_RELATION || rel->rd_rel->relam != HEAP_TABLE_AM_OID)
		refuse("It is not a heap table.");
	if (rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		refuse("It is not logged: a crash would empty it, and every request could run again.");
	if (rel->rd_rel->relispartition ||
		(rel->rd_rel->relhassubclass &&
		 find_inheritance_children(RelationGetRelid(rel), NoLock) != NIL))
		refuse("It takes part in inheritance or partitioning.");
	if (rel->rd_rules != NULL)
		refuse("It has rules, which would not apply.");
	check_triggers(rel->trigdesc);
	check_columns(RelationGetDescr(rel));
}

static Oid
check_primary_key(Relation rel)
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
	ereport(
		ERROR,
		(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		 errmsg("table \"%s\" lacks its primary key", TABLE_NAME),
		 errhint(
			 "ALTER TABLE ... ADD PRIMARY KEY (digest) brings it back; until then nothing could keep "
			 "duplicates out.")));
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
		Oid relid = OidIsValid(known.heap) ? known.heap : find_table();
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
		known.index = check_primary_key(store->heap);
		known.heap = relid;
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

static bool
slot_expired(TupleTableSlot *slot)
{
	bool isnull;
	TimestampTz expires_at = DatumGetTimestampTz(slot_getattr(slot, COL_EXPIRES_AT + 1, &isnull));

	return !TIMESTAMP_IS_NOEND(expires_at) && expires_at <= GetCurrentTimestamp();
}

/*
 * Find the version that counts; leave it in the slot if it is finished.
 *
 * SnapshotDirty shows what is committed or ours, and what other transactions
 * have inserted but not committed, with who they are.  An expired version
 * that another transaction is replacing is followed by the replacement, on
 * the same HOT chain or behind an index entry of its own: hence the search
 * goes on after it, and without a successor its deleter is a purge.
 */
static void
find_version(Store *store, const IdemKey *key, TupleTableSlot *slot, Version *found)
{
	SnapshotData dirty;
	IndexScanDesc scan;

	memset(found, 0, sizeof(*found));
	found->life = STORE_ABSENT;

	InitDirtySnapshot(dirty);
	scan = begin_scan(store, key, &dirty);
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		if (TransactionIdIsValid(dirty.xmin))
		{
			found->life = STORE_HELD;
			found->holder = dirty.xmin;
			found->holder_token = dirty.speculativeToken;
			break;
		}

		found->tid = slot->tts_tid;
		found->xmin = HeapTupleHeaderGetXmin(slot_header(slot));
		found->own = TransactionIdIsCurrentTransactionId(found->xmin);
		if (!slot_expired(slot))
		{
			found->life = STORE_FINISHED;
			break;
		}
		found->life = STORE_EXPIRED;
	}
	index_endscan(scan);
}

/*
 * The commit of an xid is visible before it is durable if it was
 * asynchronous.  Nobody else may then rely on it yet.
 */
static void
make_durable(TransactionId xid)
{
	XLogRecPtr lsn;

	if (synchronous_commit <= SYNCHRONOUS_COMMIT_OFF || RecoveryInProgress())
		return;
	lsn = TransactionIdGetCommitLSN(xid);
	if (!XLogRecPtrIsInvalid(lsn))
		XLogFlush(lsn);
}

static TimestampTz
get_timestamp(TupleTableSlot *slot, int column)
{
	bool isnull;

	return DatumGetTimestampTz(slot_getattr(slot, column + 1, &isnull));
}

/* Copy what callers need; the slot's page may go afterwards. */
static void
read_row(TupleTableSlot *slot, StoreRow *row)
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

	row->attempt = DatumGetInt32(slot_getattr(slot, COL_ATTEMPT + 1, &isnull));
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

	memset(row, 0, sizeof(*row));
	store_open(&store, RowExclusiveLock);
	slot = table_slot_create(store.heap, NULL);

	find_version(&store, key, slot, &found);
	row->life = found.life;
	row->holder = found.holder;
	row->holder_token = found.holder_token;
	if (found.life == STORE_FINISHED)
	{
		if (!found.own)
		{
			if (IsolationUsesXactSnapshot() &&
				!table_tuple_satisfies_snapshot(store.heap, slot, GetTransactionSnapshot()))
				error_serialization(key);
			make_durable(found.xmin);
		}
		read_row(slot, row);
	}

	ExecDropSingleTupleTableSlot(slot);
	store_close(&store);
}

bool
store_lookup(const IdemKey *key, StoreRow *row)
{
	Store store;
	TupleTableSlot *slot;
	IndexScanDesc scan;
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
	while (!found && index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		TransactionId xmin;

		if (!table_tuple_satisfies_snapshot(store.heap, slot, GetActiveSnapshot()))
			continue;
		xmin = HeapTupleHeaderGetXmin(slot_header(slot));
		if (TransactionIdIsCurrentTransactionId(xmin) || slot_expired(slot))
			break;
		make_durable(xmin);
		row->life = STORE_FINISHED;
		read_row(slot, row);
		found = true;
	}
	index_endscan(scan);

	ExecDropSingleTupleTableSlot(slot);
	store_close(&store);
	return found;
}

/* ------------------------------------------------------------------------
 * Waiting
 * ------------------------------------------------------------------------
 */

static void
wait_for_holder(void *arg)
{
	const StoreRow *row = arg;

	if (row->holder_token != 0)
		SpeculativeInsertionWait(row->holder, row->holder_token);
	else
		XactLockTableWait(row->holder, NULL, NULL, XLTW_None);
}

/*
 * On a standby the holder runs elsewhere and holds no lock here, so the server
 * itself could only poll, and would not stop at a timeout.
 */
static bool
wait_on_standby(const StoreRow *row, TimestampTz deadline)
{
	while (TransactionIdIsInProgress(row->holder))
	{
		long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

		if (left <= 0)
			return false;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(left, STANDBY_POLL_MS), PG_WAIT_EXTENSION);
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

	if (RecoveryInProgress())
		return wait_on_standby(row, deadline);

	lock_context_push(&context, key);
	if (TIMESTAMP_IS_NOEND(deadline))
		wait_for_holder(unconstify(StoreRow *, row));
	else
		ended = lock_bounded(wait_for_holder, unconstify(StoreRow *, row), deadline);
	lock_context_pop(&context);
	return ended;
}

/* ------------------------------------------------------------------------
 * Writing
 * ------------------------------------------------------------------------
 */

static TupleTableSlot *
form_row(Store *store, const IdemKey *key, const StoreWrite *write)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(store->heap), &TTSOpsVirtual);
	Datum *values = slot->tts_values;
	bool *isnull = slot->tts_isnull;

	ExecClearTuple(slot);
	memset(isnull, false, NCOLUMNS * sizeof(bool));

	values[COL_DIGEST] = UUIDPGetDatum(&key->digest);
	values[COL_SCOPE] = PointerGetDatum(key->scope);
	values[COL_KEY] = PointerGetDatum(key->key);
	values[COL_ATTEMPT] = Int32GetDatum(1);
	values[COL_CREATED_AT] = TimestampTzGetDatum(write->created_at);
	values[COL_FINISHED_AT] = TimestampTzGetDatum(write->finished_at);
	values[COL_EXPIRES_AT] = TimestampTzGetDatum(write->expires_at);
	isnull[COL_LEASE_UNTIL] = true;
	isnull[COL_FENCE] = true;
	isnull[COL_PHASE] = true;
	isnull[COL_PROGRESS] = true;

	isnull[COL_FINGERPRINT] = write->fingerprint == NULL;
	if (write->fingerprint != NULL)
	{
		bytea *b = palloc(VARHDRSZ + FINGERPRINT_BYTES);

		SET_VARSIZE(b, VARHDRSZ + FINGERPRINT_BYTES);
		memcpy(VARDATA(b), write->fingerprint, FINGERPRINT_BYTES);
		values[COL_FINGERPRINT] = PointerGetDatum(b);
	}
	isnull[COL_RESULT] = !write->has_result;
	values[COL_RESULT] = write->result;

	ExecStoreVirtualTuple(slot);
	slot->tts_tableOid = RelationGetRelid(store->heap);
	return slot;
}

/*
 * Insert the index entries of a heap tuple just written.  With "conflict", a
 * duplicate in the primary key is told there, else it raises 23505.
 */
static void
insert_index_entries(Store *store, TupleTableSlot *slot, bool *conflict, bool only_summarizing)
{
	EState *estate = CreateExecutorState();
	ResultRelInfo *rri = makeNode(ResultRelInfo);
	List *arbiters = conflict != NULL ? list_make1_oid(RelationGetRelid(store->index)) : NIL;
	Oid user;
	int sec_context;

	/* the abort of the (sub)transaction restores these if an error comes */
	GetUserIdAndSecContext(&user, &sec_context);
	SetUserIdAndSecContext(store->heap->rd_rel->relowner,
						   sec_context | SECURITY_RESTRICTED_OPERATION);

	InitResultRelInfo(rri, store->heap, 0, NULL, 0);
	ExecOpenIndices(rri, false);
	idem_insert_index_tuples(rri, slot, estate, arbiters, conflict, only_summarizing);
	ExecCloseIndices(rri);
	FreeExecutorState(estate);

	SetUserIdAndSecContext(user, sec_context);
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

	PG_TRY();
	{
		insert_index_entries(store, slot, NULL, only_summarizing);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		if (geterrcode() != ERRCODE_UNIQUE_VIOLATION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();

		/* an owner's own unique index speaks for itself */
		if (edata->constraint_name == NULL ||
			strcmp(edata->constraint_name, RelationGetRelationName(store->index)) != 0)
			PG_RE_THROW();
		FlushErrorState();
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
insert_row_if_free(Store *store, const IdemKey *key, const StoreWrite *write)
{
	TupleTableSlot *slot = form_row(store, key, write);
	TransactionId xid = GetCurrentTransactionId();
	uint32 token = SpeculativeInsertionLockAcquire(xid);
	bool conflict = false;

	table_tuple_insert_speculative(store->heap, slot, GetCurrentCommandId(true), 0, NULL, token);
	insert_index_entries(store, slot, &conflict, false);
	table_tuple_complete_speculative(store->heap, slot, token, !conflict);
	SpeculativeInsertionLockRelease(xid);

	ExecDropSingleTupleTableSlot(slot);
	return !conflict;
}

/*
 * Replace an expired version.  Waits for a purge that is deleting it.  False
 * if somebody else has deleted or replaced it: look again.
 */
static bool
replace_row(Store *store, const IdemKey *key, const StoreWrite *write, const Version *expired)
{
	TupleTableSlot *slot = form_row(store, key, write);
	IdemUpdateIndexes update_indexes;
	TM_FailureData tmfd;
	LockTupleMode lockmode;
	TM_Result result;

	/* a command cannot update what it has itself inserted */
	if (expired->own)
		CommandCounterIncrement();

	result = table_tuple_update(store->heap, unconstify(ItemPointerData *, &expired->tid), slot,
								GetCurrentCommandId(true), GetActiveSnapshot(), InvalidSnapshot,
								true, &tmfd, &lockmode, &update_indexes);
	if (result == TM_Ok && idem_update_needs_indexes(update_indexes))
		insert_index_entries_or_40001(store, key, slot,
									  idem_update_only_summarizing(update_indexes));
	else if (result != TM_Ok && result != TM_Updated && result != TM_Deleted)
		elog(ERROR, "unexpected table_tuple_update status: %d", (int) result);

	ExecDropSingleTupleTableSlot(slot);
	return result == TM_Ok;
}

static void
find_version_only(Store *store, const IdemKey *key, Version *found)
{
	TupleTableSlot *slot = table_slot_create(store->heap, NULL);

	find_version(store, key, slot, found);
	ExecDropSingleTupleTableSlot(slot);
}

static void
wait_for_version(const IdemKey *key, const Version *held)
{
	StoreRow row = {.holder = held->holder, .holder_token = held->holder_token};

	(void) store_wait(key, &row, DT_NOEND);
}

/*
 * The expired version that begin saw may have been purged since, and its TID
 * given to another row: so it is searched again.
 */
static void
replace_or_insert(Store *store, const IdemKey *key, const StoreWrite *write)
{
	for (;;)
	{
		Version found;

		CHECK_FOR_INTERRUPTS();
		find_version_only(store, key, &found);
		switch (found.life)
		{
			case STORE_ABSENT:
				insert_row(store, key, write);
				return;
			case STORE_EXPIRED:
				if (replace_row(store, key, write, &found))
					return;
				break;
			case STORE_HELD:
				wait_for_version(key, &found);
				break;
			case STORE_FINISHED:
				error_serialization(key);
		}
	}
}

void
store_finish(const IdemKey *key, const StoreWrite *write, bool replaces)
{
	Store store;

	store_open(&store, RowExclusiveLock);
	if (replaces)
		replace_or_insert(&store, key, write);
	else
		insert_row(&store, key, write);
	store_close(&store);
}

bool
store_claim(const IdemKey *key, const StoreWrite *write, const StoreRow *row)
{
	Store store;
	bool written = false;

	store_open(&store, RowExclusiveLock);
	if (row->life == STORE_ABSENT)
		written = insert_row_if_free(&store, key, write);
	else
	{
		Version found;

		Assert(row->life == STORE_EXPIRED);
		find_version_only(&store, key, &found);
		if (found.life == STORE_EXPIRED)
			written = replace_row(&store, key, write, &found);
	}
	store_close(&store);
	return written;
}

bool
store_forget(const IdemKey *key)
{
	Store store;
	Version found;
	TM_Result result = TM_Deleted;

	store_open(&store, RowExclusiveLock);
	do
	{
		CHECK_FOR_INTERRUPTS();
		find_version_only(&store, key, &found);
		if (found.life == STORE_HELD)
			wait_for_version(key, &found);
		else if (found.life != STORE_ABSENT)
		{
			TM_FailureData tmfd;

			if (found.own)
				CommandCounterIncrement();
			result = table_tuple_delete(store.heap, &found.tid, GetCurrentCommandId(true),
										GetActiveSnapshot(), InvalidSnapshot, true, &tmfd, false);
			if (result != TM_Ok && result != TM_Updated && result != TM_Deleted)
				elog(ERROR, "unexpected table_tuple_delete status: %d", (int) result);
		}
	} while (found.life != STORE_ABSENT && result != TM_Ok);
	store_close(&store);

	return found.life == STORE_FINISHED;
}

int64
store_forget_scope(text *scope)
{
	Store store;
	Oid types[] = {TEXTOID};
	Datum values[] = {PointerGetDatum(scope)};
	char *query;
	int64 deleted;
	Oid user;
	int sec_context;

	store_open(&store, RowExclusiveLock);
	query =
		psprintf("DELETE FROM ONLY %s WHERE scope OPERATOR(pg_catalog.=) $1",
				 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(store.heap)),
											RelationGetRelationName(store.heap)));

	GetUserIdAndSecContext(&user, &sec_context);
	SetUserIdAndSecContext(store.heap->rd_rel->relowner,
						   sec_context | SECURITY_RESTRICTED_OPERATION);
	SPI_connect();
	if (SPI_execute_with_args(query, 1, types, values, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not delete from table \"%s\"", TABLE_NAME);
	deleted = SPI_processed;
	SPI_finish();
	SetUserIdAndSecContext(user, sec_context);

	store_close(&store);
	return deleted;
}
