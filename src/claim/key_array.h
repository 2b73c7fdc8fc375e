/*-------------------------------------------------------------------------
 *
 * key_array.h
 *	  Keys that come as an array, for functions that write a batch of rows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_ARRAY_H
#define IDEM_KEY_ARRAY_H

#include "utils/array.h"

#include "base/key.h"
#include "claim/batch.h"

/* An array argument: its elements. */
typedef struct ArrayElements
{
	Datum *values;
	bool *isnull;
	int n;
} ArrayElements;

/* 22023, naming "what", unless the array has one dimension or no element. */
extern void key_array_elements(ArrayElements *out, ArrayType *array, const char *what, Oid type);

/*
 * Set key number "position" from that element of the keys.  The error of one that is no key gives
 * its number (22004, 22023).
 */
extern void
key_array_key(BatchKey *out, const ArrayElements *keys, int element, text *scope, int position);

#endif /* IDEM_KEY_ARRAY_H */
