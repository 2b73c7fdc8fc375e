/*-------------------------------------------------------------------------
 *
 * commit_guard.c
 *	  Check a transaction before it commits or is prepared, ahead of all other callbacks.
 *
 * The server runs the callback that was registered last first.  A callback that runs before
 * ours may do something that cannot be undone: postgres_fdw commits its remote transactions
 * in its callback.  It registers that at the first connection of a session, which may come
 * after our begin, even in the same statement.  So the guard is registered when it is
 * armed, and again, in front, whenever a command ends while it is armed.  That suffices: a
 * foreign connection is made inside a command, and COMMIT itself is a utility command.  No
 * commit can follow a command inside an executor run, so only the end of the outermost
 * command counts.
 *
 * Another extension may run SQL in its own callback, so a command may end while the server
 * walks the list of callbacks.  Since version 16 that walk does not survive the removal of
 * the item that it would visit next.  So new items are added at the front, which the walk
 * has passed, and the old ones stay.  They are removed after the transaction has ended, or
 * earlier if there are many and certainly no commit is under way.  xact_callback is
 * registered at load, behind all of them: there it can remove them, and it checks a claim
 * that was begun in a callback between the guards and itself.  A claim begun in a callback
 * behind it is refused.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"

#include "base/compat.h"
#include "claim/commit_guard.h"

/* Runs before the commit; raises an error to prevent it. */
static void (*check_commit)(void) = NULL;

/*
 * How many times guard_callback is registered, with the arguments 1 to that number.  Not 0:
 * this transaction has or had claims.
 */
static uintptr_t guards = 0;

#define MANY_GUARDS 64

/* COMMIT or PREPARE TRANSACTION has run: callbacks come next */
static bool ending = false;

/* the first guard has run; the last guard has run */
static bool committing = false;
static bool guard_is_over = false;

/* number of executor runs on the stack */
static int running = 0;

static ExecutorRun_hook_type prev_executor_run = NULL;
static ExecutorFinish_hook_type prev_executor_finish = NULL;
static ExecutorEnd_hook_type prev_executor_end = NULL;
static ProcessUtility_hook_type prev_process_utility = NULL;

static void guard_callback(XactEvent event, void *arg);

static void
remove_guards(void)
{
	/* newest first: the server finds it at the head of its list */
	for (; guards > 0; guards--)
		UnregisterXactCallback(guard_callback, (void *) guards);
}

/*
 * Inside a transaction block no callback runs until COMMIT or PREPARE.  Outside a block, a
 * procedure may commit; but it drops the snapshot of its statements first, so no commit is
 * under way while there is one.
 */
static bool
certainly_not_ending(void)
{
	if (ending || committing)
		return false;
	if (IsTransactionBlock())
		return true;
	return SPI_inside_nonatomic_context() && ActivePortal != NULL &&
		ActivePortal->portalSnapshot != NULL;
}

static void
guard_to_front(void)
{
	if (guards >= MANY_GUARDS && certainly_not_ending())
		remove_guards();
	RegisterXactCallback(guard_callback, (void *) (guards + 1));
	guards++;
}

void
commit_guard_arm(void)
{
	if (guards == 0)
		guard_to_front();
}

bool
commit_guard_is_over(void)
{
	return guard_is_over;
}

static void
guard_callback(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_PRE_COMMIT && event != XACT_EVENT_PRE_PREPARE)
		return;
	if (committing)
		return;
	committing = true;
	check_commit();
}

/* Always last in the list: runs the check once more, and cleans up after the end. */
static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			committing = true;
			check_commit();
			guard_is_over = true;
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			remove_guards();
			ending = committing = guard_is_over = false;
			break;
		default:
			break;
	}
}

static void
command_has_ended(void)
{
	if (guards > 0 && running == 0 && !committing)
		guard_to_front();
}

static void
executor_run(idem_executor_run_args)
{
	running++;
	PG_TRY();
	{
		if (prev_executor_run)
			prev_executor_run(idem_executor_run_pass);
		else
			standard_ExecutorRun(idem_executor_run_pass);
	}
	PG_FINALLY();
	{
		running--;
	}
	PG_END_TRY();
}

/* AFTER triggers run here. */
static void
executor_finish(QueryDesc *query)
{
	running++;
	PG_TRY();
	{
		if (prev_executor_finish)
			prev_executor_finish(query);
		else
			standard_ExecutorFinish(query);
	}
	PG_FINALLY();
	{
		running--;
	}
	PG_END_TRY();
}

static void
executor_end(QueryDesc *query)
{
	if (prev_executor_end)
		prev_executor_end(query);
	else
		standard_ExecutorEnd(query);
	command_has_ended();
}

static bool
is_end(Node *statement)
{
	TransactionStmt *stmt = (TransactionStmt *) statement;

	return IsA(statement, TransactionStmt) &&
		(stmt->kind == TRANS_STMT_COMMIT || stmt->kind == TRANS_STMT_PREPARE);
}

static void
process_utility(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *env,
				DestReceiver *dest, QueryCompletion *qc)
{
	/* COMMIT of an aborted block calls no callback that could reset "ending" */
	bool end = is_end(pstmt->utilityStmt) && !IsAbortedTransactionBlockState();

	if (prev_process_utility)
		prev_process_utility(pstmt, query_string, read_only_tree, context, params, env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query_string, read_only_tree, context, params, env, dest,
								qc);
	if (end)
		ending = true;
	command_has_ended();
}

void
commit_guard_init(void (*check)(void))
{
	check_commit = check;
	RegisterXactCallback(xact_callback, NULL);

	prev_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = executor_run;
	prev_executor_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = executor_finish;
	prev_executor_end = ExecutorEnd_hook;
	ExecutorEnd_hook = executor_end;
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
