/*-------------------------------------------------------------------------
 *
 * http_headers.c
 *	  The header fields of an HTTP answer that is stored.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "utils/json.h"

#include "base/errors.h"
#include "base/json_text.h"
#include "claim/http_headers.h"

#define CONNECTION "Connection"

/*
 * What is not replayed:
 *
 *		hop-by-hop		fields of the connection, not of the answer; those that Connection
 *						names as well
 *		Content-Length	the body comes back as text, which the front end may send in another
 *						encoding or compressed: only it knows the length
 *		Date			when the first answer was made, not this one
 *		Set-Cookie		the session of whoever sent the first request
 */
static const char *const dropped_names[] = {
	CONNECTION,
	"Keep-Alive",
	"Proxy-Authenticate",
	"Proxy-Authorization",
	"Proxy-Connection",
	"TE",
	"Trailer",
	"Transfer-Encoding",
	"Upgrade",
	"Content-Length",
	"Date",
	"Set-Cookie",
};

static bool
is_object(JsonbIterator **it, JsonbContainer *headers)
{
	JsonbValue v;

	*it = JsonbIteratorInit(headers);
	return JsonbIteratorNext(it, &v, true) == WJB_BEGIN_OBJECT;
}

/* The next field, its name and value palloc'd; *value is NULL if it is no string. */
static bool
next_field(JsonbIterator **it, char **name, char **value)
{
	JsonbValue v;

	if (JsonbIteratorNext(it, &v, true) != WJB_KEY)
		return false;
	*name = pnstrdup(v.val.string.val, v.val.string.len);
	(void) JsonbIteratorNext(it, &v, true);
	*value = v.type == jbvString ? pnstrdup(v.val.string.val, v.val.string.len) : NULL;
	return true;
}

static bool
are_strings(JsonbContainer *headers)
{
	JsonbIterator *it;
	char *name, *value;

	if (!is_object(&it, headers))
		return false;
	while (next_field(&it, &name, &value))
		if (value == NULL)
			return false;
	return true;
}

/* A token of RFC 9110. */
static bool
is_token(const char *s)
{
	return *s != '\0' &&
		strspn(s,
			   "!#$%&'*+-.^_`|~0123456789"
			   "abcdefghijklmnopqrstuvwxyz"
			   "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == strlen(s);
}

/* A line break in a value would let it add fields, or a whole answer, of its own. */
static bool
has_break(const char *value)
{
	return strpbrk(value, "\r\n") != NULL;
}

/*
 * Is there a field, all of them strings, that no header can have?  Sets *name to the first, and
 * *bad_name to whether that is its fault or its value's.
 */
static bool
has_wrong_field(JsonbContainer *headers, char **name, bool *bad_name)
{
	JsonbIterator *it;
	char *value;

	(void) is_object(&it, headers);
	while (next_field(&it, name, &value))
	{
		*bad_name = !is_token(*name);
		if (*bad_name || has_break(value))
			return true;
	}
	return false;
}

/* The names in the value of Connection, separated by commas and blanks. */
static List *
add_named(List *names, char *value)
{
	char *rest;

	for (char *name = strtok_r(value, ", \t", &rest); name != NULL;
		 name = strtok_r(NULL, ", \t", &rest))
		names = lappend(names, name);
	return names;
}

static bool
is_dropped(const char *name, const List *named)
{
	ListCell *lc;

	for (int i = 0; i < lengthof(dropped_names); i++)
		if (pg_strcasecmp(name, dropped_names[i]) == 0)
			return true;
	foreach(lc, named)
		if (pg_strcasecmp(name, lfirst(lc)) == 0)
			return true;
	return false;
}

static char *
kept_fields(JsonbContainer *headers)
{
	JsonbIterator *it;
	char *name, *value;
	List *named = NIL;
	StringInfoData out;

	(void) is_object(&it, headers);
	while (next_field(&it, &name, &value))
		if (pg_strcasecmp(name, CONNECTION) == 0)
			named = add_named(named, value);

	initStringInfo(&out);
	(void) is_object(&it, headers);
	while (next_field(&it, &name, &value))
	{
		if (is_dropped(name, named))
			continue;
		appendStringInfoString(&out, out.len == 0 ? "{" : ", ");
		escape_json(&out, name);
		appendStringInfoString(&out, ": ");
		escape_json(&out, value);
	}
	appendStringInfoString(&out, out.len == 0 ? "{}" : "}");
	return out.data;
}

char *
http_headers_kept(text *headers)
{
	Jsonb *jb = json_text_parse(headers);
	char *name;
	bool bad_name;

	if (jb == NULL || !are_strings(&jb->root))
		error_http_headers();
	if (has_wrong_field(&jb->root, &name, &bad_name))
	{
		if (bad_name)
			error_http_field_name(name);
		error_http_field_value(name);
	}
	return kept_fields(&jb->root);
}

char *
http_headers_of_row(JsonbContainer *headers)
{
	char *name;
	bool bad_name;

	if (!are_strings(headers) || has_wrong_field(headers, &name, &bad_name))
		return NULL;
	return kept_fields(headers);
}
