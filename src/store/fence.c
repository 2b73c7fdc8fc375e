/*-------------------------------------------------------------------------
 *
 * fence.c
 *	  New fences, from a sequence.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_class.h"
#include "commands/sequence.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"

#include "base/relation.h"
#include "store/durable.h"
#include "store/store.h"
#include "store/table.h"

/* numbers that are drawn before a fence sequence is held to be behind */
#define FENCE_TRIES 1000

/*
 * From a sequence, whose advance survives a rollback.  It must survive a crash as
 * well, and the promotion of a synchronous standby, from the moment the number is out,
 * whether its claim commits or not, and even if its session does not care; so WAL
 * is durable as far as the sequence's page was last logged, which is once every 32
 * numbers.
 */
int64
store_new_fence(int64 last)
{
	Store store;
	Relation sequence;
	Buffer buffer;
	XLogRecPtr lsn;
	int64 fence = 0;

	store_open(&store, RowExclusiveLock);
	/* numbers that another session has cached may lie behind */
	for (int i = 0; i < FENCE_TRIES && fence <= Max(last, 0); i++)
		fence = nextval_internal(store_fence_sequence(), false);

	sequence = relation_open(store_fence_sequence(), AccessShareLock);
	if (sequence->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		relation_refuse(TABLE_NAME,
						"Its sequence is not logged: a crash would issue fences again.");
	buffer = ReadBuffer(sequence, 0);
	lsn = BufferGetLSNAtomic(buffer);
	ReleaseBuffer(buffer);
	relation_close(sequence, NoLock);
	durable_wal(lsn);
	store_close(&store);

	if (fence <= Max(last, 0))
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("sequence \"%s\" is behind the fences in table \"%s\"", "idem_fence",
					TABLE_NAME),
			 errhint(
				 "Set it past max(fence) with setval(); logical replication does not copy it.")));
	return fence;
}
