/*-------------------------------------------------------------------------
 *
 * late_sql.c
 *	  An extension that runs SQL while a transaction commits.
 *
 * late_sql.sql is run in a transaction callback, before the commit, and a notice
 * says so.  The callback is registered when the library is loaded; with
 * late_sql.at_commit it is registered once more by each COMMIT of a transaction
 * block, until that transaction has ended.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "tcop/utility.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

static char *late_sql = NULL;
static bool at_commit = false;
static bool registered = false;
static ProcessUtility_hook_type prev_process_utility = NULL;

static void
callback(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_PRE_COMMIT || late_sql[0] == '\0' || (arg == NULL) == at_commit)
		return;
	ereport(NOTICE, (errmsg("late_sql runs")));
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_execute(late_sql, false, 0);
	PopActiveSnapshot();
	SPI_finish();
}

/* The list of callbacks must not change while they are called. */
static void
forget(void)
{
	if (registered)
		UnregisterXactCallback(callback, &late_sql);
	registered = false;
}

static void
process_utility(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *env,
				DestReceiver *dest, QueryCompletion *qc)
{
	Node *stmt = pstmt->utilityStmt;

	if (prev_process_utility)
		prev_process_utility(pstmt, query_string, read_only_tree, context, params, env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query_string, read_only_tree, context, params, env, dest,
								qc);
	if (at_commit && IsA(stmt, TransactionStmt) &&
		((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT)
	{
		forget();
		RegisterXactCallback(callback, &late_sql);
		registered = true;
	}
}

void
_PG_init(void)
{
	DefineCustomStringVariable("late_sql.sql", "SQL to run.", NULL, &late_sql, "", PGC_USERSET, 0,
							   NULL, NULL, NULL);
	DefineCustomBoolVariable("late_sql.at_commit", "Register the callback in COMMIT.", NULL,
							 &at_commit, false, PGC_USERSET, 0, NULL, NULL, NULL);
	RegisterXactCallback(callback, NULL);
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
