/*-------------------------------------------------------------------------
 *
 * attempt_counter.h
 *	  Guesses at codes, counted though the caller rolls back.
 *
 * The count of a code is in its row, where a rollback undoes it.  So it is in
 * shared memory as well, from the guess to the commit that makes the row's count
 * last, or as long as the code lives.  The table is of fixed size
 * ("idempotency.guess_entries", about 60 bytes each), shared by all databases, and
 * holds only what commits have not settled.  A purpose may hold as many as are free;
 * then its guesses are refused rather than forgotten.
 *
 * Without shared memory only the row counts; a warning says so once a session.
 * A clean restart keeps it if the library is preloaded; after a crash the row alone
 * is left.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ATTEMPT_COUNTER_H
#define IDEM_ATTEMPT_COUNTER_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* What guess_count() answers instead of a number. */
#define GUESS_LIMIT 0
#define GUESS_TABLE_FULL (-1)

extern void guess_init(void);

/*
 * This transaction makes a new series.  If it is rolled back, there never was a
 * code of it to guess.
 */
extern void guess_new_series(const pg_uuid_t *series);

/*
 * Count a guess at the codes of that series and purpose, of which "in_row" are counted
 * in the row.  Its number, from 1 to "limit", or one of the above: nothing is counted
 * then.  "until": when the row is dead.  The caller holds a lock on the row.
 */
extern int guess_count(const pg_uuid_t *series, const char *purpose, int purpose_len, int in_row,
					   int limit, TimestampTz until);

/* The guess that was counted just now was the code itself, and none. */
extern void guess_give_back(const pg_uuid_t *series);

/* The row counts that many from now on, without a right guess, if the transaction commits. */
extern void guess_in_row(const pg_uuid_t *series, int count);

/* How many guesses are counted, in the row or here; they count until then. */
extern int guess_take_over(const pg_uuid_t *series, int in_row, TimestampTz until);

#endif /* IDEM_ATTEMPT_COUNTER_H */
