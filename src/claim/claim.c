/*-------------------------------------------------------------------------
 *
 * claim.c
 *	  How a key is claimed: look, decide, act.
 *
 * The order is always lock, look, write; decide.h has the rules.  A claim must respect
 * both the key's lock and uncommitted rows.  idem_begin holds its key by the advisory lock
 * alone, because it writes the row only when it finishes.  A batch takes no lock for a free
 * key; its uncommitted rows hold the keys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/float.h"
#include "utils/timestamp.h"

#include "base/errors.h"
#include "base/guc.h"
#include "base/interval.h"
#include "claim/claim.h"
#include "claim/decide.h"
#include "claim/lease.h"
#include "claim/pending.h"
#include "stat/stats.h"
#include "store/key_lock.h"
#include "store/store.h"

/* ------------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------------
 */

void
claim_request(ClaimRequest *request, text *key, text *scope, const Interval *ttl)
{
	memset(request, 0, sizeof(*request));
	key_make(&request->key, key, scope, true);
	claim_request_ttl(request, ttl);
	(void) ttl_after(request->now, &request->ttl, "ttl", &request->key);
}

void
claim_request_ttl(ClaimRequest *request, const Interval *ttl)
{
	request->now = GetCurrentTimestamp();
	if (ttl == NULL)
		ttl_default(&request->ttl);
	else
		request->ttl = *ttl;
}

TimestampTz
claim_wait_until(const ClaimRequest *request, const Interval *wait)
{
	return wait == NULL ? request->now : ttl_wait_until(request->now, wait, &request->key);
}

static const uint8 *
request_fingerprint(const ClaimRequest *request)
{
	return request->has_fingerprint ? request->fingerprint : NULL;
}

/*
 * Fingerprints are compared only if both sides have one.  But a caller that always gives one
 * has not made a result without, unless it was imported.
 */
static bool
is_mismatch(const ClaimRequest *request, const StoreRow *row)
{
	if (!request->has_fingerprint)
		return false;
	if (!row->has_fingerprint)
		return request->strict && row->state == STORE_FINISHED;
	if (memcmp(row->fingerprint, fingerprint_any, FINGERPRINT_BYTES) == 0)
		return false;
	return memcmp(request->fingerprint, row->fingerprint, FINGERPRINT_BYTES) != 0;
}

/* ------------------------------------------------------------------------
 * The protocol that all claims share
 * ------------------------------------------------------------------------
 */

/*
 * Has a lease that this transaction has begun or changed run out before the transaction
 * ended?  Taking over our own claim would do the work twice in one transaction.  If the row
 * itself has expired, the transaction can no longer commit.
 */
static bool
is_own_lapsed(const IdemKey *key, const StoreRow *row)
{
	if (!row->own)
		return false;
	if (row->state == STORE_EXPIRED && pending_leased(key, NO_FENCE))
		error_expired_before_commit(key);
	return row->state == STORE_ABANDONED && row->fence != NO_FENCE &&
		pending_leased(key, row->fence);
}

/* When a claim takes the key's lock. */
typedef enum LockUse
{
	LOCK_IF_FREE, /* before it looks, without waiting; a finished row needs no lock */
	LOCK_FIRST,	  /* before it looks, waiting if necessary */
	LOCK_AT_NEED  /* only to take over a leased row: a batch would fill the lock table */
} LockUse;

typedef struct Attempt
{
	const ClaimRequest *request;
	LockUse lock_use;
	TimestampTz wait_until; /* DT_NOEND: as long as the session's timeouts allow */
	bool wait_for_lease;	/* for a running lease, too */

	/* Write the claim's row over "row".  False if a writer without the lock was faster. */
	bool (*write)(struct Attempt *attempt);

	StoreRow *row;		 /* the last look */
	MemoryContext looks; /* of the looks after a wait for a lease; NULL before the first */
	bool locked;
	int64 fence;			/* of a leased claim that was started */
	TimestampTz expires_at; /* of a finished row that was written */
	const StoreWrite *import;
} Attempt;

