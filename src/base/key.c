/*-------------------------------------------------------------------------
 *
 * key.c
 *	  A (scope, key) pair from the client: checks and digest.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/guc.h"
#include "base/key.h"
#include "base/sha256.h"

PG_FUNCTION_INFO_V1(idem_digest);

/*
 * The last digest computed, because a transaction uses the same key at begin and at finish.
 * It depends only on its input, so it cannot go stale.
 */
#define MEMO_BYTES 256
static struct
{
	int scope_len;			/* in the server's encoding */
	int key_len;			/* 0: no memo, because no key is empty */
	char bytes[MEMO_BYTES]; /* scope, then key */
	pg_uuid_t digest;
} memo;

char *
key_text_display(text *t)
{
	const char *raw = VARDATA_ANY(t);
	int len = VARSIZE_ANY_EXHDR(t);
	int shown = pg_mbcharcliplen(raw, len, KEY_MESSAGE_CHARS);

	return psprintf("%.*s%s", shown, raw, shown < len ? "..." : "");
}

static void
check_length(const char *what, text *t, int len, int min)
{
	if (len < min)
		error_empty(what);
	if (len > KEY_MAX_BYTES)
		error_too_long(what, t, len, KEY_MAX_BYTES);
}

static const char *
to_utf8(text *t, int *len)
{
	char *raw = VARDATA_ANY(t);
	char *utf8 = raw;

	if (GetDatabaseEncoding() != PG_UTF8)
		utf8 = pg_server_to_any(raw, VARSIZE_ANY_EXHDR(t), PG_UTF8);
	*len = utf8 == raw ? (int) VARSIZE_ANY_EXHDR(t) : (int) strlen(utf8);
	return utf8;
}

const char *
key_utf8(const char *what, text *t, int min, int *len)
{
	const char *utf8 = to_utf8(t, len);

	check_length(what, t, *len, min);
	return utf8;
}

/* Is there UTF-8 for each character?  In pieces: a text can be too large to be converted. */
static bool
can_convert(char *s, int len)
{
	unsigned char buf[4096];
	Oid proc = FindDefaultConversionProc(GetDatabaseEncoding(), PG_UTF8);

	/* without one, whoever converts the text gets the server's error */
	while (OidIsValid(proc) && len > 0)
	{
		int done = pg_do_encoding_conversion_buf(proc, GetDatabaseEncoding(), PG_UTF8,
												 (unsigned char *) s, len, buf, sizeof(buf), true);

		if (done == 0)
			return false;
		s += done;
		len -= done;
	}
	return true;
}

bool
key_is_utf8(text *t)
{
	char *s = VARDATA_ANY(t);
	int len = VARSIZE_ANY_EXHDR(t);

	switch (GetDatabaseEncoding())
	{
		case PG_UTF8:
			return true;
		case PG_SQL_ASCII:
			return pg_verify_mbstr(PG_UTF8, s, len, true);
		default:
			return can_convert(s, len);
	}
}

int
key_utf8_bytes(text *t)
{
	int len;

	(void) to_utf8(t, &len);
	return len;
}

