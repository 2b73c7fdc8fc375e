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
 * Nothing in it survives a crash or a restart by itself.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SHMEM_H
#define IDEM_SHMEM_H

typedef struct ShmemArea
{
	/* bytes that it needs, by the settings */
	Size (*size)(void);

	/* once, before anybody else sees it; locks in it take that tranche */
	void (*create)(void *address, int tranche);

	int number; /* set by shmem_register() */
} ShmemArea;

/* From _PG_init() only: areas first, then shmem_init(). */
extern void shmem_register(ShmemArea *area);
extern void shmem_init(void);

/* Where the area is, or NULL if there is no shared memory. */
extern void *shmem_get(const ShmemArea *area);

#endif /* IDEM_SHMEM_H */
