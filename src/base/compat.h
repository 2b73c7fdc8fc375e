/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Hide the differences between PostgreSQL 15 and 19.
 *
 * The only file that looks at PG_VERSION_NUM.  All other files use the names below, which
 * follow the newest server where possible.  A number at the start of a comment, such as
 * "17:", is the version in which the server's interface changed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_COMPAT_H
#define IDEM_COMPAT_H

#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "commands/vacuum.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "parser/parse_type.h"
#include "pgstat.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 150000
#error "idempotency needs PostgreSQL 15 or later"
#endif

/* Prefetch memory that is needed soon. */
#if defined(__GNUC__)
#define idem_prefetch(address) __builtin_prefetch(address)
#else
#define idem_prefetch(address) ((void) (address))
#endif

/* 16: the varlena macros are no longer in postgres.h. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 16: soft errors */
#if PG_VERSION_NUM >= 160000
#include "nodes/miscnodes.h"
#else
#include "common/jsonapi.h"
#include "mb/pg_wchar.h"
#endif

/* 17: named DSM segments */
#if PG_VERSION_NUM >= 170000
#include "storage/dsm_registry.h"
#endif

/* 17: the shared state of transaction IDs was renamed. */
#if PG_VERSION_NUM >= 170000
#define idem_transam TransamVariables
#else
#define idem_transam ShmemVariableCache
#endif

/*
 * Do commits wait for a synchronous standby?  A bool up to 15.12, 16.8 and 17.4; since then
 * bits in the same place.  The server that runs may have another minor version than the one
 * we were compiled for.
 */
#define IDEM_SYNC_STANDBY_INIT 0x01
#define IDEM_SYNC_STANDBY_DEFINED 0x02
#define IDEM_SYNC_STANDBYS_HAS_BITS(version) \
	((version) >= 170005 || ((version) >= 160009 && (version) < 170000) || \
	 ((version) >= 150013 && (version) < 160000))
#if IDEM_SYNC_STANDBYS_HAS_BITS(PG_VERSION_NUM)
#define idem_sync_standbys(control) ((control)->sync_standbys_status)
#else
#define idem_sync_standbys(control) ((control)->sync_standbys_defined)
#endif

static inline bool
idem_sync_standbys_has_bits(void)
{
	static int version = 0;

	if (version == 0)
		version = atoi(GetConfigOption("server_version_num", false, false));
	return IDEM_SYNC_STANDBYS_HAS_BITS(version);
}

/* 18: pg_get_loaded_modules() shows a module's name and version. */
#if PG_VERSION_NUM >= 180000
#define IDEM_MODULE_MAGIC(version_) PG_MODULE_MAGIC_EXT(.name = "idempotency", .version = version_)
#else
#define IDEM_MODULE_MAGIC(version_) PG_MODULE_MAGIC
#endif

/* 19: a tuple descriptor made by hand must be finalized. */
#if PG_VERSION_NUM >= 190000
#define idem_tupledesc_finalize(desc) TupleDescFinalize(desc)
#else
#define idem_tupledesc_finalize(desc) ((void) 0)
#endif

/*
 * Set the safe search_path of maintenance commands, for code of a table's owner.  Lasts
 * until the end of the current GUC nest level.  17: the server has a function for it.
 */
static inline void
idem_restrict_search_path(void)
{
#if PG_VERSION_NUM >= 170000
	RestrictSearchPath();
#else
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
#endif
}

/* 18: the attribute comes before the declaration. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn __attribute__((noreturn))
#endif

/* 16: an update reports whether only summarizing indexes need a new entry. */
#if PG_VERSION_NUM >= 160000
typedef TU_UpdateIndexes IdemUpdateIndexes;
#define idem_update_needs_indexes(u) ((u) != TU_None)
#define idem_update_only_summarizing(u) ((u) == TU_Summarizing)
#else
typedef bool IdemUpdateIndexes;
#define idem_update_needs_indexes(u) (u)
#define idem_update_only_summarizing(u) (false)
#endif

static inline TableScanDesc
idem_table_beginscan(Relation rel, Snapshot snapshot)
{
#if PG_VERSION_NUM >= 190000
	return table_beginscan(rel, snapshot, 0, NULL, SO_NONE);
#else
	return table_beginscan(rel, snapshot, 0, NULL);
#endif
}

/* Does this transaction hold that lock?  17: a parameter asks for stronger locks too. */
static inline bool
idem_relation_locked_by_me(Oid relid, LOCKMODE lockmode)
{
	LOCKTAG tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relid);
#if PG_VERSION_NUM >= 170000
	return LockHeldByMe(&tag, lockmode, false);
#else
	return LockHeldByMe(&tag, lockmode);
#endif
}

/* 17: the two parts of a virtual transaction ID are now in one struct. */
static inline LocalTransactionId
idem_local_transaction(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProc->vxid.lxid;
#else
	return MyProc->lxid;
#endif
}

/* Less than MaxBackends for a backend that is connected to a database.  17: a variable. */
static inline int
idem_my_proc_number(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProcNumber;
#else
	return MyProc->pgprocno;
#endif
}

