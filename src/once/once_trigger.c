/*-------------------------------------------------------------------------
 *
 * once_trigger.c
 *	  idem_once(): a row trigger that accepts each row once.
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
 * Guard.  A Guard belongs to one source of one running statement, which moves one row at a
 * time.  A target without the trigger leaves that row in the Guard, so check that the row at
 * hand belongs in this partition.  The source's trigger may not have fired, for want of the
 * event or because of a WHEN; so before a row is dropped, the partitions are searched here as
 * well.  A row that is being moved is never dropped, since that would delete it.
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
#include "utils/resowner.h"
#include "utils/rls.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/interval.h"
#include "base/qualified_name.h"
#include "base/sha256.h"
#include "claim/claim.h"
#include "once/partition_move.h"
#include "once/row_key.h"

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

/* A list of columns that make one key. */
typedef struct KeyList
{
	List *columns; /* char * */
	text *scope;
	RowKey key;
	MovedScope moved; /* AFTER, of a partition */
} KeyList;

/* The bounds of a partition, built on first use. */
typedef struct Bounds
{
	EState *estate;
	ExprState *qual; /* NULL: all rows are within bounds */
	TupleTableSlot *slot;
} Bounds;

/* The trigger of one table, for one statement: its arguments and state. */
typedef struct Guard
{
	Oid relid;
	bool skip;
	bool has_ttl;
	Interval ttl;
	int nlists;
	KeyList *lists;
	MovedScope moved; /* BEFORE, of a partition */
	int checked;	  /* operations (bits) that check_fires_last() has checked */
	Bounds bounds;	  /* of a partition */

	/* the last row that the BEFORE UPDATE trigger has seen, if it is to move */
	dlist_node node; /* in "guards", if listed */
	bool listed;
	bool in_hand;
	ItemPointerData old;
	HeapTuple new_row;
	text **new_keys;
	MemoryContext hand; /* of new_row and new_keys */
	MemoryContext context;
} Guard;

/* the Guards of partitions whose rows move to others under "skip" */
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

#define error_argument(trigdata, what, value, why) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
		 errmsg(ON_TABLE " has the invalid %s \"%s\"", trigger_and_table(trigdata), (what), \
				(value)), \
		 errdetail("%s", (why)), \
		 errhint("Its arguments are columns, ttl, 'raise' or 'skip', and scope; several lists " \
				 "of columns are separated by semicolons, and so are their scopes.")))

#define error_table(trigdata, kind) \
	ereport(ERROR, \
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
			 errmsg(ON_TABLE " cannot guard a %s", trigger_and_table(trigdata), (kind)), \
			 errdetail("Rows and keys would not commit together.")))

