/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  Purges in the background.
 *
 * Like all background workers, launcher and workers run as superuser.  So they must run only
 * our own code: the launcher reads pg_database, and a worker sweeps tables, which evaluates no
 * triggers, expressions or policies.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
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
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/guc.h"
#include "base/relation.h"
#include "base/shmem.h"
#include "retention/databases.h"
#include "retention/purge.h"
#include "retention/worker.h"
#include "stat/stats.h"

/*
 * How long a worker works, how long it waits for a lock on a catalog, when a worker that cannot
 * connect is stopped, and when a launcher that has exited is started again.
 */
#define WORK_MSEC 900
#define LOCK_MSEC "90"
#define CONNECT_MSEC 5000
#define RESTART_SECONDS 5

/* how often to check a database that lacks the extension */
#define LOOK_MSEC (10 * 60 * 1000)

/* maximum age of the list of databases while there is always one to visit */
#define LIST_MSEC 1000

PGDLLEXPORT void idem_launcher_main(Datum arg);
PGDLLEXPORT void idem_worker_main(Datum arg);

/* What a worker reports to the launcher. */
#define REPORT_CONNECTED 0x01
#define REPORT_LACKS 0x02  /* the extension is missing */
#define REPORT_HURRY 0x04  /* much is left to do */
#define REPORT_LOCKED 0x10 /* first table skipped because it was locked; the next bits: others */

typedef struct WorkerArea
{
	pg_atomic_uint32 report; /* of the worker that was started last */
} WorkerArea;

static Size
worker_size(void)
{
	return sizeof(WorkerArea);
}

static void
worker_create(void *address, int tranche)
{
	pg_atomic_init_u32(&((WorkerArea *) address)->report, 0);
}

static ShmemArea area = {.name = "idempotency_worker",
						 .size = worker_size,
						 .create = worker_create};

/*
 * Both kinds of process may exit with FATAL at shutdown, while they wait for a lock.  In the
 * server's log that would look like a failure.
 */
static emit_log_hook_type prev_emit_log = NULL;

static void
hide_shutdown(ErrorData *edata)
{
	if (edata->elevel == FATAL && edata->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
		edata->output_to_server = false;
	else if (prev_emit_log != NULL)
		prev_emit_log(edata);
}

static void
start_process(void)
{
	prev_emit_log = emit_log_hook;
	emit_log_hook = hide_shutdown;
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
}

/* ------------------------------------------------------------------------
 * Worker
 * ------------------------------------------------------------------------
 */

static void
report(uint32 what)
{
	WorkerArea *shared = shmem_get(&area);

	pg_atomic_fetch_or_u32(&shared->report, what);
}

static void
commit_batch(void)
{
	CommitTransactionCommand();
	pgstat_report_stat(false);
	StartTransactionCommand();
}

/*
 * A role that may drop the database may end this process.  Otherwise DROP DATABASE ... WITH
 * (FORCE) by an owner that is not a superuser would fail.
 */
static void
let_owner_end_it(void)
{
	HeapTuple tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));

	if (!HeapTupleIsValid(tuple))
		return;
	MyProc->roleId = ((Form_pg_database) GETSTRUCT(tuple))->datdba;
	ReleaseSysCache(tuple);
}

/*
 * Another visit at once pays only if nearly every page has dead rows.  Otherwise a large
 * table with few dead rows would be read without end.
 */
static bool
has_left_much(const Purge *purge)
{
	return !purge->complete && purge_removed(purge) > 0 &&
		purge_removed(purge) >= purge->pages_read;
}

static void
work(void)
{
	Purge purge = {
		.batch_size = idem_purge_batch_size,
		.max_rows = PG_INT64_MAX,
		.deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WORK_MSEC),
		.commit = commit_batch,
		.nowait = true,
	};

	if (!OidIsValid(get_extension_oid(EXTENSION_NAME, true)))
	{
		report(REPORT_LACKS);
		return;
	}
	purge_run(&purge);
	for (int i = 0; i < PURGE_NTABLES; i++)
		if (purge.locked[i])
			report(REPORT_LOCKED << i);
	if (has_left_much(&purge))
		report(REPORT_HURRY);
}

