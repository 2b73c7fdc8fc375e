/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  Shared memory: one way in, preloaded or not.
 *
 * All areas are in one block, behind a header that says where: sizes follow
 * settings, and the backend that reads may have others than the one that
 * created.
 *
 * Without preload the server's registry of DSM segments holds a segment of a
 * fixed size, since it refuses to hand out one under another size than it was
 * created with; in that is the handle of the block.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "compat.h"
#include "shmem.h"

#define BLOCK_NAME "idempotency"
#define MAX_AREAS 4

typedef struct SharedBlock
{
	int tranche;
	int nareas;
	Size offset[MAX_AREAS];
} SharedBlock;

static ShmemArea *areas[MAX_AREAS];
static int nareas = 0;

static SharedBlock *block = NULL;
static bool preloaded = false;

static shmem_request_hook_type prev_shmem_request = NULL;
static shmem_startup_hook_type prev_shmem_startup = NULL;

void
shmem_register(ShmemArea *area)
{
	Assert(nareas < MAX_AREAS);
	area->number = nareas;
	areas[nareas++] = area;
}

static Size
block_size(void)
{
	Size size = MAXALIGN(sizeof(SharedBlock));

	for (int i = 0; i < nareas; i++)
		size = add_size(size, MAXALIGN(areas[i]->size()));
	return size;
}

static void
create_block(SharedBlock *new)
{
	Size offset = MAXALIGN(sizeof(SharedBlock));

	new->tranche = idem_new_lwlock_tranche(BLOCK_NAME);
	new->nareas = nareas;
	for (int i = 0; i < nareas; i++)
	{
		new->offset[i] = offset;
		areas[i]->create((char *) new + offset, new->tranche);
		offset += MAXALIGN(areas[i]->size());
	}
}

/* ------------------------------------------------------------------------
 * Preloaded
 * ------------------------------------------------------------------------
 */

static void
shmem_request(void)
{
	if (prev_shmem_request)
		prev_shmem_request();
	RequestAddinShmemSpace(block_size());
}

static void
shmem_startup(void)
{
	bool found;

	if (prev_shmem_startup)
		prev_shmem_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	block = ShmemInitStruct(BLOCK_NAME, block_size(), &found);
	if (!found)
		create_block(block);
	LWLockRelease(AddinShmemInitLock);
	idem_register_lwlock_tranche(block->tranche, BLOCK_NAME);
}

void
shmem_init(void)
{
	preloaded = process_shared_preload_libraries_in_progress;
	if (!preloaded)
		return;
	prev_shmem_request = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

/* ------------------------------------------------------------------------
 * Not preloaded
 * ------------------------------------------------------------------------
 */

typedef struct Anchor
{
	LWLock lock; /* protects "handle" while it is not set */
	int tranche;
	dsm_handle handle; /* of the block */
} Anchor;

static void
create_anchor(void *address)
{
	Anchor *anchor = address;

	anchor->tranche = idem_new_lwlock_tranche(BLOCK_NAME " anchor");
	LWLockInitialize(&anchor->lock, anchor->tranche);
	anchor->handle = DSM_HANDLE_INVALID;
}

/* Both the segment and this mapping of it stay for good. */
static dsm_segment *
create_segment(Anchor *anchor)
{
	dsm_segment *segment = dsm_create(block_size(), 0);

	create_block(dsm_segment_address(segment));
	dsm_pin_segment(segment);
	anchor->handle = dsm_segment_handle(segment);
	return segment;
}

static void
attach_block(void)
{
	Anchor *anchor = idem_named_dsm_segment(BLOCK_NAME, sizeof(Anchor), create_anchor);
	dsm_segment *segment;

	if (anchor == NULL)
		return;
	idem_register_lwlock_tranche(anchor->tranche, BLOCK_NAME " anchor");
	LWLockAcquire(&anchor->lock, LW_EXCLUSIVE);
	if (anchor->handle == DSM_HANDLE_INVALID)
		segment = create_segment(anchor);
	else
		segment = dsm_attach(anchor->handle);
	LWLockRelease(&anchor->lock);
	if (segment == NULL)
		elog(ERROR, "could not attach to shared memory of \"%s\"", BLOCK_NAME);

	dsm_pin_mapping(segment);
	block = dsm_segment_address(segment);
	idem_register_lwlock_tranche(block->tranche, BLOCK_NAME);
}

void *
shmem_get(const ShmemArea *area)
{
	if (block == NULL && !preloaded)
		attach_block();

	/* another version of the library may have created it */
	if (block == NULL || area->number >= block->nareas)
		return NULL;
	return (char *) block + block->offset[area->number];
}
