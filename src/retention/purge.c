/*-------------------------------------------------------------------------
 *
 * purge.c
 *	  A purge: one pass over all tables of the extension, in batches.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_subscription_rel.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "postmaster/interrupt.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/args.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/guc.h"
#include "base/interval.h"
#include "base/relation.h"
#include "base/result_row.h"
#include "retention/databases.h"
#include "retention/purge.h"
#include "retention/reclaim.h"
#include "retention/sweep.h"
#include "stat/stats.h"
#include "store/shard.h"

PG_FUNCTION_INFO_V1(idem_purge);

/* a new claim of a key in the batch waits for the commit; keep that wait below 100 ms */
#define BATCH_MSEC 50

/* a vacuum at the end of a purge; claims do not wait for it, but whoever has called the purge does */
#define RECLAIM_MSEC 500

#define PROGRESS_MSEC 5000

static const char *const tables[PURGE_NTABLES] = {
	[PURGE_KEYS] = "idem_keys",
	[PURGE_TOKENS] = "idem_tokens",
	[PURGE_CODES] = "idem_codes",
};

/* the position that names the table to begin with */
#define POSITION_TABLE PURGE_NTABLES

/* the first of those that count tuples whose space was not reclaimed yet */
#define POSITION_DEAD (PURGE_NTABLES + 1)

StaticAssertDecl(POSITION_DEAD + PURGE_NTABLES == DATABASE_NPOSITIONS,
				 "a position and a count for each table, and a position of tables");

/* Progress of a purge. */
typedef struct Progress
{
	TimestampTz started_at;
	TimestampTz told_at;
	int64 pages_read;
	int64 pages_left;
} Progress;

/* ------------------------------------------------------------------------
 * Positions
 * ------------------------------------------------------------------------
 */

/* Start at random, so that purges with limits reach all pages eventually. */
static uint64
unknown_position(const Purge *purge)
{
	if (purge->max_rows < PG_INT64_MAX || !TIMESTAMP_IS_NOEND(purge->deadline))
		return pg_prng_uint32(&pg_global_prng_state);
	return 0;
}

static uint64
get_position(const Purge *purge, int which)
{
	pg_atomic_uint64 *positions = database_positions();

	if (positions != NULL)
		return pg_atomic_read_u64(&positions[which]);
	return unknown_position(purge);
}

static void
set_position(int which, uint64 position)
{
	pg_atomic_uint64 *positions = database_positions();

	if (positions != NULL)
		pg_atomic_write_u64(&positions[which], position);
}

/* Add to the table's dead tuples.  Returns their number. */
static int64
count_dead(Purge *purge, int table, int64 n)
{
	pg_atomic_uint64 *positions = database_positions();

	if (positions != NULL)
		return (int64) pg_atomic_add_fetch_u64(&positions[POSITION_DEAD + table], n);
	return purge->dead[table] += n;
}

/* What another purge has deleted meanwhile is forgotten as well; the next ones will do. */
static void
forget_dead(Purge *purge, int table)
{
	set_position(POSITION_DEAD + table, 0);
	purge->dead[table] = 0;
}

/* ------------------------------------------------------------------------
 * Going through the tables
 * ------------------------------------------------------------------------
 */

const char *
purge_table_name(int table)
{
	return tables[table];
}

int64
purge_removed(const Purge *purge)
{
	int64 sum = 0;

	for (int i = 0; i < PURGE_NTABLES; i++)
		sum += purge->removed[i];
	return sum;
}

/* Report progress.  The estimate assumes that the pages left are like those already read. */
static void
tell_progress(const Purge *purge, Progress *progress)
{
	TimestampTz now = GetCurrentTimestamp();
	int64 removed = purge_removed(purge);

	if (!purge->tells || !TimestampDifferenceExceeds(progress->told_at, now, PROGRESS_MSEC))
		return;
	progress->told_at = now;
	ereport(NOTICE,
			(errmsg("%lld rows removed, about %.0f left, %.0f rows per second", (long long) removed,
					(double) removed * progress->pages_left / Max(progress->pages_read, 1),
					removed * (double) USECS_PER_SEC / Max(now - progress->started_at, 1))));
}

static bool
is_over(const Purge *purge)
{
	if (purge->commit == NULL && purge->tuples >= purge->batch_size)
		return true;
	return purge_removed(purge) >= purge->max_rows || ShutdownRequestPending ||
		GetCurrentTimestamp() >= purge->deadline;
}

