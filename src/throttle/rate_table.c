/*-------------------------------------------------------------------------
 *
 * rate_table.c
 *	  The state of rate limits, in a table of fixed size in shared memory.
 *
 * A partitioned hash table, with a lock for each partition.  A cache miss is most of the
 * cost of a call.  Linear probing in a sparse table keeps a call to one cache miss.
 *
 * A partition also has a heap of its entries, ordered by the time when their information
 * ends.  The root is the entry to reuse or evict.  That time never moves back, so the heap is
 * updated lazily, when the entry reaches its root.  Most calls leave the heap alone.
 *
 * The end times of all roots lie together and are read without a lock.  When the table is
 * full, the earliest root of all partitions is removed, and the new entry goes where it
 * belongs.  Both partition locks are held then, taken in partition order.  Nothing under the
 * locks raises an error or allocates memory.
 *
 * Scopes of limits, as the caller defines them, share the table.  A scope with more than a
 * quarter of all entries is heavy; there can be at most three.  While there is one, entries
 * of heavy scopes are evicted instead of other scopes' live entries.  A random sample of the
 * heap finds one, because at least a quarter of the draws hit one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>
#include <time.h>

#include "miscadmin.h"
#include "port/atomics.h"
#include "port/pg_bitutils.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/guc.h"
#include "base/random.h"
#include "base/shmem.h"
#include "throttle/rate_table.h"

/* children of a heap slot fill a cache line: fewer levels, so fewer cache misses */
#define ARITY 4

#define NO_PARTITION (-1)
#define NO_PLACE (-1)
#define NO_TIME PG_UINT64_MAX /* first end of an empty partition */

#define MAX_PARTITIONS 128
/* with fewer entries each, partitions would fill unevenly */
#define MIN_PARTITION_ENTRIES 512

/* maximum steps to update a heap with the lock held, a tenth of a microsecond each */
#define MAX_SETTLE 256

/*
 * How often to look for the entry that ends first of all, while other sessions keep changing
 * it.  After that, any entry of the own partition is evicted.
 */
#define MAX_LOOKS 10000

/* buckets of the hashes of scopes; scopes in the same bucket share a count */
#define NSCOPES 1024

/* how many entries to draw for one of a heavy scope: one in 10^8 times there is none */
#define MAX_DRAWS 64
#define ENOUGH_DRAWS 4

/*
 * Half a cache line.  The first half of the id chooses the partition; within it, the second half
 * identifies the entry.  Together that is more than 64 bits.
 */
typedef struct RateLimitEntry
{
	SipHash id;
	int64 arrival; /* RateLimitState */
	uint32 fraction;
	uint16 scope;
	bool used;
} RateLimitEntry;

/*
 * A slot names its entry by id, not by place, so that one can move without touching the other.
 * Changes to the heap then stay in the heap's memory.
 */
typedef struct HeapSlot
{
	int64 end;	  /* of the entry's information, as last seen; by now it may be later */
	uint64 entry; /* second half of the entry's id */
} HeapSlot;

/* One cache line each. */
typedef union RateLimitPartition
{
	struct
	{
		LWLock lock; /* of its entries and its heap */
		int used;	 /* slots of the heap */
	};
	char padding[PG_CACHE_LINE_SIZE];
} RateLimitPartition;

typedef struct RateLimitTable
{
	/* these never change */
	SipHashKey key;
	int nentries;
	int npartitions; /* a power of 2 */
	int heap_size;	 /* of each partition */
	int places;		 /* of each partition */
	Size entries;	 /* offset of the first partition's entries from the table's start */
	Size heaps;

	pg_atomic_uint32 used;				  /* entries, in all partitions */
	pg_atomic_uint32 heavy;				  /* scopes with more than a quarter of them */
	pg_atomic_uint32 scope_size[NSCOPES]; /* entries, by scope */

	pg_atomic_uint64 first_end[MAX_PARTITIONS]; /* end of each heap's root, or NO_TIME */
	RateLimitPartition partition[MAX_PARTITIONS];

	/* followed by the entries of all partitions, then their heaps */
} RateLimitTable;

