/*-------------------------------------------------------------------------
 *
 * ttl.c
 *	  Intervals that callers give, turned into moments of the wall clock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "errors.h"
#include "guc.h"
#include "ttl.h"

/* from here on a ttl means "for ever" */
#define FOREVER_YEARS 1000

/*
 * No single field may be further from zero than this, unless the whole means
 * "for ever": it keeps the sum inside timestamptz (4713 BC and later)
 * whatever the signs.
 */
#define FIELD_MAX_YEARS 2000

static char *
interval_display(const Interval *i)
{
	return DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(i)));
}

static void
error_interval(const Interval *i, const char *what, const IdemKey *key, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 key != NULL ? errmsg("invalid %s \"%s\" for idempotency key \"%s\"", what,
								  interval_display(i), key_display(key))
						 : errmsg("invalid %s \"%s\"", what, interval_display(i)),
			 errhint("%s", hint)));
}

static bool
interval_at_least(const Interval *i, int32 months)
{
	Interval limit = {.month = months};

	return DatumGetBool(
		DirectFunctionCall2(interval_ge, IntervalPGetDatum(i), IntervalPGetDatum(&limit)));
}

static bool
out_of_range(int64 field, int64 limit)
{
	return field > limit || field < -limit;
}

TimestampTz
ttl_after(TimestampTz from, const Interval *ttl, const char *what, const IdemKey *key)
{
	TimestampTz result;

	if (interval_at_least(ttl, FOREVER_YEARS * MONTHS_PER_YEAR))
		return DT_NOEND;

	if (out_of_range(ttl->month, FIELD_MAX_YEARS * MONTHS_PER_YEAR) ||
		out_of_range(ttl->day, FIELD_MAX_YEARS * INT64CONST(366)) ||
		out_of_range(ttl->time, FIELD_MAX_YEARS * INT64CONST(366) * USECS_PER_DAY))
		error_interval(ttl, what, key, "Give a positive interval.");

	/* the usual case needs no calendar */
	if (ttl->month == 0 && ttl->day == 0)
		result = from + ttl->time;
	else
		result = DatumGetTimestampTz(DirectFunctionCall2(
			timestamptz_pl_interval, TimestampTzGetDatum(from), IntervalPGetDatum(ttl)));
	if (result <= from)
		error_interval(ttl, what, key, "Adding it to the current time must lead to a later time.");
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
	if (!interval_at_least(wait, 0))
		error_interval(wait, "wait", key, "Give an interval of zero or more.");
	if (wait->month == 0 && wait->day == 0 && wait->time == 0)
		return from;
	return ttl_after(from, wait, "wait", key);
}
