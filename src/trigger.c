/*-------------------------------------------------------------------------
 *
 * trigger.c
 *	  idem_once(): a row trigger that takes each row once.
 *
 * Claims go without a lock-table entry, as those of a batch: a COPY may be
 * longer than the lock table.  "raise" fires AFTER, when the row is written for
 * certain: ON CONFLICT can then not drop it any more.  "skip" must fire BEFORE, to
 * have a say.
 *
 * Row movement between partitions.  INSERT triggers of the target fire for a
 * row that is not new.
 *
 * AFTER: a duplicate may be a row that the same command has moved; moved.h
 * tells.  With the event DELETE the trigger has seen it go, else the partitions
 * are searched.
 *
 * BEFORE: the source's BEFORE UPDATE trigger has fired for the same row just
 * before.  It has claimed a key that changed, and left the row and its key in
 * its Guard; each Guard belongs to one source of one running statement, which
 * moves one row at a time.  A row that is being moved is never dropped, since
 * that would delete it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "claim.h"
#include "compat.h"
#include "errors.h"
#include "moved.h"
#include "rowkey.h"
#include "ttl.h"

PG_FUNCTION_INFO_V1(idem_once);

/* Arguments of the trigger */
enum
{
	ARG_COLUMNS,
	ARG_TTL,
	ARG_MODE,
	ARG_SCOPE,
	MAX_ARGS
};

/* What a trigger on one table is to do, for one statement. */
typedef struct Guard
{
	Oid relid;
	Oid root; /* of a partition; else invalid */
	bool skip;
	bool has_ttl;
	Interval ttl;
	text *scope;
	List *columns; /* char * */
	RowKey key;

	/* the row that its BEFORE UPDATE trigger has seen last */
	dlist_node node; /* in "guards", while it is there */
	bool listed;
	bool in_hand;
	ItemPointerData old;
	pg_uuid_t digest;
} Guard;

/* those of partitions that are being updated under "skip" */
static dlist_head guards = DLIST_STATIC_INIT(guards);

/* ------------------------------------------------------------------------
 * Arguments
 * ------------------------------------------------------------------------
 */

#define ON_TABLE "trigger \"%s\" on table \"%s\""
#define trigger_and_table(trigdata) \
	(trigdata)->tg_trigger->tgname, RelationGetRelationName((trigdata)->tg_relation)

#define error_fired(trigdata, how) \
	ereport(ERROR, \
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED), \
			 errmsg(ON_TABLE " must be fired %s", trigger_and_table(trigdata), (how)), \
			 errhint("Create it as AFTER ... FOR EACH ROW, or with 'skip' as BEFORE ... FOR EACH " \
					 "ROW.")))

#define error_argument(trigdata, what, value) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg(ON_TABLE " has the invalid %s \"%s\"", trigger_and_table(trigdata), (what), \
					(value)), \
			 errhint("Its arguments are columns, ttl, 'raise' or 'skip', and scope.")))

#define error_table(trigdata, kind) \
	ereport(ERROR, \
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
			 errmsg(ON_TABLE " cannot guard a %s", trigger_and_table(trigdata), (kind)), \
			 errdetail("Rows and keys would not commit together.")))

/* An argument that was given: neither '' nor NULL, which arrives as a word. */
static const char *
get_argument(TriggerData *trigdata, int n)
{
	const char *value;

	if (n >= trigdata->tg_trigger->tgnargs)
		return NULL;
	value = trigdata->tg_trigger->tgargs[n];
	return value[0] == '\0' || strcmp(value, "null") == 0 ? NULL : value;
}

