/*-------------------------------------------------------------------------
 *
 * relation.h
 *	  The extension's own relations, and SQL statements that run as their owner.
 *
 * Code that the tables' owner has attached to them, such as an expression index or a
 * trigger, runs as that owner and leaves no trace in the session.  Code that a caller
 * supplies never runs as the owner.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RELATION_H
#define IDEM_RELATION_H

#include "executor/spi.h"
#include "utils/rel.h"

#include "base/compat.h"

#define EXTENSION_NAME "idempotency"

/* The schema of the extension; InvalidOid if the extension is not installed. */
extern Oid relation_extension_schema(void);

/* Find a relation that is a member of the extension; 42P01 if there is none. */
extern Oid relation_find(const char *name);

/* The same, but InvalidOid if there is none, as one that a later version has. */
extern Oid relation_find_if_any(const char *name);

/*
 * 0A000 unless the table is the plain, logged, local heap that the extension created, and
 * nothing that its owner has attached to it acts on writes.
 */
extern void relation_check_plain(Relation rel);
pg_noreturn extern void relation_refuse(const char *name, const char *detail);

/*
 * Call this before updating or deleting rows other than through SQL.  It is the executor's
 * own check that subscribers can replicate the change.  42P10 or 55000.
 */
extern void relation_check_published(Relation rel, CmdType command);

/*
 * Run as the owner, under SECURITY_RESTRICTED_OPERATION.  After an error no clean-up is
 * needed: the abort of the (sub)transaction restores everything.
 */
typedef struct OwnerContext
{
	Oid user;
	int sec_context;
	int guc_level;
} OwnerContext;

extern void owner_become(Relation rel, OwnerContext *saved);
extern void owner_leave(const OwnerContext *saved);

/*
 * Run SQL statements on one of the tables: SPI as its owner, under a safe search_path,
 * between own_sql_start() and own_sql_end().  Each statement is a format whose %s is the
 * qualified name.  In between, the current memory context is SPI's, and own_sql_end() frees
 * it.  To keep data longer, allocate it afterwards or get it with own_sql_column().
 *
 * Meanwhile the table may be renamed, and an attacker's table may take its name.  So a
 * statement that refers to any other relation is not run (55000).
 */
typedef struct OwnSql
{
	Relation rel;
	MemoryContext caller; /* for data that outlives own_sql_end() */
	OwnerContext owner;
} OwnSql;

/*
 * Locks the relation until the end of the transaction.  0A000 if it is not plain.
 */
extern void own_sql_start(OwnSql *sql, const char *relation, LOCKMODE lockmode);

/* The same for a table that is no member, such as a shard. */
extern void own_sql_start_on(OwnSql *sql, Oid relid, LOCKMODE lockmode);

/* A parameter of a statement; "given" false: NULL. */
typedef struct OwnParam
{
	Oid type;
	Datum value;
	bool given;
} OwnParam;

#define PARAM(type_, value_) ((OwnParam){(type_), (value_), true})

/* Returns the number of rows; the rows are in SPI_tuptable. */
extern uint64 own_sql_run(OwnSql *sql, const char *format, int nparams, const OwnParam *params);

/* The same for a statement that must change exactly one row; else XX000. */
extern void own_sql_change(OwnSql *sql, const char *format, int nparams, const OwnParam *params);

/*
 * Get a column of the first row of the last statement, detoasted and copied to the caller's
 * memory context.  False if it is NULL.  55000 if it has another type.
 */
extern bool own_sql_column(OwnSql *sql, int number, Oid type, Datum *value);

/* The same for a column that must not be NULL; else 55000. */
extern Datum own_sql_value(OwnSql *sql, int number, Oid type);

extern void own_sql_end(OwnSql *sql);

#endif /* IDEM_RELATION_H */
