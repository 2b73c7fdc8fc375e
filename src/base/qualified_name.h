/*-------------------------------------------------------------------------
 *
 * qualified_name.h
 *	  Qualified names, the same in every session and server version.
 *
 * The server's own quoting follows "quote_all_identifiers" and the list of
 * keywords, which grows; what is stored or hashed must follow neither.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_QUALIFIED_NAME_H
#define IDEM_QUALIFIED_NAME_H

#include "lib/stringinfo.h"

/*
 * schema.name, each in double quotes unless it is made of lower-case letters,
 * digits and underscores only and begins with no digit.
 */
extern void name_append(StringInfo s, const char *schema, const char *name);

/* One name, in double quotes where that needs them. */
extern void name_append_identifier(StringInfo s, const char *name);

extern void name_append_type(StringInfo s, Oid type);

#endif /* IDEM_QUALIFIED_NAME_H */
