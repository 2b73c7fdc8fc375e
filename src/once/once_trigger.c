/*-------------------------------------------------------------------------
 *
 * once_trigger.c
 *	  idem_once(): a trigger that accepts each row once.
 *
 * As a statement trigger it claims all rows in one batch: see statement.c.  The rest is about
 * the row trigger.
 *
 * Like the claims of a batch, these claims take no lock-table entry: a COPY may have more
 * rows than the lock table has entries.  "raise" fires AFTER, when the row has certainly
 * been written and ON CONFLICT can no longer drop it.  "skip" must fire BEFORE, to drop rows.
 *
 * Several lists of columns make several keys of a row, each under a scope of its own.  All of
 * them are claimed, or none.  "skip" first looks all of them up and waits for their holders.
 * Only then does it claim them, in digest order, so that two rows do not deadlock.  If
 * another session takes one in between, the claims already made are withdrawn.
 *
 * "skip" must claim only for a row that will be written.  So its trigger must fire last;
 * triggers fire in the order of their names.
 *
 * When an UPDATE moves a row between partitions, INSERT triggers of the target fire for a
 * row that is not new.
 *
 * AFTER: a duplicate may be a row that the same command has moved (partition_move.h).  With
 * the event DELETE the trigger has seen the row go; otherwise the partitions are searched.
 *
 * BEFORE: the source's BEFORE UPDATE trigger has just fired for the same row.  It has claimed
 * a key that changed.  If the row is to move, it has also left the row and its keys in its
 * OnceInfo, which belongs to one source of one running statement, which moves one row at a
 * time.  A target without the trigger leaves that row there, so check that the row at hand
 * belongs in this partition.  The source's trigger may not have fired, for want of the event
 * or because of a WHEN; so before a row is dropped, the partitions are searched here as well.
 * A row that is being moved is never dropped, since that would delete it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tupconvert.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "parser/scansup.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/interval.h"
#include "base/qualified_name.h"
#include "base/sha256.h"
#include "base/subtransaction.h"
#include "claim/claim.h"
#include "once/arguments.h"
#include "once/duplicate.h"
#include "once/errors.h"
#include "once/partition_move.h"
#include "once/row_key.h"
#include "once/statement.h"

PG_FUNCTION_INFO_V1(idem_once);

/* The bounds of a partition, built on first use. */
typedef struct Bounds
{
	EState *estate;
	ExprState *qual; /* NULL: all rows are within bounds */
	TupleTableSlot *slot;
} Bounds;

/* The trigger of one table, for one statement: its arguments and state. */
typedef struct OnceInfo
{
	OnceArguments args;
	MovedScope moved; /* BEFORE, of a partition */
	int checked;	  /* operations (bits) that check_fires_last() has checked */
	Bounds bounds;	  /* of a partition */

	/* the last row that the BEFORE UPDATE trigger has seen, if it is to move */
	dlist_node node; /* in "movers", while it is there */
	bool listed;
	bool in_hand;
	ItemPointerData old;
	HeapTuple new_row;
	text **new_keys;
	MemoryContext hand; /* of new_row and new_keys */
	MemoryContext context;
} OnceInfo;

/* those of partitions whose rows move to others under "skip" */
static dlist_head movers = DLIST_STATIC_INIT(movers);

/* The key of a row in another partition, whose columns may be in a different order. */
static bool
other_row_key(void *arg, Relation rel, HeapTuple row, IdemKey *key)
{
	KeyList *list = arg;
	RowKey columns;
	const char *missing;
	text *t;

	if (!rowkey_make(&columns, rel, list->columns, &missing))
		return false;
	t = rowkey_text(&columns, rel, row);
	if (t == NULL)
		return false;
	key_make(key, t, list->scope, false);
	return true;
}

static void
unlist_mover(void *arg)
{
	OnceInfo *info = arg;

	if (info->listed)
		dlist_delete(&info->node);
	info->listed = false;
}

static void
hash_list(uint8 hash[PG_SHA256_DIGEST_LENGTH], const KeyList *list)
{
	Sha256 *sha = sha256_start();
	ListCell *lc;

	sha256_framed(sha, VARDATA_ANY(list->scope), VARSIZE_ANY_EXHDR(list->scope));
	foreach(lc, list->columns)
		sha256_framed(sha, lfirst(lc), strlen(lfirst(lc)));
	sha256_finish(sha, hash);
}

/*
 * The same for the triggers of all partitions, another for one of other keys: of each
 * of a info's lists, and of the info, whose identity is made of theirs.
 */
