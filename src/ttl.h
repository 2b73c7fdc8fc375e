/*-------------------------------------------------------------------------
 *
 * ttl.h
 *	  Intervals that callers give, turned into moments of the wall clock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_TTL_H
#define IDEM_TTL_H

#include "datatype/timestamp.h"

#include "key.h"

/*
 * from + ttl.  'infinity' for 1000 years or more, and for 'infinity' where
 * the server's interval has it.  22023, naming "what" and the key (unless NULL), unless the
 * result is later than "from": '1 mon -29 days' is a positive interval and
 * still goes backwards from a day in February.
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

#endif /* IDEM_TTL_H */