static bool
take_lock(const Attempt *attempt)
{
	const IdemKey *key = &attempt->request->key;

	switch (attempt->lock_use)
	{
		case LOCK_IF_FREE:
			return lock_try(key);
		case LOCK_FIRST:
			lock_wait(key);
			return true;
		case LOCK_AT_NEED:
			break;
	}
	return false;
}

static bool
wait_for_key_lock(const IdemKey *key, TimestampTz wait_until)
{
	if (!TIMESTAMP_IS_NOEND(wait_until))
		return lock_wait_until(key, wait_until);
	lock_wait(key);
	return true;
}

static void
give_lock_back(Attempt *attempt)
{
	if (attempt->locked)
		lock_release(&attempt->request->key);
	attempt->locked = false;
}

static ClaimDecision
decide(const Attempt *attempt)
{
	const StoreRow *row = attempt->row;
	ClaimView view = {
		.state = row->state,
		.unseen = row->unseen,
		.mismatch = is_mismatch(attempt->request, row),
		.own_lapsed = is_own_lapsed(&attempt->request->key, row),
		.exhausted = row->state == STORE_ABANDONED && attempt->request->max_attempts > 0 &&
			row->attempt >= attempt->request->max_attempts,
	};

	/* every change to a leased row needs the key's lock, in a batch too */
	view.may_claim = attempt->locked || attempt->write == NULL ||
		(attempt->lock_use == LOCK_AT_NEED && row->state != STORE_ABANDONED);
	return decide_claim(&view);
}

/*
 * Look at the row.  A wait for a lease looks many times, so each look frees what the one
 * before has copied; the last one is the caller's.
 */
static void
look(Attempt *attempt)
{
	MemoryContext old = CurrentMemoryContext;

	if (attempt->looks != NULL)
	{
		MemoryContextReset(attempt->looks);
		MemoryContextSwitchTo(attempt->looks);
	}
	store_probe(&attempt->request->key, attempt->row);
	MemoryContextSwitchTo(old);
}

/*
 * Wait for a change of a leased row.  Our own lease would only run out: nobody else can end
 * it before we commit.
 */
static bool
wait_for_lease(Attempt *attempt)
{
	const StoreRow *row = attempt->row;

	if (!attempt->wait_for_lease || row->own)
		return false;
	if (!store_wait_lease(&attempt->request->key, row->lease_until, attempt->wait_until))
		return false;
	if (attempt->looks == NULL)
		attempt->looks = AllocSetContextCreate(CurrentMemoryContext, "looks at a leased claim",
											   ALLOCSET_SMALL_SIZES);
	return true;
}

/*
 * Write without a look, as if the key were absent.  The insertion finds a row of the key, in
 * whatever state, and then leaves nothing but a dead tuple.  So this is for callers to whom
 * a known key is an error, and only as long as keys are new.
 */
static bool
write_first(Attempt *attempt)
{
	if (!attempt->request->insert_first || attempt->lock_use != LOCK_AT_NEED || !store_likely_new())
		return false;
	memset(attempt->row, 0, sizeof(*attempt->row));
	attempt->row->state = STORE_ABSENT;
	attempt->row->unlooked = true;
	return attempt->write(attempt);
}

/*
 * Claim the key, or return why it cannot be claimed.  Returns DECIDE_WAIT_ROW,
 * DECIDE_WAIT_LOCK and DECIDE_LEASED only when the wait has timed out.  After DECIDE_CLAIM a
 * lock that was taken is still held; after any other result it is not.  Without "write"
 * nothing is claimed: DECIDE_CLAIM then means that the key is free.
 */
