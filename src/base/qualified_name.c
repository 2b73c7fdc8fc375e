/*-------------------------------------------------------------------------
 *
 * qualified_name.c
 *	  Qualified names that are the same in every session and server version.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/qualified_name.h"

static bool
is_plain(const char *name)
{
	if (name[0] >= '0' && name[0] <= '9')
		return false;
	for (const char *c = name; *c != '\0'; c++)
		if (!((*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') || *c == '_'))
			return false;
	return true;
}

void
name_append_identifier(StringInfo s, const char *name)
{
	if (is_plain(name))
	{
		appendStringInfoString(s, name);
		return;
	}
	appendStringInfoChar(s, '"');
	for (const char *c = name; *c != '\0'; c++)
	{
		if (*c == '"')
			appendStringInfoChar(s, '"');
		appendStringInfoChar(s, *c);
	}
	appendStringInfoChar(s, '"');
}

void
name_append(StringInfo s, const char *schema, const char *name)
{
	name_append_identifier(s, schema);
	appendStringInfoChar(s, '.');
	name_append_identifier(s, name);
}

void
name_append_type(StringInfo s, Oid type)
{
	HeapTuple tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	Form_pg_type form;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", type);
	form = (Form_pg_type) GETSTRUCT(tuple);
	name_append(s, get_namespace_name(form->typnamespace), NameStr(form->typname));
	ReleaseSysCache(tuple);
}
