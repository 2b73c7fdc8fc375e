/*-------------------------------------------------------------------------
 *
 * rate_table.h
 *	  The state of rate limits, in a table of fixed size in shared memory.
 *
 * A limit is identified by a hash under a secret key, so that a client cannot choose a key
 * that shares the state of another.  A state carries information until its theoretical
 * arrival time.  After that it equals an absent one, and its entry may be reused at once.
 * When all entries are live, a new limit evicts the entry with the earliest arrival time, and
 * the eviction is counted.  If that entry belongs to a light owner while another owner has
 * more than a quarter of all entries, an entry of the heavy owner is evicted instead.
 *
 * An entry takes about 90 bytes; "idempotency.throttle_entries" sets their number.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RATE_TABLE_H
#define IDEM_RATE_TABLE_H

#include "datatype/timestamp.h"

#include "base/siphash.h"

/* 10 years of 365.25 days, in microseconds */
#define LIMIT_MAX_AHEAD (INT64CONST(87660) * USECS_PER_HOUR)

/*
 * Theoretical arrival time: when the limit will be unused again, by limit_now()'s clock; 0 if
 * there is no entry.  The fraction is a part of a microsecond, in a unit that the caller chooses
 * for each limit.
 */
typedef struct RateState
{
	int64 arrival; /* at most LIMIT_MAX_AHEAD after now */
	uint32 fraction;
} RateState;

/*
 * Inspect a state and maybe change it.  Return true to store it; the arrival must not move
 * back then.  Runs under a lock, possibly more than once, so do nothing but arithmetic.
 */
typedef bool (*LimitChange)(RateState *state, void *arg);

extern void limit_init(void);

/* Is there shared memory for limits? */
extern bool limit_available(void);

/* Monotonic clock in microseconds, roughly since the machine started. */
extern int64 limit_now(void);

/* Hash the bytes that identify a limit.  Requires shared memory. */
extern SipHash limit_id(const void *data, Size len);

/* An owner of limits, identified by any bytes; used for a new limit only. */
typedef struct LimitOwner
{
	const void *data;
	Size len;
	int number; /* used by rate_table.c if data is NULL */
} LimitOwner;

/* "now" is from limit_now().  Returns true if a live limit was evicted for this one. */
extern bool
limit_change(const SipHash *id, const LimitOwner *owner, int64 now, LimitChange change, void *arg);

#endif /* IDEM_RATE_TABLE_H */
