/*-------------------------------------------------------------------------
 *
 * relation.c
 *	  The extension's own relations, and SQL statements that run as their owner.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/reltrigger.h"

#include "base/citus.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/relation.h"

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

Oid
relation_extension_schema(void)
{
	Oid extension = get_extension_oid(EXTENSION_NAME, true);

	return OidIsValid(extension) ? extension_schema(extension) : InvalidOid;
}

/* Checks membership in the extension: anyone can create a relation with that name. */
Oid
relation_find_if_any(const char *name)
{
	Oid extension = get_extension_oid(EXTENSION_NAME, true);
	Oid relid = InvalidOid;

	if (OidIsValid(extension))
		relid = get_relname_relid(name, extension_schema(extension));
	if (OidIsValid(relid) && getExtensionOfObject(RelationRelationId, relid) != extension)
		relid = InvalidOid;
	return relid;
}

Oid
relation_find(const char *name)
{
	Oid relid = relation_find_if_any(name);

	if (!OidIsValid(relid))
		error_no_relation(name);
	return relid;
}

/* What the table stores, for messages. */
static const char *
purpose(const char *name)
{
	if (strcmp(name, "idem_tokens") == 0)
		return "tokens";
	if (strcmp(name, "idem_codes") == 0 || strcmp(name, "idem_secrets") == 0)
		return "codes";
	return "idempotency keys";
}

void
relation_refuse(const char *name, const char *detail)
{
	error_unfit_table(purpose(name), name, detail);
}

/* Most of these triggers come from tools that put a trigger on every table. */
pg_noreturn static void
refuse_trigger(Relation rel, const char *trigger)
{
	const char *name = RelationGetRelationName(rel);

	error_unfit_trigger(
		purpose(name), name, trigger,
		quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)), name));
}

/*
 * TRUNCATE triggers are harmless: owners use them as a safeguard.  But refuse an internal
 * one: a sharding engine marks its tables that way.
 */
static void
check_triggers(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger *t = &triggers->triggers[i];

		if (t->tgenabled == TRIGGER_DISABLED)
			continue;
		if (t->tgisinternal)
			relation_refuse(RelationGetRelationName(rel),
							psprintf("It has the trigger \"%s\".", t->tgname));
		if ((t->tgtype & ~TRIGGER_TYPE_ROW & ~TRIGGER_TYPE_BEFORE) != TRIGGER_TYPE_TRUNCATE)
			refuse_trigger(rel, t->tgname);
	}
}

void
relation_check_plain(Relation rel)
{
	const char *name = RelationGetRelationName(rel);

	if (citus_has_table(RelationGetRelid(rel)))
		relation_refuse(name, "Citus has distributed it, or keeps it in its metadata.");
	if (rel->rd_rel->relkind != RELKIND_RELATION || rel->rd_rel->relam != HEAP_TABLE_AM_OID)
		relation_refuse(name, "It is not a heap table.");
	if (rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		relation_refuse(
			name, "It is not logged: a crash would empty it, and every request could run again.");
	if (rel->rd_rel->relispartition ||
		(rel->rd_rel->relhassubclass &&
		 find_inheritance_children(RelationGetRelid(rel), NoLock) != NIL))
		relation_refuse(name, "It takes part in inheritance or partitioning.");
	if (rel->rd_rules != NULL)
		relation_refuse(name, "It has rules, which would not apply.");
	check_triggers(rel);
	if (rel->rd_att->constr != NULL && rel->rd_att->constr->num_check > 0)
		relation_refuse(name, "It has CHECK constraints.");
	if (rel->rd_rel->relforcerowsecurity)
		relation_refuse(name, "Its owner is under row-level security.");
}

static void
published_callback(void *arg)
{
	if (geterrcode() == ERRCODE_INVALID_COLUMN_REFERENCE)
		errhint("Publish the table with all its rows and columns: no WHERE, no list of columns.");
}

/* The server's message has the table's name but no hint about publication filters. */
void
relation_check_published(Relation rel, CmdType command)
{
	ErrorContextCallback callback = {.callback = published_callback,
									 .previous = error_context_stack};

	error_context_stack = &callback;
	CheckCmdReplicaIdentity(rel, command);
	error_context_stack = callback.previous;
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
	own_sql_start_on(sql, relation_find(relation), lockmode);
}

void
own_sql_start_on(OwnSql *sql, Oid relid, LOCKMODE lockmode)
{
	sql->caller = CurrentMemoryContext;
	sql->rel = table_open(relid, lockmode);
	relation_check_plain(sql->rel);
	owner_become(sql->rel, &sql->owner);
	idem_restrict_search_path();
	SPI_connect();
}

/*
 * The plan has already looked up its names and does not do so again: it is not a saved
 * plan, so it is never invalidated.
 */
static void
check_relations(OwnSql *sql, SPIPlanPtr plan)
{
	ListCell *source;
	ListCell *oid;

	foreach(source, SPI_plan_get_plan_sources(plan))
		foreach(oid, ((CachedPlanSource *) lfirst(source))->relationOids)
			if (lfirst_oid(oid) != RelationGetRelid(sql->rel))
				error_renamed(RelationGetRelationName(sql->rel));
}

uint64
own_sql_run(OwnSql *sql, const char *format, int nparams, const OwnParam *params)
{
	Oid relid = RelationGetRelid(sql->rel);
	Oid types[MAX_PARAMS];
	Datum values[MAX_PARAMS];
	char nulls[MAX_PARAMS];
	const char *name;
	SPIPlanPtr plan;
	int rc;

	Assert(nparams <= MAX_PARAMS);
	for (int i = 0; i < nparams; i++)
	{
		types[i] = params[i].type;
		values[i] = params[i].value;
		nulls[i] = params[i].given ? ' ' : 'n';
	}
	name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
	plan = SPI_prepare(psprintf(format, name), nparams, types);
	if (plan == NULL)
		elog(ERROR, "could not prepare a statement on table \"%s\": %s", name,
			 SPI_result_code_string(SPI_result));
	check_relations(sql, plan);
	rc = SPI_execute_plan(plan, values, nulls, false, 0);
	if (rc < 0)
		elog(ERROR, "could not run a statement on table \"%s\": %s", name,
			 SPI_result_code_string(rc));
	return SPI_processed;
}

void
own_sql_change(OwnSql *sql, const char *format, int nparams, const OwnParam *params)
{
	uint64 changed = own_sql_run(sql, format, nparams, params);

	if (changed != 1)
		elog(ERROR, "%llu rows of table \"%s\" were changed, not 1", (unsigned long long) changed,
			 RelationGetRelationName(sql->rel));
}

pg_noreturn static void
refuse_column(OwnSql *sql, int number)
{
	error_column(SPI_fname(SPI_tuptable->tupdesc, number), RelationGetRelationName(sql->rel));
}

bool
own_sql_column(OwnSql *sql, int number, Oid type, Datum *value)
{
	TupleDesc desc = SPI_tuptable->tupdesc;
	Form_pg_attribute att = TupleDescAttr(desc, number - 1);
	MemoryContext old;
	bool isnull;
	Datum d;

	if (att->atttypid != type)
		refuse_column(sql, number);
	d = SPI_getbinval(SPI_tuptable->vals[0], desc, number, &isnull);
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

Datum
own_sql_value(OwnSql *sql, int number, Oid type)
{
	Datum value = (Datum) 0;

	if (!own_sql_column(sql, number, type, &value))
		refuse_column(sql, number);
	return value;
}

void
own_sql_end(OwnSql *sql)
{
	SPI_finish();
	owner_leave(&sql->owner);
	table_close(sql->rel, NoLock);
}