static void
get_ttl(TriggerData *trigdata, Guard *guard)
{
	const char *value = get_argument(trigdata, ARG_TTL);
	MemoryContext context = CurrentMemoryContext;

	guard->has_ttl = value != NULL;
	if (value == NULL)
		return;

	/* what is no interval raises 22007, and does not name the trigger */
	PG_TRY();
	{
		guard->ttl = *DatumGetIntervalP(DirectFunctionCall3(
			interval_in, CStringGetDatum(value), ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
		(void) ttl_after(GetCurrentTimestamp(), &guard->ttl, "ttl", NULL);
	}
	PG_CATCH();
	{
		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		error_argument(trigdata, "ttl", value);
	}
	PG_END_TRY();
}

static void
get_mode(TriggerData *trigdata, Guard *guard)
{
	const char *value = get_argument(trigdata, ARG_MODE);

	guard->skip = value != NULL && strcmp(value, "skip") == 0;
	if (value != NULL && !guard->skip && strcmp(value, "raise") != 0)
		error_argument(trigdata, "mode", value);

	if (!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		error_fired(trigdata, "for each row");
	if (guard->skip && !TRIGGER_FIRED_BEFORE(trigdata->tg_event))
		error_fired(trigdata, "BEFORE, as its mode is 'skip'");
	if (!guard->skip && !TRIGGER_FIRED_AFTER(trigdata->tg_event))
		error_fired(trigdata, "AFTER, as its mode is 'raise'");
}

/* A generated column has no value before the row is stored; a virtual one never. */
static bool
has_value(Form_pg_attribute att, bool before)
{
	return att->attgenerated == '\0' ||
		(att->attgenerated == ATTRIBUTE_GENERATED_STORED && !before);
}

static void
get_columns(TriggerData *trigdata, Guard *guard)
{
	const char *value = get_argument(trigdata, ARG_COLUMNS);
	Relation rel = trigdata->tg_relation;
	const char *missing;

	if (value == NULL || !SplitIdentifierString(pstrdup(value), ',', &guard->columns) ||
		guard->columns == NIL)
		error_argument(trigdata, "list of columns", value == NULL ? "" : value);
	if (!rowkey_make(&guard->key, rel, guard->columns, &missing))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg(ON_TABLE " needs column \"%s\", which does not exist",
						trigger_and_table(trigdata), missing),
				 errhint("If the column was renamed, create the trigger anew.")));

	for (int i = 0; i < guard->key.ncolumns; i++)
	{
		Form_pg_attribute att =
			TupleDescAttr(RelationGetDescr(rel), guard->key.columns[i].number - 1);

		if (!has_value(att, guard->skip))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg(ON_TABLE " cannot read the generated column \"%s\"",
							trigger_and_table(trigdata), NameStr(att->attname)),
					 errdetail("It has no value yet when the trigger fires.")));
	}
}

/* By default the table, or the root of the partitions: a key holds in all of them. */
static void
get_scope(TriggerData *trigdata, Guard *guard)
{
	const char *value = get_argument(trigdata, ARG_SCOPE);
	Oid table = OidIsValid(guard->root) ? guard->root : guard->relid;

	if (value == NULL)
		value = quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
										   get_rel_name(table));
	guard->scope = cstring_to_text(value);
}

static void
unlist_guard(void *arg)
{
	Guard *guard = arg;

	if (guard->listed)
		dlist_delete(&guard->node);
	guard->listed = false;
}

static void
check_table(TriggerData *trigdata)
{
	Form_pg_class class = trigdata->tg_relation->rd_rel;

	if (class->relpersistence == RELPERSISTENCE_TEMP)
		error_table(trigdata, "temporary table");
	if (class->relkind == RELKIND_FOREIGN_TABLE)
		error_table(trigdata, "foreign table");
}

static Guard *
make_guard(TriggerData *trigdata, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Relation rel = trigdata->tg_relation;
	Guard *guard = palloc0(sizeof(Guard));
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));

	guard->relid = RelationGetRelid(rel);
	if (rel->rd_rel->relispartition)
		guard->root = llast_oid(get_partition_ancestors(guard->relid));
	if (trigdata->tg_trigger->tgnargs > MAX_ARGS)
		error_argument(trigdata, "argument", trigdata->tg_trigger->tgargs[MAX_ARGS]);
	get_mode(trigdata, guard);
	check_table(trigdata);
	get_ttl(trigdata, guard);
	get_columns(trigdata, guard);
	get_scope(trigdata, guard);

	callback->func = unlist_guard;
	callback->arg = guard;
	MemoryContextRegisterResetCallback(context, callback);
	MemoryContextSwitchTo(old);
	return guard;
}

