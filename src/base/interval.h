/*-------------------------------------------------------------------------
 *
 * interval.h
 *	  Convert intervals from callers to points in time.
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
 * The length of an interval in microseconds, for all functions of the extension.  It is
 * that of extract(epoch from ...): days of 24 hours, months of 30 days, years of 365.25
 * days.  So it depends neither on the date nor on TimeZone.
 */
extern int128 ttl_usecs(const Interval *interval);

/*
 * from + ttl.  Infinity if the ttl is 1000 years or more, or 'infinity' on servers whose
 * intervals have it.  22023, naming "what" and the key (unless NULL), if the ttl is not
 * positive.  Warns if it is longer than 100 years but does not mean "for ever".
 */
extern TimestampTz
ttl_after(TimestampTz from, const Interval *ttl, const char *what, const IdemKey *key);

/* idempotency.default_ttl as an interval */
extern void ttl_default(Interval *out);

/*
 * Until when to wait for a caller that passed "wait"; "from" itself if "wait" is zero.
 * 22023 if it is negative.
 */
extern TimestampTz ttl_wait_until(TimestampTz from, const Interval *wait, const IdemKey *key);

#endif /* IDEM_INTERVAL_H */
