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

#include <unistd.h>

#include "access/xact.h"
#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/dsm.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/resowner.h"

#include "compat.h"
#include "shmem.h"

#define BLOCK_NAME "idempotency"
#define MAX_AREAS 8

typedef struct SharedBlock
{
	struct
	{
		int tranche;
		Size offset;
	} area[MAX_AREAS];
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

static void *
area_address(SharedBlock *where, int number)
{
	return (char *) where + where->area[number].offset;
}

static void
create_block(SharedBlock *new)
{
	Size offset = MAXALIGN(sizeof(SharedBlock));

	for (int i = 0; i < nareas; i++)
	{
		new->area[i].tranche = idem_new_lwlock_tranche(areas[i]->name);
		new->area[i].offset = offset;
		areas[i]->create(area_address(new, i), new->area[i].tranche);
		offset += MAXALIGN(areas[i]->size());
	}
}

static void
name_tranches(void)
{
	for (int i = 0; i < nareas; i++)
		idem_register_lwlock_tranche(block->area[i].tranche, areas[i]->name);
}

/* ------------------------------------------------------------------------
 * Over a restart
 * ------------------------------------------------------------------------
 */

/* changes with what any area saves */
#define FILE_MAGIC 0x1DE00001

static char *
file_name(const ShmemArea *area, const char *suffix)
{
	return psprintf(PGSTAT_STAT_PERMANENT_DIRECTORY "/%s.stat%s", area->name, suffix);
}

/* An immediate shutdown may have caught somebody in the middle of a change. */
static bool
was_shut_down(void)
{
	bool crc_ok;
	ControlFileData *control = get_controlfile(DataDir, &crc_ok);

	return crc_ok &&
		(control->state == DB_SHUTDOWNED || control->state == DB_SHUTDOWNED_IN_RECOVERY);
}

static void
load_area(const ShmemArea *area)
{
	void *address = area_address(block, area->number);
	char *name = file_name(area, "");
	FILE *file = AllocateFile(name, PG_BINARY_R);
	uint32 magic;

	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(), errmsg("could not read file \"%s\": %m", name)));
		return;
	}
	/* the server may have run, and crashed, without us since the file was written */
	if (was_shut_down() &&
		(fread(&magic, sizeof(magic), 1, file) != 1 || magic != FILE_MAGIC ||
		 !area->load(address, file) || fgetc(file) != EOF))
	{
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ignoring invalid data in file \"%s\"", name)));
		area->create(address, block->area[area->number].tranche);
	}
	FreeFile(file);
	if (unlink(name) != 0)
		ereport(LOG, (errcode_for_file_access(), errmsg("could not remove file \"%s\": %m", name)));
}

static void
save_area(const ShmemArea *area)
{
	char *temporary = file_name(area, ".tmp");
	FILE *file = AllocateFile(temporary, PG_BINARY_W);
	uint32 magic = FILE_MAGIC;
	bool failed = file == NULL;

	if (file != NULL)
	{
		(void) fwrite(&magic, sizeof(magic), 1, file);
		area->save(area_address(block, area->number), file);
		failed = ferror(file);
		failed = FreeFile(file) != 0 || failed;
	}
	if (failed)
	{
		ereport(LOG,
				(errcode_for_file_access(), errmsg("could not write file \"%s\": %m", temporary)));
		(void) unlink(temporary);
	}
	else
		(void) durable_rename(temporary, file_name(area, ""), LOG);
}

/* When the server stops; "code" is not 0 in a crash. */
static void
save_areas(int code, Datum arg)
{
	if (code != 0 || block == NULL || !was_shut_down())
		return;
	for (int i = 0; i < nareas; i++)
		if (areas[i]->save != NULL)
			save_area(areas[i]);
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
	name_tranches();

	/* the process that lives as long as the memory does; nobody else is there yet */
	if (IsUnderPostmaster || found)
		return;
	on_shmem_exit(save_areas, (Datum) 0);
	for (int i = 0; i < nareas; i++)
		if (areas[i]->load != NULL)
			load_area(areas[i]);
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
	/* another version of the library has another idea of what is in it */
	Anchor *anchor =
		idem_named_dsm_segment(BLOCK_NAME " " IDEM_VERSION, sizeof(Anchor), create_anchor);
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
	name_tranches();
}

void *
shmem_get(const ShmemArea *area)
{
	if (block == NULL && !preloaded)
		attach_block();

	return block == NULL ? NULL : area_address(block, area->number);
}

/* Attaching may fail half-way; a subtransaction's end cleans up. */
void *
shmem_try(const ShmemArea *area)
{
	static bool failed = false;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	if (block != NULL || preloaded || !idem_has_named_dsm_segments)
		return shmem_get(area);
	if (failed)
		return NULL;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		attach_block();
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData *edata;

		failed = true;
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		ereport(LOG,
				(errcode(edata->sqlerrcode),
				 errmsg("could not attach to shared memory of \"%s\": %s", BLOCK_NAME,
						edata->message)));
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return failed ? NULL : shmem_get(area);
}
