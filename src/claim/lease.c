/*-------------------------------------------------------------------------
 *
 * lease.c
 *	  Finish, release, extend and checkpoint leased claims.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/args.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/interval.h"
#include "claim/lease.h"
#include "stat/stats.h"
#include "store/key_lock.h"
#include "store/store.h"

PG_FUNCTION_INFO_V1(idem_extend);
PG_FUNCTION_INFO_V1(idem_checkpoint);

bool
lease_meant(const PendingClaim *mine, bool fence_given)
{
	return fence_given || (mine != NULL && mine->state == PENDING_LEASED);
}

TimestampTz
lease_expiry(TimestampTz lease_until, const Interval *ttl, const IdemKey *key)
{
	if (TIMESTAMP_IS_NOEND(lease_until))
		return DT_NOEND;
	return ttl_after(lease_until, ttl, "ttl", key);
}

pg_noreturn static void
error_not_begun(const IdemKey *key, const StoreRow *row)
{
	if (row->state == STORE_LEASED || row->state == STORE_ABANDONED)
		error_fence_needed(key);
	error_no_claim(key);
}

void
lease_error_not_begun(const IdemKey *key)
{
	StoreRow row;

	store_probe(key, &row);
	error_not_begun(key, &row);
}

/* A row that this transaction has finished may have expired or been erased since. */
static bool
is_finished(const StoreRow *row, const PendingClaim *mine)
{
	return row->state == STORE_FINISHED ||
		(row->state == STORE_EXPIRED && row->own && mine != NULL &&
		 mine->state == PENDING_FINISHED);
}

void
lease_error_nothing_open(const IdemKey *key, const PendingClaim *mine)
{
	StoreRow row;

	store_probe(key, &row);
	if (is_finished(&row, mine))
		error_finished(key);
	error_not_begun(key, &row);
}

void
lease_check_finished(const IdemKey *key, const PendingClaim *mine)
{
	StoreRow row;

	store_probe(key, &row);
	if (!is_finished(&row, mine))
		error_not_begun(key, &row);
}

/* Fences only grow: a larger one was never issued.  After a release there is none. */
pg_noreturn static void
error_wrong_fence(const IdemKey *key, int64 fence, int64 current)
{
	if (fence <= 0 || (current != NO_FENCE && fence > current))
		error_not_its_fence(key, fence);
	error_superseded(key, fence);
}

/*
 * Take the lock and find the row with this fence.  Raises an error unless the row is leased
 * or abandoned under this fence.  Returns the fence.
 */
static int64
open_lease(const IdemKey *key, int64 fence, PendingClaim *mine, StoreRow *row)
{
	if (fence == NO_FENCE)
	{
		if (mine != NULL && mine->state == PENDING_OPEN)
			error_lease_gone(key);
		if (mine == NULL || mine->state != PENDING_LEASED)
			lease_error_nothing_open(key, mine);
		fence = mine->fence;
	}

	for (;;)
	{
		lock_wait(key);
		store_probe(key, row);
		if (row->state != STORE_HELD)
			break;

		/* release it: the holder may use the key again, and would wait for our lock */
		lock_release(key);
		(void) store_wait(key, &row->holder, DT_NOEND);
	}

	switch (row->state)
	{
		case STORE_LEASED:
		case STORE_ABANDONED:
			break;
		case STORE_FINISHED:
			if (row->fence == fence)
				error_finished(key);
			break;
		default:
			error_lease_gone(key);
	}

	/* our own open transaction claim has taken over, although it has no row yet */
	if (row->fence != fence || (mine != NULL && mine->state == PENDING_OPEN))
		error_wrong_fence(key, fence, row->fence);
	lock_show(key);
	return fence;
}

/* Never change a row that the transaction's snapshot cannot see. */
static void
check_seen(const StoreRow *row, const IdemKey *key)
{
	if (row->unseen)
		error_serialization(key);
}

/* We hold the lock, so only direct DML on the table can have changed the row. */
static void
check_changed(bool changed, const IdemKey *key)
{
	if (!changed)
		error_serialization(key);
}

