/*-------------------------------------------------------------------------
 *
 * grant.c
 *	  idem_grant() and idem_revoke(): grant and revoke privileges by job.
 *
 * A job is a set of functions.  The statements run with the caller's privileges, so only a
 * role that could use GRANT itself can use these functions.  Every name in the statements
 * is qualified.
 *
 * The server itself refuses to call a function that was not granted, before any of our code
 * runs.  In sessions that have loaded the library, executor and utility hooks add the hint.
 * The server's message has the function's name; our function is the one with that name that
 * the user may not execute.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
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

#include "base/citus.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/grant.h"
#include "base/relation.h"

PG_FUNCTION_INFO_V1(idem_grant);
PG_FUNCTION_INFO_V1(idem_revoke);

typedef struct Job
{
	const char *name;
	bool by_default;		   /* granted if no jobs are given */
	const char *functions[16]; /* NULL-terminated */
} Job;

/* No function is in two jobs: revoking one job would take it from the other. */
static const Job jobs[] = {
	{"claims",
	 true,
	 {"idem_begin", "idem_finish", "idem_fail", "idem_release", "idem_extend", "idem_checkpoint",
	  "idem_claim", "idem_claim_many", "idem_check", "idem_http_begin", "idem_http_finish",
	  "idem_once"}},
	{"call", false, {"idem_call"}},
	{"throttle", true, {"idem_throttle"}},
	{"tokens",
	 false,
	 {"idem_token_issue", "idem_token_redeem", "idem_token_peek", "idem_token_revoke",
	  "idem_token_revoke_all", "idem_code_issue", "idem_code_verify"}},
	{"lookup", false, {"idem_lookup"}},
	{"operate",
	 false,
	 {"idem_digest", "idem_forget", "idem_forget_scope", "idem_import", "idem_import_many",
	  "idem_stat_reset", "idem_purge"}},
};

static bool
is_function_of(const FormData_pg_proc *proc, Oid schema, Oid extension)
{
	return proc->pronamespace == schema &&
		getExtensionOfObject(ProcedureRelationId, proc->oid) == extension;
}

/*
 * The function with that name in the same schema and extension as the function being
 * called, or InvalidOid.  Membership is checked because other users may create functions with
 * that name.
 */
static Oid
find_function(const char *name, Oid schema, Oid extension)
{
	CatCList *list = SearchSysCacheList1(PROCNAMEARGSNSP, CStringGetDatum(name));
	Oid found = InvalidOid;

	for (int i = 0; i < list->n_members && !OidIsValid(found); i++)
	{
		Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);

		if (is_function_of(proc, schema, extension))
			found = proc->oid;
	}
	ReleaseSysCacheList(list);
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
	error_job(name, known.data);
}

static void
run(const char *statement)
{
	if (SPI_execute(statement, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not run \"%s\"", statement);
}

/*
 * Before ALTER EXTENSION ... UPDATE, functions of later versions are missing.  The upgrade
 * scripts grant those to the roles that have the rest of the job.
 */
static void
change_function_acl(const char *name, Oid schema, Oid extension, const char *role, bool grant)
{
	Oid functions[] = {find_function(name, schema, extension),
					   citus_find_function_for(name, schema, extension)};

	for (int i = 0; i < lengthof(functions); i++)
		if (OidIsValid(functions[i]))
			run(psprintf("%s EXECUTE ON ROUTINE %s %s %s", grant ? "GRANT" : "REVOKE",
						 format_procedure_qualified(functions[i]), grant ? "TO" : "FROM", role));
}

/* ------------------------------------------------------------------------
 * The hint
 * ------------------------------------------------------------------------
 */

static ExecutorStart_hook_type prev_executor_start = NULL;
static ExecutorRun_hook_type prev_executor_run = NULL;
static ExecutorFinish_hook_type prev_executor_finish = NULL;
static ProcessUtility_hook_type prev_process_utility = NULL;

/*
 * The name of the function that the server has refused, from its message; NULL if it is
 * another error.  The untranslated format identifies the error in any language.
 */
static char *
refused_function(const ErrorData *edata)
{
	static const char *const formats[] = {
		"permission denied for function %s",
		"permission denied for procedure %s",
		"permission denied for routine %s",
	};

	for (int i = 0; i < lengthof(formats); i++)
	{
		const char *format = _(formats[i]);
		const char *where = strstr(format, "%s");
		size_t around = strlen(format) - 2;

		if (edata->message_id == NULL || strcmp(edata->message_id, formats[i]) != 0 ||
			where == NULL || strlen(edata->message) <= around)
			continue;
		return pnstrdup(edata->message + (where - format), strlen(edata->message) - around);
	}
	return NULL;
}

/* The name without the schema, which CREATE TRIGGER may include. */
static const char *
bare_name(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot == NULL ? name : dot + 1;
}

static const Job *
job_of(const char *function)
{
	for (int i = 0; i < lengthof(jobs); i++)
		for (const char *const *name = jobs[i].functions; *name != NULL; name++)
			if (strcmp(*name, function) == 0)
				return &jobs[i];
	return NULL;
}

/*
 * Is ours the only function with that name that the user may not execute?  If there are
 * others, we cannot know which one was meant.
 */
static bool
refused_ours(const char *function, Oid schema, Oid extension)
{
	CatCList *list = SearchSysCacheList1(PROCNAMEARGSNSP, CStringGetDatum(function));
	int ours = 0;
	int others = 0;

	for (int i = 0; i < list->n_members; i++)
	{
		Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);

		if (idem_function_aclcheck(proc->oid, GetUserId()) == ACLCHECK_OK)
			continue;
		if (is_function_of(proc, schema, extension))
			ours++;
		else
			others++;
	}
	ReleaseSysCacheList(list);
	return ours > 0 && others == 0;
}

