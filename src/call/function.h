/*-------------------------------------------------------------------------
 *
 * function.h
 *	  A function that the caller names, run with JSON in and JSON out.
 *
 * Everything happens with the caller's rights and under the caller's
 * search_path.  Knows nothing of claims.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_FUNCTION_H
#define IDEM_FUNCTION_H

#include "nodes/pg_list.h"
#include "utils/jsonb.h"

typedef struct Function Function;

/*
 * The function that is meant by "name" or "name(argtypes)", for arguments by
 * name; args may be NULL.  Checked: it exists (42883) and is the only one (42725,
 * hint: the candidates), the caller may execute it (42501), it is one that can
 * be called so (0A000), and args name all of its parameters that have no default
 * and nothing else (22023).
 *
 * The result is good until the next call of function_find() or function_run().
 */
extern Function *function_find(text *name, Jsonb *args);

/*
 * The same; NULL if there is no function of that name, or of those types.  The names of
 * its parameters are another question.
 */
extern Function *function_find_if_any(text *name, Jsonb *args);
extern bool function_takes(const Function *function, Jsonb *args);

/*
 * Of a function that does not exist: what function_identity() would have told of
 * it, in each of the schemas where the caller may have meant it.  List of char *.
 */
extern List *function_identities(text *name);

/*
 * What it is: its qualified name, with the argument types if "name" gave them.
 * Without them the caller did not care, so a function that got one more
 * parameter with a default since is still the same.
 */
extern char *function_identity(const Function *function);

/*
 * Run it, as a statement of its own: it sees what was committed until now, as
 * far as the isolation level allows.  False for a result of NULL or void.
 */
extern bool function_run(Function *function, Jsonb *args, Datum *result);

#endif /* IDEM_FUNCTION_H */
