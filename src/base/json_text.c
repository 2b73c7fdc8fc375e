/*-------------------------------------------------------------------------
 *
 * json_text.c
 *	  Text that may be JSON -> jsonb, without an error if it is not.
 *
 * jsonb_in() can raise an error for a text that a client chose: for nesting that exceeds
 * max_stack_depth, for numbers out of numeric's range, for sizes that jsonb cannot hold.  No
 * server makes all of these soft, and where they lie depends on its version and settings.  So
 * the text is scanned for limits of our own first, far inside the server's.  What remains is
 * reported without an error by all servers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "base/compat.h"
#include "base/json_text.h"

#define MAX_BYTES (4 * 1024 * 1024) /* takes up to 200 MB while it is parsed */
#define MAX_DEPTH 256
#define MAX_NUMBER_CHARS 1000
#define MAX_EXPONENT_CHARS 4 /* a sign among them */

/* "number" has the characters that a number can have. */
static bool
number_is_ordinary(const char *number, size_t len)
{
	size_t exponent = 0;

	if (len > MAX_NUMBER_CHARS)
		return false;
	while (exponent < len && number[exponent] != 'e' && number[exponent] != 'E')
		exponent++;
	return exponent == len || len - exponent - 1 <= MAX_EXPONENT_CHARS;
}

/* "u" and four digits, of an ASCII character? */
static bool
is_ascii_escape(const char *s)
{
	return s[1] == '0' && s[2] == '0' && s[3] >= '0' && s[3] <= '7';
}

/*
 * The character after the string that begins at s.  NULL if it has an escape that not every
 * server can convert into the database's encoding without an error.
 */
static const char *
skip_string(const char *s)
{
	bool utf8 = GetDatabaseEncoding() == PG_UTF8;

	for (s++; *s != '"' && *s != '\0'; s++)
	{
		if (*s != '\\')
			continue;
		s++;
		if (*s == '\0')
			break;
		if (*s == 'u' && !utf8 && !is_ascii_escape(s))
			return NULL;
	}
	return *s == '"' ? s + 1 : s;
}

static bool
is_within_limits(const char *s)
{
	int depth = 0;

	while (s != NULL && *s != '\0')
	{
		size_t len;

		switch (*s)
		{
			case '"':
				s = skip_string(s);
				break;
			case '[':
			case '{':
				if (++depth > MAX_DEPTH)
					return false;
				s++;
				break;
			case ']':
			case '}':
				depth--;
				s++;
				break;
			default:
				len = strspn(s, "0123456789+-.eE");
				if (len > 0 && !number_is_ordinary(s, len))
					return false;
				s += Max(len, 1);
				break;
		}
	}
	return s != NULL;
}

Jsonb *
json_text_parse(text *t)
{
	char *s;
	Datum jsonb;

	if (VARSIZE_ANY_EXHDR(t) > MAX_BYTES)
		return NULL;
	s = text_to_cstring(t);
	if (!is_within_limits(s) || !idem_jsonb_in(s, &jsonb))
		return NULL;
	return DatumGetJsonbP(jsonb);
}
