/*-------------------------------------------------------------------------
 *
 * function.h
 *	  Run a function by name, with JSON arguments and a JSON result.
 *
 * Everything runs with the caller's privileges and search_path.  This code knows nothing of
 * claims.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_FUNCTION_H
#define IDEM_FUNCTION_H

#include "nodes/pg_list.h"
#include "utils/jsonb.h"

typedef struct Function Function;

/*
 * Find the function "name" or "name(argtypes)" for arguments passed by name; args may be
 * NULL.  Checks that the function exists (42883), that it is the only one (42725, with the
 * candidates in a hint), that the caller may execute it (42501), that it can be called this
 * way (0A000), and that args have a value for each parameter without a default and no
 * unknown names (22023).
 *
 * The result is valid until the next call of function_find() or function_run().
 */
extern Function *function_find(text *name, Jsonb *args);

/*
 * The same, but returns NULL if there is no function with that name or those types, and
 * does not check the names in args.  function_takes() checks them.
 */
extern Function *function_find_if_any(text *name, Jsonb *args);
extern bool function_takes(const Function *function, Jsonb *args);

/*
 * For a function that does not exist: what function_identity() would have returned, for
 * each schema in which the caller may have meant it.  List of char *.
 */
extern List *function_identities(text *name);

/*
 * The identity of a function: its qualified name, with the argument types if "name" has
 * them.  Without types, a function that has gained a parameter with a default is still the
 * same function.
 */
extern char *function_identity(const Function *function);

/*
 * Run the function as a statement of its own: it sees what has been committed until now, as
 * far as the isolation level allows.  False if the result is NULL or void.
 */
extern bool function_run(Function *function, Jsonb *args, Datum *result);

#endif /* IDEM_FUNCTION_H */
