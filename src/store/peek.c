/*-------------------------------------------------------------------------
 *
 * peek.c
 *	  What one leaf page of the primary key shows of a key.
 *
 * An index scan sets up a good deal to return all tuples of a key, and a new key has none,
 * most others one.  So this descends as a unique insertion does when it looks for duplicates,
 * with the functions that amcheck uses for the same purpose (bt_rootdescend).  It reads one
 * leaf page and says "absent" only if that page alone shows it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/nbtree.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "store/peek.h"

#ifdef idem_bt_search

/* An insertion's search key: the digest, without a TID, so that any row of the key is equal. */
static void
make_key(Relation index, const IdemKey *key, BTScanInsert search)
{
	memset(search, 0, offsetof(BTScanInsertData, scankeys));
	_bt_metaversion(index, &search->heapkeyspace, &search->allequalimage);
	search->keysz = 1;
	ScanKeyEntryInitializeWithInfo(
		&search->scankeys[0], index->rd_indoption[0] << SK_BT_INDOPTION_SHIFT, 1, InvalidStrategy,
		InvalidOid, index->rd_indcollation[0], index_getprocinfo(index, 1, BTORDER_PROC),
		UUIDPGetDatum(&key->digest));
}

/* The leaf page is locked, and the first that can have the key. */
static PeekResult
look_at_page(Relation index, BTScanInsert search, Buffer leaf, ItemPointer tid)
{
	BTInsertStateData position = {.itup_key = search, .buf = leaf};
	OffsetNumber offset = _bt_binsrch_insert(index, &position);
	Page page = BufferGetPage(leaf);
	IndexTuple entry;

	if (offset > PageGetMaxOffsetNumber(page))
		return P_RIGHTMOST(BTPageGetOpaque(page)) ? PEEK_ABSENT : PEEK_UNSURE;
	if (_bt_compare(index, search, page, offset) != 0)
		return PEEK_ABSENT;
	entry = (IndexTuple) PageGetItem(page, PageGetItemId(page, offset));
	if (ItemIdIsDead(PageGetItemId(page, offset)) || BTreeTupleIsPosting(entry))
		return PEEK_UNSURE;
	*tid = entry->t_tid;
	return PEEK_ENTRY;
}

PeekResult
peek(Store *store, const IdemKey *key, ItemPointer tid, Buffer *leaf)
{
	BTScanInsertData search;
	PeekResult result;

	make_key(store->index, key, &search);
	idem_bt_search(store->index, store->heap, &search, leaf);
	if (!BufferIsValid(*leaf))
		return PEEK_ABSENT;
	result = look_at_page(store->index, &search, *leaf, tid);
	if (result == PEEK_ENTRY)
		_bt_unlockbuf(store->index, *leaf);
	else
		_bt_relbuf(store->index, *leaf);
	return result;
}

#else

PeekResult
peek(Store *store, const IdemKey *key, ItemPointer tid, Buffer *leaf)
{
	return PEEK_UNSURE;
}

#endif
