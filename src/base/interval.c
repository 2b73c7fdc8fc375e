/*-------------------------------------------------------------------------
 *
 * interval.c
 *	  Convert intervals from callers to points in time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/int.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/errors.h"
#include "base/guc.h"
#include "base/interval.h"

/* a ttl this long means "for ever" */
#define FOREVER_YEARS 1000

/* a longer ttl is probably a mistake, such as nanoseconds passed as seconds */
#define ODD_YEARS 100

#define USECS_PER_YEAR (INT64CONST(36525) * USECS_PER_DAY / 100)

int128
ttl_usecs(const Interval *i)
{
	return (int128) (i->month / MONTHS_PER_YEAR) * USECS_PER_YEAR +
		((int128) (i->month % MONTHS_PER_YEAR) * DAYS_PER_MONTH + i->day) * USECS_PER_DAY + i->time;
}

static char *
interval_display(const Interval *i)
{
	return DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(i)));
}

/* Warn once per statement: an interval may be checked several times, and for each row. */
static void
warn_odd(const Interval *i, const char *what, const IdemKey *key)
{
	static TimestampTz warned_in = 0;

	if (warned_in == GetCurrentStatementStartTimestamp())
		return;
	warned_in = GetCurrentStatementStartTimestamp();
	ereport(WARNING,
			(key != NULL ? errmsg("%s \"%s\" for idempotency key \"%s\" is longer than %d years",
								  what, interval_display(i), key_display(key), ODD_YEARS)
						 : errmsg("%s \"%s\" is longer than %d years", what, interval_display(i),
								  ODD_YEARS),
			 errhint("Check the unit that the client sends. For ever is '1000 years'.")));
}

TimestampTz
ttl_after(TimestampTz from, const Interval *ttl, const char *what, const IdemKey *key)
{
	int128 usecs = ttl_usecs(ttl);
	TimestampTz result;

	/* "for ever" on purpose is given in years, or as 'infinity', whose months are maximal */
	if (usecs > ODD_YEARS * USECS_PER_YEAR && ttl->month < FOREVER_YEARS * MONTHS_PER_YEAR)
		warn_odd(ttl, what, key);
	if (usecs <= 0)
		error_interval(what, interval_display(ttl), key,
					   "Give an interval that is longer than nothing.");
	if (TIMESTAMP_IS_NOEND(from) || usecs >= FOREVER_YEARS * USECS_PER_YEAR)
		return DT_NOEND;
	if (pg_add_s64_overflow(from, (int64) usecs, &result) || !IS_VALID_TIMESTAMP(result))
		return DT_NOEND;
	return result;
}

void
ttl_default(Interval *out)
{
	memset(out, 0, sizeof(*out));
	if (idem_default_ttl < 0)
		out->month = FOREVER_YEARS * MONTHS_PER_YEAR;
	else
		out->time = idem_default_ttl * USECS_PER_SEC;
}

TimestampTz
ttl_wait_until(TimestampTz from, const Interval *wait, const IdemKey *key)
{
	int128 usecs = ttl_usecs(wait);

	if (usecs < 0)
		error_interval("wait", interval_display(wait), key, "Give an interval of zero or more.");
	return usecs == 0 ? from : ttl_after(from, wait, "wait", key);
}
