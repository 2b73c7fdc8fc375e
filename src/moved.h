/*-------------------------------------------------------------------------
 *
 * moved.h
 *	  Rows that an UPDATE moves from one partition to another.
 *
 * To a row trigger such a move looks like a DELETE here and an INSERT there;
 * AFTER UPDATE triggers do not fire for it.  Whether an inserted row is one
 * that was moved shows in what it left behind: a version that this command has
 * deleted and marked as moved.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_MOVED_H
#define IDEM_MOVED_H

#include "access/htup.h"
#include "storage/itemptr.h"
#include "utils/rel.h"

#include "key.h"

/* The key of a version of a row in any of the partitions; false: it has none. */
typedef bool (*MovedKey)(void *arg, Relation rel, HeapTuple row, IdemKey *key);

/*
 * An AFTER DELETE trigger has seen a row go: if it only moves, it may come in
 * again, under the same key, by the same command.
 */
extern void moved_out(const IdemKey *key, HeapTuple old);

/*
 * Is the row that a command has inserted one of those?  True once for each.
 */
extern bool moved_in(const IdemKey *key, HeapTuple inserted);

/*
 * Without AFTER DELETE triggers: find all rows that the command which has
 * inserted this one has moved, for moved_in().  It reads those partitions in
 * which the transaction has deleted something, once a command.
 */
extern void moved_collect(Oid root, HeapTuple inserted, MovedKey make_key, void *arg);

/*
 * Has any command of this transaction moved a row with that key?  It reads as
 * moved_collect() does, in each call.
 */
extern bool moved_any(Oid root, const IdemKey *key, MovedKey make_key, void *arg);

/* Has this transaction moved away the row that was there? */
extern bool moved_from(Oid relid, ItemPointer tid);

#endif /* IDEM_MOVED_H */
