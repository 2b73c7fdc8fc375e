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

/* Record that a purge has ended. */
extern void stats_purged(void);

/* Does a database have counters, if only zeros?  False without shared memory. */
extern bool stats_has_database(Oid database);

#endif /* IDEM_STATS_H */
