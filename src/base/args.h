/*-------------------------------------------------------------------------
 *
 * args.h
 *	  Arguments of SQL functions that are not STRICT: NULL means "not given".
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ARGS_H
#define IDEM_ARGS_H

#include "access/detoast.h"
#include "fmgr.h"
#include "utils/timestamp.h"

#include "base/errors.h"
#include "base/guc.h"
#include "base/key.h"

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

/* Raises 54000 if a jsonb value is too large to store. */
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