static Size rate_limit_size(void);
static void rate_limit_create(void *address, int tranche);
static void rate_limit_save(void *address, ShmemFile *file);
static bool rate_limit_load(void *address, ShmemFile *file);

static ShmemArea area = {
	.name = "idempotency_throttle",
	.size = rate_limit_size,
	.create = rate_limit_create,
	.save = rate_limit_save,
	.load = rate_limit_load,
};

/* ------------------------------------------------------------------------
 * Layout
 * ------------------------------------------------------------------------
 */

static int
count_partitions(int nentries)
{
	int n = Max(nentries / MIN_PARTITION_ENTRIES, 1);

	return Min((int) pg_prevpower2_32(n), MAX_PARTITIONS);
}

/*
 * Hashes distribute the entries, so some partitions get more than an even share.  Eight standard
 * deviations and 64 more make it very unlikely that a heap is too small.  If one is, it only
 * evicts early.
 */
static int
size_heap(int nentries)
{
	int share = nentries / count_partitions(nentries);

	return share == nentries ? nentries : share + (int) (8 * sqrt(share)) + 64;
}

/* more places than entries keep probing short: less than two thirds are ever used */
static int
count_places(int nentries)
{
	return size_heap(nentries) + size_heap(nentries) / 5 * 3 + 1;
}

/* slots to allocate for a heap, including those that stay free to align it to cache lines */
static int
heap_slots(int size)
{
	return TYPEALIGN(ARITY, ARITY - 1 + size);
}

static Size
table_bytes(void)
{
	return CACHELINEALIGN(sizeof(RateLimitTable));
}

static Size
entry_bytes(int nentries)
{
	return CACHELINEALIGN(mul_size(count_partitions(nentries),
								   mul_size(count_places(nentries), sizeof(RateLimitEntry))));
}

static Size
rate_limit_size(void)
{
	int n = idem_throttle_entries;

	return add_size(
		add_size(table_bytes(), entry_bytes(n)),
		mul_size(count_partitions(n), mul_size(heap_slots(size_heap(n)), sizeof(HeapSlot))));
}

static RateLimitEntry *
get_entries(RateLimitTable *table, int partition)
{
	return (RateLimitEntry *) ((char *) table + table->entries) + (Size) partition * table->places;
}

/* The second slot starts a cache line. */
static HeapSlot *
get_heap(RateLimitTable *table, int partition)
{
	return (HeapSlot *) ((char *) table + table->heaps) +
		(Size) partition * heap_slots(table->heap_size) + ARITY - 1;
}

static int
partition_number(RateLimitTable *table, const SipHash *id)
{
	return (int) (id->half[0] & (table->npartitions - 1));
}

/* The place where probing for an entry starts, from the second half of its id. */
static int
home_place(RateLimitTable *table, uint64 entry)
{
	return (int) (((entry >> 32) * (uint64) table->places) >> 32);
}

static int
next_place(RateLimitTable *table, int place)
{
	return place + 1 < table->places ? place + 1 : 0;
}

static void
rate_limit_create(void *address, int tranche)
{
	RateLimitTable *table = address;

	random_bytes(&table->key, sizeof(table->key));
	table->nentries = idem_throttle_entries;
	table->npartitions = count_partitions(table->nentries);
	table->heap_size = size_heap(table->nentries);
	table->places = count_places(table->nentries);
	table->entries = table_bytes();
	table->heaps = table->entries + entry_bytes(table->nentries);
	pg_atomic_init_u32(&table->used, 0);
	pg_atomic_init_u32(&table->heavy, 0);
	for (int i = 0; i < NSCOPES; i++)
		pg_atomic_init_u32(&table->scope_size[i], 0);
	for (int i = 0; i < table->npartitions; i++)
	{
		LWLockInitialize(&table->partition[i].lock, tranche);
		table->partition[i].used = 0;
		pg_atomic_init_u64(&table->first_end[i], NO_TIME);
		for (int j = 0; j < table->places; j++)
			get_entries(table, i)[j].used = false;
	}
}

/* ------------------------------------------------------------------------
 * The heap of a partition
 * ------------------------------------------------------------------------
 */

/* A partition whose lock we hold, and its contents. */
typedef struct Locked
{
	RateLimitTable *table;
	int number;
	RateLimitPartition *partition;
	RateLimitEntry *entries;
	HeapSlot *heap;
} Locked;