/* A wait event, shown in pg_stat_activity.  17: extensions can name their own. */
static inline uint32
idem_wait_event(uint32 *event, const char *name)
{
#if PG_VERSION_NUM >= 170000
	if (*event == 0)
		*event = WaitEventExtensionNew(name);
	return *event;
#else
	return PG_WAIT_EXTENSION;
#endif
}

/* 19: a tranche is named when it is created, for all backends. */
static inline int
idem_new_lwlock_tranche(const char *name)
{
#if PG_VERSION_NUM >= 190000
	return LWLockNewTrancheId(name);
#else
	return LWLockNewTrancheId();
#endif
}

static inline void
idem_register_lwlock_tranche(int tranche, const char *name)
{
#if PG_VERSION_NUM < 190000
	LWLockRegisterTranche(tranche, name);
#endif
}

#if PG_VERSION_NUM >= 170000
#define idem_has_named_dsm_segments true
#else
#define idem_has_named_dsm_segments false
#endif

/*
 * Named shared memory that the first backend creates; NULL before 17, which has none.  19:
 * "create" has an argument.
 */
#if PG_VERSION_NUM >= 190000
static inline void
idem_create_segment(void *address, void *create)
{
	((void (*)(void *)) create)(address);
}
#endif

static inline void *
idem_named_dsm_segment(const char *name, Size size, void (*create)(void *address))
{
#if PG_VERSION_NUM >= 170000
	bool found;

#if PG_VERSION_NUM >= 190000
	return GetNamedDSMSegment(name, size, idem_create_segment, &found, create);
#else
	return GetNamedDSMSegment(name, size, create, &found);
#endif
#else
	return NULL;
#endif
}

/* 19: flags for the table scan */
static inline IndexFetchTableData *
idem_index_fetch_begin(Relation heap)
{
#if PG_VERSION_NUM >= 190000
	return table_index_fetch_begin(heap, SO_NONE);
#else
	return table_index_fetch_begin(heap);
#endif
}

/* 18: instrumentation; 19: flags for the table scan */
static inline IndexScanDesc
idem_index_beginscan(Relation heap, Relation index, Snapshot snapshot, int nkeys)
{
#if PG_VERSION_NUM >= 190000
	return index_beginscan(heap, index, snapshot, NULL, nkeys, 0, SO_NONE);
#elif PG_VERSION_NUM >= 180000
	return index_beginscan(heap, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(heap, index, snapshot, nkeys, 0);
#endif
}

/*
 * Begin the scan again, with no page pinned.  19: index_rescan() keeps the pin on the table's
 * page, which only the end of the fetch releases.
 */
static inline void
idem_index_rescan_unpinned(IndexScanDesc scan, ScanKey keys, int nkeys)
{
	index_rescan(scan, keys, nkeys, NULL, 0);
#if PG_VERSION_NUM >= 190000
	{
		MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(scan));

		table_index_fetch_end(scan->xs_heapfetch);
		scan->xs_heapfetch = idem_index_fetch_begin(scan->heapRelation);
		MemoryContextSwitchTo(old);
	}
#endif
}

/* Update waits for a concurrent change of the tuple, delete if "wait".  19: options. */
static inline TM_Result
idem_tuple_update(Relation rel, ItemPointer tid, TupleTableSlot *slot, CommandId cid,
				  Snapshot snapshot, IdemUpdateIndexes *update_indexes)
{
	TM_FailureData tmfd;
	LockTupleMode lockmode;

#if PG_VERSION_NUM >= 190000
	return table_tuple_update(rel, tid, slot, cid, 0, snapshot, InvalidSnapshot, true, &tmfd,
							  &lockmode, update_indexes);
#else
	return table_tuple_update(rel, tid, slot, cid, snapshot, InvalidSnapshot, true, &tmfd,
							  &lockmode, update_indexes);
#endif
}

static inline TM_Result
idem_tuple_delete(Relation rel, ItemPointer tid, CommandId cid, Snapshot snapshot, bool wait)
{
	TM_FailureData tmfd;

#if PG_VERSION_NUM >= 190000
	return table_tuple_delete(rel, tid, cid, 0, snapshot, InvalidSnapshot, wait, &tmfd);
#else
	return table_tuple_delete(rel, tid, cid, snapshot, InvalidSnapshot, wait, &tmfd, false);
#endif
}

/* 19: dropping or moving the worker's database ends the worker, even without FORCE */
#if PG_VERSION_NUM >= 190000
#define IDEM_BGWORKER_INTERRUPTIBLE BGWORKER_INTERRUPTIBLE
#else
#define IDEM_BGWORKER_INTERRUPTIBLE 0
#endif

/* 18: ExecutorRun() lost its parameter "execute_once". */
#if PG_VERSION_NUM >= 180000
#define idem_executor_run_args QueryDesc *queryDesc, ScanDirection direction, uint64 count
#define idem_executor_run_pass queryDesc, direction, count
#else
#define idem_executor_run_args \
	QueryDesc *queryDesc, ScanDirection direction, uint64 count, bool execute_once
#define idem_executor_run_pass queryDesc, direction, count, execute_once
#endif

