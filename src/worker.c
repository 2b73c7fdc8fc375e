/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  Purges in the background.
 *
 * Both kinds of process are superuser, as background workers are, and run no code
 * but ours: the launcher reads pg_database, a worker sweeps tables, which has no
 * triggers, expressions or policies in it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "compat.h"
#include "guc.h"
#include "purge.h"
#include "relation.h"
#include "shmem.h"
#include "stats.h"
#include "worker.h"

/* how long a worker works, how long it waits for a table, when one that hangs is
 * stopped, and when a lost launcher is back */
#define WORK_MSEC 900
#define LOCK_MSEC "90"
#define HANGS_MSEC 5000
#define RESTART_SECONDS 5

/* an invalid database, left by a DROP that was interrupted */
#define INVALID_CONNLIMIT (-2)

PGDLLEXPORT void idem_launcher_main(Datum arg);
PGDLLEXPORT void idem_worker_main(Datum arg);

typedef struct WorkerArea
{
	pg_atomic_uint32 unfinished; /* a worker has left much undone */
} WorkerArea;

static Size
worker_size(void)
{
	return sizeof(WorkerArea);
}

static void
worker_create(void *address, int tranche)
{
	pg_atomic_init_u32(&((WorkerArea *) address)->unfinished, 0);
}

static ShmemArea area = {.name = "idempotency_worker",
						 .size = worker_size,
						 .create = worker_create};

/* ------------------------------------------------------------------------
 * Worker
 * ------------------------------------------------------------------------
 */

static void
commit_batch(void)
{
	CommitTransactionCommand();
	pgstat_report_stat(false);
	StartTransactionCommand();
}

static void
work(void)
{
	Purge purge = {
		.batch_size = idem_purge_batch_size,
		.max_rows = PG_INT64_MAX,
		.deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WORK_MSEC),
		.commit = commit_batch,
	};
	WorkerArea *shared = shmem_get(&area);

	if (!OidIsValid(get_extension_oid(EXTENSION_NAME, true)))
		return;
	purge_run(&purge);
	if (!purge.complete && purge_removed(&purge) >= purge.batch_size)
		pg_atomic_write_u32(&shared->unfinished, 1);
}

void
idem_worker_main(Datum arg)
{
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);

	/* a purge that a crash undoes is done again */
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", LOCK_MSEC, PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, "idempotency: purging expired rows");
	work();
	CommitTransactionCommand();
	pgstat_report_stat(true);
}

/* ------------------------------------------------------------------------
 * Launcher
 * ------------------------------------------------------------------------
 */

/* say which listed databases do not exist: once, until the list is read again */
static bool tell = true;

typedef struct Database
{
	Oid oid;
	char *name;
} Database;

/*
 * All that can be connected to, by a plain scan: with no database of its own, a
 * process cannot rebuild what it knows of an index.
 */
static List *
read_databases(void)
{
	Relation rel = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(rel, 0, NULL);
	List *databases = NIL;
	HeapTuple tuple;

	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		Database *database;

		if (!form->datallowconn || form->datconnlimit == INVALID_CONNLIMIT)
			continue;
		database = palloc(sizeof(Database));
		database->oid = form->oid;
		database->name = pstrdup(NameStr(form->datname));
		databases = lappend(databases, database);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	return databases;
}

/* Those of a list of names. */
static List *
named_databases(List *databases, const char *setting)
{
	List *names;
	List *result = NIL;
	ListCell *name;
	ListCell *lc;

	if (!SplitIdentifierString(pstrdup(setting), ',', &names))
		return NIL;
	foreach(name, names)
	{
		Oid oid = InvalidOid;

		foreach(lc, databases)
			if (strcmp(((Database *) lfirst(lc))->name, lfirst(name)) == 0)
				oid = ((Database *) lfirst(lc))->oid;
		if (OidIsValid(oid))
			result = list_append_unique_oid(result, oid);
		else if (tell)
			ereport(LOG,
					(errmsg("database \"%s\" of \"idempotency.purge_databases\" does not exist",
							(char *) lfirst(name))));
	}
	return result;
}

static List *
counting_databases(List *databases)
{
	List *result = NIL;
	ListCell *lc;
	Oid *found;
	int n = stats_databases(&found);

	foreach(lc, databases)
		for (int i = 0; i < n; i++)
			if (((Database *) lfirst(lc))->oid == found[i])
				result = lappend_oid(result, found[i]);
	return result;
}

