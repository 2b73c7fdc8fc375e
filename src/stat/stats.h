/*-------------------------------------------------------------------------
 *
 * stats.h
 *	  What happened, counted for operators: view idem_stat.
 *
 * Cumulative, one row a database, in shared memory; without it nothing is counted.
 * As with the server's own statistics, what a transaction did counts though it is
 * rolled back, and is seen by others when the transaction has ended.  Kept over a
 * clean restart if the library is preloaded; lost in a crash.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STATS_H
#define IDEM_STATS_H

#include "datatype/timestamp.h"
#include "port/atomics.h"

/* In the order of idem_stat_counters()' columns. */
typedef enum StatCounter
{
	STAT_STARTED,
	STAT_REPLAYED,
	STAT_IN_PROGRESS,
	STAT_MISMATCHED,
	STAT_FINISHED,
	STAT_RELEASED,
	STAT_TAKEN_OVER,
	STAT_CLAIMED,
	STAT_DUPLICATES,
	STAT_THROTTLE_ALLOWED,
	STAT_THROTTLE_REJECTED,
	STAT_THROTTLE_EVICTED,
	STAT_TOKENS_ISSUED,
	STAT_TOKENS_REDEEMED,
	STAT_TOKENS_REFUSED,
	STAT_CODES_ISSUED,
	STAT_CODES_VERIFIED,
	STAT_CODES_REFUSED,
	STAT_PURGED,
	STAT_GUARD_ERRORS,
	STAT_NCOUNTERS
} StatCounter;

extern void stats_init(void);

/* In a transaction; never fails. */
extern void stats_count(StatCounter counter, int64 n);

/*
 * What a purge of this database leaves to the next one: where it has come to in each
 * table.  NULL without shared memory.
 */
#define STATS_NPOSITIONS 4
extern pg_atomic_uint64 *stats_purge_positions(void);

/* A purge has ended. */
extern void stats_purged(void);

/*
 * The databases of this server that have counted something, palloc'd; how many.  Needs no
 * transaction; 0 without shared memory.
 */
extern int stats_databases(Oid **databases);

#endif /* IDEM_STATS_H */