/* 16: soft errors */
static inline void
idem_parse_type(const char *name, Oid *type)
{
	int32 typmod;
#if PG_VERSION_NUM >= 160000
	ErrorSaveContext context = {.type = T_ErrorSaveContext};

	if (!parseTypeString(name, type, &typmod, (Node *) &context))
		*type = InvalidOid;
#else
	parseTypeString(name, type, &typmod, true);
#endif
}

/*
 * False if the text is not JSON, or has an escape that jsonb cannot hold.  16: soft errors;
 * before, the server's parser reports the same if it is called without jsonb's actions.
 */
static inline bool
idem_jsonb_in(char *json, Datum *jsonb)
{
#if PG_VERSION_NUM >= 160000
	ErrorSaveContext context = {.type = T_ErrorSaveContext};

	return DirectInputFunctionCallSafe(jsonb_in, json, InvalidOid, -1, (Node *) &context, jsonb);
#else
	JsonLexContext *lex =
		makeJsonLexContextCstringLen(json, strlen(json), GetDatabaseEncoding(), true);

	if (pg_parse_json(lex, &nullSemAction) != JSON_SUCCESS)
		return false;
	*jsonb = DirectFunctionCall1(jsonb_in, CStringGetDatum(json));
	return true;
#endif
}

/* 16: one function for objects of all kinds */
static inline AclResult
idem_function_aclcheck(Oid function, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(ProcedureRelationId, function, role, ACL_EXECUTE);
#else
	return pg_proc_aclcheck(function, role, ACL_EXECUTE);
#endif
}

static inline AclResult
idem_schema_aclcheck(Oid schema, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(NamespaceRelationId, schema, role, ACL_USAGE);
#else
	return pg_namespace_aclcheck(schema, role, ACL_USAGE);
#endif
}

/* The functions of that name; may be none.  19: flags say why there are none. */
static inline FuncCandidateList
idem_function_candidates(List *names, int nargs, List *argnames, bool expand_defaults)
{
#if PG_VERSION_NUM >= 190000
	int flags;

	return FuncnameGetCandidates(names, nargs, argnames, false, expand_defaults, false, true,
								 &flags);
#else
	return FuncnameGetCandidates(names, nargs, argnames, false, expand_defaults, false, true);
#endif
}

static inline Oid
idem_primary_key(Relation rel)
{
#if PG_VERSION_NUM >= 180000
	return RelationGetPrimaryKeyIndex(rel, false);
#else
	return RelationGetPrimaryKeyIndex(rel);
#endif
}

/*
 * Take back what this session has yet to report of the table's live and dead tuples: a vacuum
 * has counted them.  16: the fields have other names.
 */
static inline void
idem_pgstat_forget_tuples(Relation rel)
{
	if (!pgstat_should_count_relation(rel))
		return;
#if PG_VERSION_NUM >= 160000
	rel->pgstat_info->counts.delta_live_tuples = 0;
	rel->pgstat_info->counts.delta_dead_tuples = 0;
#else
	rel->pgstat_info->t_counts.t_delta_live_tuples = 0;
	rel->pgstat_info->t_counts.t_delta_dead_tuples = 0;
#endif
}

/* "arbiters": unique indexes in which a duplicate sets *conflict instead of raising */
static inline void
idem_insert_index_tuples(ResultRelInfo *rri, TupleTableSlot *slot, EState *estate, List *arbiters,
						 bool *conflict, bool only_summarizing)
{
#if PG_VERSION_NUM >= 190000
	(void) ExecInsertIndexTuples(rri, estate,
								 (arbiters != NIL ? EIIT_NO_DUPE_ERROR : 0) |
									 (only_summarizing ? EIIT_ONLY_SUMMARIZING : 0),
								 slot, arbiters, conflict);
#elif PG_VERSION_NUM >= 160000
	(void) ExecInsertIndexTuples(rri, slot, estate, false, arbiters != NIL, conflict, arbiters,
								 only_summarizing);
#else
	(void) only_summarizing;
	(void) ExecInsertIndexTuples(rri, slot, estate, false, arbiters != NIL, conflict, arbiters);
#endif
}

/*
 * The descent of a btree to a leaf page, for reading; not defined where nobody has looked at it
 * yet.  19: the stack, of no use here, need not be made.
 */
#if PG_VERSION_NUM >= 200000
#elif PG_VERSION_NUM >= 190000
#define idem_bt_search(index, heap, key, leaf) \
	((void) _bt_search(index, heap, key, leaf, BT_READ, false))
#elif PG_VERSION_NUM >= 170000
#define idem_bt_search(index, heap, key, leaf) \
	_bt_freestack(_bt_search(index, heap, key, leaf, BT_READ))
#elif PG_VERSION_NUM >= 160000
#define idem_bt_search(index, heap, key, leaf) \
	_bt_freestack(_bt_search(index, heap, key, leaf, BT_READ, NULL))
#else
#define idem_bt_search(index, heap, key, leaf) \
	_bt_freestack(_bt_search(index, key, leaf, BT_READ, NULL))
#endif

#endif /* IDEM_COMPAT_H */