static void
set_identities(OnceInfo *info)
{
	uint8 hash[PG_SHA256_DIGEST_LENGTH];
	Sha256 *all;

	for (int i = 0; i < info->args.nlists; i++)
	{
		KeyList *list = &info->args.lists[i];

		hash_list(hash, list);
		list->moved.root = info->moved.root;
		memcpy(list->moved.identity.data, hash, UUID_LEN);
		list->moved.make_key = other_row_key;
		list->moved.arg = list;
	}

	/* sha256_start() allows only one hash at a time */
	all = sha256_start();
	for (int i = 0; i < info->args.nlists; i++)
		sha256_bytes(all, info->args.lists[i].moved.identity.data, UUID_LEN);
	sha256_finish(all, hash);
	memcpy(info->moved.identity.data, hash, UUID_LEN);
}

static OnceInfo *
make_info(TriggerData *trigdata, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Relation rel = trigdata->tg_relation;
	OnceInfo *info = palloc0(sizeof(OnceInfo));
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));
	List *ancestors = NIL;

	info->context = context;
	info->args.relid = RelationGetRelid(rel);
	/* a partition that is being detached has none */
	if (rel->rd_rel->relispartition)
		ancestors = get_partition_ancestors(info->args.relid);
	if (ancestors != NIL)
		info->args.root = info->moved.root = llast_oid(ancestors);
	if (trigdata->tg_trigger->tgdeferrable && OidIsValid(info->moved.root) &&
		TRIGGER_FOR_INSERT(trigdata->tg_trigger->tgtype) &&
		!TRIGGER_FOR_DELETE(trigdata->tg_trigger->tgtype))
		error_fired(trigdata, "by DELETE as well, as it is deferrable and on a partition");
	once_get_arguments(trigdata, &info->args);
	set_identities(info);

	callback->func = unlist_mover;
	callback->arg = info;
	MemoryContextRegisterResetCallback(context, callback);
	MemoryContextSwitchTo(old);
	return info;
}

/* ------------------------------------------------------------------------
 * Claiming
 * ------------------------------------------------------------------------
 */

static void
make_request(OnceInfo *info, KeyList *list, text *key, ClaimRequest *request)
{
	once_check_key(&info->args, list, key);
	claim_request(request, key, list->scope, info->args.has_ttl ? &info->args.ttl : NULL);
}

/* A row's keys, one for each list; NULL: the row has no such key. */
static text **
row_keys(OnceInfo *info, Relation rel, HeapTuple row)
{
	text **keys = palloc_array(text *, info->args.nlists);

	for (int i = 0; i < info->args.nlists; i++)
		keys[i] = rowkey_text(&info->args.lists[i].key, rel, row);
	return keys;
}

/* A key to claim, and its list. */
typedef struct ListRequest
{
	ClaimRequest request;
	KeyList *list;
	TimestampTz expires_at; /* as written by the claim */
} ListRequest;

static int
by_digest(const void *a, const void *b)
{
	return key_cmp(&((const ListRequest *) a)->request.key,
				   &((const ListRequest *) b)->request.key);
}

/* Requests for the keys that are not NULL, in the order in which to claim them. */
static ListRequest *
list_requests(OnceInfo *info, text **keys, int *n)
{
	ListRequest *requests = palloc_array(ListRequest, info->args.nlists);

	*n = 0;
	for (int i = 0; i < info->args.nlists; i++)
	{
		if (keys[i] == NULL)
			continue;
		requests[*n].list = &info->args.lists[i];
		make_request(info, &info->args.lists[i], keys[i], &requests[*n].request);
		(*n)++;
	}
	qsort(requests, *n, sizeof(ListRequest), by_digest);
	return requests;
}

/* Claim until a key is found taken; the number of keys claimed. */
static int
claim_in_order(ListRequest *requests, int n)
{
	int claimed = 0;

	while (claimed < n &&
		   claim_write(&requests[claimed].request, false, &requests[claimed].expires_at))
		claimed++;
	return claimed;
}

/* The same if one of them is a take-over, which only a rollback can undo. */
static int
claim_in_subtransaction(ListRequest *requests, int n)
{
	Subtransaction sub;
	volatile int claimed = 0;

	subtransaction_begin(&sub);
	PG_TRY();
	{
		claimed = claim_in_order(requests, n);
		if (claimed == n)
			subtransaction_commit(&sub);
		else
			subtransaction_rollback(&sub);
	}
	PG_CATCH();
	{
		ReThrowError(subtransaction_catch(&sub));
	}
	PG_END_TRY();
	return claimed;
}