void
idem_worker_main(Datum arg)
{
	start_process();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);
	report(REPORT_CONNECTED);
	/* from now on, SIGTERM lets the current batch commit first */
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);

	/* if a crash undoes a purge, the next one repeats it */
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", LOCK_MSEC, PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	let_owner_end_it();
	pgstat_report_activity(STATE_RUNNING, "idempotency: purging expired rows");
	work();
	CommitTransactionCommand();
	pgstat_report_stat(true);
}

/* ------------------------------------------------------------------------
 * Launcher
 * ------------------------------------------------------------------------
 */

/* log which listed databases do not exist; once, until the setting is read again */
static bool tell = true;

/* What is known of a database from one list to the next. */
typedef struct Known
{
	Oid oid;
	int64 list;				/* number of the last list that had it */
	TimestampTz visited_at; /* when its last worker ended, or when a list first had it */
	bool more;				/* visit it again at once */
	bool lacks;				/* the last worker found no extension */
	TimestampTz looked_at;	/* by that worker; 0: never */
	bool hangs;				/* could not connect, and has logged that */
	uint32 report;			/* of its last worker */
} Known;

static HTAB *known_databases = NULL;

static Known *
get_known(Oid database)
{
	bool found;
	Known *known;

	if (known_databases == NULL)
	{
		HASHCTL ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(Known)};

		known_databases =
			hash_create("idempotency purge databases", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	known = hash_search(known_databases, &database, HASH_ENTER, &found);
	if (!found)
		*known = (Known){.oid = database, .visited_at = GetCurrentTimestamp()};
	return known;
}

static void
forget_dropped(List *databases)
{
	static int64 list = 0;
	HASH_SEQ_STATUS scan;
	Known *known;
	ListCell *lc;

	list++;
	foreach(lc, databases)
		get_known(((Database *) lfirst(lc))->oid)->list = list;
	if (known_databases == NULL)
		return;
	hash_seq_init(&scan, known_databases);
	while ((known = hash_seq_search(&scan)) != NULL)
		if (known->list != list)
			(void) hash_search(known_databases, &known->oid, HASH_REMOVE, NULL);
}

/* True as well if the clock was set back: do not wait until it catches up. */
static bool
has_passed(int msec, TimestampTz since, TimestampTz now)
{
	return now < since || TimestampDifferenceExceeds(since, now, msec);
}

/*
 * All that have the extension.  Those with counters have it; for the others, only a worker can
 * tell, once in a while.
 */
static List *
extension_databases(List *databases)
{
	List *result = NIL;
	ListCell *lc;
	TimestampTz now = GetCurrentTimestamp();

	foreach(lc, databases)
	{
		Database *database = lfirst(lc);
		Known *known = get_known(database->oid);

		if (!known->lacks || has_passed(LOOK_MSEC, known->looked_at, now) ||
			stats_has_database(database->oid))
			result = lappend(result, database);
	}
	return result;
}

/* Allocates the result in the current memory context, which outlives the transaction. */
static List *
list_databases(void)
{
	MemoryContext context = CurrentMemoryContext;
	List *databases;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	MemoryContextSwitchTo(context);
	databases = databases_read();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	forget_dropped(databases);
	return strcmp(idem_purge_databases, "*") == 0
		? extension_databases(databases)
		: databases_named(databases, idem_purge_databases, tell);
}

/* Set the fields that launcher and worker have in common. */
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
 * The worker may hang before it can set a timeout: connecting waits while another session
 * renames or copies the database.  Once it is connected, it ends by itself.
 */
static void
wait_for_worker(BackgroundWorkerHandle *handle, const Database *database)
{
	WorkerArea *shared = shmem_get(&area);
	Known *known = get_known(database->oid);
	TimestampTz started = GetCurrentTimestamp();
	bool stopped = false;
	pid_t pid;

	while (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
	{
		wait_for_latch(CONNECT_MSEC);
		if (!stopped && (pg_atomic_read_u32(&shared->report) & REPORT_CONNECTED) == 0 &&
			TimestampDifferenceExceeds(started, GetCurrentTimestamp(), CONNECT_MSEC))
		{
			if (!known->hangs)
				ereport(LOG,
						(errmsg("could not connect to database \"%s\" to purge, as it is locked",
								database->name)));
			TerminateBackgroundWorker(handle);
			stopped = true;
		}
	}
	known->hangs = stopped;
}

/* Logs a table that stays locked only once. */
static void
take_report(const Database *database, uint32 what)
{
	Known *known = get_known(database->oid);

	if ((what & REPORT_CONNECTED) == 0)
		return;
	for (int i = 0; i < PURGE_NTABLES; i++)
		if ((what & (REPORT_LOCKED << i)) != 0 && (known->report & (REPORT_LOCKED << i)) == 0)
			ereport(LOG,
					(errmsg("table \"%s\" of database \"%s\" is not purged while it is locked",
							purge_table_name(i), database->name)));
	known->lacks = (what & REPORT_LACKS) != 0;
	known->looked_at = GetCurrentTimestamp();
	known->report = what;
}

/* Start a worker and wait for its end.  True if much is left to do. */
static bool
purge_database(const Database *database)
{
	WorkerArea *shared = shmem_get(&area);
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;
	uint32 what;

	describe(&worker, "idempotency purge worker", "idem_worker_main");
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_flags |= IDEM_BGWORKER_INTERRUPTIBLE;
	worker.bgw_main_arg = ObjectIdGetDatum(database->oid);
	worker.bgw_notify_pid = MyProcPid;
	pg_atomic_write_u32(&shared->report, 0);
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
	{
		static bool told = false;

		ereport(told ? DEBUG1 : LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no background worker is free for purging"),
				 errhint("Increase \"max_worker_processes\".")));
		told = true;
		return false;
	}
	wait_for_worker(handle, database);
	pfree(handle);
	what = pg_atomic_read_u32(&shared->report);
	take_report(database, what);
	ereport(DEBUG1, (errmsg_internal("purge worker of database \"%s\" has ended", database->name)));
	return (what & REPORT_HURRY) != 0;
}

/* Milliseconds until the next visit of the database. */
static long
msec_to_visit(const Known *known, TimestampTz now)
{
	int msec = (int) (idem_purge_interval * 1000);

	if (known->more || has_passed(msec, known->visited_at, now))
		return 0;
	return TimestampDifferenceMilliseconds(now,
										   TimestampTzPlusMilliseconds(known->visited_at, msec));
}

/*
 * The database to visit next, and the time until then; NULL if there is none.  Of several that
 * are due, it is the one that has waited longest.  So a database that always has more to do
 * does not keep others waiting whose interval is over.
 */
static Database *
next_database(List *databases, long *msec)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz visited_at = 0;
	Database *next = NULL;
	ListCell *lc;

	*msec = (long) (idem_purge_interval * 1000);
	foreach(lc, databases)
	{
		Database *database = lfirst(lc);
		const Known *known = get_known(database->oid);
		long left = msec_to_visit(known, now);

		if (next != NULL && (left > *msec || (left == *msec && known->visited_at >= visited_at)))
			continue;
		next = database;
		visited_at = known->visited_at;
		*msec = left;
	}
	return next;
}