/* An argument; NULL if it was not given, or is '' or NULL, which arrives as the word "null". */
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

	/* an invalid interval raises 22007, in an error that does not name the trigger */
	PG_TRY();
	{
		guard->ttl = *DatumGetIntervalP(DirectFunctionCall3(
			interval_in, CStringGetDatum(value), ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
		(void) ttl_after(GetCurrentTimestamp(), &guard->ttl, "ttl", NULL);
	}
	PG_CATCH();
	{
		ErrorData *error;

		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		error_argument(trigdata, "ttl", value,
					   error->hint != NULL ? error->hint
										   : psprintf("As an interval: %s.", error->message));
	}
	PG_END_TRY();
}

static void
get_mode(TriggerData *trigdata, Guard *guard)
{
	const char *value = get_argument(trigdata, ARG_MODE);

	guard->skip = value != NULL && strcmp(value, "skip") == 0;
	if (value != NULL && !guard->skip && strcmp(value, "raise") != 0)
		error_argument(trigdata, "mode", value, "It is neither 'raise' nor 'skip'.");

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

/* The table, or the root if it is a partition: a key holds in all partitions. */
static Oid
guard_table(const Guard *guard)
{
	return OidIsValid(guard->moved.root) ? guard->moved.root : guard->relid;
}

/* Split at semicolons, and trim the parts.  "quoted": not at those within double quotes. */
static List *
split_parts(const char *value, bool quoted)
{
	char *part = pstrdup(value);
	List *parts = NIL;
	bool inside = false;

	for (char *c = part;; c++)
	{
		char end = *c;

		if (quoted && end == '"')
			inside = !inside;
		if (end != '\0' && (inside || end != ';'))
			continue;
		*c = '\0';
		while (scanner_isspace(*part))
			part++;
		for (char *last = c; last > part && scanner_isspace(last[-1]); last--)
			last[-1] = '\0';
		parts = lappend(parts, part);
		if (end == '\0')
			return parts;
		part = c + 1;
	}
}

static text *
default_scope(Oid table)
{
	StringInfoData s;

	initStringInfo(&s);
	name_append(&s, get_namespace_name(get_rel_namespace(table)), get_rel_name(table));
	return cstring_to_text_with_len(s.data, s.len);
}

/* A scope that keeps the keys of several lists apart: scope(column, column) */
static text *
list_scope(text *scope, List *columns)
{
	StringInfoData s;
	ListCell *lc;

	initStringInfo(&s);
	appendBinaryStringInfo(&s, VARDATA_ANY(scope), VARSIZE_ANY_EXHDR(scope));
	foreach(lc, columns)
	{
		appendStringInfoString(&s, foreach_current_index(lc) > 0 ? ", " : "(");
		name_append_identifier(&s, lfirst(lc));
	}
	appendStringInfoChar(&s, ')');
	return cstring_to_text_with_len(s.data, s.len);
}

/* Sets *wrong and *why, and returns false, if the argument for columns or scope is invalid. */
static bool
parse_lists(const char *columns, const char *scope, Oid table, KeyList **lists, int *nlists,
			const char **wrong, const char **why)
{
	List *parts = split_parts(columns, true);
	List *scopes = NIL;
	text *common = scope != NULL ? cstring_to_text(scope) : default_scope(table);
	ListCell *lc;

	*nlists = list_length(parts);
	*lists = palloc0_array(KeyList, *nlists);
	foreach(lc, parts)
	{
		*wrong = "list of columns";
		*why = "Columns are written as in SQL and separated by commas.";
		if (!SplitIdentifierString(lfirst(lc), ',', &(*lists)[foreach_current_index(lc)].columns) ||
			(*lists)[foreach_current_index(lc)].columns == NIL)
			return false;
	}

	/* with a single list of columns, the scope is not split */
	if (*nlists > 1 && scope != NULL && strchr(scope, ';') != NULL)
	{
		*wrong = "list of scopes";
		scopes = split_parts(scope, false);
		*why =
			psprintf("Of columns there are %d lists, of scopes %d.", *nlists, list_length(scopes));
		if (list_length(scopes) != *nlists)
			return false;
		common = default_scope(table);
	}
	for (int i = 0; i < *nlists; i++)
	{
		KeyList *list = &(*lists)[i];
		const char *own = scopes != NIL ? list_nth(scopes, i) : "";

		if (own[0] != '\0')
			list->scope = cstring_to_text(own);
		else
			list->scope = *nlists > 1 ? list_scope(common, list->columns) : common;
		*why =
			"Two lists of columns would have the same scope, and their keys be taken for each other.";
		*wrong = scopes != NIL ? "list of scopes" : "list of columns";
		for (int j = 0; j < i; j++)
			if (key_same_text((*lists)[j].scope, list->scope))
				return false;
	}
	return true;
}

static void
get_columns(TriggerData *trigdata, KeyList *list, bool before)
{
	Relation rel = trigdata->tg_relation;
	const char *missing;

	if (!rowkey_make(&list->key, rel, list->columns, &missing))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg(ON_TABLE " needs column \"%s\", which does not exist",
						trigger_and_table(trigdata), missing),
				 errhint("If the column was renamed, create the trigger anew.")));

	for (int i = 0; i < list->key.ncolumns; i++)
	{
		Form_pg_attribute att =
			TupleDescAttr(RelationGetDescr(rel), list->key.columns[i].number - 1);

		if (!has_value(att, before))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg(ON_TABLE " cannot read the generated column \"%s\"",
							trigger_and_table(trigdata), NameStr(att->attname)),
					 errdetail("It has no value yet when the trigger fires.")));
	}
}

