/*-------------------------------------------------------------------------
 *
 * limit.c
 *	  The state of rate limits, in a table of fixed size in shared memory.
 *
 * A chained hash table, in partitions with a lock each.  A partition also has a
 * heap of its entries, by the time from which they carry no information: the first
 * is the one to reuse or to evict.  The first times of all partitions lie together,
 * where a look at them takes no lock, so entries move to where they are needed.
 *
 * An entry that was once used is in one partition; it goes from one to another
 * while both locks are held, taken in the order of the partitions.
 * Nothing under the locks raises or allocates.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "miscadmin.h"
#include "port/atomics.h"
#include "port/pg_bitutils.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "limit.h"
#include "secret.h"
#include "shmem.h"

#define NO_ENTRY (-1)
#define NO_PARTITION (-1)
#define NO_TIME PG_UINT64_MAX /* first time of an empty partition */

#define MAX_PARTITIONS 128
/* with fewer, some would be much fuller than others */
#define MIN_PARTITION_ENTRIES 512

typedef struct LimitEntry
{
	SipHash id;
	RateState state;
	int next; /* in its bucket */
	int slot; /* in its partition's heap */
} LimitEntry;

typedef struct HeapSlot
{
	int64 end; /* of its information */
	int entry;
} HeapSlot;

typedef union LimitPartition
{
	struct
	{
		LWLock lock; /* of the buckets, the entries in them, and the heap */
		int used;	 /* slots of the heap */
	};
	char padding[PG_CACHE_LINE_SIZE];
} LimitPartition;

typedef struct LimitTable
{
	/* never change */
	SipHashKey key;
	int nentries;
	int nbuckets;	 /* a power of 2 */
	int npartitions; /* a power of 2 */
	int heap_size;	 /* of each partition */

	pg_atomic_uint32 used; /* of the entries, those before this one */

	pg_atomic_uint64 first_end[MAX_PARTITIONS]; /* end of each heap's first, or NO_TIME */
	LimitPartition partition[MAX_PARTITIONS];

	/* then int bucket[nbuckets], the entries, and the heaps */
} LimitTable;

static Size limit_size(void);
static void limit_create(void *address, int tranche);
static void limit_save(void *address, FILE *file);
static bool limit_load(void *address, FILE *file);

static ShmemArea area = {
	.name = "idempotency_throttle",
	.size = limit_size,
	.create = limit_create,
	.save = limit_save,
	.load = limit_load,
};

/* ------------------------------------------------------------------------
 * Where things are
 * ------------------------------------------------------------------------
 */

static int
count_partitions(int nentries)
{
	int n = Max(nentries / MIN_PARTITION_ENTRIES, 1);

	return Min((int) pg_prevpower2_32(n), MAX_PARTITIONS);
}

static int
count_buckets(int nentries)
{
	return (int) pg_nextpower2_32(nentries);
}

/*
 * Entries are where their hashes send them, so some partitions need more than an
 * even share: with a quarter and 64 more, one in 10^15 is too small, and that one
 * only evicts early.
 */
static int
size_heap(int nentries)
{
	int share = nentries / count_partitions(nentries);

	return share == nentries ? nentries : share + share / 4 + 64;
}

static Size
table_bytes(void)
{
	return CACHELINEALIGN(sizeof(LimitTable));
}

static Size
bucket_bytes(int nentries)
{
	return CACHELINEALIGN(mul_size(count_buckets(nentries), sizeof(int)));
}

static Size
entry_bytes(int nentries)
{
	return CACHELINEALIGN(mul_size(nentries, sizeof(LimitEntry)));
}

static Size
limit_size(void)
{
	int n = idem_throttle_entries;
	Size size = add_size(table_bytes(), add_size(bucket_bytes(n), entry_bytes(n)));

	return add_size(size, mul_size(count_partitions(n), mul_size(size_heap(n), sizeof(HeapSlot))));
}

