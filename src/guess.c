/*-------------------------------------------------------------------------
 *
 * guess.c
 *	  Guesses at codes, counted though the caller rolls back.
 *
 * A chained hash table in shared memory, all of it under one lock: who types
 * codes is no hurry to a computer.  Nothing under the lock raises or allocates.
 *
 * The transaction remembers what its rows count, by subtransaction, and gives
 * the entries back after its commit, where nothing may fail.  An entry that has
 * been counted up by somebody else since stays.  After PREPARE all stay.
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

#include "guc.h"
#include "guess.h"
#include "shmem.h"

#define NO_ENTRY (-1)

/* An entry lasts a day at most, so that no table is full for ever. */
#define KEPT USECS_PER_DAY

/* how often a session complains of a full table */
#define WARN_EVERY USECS_PER_MINUTE

typedef struct GuessKey
{
	pg_uuid_t series;
	Oid database; /* a dump may bring a series to another one */
} GuessKey;

/* All fields: under the table's lock. */
typedef struct GuessEntry
{
	GuessKey key;
	int count;
	TimestampTz until; /* from then on it means nothing */
	int next;		   /* in its bucket, or in the list of free ones */
} GuessEntry;

typedef struct GuessTable
{
	LWLock lock;
	int nentries;			 /* never changes; as many buckets */
	int free;				 /* first of the free entries */
	TimestampTz next_expiry; /* none expires before */

	/* then int bucket[nentries], and the entries */
} GuessTable;

/* What a row of this transaction counts, and whether the series is new with it. */
typedef struct RowCount
{
	slist_node node;
	pg_uuid_t series;
	int count;
	bool is_new;
	SubTransactionId sub;
} RowCount;

static Size guess_size(void);
static void guess_create(void *address, int tranche);

static ShmemArea area = {.name = "idempotency_guess", .size = guess_size, .create = guess_create};
static slist_head row_counts = SLIST_STATIC_INIT(row_counts);

/* ------------------------------------------------------------------------
 * The table
 * ------------------------------------------------------------------------
 */

static int *
buckets(GuessTable *table)
{
	return (int *) ((char *) table + MAXALIGN(sizeof(GuessTable)));
}

static GuessEntry *
entries(GuessTable *table)
{
	return (GuessEntry *) ((char *) buckets(table) + MAXALIGN(table->nentries * sizeof(int)));
}

static Size
guess_size(void)
{
	Size size = MAXALIGN(sizeof(GuessTable));

	size = add_size(size, MAXALIGN(mul_size(idem_guess_entries, sizeof(int))));
	return add_size(size, mul_size(idem_guess_entries, sizeof(GuessEntry)));
}

static void
guess_create(void *address, int tranche)
{
	GuessTable *table = address;

	LWLockInitialize(&table->lock, tranche);
	table->nentries = idem_guess_entries;
	table->free = 0;
	table->next_expiry = DT_NOEND;
	for (int i = 0; i < table->nentries; i++)
	{
		buckets(table)[i] = NO_ENTRY;
		entries(table)[i].next = i + 1 < table->nentries ? i + 1 : NO_ENTRY;
	}
}

static GuessKey
guess_key(const pg_uuid_t *series)
{
	GuessKey key = {.series = *series, .database = MyDatabaseId};

	return key;
}

static int *
find_bucket(GuessTable *table, const GuessKey *key)
{
	return &buckets(
		table)[hash_bytes((const unsigned char *) key, sizeof(*key)) % (uint32) table->nentries];
}

/* The link that leads to the entry, or to where it would be. */
static int *
find_link(GuessTable *table, const GuessKey *key)
{
	int *link = find_bucket(table, key);

	while (*link != NO_ENTRY && memcmp(&entries(table)[*link].key, key, sizeof(*key)) != 0)
		link = &entries(table)[*link].next;
	return link;
}

static void
free_entry(GuessTable *table, int *link)
{
	int n = *link;
	GuessEntry *entry = &entries(table)[n];

	*link = entry->next;
	entry->next = table->free;
	table->free = n;
}

static void
free_expired(GuessTable *table)
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
			GuessEntry *entry = &entries(table)[*link];

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

