/*-------------------------------------------------------------------------
 *
 * grant.c
 *	  idem_grant() and idem_revoke(): who may do what.
 *
 * A job is a set of functions.  The statements run with the caller's rights,
 * so only who could have granted by hand can grant here, and every name in
 * them is qualified.
 *
 * The server itself refuses a function that was not granted, before any code of ours
 * is called.  Hooks around statements add the hint, in sessions that have the library
 * loaded: its message names the function, in whatever language.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

#include "compat.h"
#include "errors.h"
#include "grant.h"
#include "relation.h"

PG_FUNCTION_INFO_V1(idem_grant);
PG_FUNCTION_INFO_V1(idem_revoke);

typedef struct Job
{
	const char *name;
	bool by_default;		   /* meant when no jobs are given */
	const char *functions[10]; /* NULL-terminated */
} Job;

/* No function is in two jobs, or revoking one would take from the other. */
static const Job jobs[] = {
	{"claims",
	 true,
	 {"idem_begin", "idem_finish", "idem_release", "idem_extend", "idem_checkpoint", "idem_claim",
	  "idem_claim_many", "idem_once"}},
	{"call", false, {"idem_call"}},
	{"throttle", true, {"idem_throttle"}},
	{"tokens",
	 false,
	 {"idem_token_issue", "idem_token_redeem", "idem_token_peek", "idem_token_revoke",
	  "idem_token_revoke_all", "idem_code_issue", "idem_code_verify"}},
	{"lookup", false, {"idem_lookup"}},
	{"operate",
	 false,
	 {"idem_digest", "idem_forget", "idem_forget_scope", "idem_stat_reset", "idem_purge"}},
};

/*
 * The function of that name in the schema of the one being called, by
 * membership in the same extension: others may have made one of that name.
 */
static Oid
find_function(const char *name, Oid schema, Oid extension)
{
	CatCList *list = SearchSysCacheList1(PROCNAMEARGSNSP, CStringGetDatum(name));
	Oid found = InvalidOid;

	for (int i = 0; i < list->n_members && !OidIsValid(found); i++)
	{
		Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);

		if (proc->pronamespace == schema &&
			getExtensionOfObject(ProcedureRelationId, proc->oid) == extension)
			found = proc->oid;
	}
	ReleaseSysCacheList(list);

	if (!OidIsValid(found))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s is not part of the installed extension", name),
				 errhint("Run ALTER EXTENSION idempotency UPDATE.")));
	return found;
}

static const Job *
find_job(const char *name)
{
	StringInfoData known;

	for (int i = 0; i < lengthof(jobs); i++)
		if (strcmp(jobs[i].name, name) == 0)
			return &jobs[i];

	initStringInfo(&known);
	for (int i = 0; i < lengthof(jobs); i++)
		appendStringInfo(&known, "%s%s", i > 0 ? ", " : "", jobs[i].name);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("unrecognized job \"%s\"", name),
			 errhint("Jobs are %s.", known.data)));
}

static void
run(const char *statement)
{
	if (SPI_execute(statement, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not run \"%s\"", statement);
}

static void
change_function_acl(const char *name, Oid schema, Oid extension, const char *role, bool grant)
{
	run(psprintf("%s EXECUTE ON ROUTINE %s %s %s", grant ? "GRANT" : "REVOKE",
				 format_procedure_qualified(find_function(name, schema, extension)),
				 grant ? "TO" : "FROM", role));
}

/* ------------------------------------------------------------------------
 * The hint
 * ------------------------------------------------------------------------
 */

static ExecutorStart_hook_type prev_executor_start = NULL;
static ProcessUtility_hook_type prev_process_utility = NULL;

static bool
is_name_byte(char c)
{
	return isalnum((unsigned char) c) || c == '_';
}

/* Does the message name the function, and not one with a longer name? */
static bool
names_function(const char *message, const char *function)
{
	size_t len = strlen(function);

	for (const char *at = strstr(message, function); at != NULL; at = strstr(at + len, function))
		if ((at == message || !is_name_byte(at[-1])) && !is_name_byte(at[len]))
			return true;
	return false;
}

/* The job that a message is about, or NULL. */
static const Job *
named_job(const char *message)
{
	for (int i = 0; i < lengthof(jobs); i++)
		for (const char *const *name = jobs[i].functions; *name != NULL; name++)
			if (names_function(message, *name))
				return &jobs[i];
	return NULL;
}

/* So that it can be called wherever the extension is, whatever the search_path. */
static const char *
grant_name(void)
{
	Oid schema = relation_extension_schema();

	return OidIsValid(schema) ? quote_qualified_identifier(get_namespace_name(schema), "idem_grant")
							  : "idem_grant";
}

/* In PG_CATCH, with the memory context of before: throw the error on, with the hint if it fits. */
pg_noreturn static void
rethrow_with_hint(MemoryContext context)
{
	const Job *job;
	ErrorData *edata;

	if (geterrcode() != ERRCODE_INSUFFICIENT_PRIVILEGE)
		PG_RE_THROW();
	MemoryContextSwitchTo(context);
	edata = CopyErrorData();
	job = edata->hint == NULL && edata->message != NULL ? named_job(edata->message) : NULL;
	if (job == NULL)
		PG_RE_THROW();
	FlushErrorState();
	edata->hint = psprintf(
		"The owner of the extension can allow it: SELECT %s(%s, ARRAY['%s']);", grant_name(),
		quote_literal_cstr(quote_identifier(GetUserNameFromId(GetUserId(), false))), job->name);
	ReThrowError(edata);
}

static void
executor_start(QueryDesc *query, int eflags)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		if (prev_executor_start)
			prev_executor_start(query, eflags);
		else
			standard_ExecutorStart(query, eflags);
	}
	PG_CATCH();
	{
		rethrow_with_hint(context);
	}
	PG_END_TRY();
}

