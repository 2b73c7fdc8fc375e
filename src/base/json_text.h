/*-------------------------------------------------------------------------
 *
 * json_text.h
 *	  Text that may be JSON -> jsonb, without an error if it is not.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_JSON_TEXT_H
#define IDEM_JSON_TEXT_H

#include "utils/jsonb.h"

/*
 * The text as jsonb.  NULL if it is not JSON, if jsonb cannot hold it (the escape \u0000, half
 * a surrogate pair), or if it is beyond the limits in json_text.c.  The answer depends on the
 * text and the encoding of the database alone, not on settings or the server's version, so a
 * fingerprint can depend on it.
 */
extern Jsonb *json_text_parse(text *t);

#endif /* IDEM_JSON_TEXT_H */
