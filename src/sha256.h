/*-------------------------------------------------------------------------
 *
 * sha256.h
 *	  SHA-256 over length-framed pieces, through the server's own crypto.
 *
 * Raises XX000 where the crypto library fails.  Freed with the current
 * memory context or resource owner if an error comes in between.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SHA256_H
#define IDEM_SHA256_H

#include "common/cryptohash.h"
#include "common/sha2.h"

typedef pg_cryptohash_ctx Sha256;

extern Sha256 *sha256_start(void);
extern void sha256_bytes(Sha256 *sha, const void *data, size_t len);

/* the length, as 4 bytes, big-endian, then the bytes */
extern void sha256_framed(Sha256 *sha, const void *data, uint32 len);
extern void sha256_finish(Sha256 *sha, uint8 hash[PG_SHA256_DIGEST_LENGTH]);

#endif /* IDEM_SHA256_H */
