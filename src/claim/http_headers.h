/*-------------------------------------------------------------------------
 *
 * http_headers.h
 *	  The header fields of an HTTP answer that is stored.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_HTTP_HEADERS_H
#define IDEM_HTTP_HEADERS_H

#include "utils/jsonb.h"

/* Is it a JSON object of strings? */
extern bool http_headers_are_strings(JsonbContainer *headers);

/*
 * The fields that are to be stored, as a JSON object.  22023 unless the text is a JSON object
 * of strings, with the names and values that a header field can have.
 */
extern char *http_headers_kept(text *headers);

#endif /* IDEM_HTTP_HEADERS_H */