static int *
get_buckets(LimitTable *table)
{
	return (int *) ((char *) table + table_bytes());
}

static LimitEntry *
get_entries(LimitTable *table)
{
	return (LimitEntry *) ((char *) get_buckets(table) + bucket_bytes(table->nentries));
}

static HeapSlot *
get_heap(LimitTable *table, int partition)
{
	return (HeapSlot *) ((char *) get_entries(table) + entry_bytes(table->nentries)) +
		(Size) partition * table->heap_size;
}

static int
bucket_number(LimitTable *table, const SipHash *id)
{
	return (int) (id->half[0] & (table->nbuckets - 1));
}

/* neighbouring buckets are in the same one: they share cache lines */
static int
partition_number(LimitTable *table, const SipHash *id)
{
	return bucket_number(table, id) / (table->nbuckets / table->npartitions);
}

static void
limit_create(void *address, int tranche)
{
	LimitTable *table = address;

	secret_random(&table->key, sizeof(table->key));
	table->nentries = idem_throttle_entries;
	table->nbuckets = count_buckets(table->nentries);
	table->npartitions = count_partitions(table->nentries);
	table->heap_size = size_heap(table->nentries);
	pg_atomic_init_u32(&table->used, 0);
	for (int i = 0; i < table->npartitions; i++)
	{
		LWLockInitialize(&table->partition[i].lock, tranche);
		table->partition[i].used = 0;
		pg_atomic_init_u64(&table->first_end[i], NO_TIME);
	}
	for (int i = 0; i < table->nbuckets; i++)
		get_buckets(table)[i] = NO_ENTRY;
}

/* ------------------------------------------------------------------------
 * The heap of a partition
 * ------------------------------------------------------------------------
 */

/* From then on the state says nothing. */
static int64
state_end(const RateState *state)
{
	return state->arrival + (state->fraction > 0 ? 1 : 0);
}

static void
put_in_slot(LimitTable *table, HeapSlot *heap, int slot, HeapSlot what)
{
	heap[slot] = what;
	get_entries(table)[what.entry].slot = slot;
}

static void
sift_up(LimitTable *table, HeapSlot *heap, int slot, HeapSlot what)
{
	while (slot > 0 && heap[(slot - 1) / 2].end > what.end)
	{
		put_in_slot(table, heap, slot, heap[(slot - 1) / 2]);
		slot = (slot - 1) / 2;
	}
	put_in_slot(table, heap, slot, what);
}

static void
sift_down(LimitTable *table, HeapSlot *heap, int used, int slot, HeapSlot what)
{
	for (;;)
	{
		int child = 2 * slot + 1;

		if (child + 1 < used && heap[child + 1].end < heap[child].end)
			child++;
		if (child >= used || heap[child].end >= what.end)
			break;
		put_in_slot(table, heap, slot, heap[child]);
		slot = child;
	}
	put_in_slot(table, heap, slot, what);
}

static void
publish_first(LimitTable *table, int p)
{
	uint64 end = table->partition[p].used > 0 ? (uint64) get_heap(table, p)[0].end : NO_TIME;

	if (pg_atomic_read_u64(&table->first_end[p]) != end)
		pg_atomic_write_u64(&table->first_end[p], end);
}

/* ------------------------------------------------------------------------
 * Entries.  The caller has the lock of the partition.
 * ------------------------------------------------------------------------
 */

/* The link that leads to the entry, or to where it would be. */
static int *
find_link(LimitTable *table, const SipHash *id)
{
	LimitEntry *entries = get_entries(table);
	int *link = &get_buckets(table)[bucket_number(table, id)];

	while (*link != NO_ENTRY &&
		   (entries[*link].id.half[0] != id->half[0] || entries[*link].id.half[1] != id->half[1]))
		link = &entries[*link].next;
	return link;
}

