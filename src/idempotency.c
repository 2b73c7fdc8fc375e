/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  Entry point: initializes each module, and nothing else.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/compat.h"
#include "base/grant.h"
#include "base/guc.h"
#include "base/shmem.h"
#include "claim/pending.h"
#include "once/partition_move.h"
#include "retention/databases.h"
#include "retention/worker.h"
#include "secret/attempt_counter.h"
#include "stat/stats.h"
#include "store/lock_notes.h"
#include "store/store.h"
#include "throttle/rate_table.h"

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
	attempt_init();
	rate_limit_init();
	stats_init();
	lock_notes_init();
	databases_init();
	worker_init();
	shmem_init();
}
