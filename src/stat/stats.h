/*-------------------------------------------------------------------------
 *
 * stats.h
 *	  Cumulative counters for operators: view idem_stat.
 *
 * One row for each database, in shared memory; without it nothing is counted.  As in the
 * server's own statistics, a transaction's work counts even if it is rolled back, and other
 * sessions see it when the transaction has ended.  A clean restart keeps the counters if the
 * library is preloaded; a crash loses them.
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
	STAT_FAILED,
	STAT_EXHAUSTED,
	STAT_NCOUNTERS
} StatCounter;

/* Later ones follow stats_reset and last_purge in idem_stat_counters(). */
#define STAT_NCOUNTERS_0_1 STAT_FAILED

extern void stats_init(void);

/* Call in a transaction.  Never fails. */
extern void stats_count(StatCounter counter, int64 n);

/*
 * The positions where the last purge of this database ended, for the next one.  NULL without
 * shared memory.
 */
#define STATS_NPOSITIONS 4
extern pg_atomic_uint64 *stats_purge_positions(void);

/* Record that a purge has ended. */
extern void stats_purged(void);

/*
 * Sets *databases to the palloc'd databases of this server that have counted something, and
 * returns their number; 0 without shared memory.  Needs no transaction.
 */
extern int stats_databases(Oid **databases);

#endif /* IDEM_STATS_H */