/* Purge from page "from" up to "end".  False if the purge ended before that. */
static bool
purge_pages(Purge *purge, Progress *progress, int table, Oid shard, BlockNumber from,
			BlockNumber end)
{
	SweepTable swept_table = {tables[table], shard};

	while (from < end)
	{
		SweepLimits limits = {
			.max_rows = purge->max_rows - purge_removed(purge),
			.max_tuples = purge->batch_size - (purge->commit == NULL ? purge->tuples : 0),
			.max_msec = BATCH_MSEC,
		};
		SweepBatch batch;
		bool swept;

		if (is_over(purge))
			return false;
		/* if these pages cannot be read, the next purge continues after them */
		if (!OidIsValid(shard))
			set_position(table, from + Min(end - from, SWEEP_MAX_PAGES));
		PushActiveSnapshot(GetTransactionSnapshot());
		swept = sweep_batch(&swept_table, purge->nowait, from, end, &limits, &batch);
		PopActiveSnapshot();
		if (!swept)
		{
			/* a shard may be gone as well, and the log is to name tables of the extension */
			purge->locked[table] |= !OidIsValid(shard);
			return true;
		}
		stats_count(STAT_PURGED, batch.deleted);
		if (purge->commit != NULL)
			purge->commit();

		/* count only what is committed */
		if (purge->commit != NULL && !OidIsValid(shard))
			(void) count_dead(purge, table, batch.tuples);
		purge->removed[table] += batch.deleted;
		purge->tuples += batch.tuples;
		purge->pages_read += batch.next - from;
		progress->pages_read += batch.next - from;
		progress->pages_left -= batch.next - from;
		from = batch.next;
		if (!OidIsValid(shard))
			set_position(table, from);
		tell_progress(purge, progress);
	}
	return true;
}

/*
 * Even if the purge is cut short.  If nothing can be removed because of an old snapshot, the next
 * attempt waits until as much was deleted once more.
 */
static void
reclaim(Purge *purge, int table)
{
	int64 msec = (purge->deadline - GetCurrentTimestamp()) / 1000;

	if (purge->commit == NULL || msec <= 0 || ShutdownRequestPending)
		return;
	if (reclaim_space(tables[table], count_dead(purge, table, 0), (int) Min(msec, RECLAIM_MSEC)))
		forget_dead(purge, table);
	purge->commit();
}

/*
 * Does a subscription write to the table?  Then the publisher's purges arrive, and ours would
 * lose keys: the publisher claims an expired key again by an UPDATE of its row, and a subscriber
 * ignores an UPDATE whose row is not there.
 */
static bool
is_subscribed(const char *name)
{
	Relation rel = table_open(SubscriptionRelRelationId, AccessShareLock);
	ScanKeyData skey;
	SysScanDesc scan;
	bool found;

	ScanKeyInit(&skey, Anum_pg_subscription_rel_srrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relation_find(name)));
	scan = systable_beginscan(rel, SubscriptionRelSrrelidSrsubidIndexId, true, NULL, 1, &skey);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/* Purge all pages, from a position modulo their number, wrapping around.  False as above. */
static bool
purge_from(Purge *purge, Progress *progress, int table, Oid shard, uint64 position,
		   BlockNumber pages)
{
	BlockNumber start = pages == 0 ? 0 : (BlockNumber) (position % pages);

	progress->pages_read = 0;
	progress->pages_left = pages;
	return purge_pages(purge, progress, table, shard, start, pages) &&
		purge_pages(purge, progress, table, shard, 0, start);
}

/* From where the last purge ended.  False as above. */
static bool
purge_table(Purge *purge, Progress *progress, int table)
{
	SweepTable member = {tables[table], InvalidOid};
	BlockNumber pages;
	bool complete;

	if (is_subscribed(tables[table]))
	{
		if (purge->tells)
			ereport(NOTICE,
					(errmsg("table \"%s\" is not purged, because a subscription writes to it",
							tables[table])));
		return true;
	}
	purge->locked[table] = !sweep_pages(&member, purge->nowait, &pages);
	if (purge->locked[table])
		return true;
	complete = purge_from(purge, progress, table, InvalidOid, get_position(purge, table), pages);
	if (!purge->locked[table])
		reclaim(purge, table);
	return complete;
}

/* The shards to purge, kept over the commits of a purge. */
static Oid *shards = NULL;
static int max_shards = 0;

/* Their number; -1 if the table of keys is locked. */
static int
list_shards(bool nowait)
{
	List *list;
	int n = 0;
	ListCell *lc;

	if (!shard_tables(nowait, &list))
		return -1;
	if (list_length(list) > max_shards)
	{
		Size size = list_length(list) * sizeof(Oid);

		shards =
			shards == NULL ? MemoryContextAlloc(TopMemoryContext, size) : repalloc(shards, size);
		max_shards = list_length(list);
	}
	foreach(lc, list)
		shards[n++] = lfirst_oid(lc);
	list_free(list);
	return n;
}

/*
 * If the keys are distributed, those of the shards that are on this node.  The shards need not
 * be locked against moves: a copy that is made meanwhile has expired rows of its own, which the
 * other node purges.  Where a purge of one ended is not remembered: it has a part of the keys only.
 */
