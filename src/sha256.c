/*-------------------------------------------------------------------------
 *
 * sha256.c
 *	  SHA-256 over length-framed pieces, through the server's own crypto.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "sha256.h"

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
sha256_framed(Sha256 *sha, const void *data, uint32 len)
{
	uint32 frame = pg_hton32(len);

	sha256_bytes(sha, &frame, sizeof(frame));
	sha256_bytes(sha, data, len);
}

void
sha256_finish(Sha256 *sha, uint8 hash[PG_SHA256_DIGEST_LENGTH])
{
	check(sha, pg_cryptohash_final(sha, hash, PG_SHA256_DIGEST_LENGTH));
	pg_cryptohash_free(sha);
}