/*
 * Undo a claim.  If it was a take-over, of a claim that was abandoned after the look-up while we
 * waited for another key, only a rollback can restore that.
 */
static void
take_back(const IdemKey *key)
{
	StoreRow row;

	store_probe(key, &row);
	if (row.attempt > 1)
		error_serialization(key);
	(void) store_forget(key, &row);
}

/*
 * BEFORE: claim all of these keys.  If one of them is taken, claim none, and return that one.
 * Another session may take a key in between, even one that was looked up.
 */
static ListRequest *
claim_keys(OnceInfo *info, text **keys)
{
	int n;
	ListRequest *requests = list_requests(info, keys, &n);
	bool take_over = false;
	int claimed;

	for (int i = 0; n > 1 && i < n; i++)
	{
		bool abandoned;

		if (claim_taken(&requests[i].request, &abandoned))
			return &requests[i];
		take_over |= abandoned;
	}
	if (take_over)
		claimed = claim_in_subtransaction(requests, n);
	else
	{
		claimed = claim_in_order(requests, n);
		for (int i = 0; claimed < n && i < claimed; i++)
			take_back(&requests[i].request.key);
	}
	if (claimed < n)
		return &requests[claimed];
	for (int i = 0; i < n; i++)
		claim_stays(&requests[i].request, requests[i].expires_at);
	return NULL;
}

static bool
same_key(const text *a, const text *b)
{
	return a == NULL ? b == NULL : b != NULL && key_same_text(a, b);
}

/* AFTER: a row that was moved here is not a duplicate. */
static bool
was_moved(TriggerData *trigdata, KeyList *list, const IdemKey *key, HeapTuple row)
{
	Relation rel = trigdata->tg_relation;

	if (!OidIsValid(list->moved.root) || !TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		return false;
	if (!TRIGGER_FOR_DELETE(trigdata->tg_trigger->tgtype))
		moved_collect(&list->moved, rel, row);
	return moved_in(&list->moved, key, rel, row);
}

/* AFTER INSERT or UPDATE: "keys" are the row's keys to claim. */
static void
raise_duplicate(TriggerData *trigdata, OnceInfo *info, text **keys, HeapTuple row)
{
	int n;
	ListRequest *requests = list_requests(info, keys, &n);

	for (int i = 0; i < n; i++)
	{
		ClaimRequest *request = &requests[i].request;

		request->insert_first = true;
		if (!claim_once(request, false) &&
			!was_moved(trigdata, requests[i].list, &request->key, row))
			refuse_duplicate(trigdata, &info->args, requests[i].list, row);
	}
}

/* AFTER DELETE: a row that moves will be inserted again. */
static void
let_go(TriggerData *trigdata, OnceInfo *info, HeapTuple row)
{
	if (!OidIsValid(info->moved.root) || !moved_is(row))
		return;
	for (int i = 0; i < info->args.nlists; i++)
	{
		KeyList *list = &info->args.lists[i];
		text *t = rowkey_text(&list->key, trigdata->tg_relation, row);
		IdemKey key;

		if (t == NULL)
			continue;
		key_make(&key, t, list->scope, false);
		moved_out(&list->moved, &key, row);
	}
}

/* ------------------------------------------------------------------------
 * Firing last
 * ------------------------------------------------------------------------
 */

/* As TriggerEnabled() in commands/trigger.c, but without columns and WHEN. */
static bool
is_enabled(const Trigger *trigger)
{
	if (trigger->tgenabled == TRIGGER_FIRES_ALWAYS)
		return true;
	return trigger->tgenabled ==
		(SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA ? TRIGGER_FIRES_ON_REPLICA
																	: TRIGGER_FIRES_ON_ORIGIN);
}

static bool
fires_before(const Trigger *trigger, int16 event)
{
	return TRIGGER_FOR_ROW(trigger->tgtype) && TRIGGER_FOR_BEFORE(trigger->tgtype) &&
		(trigger->tgtype & event) != 0 && is_enabled(trigger);
}

/*
 * Refuse a trigger that fires after ours: it could drop a row whose keys we have claimed, or
 * change its keys.
 */
static void
check_fires_last(TriggerData *trigdata, OnceInfo *info)
{
	TriggerDesc *triggers = trigdata->tg_relation->trigdesc;
	TriggerEvent operation = trigdata->tg_event & TRIGGER_EVENT_OPMASK;
	bool insert = TRIGGER_FIRED_BY_INSERT(trigdata->tg_event);
	int16 event = insert ? TRIGGER_TYPE_INSERT : TRIGGER_TYPE_UPDATE;
	bool after_ours = false;

	/* INSERT is 0 */
	if ((info->checked & (1 << operation)) != 0)
		return;
	/* triggers are sorted by name */
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger *other = &triggers->triggers[i];

		if (other->tgoid == trigdata->tg_trigger->tgoid)
			after_ours = true;
		else if (after_ours && fires_before(other, event))
			error_not_last(trigdata, other, insert ? "INSERT" : "UPDATE");
	}
	info->checked |= 1 << operation;
}

