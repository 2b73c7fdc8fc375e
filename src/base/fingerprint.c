/*-------------------------------------------------------------------------
 *
 * fingerprint.c
 *	  SHA-256 over a canonical UTF-8 form of a jsonb.
 *
 * The form is a byte for the type, then
 *
 *		n t f	null, true, false: nothing more
 *		#		number: framed weight and sign, 2 bytes each, big-endian, and
 *				base-10000 digits, as numeric_send() returns them
 *		"		string: framed UTF-8
 *		[		array: count, then the elements
 *		{		object: count, then framed key and value, in order of the keys
 *
 * The call of a function is "(", the framed function, then its arguments.  Text that is not
 * JSON is "=", then the framed text.
 *
 * "Framed" means preceded by its length in 4 bytes, big-endian.  Object keys are ordered by
 * length, then by bytes, both in UTF-8.  That is jsonb's own order if the database encoding
 * is UTF-8.  Otherwise jsonb orders by the bytes of the database encoding, so the keys must
 * be sorted here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "base/compat.h"
#include "base/fingerprint.h"
#include "base/json_text.h"
#include "base/key.h"
#include "base/sha256.h"

const uint8 fingerprint_any[FINGERPRINT_BYTES] = {0};

typedef struct Pair
{
	const char *key; /* UTF-8 */
	int key_len;
	JsonbValue value;
} Pair;

static void hash_container(Sha256 *sha, JsonbContainer *container);

static void
hash_count(Sha256 *sha, char type, uint32 count)
{
	uint32 n = pg_hton32(count);

	sha256_bytes(sha, &type, 1);
	sha256_bytes(sha, &n, sizeof(n));
}

static const char *
string_utf8(const JsonbValue *v, int *len)
{
	char *raw = v->val.string.val;
	char *utf8 = pg_server_to_any(raw, v->val.string.len, PG_UTF8);

	*len = utf8 == raw ? v->val.string.len : (int) strlen(utf8);
	return utf8;
}

/*
 * numeric_send() returns the number of digits, weight, sign, display scale and digits.
 * Equal numbers differ only in the display scale, because numeric stores no zeros at either
 * end.  The text form would work too, but 1e131071 is a few bytes in a request and 128 kB
 * as text.
 */
static void
hash_number(Sha256 *sha, Numeric num)
{
	bytea *b = DatumGetByteaP(DirectFunctionCall1(numeric_send, NumericGetDatum(num)));
	char *send = VARDATA(b);

	memmove(send, send + 2, 4);
	memmove(send + 4, send + 8, VARSIZE(b) - VARHDRSZ - 8);
	sha256_bytes(sha, "#", 1);
	sha256_framed(sha, send, VARSIZE(b) - VARHDRSZ - 4);
	pfree(b);
}

static void
hash_value(Sha256 *sha, const JsonbValue *v)
{
	CHECK_FOR_INTERRUPTS();

	switch (v->type)
	{
		case jbvNull:
			sha256_bytes(sha, "n", 1);
			break;
		case jbvBool:
			sha256_bytes(sha, v->val.boolean ? "t" : "f", 1);
			break;
		case jbvNumeric:
			hash_number(sha, v->val.numeric);
			break;
		case jbvString:
		{
			int len;
			const char *utf8 = string_utf8(v, &len);

			sha256_bytes(sha, "\"", 1);
			sha256_framed(sha, utf8, len);
			break;
		}
		case jbvBinary:
			hash_container(sha, v->val.binary.data);
			break;
		default:
			elog(ERROR, "unexpected jsonb value type %d", (int) v->type);
	}
}

static int
pair_cmp(const void *a, const void *b)
{
	const Pair *x = a;
	const Pair *y = b;

	if (x->key_len != y->key_len)
		return x->key_len < y->key_len ? -1 : 1;
	return memcmp(x->key, y->key, x->key_len);
}

static void
hash_object(Sha256 *sha, JsonbIterator **it, int count)
{
	Pair *pairs = palloc_array(Pair, Max(count, 1));
	JsonbValue v;
	int n = 0;

	while (JsonbIteratorNext(it, &v, true) == WJB_KEY)
	{
		pairs[n].key = string_utf8(&v, &pairs[n].key_len);
		(void) JsonbIteratorNext(it, &pairs[n].value, true);
		n++;
	}
	Assert(n == count);
	if (GetDatabaseEncoding() != PG_UTF8)
		qsort(pairs, n, sizeof(Pair), pair_cmp);

	hash_count(sha, '{', count);
	for (int i = 0; i < n; i++)
	{
		sha256_framed(sha, pairs[i].key, pairs[i].key_len);
		hash_value(sha, &pairs[i].value);
	}
	pfree(pairs);
}

static void
hash_container(Sha256 *sha, JsonbContainer *container)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbValue v;

	check_stack_depth();

	if (JsonbIteratorNext(&it, &v, true) == WJB_BEGIN_OBJECT)
	{
		hash_object(sha, &it, v.val.object.nPairs);
		return;
	}

	/* a bare scalar is stored as an array of one element, with a flag */
	if (!v.val.array.rawScalar)
		hash_count(sha, '[', v.val.array.nElems);
	while (JsonbIteratorNext(&it, &v, true) == WJB_ELEM)
		hash_value(sha, &v);
}

void
fingerprint_jsonb(Jsonb *jb, uint8 out[FINGERPRINT_BYTES])
{
	Sha256 *sha = sha256_start();

	hash_container(sha, &jb->root);
	sha256_finish(sha, out);
}

static void
fingerprint_bytes(text *t, bool is_utf8, uint8 out[FINGERPRINT_BYTES])
{
	Sha256 *sha = sha256_start();
	char *raw = VARDATA_ANY(t);
	int len = VARSIZE_ANY_EXHDR(t);
	char *utf8 = is_utf8 ? pg_server_to_any(raw, len, PG_UTF8) : raw;

	sha256_bytes(sha, "=", 1);
	sha256_framed(sha, utf8, utf8 == raw ? len : (int) strlen(utf8));
	sha256_finish(sha, out);
}

void
fingerprint_text(text *t, uint8 out[FINGERPRINT_BYTES])
{
	bool is_utf8 = key_is_utf8(t);
	Jsonb *jb = is_utf8 ? json_text_parse(t) : NULL;

	if (jb != NULL)
		fingerprint_jsonb(jb, out);
	else
		fingerprint_bytes(t, is_utf8, out);
}

void
fingerprint_call(const char *function, Jsonb *args, uint8 out[FINGERPRINT_BYTES])
{
	Sha256 *sha = sha256_start();
	const char *utf8 = pg_server_to_any(function, strlen(function), PG_UTF8);

	sha256_bytes(sha, "(", 1);
	sha256_framed(sha, utf8, strlen(utf8));
	if (args != NULL)
		hash_container(sha, &args->root);
	else
		hash_count(sha, '{', 0);
	sha256_finish(sha, out);
}
