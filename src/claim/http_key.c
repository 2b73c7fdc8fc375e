/*-------------------------------------------------------------------------
 *
 * http_key.c
 *	  The key in the value of an HTTP header field Idempotency-Key.
 *
 * The IETF draft (draft-ietf-httpapi-idempotency-key-header) makes the value a structured
 * string of RFC 8941: printable ASCII in double quotes, with \" and \\ for those two.  Most
 * clients send the bare key.  Both are accepted, and are the same key.
 *
 * Blanks and tabs around the value do not belong to it (RFC 9110, 5.5), and front ends differ in
 * whether they remove them.  So they are removed here; blanks inside the quotes stay.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "base/compat.h"
#include "base/key.h"
#include "claim/http_key.h"

static bool
is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* The text of the structured string from s, a quote, to end; NULL if it is malformed. */
static text *
unquote(const char *s, const char *end)
{
	char *out = palloc(end - s);
	int len = 0;

	for (s++; s < end && *s != '"'; s++)
	{
		if (*s < ' ' || *s > '~')
			return NULL;
		if (*s == '\\' && (++s == end || (*s != '"' && *s != '\\')))
			return NULL;
		out[len++] = *s;
	}
	/* nothing may follow the closing quote, parameters neither: no client has a use for them */
	return s + 1 == end ? cstring_to_text_with_len(out, len) : NULL;
}

HttpKeyState
http_key(text *value, text **key)
{
	const char *s, *end;
	int len;

	*key = NULL;
	if (value == NULL)
		return HTTP_KEY_MISSING;

	s = VARDATA_ANY(value);
	end = s + VARSIZE_ANY_EXHDR(value);
	while (s < end && is_blank(*s))
		s++;
	while (s < end && is_blank(end[-1]))
		end--;

	*key = s < end && *s == '"' ? unquote(s, end) : cstring_to_text_with_len(s, end - s);
	if (*key == NULL)
		return HTTP_KEY_MALFORMED;
	if (!key_is_utf8(*key))
		return HTTP_KEY_NO_TEXT;
	len = key_utf8_bytes(*key);
	if (len == 0)
		return HTTP_KEY_EMPTY;
	return len > KEY_MAX_BYTES ? HTTP_KEY_TOO_LONG : HTTP_KEY_VALID;
}