static ClaimDecision
attempt_claim(Attempt *attempt)
{
	const IdemKey *key = &attempt->request->key;

	attempt->locked = take_lock(attempt);
	if (attempt->write != NULL && write_first(attempt))
		return DECIDE_CLAIM;
	for (;;)
	{
		ClaimDecision decision;

		CHECK_FOR_INTERRUPTS();
		look(attempt);
		decision = decide(attempt);
		if (decision == DECIDE_CLAIM)
		{
			if (attempt->write == NULL || attempt->write(attempt))
				return decision;
			continue;
		}

		give_lock_back(attempt);
		switch (decision)
		{
			case DECIDE_WAIT_ROW:
				if (!store_wait(key, &attempt->row->holder, attempt->wait_until))
					return decision;
				attempt->locked = take_lock(attempt);
				break;
			case DECIDE_WAIT_LOCK:
				if (!wait_for_key_lock(key, attempt->wait_until))
					return decision;
				attempt->locked = true;
				break;
			case DECIDE_LEASED:
				if (!wait_for_lease(attempt))
					return decision;
				attempt->locked = take_lock(attempt);
				break;
			default:
				return decision;
		}
	}
}

/* ------------------------------------------------------------------------
 * Begin and finish
 * ------------------------------------------------------------------------
 */

const char *const claim_begin_states[] = {
	[BEGIN_STARTED] = "started",		 [BEGIN_REPLAYED] = "replayed",
	[BEGIN_IN_PROGRESS] = "in_progress", [BEGIN_MISMATCH] = "mismatch",
	[BEGIN_EXHAUSTED] = "exhausted",
};

/*
 * A transaction claim is only remembered here; its row is written when it finishes.  A
 * leased claim is written at once, so that other sessions see it as soon as it commits.
 */
static bool
write_begin(Attempt *attempt)
{
	const ClaimRequest *request = attempt->request;
	const StoreRow *row = attempt->row;
	const IdemKey *key = &request->key;
	StoreWrite write = {.fence = NO_FENCE};

	if (XactReadOnly)
		error_read_only(key, "claim");

	if (request->lease == NULL)
	{
		pending_begin(key, &request->ttl, request->now, request_fingerprint(request), row->state,
					  row->fence);
		return true;
	}

	write.fingerprint = request_fingerprint(request);
	write.created_at = request->now;
	write.ttl = request->ttl;
	write.lease_until = ttl_after(GetCurrentTimestamp(), request->lease, "lease", key);
	write.expires_at = lease_expiry(write.lease_until, &request->ttl, key);
	write.fence = store_new_fence(key, row->fence);
	if (!store_claim(key, &write, row))
		return false;
	pending_lease(key, write.fence, write.expires_at);
	attempt->fence = write.fence;
	return true;
}

static BeginState
try_begin(Attempt *attempt)
{
	const IdemKey *key = &attempt->request->key;

	/* a second begin of our own open claim must not wait: it would wait for itself */
	if (pending_is_open(key))
		return BEGIN_IN_PROGRESS;

	switch (attempt_claim(attempt))
	{
		case DECIDE_CLAIM:
			lock_show(key);
			return BEGIN_STARTED;
		case DECIDE_FINISHED:
			return BEGIN_REPLAYED;
		case DECIDE_MISMATCH:
			return BEGIN_MISMATCH;
		case DECIDE_EXHAUSTED:
			return BEGIN_EXHAUSTED;
		case DECIDE_UNSEEN:
			error_serialization(key);
		case DECIDE_LEASED:
		case DECIDE_OWN_LAPSED:
		case DECIDE_WAIT_ROW:
		case DECIDE_WAIT_LOCK:
			break;
	}
	return BEGIN_IN_PROGRESS;
}

static void
count_begin(BeginState state, const StoreRow *row)
{
	static const StatCounter counters[] = {
		[BEGIN_STARTED] = STAT_STARTED,			[BEGIN_REPLAYED] = STAT_REPLAYED,
		[BEGIN_IN_PROGRESS] = STAT_IN_PROGRESS, [BEGIN_MISMATCH] = STAT_MISMATCHED,
		[BEGIN_EXHAUSTED] = STAT_EXHAUSTED,
	};

	stats_count(counters[state], 1);
	if (state == BEGIN_STARTED && row->state == STORE_ABANDONED)
		stats_count(STAT_TAKEN_OVER, 1);
}

