/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  Shared memory, with one interface whether the library is preloaded or not.
 *
 * All areas are in one block, after a header with their offsets.  The offsets are stored
 * because sizes depend on settings, and a backend may have other settings than the one that
 * created the block.
 *
 * Without preload the block is a DSM segment of its own.  The server's registry of named
 * segments holds only a small segment with the block's handle: the registry refuses to
 * return a segment if the size asked for has changed, so that one has a fixed size.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xlog.h"
#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "storage/dsm.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "base/subtransaction.h"

#define BLOCK_NAME "idempotency"
#define MAX_AREAS 8

typedef struct SharedBlock
{
	struct
	{
		int tranche;
		Size offset;
	} area[MAX_AREAS];
	bool has_files; /* files that were read at server start may still exist */
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

	new->has_files = false;
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
 * Saving and loading over a restart
 * ------------------------------------------------------------------------
 */

/* change it whenever the data that an area saves changes */
#define FILE_MAGIC 0x1DE00003

/*
 * Identifies the shutdown that wrote a file.  The control file stays as that shutdown left
 * it until the server has really started, so a failed start loses nothing.  Once the server
 * has run, the control file has changed, and no earlier file is read again even if it still
 * exists.
 */
typedef struct Shutdown
{
	uint64 system_identifier;
	XLogRecPtr checkpoint;
	int64 time;
} Shutdown;

typedef struct FileHeader
{
	uint32 magic;
	uint32 unused;
	Shutdown shutdown;
} FileHeader;

/* The file has a header, the data of the area, and a checksum of both. */
struct ShmemFile
{
	FILE *file;
	pg_crc32c crc;
};

void
shmem_write(ShmemFile *file, const void *data, Size len)
{
	/* the caller checks ferror() */
	(void) fwrite(data, 1, len, file->file);
	COMP_CRC32C(file->crc, data, len);
}

bool
shmem_read(ShmemFile *file, void *data, Size len)
{
	if (fread(data, 1, len, file->file) != len)
		return false;
	COMP_CRC32C(file->crc, data, len);
	return true;
}

static char *
file_name(const ShmemArea *area, const char *suffix)
{
	return psprintf(PGSTAT_STAT_PERMANENT_DIRECTORY "/%s.stat%s", area->name, suffix);
}

/* False after a crash or an immediate shutdown: the data may be inconsistent. */
static bool
get_shutdown(Shutdown *shutdown)
{
	bool crc_ok;
	ControlFileData *control = get_controlfile(DataDir, &crc_ok);

	memset(shutdown, 0, sizeof(*shutdown));
	shutdown->system_identifier = control->system_identifier;
	shutdown->checkpoint = control->checkPoint;
	/* pg_checksums changes the time, but a standby may stop twice after one checkpoint */
	if (control->state == DB_SHUTDOWNED_IN_RECOVERY)
		shutdown->time = control->time;
	return crc_ok &&
		(control->state == DB_SHUTDOWNED || control->state == DB_SHUTDOWNED_IN_RECOVERY);
}

/* Is this an old state of the cluster, about to be recovered from an archive? */
static bool
is_restored(void)
{
	return access(RECOVERY_SIGNAL_FILE, F_OK) == 0;
}

typedef enum LoadResult
{
	LOAD_OK,
	LOAD_OTHER_SHUTDOWN,
	LOAD_INVALID
} LoadResult;

static LoadResult
load_contents(const ShmemArea *area, FILE *stream)
{
	ShmemFile file = {.file = stream};
	FileHeader header;
	Shutdown shutdown;
	pg_crc32c crc;

	INIT_CRC32C(file.crc);
	if (!shmem_read(&file, &header, sizeof(header)) || header.magic != FILE_MAGIC)
		return LOAD_INVALID;
	if (!get_shutdown(&shutdown) || is_restored() ||
		memcmp(&header.shutdown, &shutdown, sizeof(shutdown)) != 0)
		return LOAD_OTHER_SHUTDOWN;
	if (!area->load(area_address(block, area->number), &file))
		return LOAD_INVALID;
	FIN_CRC32C(file.crc);
	if (fread(&crc, sizeof(crc), 1, stream) != 1 || !EQ_CRC32C(crc, file.crc) ||
		fgetc(stream) != EOF)
		return LOAD_INVALID;
	return LOAD_OK;
}

static void
load_area(const ShmemArea *area)
{
	char *name = file_name(area, "");
	FILE *file = AllocateFile(name, PG_BINARY_R);

	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(), errmsg("could not read file \"%s\": %m", name)));
		return;
	}
	block->has_files = true;
	switch (load_contents(area, file))
	{
		case LOAD_OK:
			break;
		case LOAD_OTHER_SHUTDOWN:
			ereport(DEBUG1, (errmsg("ignoring file \"%s\" of another shutdown", name)));
			break;
		case LOAD_INVALID:
			ereport(LOG,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("ignoring invalid data in file \"%s\"", name)));
			area->create(area_address(block, area->number), block->area[area->number].tranche);
			break;
	}
	FreeFile(file);
}

