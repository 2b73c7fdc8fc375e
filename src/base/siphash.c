/*-------------------------------------------------------------------------
 *
 * siphash.c
 *	  SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, 2012).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "base/siphash.h"

typedef struct SipState
{
	uint64 v0, v1, v2, v3;
} SipState;

static inline uint64
rotate_left(uint64 word, int n)
{
	return (word << n) | (word >> (64 - n));
}

/* eight bytes, little-endian as in the paper */
static inline uint64
load_word(const uint8 *bytes)
{
	uint64 word;

	memcpy(&word, bytes, sizeof(word));
#ifdef WORDS_BIGENDIAN
	word = pg_bswap64(word);
#endif
	return word;
}

static inline void
rounds(SipState *s, int n)
{
	while (n-- > 0)
	{
		s->v0 += s->v1;
		s->v1 = rotate_left(s->v1, 13) ^ s->v0;
		s->v0 = rotate_left(s->v0, 32);
		s->v2 += s->v3;
		s->v3 = rotate_left(s->v3, 16) ^ s->v2;
		s->v0 += s->v3;
		s->v3 = rotate_left(s->v3, 21) ^ s->v0;
		s->v2 += s->v1;
		s->v1 = rotate_left(s->v1, 17) ^ s->v2;
		s->v2 = rotate_left(s->v2, 32);
	}
}

static inline void
compress(SipState *s, uint64 word)
{
	s->v3 ^= word;
	rounds(s, 2);
	s->v0 ^= word;
}

static inline uint64
output(SipState *s)
{
	rounds(s, 4);
	return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

SipHash
siphash(const SipHashKey *key, const void *data, Size len)
{
	/* "somepseudorandomlygeneratedbytes"; 0xee and 0xdd make the 128-bit variant */
	SipState s = {.v0 = key->half[0] ^ UINT64CONST(0x736f6d6570736575),
				  .v1 = key->half[1] ^ UINT64CONST(0x646f72616e646f6d) ^ 0xee,
				  .v2 = key->half[0] ^ UINT64CONST(0x6c7967656e657261),
				  .v3 = key->half[1] ^ UINT64CONST(0x7465646279746573)};
	const uint8 *bytes = data;
	uint8 last[8] = {0};
	SipHash hash;

	for (Size left = len; left >= 8; left -= 8, bytes += 8)
		compress(&s, load_word(bytes));
	memcpy(last, bytes, len % 8);
	last[7] = (uint8) len;
	compress(&s, load_word(last));

	s.v2 ^= 0xee;
	hash.half[0] = output(&s);
	s.v1 ^= 0xdd;
	hash.half[1] = output(&s);
	return hash;
}
