/*-------------------------------------------------------------------------
 *
 * siphash.h
 *	  SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, 2012).
 *
 * A hash with a secret key.  An attacker who chooses the input cannot produce collisions,
 * as is possible with the server's own hash functions.  It takes a twentieth of the time of
 * SHA-256.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SIPHASH_H
#define IDEM_SIPHASH_H

typedef struct SipHash
{
	uint64 half[2];
} SipHash;

typedef struct SipHashKey
{
	uint64 half[2];
} SipHashKey;

extern SipHash siphash(const SipHashKey *key, const void *data, Size len);

#endif /* IDEM_SIPHASH_H */
