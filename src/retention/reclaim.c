/*-------------------------------------------------------------------------
 *
 * reclaim.c
 *	  Make the space of purged rows available to new ones.
 *
 * The table access method vacuums, through the entry point that VACUUM uses as well.  The command
 * itself cannot be used: it starts transactions of its own, which a procedure cannot let it do.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/multixact.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/visibilitymap.h"
#include "commands/vacuum.h"
#include "miscadmin.h"
#include "postmaster/autovacuum.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/relation.h"
#include "base/subtransaction.h"
#include "retention/reclaim.h"

/*
 * When it pays: so many deleted tuples, and that part of the rows.  Autovacuum asks for less (see
 * the tables' storage parameters), but naps in between.  A vacuum may write a whole page to WAL
 * for each page of an index.
 */
#define MIN_DELETED 1000
#define MIN_PART 0.2

/*
 * What is left to autovacuum: more pages to read than this, 64 MB; a table that is nearly as old as
 * it may become; and a table of 8 MB or more with fewer rows than this to a page, where at least 3
 * would fit, since larger ones are stored out of line.
 */
#define MAX_PAGES 8192
#define OLD 0.9
#define SPARSE_PAGES 1024
#define SPARSE_ROWS 2

static volatile sig_atomic_t timed_out = false;

/*
 * Runs in a signal handler, which then sets the latch.  A user who cancels the purge at this
 * moment is not heard.
 */
static void
cancel_vacuum(void)
{
	timed_out = true;
	QueryCancelPending = true;
	InterruptPending = true;
}

/* Not a deadline to be checked now and then: vacuum may wait for a cursor's pin on an index page. */
static TimeoutId
start_clock(int msec)
{
	static TimeoutId id = MAX_TIMEOUTS;

	if (id == MAX_TIMEOUTS)
		id = RegisterTimeout(USER_TIMEOUT, cancel_vacuum);
	timed_out = false;
	enable_timeout_after(id, msec);
	return id;
}

/* Then a cancel may be that of the statement's timeout, and the statement must not go on. */
static bool
is_statement_over(void)
{
	TimestampTz end = get_timeout_finish_time(STATEMENT_TIMEOUT);

	return StatementTimeout > 0 && end != 0 && end <= GetCurrentTimestamp();
}

/* The vacuum may have ended before it saw that it was cancelled. */
static void
stop_clock(TimeoutId id)
{
	disable_timeout(id, false);
	if (timed_out && !is_statement_over())
		QueryCancelPending = false;
}

/* NULL if another session keeps vacuum out, or has dropped the table. */
static Relation
try_open(Oid relid)
{
	if (!ConditionalLockRelationOid(relid, ShareUpdateExclusiveLock))
		return NULL;
	return try_table_open(relid, NoLock);
}

/*
 * Is autovacuum about to vacuum the table against wraparound?  Ours would be as aggressive: it
 * would read all pages, and wait for pins.
 */
static bool
is_old(Relation rel)
{
	TransactionId xid = ReadNextTransactionId() - (TransactionId) (autovacuum_freeze_max_age * OLD);
	MultiXactId multi =
		ReadNextMultiXactId() - (MultiXactId) (autovacuum_multixact_freeze_max_age * OLD);

	if (xid < FirstNormalTransactionId)
		xid -= FirstNormalTransactionId;
	if (multi < FirstMultiXactId)
		multi -= FirstMultiXactId;
	return TransactionIdPrecedes(rel->rd_rel->relfrozenxid, xid) ||
		MultiXactIdPrecedes(rel->rd_rel->relminmxid, multi);
}

/* Only autovacuum gives pages back, and it does not come if we leave no dead rows to it. */
static bool
is_sparse(Relation rel)
{
	double pages = RelationGetNumberOfBlocks(rel);

	return pages > SPARSE_PAGES && pages * SPARSE_ROWS > Max(rel->rd_rel->reltuples, 0);
}