static Locked
get_locked(RateLimitTable *table, int number)
{
	Locked locked = {
		.table = table,
		.number = number,
		.partition = &table->partition[number],
		.entries = get_entries(table, number),
		.heap = get_heap(table, number),
	};

	return locked;
}

/* From this time on, the state carries no information. */
static int64
state_end(const RateLimitState *state)
{
	return state->arrival + (state->fraction > 0 ? 1 : 0);
}

static void
sift_up(Locked *p, int slot, HeapSlot what)
{
	while (slot > 0 && p->heap[(slot - 1) / ARITY].end > what.end)
	{
		p->heap[slot] = p->heap[(slot - 1) / ARITY];
		slot = (slot - 1) / ARITY;
	}
	p->heap[slot] = what;
}

/* The slot that ends first.  Branch-free, because a branch could not be predicted. */
static int
first_slot(const HeapSlot *heap, int from, int to)
{
	int found = from;
	int64 first = heap[from].end;

	for (int i = from + 1; i < to; i++)
	{
		bool sooner = heap[i].end < first;

		first = sooner ? heap[i].end : first;
		found = sooner ? i : found;
	}
	return found;
}

static void
sift_down(Locked *p, int slot, HeapSlot what)
{
	HeapSlot *heap = p->heap;
	int used = p->partition->used;
	int child;

	while ((child = ARITY * slot + 1) < used)
	{
		/* the next level reads one of these cache lines */
		for (int i = 0; i < ARITY; i++)
			idem_prefetch(&heap[ARITY * (child + i) + 1]);
		child = first_slot(heap, child, Min(child + ARITY, used));
		if (heap[child].end >= what.end)
			break;
		heap[slot] = heap[child];
		slot = child;
	}
	heap[slot] = what;
}

static void
publish_first(Locked *p)
{
	pg_atomic_uint64 *first = &p->table->first_end[p->number];
	uint64 end = p->partition->used > 0 ? (uint64) p->heap[0].end : NO_TIME;

	/* other sessions read this cache line all the time: do not dirty it needlessly */
	if (pg_atomic_read_u64(first) != end)
		pg_atomic_write_u64(first, end);
}

/* ------------------------------------------------------------------------
 * Scopes
 * ------------------------------------------------------------------------
 */

static uint32
light_max(const RateLimitTable *table)
{
	return table->nentries / 4;
}

static void
count_scope(RateLimitTable *table, int scope)
{
	if (pg_atomic_fetch_add_u32(&table->scope_size[scope], 1) == light_max(table))
		pg_atomic_fetch_add_u32(&table->heavy, 1);
}

static void
discount_scope(RateLimitTable *table, int scope)
{
	if (pg_atomic_fetch_sub_u32(&table->scope_size[scope], 1) == light_max(table) + 1)
		pg_atomic_fetch_sub_u32(&table->heavy, 1);
}

static bool
is_heavy(RateLimitTable *table, int scope)
{
	return pg_atomic_read_u32(&table->scope_size[scope]) > light_max(table);
}

/* ------------------------------------------------------------------------
 * Entries
 * ------------------------------------------------------------------------
 */

/* The entry's place, or the free place where it belongs. */
static int
find_place(Locked *p, uint64 entry)
{
	int place = home_place(p->table, entry);

	while (p->entries[place].used && p->entries[place].id.half[1] != entry)
		place = next_place(p->table, place);
	return place;
}

static RateLimitState
get_state(const RateLimitEntry *entry)
{
	RateLimitState state = {.arrival = entry->arrival, .fraction = entry->fraction};

	return state;
}

/* The heap is updated lazily, when the entry reaches its root. */
static void
set_state(RateLimitEntry *entry, const RateLimitState *state)
{
	entry->arrival = state->arrival;
	entry->fraction = state->fraction;
}

static void
add_entry(Locked *p, const SipHash *id, int scope, const RateLimitState *state)
{
	int place = find_place(p, id->half[1]);
	HeapSlot slot = {.end = state_end(state), .entry = id->half[1]};

	p->entries[place].used = true;
	p->entries[place].id = *id;
	p->entries[place].scope = (uint16) scope;
	set_state(&p->entries[place], state);
	count_scope(p->table, scope);
	sift_up(p, p->partition->used++, slot);
	publish_first(p);
}