bool
key_same_text(const text *a, const text *b)
{
	return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

static bool
memo_matches(text *key, text *scope)
{
	int key_len = VARSIZE_ANY_EXHDR(key);
	int scope_len = VARSIZE_ANY_EXHDR(scope);

	return key_len > 0 && memo.key_len == key_len && memo.scope_len == scope_len &&
		memcmp(memo.bytes, VARDATA_ANY(scope), scope_len) == 0 &&
		memcmp(memo.bytes + scope_len, VARDATA_ANY(key), key_len) == 0;
}

static void
memo_remember(const IdemKey *k)
{
	int key_len = VARSIZE_ANY_EXHDR(k->key);
	int scope_len = VARSIZE_ANY_EXHDR(k->scope);

	if (key_len + scope_len > MEMO_BYTES)
		return;
	memcpy(memo.bytes, VARDATA_ANY(k->scope), scope_len);
	memcpy(memo.bytes + scope_len, VARDATA_ANY(k->key), key_len);
	memo.scope_len = scope_len;
	memo.key_len = key_len;
	memo.digest = k->digest;
}

/* Most calls have none, so the empty one is not made anew each time.  Nobody writes to it. */
text *
key_scope(text *given)
{
	static varattrib_4b empty;

	if (given != NULL)
		return given;
	if (idem_default_scope[0] != '\0')
		return cstring_to_text(idem_default_scope);
	SET_VARSIZE(&empty, VARHDRSZ);
	return (text *) &empty;
}

void
key_require_scope(const char *what, text *key, text *scope)
{
	if (idem_require_scope && VARSIZE_ANY_EXHDR(scope) == 0)
		error_no_scope(what, key);
}

static uint8 *
add_framed(uint8 *to, const char *bytes, uint32 len)
{
	uint32 frame = pg_hton32(len);

	memcpy(to, &frame, sizeof(frame));
	memcpy(to + sizeof(frame), bytes, len);
	return to + sizeof(frame) + len;
}

/* In one piece: each piece costs a fourth of what hashing a short key does. */
static void
hash_key(IdemKey *out, const char *scope, int scope_len, const char *key, int key_len)
{
	uint8 framed[2 * (sizeof(uint32) + KEY_MAX_BYTES)];
	uint8 *end = add_framed(add_framed(framed, scope, scope_len), key, key_len);
	uint8 hash[PG_SHA256_DIGEST_LENGTH];
	Sha256 *sha = sha256_start();

	sha256_bytes(sha, framed, end - framed);
	sha256_finish(sha, hash);
	memcpy(out->digest.data, hash, UUID_LEN);
}

void
key_make(IdemKey *out, text *key, text *scope, bool scope_required)
{
	if (key == NULL)
		error_null("idempotency key");
	scope = key_scope(scope);
	if (scope_required)
		key_require_scope("idempotency key", key, scope);

	out->key = key;
	out->scope = scope;

	if (memo_matches(key, scope))
		out->digest = memo.digest;
	else
	{
		int scope_len, key_len;
		const char *scope_bytes = key_utf8("idempotency scope", scope, 0, &scope_len);
		const char *key_bytes = key_utf8("idempotency key", key, 1, &key_len);

		hash_key(out, scope_bytes, scope_len, key_bytes, key_len);
		memo_remember(out);
	}
}

int
key_cmp(const IdemKey *a, const IdemKey *b)
{
	return memcmp(a->digest.data, b->digest.data, UUID_LEN);
}

Size
key_copy_size(const IdemKey *key)
{
	return INTALIGN(VARSIZE_ANY(key->key)) + VARSIZE_ANY(key->scope);
}

void
key_copy(IdemKey *out, const IdemKey *in, void *space)
{
	out->digest = in->digest;
	out->key = space;
	out->scope = (text *) ((char *) space + INTALIGN(VARSIZE_ANY(in->key)));
	memcpy(out->key, in->key, VARSIZE_ANY(in->key));
	memcpy(out->scope, in->scope, VARSIZE_ANY(in->scope));
}

char *
key_display(const IdemKey *key)
{
	return key_text_display(key->key);
}

/*
 * idem_digest(key text, scope text DEFAULT NULL) RETURNS uuid
 *
 * It is IMMUTABLE, so no setting may change the result: without a scope it is ''.
 */
Datum
idem_digest(PG_FUNCTION_ARGS)
{
	IdemKey k;
	pg_uuid_t *result = palloc(sizeof(pg_uuid_t));

	key_make(&k, PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0),
			 PG_ARGISNULL(1) ? cstring_to_text("") : PG_GETARG_TEXT_PP(1), false);
	*result = k.digest;
	PG_RETURN_UUID_P(result);
}
