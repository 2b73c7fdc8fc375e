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
 * moves one row at a time.  It may not have fired, for want of the event or by
 * a WHEN: so before a row is dropped, the partitions are searched here as well.
 * A row that is being moved is never dropped, since that would delete it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "claim.h"
#include "compat.h"
#include "errors.h"
#include "moved.h"
#include "name.h"
#include "rowkey.h"
#include "sha256.h"
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
	bool skip;
	bool has_ttl;
	Interval ttl;
	text *scope;
	List *columns; /* char * */
	RowKey key;
	MovedScope moved; /* of a partition */

	/* the row that its BEFORE UPDATE trigger has seen last */
	dlist_node node; /* in "guards", while it is there */
	bool listed;
	bool in_hand;
	ItemPointerData old;
	text *new_key; /* NULL: none */
	MemoryContext context;
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

/* The table, or the root of the partitions: a key holds in all of them. */
static Oid
guard_table(const Guard *guard)
{
	return OidIsValid(guard->moved.root) ? guard->moved.root : guard->relid;
}

static text *
default_scope(Oid table)
{
	StringInfoData s;

	initStringInfo(&s);
	name_append(&s, get_namespace_name(get_rel_namespace(table)), get_rel_name(table));
	return cstring_to_text_with_len(s.data, s.len);
}

static void
get_scope(TriggerData *trigdata, Guard *guard)
{
	const char *value = get_argument(trigdata, ARG_SCOPE);

	guard->scope = value != NULL ? cstring_to_text(value) : default_scope(guard_table(guard));
}

static bool
same_columns(const Guard *guard, const char *other)
{
	List *columns;
	ListCell *a;
	ListCell *b;

	if (!SplitIdentifierString(pstrdup(other), ',', &columns) ||
		list_length(columns) != list_length(guard->columns))
		return false;
	forboth(a, columns, b, guard->columns) if (strcmp(lfirst(a), lfirst(b)) != 0) return false;
	return true;
}

/*
 * Two triggers with one scope would take each other's keys for their own.  The
 * same columns are the same keys: such triggers may share the events.
 */
static void
check_other_triggers(TriggerData *trigdata, Guard *guard)
{
	TriggerDesc *triggers = trigdata->tg_relation->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		TriggerData other = *trigdata;
		const char *scope;
		text *other_scope;

		other.tg_trigger = &triggers->triggers[i];
		if (other.tg_trigger->tgfoid != trigdata->tg_trigger->tgfoid ||
			other.tg_trigger->tgnargs == 0 ||
			same_columns(guard, other.tg_trigger->tgargs[ARG_COLUMNS]))
			continue;
		scope = get_argument(&other, ARG_SCOPE);
		other_scope = scope != NULL ? cstring_to_text(scope) : default_scope(guard_table(guard));
		if (key_same_text(other_scope, guard->scope))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg(ON_TABLE " has the same scope as trigger \"%s\"",
							trigger_and_table(trigdata), other.tg_trigger->tgname),
					 errdetail("Keys of different columns would be taken for each other."),
					 errhint("Give one of them a scope of its own, as the fourth argument.")));
	}
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

/* The same for the triggers of all partitions, another for one of other keys. */
static void
set_identity(Guard *guard)
{
	Sha256 *sha = sha256_start();
	uint8 hash[PG_SHA256_DIGEST_LENGTH];
	ListCell *lc;

	sha256_framed(sha, VARDATA_ANY(guard->scope), VARSIZE_ANY_EXHDR(guard->scope));
	foreach(lc, guard->columns)
		sha256_framed(sha, lfirst(lc), strlen(lfirst(lc)));
	sha256_finish(sha, hash);
	memcpy(guard->moved.identity.data, hash, UUID_LEN);
}