static void
get_lists(TriggerData *trigdata, Guard *guard)
{
	const char *columns = get_argument(trigdata, ARG_COLUMNS);
	const char *scope = get_argument(trigdata, ARG_SCOPE);
	const char *wrong;
	const char *why;

	if (!parse_lists(columns == NULL ? "" : columns, scope, guard_table(guard), &guard->lists,
					 &guard->nlists, &wrong, &why))
		error_argument(trigdata, wrong,
					   strcmp(wrong, "list of scopes") == 0 ? scope
						   : columns == NULL				? ""
															: columns,
					   why);
	for (int i = 0; i < guard->nlists; i++)
		get_columns(trigdata, &guard->lists[i], guard->skip);
}

static bool
same_columns(const KeyList *x, const KeyList *y)
{
	ListCell *a;
	ListCell *b;

	if (list_length(x->columns) != list_length(y->columns))
		return false;
	forboth(a, x->columns, b, y->columns) if (strcmp(lfirst(a), lfirst(b)) != 0) return false;
	return true;
}

static void
check_other_trigger(TriggerData *trigdata, Guard *guard, TriggerData *other)
{
	const char *wrong;
	const char *why;
	KeyList *lists;
	int nlists;

	if (!parse_lists(other->tg_trigger->tgargs[ARG_COLUMNS], get_argument(other, ARG_SCOPE),
					 guard_table(guard), &lists, &nlists, &wrong, &why))
		return;
	for (int i = 0; i < nlists; i++)
		for (int j = 0; j < guard->nlists; j++)
			if (!same_columns(&lists[i], &guard->lists[j]) &&
				key_same_text(lists[i].scope, guard->lists[j].scope))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg(ON_TABLE " has the same scope as trigger \"%s\"",
								trigger_and_table(trigdata), other->tg_trigger->tgname),
						 errdetail("Keys of different columns would be taken for each other."),
						 errhint("Give one of them a scope of its own, as the fourth argument.")));
}

/*
 * Two triggers with the same scope but different columns would take each other's keys for their
 * own.  With the same columns their keys are the same, so such triggers may share the events.
 */
static void
check_other_triggers(TriggerData *trigdata, Guard *guard)
{
	TriggerDesc *triggers = trigdata->tg_relation->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		TriggerData other = *trigdata;

		other.tg_trigger = &triggers->triggers[i];
		if (other.tg_trigger->tgfoid == trigdata->tg_trigger->tgfoid &&
			other.tg_trigger->tgnargs > 0)
			check_other_trigger(trigdata, guard, &other);
	}
}

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
 * Set the identities of each list and of the Guard, which is made of theirs.  An identity is the
 * same for the triggers of all partitions, and different for a trigger with other keys.
 */
