/*-------------------------------------------------------------------------
 *
 * database_slots.c
 *	  Which element of an array in shared memory is which database's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lwlock.h"
#include "utils/syscache.h"

#include "base/database_slots.h"

#define NO_SLOT (-1)

void
database_slots_create(DatabaseSlots *slots, int tranche)
{
	LWLockInitialize(&slots->lock, tranche);
	for (int i = 0; i < MAX_DATABASES; i++)
		slots->database[i] = InvalidOid;
}

static int
find_slot(const DatabaseSlots *slots, Oid database)
{
	for (int i = 0; i < MAX_DATABASES; i++)
		if (slots->database[i] == database)
			return i;
	return NO_SLOT;
}

bool
database_has_slot(DatabaseSlots *slots, Oid database)
{
	bool found;

	LWLockAcquire(&slots->lock, LW_SHARED);
	found = find_slot(slots, database) != NO_SLOT;
	LWLockRelease(&slots->lock);
	return found;
}

/* The slot of this database, else that of "gone", which may be InvalidOid. */
static int
take_slot(DatabaseSlots *slots, Oid gone, void (*clear)(void *array, int slot), void *array)
{
	int slot;

	LWLockAcquire(&slots->lock, LW_EXCLUSIVE);
	slot = find_slot(slots, MyDatabaseId);
	if (slot == NO_SLOT)
	{
		slot = find_slot(slots, gone);
		if (slot != NO_SLOT)
		{
			clear(array, slot);
			slots->database[slot] = MyDatabaseId;
		}
	}
	LWLockRelease(&slots->lock);
	return slot;
}

static int
replace_gone_database(DatabaseSlots *slots, void (*clear)(void *array, int slot), void *array)
{
	int slot = NO_SLOT;

	for (int i = 0; i < MAX_DATABASES && slot == NO_SLOT; i++)
	{
		Oid database = slots->database[i];

		/* another session may take the slot first */
		if (!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(database)))
			slot = take_slot(slots, database, clear, array);
	}
	return slot;
}

int
database_slot(DatabaseSlots *slots, void (*clear)(void *array, int slot), void *array)
{
	int slot = take_slot(slots, InvalidOid, clear, array);

	if (slot == NO_SLOT)
		slot = replace_gone_database(slots, clear, array);
	return slot;
}
