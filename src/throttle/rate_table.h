/*-------------------------------------------------------------------------
 *
 * rate_table.h
 *	  The state of rate limits, in a table of fixed size in shared memory.
 *
 * A limit is known by a hash under a secret key, so that nobody can choose a key
 * that shares the state of another's.  Its state carries information until its
 * theoretical arrival time; after that it is as good as absent, and its place
 * may be reused at once.  When the state of all places is live, the one whose time
 * comes first makes room for a new limit, and is counted as evicted; or one of an owner
 * that has more than a quarter of all, if there is such an owner and that one is not its.
 *
 * About 90 bytes an entry: "idempotency.throttle_entries".
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RATE_TABLE_H
#define IDEM_RATE_TABLE_H

#include "datatype/timestamp.h"

#include "base/siphash.h"

/*
 * Theoretical arrival time: when the limit will be unused again.  Absent: 0.
 * Clock of limit_now(); the fraction of a microsecond is in units of the caller's,
 * who has one such unit for each limit.
 */
/* 10 years of 365.25 days, in microseconds */
#define LIMIT_MAX_AHEAD (INT64CONST(87660) * USECS_PER_HOUR)

typedef struct RateState
{
	int64 arrival; /* at most LIMIT_MAX_AHEAD after now */
	uint32 fraction;
} RateState;

/*
 * Look at a state, and change it or not: true if it is to be stored, which must
 * not move the arrival back.  Runs under a lock, maybe more than once: nothing but
 * arithmetic.
 */
typedef bool (*LimitChange)(RateState *state, void *arg);

extern void limit_init(void);

/* Is there shared memory for limits? */
extern bool limit_available(void);

/* Microseconds of a clock that nobody can set; since the machine's start, or so. */
extern int64 limit_now(void);

/* What identifies a limit, hashed.  There must be shared memory. */
extern SipHash limit_id(const void *data, Size len);

/* Who shares the table with others, by any bytes; looked at for a new limit only. */
typedef struct LimitOwner
{
	const void *data;
	Size len;
	int number; /* for rate_table.c, where there is no data */
} LimitOwner;

/* "now": of limit_now().  True if a live limit was evicted for this one. */
extern bool
limit_change(const SipHash *id, const LimitOwner *owner, int64 now, LimitChange change, void *arg);

#endif /* IDEM_RATE_TABLE_H */
