/*-------------------------------------------------------------------------
 *
 * run_function.h
 *	  Run a function that was found, with JSON arguments and a JSON result.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RUN_FUNCTION_H
#define IDEM_RUN_FUNCTION_H

#include "call/find_function.h"

/*
 * Run the function as a statement of its own, with the caller's privileges: it sees what has
 * been committed until now, as far as the isolation level allows.  Afterwards "callee" is no
 * longer valid.  False if the result is NULL or void.
 */
extern bool function_run(Callee *callee, Jsonb *args, Datum *result);

#endif /* IDEM_RUN_FUNCTION_H */
