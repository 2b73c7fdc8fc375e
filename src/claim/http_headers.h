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

/*
 * The fields that are to be stored, as a JSON object.  22023 unless the text is a JSON object
 * of strings, with the names and values that a header field can have.
 */
extern char *http_headers_kept(text *headers);

/*
 * The same of a row, which another function than idem_http_finish may have finished.  NULL
 * unless they are a JSON object of strings, with such names and values.
 */
extern char *http_headers_of_row(JsonbContainer *headers);

#endif /* IDEM_HTTP_HEADERS_H */
