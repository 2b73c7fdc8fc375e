/*-------------------------------------------------------------------------
 *
 * random.c
 *	  Random bytes, and comparison in constant time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/errors.h"
#include "base/random.h"

void
random_bytes(void *out, size_t len)
{
	if (!pg_strong_random(out, len))
		error_random();
}

bool
bytes_equal(const void *a, const void *b, size_t len)
{
	const volatile uint8 *x = a;
	const volatile uint8 *y = b;
	uint8 difference = 0;

	while (len-- > 0)
		difference |= *x++ ^ *y++;
	return difference == 0;
}