/*
 * BEFORE UPDATE of a row that is to move and changes its key: refuse a trigger that could keep the
 * row from moving after the new key is claimed.
 */
static void
check_not_kept(TriggerData *trigdata)
{
	TriggerDesc *triggers = trigdata->tg_relation->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (triggers->triggers[i].tgfoid != trigdata->tg_trigger->tgfoid &&
			fires_before(&triggers->triggers[i], TRIGGER_TYPE_DELETE))
			error_not_last_on_delete(trigdata, &triggers->triggers[i]);
}

/* ------------------------------------------------------------------------
 * Moving, BEFORE
 * ------------------------------------------------------------------------
 */

/* Is a row of this partition's row type within its bounds? */
static bool
is_within(OnceInfo *info, Relation rel, HeapTuple row)
{
	Bounds *bounds = &info->bounds;
	ExprContext *econtext;
	bool within;

	if (bounds->estate == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(info->context);

		bounds->slot =
			MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(rel)), &TTSOpsHeapTuple);
		bounds->estate = CreateExecutorState();
		bounds->qual = ExecPrepareCheck(RelationGetPartitionQual(rel), bounds->estate);
		MemoryContextSwitchTo(old);
	}
	econtext = GetPerTupleExprContext(bounds->estate);
	econtext->ecxt_scantuple = bounds->slot;
	ExecStoreHeapTuple(row, bounds->slot, false);
	within = ExecCheck(bounds->qual, econtext);
	ExecClearTuple(bounds->slot);
	ResetPerTupleExprContext(bounds->estate);
	return within;
}

/* Does the row that "mover" has in hand belong in this partition? */
static bool
comes_here(OnceInfo *mover, OnceInfo *info, Relation rel)
{
	TupleConversionMap *map =
		convert_tuples_by_name(mover->bounds.slot->tts_tupleDescriptor, RelationGetDescr(rel));

	return is_within(info, rel,
					 map == NULL ? mover->new_row : execute_attr_map_tuple(mover->new_row, map));
}

/* Count a row in hand that has moved to a partition without the trigger. */
static void
settle(OnceInfo *mover)
{
	if (mover->in_hand && moved_from(mover->args.relid, &mover->old))
		moved_let_pass(&mover->moved);
	mover->in_hand = false;
}

/* BEFORE INSERT: the OnceInfo whose UPDATE moves a row to here, if its trigger has fired. */
static OnceInfo *
find_mover(OnceInfo *info, Relation rel)
{
	dlist_iter iter;

	if (!OidIsValid(info->moved.root))
		return NULL;
	dlist_foreach(iter, &movers)
	{
		OnceInfo *mover = dlist_container(OnceInfo, node, iter.cur);

		if (mover->in_hand && mover->moved.root == info->moved.root &&
			memcmp(&mover->moved.identity, &info->moved.identity, UUID_LEN) == 0 &&
			moved_from(mover->args.relid, &mover->old))
		{
			if (comes_here(mover, info, rel))
				return mover;
			settle(mover);
		}
	}
	return NULL;
}

/*
 * Raise an error if a repeated row may be one that moves, for which no BEFORE UPDATE trigger has
 * fired.  To drop it would lose the row.
 */
static void
check_not_moving(TriggerData *trigdata, OnceInfo *info, const IdemKey *key)
{
	if (OidIsValid(info->moved.root) && moved_more(&info->moved))
		error_might_lose_row(trigdata, key);
}

/* Those of the keys that are not among the other ones; NULL in place of the rest. */
static text **
new_keys(OnceInfo *info, text **keys, text **others)
{
	text **result = palloc0_array(text *, info->args.nlists);

	for (int i = 0; i < info->args.nlists; i++)
		if (others == NULL || !same_key(others[i], keys[i]))
			result[i] = keys[i];
	return result;
}

