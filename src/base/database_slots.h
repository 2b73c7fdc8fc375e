/*-------------------------------------------------------------------------
 *
 * database_slots.h
 *	  Which element of an array in shared memory is which database's.
 *
 * An array has an element for each of MAX_DATABASES databases.  A dropped database keeps its
 * slot until another database needs it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_DATABASE_SLOTS_H
#define IDEM_DATABASE_SLOTS_H

#include "storage/lwlock.h"

#define MAX_DATABASES 500

/* The slot of a database stays as it is while the database exists. */
typedef struct DatabaseSlots
{
	LWLock lock;				 /* protects "database" */
	Oid database[MAX_DATABASES]; /* InvalidOid: free */
} DatabaseSlots;

/* All slots are free. */
extern void database_slots_create(DatabaseSlots *slots, int tranche);

/*
 * The slot of this session's database; -1 if there is none left.  For a slot that the
 * database did not have before, it first calls "clear" with "array" and the slot, under the
 * lock, so "clear" must not fail.  Call in a transaction.
 */
extern int database_slot(DatabaseSlots *slots, void (*clear)(void *array, int slot), void *array);

/* Does a database have a slot? */
extern bool database_has_slot(DatabaseSlots *slots, Oid database);

#endif /* IDEM_DATABASE_SLOTS_H */
