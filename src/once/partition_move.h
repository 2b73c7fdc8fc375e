/*-------------------------------------------------------------------------
 *
 * partition_move.h
 *	  Rows that an UPDATE moves from one partition to another.
 *
 * To a row trigger such a move looks like a DELETE here and an INSERT there;
 * AFTER UPDATE triggers do not fire for it.  Whether an inserted row is one
 * that was moved shows in what it left behind: a version that this command has
 * deleted and marked as moved.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_PARTITION_MOVE_H
#define IDEM_PARTITION_MOVE_H

#include "access/htup.h"
#include "storage/itemptr.h"
#include "utils/rel.h"

#include "base/key.h"

/* Whose moves: rows of which table, under which trigger. */
typedef struct MovedScope
{
	Oid root;			/* of the partitions */
	pg_uuid_t identity; /* of the trigger's columns and scope */

	/* the key of a version of a row in any of the partitions; false: it has none */
	bool (*make_key)(void *arg, Relation rel, HeapTuple row, IdemKey *key);
	void *arg;
} MovedScope;

extern void moved_init(void);

/* Has the current transaction deleted this version to insert it elsewhere? */
extern bool moved_is(HeapTuple old);

/*
 * An AFTER DELETE trigger has seen a row go that moved_is(): it may come in
 * again, under the same key, by the same command.
 */
extern void moved_out(const MovedScope *scope, const IdemKey *key, HeapTuple old);

/*
 * Is the row that a command has inserted one of those?  True once for each.
 */
extern bool moved_in(const MovedScope *scope, const IdemKey *key, Relation rel, HeapTuple inserted);

/*
 * Without AFTER DELETE triggers: find all rows that the command which has
 * inserted this one has moved, for moved_in().  It reads those partitions in
 * which the transaction has deleted something, once a command.
 */
extern void moved_collect(const MovedScope *scope, Relation rel, HeapTuple inserted);

/*
 * For BEFORE triggers: one of the rows that the current command has moved was let
 * pass; and has it moved more than those?  For a command that can move none, such
 * as an INSERT, that reads nothing; else it reads as moved_collect() does, and
 * again only when more was deleted since.
 */
extern void moved_let_pass(const MovedScope *scope);
extern bool moved_more(const MovedScope *scope);

/* For BEFORE triggers: has the current command moved away the row that was there? */
extern bool moved_from(Oid relid, ItemPointer tid);

#endif /* IDEM_PARTITION_MOVE_H */
