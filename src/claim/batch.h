/*-------------------------------------------------------------------------
 *
 * batch.h
 *	  Keys that come as an array, for functions that write a batch of rows.
 *
 * A batch writes its rows in the order of their digests, so that two batches cannot deadlock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BATCH_H
#define IDEM_BATCH_H

#include "utils/array.h"

#include "base/key.h"

typedef struct BatchKey
{
	IdemKey key;
	int position; /* in the caller's order */
	bool claimed;
} BatchKey;

/* An array argument: its elements. */
typedef struct BatchArray
{
	Datum *values;
	bool *isnull;
	int n;
} BatchArray;

/* 22023, naming "what", unless the array has one dimension or no element. */
extern void batch_array(BatchArray *out, ArrayType *array, const char *what, Oid type);

/*
 * Set key number "position" from that element of the keys.  The error of one that is no key gives
 * its number (22004, 22023).
 */
extern void
batch_key(BatchKey *out, const BatchArray *keys, int element, text *scope, int position);

/* By digest; equal keys stay in the caller's order. */
extern void batch_sort(BatchKey *batch, int n);

/* Is key i of the sorted batch the same as the one before? */
extern bool batch_is_repeated(const BatchKey *batch, int i);

#endif /* IDEM_BATCH_H */
