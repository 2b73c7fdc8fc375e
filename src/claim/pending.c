/*-------------------------------------------------------------------------
 *
 * pending.c
 *	  The claims of the current transaction.
 *
 * Entries live in TopTransactionContext, in a list (newest first) and in a hash table by
 * one byte of the key's digest.  A transaction usually has a handful of claims; the lock
 * table limits them to some ten thousand.  An entry that no rollback can bring back is
 * freed at once, so that a loop in one transaction does not fill the memory.
 *
 * The check before the commit raises errors on purpose.  The code that runs after a commit,
 * an abort or the end of a subtransaction only changes or frees existing entries: it does
 * not allocate and cannot fail.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/errors.h"
#include "claim/commit_guard.h"
#include "claim/pending.h"
#include "stat/stats.h"
#include "store/shard.h"

static slist_head claims = SLIST_STATIC_INIT(claims);

/* the same by key, newest first, so that a look-up among thousands of claims is fast */
static dlist_head claims_by_key[256];

static dlist_head *
find_bucket(const IdemKey *key)
{
	return &claims_by_key[key->digest.data[0]];
}

/* entries of this transaction in state PENDING_WRITTEN */
static int nwritten = 0;

/* above this number, one entry stands for several rows */
#define MANY_WRITTEN 64

static PendingClaim *
add_claim(const IdemKey *key)
{
	PendingClaim *claim =
		MemoryContextAlloc(TopTransactionContext, sizeof(PendingClaim) + key_copy_size(key));

	memset(claim, 0, sizeof(PendingClaim));
	key_copy(&claim->key, key, claim + 1);
	claim->begun_in = GetCurrentSubTransactionId();
	slist_push_head(&claims, &claim->node);
	dlist_push_head(find_bucket(key), &claim->by_key);
	commit_guard_arm();
	return claim;
}

static void
free_claim(PendingClaim *claim)
{
	if (claim->state == PENDING_WRITTEN)
		nwritten--;
	dlist_delete(&claim->by_key);
	pfree(claim);
}

#define STATE(state) (1 << (state))
#define ANY_LEASED (STATE(PENDING_LEASED) | STATE(PENDING_CHANGED))

/* The newest entry of the key in one of these states; with that fence, if one is given. */
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

bool
pending_is_open(const IdemKey *key)
{
	PendingClaim *mine = pending_find(key);

	return mine != NULL && mine->state == PENDING_OPEN;
}

static void
set_written_baseline(PendingClaim *claim)
{
	claim->begun_with_xid = TransactionIdIsValid(GetTopTransactionIdIfAny());
	claim->begun_cid = GetCurrentCommandId(false);
}

PendingClaim *
pending_begin(const IdemKey *key, const Interval *ttl, TimestampTz begun_at,
			  const uint8 *fingerprint, StoreState seen, int64 seen_fence)
{
	PendingClaim *claim;

	if (commit_guard_is_over())
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
 * When there are many, merge the two newest entries if both are PENDING_WRITTEN and the
 * same rollbacks undo them.  Keep the one that expires first.
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
 * The first write assigns an xid, and every command that writes uses up its command ID.
 * This can be wrong: after an earlier write, a command that found nothing to write looks
 * the same, and so does one whose error rolled back its subtransaction.  That is good
 * enough for a warning.
 */
bool
pending_has_written(const PendingClaim *claim)
{
	return TransactionIdIsValid(GetTopTransactionIdIfAny()) &&
		(!claim->begun_with_xid || GetCurrentCommandId(false) > claim->begun_cid);
}

/* ------------------------------------------------------------------------
 * The check before the commit
 * ------------------------------------------------------------------------
 */

/*
 * Has the key of an entry expired?  A row can be erased and a leased row can be changed,
 * and a rollback to a savepoint undoes both.  So the entry has the earliest time at which
 * the row may expire, and the row itself decides, unless the entry stands for other rows
 * too.  If a row that is not leased was erased and written again, the age of the new row
 * shows whether the first one was erased before it expired.
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

/* No claim may be open and no key may have expired. */
static void
check_claims(bool count)
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
		if (count)
			stats_count(STAT_GUARD_ERRORS, 1);
		error_unfinished(&open->key, nopen - 1);
	}

	now = GetCurrentTimestamp();
	slist_foreach(iter, &claims)
	{
		PendingClaim *claim = slist_container(PendingClaim, node, iter.cur);

		if (has_expired(claim, now))
		{
			if (count)
				stats_count(STAT_GUARD_ERRORS, 1);
			error_expired_before_commit(&claim->key);
		}
	}
}

static void
check_commit(void)
{
	check_claims(true);
	shard_check_written();
}

void
pending_check(void)
{
	check_claims(false);
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;

	/* the memory is freed with TopTransactionContext */
	if (!slist_is_empty(&claims))
		memset(claims_by_key, 0, sizeof(claims_by_key));
	slist_init(&claims);
	nwritten = 0;
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

/* A rolled back subtransaction leaves nothing of what was written since it started. */
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

void
pending_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	commit_guard_init(check_commit);
}
