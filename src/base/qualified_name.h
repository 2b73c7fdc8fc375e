/*-------------------------------------------------------------------------
 *
 * qualified_name.h
 *	  Qualified names that are the same in every session and server version.
 *
 * The server's own quoting depends on "quote_all_identifiers" and on the list of keywords,
 * which grows.  Names that are stored or hashed must depend on neither.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_QUALIFIED_NAME_H
#define IDEM_QUALIFIED_NAME_H

#include "lib/stringinfo.h"

/*
 * Append schema.name.  Each part is in double quotes unless it has only lower-case letters,
 * digits and underscores, and does not begin with a digit.
 */
extern void name_append(StringInfo s, const char *schema, const char *name);

/* Append one name, in double quotes if needed. */
extern void name_append_identifier(StringInfo s, const char *name);

extern void name_append_type(StringInfo s, Oid type);

#endif /* IDEM_QUALIFIED_NAME_H */
