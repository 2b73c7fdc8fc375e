/*-------------------------------------------------------------------------
 *
 * fingerprint.h
 *	  SHA-256 over a canonical UTF-8 form of a jsonb.
 *
 * Values that are equal as jsonb have the same fingerprint: key order, white space and
 * trailing zeros (10 = 10.0) do not matter.  The fingerprint does not depend on the
 * database's encoding, so it survives a dump and restore into another encoding.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_FINGERPRINT_H
#define IDEM_FINGERPRINT_H

#include "utils/jsonb.h"

#define FINGERPRINT_BYTES 32

/* In a row whose request nobody knows: it matches every request.  No request has it. */
extern const uint8 fingerprint_any[FINGERPRINT_BYTES];

extern void fingerprint_jsonb(Jsonb *jb, uint8 out[FINGERPRINT_BYTES]);

/*
 * The fingerprint of the text as jsonb if json_text_parse() takes it, else of its bytes.  The
 * latter is never equal to the fingerprint of a jsonb.
 */
extern void fingerprint_text(text *t, uint8 out[FINGERPRINT_BYTES]);

/*
 * The fingerprint of a call of the function with these arguments; NULL is the same as {}.
 * Never equal to the fingerprint of a jsonb.
 */
extern void fingerprint_call(const char *function, Jsonb *args, uint8 out[FINGERPRINT_BYTES]);

#endif /* IDEM_FINGERPRINT_H */
