/*-------------------------------------------------------------------------
 *
 * args.h
 *	  Arguments of SQL functions that are not STRICT: NULL is "not given".
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ARGS_H
#define IDEM_ARGS_H

#include "access/detoast.h"
#include "fmgr.h"
#include "utils/timestamp.h"

#include "errors.h"
#include "guc.h"
#include "key.h"
#include "store.h"

static inline text *
arg_text(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : PG_GETARG_TEXT_PP(n);
}

static inline const Interval *
arg_interval(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : PG_GETARG_INTERVAL_P(n);
}

static inline int64
arg_fence(FunctionCallInfo fcinfo, int n)
{
	int64 fence;

	if (PG_ARGISNULL(n))
		return NO_FENCE;
	fence = PG_GETARG_INT64(n);
	/* 0 was never issued either, but it is a fence that was given */
	return fence == NO_FENCE ? 0 : fence;
}

/* A jsonb that is to be stored is refused (54000) if it is too large. */
static inline void
check_stored_jsonb(Datum value, const IdemKey *key, const char *what)
{
	Size size = toast_raw_datum_size(value) - VARHDRSZ;

	if (size > (Size) idem_max_result_size)
		error_too_large(key, what, size, idem_max_result_size);
}

static inline bool
arg_stored_jsonb(FunctionCallInfo fcinfo, int n, const IdemKey *key, const char *what, Datum *value)
{
	if (PG_ARGISNULL(n))
		return false;
	*value = PG_GETARG_DATUM(n);
	check_stored_jsonb(*value, key, what);
	return true;
}

#endif /* IDEM_ARGS_H */