static Guard *
make_guard(TriggerData *trigdata, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Relation rel = trigdata->tg_relation;
	Guard *guard = palloc0(sizeof(Guard));
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));
	List *ancestors = NIL;

	guard->context = context;
	guard->relid = RelationGetRelid(rel);
	/* none, if it is being detached */
	if (rel->rd_rel->relispartition)
		ancestors = get_partition_ancestors(guard->relid);
	if (ancestors != NIL)
		guard->moved.root = llast_oid(ancestors);
	if (trigdata->tg_trigger->tgdeferrable && OidIsValid(guard->moved.root) &&
		TRIGGER_FOR_INSERT(trigdata->tg_trigger->tgtype) &&
		!TRIGGER_FOR_DELETE(trigdata->tg_trigger->tgtype))
		error_fired(trigdata, "by DELETE as well, as it is deferrable and on a partition");
	if (trigdata->tg_trigger->tgnargs > MAX_ARGS)
		error_argument(trigdata, "argument", trigdata->tg_trigger->tgargs[MAX_ARGS]);
	get_mode(trigdata, guard);
	check_table(trigdata);
	get_ttl(trigdata, guard);
	get_columns(trigdata, guard);
	get_scope(trigdata, guard);
	check_other_triggers(trigdata, guard);
	set_identity(guard);
	guard->moved.make_key = other_row_key;
	guard->moved.arg = guard;

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

/* Claim the key of a row; false if it is a repeated one. */
static bool
claim_key(Guard *guard, text *key, ClaimRequest *request)
{
	claim_request(request, key, guard->scope, guard->has_ttl ? &guard->ttl : NULL);
	return claim_once(request, false);
}

static bool
same_key(const text *a, const text *b)
{
	return a == NULL ? b == NULL : b != NULL && key_same_text(a, b);
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

/*
 * May the user see the key?  A column that it did not give may have got its value
 * from a default.  A unique index tells under the same conditions.
 */
static bool
may_see_key(Guard *guard)
{
	Oid table = guard_table(guard);
	Oid user = GetUserId();
	ListCell *lc;

	if (check_enable_rls(table, InvalidOid, true) == RLS_ENABLED)
		return false;
	if (pg_class_aclcheck(table, user, ACL_SELECT) == ACLCHECK_OK)
		return true;
	foreach(lc, guard->columns)
		if (pg_attribute_aclcheck(table, get_attnum(table, lfirst(lc)), user, ACL_SELECT) !=
			ACLCHECK_OK)
			return false;
	return true;
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
		 may_see_key(guard) ? errdetail("Key (%s)=(%s) already exists.", column_list(guard),
										rowkey_display(&guard->key, rel, row))
							: 0,
		 errhint("Trigger \"%s\" remembers a key until it expires, even if its row was deleted; "
				 "idem_forget() frees it.",
				 trigdata->tg_trigger->tgname),
		 errtableconstraint(rel, trigdata->tg_trigger->tgname)));
}