/*
 * The place of the entry at the heap's root.  If that entry's end has moved on since, returns
 * NO_PLACE after moving it, and the ones that became root, to where they belong (or MAX_SETTLE of
 * them).  The caller must then look again for the partition whose entry ends first.
 */
static int
first_place(Locked *p)
{
	HeapSlot *first = &p->heap[0];

	for (int step = 0; step < MAX_SETTLE; step++)
	{
		int place = find_place(p, first->entry);
		RateLimitState state = get_state(&p->entries[place]);
		HeapSlot now = {.end = state_end(&state), .entry = first->entry};

		if (now.end == first->end)
		{
			if (step == 0)
				return place;
			break;
		}
		sift_down(p, 0, now);
	}
	publish_first(p);
	return NO_PLACE;
}

/* Steps from place "from" on to place "to", wrapping around. */
static int
distance(RateLimitTable *table, int from, int to)
{
	return to >= from ? to - from : to - from + table->places;
}

/* Free a place, leaving no gap between any entry and its home. */
static void
free_place(Locked *p, int place)
{
	int next = place;

	for (;;)
	{
		next = next_place(p->table, next);
		if (!p->entries[next].used)
			break;
		if (distance(p->table, home_place(p->table, p->entries[next].id.half[1]), next) <
			distance(p->table, place, next))
			continue;
		p->entries[place] = p->entries[next];
		place = next;
	}
	p->entries[place].used = false;
}

static void
remove_entry(Locked *p, int slot, int place)
{
	HeapSlot *heap = p->heap;
	HeapSlot last = heap[p->partition->used - 1];

	discount_scope(p->table, p->entries[place].scope);
	free_place(p, place);
	if (--p->partition->used > slot)
	{
		if (slot > 0 && heap[(slot - 1) / ARITY].end > last.end)
			sift_up(p, slot, last);
		else
			sift_down(p, slot, last);
	}
	publish_first(p);
}

/*
 * A live entry of a heavy scope's: of those that are drawn, the one that ends first.  *slot:
 * in the heap.  NO_PLACE: none is.  Draws begin with the new entry's id, which nobody can
 * choose.
 */
static int
draw_heavy(Locked *p, uint64 random, int *slot)
{
	int found = NO_PLACE;
	int nfound = 0;

	for (int i = 0; i < MAX_DRAWS && nfound < ENOUGH_DRAWS; i++)
	{
		int drawn;
		int place;

		random = random * UINT64CONST(6364136223846793005) + UINT64CONST(1442695040888963407);
		drawn = (int) (((random >> 32) * (uint64) p->partition->used) >> 32);
		place = find_place(p, p->heap[drawn].entry);
		if (!is_heavy(p->table, p->entries[place].scope))
			continue;
		if (nfound++ == 0 || p->heap[drawn].end < p->heap[*slot].end)
		{
			*slot = drawn;
			found = place;
		}
	}
	return found;
}

/*
 * The first of the heap, if it is that, or one of a heavy scope's of "p" instead;
 * *live: it still said something.
 */
static bool
remove_first(Locked *victim, Locked *p, const SipHash *id, int64 now, bool *live)
{
	RateLimitTable *table = victim->table;
	int place = first_place(victim);

	if (place == NO_PLACE)
		return false;
	*live = victim->heap[0].end > now;
	if (*live && pg_atomic_read_u32(&table->heavy) > 0 && p->partition->used > 0 &&
		!is_heavy(table, victim->entries[place].scope))
	{
		int slot;
		int heavy = draw_heavy(p, id->half[1], &slot);

		if (heavy != NO_PLACE)
		{
			remove_entry(p, slot, heavy);
			return true;
		}
	}
	remove_entry(victim, 0, place);
	return true;
}

/*
 * After MAX_LOOKS: remove the root, even if its end has moved on.  If the partition is empty,
 * exceed the number of entries by one.
 */
