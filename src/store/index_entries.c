/*-------------------------------------------------------------------------
 *
 * index_entries.c
 *	  The index entries of a tuple of idem_keys that was just written.
 *
 * Nearly always the primary key is the only index.  Its entry is the digest, so it is
 * inserted directly, and no code of a user can run.  For a table with other indexes the
 * executor does it, which knows expressions and predicates.  The list of indexes is looked
 * at for each tuple: the transaction itself may have made an index since its last one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "catalog/pg_am.h"
#include "executor/executor.h"
#include "nodes/execnodes.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/relation.h"
#include "store/index_entries.h"

/*
 * Is this the primary key, or its copy under REINDEX CONCURRENTLY?  Both then get entries,
 * and either may see a duplicate first.
 */
static bool
is_key_index(const Store *store, Relation index)
{
	return index->rd_index->indisunique && is_key_of(index, store->tenant_column) &&
		RelationGetIndexPredicate(index) == NIL;
}

/* The key indexes that got an entry, and the names that they had then. */
typedef struct KeyIndexes
{
	List *oids;
	List *names; /* char * */
} KeyIndexes;

/*
 * REINDEX CONCURRENTLY may have renamed the index since and marked it dead.  It is then no
 * longer in the table's list of indexes.
 */
static bool
is_key_index_name(const KeyIndexes *indexes, const char *name)
{
	ListCell *oid;
	ListCell *old;

	forboth(oid, indexes->oids, old, indexes->names)
	{
		const char *now = get_rel_name(lfirst_oid(oid));

		if (strcmp(lfirst(old), name) == 0 || (now != NULL && strcmp(now, name) == 0))
			return true;
	}
	return false;
}

static void
remember_key_index(KeyIndexes *keys, Relation index)
{
	keys->oids = lappend_oid(keys->oids, RelationGetRelid(index));
	keys->names = lappend(keys->names, pstrdup(RelationGetRelationName(index)));
}

/* ------------------------------------------------------------------------
 * The primary key alone
 * ------------------------------------------------------------------------
 */

/*
 * Is the index that the store has opened the only one, without any further columns?
 * The table's lock keeps it so until the entry is inserted: whoever adds an index waits for
 * that lock, with REINDEX CONCURRENTLY as well.
 */
bool
has_only_primary_key(Store *store)
{
	Relation index = store->index;
	Form_pg_index form = index->rd_index;

	/* not RelationGetIndexList(), whose copy costs more than the rest of this */
	if (!store->heap->rd_indexvalid)
		list_free(RelationGetIndexList(store->heap));
	return list_length(store->heap->rd_indexlist) == 1 &&
		linitial_oid(store->heap->rd_indexlist) == RelationGetRelid(index) &&
		form->indnatts == form->indnkeyatts && form->indisready && form->indimmediate &&
		index->rd_rel->relam == BTREE_AM_OID && is_key_index(store, index);
}

/* False if "check" does not raise an error for a duplicate, and there may be one. */
static bool
insert_primary_key(Store *store, const IdemKey *key, ItemPointer tid, IndexUniqueCheck check)
{
	int n = store->tenant_column == NO_COLUMN ? 1 : 2;
	Datum values[] = {UUIDPGetDatum(&key->digest), store->tenant};
	bool isnull[] = {false, false};
	IndexInfo info = {
		.type = T_IndexInfo,
		.ii_NumIndexAttrs = n,
		.ii_NumIndexKeyAttrs = n,
		.ii_IndexAttrNumbers = {COL_DIGEST + 1, store->tenant_column + 1},
		.ii_Unique = true,
		.ii_ReadyForInserts = true,
		.ii_Am = BTREE_AM_OID,
		.ii_Context = CurrentMemoryContext,
	};

	return index_insert(store->index, values, isnull, tid, store->heap, check, false, &info);
}

/* ------------------------------------------------------------------------
 * Any indexes
 * ------------------------------------------------------------------------
 */