BeginState
claim_begin(const ClaimRequest *request, TimestampTz wait_until, StoreRow *row, int64 *fence)
{
	Attempt attempt = {
		.request = request,
		.lock_use = LOCK_IF_FREE,
		.wait_until = wait_until,
		.wait_for_lease = true,
		.write = write_begin,
		.row = row,
		.fence = NO_FENCE,
	};
	BeginState state = try_begin(&attempt);

	*fence = attempt.fence;
	count_begin(state, row);
	return state;
}

double
claim_retry_after(const StoreRow *row)
{
	if (row->state != STORE_LEASED)
		return idem_retry_after / 1000.0;
	if (TIMESTAMP_IS_NOEND(row->lease_until))
		return get_float8_infinity();
	return Max(row->lease_until - GetCurrentTimestamp(), 0) / (double) USECS_PER_SEC;
}

void
claim_finish_open(const IdemKey *key, PendingClaim *claim, const ClaimAnswer *answer)
{
	StoreWrite write = {.has_result = answer->has_result,
						.result = answer->result,
						.failed = answer->failed,
						.fence = NO_FENCE};

	write.fingerprint = claim->has_fingerprint ? claim->fingerprint : NULL;
	write.created_at = claim->begun_at;
	write.finished_at = GetCurrentTimestamp();
	write.expires_at =
		ttl_after(write.finished_at, answer->ttl != NULL ? answer->ttl : &claim->ttl, "ttl", key);

	store_finish(key, &write, claim->seen, claim->fence);
	pending_finish(claim, write.expires_at);
	stats_count(answer->failed ? STAT_FAILED : STAT_FINISHED, 1);
}

/* The work since the begin may have finished, released or replaced the claim. */
void
claim_finish(const ClaimRequest *request, const ClaimAnswer *answer)
{
	const IdemKey *key = &request->key;
	PendingClaim *mine = pending_find(key);

	if (XactReadOnly)
		error_read_only(key, "finish");
	if (mine == NULL || mine->state != PENDING_OPEN)
		lease_error_nothing_open(key, mine);
	if (mine->has_fingerprint != request->has_fingerprint ||
		(mine->has_fingerprint &&
		 memcmp(mine->fingerprint, request->fingerprint, FINGERPRINT_BYTES) != 0))
		error_no_claim(key);
	claim_finish_open(key, mine, answer);
}

void
claim_finish_any(const IdemKey *key, int64 fence, const ClaimAnswer *answer)
{
	PendingClaim *mine = pending_find(key);

	if (mine == NULL && fence == NO_FENCE)
		lease_error_nothing_open(key, mine);
	if (XactReadOnly)
		error_read_only(key, "finish");
	if (lease_meant(mine, fence != NO_FENCE))
		lease_finish(key, fence, mine, answer);
	else if (mine != NULL && mine->state == PENDING_OPEN)
		claim_finish_open(key, mine, answer);
	else
		lease_error_nothing_open(key, mine);
}

/* ------------------------------------------------------------------------
 * Claim and finish at once
 * ------------------------------------------------------------------------
 */

StoreWrite
claim_finished_row(const ClaimRequest *request)
{
	TimestampTz now = GetCurrentTimestamp();

	return (StoreWrite){
		.fingerprint = request_fingerprint(request),
		.created_at = now,
		.finished_at = now,
		.expires_at = ttl_after(now, &request->ttl, "ttl", &request->key),
		.fence = NO_FENCE,
	};
}

/* Answer only from a row that the snapshot can see and that has the same request. */
static void
check_same_request(const ClaimRequest *request, const StoreRow *row)
{
	if (row->unseen)
		error_serialization(&request->key);
	if (is_mismatch(request, row))
	{
		stats_count(STAT_MISMATCHED, 1);
		error_mismatch(&request->key);
	}
}

