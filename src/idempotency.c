/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  Entry point: lets each room set itself up, nothing else.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "grant.h"
#include "guc.h"
#include "guess.h"
#include "held.h"
#include "limit.h"
#include "moved.h"
#include "pending.h"
#include "shmem.h"
#include "stats.h"
#include "store.h"
#include "worker.h"

IDEM_MODULE_MAGIC(IDEM_VERSION);

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	guc_init();
	grant_init();
	store_init();
	pending_init();
	moved_init();
	guess_init();
	limit_init();
	stats_init();
	held_init();
	worker_init();
	shmem_init();
}
