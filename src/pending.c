/*-------------------------------------------------------------------------
 *
 * pending.c
 *	  The claims of the current transaction, and the commit guard.
 *
 * Entries live in TopTransactionContext, in a list, newest first, and by a byte of
 * their key's digest: a transaction has a handful of claims as a rule, and the lock
 * table bounds them at some ten thousand.  What no rollback can bring back is freed
 * at once, so that a loop in one transaction does not fill the memory.
 *
 * Who may fail: the guard (pre-commit, pre-prepare) raises on purpose.
 * Everything that runs after a commit, an abort or the end of a
 * subtransaction only changes or frees what exists; it does not allocate
 * and cannot raise.
 *
 * The guard's place.  Callbacks run last-registered-first, and one that runs
 * before ours may do what cannot be undone: postgres_fdw commits its remote
 * transactions in its own.  It registers at its first connection of a
 * session, which may well come after our begin, even in the same statement.
 * So the guard registers with the transaction's first claim, and once more, in
 * front, whenever a command ends while claims are pending: whatever connects,
 * connects inside one of those, and COMMIT itself is a utility command.  What
 * runs inside of an executor run cannot be followed by a commit, so only the
 * end of the outermost one counts.
 *
 * Another extension may run SQL in its own callback, so a command may end while
 * the server walks the list, and since version 16 it does not stand the removal
 * of the item that it would visit next.  Hence items are added, which is in
 * front of any walk, and the old ones stay.  They go when the transaction has
 * ended, or earlier, when there are many and no commit is under way for certain.
 * xact_callback, registered at load, is behind all of them: so it can remove them,
 * and it guards a claim that was begun in a callback between.  A claim that is
 * begun in a callback behind that is refused.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "errors.h"
#include "pending.h"
#include "stats.h"

static slist_head claims = SLIST_STATIC_INIT(claims);

/* the same by key, newest first, so that thousands of claims are found as fast as one */
static dlist_head claims_by_key[256];

static dlist_head *
find_bucket(const IdemKey *key)
{
	return &claims_by_key[key->digest.data[0]];
}

/*
 * guard_callback is registered with that many arguments, which count from 1: this
 * transaction has, or had, claims.
 */
static uintptr_t guards = 0;

#define MANY_GUARDS 64

/* of this transaction, those that were written without a begin */
static int nwritten = 0;

/* beyond them, one entry has to do for several */
#define MANY_WRITTEN 64

/* COMMIT or PREPARE TRANSACTION has run: callbacks come next */
static bool ending = false;

/* the first guard has run, and the last one */
static bool committing = false;
static bool guard_is_over = false;

/* executor runs on the stack */
static int running = 0;

static ExecutorRun_hook_type prev_executor_run = NULL;
static ExecutorFinish_hook_type prev_executor_finish = NULL;
static ExecutorEnd_hook_type prev_executor_end = NULL;
static ProcessUtility_hook_type prev_process_utility = NULL;

static void guard_callback(XactEvent event, void *arg);

static void
remove_guards(void)
{
	/* the newest is the first that the server finds */
	for (; guards > 0; guards--)
		UnregisterXactCallback(guard_callback, (void *) guards);
}

/*
 * Inside of a transaction block that has not been told to end, no callback is
 * called.  Outside of one there is a commit in a procedure, which gives up the
 * snapshot of the procedure's statements before.
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

static PendingClaim *
add_claim(const IdemKey *key)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	PendingClaim *claim = palloc0(sizeof(PendingClaim));

	key_copy(&claim->key, key);
	MemoryContextSwitchTo(old);

	claim->begun_in = GetCurrentSubTransactionId();
	slist_push_head(&claims, &claim->node);
	dlist_push_head(find_bucket(key), &claim->by_key);
	if (guards == 0)
		guard_to_front();
	return claim;
}

static void
free_claim(PendingClaim *claim)
{
	if (claim->state == PENDING_WRITTEN)
		nwritten--;
	dlist_delete(&claim->by_key);
	pfree(claim->key.key);
	pfree(claim->key.scope);
	pfree(claim);
}

#define STATE(state) (1 << (state))
#define ANY_LEASED (STATE(PENDING_LEASED) | STATE(PENDING_CHANGED))

/* The newest entry of the key in one of these states; under a fence, if one is given. */
static PendingClaim *
find_claim(const IdemKey *key, int states, int64 fence)
{
	dlist_iter iter;

	dlist_foreach(iter, find_bucket(key))
	{
		PendingClaim *claim = dlist_container(PendingClaim, by_key, iter.cur);

		if ((STATE(claim->state) & states) != 0 && (fence == NO_FENCE || claim->fence == fence) &&
			key_cmp(&claim->key, key) == 0)
			return claim;
	}
	return NULL;
}

PendingClaim *
pending_find(const IdemKey *key)
{
	return find_claim(key, STATE(PENDING_OPEN) | STATE(PENDING_LEASED) | STATE(PENDING_FINISHED),
					  NO_FENCE);
}

