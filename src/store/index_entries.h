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
#include "executor/tuptable.h"
#include "nodes/execnodes.h"

#include "base/key.h"
#include "base/relation.h"
#include "store/table.h"

/* Is there no index but the primary key? */
extern bool has_only_primary_key(Store *store);

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

/* The entries of many tuples, in their order. */
typedef struct IndexWriter
{
	Store *store;
	bool direct; /* the primary key is the only index */

	/* else */
	EState *estate;
	ResultRelInfo *indexes;
	List *key_indexes; /* their OIDs */
	OwnerContext caller;
} IndexWriter;

/*
 * Between begin and end, code runs as the table's owner.  An insertion does not wait for an
 * uncommitted row of the key: it returns false if the key has, or may have, another row.  The
 * caller must then roll back, since the entry is there.  Another unique index raises 23505.
 */
extern void index_writer_begin(IndexWriter *writer, Store *store);
extern bool index_writer_insert(IndexWriter *writer, const IdemKey *key, TupleTableSlot *slot);
extern void index_writer_end(IndexWriter *writer);

#endif /* IDEM_INDEX_ENTRIES_H */
