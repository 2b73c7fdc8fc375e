/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  Cumulative counters for operators: view idem_stat.
 *
 * A session counts locally and adds its counts to shared memory when its transaction ends, so
 * that a loop of calls does not move a cache line between processors.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/database_slots.h"
#include "base/shmem.h"
#include "stat/stats.h"

PG_FUNCTION_INFO_V1(idem_stat_counters);
PG_FUNCTION_INFO_V1(idem_stat_reset);

/* Counters change without a lock, also while somebody resets or reads them. */
typedef struct DatabaseStats
{
	pg_atomic_uint64 reset_at;
	pg_atomic_uint64 purged_at; /* 0: never */
	pg_atomic_uint64 counter[STAT_NCOUNTERS];
} DatabaseStats;

/* A database that finds no slot counts nothing. */
typedef struct StatsTable
{
	DatabaseSlots slots;
	pg_atomic_flag told_full;
	DatabaseStats databases[MAX_DATABASES];
} StatsTable;

static Size stats_size(void);
static void stats_create(void *address, int tranche);
static void stats_save(void *address, ShmemFile *file);
static bool stats_load(void *address, ShmemFile *file);

static ShmemArea area = {
	.name = "idempotency_stat",
	.size = stats_size,
	.create = stats_create,
	.save = stats_save,
	.load = stats_load,
};

/* of this session's database; NULL: not looked for yet, or no place */
static DatabaseStats *mine = NULL;

static int64 unreported[STAT_NCOUNTERS];
static bool has_unreported = false;

/* ------------------------------------------------------------------------
 * The table
 * ------------------------------------------------------------------------
 */

static Size
stats_size(void)
{
	return sizeof(StatsTable);
}

static void
set_counters(DatabaseStats *stats, uint64 reset_at, const uint64 *counters)
{
	pg_atomic_write_u64(&stats->reset_at, reset_at);
	for (int i = 0; i < STAT_NCOUNTERS; i++)
		pg_atomic_write_u64(&stats->counter[i], counters == NULL ? 0 : counters[i]);
}

static void
stats_create(void *address, int tranche)
{
	StatsTable *table = address;

	database_slots_create(&table->slots, tranche);
	pg_atomic_init_flag(&table->told_full);
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		DatabaseStats *stats = &table->databases[i];

		pg_atomic_init_u64(&stats->reset_at, 0);
		pg_atomic_init_u64(&stats->purged_at, 0);
		for (int j = 0; j < STAT_NCOUNTERS; j++)
			pg_atomic_init_u64(&stats->counter[j], 0);
	}
}

static void
clear_stats(void *array, int slot)
{
	StatsTable *table = array;

	pg_atomic_write_u64(&table->databases[slot].purged_at, 0);
	set_counters(&table->databases[slot], GetCurrentTimestamp(), NULL);
}

/* Once, until the server is restarted. */
static void
tell_full(StatsTable *table)
{
	if (pg_atomic_test_set_flag(&table->told_full))
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no place is left for the counters of database \"%s\"",
						get_database_name(MyDatabaseId)),
				 errdetail("View idem_stat has counters of %d databases at most.", MAX_DATABASES),
				 errhint("Nothing else is affected. A database that is dropped makes room for "
						 "another.")));
}

/* This session's; made if there is none and there is a place. */
static DatabaseStats *
find_mine(void)
{
	static bool no_place = false;
	StatsTable *table;
	int slot;

	if (mine != NULL || no_place)
		return mine;
	table = shmem_try(&area);
	if (table == NULL)
		return NULL;
	slot = database_slot(&table->slots, clear_stats, table);
	no_place = slot < 0;
	if (no_place)
		tell_full(table);
	else
		mine = &table->databases[slot];
	return mine;
}

/* ------------------------------------------------------------------------
 * Counting
 * ------------------------------------------------------------------------
 */

void
stats_count(StatCounter counter, int64 n)
{
	/* look it up now: the end of a transaction is too late for a catalog access */
	if (find_mine() == NULL)
		return;
	unreported[counter] += n;
	has_unreported = true;
}

static void
report(void)
{
	if (!has_unreported)
		return;
	for (int i = 0; i < STAT_NCOUNTERS; i++)
		if (unreported[i] != 0)
			(void) pg_atomic_fetch_add_u64(&mine->counter[i], unreported[i]);
	memset(unreported, 0, sizeof(unreported));
	has_unreported = false;
}

void
stats_purged(void)
{
	DatabaseStats *stats = find_mine();

	if (stats != NULL)
		pg_atomic_write_u64(&stats->purged_at, (uint64) GetCurrentTimestamp());
}