/* An owner who turns autovacuum off for the table has plans of his own. */
static bool
is_wanted(Relation rel, int64 deleted)
{
	const StdRdOptions *options = (const StdRdOptions *) rel->rd_options;

	if (options != NULL && !options->autovacuum.enabled)
		return false;
	if (is_old(rel) || is_sparse(rel))
		return false;
	return deleted >= MIN_DELETED + MIN_PART * Max(rel->rd_rel->reltuples, 0);
}

/* Pages that a vacuum reads, at most: it skips what is visible to all. */
static int64
pages_to_read(Relation rel)
{
	List *indexes = RelationGetIndexList(rel);
	int64 pages = RelationGetNumberOfBlocks(rel);
	BlockNumber visible;
	ListCell *lc;

	visibilitymap_count(rel, &visible, NULL);
	pages -= Min(visible, pages);
	foreach(lc, indexes)
	{
		Relation index = index_open(lfirst_oid(lc), AccessShareLock);

		pages += RelationGetNumberOfBlocks(index);
		index_close(index, NoLock);
	}
	return pages;
}

/*
 * Not aggressively, which would read pages that need not be read.  That, and giving back pages
 * at the end of the table, is autovacuum's business.
 */
static void
vacuum_relation(Relation rel)
{
	VacuumParams params = {
		.options = VACOPT_VACUUM,
		.freeze_min_age = -1,
		.freeze_table_age = PG_INT32_MAX,
		.multixact_freeze_min_age = -1,
		.multixact_freeze_table_age = PG_INT32_MAX,
		.index_cleanup = VACOPTVALUE_AUTO,
		.truncate = VACOPTVALUE_DISABLED,
		.nworkers = -1,
	};

	table_relation_vacuum(rel, &params, GetAccessStrategy(BAS_VACUUM));
	idem_pgstat_forget_tuples(rel);
}

/* As the owner, since an index may have functions of his. */
static void
vacuum_as_owner(Relation rel, Relation toast)
{
	OwnerContext owner;

	owner_become(rel, &owner);
	idem_restrict_search_path();
	PushActiveSnapshot(GetTransactionSnapshot());
	vacuum_relation(rel);
	if (toast != NULL)
		vacuum_relation(toast);
	PopActiveSnapshot();
	owner_leave(&owner);
}

static bool
try_vacuum(const char *table, int64 deleted)
{
	Relation rel = try_open(relation_find(table));
	Relation toast = NULL;
	bool done = false;

	if (rel == NULL)
		return false;
	relation_check_plain(rel);
	if (OidIsValid(rel->rd_rel->reltoastrelid))
		toast = try_open(rel->rd_rel->reltoastrelid);
	if (is_wanted(rel, deleted) && (toast != NULL || !OidIsValid(rel->rd_rel->reltoastrelid)))
	{
		if (pages_to_read(rel) + (toast == NULL ? 0 : pages_to_read(toast)) <= MAX_PAGES)
			vacuum_as_owner(rel, toast);
		done = true;
	}
	if (toast != NULL)
		table_close(toast, NoLock);
	table_close(rel, NoLock);
	return done;
}

/* Did the vacuum end since it would have had to wait?  Then autovacuum will do it. */
static bool
is_wait(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		(error->sqlerrcode == ERRCODE_QUERY_CANCELED && timed_out && !is_statement_over());
}

bool
reclaim_space(const char *table, int64 deleted, int max_msec)
{
	MemoryContext memory;
	MemoryContext old;
	Subtransaction sub;
	TimeoutId clock;
	volatile bool done = true;

	if (deleted < MIN_DELETED)
		return false;
	memory =
		AllocSetContextCreate(CurrentMemoryContext, "idempotency vacuum", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(memory);
	subtransaction_begin(&sub);
	clock = start_clock(max_msec);
	PG_TRY();
	{
		done = try_vacuum(table, deleted);
		stop_clock(clock);
		subtransaction_commit(&sub);
	}
	PG_CATCH();
	{
		ErrorData *error;

		stop_clock(clock);
		error = subtransaction_catch(&sub);
		if (!is_wait(error))
			ReThrowError(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(memory);
	return done;
}
