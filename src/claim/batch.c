/*-------------------------------------------------------------------------
 *
 * batch.c
 *	  Claim many keys at once: look at many of them, then write those that are free.
 *
 * The order in which a session gets keys is always that of their digests, so that batches
 * cannot deadlock.  A key whose row has to be waited for or updated is claimed on its own,
 * after the free ones before it have been written.
 *
 * With insert_first, keys are written without a look while they are new.  If one of them is
 * known, the rows of that part are dead, and from there on each key is looked at: also in the
 * next batches, since a key that is known is no error if it has expired or is abandoned.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/memutils.h"

#include "claim/batch.h"
#include "claim/decide.h"
#include "claim/pending.h"
#include "stat/stats.h"
#include "store/store.h"

/*
 * How many keys are written at once: more each time, so that even a very large batch uses few
 * subtransactions.
 */
#define FIRST_PART 1000
#define MAX_PART (1 << 24)

/* a subtransaction costs more than it saves for fewer keys */
#define FEW_KEYS 8

/*
 * How many of the next batches look at each key, after one that has written in vain: twice as
 * many as the last time, and half as many after one that has not.
 */
static struct
{
	int left;
	int last;
} careful;

#define MAX_CAREFUL 1024

typedef struct Batch
{
	ClaimRequest request;
	StoreBatch *store; /* NULL: each key is claimed alone */
	BatchKey **free;   /* found free, and not yet written */
	int nfree;
	int part; /* write when there are so many */
	bool stop;
	MemoryContext per_key; /* reset after each key, and each part */
} Batch;

/* As key_cmp(), which decides, but faster. */
static uint64
digest_start(const BatchKey *key)
{
	uint64 start;

	memcpy(&start, key->key.digest.data, sizeof(start));
	return pg_ntoh64(start);
}

static inline int
by_digest(const BatchKey *x, const BatchKey *y)
{
	uint64 x_start = digest_start(x);
	uint64 y_start = digest_start(y);
	int c;

	if (x_start != y_start)
		return x_start < y_start ? -1 : 1;
	c = key_cmp(&x->key, &y->key);
	if (c != 0)
		return c;
	return x->position < y->position ? -1 : 1;
}

/* qsort() moves such large elements word by word */
#define ST_SORT sort_keys
#define ST_ELEMENT_TYPE BatchKey
#define ST_COMPARE(a, b) by_digest(a, b)
#define ST_SCOPE static
#define ST_DEFINE
#define ST_CHECK_FOR_INTERRUPTS
#include "lib/sort_template.h"

void
batch_sort(BatchKey *keys, int64 n)
{
	sort_keys(keys, n);
}

static bool
is_repeated(const BatchKey *keys, int64 i)
{
	return i > 0 && key_cmp(&keys[i].key, &keys[i - 1].key) == 0;
}

/* Claim a key by itself.  Each probe and insertion leaves a few kilobytes allocated. */
static void
claim_alone(Batch *batch, BatchKey *key)
{
	MemoryContext old = MemoryContextSwitchTo(batch->per_key);

	if (batch->store != NULL)
		store_batch_rest(batch->store);
	if (key->row != NULL)
		key->claimed = claim_import(&key->key, key->row);
	else
	{
		batch->request.key = key->key;
		key->claimed = claim_once(&batch->request, false);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->per_key);
}

/* Neither the commit guard nor the statistics know of imports; "claim" is then NULL. */
static void
note_written(Batch *batch, const StoreWrite *claim)
{
	for (int i = 0; i < batch->nfree; i++)
	{
		batch->free[i]->claimed = true;
		if (claim != NULL)
			pending_written(&batch->free[i]->key, claim->expires_at);
	}
	if (claim != NULL)
		stats_count(STAT_CLAIMED, batch->nfree);
}

static bool
write_together(Batch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(batch->per_key);
	const IdemKey **keys = palloc_array(const IdemKey *, batch->nfree);
	const StoreWrite **rows = palloc_array(const StoreWrite *, batch->nfree);
	bool import = batch->free[0]->row != NULL;
	StoreWrite claim;
	bool written;

	if (!import)
	{
		batch->request.key = batch->free[0]->key;
		claim = claim_finished_row(&batch->request);
	}
	for (int i = 0; i < batch->nfree; i++)
	{
		keys[i] = &batch->free[i]->key;
		rows[i] = import ? batch->free[i]->row : &claim;
	}
	MemoryContextSwitchTo(old);

	written = store_batch_write(batch->store, keys, rows, batch->nfree);
	if (written)
		note_written(batch, import ? NULL : &claim);
	MemoryContextReset(batch->per_key);
	return written;
}

static BatchKey *
claim_each(Batch *batch)
{
	batch->part = FIRST_PART;
	for (int i = 0; i < batch->nfree; i++)
	{
		claim_alone(batch, batch->free[i]);
		if (batch->stop && !batch->free[i]->claimed)
			return batch->free[i];
	}
	return NULL;
}

