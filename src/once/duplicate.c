/*-------------------------------------------------------------------------
 *
 * duplicate.c
 *	  The error for a row whose key is taken, as far as the user may see it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"

#include "base/compat.h"
#include "once/duplicate.h"
#include "once/errors.h"

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
may_see_key(OnceArguments *args, const KeyList *list)
{
	Oid table = once_table(args);
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

void
refuse_duplicate(TriggerData *trigdata, OnceArguments *args, KeyList *list, HeapTuple row)
{
	bool shown = may_see_key(args, list);
	const char *columns = shown ? column_list(list) : NULL;
	const char *values = shown ? rowkey_display(&list->key, trigdata->tg_relation, row) : NULL;

	error_duplicate(trigdata, columns, values);
}