static void
add_entry(LimitTable *table, int p, int n, const SipHash *id, const RateState *state)
{
	LimitEntry *entry = &get_entries(table)[n];
	int *bucket = &get_buckets(table)[bucket_number(table, id)];
	HeapSlot slot = {.end = state_end(state), .entry = n};

	entry->id = *id;
	entry->state = *state;
	entry->next = *bucket;
	*bucket = n;
	sift_up(table, get_heap(table, p), table->partition[p].used++, slot);
	publish_first(table, p);
}

/* Its arrival has moved on. */
static void
move_entry(LimitTable *table, int p, int n, const RateState *state)
{
	LimitEntry *entry = &get_entries(table)[n];
	HeapSlot slot = {.end = state_end(state), .entry = n};

	entry->state = *state;
	sift_down(table, get_heap(table, p), table->partition[p].used, entry->slot, slot);
	publish_first(table, p);
}

/* Take the first of the heap out. */
static int
remove_first(LimitTable *table, int p, int64 now, bool *evicted)
{
	HeapSlot *heap = get_heap(table, p);
	int n = heap[0].entry;
	int used = --table->partition[p].used;
	int *link = find_link(table, &get_entries(table)[n].id);

	Assert(*link == n);
	*link = get_entries(table)[n].next;
	if (heap[0].end > now)
		*evicted = true;
	if (used > 0)
		sift_down(table, heap, used, 0, heap[used]);
	publish_first(table, p);
	return n;
}

/* One that was never used; all others are in a partition. */
static int
take_unused(LimitTable *table)
{
	uint32 n = pg_atomic_read_u32(&table->used);

	/* beyond the end it would count on for ever */
	if (n < (uint32) table->nentries)
		n = pg_atomic_fetch_add_u32(&table->used, 1);
	return n < (uint32) table->nentries ? (int) n : NO_ENTRY;
}

/* The partition with the entry whose time comes first, as far as can be seen without a lock. */
static int
find_first(LimitTable *table)
{
	uint64 first = NO_TIME;
	int found = NO_PARTITION;

	for (int i = 0; i < table->npartitions; i++)
	{
		uint64 end = pg_atomic_read_u64(&table->first_end[i]);

		if (end < first)
		{
			first = end;
			found = i;
		}
	}
	return found;
}

/* A place in partition p; "other" is locked as well, unless it is none. */
static int
make_room(LimitTable *table, int p, int other, int64 now, bool *evicted)
{
	int n;

	/* too many of all entries are here: the heap has no place for one more */
	if (table->partition[p].used == table->heap_size)
		return remove_first(table, p, now, evicted);

	n = take_unused(table);
	if (n != NO_ENTRY || other == NO_PARTITION)
		return n;
	if (pg_atomic_read_u64(&table->first_end[other]) > pg_atomic_read_u64(&table->first_end[p]))
		other = p;
	return table->partition[other].used > 0 ? remove_first(table, other, now, evicted) : NO_ENTRY;
}

static void
lock_partitions(LimitTable *table, int p, int other)
{
	if (other != NO_PARTITION && other < p)
		LWLockAcquire(&table->partition[other].lock, LW_EXCLUSIVE);
	LWLockAcquire(&table->partition[p].lock, LW_EXCLUSIVE);
	if (other != NO_PARTITION && other > p)
		LWLockAcquire(&table->partition[other].lock, LW_EXCLUSIVE);
}

static void
unlock_partitions(LimitTable *table, int p, int other)
{
	LWLockRelease(&table->partition[p].lock);
	if (other != NO_PARTITION && other != p)
		LWLockRelease(&table->partition[other].lock);
}

/* False if there was no room, and another partition has to be asked. */
static bool
change_locked(LimitTable *table, const SipHash *id, int p, int other, int64 now, LimitChange change,
			  void *arg, bool *evicted)
{
	int n = *find_link(table, id);
	RateState state = {0};

	if (n != NO_ENTRY)
		state = get_entries(table)[n].state;
	if (!change(&state, arg))
		return true;
	if (n != NO_ENTRY)
	{
		move_entry(table, p, n, &state);
		return true;
	}
	n = make_room(table, p, other, now, evicted);
	if (n == NO_ENTRY)
		return false;
	add_entry(table, p, n, id, &state);
	return true;
}

