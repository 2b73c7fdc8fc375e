/*-------------------------------------------------------------------------
 *
 * find_function.h
 *	  Find the function that a caller names.
 *
 * Everything is looked up with the caller's privileges and search_path.  This code knows
 * nothing of claims.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_FIND_FUNCTION_H
#define IDEM_FIND_FUNCTION_H

#include "access/tupdesc.h"
#include "fmgr.h"
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
 * The result is valid until the next look-up.
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

/* ------------------------------------------------------------------------
 * For run_function.c
 * ------------------------------------------------------------------------
 */

typedef struct CalleeParam
{
	char *name; /* NULL: it has none */
	Oid type;
	Node *default_value; /* not planned: the plan depends on the caller; NULL: none */

	/*
	 * jsonb_to_record() does the conversion, one column at a time, so that an error names
	 * the argument.  Its state is kept if no change of a composite type can make it stale.
	 */
	TupleDesc column;
	bool keep_state;
	FmgrInfo convert;
} CalleeParam;

/* What is known of a function; cached for the session. */
typedef struct Callee
{
	Oid function; /* hash key */
	MemoryContext context;
	uint64 changes; /* the number of changes before it was made */
	bool forgotten; /* no longer in the hash table: freed with the last unpin */
	int pins;

	char *schema;
	char *name;
	Oid result_type;
	bool returns_set;
	Oid result_collation;
	Oid input_collation;
	int nparams;
	CalleeParam *params;
} Callee;

/*
 * The callee of a function that was found for these arguments.  Looks the function up again
 * if any function or schema has changed since; then the name must still mean a function of the
 * same identity (40001).  Valid until the next look-up, unless it is pinned.
 */
extern Callee *function_callee(Function *function, Jsonb *args);

/* A pinned callee is not freed.  "failed": do not use it in another call. */
extern void callee_pin(Callee *callee);
extern void callee_unpin(Callee *callee, bool failed);

/* Do args have a value for the parameter? */
extern bool callee_has_argument(const CalleeParam *param, Jsonb *args);

#endif /* IDEM_FIND_FUNCTION_H */
