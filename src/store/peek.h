/*-------------------------------------------------------------------------
 *
 * peek.h
 *	  What one leaf page of the primary key shows of a key.
 *
 * Private to this folder.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_PEEK_H
#define IDEM_PEEK_H

#include "base/key.h"
#include "storage/buf.h"
#include "storage/itemptr.h"
#include "store/table.h"

typedef enum PeekResult
{
	PEEK_ABSENT, /* no entry at all, dead or alive: what a scan would find, at half the cost */
	PEEK_ENTRY,	 /* an entry, and perhaps others */
	PEEK_UNSURE	 /* only a scan finds out */
} PeekResult;

/*
 * With PEEK_ENTRY, "tid" is that of the entry, and "leaf" stays pinned, so that VACUUM does not
 * give the TID to another row.  Release it when the row has been fetched.
 */
extern PeekResult peek(Store *store, const IdemKey *key, ItemPointer tid, Buffer *leaf);

#endif /* IDEM_PEEK_H */
