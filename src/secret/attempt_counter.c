/*-------------------------------------------------------------------------
 *
 * attempt_counter.c
 *	  Attempts at codes, counted even if the caller rolls back.
 *
 * A chained hash table in shared memory under a single lock: people type codes slowly, so
 * there is little contention.  Nothing under the lock raises an error or allocates memory.
 *
 * A purpose of a database forms a group, which may hold at most as many entries as are free.
 * So one flooded purpose takes half of the table and leaves half, two leave a third, and so
 * on.  A keyed hash maps purposes to groups, so nobody can choose a group.
 *
 * The transaction remembers what its rows count, by subtransaction, and frees the entries
 * after its commit, where nothing may fail.  An entry stays if another session has increased
 * it since.  After PREPARE all entries stay.
 *
 * A right attempt is uncounted as soon as it is known to be right, whether or not its
 * transaction commits.  So only wrong attempts remain counted.  That gives away nothing: the
 * caller that was right knows the code anyway.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/hashfn.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/key.h"
#include "base/random.h"
#include "base/shmem.h"
#include "base/siphash.h"
#include "secret/attempt_counter.h"
#include "secret/secret_keys.h"

#define NO_ENTRY (-1)

#define NGROUPS 1024

/* how often a session warns of a full table */
#define WARN_EVERY USECS_PER_MINUTE

typedef struct AttemptKey
{
	pg_uuid_t series;
	Oid database; /* a dump may bring a series to another one */
} AttemptKey;

/* All fields: under the table's lock. */
typedef struct AttemptEntry
{
	AttemptKey key;
	int count;
	TimestampTz until; /* when the entry expires */
	int in_row;		   /* the row's committed count when the entry was made */
	int group;
	int next; /* in its bucket, or in the free list */
} AttemptEntry;

typedef struct AttemptTable
{
	LWLock lock;
	int nentries;	/* never changes; as many buckets */
	SipHashKey key; /* of groups; never changes */
	int free;		/* first of the free entries */
	int nfree;
	TimestampTz next_expiry; /* no entry expires before */
	int group_size[NGROUPS]; /* entries, by group */

	/* then int bucket[nentries], and the entries */
} AttemptTable;

/* What a row of this transaction counts, and whether the series is new with it. */
typedef struct RowCount
{
	slist_node node;
	pg_uuid_t series;
	int count;
	bool is_new;
	SubTransactionId sub;
} RowCount;

static Size attempt_size(void);
static void attempt_create(void *address, int tranche);
static void attempt_save(void *address, ShmemFile *file);
static bool attempt_load(void *address, ShmemFile *file);

static ShmemArea area = {
	.name = "idempotency_guess",
	.size = attempt_size,
	.create = attempt_create,
	.save = attempt_save,
	.load = attempt_load,
};
static slist_head row_counts = SLIST_STATIC_INIT(row_counts);

/* ------------------------------------------------------------------------
 * The table
 * ------------------------------------------------------------------------
 */

static int *
buckets(AttemptTable *table)
{
	return (int *) ((char *) table + MAXALIGN(sizeof(AttemptTable)));
}

static AttemptEntry *
entries(AttemptTable *table)
{
	return (AttemptEntry *) ((char *) buckets(table) + MAXALIGN(table->nentries * sizeof(int)));
}

static Size
attempt_size(void)
{
	Size size = MAXALIGN(sizeof(AttemptTable));

	size = add_size(size, MAXALIGN(mul_size(idem_guess_entries, sizeof(int))));
	return add_size(size, mul_size(idem_guess_entries, sizeof(AttemptEntry)));
}

static void
attempt_create(void *address, int tranche)
{
	AttemptTable *table = address;

	LWLockInitialize(&table->lock, tranche);
	table->nentries = idem_guess_entries;
	random_bytes(&table->key, sizeof(table->key));
	table->free = 0;
	table->nfree = table->nentries;
	memset(table->group_size, 0, sizeof(table->group_size));
	table->next_expiry = DT_NOEND;
	for (int i = 0; i < table->nentries; i++)
	{
		buckets(table)[i] = NO_ENTRY;
		entries(table)[i].next = i + 1 < table->nentries ? i + 1 : NO_ENTRY;
	}
}

static AttemptKey
attempt_key(const pg_uuid_t *series)
{
	AttemptKey key = {.series = *series, .database = MyDatabaseId};

	return key;
}

static int *
find_bucket(AttemptTable *table, const AttemptKey *key)
{
	return &buckets(
		table)[hash_bytes((const unsigned char *) key, sizeof(*key)) % (uint32) table->nentries];
}

/* The link to the entry, or the NO_ENTRY link that ends its bucket. */
static int *
find_link(AttemptTable *table, const AttemptKey *key)
{
	int *link = find_bucket(table, key);

	while (*link != NO_ENTRY && memcmp(&entries(table)[*link].key, key, sizeof(*key)) != 0)
		link = &entries(table)[*link].next;
	return link;
}