static void
set_identities(Guard *guard)
{
	uint8 hash[PG_SHA256_DIGEST_LENGTH];
	Sha256 *all;

	for (int i = 0; i < guard->nlists; i++)
	{
		KeyList *list = &guard->lists[i];

		hash_list(hash, list);
		list->moved.root = guard->moved.root;
		memcpy(list->moved.identity.data, hash, UUID_LEN);
		list->moved.make_key = other_row_key;
		list->moved.arg = list;
	}

	/* sha256_start() allows only one hash at a time */
	all = sha256_start();
	for (int i = 0; i < guard->nlists; i++)
		sha256_bytes(all, guard->lists[i].moved.identity.data, UUID_LEN);
	sha256_finish(all, hash);
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
	/* a partition that is being detached has none */
	if (rel->rd_rel->relispartition)
		ancestors = get_partition_ancestors(guard->relid);
	if (ancestors != NIL)
		guard->moved.root = llast_oid(ancestors);
	if (trigdata->tg_trigger->tgdeferrable && OidIsValid(guard->moved.root) &&
		TRIGGER_FOR_INSERT(trigdata->tg_trigger->tgtype) &&
		!TRIGGER_FOR_DELETE(trigdata->tg_trigger->tgtype))
		error_fired(trigdata, "by DELETE as well, as it is deferrable and on a partition");
	if (trigdata->tg_trigger->tgnargs > MAX_ARGS)
		error_argument(trigdata, "argument", trigdata->tg_trigger->tgargs[MAX_ARGS],
					   psprintf("There are %d arguments at most.", MAX_ARGS));
	get_mode(trigdata, guard);
	check_table(trigdata);
	get_ttl(trigdata, guard);
	get_lists(trigdata, guard);
	check_other_triggers(trigdata, guard);
	set_identities(guard);

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

static void
make_request(Guard *guard, KeyList *list, text *key, ClaimRequest *request)
{
	/* a key of several columns is never empty */
	if (VARSIZE_ANY_EXHDR(key) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("column \"%s\" of table \"%s\" must not be empty",
						(char *) linitial(list->columns), get_rel_name(guard->relid)),
				 errdetail("Its value is the row's idempotency key."),
				 errhint("Rows that need no key have NULL there.")));
	claim_request(request, key, list->scope, guard->has_ttl ? &guard->ttl : NULL);
}

