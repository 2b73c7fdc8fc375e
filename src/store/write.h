/*-------------------------------------------------------------------------
 *
 * write.h
 *	  Change a version of a row of idem_keys.
 *
 * Private to this folder.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_WRITE_H
#define IDEM_WRITE_H

#include "store/find.h"
#include "store/store.h"
#include "store/table.h"

/* New values for some columns.  The arrays cover all columns, dropped ones too. */
typedef struct Change
{
	Datum *values;
	bool *isnull;
	bool *replace;
	const Store *store;
} Change;

extern void change_init(Change *change, Store *store);
extern void set_datum(Change *change, int column, Datum value);
extern void set_null(Change *change, int column);
extern void set_time(Change *change, int column, TimestampTz time);
extern void set_jsonb(Change *change, int column, bool given, Datum value);

/* the columns that hold a finished claim's answer */
extern void set_answer(Change *change, const StoreWrite *write);

/* A new row: all but the key, which counts as absent, and the key. */
extern void change_whole(Change *change, const StoreWrite *write);
extern void set_key(Change *change, const IdemKey *key);

/*
 * Update the version in the slot.  Unchanged columns keep their stored form, so that no
 * toasted value is written again.  Waits for a purge that is deleting the version.  False
 * if another transaction has deleted or changed it: look again.
 */
extern bool update_version(Store *store, const IdemKey *key, TupleTableSlot *old,
						   const Version *version, Change *change);

#endif /* IDEM_WRITE_H */
