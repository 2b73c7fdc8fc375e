/*-------------------------------------------------------------------------
 *
 * key.h
 *	  (scope, key) as the client gives it, checked, with its digest.
 *
 * The digest is the identity of a key everywhere below: primary key of
 * idem_keys and source of the lock tag.  It is
 *
 *		first 16 bytes of SHA-256(len(scope) || scope || len(key) || key)
 *
 * over UTF-8, len() being 4 bytes, big-endian.  The framing keeps ('a', 'bc')
 * and ('ab', 'c') apart; UTF-8 keeps a key the same through a dump that is
 * restored into another encoding.
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
	text *scope; /* never NULL; empty where none was given */
} IdemKey;

/*
 * Check and digest.  key NULL (22004), empty or over-long (22023); scope NULL
 * means ''.  scope_required: idempotency.require_scope applies (22023).
 * The result points at its arguments, which must be plain (detoasted) text.
 */
extern void key_make(IdemKey *out, text *key, text *scope, bool scope_required);

/*
 * 22023, naming "what" and the key, if idempotency.require_scope is on and the
 * scope is NULL or empty.
 */
extern void key_require_scope(const char *what, text *key, text *scope);

/*
 * A text that follows the rules of a key, or of a scope with min 0 (22023, naming
 * "what"), in UTF-8; not NUL-terminated where no conversion was needed.
 */
extern const char *key_utf8(const char *what, text *t, int min, int *len);

/* Byte for byte. */
extern bool key_same_text(const text *a, const text *b);

/* Order by digest, for qsort and for the lock order of batches. */
extern int key_cmp(const IdemKey *a, const IdemKey *b);

/* A copy in the current memory context. */
extern void key_copy(IdemKey *out, const IdemKey *in);

/* Cut at KEY_MESSAGE_CHARS characters, palloc'd, for messages. */
extern char *key_text_display(text *t);

/* The key, cut at KEY_MESSAGE_CHARS characters, palloc'd, for messages. */
extern char *key_display(const IdemKey *key);

#endif /* IDEM_KEY_H */