/* AFTER: a duplicate that was moved here is none. */
static bool
was_moved(TriggerData *trigdata, Guard *guard, const IdemKey *key, HeapTuple row)
{
	Relation rel = trigdata->tg_relation;

	if (!OidIsValid(guard->moved.root) || !TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		return false;
	if (!TRIGGER_FOR_DELETE(trigdata->tg_trigger->tgtype))
		moved_collect(&guard->moved, rel, row);
	return moved_in(&guard->moved, key, rel, row);
}

/* AFTER INSERT or UPDATE: "key" is that of the row. */
static void
raise_duplicate(TriggerData *trigdata, Guard *guard, text *key, HeapTuple row)
{
	ClaimRequest request;

	if (key != NULL && !claim_key(guard, key, &request) &&
		!was_moved(trigdata, guard, &request.key, row))
		error_duplicate(trigdata, guard, row);
}

/* AFTER DELETE: a row that only moves may come back. */
static void
let_go(TriggerData *trigdata, Guard *guard, HeapTuple row)
{
	text *t;
	IdemKey key;

	if (!OidIsValid(guard->moved.root) || !moved_is(row))
		return;
	t = rowkey_text(&guard->key, trigdata->tg_relation, row);
	if (t == NULL)
		return;
	key_make(&key, t, guard->scope, false);
	moved_out(&guard->moved, &key, row);
}

/* BEFORE INSERT: the update that is moving a row to here, if its trigger has fired. */
static Guard *
find_mover(Guard *guard)
{
	dlist_iter iter;

	if (!OidIsValid(guard->moved.root))
		return NULL;
	dlist_foreach(iter, &guards)
	{
		Guard *mover = dlist_container(Guard, node, iter.cur);

		if (mover->in_hand && mover->moved.root == guard->moved.root &&
			memcmp(&mover->moved.identity, &guard->moved.identity, UUID_LEN) == 0 &&
			moved_from(mover->relid, &mover->old))
			return mover;
	}
	return NULL;
}

/*
 * A repeated row is dropped, unless it may be one on the move of which nobody has
 * told: better an error than a lost row.
 */
static void
check_not_moving(TriggerData *trigdata, Guard *guard, const IdemKey *key)
{
	if (OidIsValid(guard->moved.root) && moved_more(&guard->moved))
		ereport(
			ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg(ON_TABLE " might lose a row that moves to here", trigger_and_table(trigdata)),
			 errdetail("No BEFORE UPDATE trigger of idem_once() has let the row pass that is "
					   "inserted under idempotency key \"%s\".",
					   key_display(key)),
			 errhint("Create it as BEFORE INSERT OR UPDATE, without a list of columns and "
					 "without WHEN, on all partitions.")));
}

/* BEFORE INSERT: is the row to be kept? */
static bool
keep_inserted(TriggerData *trigdata, Guard *guard, HeapTuple row)
{
	text *key = rowkey_text(&guard->key, trigdata->tg_relation, row);
	Guard *mover = find_mover(guard);
	ClaimRequest request;

	if (mover != NULL)
	{
		mover->in_hand = false;
		moved_let_pass(&guard->moved);
	}
	if (key == NULL || (mover != NULL && same_key(mover->new_key, key)))
		return true;
	if (claim_key(guard, key, &request))
		return true;
	if (mover != NULL)
		error_duplicate(trigdata, guard, row);
	check_not_moving(trigdata, guard, &request.key);
	return false;
}

/* Remember the row whose turn it is, in case that it moves. */
static void
take_in_hand(Guard *guard, HeapTuple old, text *new_key)
{
	if (!OidIsValid(guard->moved.root))
		return;
	if (!guard->listed)
		dlist_push_head(&guards, &guard->node);
	guard->listed = true;
	guard->in_hand = true;
	guard->old = old->t_self;
	if (guard->new_key != NULL)
		pfree(guard->new_key);
	guard->new_key = NULL;
	if (new_key != NULL)
	{
		guard->new_key = MemoryContextAlloc(guard->context, VARSIZE_ANY(new_key));
		memcpy(guard->new_key, new_key, VARSIZE_ANY(new_key));
	}
}

/* BEFORE UPDATE: is the row to be updated? */
static bool
keep_updated(TriggerData *trigdata, Guard *guard, HeapTuple old, HeapTuple row)
{
	Relation rel = trigdata->tg_relation;
	text *old_key = rowkey_text(&guard->key, rel, old);
	text *key = rowkey_text(&guard->key, rel, row);
	ClaimRequest request;

	if (key != NULL && !same_key(old_key, key) && !claim_key(guard, key, &request))
		return false;
	take_in_hand(guard, old, key);
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
	HeapTuple new_row = trigdata->tg_newtuple;

	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		raise_duplicate(trigdata, guard, rowkey_text(&guard->key, rel, row), row);
	else if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
	{
		text *key = rowkey_text(&guard->key, rel, new_row);

		if (!same_key(rowkey_text(&guard->key, rel, row), key))
			raise_duplicate(trigdata, guard, key, new_row);
	}
	else
		let_go(trigdata, guard, row);
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

	refuse_in_parallel("idem_once");
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