/* In the current memory context, which outlives the transaction. */
static List *
list_databases(void)
{
	MemoryContext context = CurrentMemoryContext;
	List *databases;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	MemoryContextSwitchTo(context);
	databases = read_databases();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return strcmp(idem_purge_databases, "*") == 0
		? counting_databases(databases)
		: named_databases(databases, idem_purge_databases);
}

/* What launcher and worker have in common. */
static void
describe(BackgroundWorker *worker, const char *name, const char *function)
{
	memset(worker, 0, sizeof(*worker));
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	strlcpy(worker->bgw_name, name, BGW_MAXLEN);
	strlcpy(worker->bgw_type, name, BGW_MAXLEN);
	strlcpy(worker->bgw_library_name, EXTENSION_NAME, BGW_MAXLEN);
	strlcpy(worker->bgw_function_name, function, BGW_MAXLEN);
}

static void
reload(void)
{
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	tell = true;
}

static void
wait_for_latch(long msec)
{
	static uint32 wait_event = 0;

	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (msec >= 0 ? WL_TIMEOUT : 0),
					 msec, idem_wait_event(&wait_event, "IdempotencyLauncherMain"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	reload();
}

/*
 * The worker may hang before it can have a timeout: connecting waits for whoever
 * renames the database, or copies it.
 */
static void
wait_for_worker(BackgroundWorkerHandle *handle)
{
	TimestampTz started = GetCurrentTimestamp();
	bool stopped = false;
	pid_t pid;

	while (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
	{
		wait_for_latch(HANGS_MSEC);
		if (!stopped && TimestampDifferenceExceeds(started, GetCurrentTimestamp(), HANGS_MSEC))
		{
			TerminateBackgroundWorker(handle);
			stopped = true;
		}
	}
}

static void
purge_database(Oid database)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;

	describe(&worker, "idempotency purge worker", "idem_worker_main");
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_notify_pid = MyProcPid;
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
	{
		static bool told = false;
		int level = told ? DEBUG1 : LOG;

		told = true;
		ereport(level,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no background worker is free for purging"),
				 errhint("Increase \"max_worker_processes\".")));
		return;
	}
	wait_for_worker(handle);
	pfree(handle);
}

/* True if there is more to do. */
static bool
purge_all(void)
{
	WorkerArea *shared = shmem_get(&area);
	List *databases = list_databases();
	ListCell *lc;

	tell = false;
	pg_atomic_write_u32(&shared->unfinished, 0);
	foreach(lc, databases)
		if (idem_purge_interval > 0)
			purge_database(lfirst_oid(lc));
	return pg_atomic_read_u32(&shared->unfinished) != 0;
}

/* Until the next round; negative: no round. */
static long
msec_to_next(TimestampTz last, bool more)
{
	TimestampTz now = GetCurrentTimestamp();

	if (idem_purge_interval == 0)
		return -1;
	/* a clock that was set back is no reason to wait for it */
	if (more || now < last)
		return 0;
	return TimestampDifferenceMilliseconds(
		now, TimestampTzPlusMilliseconds(last, idem_purge_interval * INT64CONST(1000)));
}

void
idem_launcher_main(Datum arg)
{
	TimestampTz last = GetCurrentTimestamp();
	MemoryContext round;
	bool more = false;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	/* the catalogs that all databases share */
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	round =
		AllocSetContextCreate(TopMemoryContext, "idempotency purge round", ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(round);
	/* the server runs: what it has read at its start may go, though nobody calls us */
	(void) shmem_get(&area);

	for (;;)
	{
		long left = msec_to_next(last, more);

		if (left != 0)
		{
			wait_for_latch(left);
			continue;
		}
		more = purge_all();
		last = GetCurrentTimestamp();
		MemoryContextReset(round);
		CHECK_FOR_INTERRUPTS();
		reload();
	}
}

void
worker_init(void)
{
	BackgroundWorker launcher;

	shmem_register(&area);
	/* pg_upgrade wants the cluster to itself */
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	describe(&launcher, "idempotency purge launcher", "idem_launcher_main");
	launcher.bgw_restart_time = RESTART_SECONDS;
	RegisterBackgroundWorker(&launcher);
}