/* ------------------------------------------------------------------------
 * Claiming
 * ------------------------------------------------------------------------
 */

/* The key of a row; false if it has none. */
static bool
row_request(Guard *guard, Relation rel, HeapTuple row, ClaimRequest *request)
{
	text *key = rowkey_text(&guard->key, rel, row);

	if (key == NULL)
		return false;
	claim_request(request, key, guard->scope, guard->has_ttl ? &guard->ttl : NULL);
	return true;
}

/* The key of a row in another partition, whose columns may be in other places. */
static bool
other_row_key(void *arg, Relation rel, HeapTuple row, IdemKey *key)
{
	Guard *guard = arg;
	RowKey columns;
	const char *missing;
	text *t;

	if (!rowkey_make(&columns, rel, guard->columns, &missing))
		return false;
	t = rowkey_text(&columns, rel, row);
	if (t == NULL)
		return false;
	key_make(key, t, guard->scope, false);
	return true;
}

static char *
column_list(Guard *guard)
{
	StringInfoData s;
	ListCell *lc;

	initStringInfo(&s);
	foreach(lc, guard->columns)
		appendStringInfo(&s, "%s%s", s.len > 0 ? ", " : "", (char *) lfirst(lc));
	return s.data;
}

/* As a unique index would tell it, for ORMs and drivers to recognise. */
pg_noreturn static void
error_duplicate(TriggerData *trigdata, Guard *guard, HeapTuple row)
{
	Relation rel = trigdata->tg_relation;

	ereport(
		ERROR,
		(errcode(ERRCODE_UNIQUE_VIOLATION),
		 errmsg("duplicate key value violates unique constraint \"%s\"",
				trigdata->tg_trigger->tgname),
		 errdetail("Key (%s)=(%s) already exists.", column_list(guard),
				   rowkey_display(&guard->key, rel, row)),
		 errhint("Trigger \"%s\" remembers a key until it expires, even if its row was deleted; "
				 "idem_forget() frees it.",
				 trigdata->tg_trigger->tgname),
		 errtableconstraint(rel, trigdata->tg_trigger->tgname)));
}

/* AFTER: a duplicate that was moved here is none. */
static bool
was_moved(TriggerData *trigdata, Guard *guard, const IdemKey *key, HeapTuple row)
{
	if (!OidIsValid(guard->root) || !TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		return false;
	if (!TRIGGER_FOR_DELETE(trigdata->tg_trigger->tgtype))
		moved_collect(guard->root, row, other_row_key, guard);
	return moved_in(key, row);
}

static void
raise_duplicate(TriggerData *trigdata, Guard *guard, HeapTuple row)
{
	ClaimRequest request;

	if (row_request(guard, trigdata->tg_relation, row, &request) && !claim_once(&request, false) &&
		!was_moved(trigdata, guard, &request.key, row))
		error_duplicate(trigdata, guard, row);
}

/* BEFORE INSERT: the update that is moving a row to here, if there is one. */
static Guard *
find_mover(Guard *guard)
{
	dlist_iter iter;

	if (!OidIsValid(guard->root))
		return NULL;
	dlist_foreach(iter, &guards)
	{
		Guard *mover = dlist_container(Guard, node, iter.cur);

		if (mover->in_hand && mover->root == guard->root && moved_from(mover->relid, &mover->old))
			return mover;
	}
	return NULL;
}

/*
 * Without BEFORE UPDATE nothing tells whether this is a row on the move; if
 * anything that was moved had its key, better no answer than a lost row.
 */
static void
check_not_moving(TriggerData *trigdata, Guard *guard, const IdemKey *key)
{
	if (OidIsValid(guard->root) && !TRIGGER_FOR_UPDATE(trigdata->tg_trigger->tgtype) &&
		moved_any(guard->root, key, other_row_key, guard))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg(ON_TABLE " must be fired by INSERT OR UPDATE, as rows move between "
								 "partitions",
						trigger_and_table(trigdata)),
				 errdetail("An UPDATE would have lost a row under idempotency key \"%s\".",
						   key_display(key))));
}

