/*-------------------------------------------------------------------------
 *
 * http_key.h
 *	  The key in the value of an HTTP header field Idempotency-Key.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_HTTP_KEY_H
#define IDEM_HTTP_KEY_H

typedef enum HttpKeyState
{
	HTTP_KEY_VALID,
	HTTP_KEY_MISSING, /* NULL */
	HTTP_KEY_EMPTY,
	HTTP_KEY_TOO_LONG,
	HTTP_KEY_MALFORMED, /* begins with a double quote and is no structured string */
	HTTP_KEY_NO_TEXT	/* without UTF-8, which a UTF8 database does not let pass */
} HttpKeyState;

/*
 * Set *key from the field's value, NULL if there was none.  Never raises an error for what a
 * client may send.  *key is NULL if the value is missing or malformed.
 */
extern HttpKeyState http_key(text *value, text **key);

#endif /* IDEM_HTTP_KEY_H */
