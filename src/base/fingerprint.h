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

/*
 * Of the call of a function with these arguments, NULL being the same as {}.
 * No jsonb has the same fingerprint.
 */
extern void fingerprint_call(const char *function, Jsonb *args, uint8 out[FINGERPRINT_BYTES]);

#endif /* IDEM_FINGERPRINT_H */