/* The job that would have allowed the statement, or NULL.  Sets *schema to the extension's. */
static const Job *
refused_job(const ErrorData *edata, Oid *schema)
{
	const char *function = refused_function(edata);
	const Job *job = function == NULL ? NULL : job_of(bare_name(function));

	*schema = job == NULL ? InvalidOid : relation_extension_schema();
	if (!OidIsValid(*schema) ||
		!refused_ours(bare_name(function), *schema, get_extension_oid(EXTENSION_NAME, false)))
		return NULL;
	return job;
}

/* In PG_CATCH, with the memory context from before: rethrow, with the hint if it applies. */
pg_noreturn static void
rethrow_with_hint(MemoryContext context)
{
	const Job *job;
	ErrorData *edata;
	Oid schema;

	if (geterrcode() != ERRCODE_INSUFFICIENT_PRIVILEGE)
		PG_RE_THROW();
	MemoryContextSwitchTo(context);
	edata = CopyErrorData();
	if (edata->hint != NULL || edata->message == NULL)
		PG_RE_THROW();
	FlushErrorState();
	job = refused_job(edata, &schema);
	/* qualified, so that the call works with any search_path */
	if (job != NULL)
		edata->hint = psprintf(
			"The owner of the extension can allow it: SELECT %s(%s, ARRAY['%s']);",
			quote_qualified_identifier(get_namespace_name(schema), "idem_grant"),
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

/* A function may call another without a statement, as PL/pgSQL does in an assignment. */
static void
executor_run(idem_executor_run_args)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		if (prev_executor_run)
			prev_executor_run(idem_executor_run_pass);
		else
			standard_ExecutorRun(idem_executor_run_pass);
	}
	PG_CATCH();
	{
		rethrow_with_hint(context);
	}
	PG_END_TRY();
}

/* AFTER triggers run here. */
static void
executor_finish(QueryDesc *query)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		if (prev_executor_finish)
			prev_executor_finish(query);
		else
			standard_ExecutorFinish(query);
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

/*
 * CALL and CREATE TRIGGER check their function themselves.  DO, and the triggers that COPY
 * and SET CONSTRAINTS fire, may run a function without a query.
 */
static bool
checks_function(const Node *statement)
{
	return IsA(statement, CallStmt) || IsA(statement, CreateTrigStmt) || IsA(statement, DoStmt) ||
		IsA(statement, CopyStmt) || IsA(statement, ConstraintsSetStmt);
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
	prev_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = executor_run;
	prev_executor_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = executor_finish;
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
 * Grant or revoke EXECUTE on the functions of the jobs.  A grant also gives USAGE on the
 * schema, which a caller needs.  A revoke does not take that away, because the role may use
 * other objects in the schema.
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
