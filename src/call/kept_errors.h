/*-------------------------------------------------------------------------
 *
 * kept_errors.h
 *	  Errors of a function that idem_call() stores as its answer.
 *
 * A caller lists SQLSTATEs (five characters) and classes (two).  An error that says "try
 * again", or that the server has failed, is no answer: classes 08, 25, 40, 53, 55, 57, 58,
 * 72, F0, HV, XX and ID cannot be kept.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEPT_ERRORS_H
#define IDEM_KEPT_ERRORS_H

#include "utils/array.h"

typedef struct KeptErrors KeptErrors;

/* Check the array of text.  Raises 22004 or 22023. */
extern const KeptErrors *kept_errors(ArrayType *codes);

extern bool error_is_kept(const KeptErrors *kept, int sqlstate);

/* The error as jsonb: sqlstate, message, detail, hint, schema, table, column, constraint. */
extern Datum error_jsonb(const ErrorData *edata);

#endif /* IDEM_KEPT_ERRORS_H */
