/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  Shared memory: one way in, preloaded or not.
 *
 * Preloaded (shared_preload_libraries), it is part of the server's shared
 * memory.  On PostgreSQL 17 and later the first backend that asks creates it
 * otherwise, and it lives as long as the server does; the settings of that
 * backend decide its size.  Else there is none, and callers say what is lost.
 *
 * Nothing in it survives a crash.  Over a clean restart of a server that preloads
 * it, what an area saves is kept in a file of the server's folder of statistics.
 * The file says which shutdown it is of, and is read after that one only, however
 * often a start fails in between: no crash, and no backup of a running server, finds
 * an old one.  It is removed when the server runs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SHMEM_H
#define IDEM_SHMEM_H

/* A file that an area is saved in; errors are the caller's of "save". */
typedef struct ShmemFile ShmemFile;

extern void shmem_write(ShmemFile *file, const void *data, Size len);

/* False: there is not so much in it. */
extern bool shmem_read(ShmemFile *file, void *data, Size len);

typedef struct ShmemArea
{
	const char *name; /* of its locks, as a wait event, and of its file */

	/* bytes that it needs, by the settings */
	Size (*size)(void);

	/* once, before anybody else sees it; locks in it take that tranche */
	void (*create)(void *address, int tranche);

	/*
	 * Over a clean restart; both NULL: nothing is kept.  Nobody else has access.
	 * "load" comes after "create"; false: not what "save" wrote.  Then, or where the
	 * checksum behind is wrong, the area is created anew.
	 */
	void (*save)(void *address, ShmemFile *file);
	bool (*load)(void *address, ShmemFile *file);

	int number; /* set by shmem_register() */
} ShmemArea;

/* From _PG_init() only: areas first, then shmem_init(). */
extern void shmem_register(ShmemArea *area);
extern void shmem_init(void);

/* Where the area is, or NULL if there is no shared memory. */
extern void *shmem_get(const ShmemArea *area);

/*
 * The same for what must not fail for it: a server that cannot make the memory
 * says so in its log, once a session, and there is none.  Not while a transaction
 * ends.
 */
extern void *shmem_try(const ShmemArea *area);

#endif /* IDEM_SHMEM_H */