static void
free_entry(AttemptTable *table, int *link)
{
	int n = *link;
	AttemptEntry *entry = &entries(table)[n];

	*link = entry->next;
	entry->next = table->free;
	table->free = n;
	table->nfree++;
	table->group_size[entry->group]--;
}

static void
free_expired(AttemptTable *table)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = DT_NOEND;

	if (table->next_expiry > now)
		return;
	for (int i = 0; i < table->nentries; i++)
	{
		int *link = &buckets(table)[i];

		while (*link != NO_ENTRY)
		{
			AttemptEntry *entry = &entries(table)[*link];

			if (entry->until <= now)
				free_entry(table, link);
			else
			{
				next = Min(next, entry->until);
				link = &entry->next;
			}
		}
	}
	table->next_expiry = next;
}

static AttemptEntry *
find_entry(AttemptTable *table, const AttemptKey *key)
{
	int n = *find_link(table, key);

	return n == NO_ENTRY ? NULL : &entries(table)[n];
}

static void
keep_until(AttemptTable *table, AttemptEntry *entry, TimestampTz until)
{
	entry->until = Max(entry->until, until);
	table->next_expiry = Min(table->next_expiry, entry->until);
}

/* NULL if no entry is free. */
static AttemptEntry *
make_entry(AttemptTable *table, const AttemptKey *key, int group)
{
	int *bucket = find_bucket(table, key);
	int n = table->free;
	AttemptEntry *entry;

	if (n == NO_ENTRY)
		return NULL;
	entry = &entries(table)[n];
	table->free = entry->next;
	table->nfree--;
	table->group_size[group]++;
	memset(entry, 0, sizeof(*entry));
	entry->key = *key;
	entry->group = group;
	entry->next = *bucket;
	*bucket = n;
	return entry;
}

/* NULL also if the group holds as many entries as are free: see the file header. */
static AttemptEntry *
make_fair_entry(AttemptTable *table, const AttemptKey *key, int group)
{
	if (table->group_size[group] >= table->nfree)
		free_expired(table);
	return table->group_size[group] >= table->nfree ? NULL : make_entry(table, key, group);
}

/* ------------------------------------------------------------------------
 * Counting
 * ------------------------------------------------------------------------
 */

static AttemptTable *
get_table(void)
{
	static bool warned = false;
	AttemptTable *table = shmem_get(&area);

	if (table == NULL && !warned)
	{
		warned = true;
		ereport(WARNING,
				(errmsg("guesses at codes are forgotten when the calling transaction rolls back"),
				 errdetail("There is no shared memory to count them in."),
				 errhint("Add \"idempotency\" to \"shared_preload_libraries\".")));
	}
	return table;
}

static int
find_group(AttemptTable *table, const char *purpose, int purpose_len)
{
	struct
	{
		Oid database;
		char purpose[KEY_MAX_BYTES];
	} data; /* large, so not zeroed */
	SipHash hash;

	Assert(purpose_len <= KEY_MAX_BYTES);
	data.database = MyDatabaseId;
	memcpy(data.purpose, purpose, purpose_len);
	hash = siphash(&table->key, &data, sizeof(Oid) + purpose_len);
	return (int) (hash.half[0] % NGROUPS);
}

static void
warn_full(int group_size, int nfree)
{
	static TimestampTz warned = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (now - warned < WARN_EVERY)
		return;
	warned = now;
	ereport(WARNING,
			(errmsg("a guess at a code was refused, as no more can be counted"),
			 errdetail("Codes of this purpose hold %d of %d entries of the table of guesses, of "
					   "which %d are free.",
					   group_size, ((AttemptTable *) shmem_get(&area))->nentries, nfree),
			 errhint("Increase \"idempotency.guess_entries\".")));
}

int
attempt_count(const pg_uuid_t *series, const char *purpose, int purpose_len, int in_row,
			  int max_attempts, TimestampTz until)
{
	AttemptTable *table = get_table();
	AttemptKey key = attempt_key(series);
	AttemptEntry *entry;
	int result;
	int group;
	int group_size;
	int nfree;

	if (table == NULL)
		return in_row < max_attempts ? in_row + 1 : ATTEMPT_NONE_LEFT;

	group = find_group(table, purpose, purpose_len);
	LWLockAcquire(&table->lock, LW_EXCLUSIVE);
	entry = find_entry(table, &key);
	if (Max(in_row, entry == NULL ? 0 : entry->count) >= max_attempts)
		result = ATTEMPT_NONE_LEFT;
	else
	{
		if (entry == NULL)
		{
			/* no entry: no attempt of this transaction, so the row's count is committed */
			entry = make_fair_entry(table, &key, group);
			if (entry != NULL)
				entry->in_row = in_row;
		}
		if (entry == NULL)
			result = ATTEMPT_TABLE_FULL;
		else
		{
			result = entry->count = Max(in_row, entry->count) + 1;
			keep_until(table, entry, until);
		}
	}
	group_size = table->group_size[group];
	nfree = table->nfree;
	LWLockRelease(&table->lock);
	if (result == ATTEMPT_TABLE_FULL)
		warn_full(group_size, nfree);
	return result;
}