static void
next_process_utility(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
					 ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *env,
					 DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_process_utility)
		prev_process_utility(pstmt, query_string, read_only_tree, context, params, env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query_string, read_only_tree, context, params, env, dest,
								qc);
}

/* CALL and CREATE TRIGGER check their function themselves, and DO may run it without a query. */
static bool
checks_function(const Node *statement)
{
	return IsA(statement, CallStmt) || IsA(statement, CreateTrigStmt) || IsA(statement, DoStmt);
}

static void
process_utility(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *env,
				DestReceiver *dest, QueryCompletion *qc)
{
	MemoryContext memory = CurrentMemoryContext;

	if (!checks_function(pstmt->utilityStmt))
	{
		next_process_utility(pstmt, query_string, read_only_tree, context, params, env, dest, qc);
		return;
	}
	PG_TRY();
	{
		next_process_utility(pstmt, query_string, read_only_tree, context, params, env, dest, qc);
	}
	PG_CATCH();
	{
		rethrow_with_hint(memory);
	}
	PG_END_TRY();
}

void
grant_init(void)
{
	prev_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}

/* ------------------------------------------------------------------------
 * SQL
 * ------------------------------------------------------------------------
 */

static List *
get_jobs(FunctionCallInfo fcinfo)
{
	List *chosen = NIL;
	ArrayType *array;
	Datum *elems;
	bool *isnull;
	int n;

	if (PG_ARGISNULL(1))
	{
		for (int i = 0; i < lengthof(jobs); i++)
			if (jobs[i].by_default)
				chosen = lappend(chosen, unconstify(Job *, &jobs[i]));
		return chosen;
	}

	array = PG_GETARG_ARRAYTYPE_P(1);
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elems, &isnull, &n);
	for (int i = 0; i < n; i++)
	{
		if (isnull[i])
			error_null("job");
		chosen = lappend(chosen, unconstify(Job *, find_job(TextDatumGetCString(elems[i]))));
	}
	return chosen;
}

/*
 * EXECUTE on the functions of the jobs; a grant also gives USAGE on the
 * schema, without which they could not be named.  A revoke leaves that alone,
 * since other objects of the schema may be in use.
 */
static void
change_acl(FunctionCallInfo fcinfo, bool grant)
{
	Oid self = fcinfo->flinfo->fn_oid;
	Oid schema = get_func_namespace(self);
	Oid extension = getExtensionOfObject(ProcedureRelationId, self);
	const char *role;
	List *chosen;
	ListCell *lc;

	if (PG_ARGISNULL(0))
		error_null("role");
	chosen = get_jobs(fcinfo);
	role = quote_identifier(GetUserNameFromId(PG_GETARG_OID(0), false));

	SPI_connect();
	foreach(lc, chosen)
	{
		const Job *job = lfirst(lc);

		for (const char *const *name = job->functions; *name != NULL; name++)
			change_function_acl(*name, schema, extension, role, grant);
	}
	if (grant && chosen != NIL)
		run(psprintf("GRANT USAGE ON SCHEMA %s TO %s", quote_identifier(get_namespace_name(schema)),
					 role));
	SPI_finish();
}

/*
 * idem_grant(role regrole, jobs text[] DEFAULT NULL) RETURNS void
 */
Datum
idem_grant(PG_FUNCTION_ARGS)
{
	change_acl(fcinfo, true);
	PG_RETURN_VOID();
}

/*
 * idem_revoke(role regrole, jobs text[] DEFAULT NULL) RETURNS void
 */
Datum
idem_revoke(PG_FUNCTION_ARGS)
{
	change_acl(fcinfo, false);
	PG_RETURN_VOID();
}
