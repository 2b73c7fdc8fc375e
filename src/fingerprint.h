/*-------------------------------------------------------------------------
 *
 * fingerprint.h
 *	  SHA-256 over a canonical UTF-8 form of a jsonb.
 *
 * Two values that are equal as jsonb have the same fingerprint: key order,
 * white space and trailing zeros (10 = 10.0) do not count.  It does not
 * depend on the database's encoding, so a dump may change that.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_FINGERPRINT_H
#define IDEM_FINGERPRINT_H

#include "utils/jsonb.h"

#define FINGERPRINT_BYTES 32

extern void fingerprint_jsonb(Jsonb *jb, uint8 out[FINGERPRINT_BYTES]);

#endif /* IDEM_FINGERPRINT_H */
