/*-------------------------------------------------------------------------
 *
 * key.h
 *	  A (scope, key) pair from the client: checks and digest.
 *
 * The digest identifies a key everywhere below: it is the primary key of idem_keys and the
 * source of the lock tag.  It is
 *
 *		first 16 bytes of SHA-256(len(scope) || scope || len(key) || key)
 *
 * over UTF-8, where len() is 4 bytes, big-endian.  The lengths keep ('a', 'bc') and
 * ('ab', 'c') apart.  UTF-8 keeps the digest the same after a dump and restore into another
 * encoding.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_H
#define IDEM_KEY_H

#include "utils/uuid.h"

/* longest key and longest scope, in bytes of UTF-8 */
#define KEY_MAX_BYTES 1024

/* characters of a key that a message shows */
#define KEY_MESSAGE_CHARS 64

typedef struct IdemKey
{
	pg_uuid_t digest;
	text *key;	 /* in the server's encoding */
	text *scope; /* never NULL; empty if none was given */
} IdemKey;

/*
 * The scope of a call: the given one, else idempotency.default_scope.  Never NULL; not
 * checked.
 */
extern text *key_scope(text *given);

/*
 * Check a key and compute its digest.  22004 if the key is NULL; 22023 if it is empty or
 * too long.  scope NULL means idempotency.default_scope.  scope_required:
 * idempotency.require_scope applies (22023).  The result points to the arguments, which must
 * be detoasted.
 */
extern void key_make(IdemKey *out, text *key, text *scope, bool scope_required);

/*
 * 22023, naming "what" and the key, if idempotency.require_scope is on and the scope is
 * empty.
 */
extern void key_require_scope(const char *what, text *key, text *scope);

/*
 * The text in UTF-8.  22023, naming "what", if it is too long for a key or shorter than
 * "min" (0 for a scope).  Not NUL-terminated if no conversion was needed.
 */
extern const char *key_utf8(const char *what, text *t, int min, int *len);

/*
 * Can the text be converted to UTF-8?  In a SQL_ASCII database it may be anything, and other
 * encodings have bytes that are no character, such as 0x81 in WIN1252.
 */
extern bool key_is_utf8(text *t);

/* The size of the text in UTF-8, which need not be a valid key. */
extern int key_utf8_bytes(text *t);

/* Are the texts equal, byte for byte? */
extern bool key_same_text(const text *a, const text *b);

/* Compare by digest, for qsort() and for the order in which batches claim keys. */
extern int key_cmp(const IdemKey *a, const IdemKey *b);

/* Copy into "space", aligned for int32, of that size. */
extern Size key_copy_size(const IdemKey *key);
extern void key_copy(IdemKey *out, const IdemKey *in, void *space);

/* The text truncated to KEY_MESSAGE_CHARS characters, palloc'd, for messages. */
extern char *key_text_display(text *t);

/* The key truncated to KEY_MESSAGE_CHARS characters, palloc'd, for messages. */
extern char *key_display(const IdemKey *key);

#endif /* IDEM_KEY_H */
