/*-------------------------------------------------------------------------
 *
 * partition_move.h
 *	  Rows that an UPDATE moves from one partition to another.
 *
 * A row trigger sees such a move as a DELETE in one partition and an INSERT in another;
 * AFTER UPDATE triggers do not fire for it.  A moved row leaves an old version behind, which
 * the same command has deleted and marked as moved.  That version identifies the move.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_PARTITION_MOVE_H
#define IDEM_PARTITION_MOVE_H

#include "access/htup.h"
#include "storage/itemptr.h"
#include "utils/rel.h"

#include "base/key.h"

/* The table and the trigger that moves are tracked for. */
typedef struct MovedScope
{
	Oid root;			/* of the partitions */
	pg_uuid_t identity; /* of the trigger's columns and scope */

	/* the key of a row version in any partition; false if it has none */
	bool (*make_key)(void *arg, Relation rel, HeapTuple row, IdemKey *key);
	void *arg;
} MovedScope;

extern void moved_init(void);

/* Has the current transaction deleted this version to insert it elsewhere? */
extern bool moved_is(HeapTuple old);

/*
 * An AFTER DELETE trigger has seen a row for which moved_is() is true.  The same command may
 * insert it again under the same key.
 */
extern void moved_out(const MovedScope *scope, const IdemKey *key, HeapTuple old);

/*
 * Is an inserted row one of those?  Returns true once for each.
 */
extern bool moved_in(const MovedScope *scope, const IdemKey *key, Relation rel, HeapTuple inserted);

/*
 * Without AFTER DELETE triggers: find all rows moved by the command that inserted this one,
 * for moved_in().  Once a command, reads the partitions in which the transaction has deleted
 * rows.
 */
extern void moved_collect(const MovedScope *scope, Relation rel, HeapTuple inserted);

/*
 * For BEFORE triggers.  moved_let_pass() records that a row moved by the current command was
 * let pass.  moved_more() returns whether the command has moved more rows than that.  It
 * reads nothing for a command that cannot move rows, such as an INSERT.  Otherwise it reads
 * like moved_collect(), and again only after further deletes.
 */
extern void moved_let_pass(const MovedScope *scope);
extern bool moved_more(const MovedScope *scope);

/* For BEFORE triggers: has the current command moved away the row that was there? */
extern bool moved_from(Oid relid, ItemPointer tid);

#endif /* IDEM_PARTITION_MOVE_H */