bool
stats_has_database(Oid database)
{
	StatsTable *table = shmem_get(&area);

	return table != NULL && database_has_slot(&table->slots, database);
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		report();
}

void
stats_init(void)
{
	shmem_register(&area);
	RegisterXactCallback(xact_callback, NULL);
}

/* ------------------------------------------------------------------------
 * Copies
 * ------------------------------------------------------------------------
 */

/* Of a database's counters, and as it is in the file over a restart. */
typedef struct SavedStats
{
	Oid database;
	uint64 reset_at;
	uint64 purged_at;
	uint64 counter[STAT_NCOUNTERS];
} SavedStats;

static void
copy_stats(StatsTable *table, int slot, SavedStats *copy)
{
	DatabaseStats *stats = &table->databases[slot];

	memset(copy, 0, sizeof(*copy));
	copy->database = table->slots.database[slot];
	copy->reset_at = pg_atomic_read_u64(&stats->reset_at);
	copy->purged_at = pg_atomic_read_u64(&stats->purged_at);
	for (int i = 0; i < STAT_NCOUNTERS; i++)
		copy->counter[i] = pg_atomic_read_u64(&stats->counter[i]);
}

/* ------------------------------------------------------------------------
 * Over a restart
 * ------------------------------------------------------------------------
 */

static void
stats_save(void *address, ShmemFile *file)
{
	StatsTable *table = address;

	for (int i = 0; i < MAX_DATABASES; i++)
	{
		SavedStats saved;

		copy_stats(table, i, &saved);
		shmem_write(file, &saved, sizeof(saved));
	}
}

static bool
stats_load(void *address, ShmemFile *file)
{
	StatsTable *table = address;

	for (int i = 0; i < MAX_DATABASES; i++)
	{
		SavedStats saved;

		if (!shmem_read(file, &saved, sizeof(saved)))
			return false;
		table->slots.database[i] = saved.database;
		pg_atomic_write_u64(&table->databases[i].purged_at, saved.purged_at);
		set_counters(&table->databases[i], saved.reset_at, saved.counter);
	}
	return true;
}

/* ------------------------------------------------------------------------
 * SQL
 * ------------------------------------------------------------------------
 */

#define NCOLUMNS (STAT_NCOUNTERS + 3) /* and datid, stats_reset, last_purge */

static void
put_row(ReturnSetInfo *rsinfo, const SavedStats *stats)
{
	Datum values[NCOLUMNS];
	bool isnull[NCOLUMNS] = {0};
	int n = 0;

	values[n++] = ObjectIdGetDatum(stats->database);
	for (int i = 0; i < STAT_NCOUNTERS_0_1; i++)
		values[n++] = Int64GetDatum((int64) stats->counter[i]);
	values[n++] = TimestampTzGetDatum((TimestampTz) stats->reset_at);
	isnull[n] = stats->purged_at == 0;
	values[n++] = TimestampTzGetDatum((TimestampTz) stats->purged_at);
	/* the definition of an older version ends before these; the server ignores the rest */
	for (int i = STAT_NCOUNTERS_0_1; i < STAT_NCOUNTERS; i++)
		values[n++] = Int64GetDatum((int64) stats->counter[i]);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
}

/*
 * idem_stat_counters() RETURNS SETOF record
 *
 * Of all databases that have counted something, and of this one; none without
 * shared memory.  What this transaction has counted is among it.
 */
Datum
idem_stat_counters(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	StatsTable *table;
	SavedStats *copies;
	int n = 0;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	(void) find_mine();
	report();
	table = shmem_try(&area);
	if (table == NULL)
		return (Datum) 0;
	/* copy first: a tuplestore may write to a file, which must not happen under the lock */
	copies = palloc(MAX_DATABASES * sizeof(SavedStats));
	LWLockAcquire(&table->slots.lock, LW_SHARED);
	for (int i = 0; i < MAX_DATABASES; i++)
		if (OidIsValid(table->slots.database[i]))
			copy_stats(table, i, &copies[n++]);
	LWLockRelease(&table->slots.lock);
	for (int i = 0; i < n; i++)
		put_row(rsinfo, &copies[i]);
	return (Datum) 0;
}

/*
 * idem_stat_reset() RETURNS void
 *
 * Of this database.
 */
Datum
idem_stat_reset(PG_FUNCTION_ARGS)
{
	if (find_mine() != NULL)
	{
		memset(unreported, 0, sizeof(unreported));
		has_unreported = false;
		set_counters(mine, GetCurrentTimestamp(), NULL);
	}
	PG_RETURN_VOID();
}
