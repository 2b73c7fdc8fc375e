/*-------------------------------------------------------------------------
 *
 * sha256.c
 *	  SHA-256 over length-prefixed data, with the server's crypto library.
 *
 * The server's own interface, common/cryptohash.h, sets up OpenSSL anew for every hash: it
 * looks up the algorithm by name and allocates twice.  For a short key that takes ten times
 * as long as the hash itself, a twentieth of a whole request.  Its context belongs to a
 * resource owner, so it cannot be kept.  So if the server is built with OpenSSL, we call
 * OpenSSL directly, as pgcrypto does.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "base/sha256.h"

#ifdef USE_OPENSSL

#include <openssl/err.h>

/* kept until the backend exits; an error during a hash leaves nothing to free */
static Sha256 *kept = NULL;
static const EVP_MD *algorithm = NULL;

static void
check(bool ok)
{
	unsigned long code;

	if (ok)
		return;
	code = ERR_peek_last_error();
	ERR_clear_error();
	elog(ERROR, "could not compute SHA-256: %s",
		 code == 0 ? "out of memory" : ERR_reason_error_string(code));
}

Sha256 *
sha256_start(void)
{
	if (algorithm == NULL)
	{
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
		algorithm = EVP_MD_fetch(NULL, "SHA256", NULL);
#else
		algorithm = EVP_sha256();
#endif
		check(algorithm != NULL);
	}
	if (kept == NULL)
	{
		kept = EVP_MD_CTX_create();
		check(kept != NULL);
	}
	check(EVP_DigestInit_ex(kept, algorithm, NULL) == 1);
	return kept;
}

void
sha256_bytes(Sha256 *sha, const void *data, size_t len)
{
	check(EVP_DigestUpdate(sha, data, len) == 1);
}

void
sha256_finish(Sha256 *sha, uint8 hash[PG_SHA256_DIGEST_LENGTH])
{
	check(EVP_DigestFinal_ex(sha, hash, NULL) == 1);
}

#else

static void
check(Sha256 *sha, int rc)
{
	if (rc < 0)
		elog(ERROR, "could not compute SHA-256: %s", pg_cryptohash_error(sha));
}

Sha256 *
sha256_start(void)
{
	Sha256 *sha = pg_cryptohash_create(PG_SHA256);

	check(sha, pg_cryptohash_init(sha));
	return sha;
}

void
sha256_bytes(Sha256 *sha, const void *data, size_t len)
{
	check(sha, pg_cryptohash_update(sha, data, len));
}

void
sha256_finish(Sha256 *sha, uint8 hash[PG_SHA256_DIGEST_LENGTH])
{
	check(sha, pg_cryptohash_final(sha, hash, PG_SHA256_DIGEST_LENGTH));
	pg_cryptohash_free(sha);
}

#endif /* USE_OPENSSL */

void
sha256_framed(Sha256 *sha, const void *data, uint32 len)
{
	uint32 frame = pg_hton32(len);

	sha256_bytes(sha, &frame, sizeof(frame));
	sha256_bytes(sha, data, len);
}