static bool
change_entry(LimitTable *table, const SipHash *id, int64 now, LimitChange change, void *arg)
{
	int p = partition_number(table, id);
	int other = NO_PARTITION;
	bool evicted = false;
	bool done;

	do
	{
		lock_partitions(table, p, other);
		done = change_locked(table, id, p, other, now, change, arg, &evicted);
		unlock_partitions(table, p, other);
		if (!done)
			other = find_first(table);
	} while (!done);
	return evicted;
}

/* ------------------------------------------------------------------------
 * The face
 * ------------------------------------------------------------------------
 */

void
limit_init(void)
{
	shmem_register(&area);
}

bool
limit_available(void)
{
	return shmem_get(&area) != NULL;
}

/*
 * Not instr_time.h: from PostgreSQL 19 on, sessions can choose what that reads,
 * and here they must agree.
 */
int64
limit_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) now.tv_sec * USECS_PER_SEC + now.tv_nsec / 1000;
}

SipHash
limit_id(const void *data, Size len)
{
	LimitTable *table = shmem_get(&area);

	return siphash(&table->key, data, len);
}

bool
limit_change(const SipHash *id, int64 now, LimitChange change, void *arg)
{
	return change_entry(shmem_get(&area), id, now, change, arg);
}

/* ------------------------------------------------------------------------
 * Over a restart
 * ------------------------------------------------------------------------
 */

/* The machine may be started anew as well, so the time in between is the wall clock's. */
typedef struct SavedLimits
{
	SipHashKey key;
	TimestampTz saved_at;
	int64 now; /* the clock of the states */
	int64 count;
} SavedLimits;

typedef struct SavedLimit
{
	SipHash id;
	RateState state;
} SavedLimit;

static void
limit_save(void *address, FILE *file)
{
	LimitTable *table = address;
	SavedLimits header = {.key = table->key, .saved_at = GetCurrentTimestamp(), .now = limit_now()};

	for (int p = 0; p < table->npartitions; p++)
		header.count += table->partition[p].used;
	(void) fwrite(&header, sizeof(header), 1, file);
	for (int p = 0; p < table->npartitions; p++)
		for (int i = 0; i < table->partition[p].used; i++)
		{
			LimitEntry *entry = &get_entries(table)[get_heap(table, p)[i].entry];
			SavedLimit saved;

			memset(&saved, 0, sizeof(saved));
			saved.id = entry->id;
			saved.state = entry->state;
			(void) fwrite(&saved, sizeof(saved), 1, file);
		}
}

static bool
store_state(RateState *state, void *arg)
{
	*state = *(RateState *) arg;
	return true;
}

static bool
limit_load(void *address, FILE *file)
{
	LimitTable *table = address;
	int64 now = limit_now();
	SavedLimits header;
	int64 shift;

	if (fread(&header, sizeof(header), 1, file) != 1 || header.now < 0)
		return false;
	table->key = header.key;
	/* a wall clock that was set back does not make time longer than it was */
	shift = now - header.now - Max(GetCurrentTimestamp() - header.saved_at, 0);
	for (int64 i = 0; i < header.count; i++)
	{
		SavedLimit saved;

		if (fread(&saved, sizeof(saved), 1, file) != 1)
			return false;
		/* a test may have had another idea of the time */
		if (saved.state.arrival < header.now || saved.state.arrival - header.now > LIMIT_MAX_AHEAD)
			continue;
		saved.state.arrival += shift;
		if (state_end(&saved.state) > now)
			(void) change_entry(table, &saved.id, now, store_state, &saved.state);
	}
	return true;
}
