/*-------------------------------------------------------------------------
 *
 * statement.c
 *	  idem_once() as a statement trigger: all rows that a statement has inserted, at once.
 *
 * The keys of all rows are collected from the transition table, and claimed in the order of
 * digests, so that two statements do not deadlock.  When the keys would take more memory than
 * maintenance_work_mem, those collected so far are claimed first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/executor.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#include "claim/batch.h"
#include "claim/claim.h"
#include "once/duplicate.h"
#include "once/statement.h"

typedef struct Statement
{
	TriggerData *trigdata;
	OnceArguments *args;
	ClaimRequest request; /* of all keys */
	TupleTableSlot *slot;
	int64 nrows;

	BatchKey *keys;
	int64 nkeys;
	int64 size; /* of the array */
	Size bytes; /* of the keys' texts */
	MemoryContext texts;
	MemoryContext per_row;
} Statement;

#define FIRST_SIZE 1024

/* The transition table belongs to other triggers as well: read it with a pointer of our own. */
static void
rewind_rows(Statement *statement)
{
	Tuplestorestate *rows = statement->trigdata->tg_newtable;

	tuplestore_select_read_pointer(rows, tuplestore_alloc_read_pointer(rows, EXEC_FLAG_REWIND));
	tuplestore_rescan(rows);
}

/* NULL after the last one.  Valid until the next one is read. */
static HeapTuple
next_row(Statement *statement)
{
	MemoryContext old;
	HeapTuple row;

	/* what is read from disk is the slot's to free */
	if (!tuplestore_gettupleslot(statement->trigdata->tg_newtable, true, false, statement->slot))
		return NULL;
	MemoryContextReset(statement->per_row);
	/* a copy, since the slot has a minimal tuple */
	old = MemoryContextSwitchTo(statement->per_row);
	row = ExecFetchSlotHeapTuple(statement->slot, false, NULL);
	MemoryContextSwitchTo(old);
	return row;
}

/* A key's position is that of its row and its list. */
pg_noreturn static void
refuse(Statement *statement, const BatchKey *key)
{
	OnceArguments *args = statement->args;
	HeapTuple row;

	rewind_rows(statement);
	(void) tuplestore_skiptuples(statement->trigdata->tg_newtable, key->position / args->nlists,
								 true);
	row = next_row(statement);
	if (row == NULL)
		elog(ERROR, "a row of the transition table is missing");
	refuse_duplicate(statement->trigdata, args, &args->lists[key->position % args->nlists], row);
}

static void
claim_collected(Statement *statement)
{
	BatchKey *taken;

	batch_sort(statement->keys, statement->nkeys);
	taken = batch_claim(&statement->request, statement->keys, statement->nkeys, true);
	if (taken != NULL)
		refuse(statement, taken);
	statement->nkeys = 0;
	statement->bytes = 0;
	MemoryContextReset(statement->texts);
}

static BatchKey *
new_key(Statement *statement)
{
	if (statement->nkeys == statement->size)
	{
		statement->size *= 2;
		statement->keys =
			repalloc_huge(statement->keys, statement->size * sizeof(*statement->keys));
	}
	return &statement->keys[statement->nkeys++];
}

static void
collect_key(Statement *statement, HeapTuple row, int number)
{
	KeyList *list = &statement->args->lists[number];
	text *t = rowkey_text(&list->key, statement->trigdata->tg_relation, row);
	BatchKey *key;

	if (t == NULL)
		return;
	once_check_key(statement->args, list, t);
	key = new_key(statement);
	key->position = statement->nrows * statement->args->nlists + number;
	key->claimed = false;
	key->row = NULL;
	key_make(&key->key, t, list->scope, true);
	key->key.key = MemoryContextAlloc(statement->texts, VARSIZE_ANY(t));
	memcpy(key->key.key, t, VARSIZE_ANY(t));
	statement->bytes += GetMemoryChunkSpace(key->key.key);
}

static void
collect_row(Statement *statement, HeapTuple row)
{
	MemoryContext old = MemoryContextSwitchTo(statement->per_row);

	for (int i = 0; i < statement->args->nlists; i++)
		collect_key(statement, row, i);
	statement->nrows++;
	MemoryContextSwitchTo(old);
}

static bool
is_full(const Statement *statement)
{
	return statement->nkeys * sizeof(BatchKey) + statement->bytes >
		(Size) maintenance_work_mem * 1024;
}

void
statement_claim(TriggerData *trigdata, OnceArguments *args)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "keys of a statement", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Statement statement = {.trigdata = trigdata, .args = args, .size = FIRST_SIZE};
	HeapTuple row;

	claim_request_ttl(&statement.request, args->has_ttl ? &args->ttl : NULL);
	/* nearly always, a key that is known is an error */
	statement.request.insert_first = true;
	statement.slot =
		MakeSingleTupleTableSlot(RelationGetDescr(trigdata->tg_relation), &TTSOpsMinimalTuple);
	statement.keys = palloc_array(BatchKey, FIRST_SIZE);
	statement.texts = AllocSetContextCreate(context, "texts", ALLOCSET_DEFAULT_SIZES);
	statement.per_row = AllocSetContextCreate(context, "row", ALLOCSET_DEFAULT_SIZES);

	rewind_rows(&statement);
	while ((row = next_row(&statement)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		collect_row(&statement, row);
		if (is_full(&statement))
			claim_collected(&statement);
	}
	claim_collected(&statement);

	ExecDropSingleTupleTableSlot(statement.slot);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}
