/*-------------------------------------------------------------------------
 *
 * databases.c
 *	  The databases of the server, and where the last purge of each ended.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_database.h"
#include "parser/scansup.h"
#include "utils/builtins.h"
#include "utils/varlena.h"

#include "base/database_slots.h"
#include "base/shmem.h"
#include "retention/databases.h"

/* an invalid database, left by a DROP that was interrupted */
#define INVALID_CONNLIMIT (-2)

/* ------------------------------------------------------------------------
 * Lists
 * ------------------------------------------------------------------------
 */

/*
 * By a plain scan: with no database of its own, a process cannot rebuild what it knows of an
 * index.
 */
List *
databases_read(void)
{
	Relation rel = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(rel, 0, NULL);
	List *databases = NIL;
	HeapTuple tuple;

	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		Database *database;

		if (!form->datallowconn || form->datconnlimit == INVALID_CONNLIMIT)
			continue;
		database = palloc(sizeof(Database));
		database->oid = form->oid;
		database->name = pstrdup(NameStr(form->datname));
		databases = lappend(databases, database);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	return databases;
}

static Database *
find_database(List *databases, const char *name)
{
	ListCell *lc;

	foreach(lc, databases)
		if (strcmp(((Database *) lfirst(lc))->name, name) == 0)
			return lfirst(lc);
	return NULL;
}

List *
databases_named(List *databases, const char *names, bool tell)
{
	List *parts;
	List *result = NIL;
	ListCell *lc;

	if (!SplitGUCList(pstrdup(names), ',', &parts))
		return NIL;
	foreach(lc, parts)
	{
		const char *name = lfirst(lc);
		Database *database = find_database(databases, name);

		if (database == NULL)
			database = find_database(databases,
									 downcase_truncate_identifier(name, (int) strlen(name), false));
		if (database != NULL)
			result = list_append_unique_ptr(result, database);
		else if (tell)
			ereport(LOG,
					(errmsg("database \"%s\" of \"idempotency.purge_databases\" does not exist",
							name)));
	}
	return result;
}

/* ------------------------------------------------------------------------
 * Positions
 * ------------------------------------------------------------------------
 */

typedef struct PositionsTable
{
	DatabaseSlots slots;
	pg_atomic_uint64 position[MAX_DATABASES][DATABASE_NPOSITIONS];
} PositionsTable;

static Size
positions_size(void)
{
	return sizeof(PositionsTable);
}

static void
positions_create(void *address, int tranche)
{
	PositionsTable *table = address;

	database_slots_create(&table->slots, tranche);
	for (int i = 0; i < MAX_DATABASES; i++)
		for (int j = 0; j < DATABASE_NPOSITIONS; j++)
			pg_atomic_init_u64(&table->position[i][j], 0);
}

static ShmemArea area = {.name = "idempotency_purge",
						 .size = positions_size,
						 .create = positions_create};

static void
clear_positions(void *array, int slot)
{
	PositionsTable *table = array;

	for (int i = 0; i < DATABASE_NPOSITIONS; i++)
		pg_atomic_write_u64(&table->position[slot][i], 0);
}

pg_atomic_uint64 *
database_positions(void)
{
	static pg_atomic_uint64 *mine = NULL;
	static bool no_slot = false;
	PositionsTable *table;
	int slot;

	if (mine != NULL || no_slot)
		return mine;
	table = shmem_try(&area);
	if (table == NULL)
		return NULL;
	slot = database_slot(&table->slots, clear_positions, table);
	no_slot = slot < 0;
	if (!no_slot)
		mine = table->position[slot];
	return mine;
}

void
databases_init(void)
{
	shmem_register(&area);
}