/*
 * Not called right after the files are read, because the server may still fail to start.
 * A process that asks for shared memory shows that it runs.
 */
static void
remove_files(void)
{
	block->has_files = false;
	for (int i = 0; i < nareas; i++)
	{
		char *name;

		if (areas[i]->load == NULL)
			continue;
		name = file_name(areas[i], "");
		if (unlink(name) != 0 && errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(), errmsg("could not remove file \"%s\": %m", name)));
		pfree(name);
	}
}

static void
save_area(const ShmemArea *area, const Shutdown *shutdown)
{
	char *temporary = file_name(area, ".tmp");
	ShmemFile file = {.file = AllocateFile(temporary, PG_BINARY_W)};
	FileHeader header = {.magic = FILE_MAGIC, .shutdown = *shutdown};
	bool failed = file.file == NULL;

	if (file.file != NULL)
	{
		INIT_CRC32C(file.crc);
		shmem_write(&file, &header, sizeof(header));
		area->save(area_address(block, area->number), &file);
		FIN_CRC32C(file.crc);
		(void) fwrite(&file.crc, sizeof(file.crc), 1, file.file);
		failed = ferror(file.file);
		failed = FreeFile(file.file) != 0 || failed;
	}
	if (failed)
	{
		ereport(LOG,
				(errcode_for_file_access(), errmsg("could not write file \"%s\": %m", temporary)));
		(void) unlink(temporary);
	}
	else
		/* this calls fsync() too */
		(void) durable_rename(temporary, file_name(area, ""), LOG);
}

/* Called when the server stops; "code" is not 0 after a crash. */
static void
save_areas(int code, Datum arg)
{
	Shutdown shutdown;

	if (code != 0 || block == NULL || !get_shutdown(&shutdown))
		return;
	for (int i = 0; i < nareas; i++)
		if (areas[i]->save != NULL)
			save_area(areas[i], &shutdown);
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

	/* this process lives as long as the memory does, and no other has access yet */
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
	LWLock lock; /* protects "handle" until it is set */
	int tranche;
	dsm_handle handle; /* the block's segment */
} Anchor;

static void
create_anchor(void *address)
{
	Anchor *anchor = address;

	anchor->tranche = idem_new_lwlock_tranche(BLOCK_NAME " anchor");
	LWLockInitialize(&anchor->lock, anchor->tranche);
	anchor->handle = DSM_HANDLE_INVALID;
}

/* The segment stays until the server stops. */
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
	/* the version is in the name: another version of the library has another layout */
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
	if (block != NULL && unlikely(block->has_files))
		remove_files();
	return block == NULL ? NULL : area_address(block, area->number);
}

/* Attaching may fail half-way; the rollback of a subtransaction cleans up. */
void *
shmem_try(const ShmemArea *area)
{
	static bool failed = false;
	Subtransaction sub;

	if (block != NULL || preloaded || !idem_has_named_dsm_segments)
		return shmem_get(area);
	if (failed)
		return NULL;

	subtransaction_begin(&sub);
	PG_TRY();
	{
		attach_block();
		subtransaction_commit(&sub);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		failed = true;
		edata = subtransaction_catch(&sub);
		ereport(LOG,
				(errcode(edata->sqlerrcode),
				 errmsg("could not attach to shared memory of \"%s\": %s", BLOCK_NAME,
						edata->message)));
		FreeErrorData(edata);
	}
	PG_END_TRY();
	return failed ? NULL : shmem_get(area);
}
