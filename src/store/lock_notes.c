/*-------------------------------------------------------------------------
 *
 * lock_notes.c
 *	  Record which keys sessions have locked, for the view idem_in_flight.
 *
 * Each session has a few notes, of which it overwrites the oldest, and a spinlock for them.
 * Only the session itself and readers of the view take that lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "store/lock_notes.h"

PG_FUNCTION_INFO_V1(idem_held_keys);

#define NOTES 4		  /* per session */
#define NOTE_BYTES 96 /* per key, and per scope */

typedef struct LockNote
{
	LOCKTAG tag;
	TimestampTz since;
	char key[NOTE_BYTES]; /* truncated, NUL-terminated */
	char scope[NOTE_BYTES];
} LockNote;

/* The notes belong to the session with that PID, in that database. */
typedef struct SessionNotes
{
	slock_t lock;
	int pid;
	Oid database;
	int next;
	int used;
	LockNote note[NOTES];
} SessionNotes;

static Size lock_notes_size(void);
static void lock_notes_create(void *address, int tranche);

static ShmemArea area = {.name = "idempotency_held",
						 .size = lock_notes_size,
						 .create = lock_notes_create};

/* ------------------------------------------------------------------------
 * Writing notes
 * ------------------------------------------------------------------------
 */

static Size
lock_notes_size(void)
{
	return mul_size(MaxBackends, sizeof(SessionNotes));
}

static void
lock_notes_create(void *address, int tranche)
{
	SessionNotes *sessions = address;

	memset(sessions, 0, lock_notes_size());
	for (int i = 0; i < MaxBackends; i++)
		SpinLockInit(&sessions[i].lock);
}

void
lock_notes_init(void)
{
	shmem_register(&area);
}

static void
copy_text(char *out, text *t)
{
	int len = VARSIZE_ANY_EXHDR(t);

	if (len >= NOTE_BYTES)
		len = pg_mbcliplen(VARDATA_ANY(t), len, NOTE_BYTES - 1);
	memcpy(out, VARDATA_ANY(t), len);
	out[len] = '\0';
}

void
lock_notes_add(const LOCKTAG *tag, const IdemKey *key)
{
	SessionNotes *sessions = shmem_try(&area);
	SessionNotes *mine;
	LockNote note;

	if (sessions == NULL)
		return;
	note.tag = *tag;
	note.since = GetCurrentTimestamp();
	copy_text(note.key, key->key);
	copy_text(note.scope, key->scope);

	mine = &sessions[idem_my_proc_number()];
	SpinLockAcquire(&mine->lock);
	if (mine->pid != MyProcPid || mine->database != MyDatabaseId)
	{
		mine->pid = MyProcPid;
		mine->database = MyDatabaseId;
		mine->next = mine->used = 0;
	}
	mine->note[mine->next] = note;
	mine->next = (mine->next + 1) % NOTES;
	mine->used = Max(mine->used, mine->next == 0 ? NOTES : mine->next);
	SpinLockRelease(&mine->lock);
}

/* ------------------------------------------------------------------------
 * Reading notes
 * ------------------------------------------------------------------------
 */

static void
put_note(ReturnSetInfo *rsinfo, int pid, const LockNote *note)
{
	Datum values[6];
	bool isnull[6] = {0};

	values[0] = Int32GetDatum(pid);
	values[1] = ObjectIdGetDatum(note->tag.locktag_field2);
	values[2] = ObjectIdGetDatum(note->tag.locktag_field3);
	values[3] = CStringGetTextDatum(note->key);
	values[4] = CStringGetTextDatum(note->scope);
	values[5] = TimestampTzGetDatum(note->since);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
}

/* A lock that a session holds. */
typedef struct SessionLock
{
	LOCKTAG tag;
	int pid;
} SessionLock;

static int
compare_locks(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(SessionLock));
}

/* Get the advisory locks that are held in this database, sorted.  Returns their number. */
static int
session_locks(SessionLock **locks)
{
	LockData *data = GetLockStatusData();
	int n = 0;

	*locks = palloc0(Max(data->nelements, 1) * sizeof(SessionLock));
	for (int i = 0; i < data->nelements; i++)
	{
		const LockInstanceData *lock = &data->locks[i];

		if (lock->locktag.locktag_type != LOCKTAG_ADVISORY ||
			lock->locktag.locktag_field1 != MyDatabaseId || lock->holdMask == 0)
			continue;
		(*locks)[n].tag = lock->locktag;
		(*locks)[n].pid = lock->pid;
		n++;
	}
	qsort(*locks, n, sizeof(SessionLock), compare_locks);
	return n;
}

static bool
is_locked(const SessionLock *locks, int nlocks, int pid, const LockNote *note)
{
	SessionLock lock;

	memset(&lock, 0, sizeof(lock));
	lock.tag = note->tag;
	lock.pid = pid;
	return bsearch(&lock, locks, nlocks, sizeof(SessionLock), compare_locks) != NULL;
}

/*
 * idem_held_keys() RETURNS TABLE (pid, classid, objid, key, scope, since)
 *
 * Locks as in pg_locks, of sessions in this database.  Returns only notes whose lock is
 * held: a reader may see what is in flight, but nothing that has ended.
 */
Datum
idem_held_keys(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SessionNotes *sessions = shmem_try(&area);
	SessionLock *locks;
	int nlocks;

	InitMaterializedSRF(fcinfo, 0);
	if (sessions == NULL)
		return (Datum) 0;
	nlocks = session_locks(&locks);
	for (int i = 0; i < MaxBackends; i++)
	{
		SessionNotes copy;

		SpinLockAcquire(&sessions[i].lock);
		memcpy(&copy, &sessions[i], sizeof(copy));
		SpinLockRelease(&sessions[i].lock);
		if (copy.database != MyDatabaseId)
			continue;
		for (int j = 0; j < copy.used; j++)
			if (is_locked(locks, nlocks, copy.pid, &copy.note[j]))
				put_note(rsinfo, copy.pid, &copy.note[j]);
	}
	return (Datum) 0;
}