static void
remove_any(Locked *p, int64 now, bool *live)
{
	int place;
	RateLimitState state;

	if (p->partition->used == 0)
	{
		pg_atomic_fetch_add_u32(&p->table->used, 1);
		return;
	}
	place = find_place(p, p->heap[0].entry);
	state = get_state(&p->entries[place]);
	*live = state_end(&state) > now;
	remove_entry(p, 0, place);
}

/* Reserve one of the unused entries; false if there is none. */
static bool
take_unused(RateLimitTable *table)
{
	/* check first, or the counter would grow for ever on a full table */
	return pg_atomic_read_u32(&table->used) < (uint32) table->nentries &&
		pg_atomic_fetch_add_u32(&table->used, 1) < (uint32) table->nentries;
}

/* The partition whose entry ends first, read without a lock. */
static int
find_first(RateLimitTable *table)
{
	uint64 first = NO_TIME;
	int found = NO_PARTITION;

	for (int i = 0; i < table->npartitions; i++)
	{
		uint64 end = pg_atomic_read_u64(&table->first_end[i]);
		bool sooner = end < first;

		/* without a branch */
		first = sooner ? end : first;
		found = sooner ? i : found;
	}
	return found;
}

/* Prefetch the likely victim.  It is read without a lock, so it may be the wrong one. */
static void
prefetch_first(RateLimitTable *table, int partition)
{
	HeapSlot *heap = get_heap(table, partition);

	idem_prefetch(&heap[1]);
	idem_prefetch(&get_entries(table, partition)[home_place(table, heap->entry)]);
}

/*
 * Free an entry for partition p.  The partition "other" is locked as well, unless it is
 * NO_PARTITION.  If it returns false, the caller must retry, maybe with another partition.
 */
static bool
make_room(Locked *p, const SipHash *id, int other, int64 now, bool *evicted)
{
	RateLimitTable *table = p->table;
	Locked victim;

	if (p->partition->used < p->table->heap_size)
	{
		if (take_unused(table))
			return true;
		if (other == NO_PARTITION)
			return false;
		if (pg_atomic_read_u64(&table->first_end[other]) <
			pg_atomic_read_u64(&table->first_end[p->number]))
		{
			victim = get_locked(table, other);
			return remove_first(&victim, p, id, now, evicted);
		}
		if (p->partition->used == 0)
			return false;
	}
	return remove_first(p, p, id, now, evicted);
}

static void
lock_partitions(RateLimitTable *table, int p, int other)
{
	if (other != NO_PARTITION && other < p)
		LWLockAcquire(&table->partition[other].lock, LW_EXCLUSIVE);
	LWLockAcquire(&table->partition[p].lock, LW_EXCLUSIVE);
	if (other != NO_PARTITION && other > p)
		LWLockAcquire(&table->partition[other].lock, LW_EXCLUSIVE);
}

static void
unlock_partitions(RateLimitTable *table, int p, int other)
{
	LWLockRelease(&table->partition[p].lock);
	if (other != NO_PARTITION && other != p)
		LWLockRelease(&table->partition[other].lock);
}

/* A change of a limit. */
typedef struct Change
{
	const SipHash *id;
	const RateLimitScope *scope;
	int64 now;
	RateLimitChange change;
	void *arg;
	bool evicted;
} Change;

static int
scope_number(RateLimitTable *table, const RateLimitScope *scope)
{
	SipHash hash;

	if (scope->data == NULL)
		return scope->number;
	hash = siphash(&table->key, scope->data, scope->len);
	return (int) (hash.half[0] % NSCOPES);
}

/* False if no entry could be freed yet.  With "last", one is freed in any case. */
static bool
change_locked(Locked *p, Change *c, int other, bool last)
{
	int place = find_place(p, c->id->half[1]);
	RateLimitEntry *entry = &p->entries[place];
	RateLimitState state = {0};

	if (entry->used)
		state = get_state(entry);
	if (!c->change(&state, c->arg))
		return true;
	if (entry->used)
	{
		set_state(entry, &state);
		return true;
	}
	if (!make_room(p, c->id, other, c->now, &c->evicted))
	{
		if (!last)
			return false;
		remove_any(p, c->now, &c->evicted);
	}
	add_entry(p, c->id, scope_number(p->table, c->scope), &state);
	return true;
}

