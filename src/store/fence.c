/*-------------------------------------------------------------------------
 *
 * fence.c
 *	  New fences, from a sequence.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "common/int.h"
#include "datatype/timestamp.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "base/errors.h"
#include "base/relation.h"
#include "store/durable.h"
#include "store/store.h"
#include "store/table.h"

/* how many numbers to draw before we conclude that the sequence is behind */
#define FENCE_TRIES 1000

/* how far a new run moves a sequence that is ahead of the clock: at least, and at most more */
#define FENCE_GAP (INT64CONST(1) << 20)
#define FENCE_SPREAD (INT64CONST(1) << 36)

/* nodes of a cluster that can issue fences; microseconds times this fit until the year 2255 */
#define MAX_GROUPS 1024

/*
 * Fences come from a sequence.  WAL brings it back after a crash, but not if the server goes
 * back in time: an asynchronous standby that is promoted lacks the newest WAL, and so does a
 * server after point-in-time recovery; a restored dump or a copy of the disk is older yet.
 * Fences that were issued after that moment are in other systems' memory, and would be issued
 * again.
 *
 * Whatever the way back, the next fence is issued by another postmaster, on another timeline
 * or in another database.  These three make a run.  The first fence of a run moves the
 * sequence to the clock, in microseconds.  No server issues a million fences a second, so
 * the numbers of all earlier runs are below the clock, unless it was set back.  We do not try
 * to find out whether the server has really gone back: a plain copy of the data directory
 * looks like a restart.
 *
 * If the clock is behind the sequence, the run leaves a gap.  Its length differs from run to
 * run: two servers may go on from the same number, as a primary that was restarted and the
 * standby that has lost contact before that.
 *
 * The sequence idem_fence_run has the run that moved idem_fence last.
 */
static int64
current_run(void)
{
	struct
	{
		TimestampTz start;
		Oid database;
		TimeLineID timeline;
	} run = {PgStartTime, MyDatabaseId, GetWALInsertionTimeLine()};

	StaticAssertStmt(sizeof(run) == 16, "padding would be hashed");
	/* a positive number, as sequences have; 0 and 1 are those of a new sequence */
	return (int64) (hash_bytes_extended((unsigned char *) &run, sizeof(run), 0) >> 1) | 2;
}

static int64
clock_in_microseconds(void)
{
	return GetCurrentTimestamp() +
		(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * (int64) USECS_PER_DAY;
}

static int64
last_value(Relation sequence)
{
	Buffer buffer = ReadBuffer(sequence, 0);
	Page page;
	HeapTupleData tuple;
	int64 last;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	tuple.t_data = (HeapTupleHeader) PageGetItem(page, PageGetItemId(page, FirstOffsetNumber));
	last = ((Form_pg_sequence_data) GETSTRUCT(&tuple))->last_value;
	UnlockReleaseBuffer(buffer);
	return last;
}

static void
set_value(Relation sequence, int64 value)
{
	OwnerContext owner;

	owner_become(sequence, &owner);
	(void) DirectFunctionCall2(setval_oid, ObjectIdGetDatum(RelationGetRelid(sequence)),
							   Int64GetDatum(value));
	owner_leave(&owner);
}

/*
 * The order matters.  Whoever sees the new run, also in the WAL of a server that crashed,
 * finds the sequence moved.
 */
static void
move_fences(Relation sequence, Relation run_sequence, int64 run)
{
	int64 last = last_value(sequence);
	int64 next = clock_in_microseconds();

	if (next > last || !pg_add_s64_overflow(last, FENCE_GAP + run % FENCE_SPREAD, &next))
		set_value(sequence, next);
	set_value(run_sequence, run);
}

static void
begin_run(Relation sequence)
{
	/* in this session, a sequence that has the current run keeps it */
	static Oid known;
	Oid relid = store_fence_run_sequence();
	Relation run_sequence;
	int64 run;

	if (!OidIsValid(relid) || relid == known)
		return;
	run_sequence = relation_open(relid, AccessShareLock);
	run = current_run();
	if (last_value(run_sequence) != run)
	{
		/* one session moves it; not to the end of the transaction, which can be far */
		LockRelation(run_sequence, ShareUpdateExclusiveLock);
		if (last_value(run_sequence) != run)
			move_fences(sequence, run_sequence, run);
		UnlockRelation(run_sequence, ShareUpdateExclusiveLock);
	}
	relation_close(run_sequence, NoLock);
	known = relid;
}

/*
 * Each node of a cluster has a sequence of its own, so a fence ends with the number of the node's
 * group.  A key's next fence may be issued by another node, which does not know the last one if
 * the row was purged meanwhile.  So the sequences of all nodes follow the clock, and go past the
 * fence that the row has.
 */
static int64
next_of_node(Relation sequence, int64 last)
{
	int32 group = shard_group();
	int64 next;

	if (group < 0 || group >= MAX_GROUPS)
		error_too_many_groups(group, MAX_GROUPS);
	/* one session at a time; not to the end of the transaction, which can be far */
	LockRelation(sequence, ShareUpdateExclusiveLock);
	next = Max(last_value(sequence), Max(last, 0) / MAX_GROUPS) + 1;
	next = Max(next, clock_in_microseconds());
	if (next > PG_INT64_MAX / MAX_GROUPS - 1)
		error_sequence_behind("idem_fence", TABLE_NAME);
	set_value(sequence, next);
	UnlockRelation(sequence, ShareUpdateExclusiveLock);
	return next * MAX_GROUPS + group;
}

/*
 * The sequence's advance survives a rollback.  Once we return a number, the advance must
 * also survive a crash and the promotion of a synchronous standby, whether the claim commits
 * or not, and whatever the session's synchronous_commit.  So we make WAL durable up to the
 * last record of the sequence's page; the server logs it once every 32 numbers.
 */
int64
store_new_fence(const IdemKey *key, int64 last)
{
	Store store;
	Relation sequence;
	Buffer buffer;
	XLogRecPtr lsn;
	int64 fence = 0;

	store_open(&store, key->scope, SHARD_WRITE, RowExclusiveLock);
	sequence = relation_open(store_fence_sequence(), AccessShareLock);
	if (sequence->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		relation_refuse(TABLE_NAME,
						"Its sequence is not logged: a crash would issue fences again.");
	begin_run(sequence);
	if (store.tenant_column != NO_COLUMN)
		fence = next_of_node(sequence, last);
	/* a sequence with a cache may return numbers below those of other sessions */
	for (int i = 0; i < FENCE_TRIES && fence <= Max(last, 0); i++)
		fence = nextval_internal(store_fence_sequence(), false);

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
