/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  Shared memory, with one interface whether the library is preloaded or not.
 *
 * With shared_preload_libraries it is part of the server's shared memory.  Otherwise, on
 * PostgreSQL 17 and later, the first backend that asks for it creates it, with that
 * backend's settings, and it lasts until the server stops.  On older servers there is none
 * without preload; each caller says what is lost then.
 *
 * Nothing in it survives a crash.  If the library is preloaded, an area can save its data
 * over a clean restart, in a file in the server's statistics directory.  The file names the
 * shutdown that wrote it, and is read only after that shutdown, even if the server failed
 * to start several times in between.  So no old file is read after a crash, or in a backup
 * taken from a running server.  The file is removed once the server runs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SHMEM_H
#define IDEM_SHMEM_H

/* The file in which an area is saved.  The caller of "save" checks for errors. */
typedef struct ShmemFile ShmemFile;

extern void shmem_write(ShmemFile *file, const void *data, Size len);

/* False if the file has less data. */
extern bool shmem_read(ShmemFile *file, void *data, Size len);

typedef struct ShmemArea
{
	const char *name; /* also the name of its wait event for locks and of its file */

	/* the bytes that it needs, from the settings */
	Size (*size)(void);

	/* called once, before other processes see the area; its locks use that tranche */
	void (*create)(void *address, int tranche);

	/*
	 * Save and load the area over a clean restart; both NULL: nothing is kept.  No other
	 * process has access meanwhile.  "load" is called after "create" and returns false if
	 * the data is not what "save" wrote.  Then, or if the checksum is wrong, the area is
	 * created again.
	 */
	void (*save)(void *address, ShmemFile *file);
	bool (*load)(void *address, ShmemFile *file);

	int number; /* set by shmem_register() */
} ShmemArea;

/* Call these from _PG_init() only: first register all areas, then shmem_init(). */
extern void shmem_register(ShmemArea *area);
extern void shmem_init(void);

/* The address of the area, or NULL if there is no shared memory. */
extern void *shmem_get(const ShmemArea *area);

/*
 * The same for callers that must not fail.  If the memory cannot be created, it writes that
 * to the server log, once per session, and returns NULL.  Do not call it while a
 * transaction is ending.
 */
extern void *shmem_try(const ShmemArea *area);

#endif /* IDEM_SHMEM_H */