/* Waiting for our own open claim would never end. */
static void
refuse_own_claim(const IdemKey *key)
{
	if (pending_is_open(key))
		error_own_claim(key);
}

static bool
write_finished(Attempt *attempt)
{
	const IdemKey *key = &attempt->request->key;
	StoreWrite write = claim_finished_row(attempt->request);

	attempt->expires_at = write.expires_at;
	return store_claim(key, &write, attempt->row);
}

/* A read-only transaction may learn that a key is taken, but cannot claim one. */
static bool
claim_read_only(const ClaimRequest *request)
{
	StoreRow row;

	store_probe(&request->key, &row);
	if (row.state != STORE_FINISHED)
		error_read_only(&request->key, "claim");
	check_same_request(request, &row);
	return false;
}

static bool
try_claim(const ClaimRequest *request, bool lock, TimestampTz *expires_at)
{
	const IdemKey *key = &request->key;
	StoreRow row;
	Attempt attempt = {
		.request = request,
		.lock_use = lock ? LOCK_FIRST : LOCK_AT_NEED,
		.wait_until = DT_NOEND,
		.write = write_finished,
		.row = &row,
	};
	ClaimDecision decision;

	refuse_own_claim(key);
	if (XactReadOnly)
		return claim_read_only(request);

	decision = attempt_claim(&attempt);
	if (row.state == STORE_LEASED)
		error_leased(key);
	if (decision == DECIDE_OWN_LAPSED)
		error_own_claim(key);
	if (decision != DECIDE_CLAIM)
	{
		check_same_request(request, &row);
		return false;
	}

	/* The row holds the key from now on, so free the lock's entry in the lock table. */
	give_lock_back(&attempt);
	*expires_at = attempt.expires_at;
	return true;
}

bool
claim_write(const ClaimRequest *request, bool lock, TimestampTz *expires_at)
{
	bool written = try_claim(request, lock, expires_at);

	if (!written)
		stats_count(STAT_DUPLICATES, 1);
	return written;
}

void
claim_stays(const ClaimRequest *request, TimestampTz expires_at)
{
	pending_written(&request->key, expires_at);
	stats_count(STAT_CLAIMED, 1);
}

bool
claim_once(const ClaimRequest *request, bool lock)
{
	TimestampTz expires_at;

	if (!claim_write(request, lock, &expires_at))
		return false;
	claim_stays(request, expires_at);
	return true;
}

bool
claim_taken(const ClaimRequest *request, bool *abandoned)
{
	const IdemKey *key = &request->key;
	StoreRow row;
	Attempt look = {
		.request = request,
		.lock_use = LOCK_AT_NEED,
		.wait_until = DT_NOEND,
		.row = &row,
	};

	refuse_own_claim(key);
	(void) attempt_claim(&look);
	if (row.state == STORE_LEASED)
		error_leased(key);
	*abandoned = row.state == STORE_ABANDONED;
	if (row.state != STORE_FINISHED)
		return false;
	check_same_request(request, &row);
	stats_count(STAT_DUPLICATES, 1);
	return true;
}

/* ------------------------------------------------------------------------
 * Import
 * ------------------------------------------------------------------------
 */

static bool
write_import(Attempt *attempt)
{
	return store_claim(&attempt->request->key, attempt->import, attempt->row);
}

bool
claim_import(const IdemKey *key, const StoreWrite *write)
{
	/* an abandoned claim has been begun once at least, so it is not taken over */
	ClaimRequest request = {.key = *key, .max_attempts = 1};
	StoreRow row;
	Attempt attempt = {
		.request = &request,
		.lock_use = LOCK_AT_NEED,
		.wait_until = DT_NOEND,
		.write = write_import,
		.row = &row,
		.import = write,
	};
	ClaimDecision decision;

	refuse_own_claim(key);
	decision = attempt_claim(&attempt);
	if (decision == DECIDE_UNSEEN)
		error_serialization(key);
	return decision == DECIDE_CLAIM;
}