static void
set_written_baseline(PendingClaim *claim)
{
	claim->begun_with_xid = TransactionIdIsValid(GetTopTransactionIdIfAny());
	claim->begun_cid = GetCurrentCommandId(false);
}

PendingClaim *
pending_begin(const IdemKey *key, const Interval *ttl, TimestampTz begun_at,
			  const uint8 *fingerprint, StoreLife seen, int64 seen_fence)
{
	PendingClaim *claim;

	if (guard_is_over)
		error_too_late(key);
	claim = add_claim(key);
	claim->state = PENDING_OPEN;
	claim->ttl = *ttl;
	claim->begun_at = begun_at;
	claim->has_fingerprint = fingerprint != NULL;
	if (fingerprint != NULL)
		memcpy(claim->fingerprint, fingerprint, FINGERPRINT_BYTES);
	claim->seen = seen;
	claim->fence = seen_fence;
	set_written_baseline(claim);
	return claim;
}

void
pending_lease(const IdemKey *key, int64 fence, TimestampTz expires_at)
{
	PendingClaim *claim = add_claim(key);

	claim->state = PENDING_LEASED;
	claim->fence = fence;
	claim->expires_at = expires_at;
}

bool
pending_leased(const IdemKey *key, int64 fence)
{
	return find_claim(key, ANY_LEASED, fence) != NULL;
}

void
pending_changed(const IdemKey *key, int64 fence, TimestampTz expires_at)
{
	PendingClaim *claim = find_claim(key, ANY_LEASED, fence);

	if (claim == NULL)
	{
		claim = add_claim(key);
		claim->state = PENDING_CHANGED;
		claim->fence = fence;
		claim->expires_at = expires_at;
	}
	claim->expires_at = Min(claim->expires_at, expires_at);
}

static void
end_claim(PendingClaim *claim, PendingState state)
{
	Assert(claim->state == PENDING_OPEN);
	claim->state = state;
	claim->ended_in = GetCurrentSubTransactionId();
}

void
pending_finish(PendingClaim *claim, TimestampTz expires_at)
{
	end_claim(claim, PENDING_FINISHED);
	claim->expires_at = expires_at;
}

void
pending_release(PendingClaim *claim)
{
	end_claim(claim, PENDING_RELEASED);
	if (claim->begun_in == claim->ended_in)
	{
		slist_delete(&claims, &claim->node);
		free_claim(claim);
	}
}

/*
 * Of many, keep one of two neighbours that only say when a row expires and that the
 * same rollbacks undo: the first to expire.
 */
static void
merge_written(void)
{
	PendingClaim *newest;
	PendingClaim *older;

	if (nwritten <= MANY_WRITTEN)
		return;
	if (slist_is_empty(&claims) || !slist_has_next(&claims, slist_head_node(&claims)))
		return;
	newest = slist_head_element(PendingClaim, node, &claims);
	older = slist_container(PendingClaim, node, slist_next_node(&claims, &newest->node));
	if (newest->state != PENDING_WRITTEN || older->state != PENDING_WRITTEN ||
		newest->begun_in != older->begun_in)
		return;

	slist_pop_head_node(&claims);
	if (newest->expires_at < older->expires_at)
	{
		slist_pop_head_node(&claims);
		slist_push_head(&claims, &newest->node);
		newest->merged = true;
		free_claim(older);
	}
	else
	{
		older->merged = true;
		free_claim(newest);
	}
}

void
pending_written(const IdemKey *key, TimestampTz expires_at)
{
	PendingClaim *claim;

	if (TIMESTAMP_IS_NOEND(expires_at))
		return;
	claim = add_claim(key);
	claim->state = PENDING_WRITTEN;
	nwritten++;
	claim->expires_at = expires_at;
	merge_written();
}

/*
 * The first write takes an xid, and every command that writes uses up its
 * command id.  After an earlier write, a command that found nothing to write looks
 * the same, and so does one that failed within the subtransaction that its error rolled
 * back: this serves a warning only.
 */
bool
pending_has_written(const PendingClaim *claim)
{
	return TransactionIdIsValid(GetTopTransactionIdIfAny()) &&
		(!claim->begun_with_xid || GetCurrentCommandId(false) > claim->begun_cid);
}

/* ------------------------------------------------------------------------
 * The guard
 * ------------------------------------------------------------------------
 */

/*
 * Has the key of an entry run out?  A row can be erased again, that of a leased claim be
 * changed, and a rollback to a savepoint undoes either.  So the entry has the earliest
 * moment of all, and the row itself the last word, unless others have no entry of
 * their own.  A row that was made anew, though not leased, tells by its age whether the
 * first one had been erased before it ran out.
 */