static bool
change_entry(RateLimitTable *table, Change *c)
{
	Locked p = get_locked(table, partition_number(table, c->id));
	int other = NO_PARTITION;
	bool done = false;

	for (int look = 1; !done; look++)
	{
		lock_partitions(table, p.number, other);
		done = change_locked(&p, c, other, look >= MAX_LOOKS);
		unlock_partitions(table, p.number, other);
		if (!done)
		{
			other = find_first(table);
			if (other != NO_PARTITION)
				prefetch_first(table, other);
		}
	}
	return c->evicted;
}

/* ------------------------------------------------------------------------
 * Public functions
 * ------------------------------------------------------------------------
 */

void
rate_limit_init(void)
{
	shmem_register(&area);
}

bool
rate_limit_available(void)
{
	return shmem_get(&area) != NULL;
}

/*
 * Not instr_time.h: from PostgreSQL 19 on, each session can choose its clock source, but
 * here all sessions must agree.
 */
int64
rate_limit_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) now.tv_sec * USECS_PER_SEC + now.tv_nsec / 1000;
}

SipHash
rate_limit_id(const void *data, Size len)
{
	RateLimitTable *table = shmem_get(&area);

	return siphash(&table->key, data, len);
}

bool
rate_limit_change(const SipHash *id, const RateLimitScope *scope, int64 now, RateLimitChange change,
				  void *arg)
{
	Change c = {.id = id, .scope = scope, .now = now, .change = change, .arg = arg};

	return change_entry(shmem_get(&area), &c);
}

/* ------------------------------------------------------------------------
 * Over a restart
 * ------------------------------------------------------------------------
 */

/* The machine may reboot, so the wall clock measures the time in between. */
typedef struct SavedRateLimits
{
	SipHashKey key;
	TimestampTz saved_at;
	int64 now; /* the clock of the states */
	int64 count;
} SavedRateLimits;

typedef struct SavedRateLimit
{
	SipHash id;
	int64 arrival;
	uint32 fraction;
	uint32 scope;
} SavedRateLimit;

static void
rate_limit_save(void *address, ShmemFile *file)
{
	RateLimitTable *table = address;
	SavedRateLimits header = {
		.key = table->key, .saved_at = GetCurrentTimestamp(), .now = rate_limit_now()};

	for (int p = 0; p < table->npartitions; p++)
		header.count += table->partition[p].used;
	shmem_write(file, &header, sizeof(header));
	for (int p = 0; p < table->npartitions; p++)
		for (int i = 0; i < table->places; i++)
		{
			RateLimitEntry *entry = &get_entries(table, p)[i];
			SavedRateLimit saved;

			if (!entry->used)
				continue;
			saved.id = entry->id;
			saved.arrival = entry->arrival;
			saved.fraction = entry->fraction;
			saved.scope = entry->scope;
			shmem_write(file, &saved, sizeof(saved));
		}
}

static bool
load_state(RateLimitState *state, void *arg)
{
	*state = *(RateLimitState *) arg;
	return true;
}

static bool
rate_limit_load(void *address, ShmemFile *file)
{
	RateLimitTable *table = address;
	int64 now = rate_limit_now();
	SavedRateLimits header;
	int64 shift;

	if (!shmem_read(file, &header, sizeof(header)) || header.now < 0)
		return false;
	table->key = header.key;
	/* if the wall clock was set back, count no time in between */
	shift = now - header.now - Max(GetCurrentTimestamp() - header.saved_at, 0);
	for (int64 i = 0; i < header.count; i++)
	{
		SavedRateLimit saved;
		RateLimitState state;
		RateLimitScope scope = {0};
		Change c = {
			.id = &saved.id, .scope = &scope, .now = now, .change = load_state, .arg = &state};

		if (!shmem_read(file, &saved, sizeof(saved)) || saved.scope >= NSCOPES)
			return false;
		/* a test may have used another clock */
		if (saved.arrival < header.now || saved.arrival - header.now > RATE_LIMIT_MAX_AHEAD)
			continue;
		state.arrival = saved.arrival + shift;
		state.fraction = saved.fraction;
		scope.number = (int) saved.scope;
		if (state_end(&state) > now)
			(void) change_entry(table, &c);
	}
	return true;
}