static BatchKey *claim_key(Batch *batch, BatchKey *key);

/* One of the keys that were taken for free is not. */
static BatchKey *
look_at_each(Batch *batch)
{
	int n = batch->nfree;
	BatchKey *stop = NULL;

	batch->request.insert_first = false;
	careful.last = Min(Max(careful.last * 2, 1), MAX_CAREFUL);
	careful.left = careful.last;
	batch->nfree = 0;
	/* what is found free goes into the same array, never past the one that is looked at */
	for (int i = 0; i < n && stop == NULL; i++)
	{
		CHECK_FOR_INTERRUPTS();
		stop = claim_key(batch, batch->free[i]);
	}
	return stop;
}

/* Write what was found free, or taken for free.  Returns a key at which to stop, or NULL. */
static BatchKey *
write_free(Batch *batch)
{
	BatchKey *stop = NULL;

	if (batch->nfree == 0)
		return NULL;
	if (batch->nfree >= FEW_KEYS)
	{
		if (write_together(batch))
		{
			batch->part = Min(batch->part * 2, MAX_PART);
			batch->nfree = 0;
			return NULL;
		}
		if (batch->request.insert_first)
		{
			stop = look_at_each(batch);
			return stop != NULL ? stop : write_free(batch);
		}
	}
	stop = claim_each(batch);
	batch->nfree = 0;
	return stop;
}

/* What a look at a key's row is enough for. */
typedef enum Look
{
	LOOK_FREE,	/* to write the key's row together with others */
	LOOK_TAKEN, /* to know that the key is taken */
	LOOK_AGAIN	/* nothing: claim the key alone */
} Look;

static Look
look(Batch *batch, const IdemKey *key)
{
	ClaimView view = {0};

	/* an open claim of our own is an error */
	if (batch->store == NULL || pending_is_open(key))
		return LOOK_AGAIN;
	if (batch->request.insert_first && store_batch_likely_new(batch->store))
		return LOOK_FREE;
	view.state = store_batch_probe(batch->store, key, &view.unseen);
	/* an expired row is updated, which may wait for a purge */
	view.may_claim = view.state == STORE_ABSENT;
	switch (decide_claim(&view))
	{
		case DECIDE_CLAIM:
			return LOOK_FREE;
		case DECIDE_FINISHED:
			return LOOK_TAKEN;
		default:
			return LOOK_AGAIN;
	}
}

/* Returns a key at which to stop, or NULL. */
static BatchKey *
claim_key(Batch *batch, BatchKey *key)
{
	BatchKey *stop = NULL;

	switch (look(batch, &key->key))
	{
		case LOOK_FREE:
			batch->free[batch->nfree++] = key;
			return batch->nfree < batch->part ? NULL : write_free(batch);
		case LOOK_TAKEN:
			if (key->row == NULL)
				stats_count(STAT_DUPLICATES, 1);
			break;
		case LOOK_AGAIN:
			/* it may have to wait, and must not while later keys are held or earlier ones free */
			stop = write_free(batch);
			if (stop != NULL)
				return stop;
			claim_alone(batch, key);
			break;
	}
	return batch->stop && !key->claimed ? key : NULL;
}

static BatchKey *
claim_keys(Batch *batch, BatchKey *keys, int64 n)
{
	for (int64 i = 0; i < n; i++)
	{
		BatchKey *stop = NULL;

		CHECK_FOR_INTERRUPTS();
		if (!is_repeated(keys, i))
			stop = claim_key(batch, &keys[i]);
		else if (batch->stop)
			stop = &keys[i];
		if (stop != NULL)
			return stop;
	}
	return write_free(batch);
}

BatchKey *
batch_claim(const ClaimRequest *request, BatchKey *keys, int64 n, bool stop)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "batch of claims", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Batch batch = {.request = *request, .part = FIRST_PART, .stop = stop};
	BatchKey *stopped;

	if (batch.request.insert_first && careful.left > 0)
	{
		careful.left--;
		batch.request.insert_first = false;
	}
	batch.free = MemoryContextAllocHuge(context, Max(Min(n, MAX_PART), 1) * sizeof(*batch.free));
	batch.per_key = AllocSetContextCreate(context, "key of a batch", ALLOCSET_DEFAULT_SIZES);
	/* a read-only transaction can only learn that keys are taken */
	if (n >= FEW_KEYS && !XactReadOnly)
		batch.store = store_batch_begin(keys[0].key.scope);
	stopped = claim_keys(&batch, keys, n);
	if (batch.request.insert_first)
		careful.last /= 2;
	if (batch.store != NULL)
		store_batch_end(batch.store);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return stopped;
}

void
batch_import(BatchKey *keys, int64 n)
{
	ClaimRequest none = {0};

	(void) batch_claim(&none, keys, n, false);
}
