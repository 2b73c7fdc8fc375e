/*-------------------------------------------------------------------------
 *
 * attempt_counter.h
 *	  Attempts at codes, counted even if the caller rolls back.
 *
 * A code's row has its count, but a rollback undoes that.  So attempts are counted in shared
 * memory as well, until a commit makes the row's count permanent, or the code expires.  The
 * table has a fixed size ("idempotency.guess_entries", about 60 bytes each) and is shared by
 * all databases.  It holds only counts that no commit has settled.  A purpose may hold as
 * many entries as are free; beyond that, its attempts are refused rather than forgotten.
 *
 * Without shared memory only the row counts, and a warning says so once a session.  A clean
 * restart keeps the table if the library is preloaded; after a crash only the row is left.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ATTEMPT_COUNTER_H
#define IDEM_ATTEMPT_COUNTER_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* Returned by attempt_count() instead of a number. */
#define ATTEMPT_NONE_LEFT 0
#define ATTEMPT_TABLE_FULL (-1)

extern void attempt_init(void);

/*
 * This transaction starts a new series.  If it rolls back, the series never had a code, and
 * its entry is freed.
 */
extern void attempt_new_series(const pg_uuid_t *series);

/*
 * Count an attempt at the codes of a series and purpose; the row counts "in_row" so far.
 * Returns the attempt's number, from 1 to "max_attempts", or one of the values above if
 * nothing was counted.  The row is dead at "until".  The caller holds a lock on the row.
 */
extern int attempt_count(const pg_uuid_t *series, const char *purpose, int purpose_len, int in_row,
						 int max_attempts, TimestampTz until);

/* Uncount the attempt that was counted just now: it was right. */
extern void attempt_give_back(const pg_uuid_t *series);

/* If the transaction commits, the row counts that many attempts, a right one excluded. */
extern void attempt_in_row(const pg_uuid_t *series, int count);

/* The attempts counted, in the row or here; an entry is kept until "until". */
extern int attempt_take_over(const pg_uuid_t *series, int in_row, TimestampTz until);

#endif /* IDEM_ATTEMPT_COUNTER_H */
