/*-------------------------------------------------------------------------
 *
 * key_array.c
 *	  Keys that come as an array, for functions that write a batch of rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/lsyscache.h"

#include "base/compat.h"
#include "base/errors.h"
#include "claim/key_array.h"

void
key_array_elements(ArrayElements *out, ArrayType *array, const char *what, Oid type)
{
	int16 len;
	bool byval;
	char align;

	if (ARR_NDIM(array) > 1)
		error_array(what, ARR_NDIM(array));
	get_typlenbyvalalign(type, &len, &byval, &align);
	deconstruct_array(array, type, len, byval, align, &out->values, &out->isnull, &out->n);
}

/*
 * Name the bad element of a batch in the error.  The conversion to UTF-8 is needed only if
 * it could make the key too long; key_make() checks every key anyway.
 */
static void
check_element(text *element, int number)
{
	int len = VARSIZE_ANY_EXHDR(element);

	if (len == 0)
		error_empty_element(number);
	if (len > KEY_MAX_BYTES / MAX_CONVERSION_GROWTH)
		(void) key_utf8(psprintf("element %d of the idempotency keys", number), element, 1, &len);
}

void
key_array_key(BatchKey *out, const ArrayElements *keys, int element, text *scope, int position)
{
	text *key;

	if (keys->isnull[element])
		error_null_element(element + 1);
	key = DatumGetTextPP(keys->values[element]);
	check_element(key, element + 1);
	key_make(&out->key, key, scope, true);
	out->position = position;
	out->claimed = false;
	out->row = NULL;
}