static bool
purge_shards(Purge *purge, Progress *progress)
{
	int n = list_shards(purge->nowait);

	if (n < 0)
		purge->locked[PURGE_KEYS] = true;
	for (int i = 0; i < n; i++)
	{
		SweepTable table = {tables[PURGE_KEYS], shards[i]};
		BlockNumber pages;

		if (!sweep_pages(&table, purge->nowait, &pages))
			continue;
		if (!purge_from(purge, progress, PURGE_KEYS, table.shard, unknown_position(purge), pages))
			return false;
	}
	return true;
}

void
purge_run(Purge *purge)
{
	Progress progress = {.started_at = GetCurrentTimestamp()};
	int first = (int) (get_position(purge, POSITION_TABLE) % PURGE_NTABLES);

	progress.told_at = progress.started_at;
	purge->complete = true;
	for (int i = 0; i < PURGE_NTABLES && purge->complete; i++)
	{
		int table = (first + i) % PURGE_NTABLES;

		/* even if this table fails or is cut short every time, the others still get a turn */
		set_position(POSITION_TABLE, table + 1);
		purge->complete = purge_table(purge, &progress, table) &&
			(table != PURGE_KEYS || purge_shards(purge, &progress));
	}
	stats_purged();
}

/* ------------------------------------------------------------------------
 * idem_purge
 * ------------------------------------------------------------------------
 */

static int64
arg_positive(int64 value, const char *what, int64 max)
{
	if (value < 1)
		error_range(what, 1, max);
	return value;
}

static void
get_purge(FunctionCallInfo fcinfo, Purge *purge)
{
	const Interval *duration = arg_interval(fcinfo, 2);

	memset(purge, 0, sizeof(*purge));
	purge->batch_size = PG_ARGISNULL(0)
		? idem_purge_batch_size
		: arg_positive(PG_GETARG_INT32(0), "batch_size", PG_INT32_MAX);
	purge->max_rows =
		PG_ARGISNULL(1) ? PG_INT64_MAX : arg_positive(PG_GETARG_INT64(1), "max_rows", PG_INT64_MAX);
	purge->deadline = duration == NULL
		? DT_NOEND
		: ttl_after(GetCurrentTimestamp(), duration, "max_duration", NULL);
	purge->tells = true;
}

/* False in a transaction block, a function, or an exception block of PL/pgSQL. */
static bool
can_commit(FunctionCallInfo fcinfo)
{
	return fcinfo->context != NULL && IsA(fcinfo->context, CallContext) &&
		!castNode(CallContext, fcinfo->context)->atomic && !IsSubTransaction();
}

/*
 * Commit, and continue in READ COMMITTED.  In SERIALIZABLE, a sweep would count as a read of the
 * whole table, and conflict with every concurrent write.
 */
static void
commit_caller(void)
{
	SPI_commit_and_chain();
	XactIsoLevel = XACT_READ_COMMITTED;
}

/*
 * Commit asynchronously.  A claim of a key in the batch waits for this commit, and should not also
 * wait for the disk or a standby: there may be megabytes to flush.  If a crash undoes a batch, the
 * next purge repeats it.
 */
static void
commit_batch(void)
{
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	commit_caller();
}

static Datum
purge_row(const Purge *purge)
{
	static TupleDesc desc = NULL;
	static const RowColumn columns[PURGE_NTABLES] = {
		[PURGE_KEYS] = {"keys", INT8OID},
		[PURGE_TOKENS] = {"tokens", INT8OID},
		[PURGE_CODES] = {"codes", INT8OID},
	};
	Datum values[PURGE_NTABLES];
	bool isnull[PURGE_NTABLES] = {0};

	for (int i = 0; i < PURGE_NTABLES; i++)
		values[i] = Int64GetDatum(purge->removed[i]);
	return row_datum(&desc, columns, PURGE_NTABLES, values, isnull);
}

/*
 * Procedure idem_purge(batch_size int, max_rows bigint, max_duration interval,
 *						INOUT keys bigint, INOUT tokens bigint, INOUT codes bigint)
 */
Datum
idem_purge(PG_FUNCTION_ARGS)
{
	bool atomic = !can_commit(fcinfo);
	int isolation = XactIsoLevel;
	Purge purge;

	get_purge(fcinfo, &purge);
	if (XactReadOnly)
		error_purge_read_only();
	if (!atomic)
		purge.commit = commit_batch;
	SPI_connect_ext(atomic ? 0 : SPI_OPT_NONATOMIC);
	/* commit the caller's own changes with the caller's settings */
	if (!atomic &&
		(IsolationUsesXactSnapshot() || TransactionIdIsValid(GetTopTransactionIdIfAny())))
		commit_caller();
	purge_run(&purge);
	/* the caller continues at its own isolation level, as after COMMIT AND CHAIN */
	XactIsoLevel = isolation;
	SPI_finish();
	if (atomic && !purge.complete && purge_removed(&purge) < purge.max_rows)
		ereport(NOTICE,
				(errmsg("purged only one batch, of %lld rows", (long long) purge_removed(&purge)),
				 errdetail("Batches cannot be committed inside a transaction block."),
				 errhint("Call idem_purge outside of one.")));
	return purge_row(&purge);
}