/* BEFORE INSERT: false to drop the row. */
static bool
keep_inserted(TriggerData *trigdata, OnceInfo *info, HeapTuple row)
{
	Relation rel = trigdata->tg_relation;
	text **keys = row_keys(info, rel, row);
	text **claimed = NULL; /* for the row, by the BEFORE UPDATE trigger */
	OnceInfo *mover = find_mover(info, rel);
	ListRequest *taken;

	if (mover != NULL)
	{
		claimed = mover->new_keys;
		mover->in_hand = false;
		moved_let_pass(&info->moved);
	}
	taken = claim_keys(info, new_keys(info, keys, claimed));
	if (taken == NULL)
		return true;
	if (mover != NULL)
		refuse_duplicate(trigdata, &info->args, taken->list, row);
	check_not_moving(trigdata, info, &taken->request.key);
	return false;
}

/* Remember the current row, which is to move. */
static void
take_in_hand(OnceInfo *info, HeapTuple old, HeapTuple row, text **keys)
{
	MemoryContext caller;

	if (info->hand == NULL)
		info->hand = AllocSetContextCreate(info->context, "row on the move", ALLOCSET_SMALL_SIZES);
	if (!info->listed)
		dlist_push_head(&movers, &info->node);
	info->listed = true;
	info->in_hand = true;
	info->old = old->t_self;
	MemoryContextReset(info->hand);
	caller = MemoryContextSwitchTo(info->hand);
	info->new_row = heap_copytuple(row);
	info->new_keys = palloc0_array(text *, info->args.nlists);
	for (int i = 0; i < info->args.nlists; i++)
	{
		if (keys[i] == NULL)
			continue;
		info->new_keys[i] = palloc(VARSIZE_ANY(keys[i]));
		memcpy(info->new_keys[i], keys[i], VARSIZE_ANY(keys[i]));
	}
	MemoryContextSwitchTo(caller);
}

/* BEFORE UPDATE: false to leave the row unchanged. */
static bool
keep_updated(TriggerData *trigdata, OnceInfo *info, HeapTuple old, HeapTuple row)
{
	Relation rel = trigdata->tg_relation;
	text **keys = row_keys(info, rel, row);
	text **to_claim = new_keys(info, keys, row_keys(info, rel, old));
	bool moves = OidIsValid(info->moved.root) && !is_within(info, rel, row);

	settle(info);
	for (int i = 0; moves && i < info->args.nlists; i++)
		if (to_claim[i] != NULL)
			check_not_kept(trigdata);
	if (claim_keys(info, to_claim) != NULL)
		return false;
	if (moves)
		take_in_hand(info, old, row, keys);
	return true;
}

/* ------------------------------------------------------------------------
 * Firing
 * ------------------------------------------------------------------------
 */

static HeapTuple
fire_before(TriggerData *trigdata, OnceInfo *info)
{
	HeapTuple row = trigdata->tg_trigtuple;

	if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
		return row;
	check_fires_last(trigdata, info);
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		return keep_inserted(trigdata, info, row) ? row : NULL;
	return keep_updated(trigdata, info, row, trigdata->tg_newtuple) ? trigdata->tg_newtuple : NULL;
}

static void
fire_after(TriggerData *trigdata, OnceInfo *info)
{
	Relation rel = trigdata->tg_relation;
	HeapTuple row = trigdata->tg_trigtuple;
	HeapTuple new_row = trigdata->tg_newtuple;

	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		raise_duplicate(trigdata, info, row_keys(info, rel, row), row);
	else if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		raise_duplicate(trigdata, info,
						new_keys(info, row_keys(info, rel, new_row), row_keys(info, rel, row)),
						new_row);
	else
		let_go(trigdata, info, row);
}

static void
once_context(void *arg)
{
	TriggerData *trigdata = arg;

	errcontext(ON_TABLE, trigger_and_table(trigdata));
}

/*
 * idem_once(columns [; columns ...] [, ttl [, 'raise' | 'skip' [, scope [; scope ...]]]])
 * RETURNS trigger
 */
Datum
idem_once(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	ErrorContextCallback context = {.callback = once_context, .arg = trigdata};
	OnceInfo *info = fcinfo->flinfo->fn_extra;
	HeapTuple result = NULL;

	refuse_in_parallel("idem_once");
	if (!CALLED_AS_TRIGGER(fcinfo))
		error_not_a_trigger();

	context.previous = error_context_stack;
	error_context_stack = &context;
	if (info == NULL)
		fcinfo->flinfo->fn_extra = info = make_info(trigdata, fcinfo->flinfo->fn_mcxt);
	if (!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		statement_claim(trigdata, &info->args);
	else if (info->args.skip)
		result = fire_before(trigdata, info);
	else
		fire_after(trigdata, info);
	error_context_stack = context.previous;

	return PointerGetDatum(result);
}