void
lease_finish(const IdemKey *key, int64 fence, PendingClaim *mine, const ClaimAnswer *answer)
{
	StoreRow row;
	StoreWrite write = {
		.has_result = answer->has_result, .result = answer->result, .failed = answer->failed};

	fence = open_lease(key, fence, mine, &row);
	check_seen(&row, key);
	write.finished_at = GetCurrentTimestamp();
	write.expires_at =
		ttl_after(write.finished_at, answer->ttl != NULL ? answer->ttl : &row.ttl, "ttl", key);
	check_changed(store_lease_finish(key, fence, &write), key);
	pending_changed(key, fence, write.expires_at);
	stats_count(answer->failed ? STAT_FAILED : STAT_FINISHED, 1);
}

void
lease_release(const IdemKey *key, int64 fence, PendingClaim *mine)
{
	StoreRow row;
	TimestampTz expires_at;

	fence = open_lease(key, fence, mine, &row);
	check_seen(&row, key);
	expires_at = ttl_after(GetCurrentTimestamp(), &row.ttl, "ttl", key);
	check_changed(store_lease_release(key, fence, expires_at), key);
	pending_changed(key, fence, expires_at);
	stats_count(STAT_RELEASED, 1);
}

/*
 * The new lease starts now, not when the call began: we may have waited for the lock.
 */
static void
renew_lease(StoreRenewal *renewal, const Interval *lease, const StoreRow *row, const IdemKey *key)
{
	renewal->lease_until = ttl_after(GetCurrentTimestamp(), lease, "lease", key);
	renewal->expires_at = lease_expiry(renewal->lease_until, &row->ttl, key);
}

/*
 * idem_extend(key text, lease interval, scope text, fence bigint) RETURNS timestamptz
 */
Datum
idem_extend(PG_FUNCTION_ARGS)
{
	IdemKey key;
	StoreRow row;
	PendingClaim *mine;
	StoreRenewal renewal = {0};
	int64 fence;

	refuse_in_parallel("idem_extend");
	key_make(&key, arg_text(fcinfo, 0), arg_text(fcinfo, 2), true);
	if (PG_ARGISNULL(1))
		error_null("lease");
	(void) ttl_after(GetCurrentTimestamp(), PG_GETARG_INTERVAL_P(1), "lease", &key);
	if (XactReadOnly)
		error_read_only(&key, "extend the lease of");

	mine = pending_find(&key);
	fence = open_lease(&key, arg_fence(fcinfo, 3), mine, &row);
	check_seen(&row, &key);
	renew_lease(&renewal, PG_GETARG_INTERVAL_P(1), &row, &key);
	check_changed(store_lease_renew(&key, fence, &renewal), &key);
	pending_changed(&key, fence, renewal.expires_at);
	PG_RETURN_TIMESTAMPTZ(renewal.lease_until);
}

/*
 * idem_checkpoint(key text, phase text, progress jsonb, scope text,
 *				   fence bigint, lease interval) RETURNS timestamptz
 */
Datum
idem_checkpoint(PG_FUNCTION_ARGS)
{
	IdemKey key;
	StoreRow row;
	PendingClaim *mine;
	StoreRenewal renewal = {.phase = arg_text(fcinfo, 1)};
	int64 fence;
	int len;

	refuse_in_parallel("idem_checkpoint");
	key_make(&key, arg_text(fcinfo, 0), arg_text(fcinfo, 3), true);
	if (renewal.phase == NULL)
		error_null("phase");
	(void) key_utf8("phase", renewal.phase, 1, &len);
	renewal.has_progress = arg_stored_jsonb(fcinfo, 2, &key, "progress", &renewal.progress);
	if (!PG_ARGISNULL(5))
		(void) ttl_after(GetCurrentTimestamp(), PG_GETARG_INTERVAL_P(5), "lease", &key);
	if (XactReadOnly)
		error_read_only(&key, "checkpoint");

	mine = pending_find(&key);
	fence = open_lease(&key, arg_fence(fcinfo, 4), mine, &row);
	if (row.phase != NULL && key_same_text(row.phase, renewal.phase))
		error_phase_recorded(&key, text_to_cstring(row.phase));
	check_seen(&row, &key);
	if (!PG_ARGISNULL(5))
		renew_lease(&renewal, PG_GETARG_INTERVAL_P(5), &row, &key);
	check_changed(store_lease_renew(&key, fence, &renewal), &key);

	if (renewal.lease_until == 0)
	{
		pending_changed(&key, fence, row.expires_at);
		if (row.lease_until == 0)
			PG_RETURN_NULL();
		PG_RETURN_TIMESTAMPTZ(row.lease_until);
	}
	pending_changed(&key, fence, renewal.expires_at);
	PG_RETURN_TIMESTAMPTZ(renewal.lease_until);
}