static void
open_indexes(IndexWriter *writer, KeyIndexes *keys)
{
	ResultRelInfo *rri = makeNode(ResultRelInfo);

	InitResultRelInfo(rri, writer->store->heap, 0, NULL, 0);
	ExecOpenIndices(rri, false);
	for (int i = 0; i < rri->ri_NumIndices; i++)
	{
		Relation index = rri->ri_IndexRelationDescs[i];

		if (is_key_index(writer->store, index))
			remember_key_index(keys, index);
	}
	writer->indexes = rri;
}

/*
 * Code of expression indexes runs as the table's owner, under SECURITY_RESTRICTED_OPERATION and
 * with a safe search_path, as in maintenance commands.  It may run as soon as the indexes are
 * opened, since that evaluates what is constant in their expressions.
 */
static void
begin_all(IndexWriter *writer, Store *store, KeyIndexes *keys)
{
	writer->store = store;
	writer->estate = CreateExecutorState();
	owner_become(store->heap, &writer->caller);
	idem_restrict_search_path();
	open_indexes(writer, keys);
}

static void
end_all(IndexWriter *writer)
{
	owner_leave(&writer->caller);
	ExecCloseIndices(writer->indexes);
	FreeExecutorState(writer->estate);
}

/* A duplicate key sets "conflict"; without "conflict" it raises 23505. */
static void
insert_all(Store *store, HeapTuple tuple, bool *conflict, bool only_summarizing, KeyIndexes *keys)
{
	TupleTableSlot *slot =
		MakeSingleTupleTableSlot(RelationGetDescr(store->heap), &TTSOpsHeapTuple);
	IndexWriter writer;

	ExecStoreHeapTuple(tuple, slot, false);
	slot->tts_tableOid = RelationGetRelid(store->heap);
	begin_all(&writer, store, keys);
	idem_insert_index_tuples(writer.indexes, slot, writer.estate,
							 conflict != NULL ? keys->oids : NIL, conflict, only_summarizing);
	end_all(&writer);
	ExecDropSingleTupleTableSlot(slot);
}

/* ------------------------------------------------------------------------
 * What the store calls
 * ------------------------------------------------------------------------
 */

bool
index_entries_if_free(Store *store, const IdemKey *key, HeapTuple tuple)
{
	KeyIndexes keys = {0};
	bool conflict = false;

	if (has_only_primary_key(store))
		return insert_primary_key(store, key, &tuple->t_self, UNIQUE_CHECK_PARTIAL);
	insert_all(store, tuple, &conflict, false, &keys);
	return !conflict;
}

void
index_entries_or_40001(Store *store, const IdemKey *key, HeapTuple tuple, bool only_summarizing)
{
	MemoryContext context = CurrentMemoryContext;
	KeyIndexes *keys = palloc0(sizeof(KeyIndexes));
	bool direct = !only_summarizing && has_only_primary_key(store);

	PG_TRY();
	{
		if (direct)
			(void) insert_primary_key(store, key, &tuple->t_self, UNIQUE_CHECK_YES);
		else
			insert_all(store, tuple, NULL, only_summarizing, keys);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		if (geterrcode() != ERRCODE_UNIQUE_VIOLATION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();

		if (direct)
			remember_key_index(keys, store->index);
		/* a unique index that the table's owner added keeps its own error */
		if (edata->constraint_name == NULL || !is_key_index_name(keys, edata->constraint_name))
			ReThrowError(edata);
		error_serialization(key);
	}
	PG_END_TRY();
}

void
index_writer_begin(IndexWriter *writer, Store *store)
{
	KeyIndexes keys = {0};

	writer->direct = has_only_primary_key(store);
	writer->store = store;
	if (!writer->direct)
		begin_all(writer, store, &keys);
	writer->key_indexes = keys.oids;
}

bool
index_writer_insert(IndexWriter *writer, const IdemKey *key, TupleTableSlot *slot)
{
	bool conflict = false;

	if (writer->direct)
		return insert_primary_key(writer->store, key, &slot->tts_tid, UNIQUE_CHECK_PARTIAL);
	idem_insert_index_tuples(writer->indexes, slot, writer->estate, writer->key_indexes, &conflict,
							 false);
	ResetPerTupleExprContext(writer->estate);
	return !conflict;
}

void
index_writer_end(IndexWriter *writer)
{
	if (!writer->direct)
		end_all(writer);
}
