/*-------------------------------------------------------------------------
 *
 * sha256.h
 *	  SHA-256 over length-prefixed data, with the server's crypto library.
 *
 * There is one hash at a time: do not start another between start and finish.  A hash that
 * an error interrupts needs no clean-up.  XX000 if the crypto library fails.
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

/* hash the length (4 bytes, big-endian), then the data */
extern void sha256_framed(Sha256 *sha, const void *data, uint32 len);
extern void sha256_finish(Sha256 *sha, uint8 hash[PG_SHA256_DIGEST_LENGTH]);

#endif /* IDEM_SHA256_H */