/* Visit the databases that are due.  Returns how long to sleep; negative: until a signal. */
static long
purge_due(void)
{
	TimestampTz listed_at;
	List *databases;

	if (idem_purge_interval == 0)
		return -1;
	databases = list_databases();
	listed_at = GetCurrentTimestamp();
	tell = false;
	/* a changed setting needs a new list */
	while (idem_purge_interval > 0 && !tell &&
		   !has_passed(LIST_MSEC, listed_at, GetCurrentTimestamp()))
	{
		long left;
		Database *database = next_database(databases, &left);
		Known *known;

		if (database == NULL || left > 0)
			return left;
		known = get_known(database->oid);
		known->more = purge_database(database);
		known->visited_at = GetCurrentTimestamp();
	}
	return 0;
}

void
idem_launcher_main(Datum arg)
{
	MemoryContext list;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	start_process();
	/* no database, so only the shared catalogs */
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	list = AllocSetContextCreate(TopMemoryContext, "idempotency purge list", ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(list);
	/* the server runs: remove the files that it read at its start, even without any calls */
	(void) shmem_get(&area);

	for (;;)
	{
		long left = purge_due();

		MemoryContextReset(list);
		if (left != 0)
			wait_for_latch(left);
		CHECK_FOR_INTERRUPTS();
		reload();
	}
}

void
worker_init(void)
{
	BackgroundWorker launcher;

	shmem_register(&area);
	/* pg_upgrade must not have other sessions */
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	describe(&launcher, "idempotency purge launcher", "idem_launcher_main");
	launcher.bgw_restart_time = RESTART_SECONDS;
	RegisterBackgroundWorker(&launcher);
}