static bool
has_expired(PendingClaim *claim, TimestampTz now)
{
	bool leased = (STATE(claim->state) & ANY_LEASED) != 0;
	bool expired;

	if (claim->state == PENDING_RELEASED || claim->expires_at > now)
		return false;
	if (claim->merged)
		return true;

	PushActiveSnapshot(GetTransactionSnapshot());
	expired = store_has_expired(&claim->key, leased ? DT_NOEND : claim->expires_at);
	PopActiveSnapshot();
	return expired;
}

static void
guard(void)
{
	PendingClaim *open = NULL;
	int nopen = 0;
	TimestampTz now;
	slist_iter iter;

	if (slist_is_empty(&claims))
		return;

	/* the list is newest first; the message names the oldest open one */
	slist_foreach(iter, &claims)
	{
		PendingClaim *claim = slist_container(PendingClaim, node, iter.cur);

		if (claim->state == PENDING_OPEN)
		{
			open = claim;
			nopen++;
		}
	}
	if (open != NULL)
	{
		stats_count(STAT_GUARD_ERRORS, 1);
		error_unfinished(&open->key, nopen - 1);
	}

	now = GetCurrentTimestamp();
	slist_foreach(iter, &claims)
	{
		PendingClaim *claim = slist_container(PendingClaim, node, iter.cur);

		if (has_expired(claim, now))
		{
			stats_count(STAT_GUARD_ERRORS, 1);
			error_expired_before_commit(&claim->key);
		}
	}
}

static void
guard_callback(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_PRE_COMMIT && event != XACT_EVENT_PRE_PREPARE)
		return;
	if (committing)
		return;
	committing = true;
	guard();
}

/* The registration that never moves: the guard once more, then the end. */
static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			committing = true;
			guard();
			guard_is_over = true;
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			/* the memory goes with TopTransactionContext */
			if (!slist_is_empty(&claims))
				memset(claims_by_key, 0, sizeof(claims_by_key));
			slist_init(&claims);
			nwritten = 0;
			remove_guards();
			ending = committing = guard_is_over = false;
			break;
		default:
			break;
	}
}

static void
subxact_start(SubTransactionId sub)
{
	slist_iter iter;

	slist_foreach(iter, &claims)
	{
		PendingClaim *claim = slist_container(PendingClaim, node, iter.cur);

		if (claim->state == PENDING_OPEN && !pending_has_written(claim))
			claim->clean_since = sub;
	}
}

/* Nothing is left of what was written since the start of a subtransaction that is rolled back. */
static void
end_clean(PendingClaim *claim, SubTransactionId sub, SubTransactionId parent, bool committed)
{
	if (claim->clean_since != sub)
		return;
	claim->clean_since = parent;
	if (!committed)
		set_written_baseline(claim);
}

static void
subxact_commit(SubTransactionId sub, SubTransactionId parent)
{
	slist_mutable_iter iter;

	slist_foreach_modify(iter, &claims)
	{
		PendingClaim *claim = slist_container(PendingClaim, node, iter.cur);

		end_clean(claim, sub, parent, true);
		if (claim->begun_in == sub)
			claim->begun_in = parent;
		if (claim->ended_in == sub)
			claim->ended_in = parent;
		if (claim->state == PENDING_RELEASED && claim->begun_in == claim->ended_in)
		{
			slist_delete_current(&iter);
			free_claim(claim);
		}
	}
	merge_written();
}

static void
subxact_abort(SubTransactionId sub, SubTransactionId parent)
{
	slist_mutable_iter iter;

	slist_foreach_modify(iter, &claims)
	{
		PendingClaim *claim = slist_container(PendingClaim, node, iter.cur);

		if (claim->begun_in == sub)
		{
			slist_delete_current(&iter);
			free_claim(claim);
		}
		else
		{
			if (claim->ended_in == sub)
			{
				claim->state = PENDING_OPEN;
				claim->ended_in = InvalidSubTransactionId;
			}
			end_clean(claim, sub, parent, false);
		}
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId sub, SubTransactionId parent, void *arg)
{
	if (slist_is_empty(&claims))
		return;
	if (event == SUBXACT_EVENT_START_SUB)
		subxact_start(sub);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		subxact_commit(sub, parent);
	else if (event == SUBXACT_EVENT_ABORT_SUB)
		subxact_abort(sub, parent);
}

static void
command_has_ended(void)
{
	if (guards > 0 && running == 0 && !committing)
		guard_to_front();
}

static void
executor_run(QueryDesc *query, ScanDirection direction, uint64 count IDEM_EXECUTE_ONCE_PARAMETER)
{
	running++;
	PG_TRY();
	{
		if (prev_executor_run)
			prev_executor_run(query, direction, count IDEM_EXECUTE_ONCE);
		else
			standard_ExecutorRun(query, direction, count IDEM_EXECUTE_ONCE);
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
	/* the end of an aborted block calls no callback that could take this back */
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
pending_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);

	prev_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = executor_run;
	prev_executor_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = executor_finish;
	prev_executor_end = ExecutorEnd_hook;
	ExecutorEnd_hook = executor_end;
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
