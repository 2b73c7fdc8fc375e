/*-------------------------------------------------------------------------
 *
 * sha256.h
 *	  SHA-256 over length-framed pieces, through the crypto library that the
 *	  server uses.
 *
 * One hash at a time: nothing that may start another belongs between start and
 * finish.  A hash that an error ends needs no care.  Raises XX000 where the
 * crypto library fails.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SHA256_H
#define IDEM_SHA256_H

#include "common/sha2.h"

#ifdef USE_OPENSSL
#include <openssl/evp.h>

typedef EVP_MD_CTX Sha256;
#else
#include "common/cryptohash.h"

typedef pg_cryptohash_ctx Sha256;
#endif

extern Sha256 *sha256_start(void);
extern void sha256_bytes(Sha256 *sha, const void *data, size_t len);

/* the length, as 4 bytes, big-endian, then the bytes */
extern void sha256_framed(Sha256 *sha, const void *data, uint32 len);
extern void sha256_finish(Sha256 *sha, uint8 hash[PG_SHA256_DIGEST_LENGTH]);

#endif /* IDEM_SHA256_H */
