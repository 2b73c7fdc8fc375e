/*-------------------------------------------------------------------------
 *
 * citus.c
 *	  What the catalogs of Citus say about this node, its tables and its shards.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/citus.h"
#include "base/errors.h"

#define GROUP_CATALOG "pg_dist_local_group"
#define TABLE_CATALOG "pg_dist_partition"
#define TABLE_INDEX "pg_dist_partition_logical_relid_index"
#define SHARD_CATALOG "pg_dist_shard"
#define SHARD_INDEX "pg_dist_shard_logical_relid_index"
#define SHARD_ID_INDEX "pg_dist_shard_shardid_index"
#define PLACEMENT_CATALOG "pg_dist_placement"
#define PLACEMENT_INDEX "pg_dist_placement_shardid_index"

/* so much of a table's name is in those of its shards, however long it is */
#define SHORTEST_CUT 30

static Oid
find_catalog(const char *name)
{
	return get_relname_relid(name, PG_CATALOG_NAMESPACE);
}

Oid
citus_group_catalog(void)
{
	return find_catalog(GROUP_CATALOG);
}

/* NULL: it is not there, or has just been dropped with Citus. */
static Relation
open_catalog(const char *name)
{
	Relation catalog = NULL;

	while (catalog == NULL)
	{
		Oid relid = find_catalog(name);

		if (!OidIsValid(relid))
			return NULL;
		catalog = try_table_open(relid, AccessShareLock);
	}
	return catalog;
}

/* A column of one of the catalogs; 55000 if it has not the type that all versions gave it. */
static AttrNumber
find_column(Relation catalog, const char *name, Oid type)
{
	AttrNumber column = get_attnum(RelationGetRelid(catalog), name);

	if (column == InvalidAttrNumber || get_atttype(RelationGetRelid(catalog), column) != type)
		error_citus_catalog(RelationGetRelationName(catalog), name);
	return column;
}

static Datum
get_value(Relation catalog, HeapTuple tuple, AttrNumber column, Datum if_null)
{
	bool isnull;
	Datum d = heap_getattr(tuple, column, RelationGetDescr(catalog), &isnull);

	return isnull ? if_null : d;
}

static char
get_char(Relation catalog, HeapTuple tuple, const char *name)
{
	AttrNumber column = find_column(catalog, name, CHAROID);

	return DatumGetChar(get_value(catalog, tuple, column, CharGetDatum('\0')));
}

static int32
get_group(Relation catalog, HeapTuple tuple, AttrNumber column)
{
	return DatumGetInt32(get_value(catalog, tuple, column, Int32GetDatum(-1)));
}

int32
citus_group(void)
{
	Relation catalog = open_catalog(GROUP_CATALOG);
	AttrNumber column;
	SysScanDesc scan;
	HeapTuple tuple;
	int32 group = 0;

	if (catalog == NULL)
		return 0;
	column = find_column(catalog, "groupid", INT4OID);
	scan = systable_beginscan(catalog, InvalidOid, false, NULL, 0, NULL);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		group = get_group(catalog, tuple, column);
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return group;
}

/* Rows whose first column of the index has that value. */
static SysScanDesc
begin_scan(Relation catalog, const char *index_name, AttrNumber column, RegProcedure equal,
		   Datum value)
{
	Oid index = find_catalog(index_name);
	ScanKeyData skey;

	ScanKeyInit(&skey, column, BTEqualStrategyNumber, equal, value);
	return systable_beginscan(catalog, index, OidIsValid(index), NULL, 1, &skey);
}

/* Is the table there and, if "hashed", are method and replication those of a hashed table? */
static bool
find_table(Oid table, bool hashed)
{
	Relation catalog = open_catalog(TABLE_CATALOG);
	SysScanDesc scan;
	HeapTuple tuple;
	bool found;

	if (catalog == NULL)
		return false;
	scan = begin_scan(catalog, TABLE_INDEX, find_column(catalog, "logicalrelid", REGCLASSOID),
					  F_OIDEQ, ObjectIdGetDatum(table));
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found && hashed)
		found = get_char(catalog, tuple, "partmethod") == 'h' &&
			get_char(catalog, tuple, "repmodel") == 's';
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return found;
}

bool
citus_has_table(Oid table)
{
	return find_table(table, false);
}

bool
citus_hashes_table(Oid table)
{
	return find_table(table, true);
}

List *
citus_shards(Oid table)
{
	Relation catalog = open_catalog(SHARD_CATALOG);
	AttrNumber column;
	SysScanDesc scan;
	HeapTuple tuple;
	List *shards = NIL;

	if (catalog == NULL)
		return NIL;
	column = find_column(catalog, "shardid", INT8OID);
	scan = begin_scan(catalog, SHARD_INDEX, find_column(catalog, "logicalrelid", REGCLASSOID),
					  F_OIDEQ, ObjectIdGetDatum(table));
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		int64 *shard = palloc(sizeof(int64));

		*shard = DatumGetInt64(get_value(catalog, tuple, column, Int64GetDatum(0)));
		shards = lappend(shards, shard);
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return shards;
}

/* A table that merely ends with the number of a shard is none.  Citus shortens long names. */
static bool
is_name_of_shard(const char *name, int len, Oid table)
{
	const char *whole = get_rel_name(table);

	return whole != NULL && strncmp(name, whole, Min(len, SHORTEST_CUT)) == 0;
}

bool
citus_is_shard(Relation rel)
{
	const char *name = RelationGetRelationName(rel);
	const char *number = strrchr(name, '_');
	Relation catalog;
	AttrNumber column;
	SysScanDesc scan;
	HeapTuple tuple;
	char *end;
	int64 shard;
	bool found = false;

	if (number == NULL)
		return false;
	shard = strtoi64(number + 1, &end, 10);
	if (end == number + 1 || *end != '\0')
		return false;
	catalog = open_catalog(SHARD_CATALOG);
	if (catalog == NULL)
		return false;
	column = find_column(catalog, "logicalrelid", REGCLASSOID);
	scan = begin_scan(catalog, SHARD_ID_INDEX, find_column(catalog, "shardid", INT8OID), F_INT8EQ,
					  Int64GetDatum(shard));
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Datum table = get_value(catalog, tuple, column, ObjectIdGetDatum(InvalidOid));

		found = is_name_of_shard(name, number - name, DatumGetObjectId(table));
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return found;
}

bool
citus_has_shard(int64 shard)
{
	int32 group = citus_group();
	Relation catalog = open_catalog(PLACEMENT_CATALOG);
	AttrNumber column;
	SysScanDesc scan;
	HeapTuple tuple;
	bool found = false;

	if (catalog == NULL)
		return false;
	column = find_column(catalog, "groupid", INT4OID);
	scan = begin_scan(catalog, PLACEMENT_INDEX, find_column(catalog, "shardid", INT8OID), F_INT8EQ,
					  Int64GetDatum(shard));
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
		found = get_group(catalog, tuple, column) == group;
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return found;
}

Oid
citus_find_function_for(const char *name, Oid schema, Oid extension)
{
	CatCList *list =
		SearchSysCacheList1(PROCNAMEARGSNSP, CStringGetDatum(psprintf("%s_for", name)));
	Oid found = InvalidOid;

	for (int i = 0; i < list->n_members && !OidIsValid(found); i++)
	{
		Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);

		if (proc->pronamespace == schema && OidIsValid(proc->prosupport) &&
			getExtensionOfObject(ProcedureRelationId, proc->prosupport) == extension)
			found = proc->oid;
	}
	ReleaseSysCacheList(list);
	return found;
}
