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

#include "base/errors.h"
#include "base/relation.h"
#include "store/durable.h"
#include "store/store.h"
#include "store/table.h"

/* how many numbers to draw before we conclude that the sequence is behind */
#define FENCE_TRIES 1000

/*
 * Fences come from a sequence, because its advance survives a rollback.  Once we return a
 * number, the advance must also survive a crash and the promotion of a synchronous standby,
 * whether the claim commits or not, and whatever the session's synchronous_commit.  So we
 * make WAL durable up to the last record of the sequence's page; the server logs it once
 * every 32 numbers.
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
	/* a sequence with a cache may return numbers below those of other sessions */
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
		error_sequence_behind("idem_fence", TABLE_NAME);
	return fence;
}
