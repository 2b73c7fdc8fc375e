/*-------------------------------------------------------------------------
 *
 * index_entries.h
 *	  The index entries of a tuple of idem_keys that was just written.
 *
 * Private to this folder.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_INDEX_ENTRIES_H
#define IDEM_INDEX_ENTRIES_H

#include "access/htup.h"

#include "base/key.h"
#include "store/table.h"

/*
 * Insert the entries of a tuple that was inserted speculatively.  False if the key has, or
 * may have, another row.  Another unique index that the table's owner added raises 23505.
 */
extern bool index_entries_if_free(Store *store, const IdemKey *key, HeapTuple tuple);

/*
 * The same for a key that must have no other row: a duplicate means that another writer
 * was faster, so the transaction must be retried.  Waits for uncommitted writers.
 */
extern void
index_entries_or_40001(Store *store, const IdemKey *key, HeapTuple tuple, bool only_summarizing);

#endif /* IDEM_INDEX_ENTRIES_H */