/* No other session has counted since: the caller holds a lock on the row. */
void
attempt_give_back(const pg_uuid_t *series)
{
	AttemptTable *table = shmem_get(&area);
	AttemptKey key = attempt_key(series);
	int *link;

	if (table == NULL)
		return;
	LWLockAcquire(&table->lock, LW_EXCLUSIVE);
	link = find_link(table, &key);
	if (*link != NO_ENTRY)
	{
		AttemptEntry *entry = &entries(table)[*link];

		if (--entry->count <= entry->in_row)
			free_entry(table, link);
	}
	LWLockRelease(&table->lock);
}

int
attempt_take_over(const pg_uuid_t *series, int in_row, TimestampTz until)
{
	AttemptTable *table = get_table();
	AttemptKey key = attempt_key(series);
	AttemptEntry *entry;
	int result = in_row;

	if (table == NULL)
		return in_row;
	LWLockAcquire(&table->lock, LW_EXCLUSIVE);
	entry = find_entry(table, &key);
	if (entry != NULL)
	{
		result = Max(in_row, entry->count);
		keep_until(table, entry, until);
	}
	LWLockRelease(&table->lock);
	return result;
}

/* ------------------------------------------------------------------------
 * What the rows count
 * ------------------------------------------------------------------------
 */

static RowCount *
add_row(const pg_uuid_t *series)
{
	RowCount *row = MemoryContextAllocZero(TopTransactionContext, sizeof(RowCount));

	row->series = *series;
	row->sub = GetCurrentSubTransactionId();
	slist_push_head(&row_counts, &row->node);
	return row;
}

void
attempt_in_row(const pg_uuid_t *series, int count)
{
	if (shmem_get(&area) != NULL && count > 0)
		add_row(series)->count = count;
}

void
attempt_new_series(const pg_uuid_t *series)
{
	if (shmem_get(&area) != NULL)
		add_row(series)->is_new = true;
}

/*
 * After a commit the row has the count, so the entry is freed unless another session has
 * increased it.  After a rollback a new series has no code, so its entry is freed.
 */
static void
end_row(const RowCount *row, bool committed)
{
	AttemptTable *table = shmem_get(&area);
	AttemptKey key = attempt_key(&row->series);
	AttemptEntry *entry;
	int *link;

	if (committed ? row->count == 0 : !row->is_new)
		return;
	LWLockAcquire(&table->lock, LW_EXCLUSIVE);
	link = find_link(table, &key);
	entry = *link == NO_ENTRY ? NULL : &entries(table)[*link];
	if (entry != NULL && (!committed || entry->count <= row->count))
		free_entry(table, link);
	LWLockRelease(&table->lock);
}

static void
xact_callback(XactEvent event, void *arg)
{
	slist_iter iter;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	if (event != XACT_EVENT_PREPARE)
		slist_foreach(iter, &row_counts)
			end_row(slist_container(RowCount, node, iter.cur), event == XACT_EVENT_COMMIT);
	/* the memory goes with TopTransactionContext */
	slist_init(&row_counts);
}

static void
subxact_callback(SubXactEvent event, SubTransactionId sub, SubTransactionId parent, void *arg)
{
	slist_mutable_iter iter;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	slist_foreach_modify(iter, &row_counts)
	{
		RowCount *row = slist_container(RowCount, node, iter.cur);

		/* newest first: the rest is older than this subtransaction */
		if (row->sub != sub)
			break;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			row->sub = parent;
		else
		{
			slist_delete_current(&iter);
			end_row(row, false);
		}
	}
}

/* ------------------------------------------------------------------------
 * Over a restart
 * ------------------------------------------------------------------------
 */

typedef struct SavedAttempts
{
	SipHashKey key;
	int64 count;
} SavedAttempts;

static void
attempt_save(void *address, ShmemFile *file)
{
	AttemptTable *table = address;
	SavedAttempts header = {.key = table->key, .count = table->nentries - table->nfree};

	shmem_write(file, &header, sizeof(header));
	for (int i = 0; i < table->nentries; i++)
		for (int n = buckets(table)[i]; n != NO_ENTRY; n = entries(table)[n].next)
			shmem_write(file, &entries(table)[n], sizeof(AttemptEntry));
}

/* What does not fit into a smaller table is lost. */
static bool
attempt_load(void *address, ShmemFile *file)
{
	AttemptTable *table = address;
	TimestampTz now = GetCurrentTimestamp();
	SavedAttempts header;

	if (!shmem_read(file, &header, sizeof(header)))
		return false;
	table->key = header.key;
	for (int64 i = 0; i < header.count; i++)
	{
		AttemptEntry saved;
		AttemptEntry *entry;

		if (!shmem_read(file, &saved, sizeof(saved)) || saved.group < 0 || saved.group >= NGROUPS)
			return false;
		entry = saved.until <= now ? NULL : make_entry(table, &saved.key, saved.group);
		if (entry == NULL)
			continue;
		entry->count = saved.count;
		entry->in_row = saved.in_row;
		keep_until(table, entry, saved.until);
	}
	return true;
}

void
attempt_init(void)
{
	shmem_register(&area);
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}
