/*-------------------------------------------------------------------------
 *
 * relation.c
 *	  The extension's own relations, and statements on them as their owner.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "relation.h"

#define MAX_PARAMS 16

static Oid
extension_schema(Oid extension)
{
	Relation rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData skey;
	SysScanDesc scan;
	HeapTuple tuple;
	Oid schema = InvalidOid;

	ScanKeyInit(&skey, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &skey);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return schema;
}

/* By membership in the extension: a relation of that name alone proves nothing. */
Oid
relation_find(const char *name)
{
	Oid extension = get_extension_oid(EXTENSION_NAME, true);
	Oid relid = InvalidOid;

	if (OidIsValid(extension))
		relid = get_relname_relid(name, extension_schema(extension));
	if (!OidIsValid(relid) || getExtensionOfObject(RelationRelationId, relid) != extension)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s\" of extension \"%s\" does not exist", name, EXTENSION_NAME),
				 errhint("Run CREATE EXTENSION %s.", EXTENSION_NAME)));
	return relid;
}

void
owner_become(Relation rel, OwnerContext *saved)
{
	GetUserIdAndSecContext(&saved->user, &saved->sec_context);
	SetUserIdAndSecContext(rel->rd_rel->relowner,
						   saved->sec_context | SECURITY_RESTRICTED_OPERATION);
	saved->guc_level = NewGUCNestLevel();
}

void
owner_leave(const OwnerContext *saved)
{
	AtEOXact_GUC(false, saved->guc_level);
	SetUserIdAndSecContext(saved->user, saved->sec_context);
}

void
own_sql_start(OwnSql *sql, const char *relation, LOCKMODE lockmode)
{
	sql->caller = CurrentMemoryContext;
	sql->rel = table_open(relation_find(relation), lockmode);
	sql->name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(sql->rel)),
										   RelationGetRelationName(sql->rel));
	owner_become(sql->rel, &sql->owner);
	idem_restrict_search_path();
	SPI_connect();
}

uint64
own_sql_run(OwnSql *sql, const char *format, int nparams, const OwnParam *params)
{
	Oid types[MAX_PARAMS];
	Datum values[MAX_PARAMS];
	char nulls[MAX_PARAMS];
	int rc;

	Assert(nparams <= MAX_PARAMS);
	for (int i = 0; i < nparams; i++)
	{
		types[i] = params[i].type;
		values[i] = params[i].value;
		nulls[i] = params[i].given ? ' ' : 'n';
	}
	rc =
		SPI_execute_with_args(psprintf(format, sql->name), nparams, types, values, nulls, false, 0);
	if (rc < 0)
		elog(ERROR, "could not run a statement on table \"%s\": %s",
			 RelationGetRelationName(sql->rel), SPI_result_code_string(rc));
	return SPI_processed;
}

bool
own_sql_column(OwnSql *sql, int number, Datum *value)
{
	TupleDesc desc = SPI_tuptable->tupdesc;
	Form_pg_attribute att = TupleDescAttr(desc, number - 1);
	MemoryContext old;
	bool isnull;
	Datum d = SPI_getbinval(SPI_tuptable->vals[0], desc, number, &isnull);

	if (isnull)
		return false;
	old = MemoryContextSwitchTo(sql->caller);
	if (att->attlen == -1)
		*value = PointerGetDatum(PG_DETOAST_DATUM_COPY(d));
	else
		*value = datumCopy(d, att->attbyval, att->attlen);
	MemoryContextSwitchTo(old);
	return true;
}

void
own_sql_end(OwnSql *sql)
{
	SPI_finish();
	owner_leave(&sql->owner);
	table_close(sql->rel, NoLock);
}
