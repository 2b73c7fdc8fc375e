/*-------------------------------------------------------------------------
 *
 * fingerprint.c
 *	  SHA-256 over a canonical UTF-8 form of a jsonb.
 *
 * The form: a byte that names the type, then
 *
 *		n t f	null, true, false: nothing more
 *		#		number: framed text of numeric_normalize()
 *		"		string: framed UTF-8
 *		[		array: count, then the elements
 *		{		object: count, then framed key and value, by key
 *
 * framed meaning a length of 4 bytes, big-endian, then the bytes.  Object
 * keys are ordered by length, then bytes, both in UTF-8.  That is jsonb's
 * own order where the database is UTF-8; elsewhere jsonb orders by the bytes
 * of the database's encoding, so the keys have to be sorted here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/numeric.h"

#include "fingerprint.h"
#include "sha256.h"

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

static void
hash_value(Sha256 *sha, const JsonbValue *v)
{
	switch (v->type)
	{
		case jbvNull:
			sha256_bytes(sha, "n", 1);
			break;
		case jbvBool:
			sha256_bytes(sha, v->val.boolean ? "t" : "f", 1);
			break;
		case jbvNumeric:
		{
			char *text = numeric_normalize(v->val.numeric);

			sha256_bytes(sha, "#", 1);
			sha256_framed(sha, text, strlen(text));
			pfree(text);
			break;
		}
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
	CHECK_FOR_INTERRUPTS();

	if (JsonbIteratorNext(&it, &v, true) == WJB_BEGIN_OBJECT)
	{
		hash_object(sha, &it, v.val.object.nPairs);
		return;
	}

	/* a bare scalar is stored as an array of one with a mark */
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
