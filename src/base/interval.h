/*-------------------------------------------------------------------------
 *
 * interval.h
 *	  Intervals that callers give, turned into moments of the wall clock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_INTERVAL_H
#define IDEM_INTERVAL_H

#include "datatype/timestamp.h"

#include "base/key.h"

#ifndef HAVE_INT128
#error "idempotency needs a compiler with 128-bit integers"
#endif

/*
 * How long an interval is, in microseconds, for everything here that takes one: as
 * extract(epoch from ...) has it, with days of 24 hours, months of 30 days, and years
 * of 365.25.  So it depends neither on the date nor on TimeZone.
 */
extern int128 ttl_usecs(const Interval *interval);

/*
 * from + ttl.  'infinity' for 1000 years or more, and for 'infinity' where
 * the server's interval has it.  22023, naming "what" and the key (unless NULL), unless it
 * is longer than nothing.  A warning for more than 100 years that are not said to be
 * for ever.
 */
extern TimestampTz
ttl_after(TimestampTz from, const Interval *ttl, const char *what, const IdemKey *key);

/* idempotency.default_ttl as an interval */
extern void ttl_default(Interval *out);

/*
 * The moment until which a caller who gave "wait" is ready to wait; "from"
 * itself for an interval of nothing.  22023 for a negative one.
 */
extern TimestampTz ttl_wait_until(TimestampTz from, const Interval *wait, const IdemKey *key);

#endif /* IDEM_INTERVAL_H */