/* A row's keys, one for each list; NULL: the row has no such key. */
static text **
row_keys(Guard *guard, Relation rel, HeapTuple row)
{
	text **keys = palloc_array(text *, guard->nlists);

	for (int i = 0; i < guard->nlists; i++)
		keys[i] = rowkey_text(&guard->lists[i].key, rel, row);
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
list_requests(Guard *guard, text **keys, int *n)
{
	ListRequest *requests = palloc_array(ListRequest, guard->nlists);

	*n = 0;
	for (int i = 0; i < guard->nlists; i++)
	{
		if (keys[i] == NULL)
			continue;
		requests[*n].list = &guard->lists[i];
		make_request(guard, &guard->lists[i], keys[i], &requests[*n].request);
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
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile int claimed = 0;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		claimed = claim_in_order(requests, n);
		if (claimed == n)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		ReThrowError(error);
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
claim_keys(Guard *guard, text **keys)
{
	int n;
	ListRequest *requests = list_requests(guard, keys, &n);
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

static char *
column_list(const KeyList *list)
{
	StringInfoData s;
	ListCell *lc;

	initStringInfo(&s);
	foreach(lc, list->columns)
		appendStringInfo(&s, "%s%s", s.len > 0 ? ", " : "", (char *) lfirst(lc));
	return s.data;
}

/*
 * May the user see the key?  A column that the statement did not set may have its value from a
 * default.  A unique index shows the key under the same conditions.
 */
static bool
may_see_key(Guard *guard, const KeyList *list)
{
	Oid table = guard_table(guard);
	Oid user = GetUserId();
	ListCell *lc;

	if (check_enable_rls(table, InvalidOid, true) == RLS_ENABLED)
		return false;
	if (pg_class_aclcheck(table, user, ACL_SELECT) == ACLCHECK_OK)
		return true;
	foreach(lc, list->columns)
		if (pg_attribute_aclcheck(table, get_attnum(table, lfirst(lc)), user, ACL_SELECT) !=
			ACLCHECK_OK)
			return false;
	return true;
}

/* Report a duplicate as a unique index does, so that ORMs and drivers recognize it. */
pg_noreturn static void
error_duplicate(TriggerData *trigdata, Guard *guard, KeyList *list, HeapTuple row)
{
	Relation rel = trigdata->tg_relation;

	ereport(
		ERROR,
		(errcode(ERRCODE_UNIQUE_VIOLATION),
		 errmsg("duplicate key value violates unique constraint \"%s\"",
				trigdata->tg_trigger->tgname),
		 may_see_key(guard, list) ? errdetail("Key (%s)=(%s) already exists.", column_list(list),
											  rowkey_display(&list->key, rel, row))
								  : 0,
		 errhint("Trigger \"%s\" remembers a key until it expires, even if its row was deleted; "
				 "idem_forget() frees it. ON CONFLICT does not apply to it.",
				 trigdata->tg_trigger->tgname),
		 errtableconstraint(rel, trigdata->tg_trigger->tgname)));
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
raise_duplicate(TriggerData *trigdata, Guard *guard, text **keys, HeapTuple row)
{
	int n;
	ListRequest *requests = list_requests(guard, keys, &n);

	for (int i = 0; i < n; i++)
	{
		ClaimRequest *request = &requests[i].request;

		if (!claim_once(request, false) &&
			!was_moved(trigdata, requests[i].list, &request->key, row))
			error_duplicate(trigdata, guard, requests[i].list, row);
	}
}

/* AFTER DELETE: a row that moves will be inserted again. */
static void
let_go(TriggerData *trigdata, Guard *guard, HeapTuple row)
{
	if (!OidIsValid(guard->moved.root) || !moved_is(row))
		return;
	for (int i = 0; i < guard->nlists; i++)
	{
		KeyList *list = &guard->lists[i];
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
check_fires_last(TriggerData *trigdata, Guard *guard)
{
	TriggerDesc *triggers = trigdata->tg_relation->trigdesc;
	TriggerEvent operation = trigdata->tg_event & TRIGGER_EVENT_OPMASK;
	bool insert = TRIGGER_FIRED_BY_INSERT(trigdata->tg_event);
	int16 event = insert ? TRIGGER_TYPE_INSERT : TRIGGER_TYPE_UPDATE;
	bool after_ours = false;

	/* INSERT is 0 */
	if ((guard->checked & (1 << operation)) != 0)
		return;
	/* triggers are sorted by name */
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger *other = &triggers->triggers[i];

		if (other->tgoid == trigdata->tg_trigger->tgoid)
			after_ours = true;
		else if (after_ours && fires_before(other, event))
			ereport(
				ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg(ON_TABLE " must be fired last, and trigger \"%s\" is fired after it",
						trigger_and_table(trigdata), other->tgname),
				 errdetail("That trigger could drop or change a row whose key is claimed."),
				 other->tgfoid == trigdata->tg_trigger->tgfoid
					 ? errhint("Create one trigger with the columns of both, separated by a "
							   "semicolon.")
					 : errhint("BEFORE %s triggers are fired in the order of their names: rename "
							   "one with ALTER TRIGGER.",
							   insert ? "INSERT" : "UPDATE")));
	}
	guard->checked |= 1 << operation;
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
			ereport(ERROR,
					(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
					 errmsg(ON_TABLE " must be fired last, and trigger \"%s\" is fired after it",
							trigger_and_table(trigdata), triggers->triggers[i].tgname),
					 errdetail("A row that moves to another partition is deleted here, which that "
							   "trigger could prevent when the row's new key is claimed."),
					 errhint("Change the key and the partition in two commands.")));
}

/* ------------------------------------------------------------------------
 * Moving, BEFORE
 * ------------------------------------------------------------------------
 */

/* Is a row of this partition's row type within its bounds? */
static bool
is_within(Guard *guard, Relation rel, HeapTuple row)
{
	Bounds *bounds = &guard->bounds;
	ExprContext *econtext;
	bool within;

	if (bounds->estate == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(guard->context);

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
comes_here(Guard *mover, Guard *guard, Relation rel)
{
	TupleConversionMap *map =
		convert_tuples_by_name(mover->bounds.slot->tts_tupleDescriptor, RelationGetDescr(rel));

	return is_within(guard, rel,
					 map == NULL ? mover->new_row : execute_attr_map_tuple(mover->new_row, map));
}

/* Count a row in hand that has moved to a partition without the trigger. */
static void
settle(Guard *mover)
{
	if (mover->in_hand && moved_from(mover->relid, &mover->old))
		moved_let_pass(&mover->moved);
	mover->in_hand = false;
}

/* BEFORE INSERT: the Guard whose UPDATE moves a row to here, if its trigger has fired. */
static Guard *
find_mover(Guard *guard, Relation rel)
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
		{
			if (comes_here(mover, guard, rel))
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

/* The keys that differ from the other row's key of the same list; NULL in place of the rest. */
static text **
new_keys(Guard *guard, text **keys, text **others)
{
	text **result = palloc0_array(text *, guard->nlists);

	for (int i = 0; i < guard->nlists; i++)
		if (others == NULL || !same_key(others[i], keys[i]))
			result[i] = keys[i];
	return result;
}

/* BEFORE INSERT: false to drop the row. */
static bool
keep_inserted(TriggerData *trigdata, Guard *guard, HeapTuple row)
{
	Relation rel = trigdata->tg_relation;
	text **keys = row_keys(guard, rel, row);
	text **claimed = NULL; /* for the row, by the BEFORE UPDATE trigger */
	Guard *mover = find_mover(guard, rel);
	ListRequest *taken;

	if (mover != NULL)
	{
		claimed = mover->new_keys;
		mover->in_hand = false;
		moved_let_pass(&guard->moved);
	}
	taken = claim_keys(guard, new_keys(guard, keys, claimed));
	if (taken == NULL)
		return true;
	if (mover != NULL)
		error_duplicate(trigdata, guard, taken->list, row);
	check_not_moving(trigdata, guard, &taken->request.key);
	return false;
}

/* Remember the current row, which is to move. */
static void
take_in_hand(Guard *guard, HeapTuple old, HeapTuple row, text **keys)
{
	MemoryContext caller;

	if (guard->hand == NULL)
		guard->hand =
			AllocSetContextCreate(guard->context, "row on the move", ALLOCSET_SMALL_SIZES);
	if (!guard->listed)
		dlist_push_head(&guards, &guard->node);
	guard->listed = true;
	guard->in_hand = true;
	guard->old = old->t_self;
	MemoryContextReset(guard->hand);
	caller = MemoryContextSwitchTo(guard->hand);
	guard->new_row = heap_copytuple(row);
	guard->new_keys = palloc0_array(text *, guard->nlists);
	for (int i = 0; i < guard->nlists; i++)
	{
		if (keys[i] == NULL)
			continue;
		guard->new_keys[i] = palloc(VARSIZE_ANY(keys[i]));
		memcpy(guard->new_keys[i], keys[i], VARSIZE_ANY(keys[i]));
	}
	MemoryContextSwitchTo(caller);
}

/* BEFORE UPDATE: false to leave the row unchanged. */
static bool
keep_updated(TriggerData *trigdata, Guard *guard, HeapTuple old, HeapTuple row)
{
	Relation rel = trigdata->tg_relation;
	text **keys = row_keys(guard, rel, row);
	text **to_claim = new_keys(guard, keys, row_keys(guard, rel, old));
	bool moves = OidIsValid(guard->moved.root) && !is_within(guard, rel, row);

	settle(guard);
	for (int i = 0; moves && i < guard->nlists; i++)
		if (to_claim[i] != NULL)
			check_not_kept(trigdata);
	if (claim_keys(guard, to_claim) != NULL)
		return false;
	if (moves)
		take_in_hand(guard, old, row, keys);
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

	if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
		return row;
	check_fires_last(trigdata, guard);
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		return keep_inserted(trigdata, guard, row) ? row : NULL;
	return keep_updated(trigdata, guard, row, trigdata->tg_newtuple) ? trigdata->tg_newtuple : NULL;
}

static void
fire_after(TriggerData *trigdata, Guard *guard)
{
	Relation rel = trigdata->tg_relation;
	HeapTuple row = trigdata->tg_trigtuple;
	HeapTuple new_row = trigdata->tg_newtuple;

	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		raise_duplicate(trigdata, guard, row_keys(guard, rel, row), row);
	else if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		raise_duplicate(trigdata, guard,
						new_keys(guard, row_keys(guard, rel, new_row), row_keys(guard, rel, row)),
						new_row);
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
 * idem_once(columns [; columns ...] [, ttl [, 'raise' | 'skip' [, scope [; scope ...]]]])
 * RETURNS trigger
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