/* BEFORE INSERT: is the row to be kept? */
static bool
keep_inserted(TriggerData *trigdata, Guard *guard, HeapTuple row)
{
	Guard *mover = find_mover(guard);
	ClaimRequest request;

	if (mover != NULL)
		mover->in_hand = false;
	if (!row_request(guard, trigdata->tg_relation, row, &request))
		return true;
	if (mover != NULL && memcmp(&mover->digest, &request.key.digest, UUID_LEN) == 0)
		return true;
	if (claim_once(&request, false))
		return true;
	if (mover != NULL)
		error_duplicate(trigdata, guard, row);
	check_not_moving(trigdata, guard, &request.key);
	return false;
}

/* Remember the row whose turn it is, in case that it moves. */
static void
take_in_hand(Guard *guard, HeapTuple old, const IdemKey *key)
{
	if (!OidIsValid(guard->root))
		return;
	if (!guard->listed)
		dlist_push_head(&guards, &guard->node);
	guard->listed = true;
	guard->in_hand = true;
	guard->old = old->t_self;
	memset(&guard->digest, 0, sizeof(guard->digest));
	if (key != NULL)
		guard->digest = key->digest;
}

static bool
has_same_key(Guard *guard, Relation rel, HeapTuple old, const IdemKey *key)
{
	text *t = rowkey_text(&guard->key, rel, old);

	return t != NULL && key_same_text(t, key->key);
}

/* BEFORE UPDATE: is the row to be updated? */
static bool
keep_updated(TriggerData *trigdata, Guard *guard, HeapTuple old, HeapTuple row)
{
	Relation rel = trigdata->tg_relation;
	ClaimRequest request;
	bool has_key = row_request(guard, rel, row, &request);

	if (has_key && !has_same_key(guard, rel, old, &request.key) && !claim_once(&request, false))
		return false;
	take_in_hand(guard, old, has_key ? &request.key : NULL);
	return true;
}

/* ------------------------------------------------------------------------
 * Firing
 * ------------------------------------------------------------------------
 */

static HeapTuple
fire_before(TriggerData *trigdata, Guard *guard)
{
	HeapTuple row = trigdata->tg_trigtuple;

	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		return keep_inserted(trigdata, guard, row) ? row : NULL;
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		return keep_updated(trigdata, guard, row, trigdata->tg_newtuple) ? trigdata->tg_newtuple
																		 : NULL;
	return row;
}

static void
fire_after(TriggerData *trigdata, Guard *guard)
{
	Relation rel = trigdata->tg_relation;
	HeapTuple row = trigdata->tg_trigtuple;
	ClaimRequest request;

	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		raise_duplicate(trigdata, guard, row);
	else if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
	{
		if (row_request(guard, rel, trigdata->tg_newtuple, &request) &&
			!has_same_key(guard, rel, row, &request.key))
			raise_duplicate(trigdata, guard, trigdata->tg_newtuple);
	}
	else if (OidIsValid(guard->root) && row_request(guard, rel, row, &request))
		moved_out(&request.key, row);
}

static void
once_context(void *arg)
{
	TriggerData *trigdata = arg;

	errcontext(ON_TABLE, trigger_and_table(trigdata));
}

/*
 * idem_once(columns [, ttl [, 'raise' | 'skip' [, scope]]]) RETURNS trigger
 */
Datum
idem_once(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	ErrorContextCallback context = {.callback = once_context, .arg = trigdata};
	Guard *guard = fcinfo->flinfo->fn_extra;
	HeapTuple result = NULL;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager", "idem_once")));

	context.previous = error_context_stack;
	error_context_stack = &context;
	if (guard == NULL)
		fcinfo->flinfo->fn_extra = guard = make_guard(trigdata, fcinfo->flinfo->fn_mcxt);
	if (guard->skip)
		result = fire_before(trigdata, guard);
	else
		fire_after(trigdata, guard);
	error_context_stack = context.previous;

	return PointerGetDatum(result);
}
