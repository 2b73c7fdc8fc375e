/*-------------------------------------------------------------------------
 *
 * arguments.c
 *	  The arguments of idem_once(): lists of columns, ttl, mode, scopes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "parser/scansup.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "base/citus.h"
#include "base/compat.h"
#include "base/interval.h"
#include "base/qualified_name.h"
#include "once/arguments.h"
#include "once/errors.h"
#include "store/store.h"

/* Arguments of the trigger */
enum
{
	ARG_COLUMNS,
	ARG_TTL,
	ARG_MODE,
	ARG_SCOPE,
	MAX_ARGS
};

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
get_ttl(TriggerData *trigdata, OnceArguments *args)
{
	const char *value = get_argument(trigdata, ARG_TTL);
	MemoryContext context = CurrentMemoryContext;

	args->has_ttl = value != NULL;
	if (value == NULL)
		return;

	/* an invalid interval raises 22007, in an error that does not name the trigger */
	PG_TRY();
	{
		args->ttl = *DatumGetIntervalP(DirectFunctionCall3(
			interval_in, CStringGetDatum(value), ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
		(void) ttl_after(GetCurrentTimestamp(), &args->ttl, "ttl", NULL);
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

/*
 * The transition table has what was inserted.  The row trigger compares an updated row's
 * key with its old one; of two transition tables nobody knows which rows belong together.
 */
static void
check_statement_trigger(TriggerData *trigdata, const OnceArguments *args)
{
	if (args->skip)
		error_fired(trigdata, "for each row, as its mode is 'skip'");
	if (!TRIGGER_FIRED_AFTER(trigdata->tg_event) || !TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		error_fired_for_statement(trigdata, "AFTER INSERT, as it is fired for each statement");
	if (trigdata->tg_newtable == NULL)
		error_fired_for_statement(trigdata, "with a transition table of the new rows");
}

static void
get_mode(TriggerData *trigdata, OnceArguments *args)
{
	const char *value = get_argument(trigdata, ARG_MODE);

	args->skip = value != NULL && strcmp(value, "skip") == 0;
	if (value != NULL && !args->skip && strcmp(value, "raise") != 0)
		error_argument(trigdata, "mode", value, "It is neither 'raise' nor 'skip'.");

	if (!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
	{
		check_statement_trigger(trigdata, args);
		return;
	}
	if (args->skip && !TRIGGER_FIRED_BEFORE(trigdata->tg_event))
		error_fired(trigdata, "BEFORE, as its mode is 'skip'");
	if (!args->skip && !TRIGGER_FIRED_AFTER(trigdata->tg_event))
		error_fired(trigdata, "AFTER, as its mode is 'raise'");
}

/* A generated column has no value before the row is stored; a virtual one never. */
static bool
has_value(Form_pg_attribute att, bool before)
{
	return att->attgenerated == '\0' ||
		(att->attgenerated == ATTRIBUTE_GENERATED_STORED && !before);
}

Oid
once_table(const OnceArguments *args)
{
	return OidIsValid(args->root) ? args->root : args->relid;
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
		error_no_column(trigdata, missing);

	for (int i = 0; i < list->key.ncolumns; i++)
	{
		Form_pg_attribute att =
			TupleDescAttr(RelationGetDescr(rel), list->key.columns[i].number - 1);

		if (!has_value(att, before))
			error_generated_column(trigdata, NameStr(att->attname));

		/*
		 * The transition table has the row as it was before it was sent to a partition, and the
		 * value is computed there if the partition's columns are in another order.
		 */
		if (att->attgenerated != '\0' && TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event) &&
			rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
			error_generated_partitioned(trigdata, NameStr(att->attname));
	}
}

static void
get_lists(TriggerData *trigdata, OnceArguments *args)
{
	const char *columns = get_argument(trigdata, ARG_COLUMNS);
	const char *scope = get_argument(trigdata, ARG_SCOPE);
	const char *wrong;
	const char *why;

	if (!parse_lists(columns == NULL ? "" : columns, scope, once_table(args), &args->lists,
					 &args->nlists, &wrong, &why))
		error_argument(trigdata, wrong,
					   strcmp(wrong, "list of scopes") == 0 ? scope
						   : columns == NULL				? ""
															: columns,
					   why);
	for (int i = 0; i < args->nlists; i++)
		get_columns(trigdata, &args->lists[i], args->skip);
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
check_other_trigger(TriggerData *trigdata, OnceArguments *args, TriggerData *other)
{
	const char *wrong;
	const char *why;
	KeyList *lists;
	int nlists;

	if (!parse_lists(other->tg_trigger->tgargs[ARG_COLUMNS], get_argument(other, ARG_SCOPE),
					 once_table(args), &lists, &nlists, &wrong, &why))
		return;
	for (int i = 0; i < nlists; i++)
		for (int j = 0; j < args->nlists; j++)
			if (!same_columns(&lists[i], &args->lists[j]) &&
				key_same_text(lists[i].scope, args->lists[j].scope))
				error_same_scope(trigdata, other);
}

/*
 * Two triggers with the same scope but different columns would take each other's keys for their
 * own.  With the same columns their keys are the same, so such triggers may share the events.
 */
static void
check_other_triggers(TriggerData *trigdata, OnceArguments *args)
{
	TriggerDesc *triggers = trigdata->tg_relation->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		TriggerData other = *trigdata;

		other.tg_trigger = &triggers->triggers[i];
		if (other.tg_trigger->tgfoid == trigdata->tg_trigger->tgfoid &&
			other.tg_trigger->tgnargs > 0)
			check_other_trigger(trigdata, args, &other);
	}
}

static void
check_table(TriggerData *trigdata)
{
	Form_pg_class class = trigdata->tg_relation->rd_rel;

	if (class->relpersistence == RELPERSISTENCE_TEMP)
		error_table(trigdata, "temporary table");
	if (class->relkind == RELKIND_FOREIGN_TABLE)
		error_table(trigdata, "foreign table");
	/* rows of one table are on many nodes, and a scope of the trigger is no tenant */
	if (store_is_distributed())
		error_distributed(trigdata, "The keys are distributed by tenant.");
	if (citus_is_shard(trigdata->tg_relation))
		error_distributed(trigdata, "The table is a shard, which can move away from its keys.");
}

void
once_get_arguments(TriggerData *trigdata, OnceArguments *args)
{
	if (trigdata->tg_trigger->tgnargs > MAX_ARGS)
		error_argument(trigdata, "argument", trigdata->tg_trigger->tgargs[MAX_ARGS],
					   psprintf("There are %d arguments at most.", MAX_ARGS));
	get_mode(trigdata, args);
	check_table(trigdata);
	get_ttl(trigdata, args);
	get_lists(trigdata, args);
	check_other_triggers(trigdata, args);
}

void
once_check_key(const OnceArguments *args, const KeyList *list, const text *key)
{
	/* a key of several columns is never empty */
	if (VARSIZE_ANY_EXHDR(key) == 0)
		error_empty_column((char *) linitial(list->columns), get_rel_name(args->relid));
}