static GuessEntry *
find_entry(GuessTable *table, const GuessKey *key)
{
	int n = *find_link(table, key);

	return n == NO_ENTRY ? NULL : &entries(table)[n];
}

static void
keep_until(GuessTable *table, GuessEntry *entry, TimestampTz until)
{
	entry->until = Max(entry->until, Min(until, GetCurrentTimestamp() + KEPT));
	table->next_expiry = Min(table->next_expiry, entry->until);
}

/* NULL: all are live */
static GuessEntry *
make_entry(GuessTable *table, const GuessKey *key)
{
	int *bucket = find_bucket(table, key);
	int n;
	GuessEntry *entry;

	if (table->free == NO_ENTRY)
		free_expired(table);
	n = table->free;
	if (n == NO_ENTRY)
		return NULL;

	entry = &entries(table)[n];
	table->free = entry->next;
	memset(entry, 0, sizeof(*entry));
	entry->key = *key;
	entry->next = *bucket;
	*bucket = n;
	return entry;
}

/* ------------------------------------------------------------------------
 * Counting
 * ------------------------------------------------------------------------
 */

static GuessTable *
get_table(void)
{
	static bool warned = false;
	GuessTable *table = shmem_get(&area);

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

static void
warn_full(void)
{
	static TimestampTz warned = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (now - warned < WARN_EVERY)
		return;
	warned = now;
	ereport(WARNING,
			(errmsg("a guess at a code was refused, as no more can be counted"),
			 errdetail("All %d entries of the table of guesses are in use.",
					   ((GuessTable *) shmem_get(&area))->nentries),
			 errhint("Increase \"idempotency.guess_entries\".")));
}

int
guess_count(const pg_uuid_t *series, int in_row, int limit, TimestampTz until)
{
	GuessTable *table = get_table();
	GuessKey key = guess_key(series);
	GuessEntry *entry;
	int result;

	if (table == NULL)
		return in_row < limit ? in_row + 1 : GUESS_LIMIT;

	LWLockAcquire(&table->lock, LW_EXCLUSIVE);
	entry = find_entry(table, &key);
	if (Max(in_row, entry == NULL ? 0 : entry->count) >= limit)
		result = GUESS_LIMIT;
	else
	{
		if (entry == NULL)
			entry = make_entry(table, &key);
		if (entry == NULL)
			result = GUESS_TABLE_FULL;
		else
		{
			result = entry->count = Max(in_row, entry->count) + 1;
			keep_until(table, entry, until);
		}
	}
	LWLockRelease(&table->lock);
	if (result == GUESS_TABLE_FULL)
		warn_full();
	return result;
}

int
guess_take_over(const pg_uuid_t *series, int in_row, TimestampTz until)
{
	GuessTable *table = get_table();
	GuessKey key = guess_key(series);
	GuessEntry *entry;
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
guess_in_row(const pg_uuid_t *series, int count)
{
	if (shmem_get(&area) != NULL)
		add_row(series)->count = count;
}

void
guess_new_series(const pg_uuid_t *series)
{
	if (shmem_get(&area) != NULL)
		add_row(series)->is_new = true;
}

/* Give the entry back if it has this count; any, if that is 0. */
static void
give_back(const RowCount *row, int count)
{
	GuessTable *table = shmem_get(&area);
	GuessKey key = guess_key(&row->series);
	int *link;

	LWLockAcquire(&table->lock, LW_EXCLUSIVE);
	link = find_link(table, &key);
	if (*link != NO_ENTRY && (count == 0 || entries(table)[*link].count == count))
		free_entry(table, link);
	LWLockRelease(&table->lock);
}

/*
 * After a commit: what the row counts need not be counted here.  After a
 * rollback: nobody can guess at codes that do not exist.
 */
static void
end_row(const RowCount *row, bool committed)
{
	if (committed && row->count > 0)
		give_back(row, row->count);
	else if (!committed && row->is_new)
		give_back(row, 0);
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

		/* the newest come first: what is older than the subtransaction is not its */
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

void
guess_init(void)
{
	shmem_register(&area);
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}
