/*-------------------------------------------------------------------------
 *
 * relation.h
 *	  The extension's own relations, and statements on them as their owner.
 *
 * What the tables' owner has hung on them, the code of an expression index or a
 * trigger, runs as that owner and leaves no trace in the session; nothing that
 * a caller supplies does.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RELATION_H
#define IDEM_RELATION_H

#include "executor/spi.h"
#include "utils/rel.h"

#include "base/compat.h"

#define EXTENSION_NAME "idempotency"

/* The schema of the extension; InvalidOid if it is not there. */
extern Oid relation_extension_schema(void);

/* By membership in the extension; 42P01 if there is none. */
extern Oid relation_find(const char *name);

/*
 * 0A000 if the table is not the plain, logged, local heap that the extension made,
 * without anything that its owner has hung on it and that acts on writes.
 */
extern void relation_check_plain(Relation rel);
pg_noreturn extern void relation_refuse(const char *name, const char *detail);

/*
 * Before an update or a deletion of rows other than by SQL: the executor's own check
 * that subscribers could follow it.  42P10 or 55000.
 */
extern void relation_check_published(Relation rel, CmdType command);

/*
 * Become the owner, under SECURITY_RESTRICTED_OPERATION.  An error needs no
 * care: the abort of the (sub)transaction restores all of it.
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
 * Statements on one of the tables: SPI as its owner, under a safe search_path,
 * between start and end.  Each is a format whose %s is the qualified name.  In
 * between, the current memory context is SPI's, and is gone with the end: what
 * is to live on is made after it or by own_sql_column().
 *
 * The table may be renamed in the meantime, and another one, of somebody who
 * waits for just that, take its name.  So a statement that means any other
 * relation is not run (55000).
 */
typedef struct OwnSql
{
	Relation rel;
	MemoryContext caller; /* for what is to live on */
	OwnerContext owner;
} OwnSql;

/*
 * The relation is locked until the end of the transaction.  0A000 if it is not
 * plain.
 */
extern void own_sql_start(OwnSql *sql, const char *relation, LOCKMODE lockmode);

/* A parameter of a statement; "given" false: NULL. */
typedef struct OwnParam
{
	Oid type;
	Datum value;
	bool given;
} OwnParam;

#define PARAM(type_, value_) ((OwnParam){(type_), (value_), true})

/* How many rows; they are in SPI_tuptable. */
extern uint64 own_sql_run(OwnSql *sql, const char *format, int nparams, const OwnParam *params);

/* The same for a change of one row, which must be there: XX000. */
extern void own_sql_change(OwnSql *sql, const char *format, int nparams, const OwnParam *params);

/*
 * A column of the first row of the last statement, detoasted, copied to the
 * caller's memory.  False: NULL.  55000 if it has another type.
 */
extern bool own_sql_column(OwnSql *sql, int number, Oid type, Datum *value);

/* The same of one that has a value: 55000 if it has none. */
extern Datum own_sql_value(OwnSql *sql, int number, Oid type);

extern void own_sql_end(OwnSql *sql);

#endif /* IDEM_RELATION_H */
