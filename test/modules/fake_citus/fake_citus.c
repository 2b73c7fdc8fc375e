/*-------------------------------------------------------------------------
 *
 * fake_citus.c
 *	  The two functions of Citus that idempotency calls, and what its catalogs do when they
 *	  change, for tests on a server without Citus.
 *
 * The catalogs and the rest are made by t/lib/IdemCitus.pm.  Which shard has a tenant is in the
 * table fake_tenants; a tenant that is not there has the first shard.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(get_shard_id_for_distribution_column);
PG_FUNCTION_INFO_V1(lock_shard_metadata);
PG_FUNCTION_INFO_V1(fake_invalidate);

/* the lock that Citus takes; the last field is its number for "metadata of a shard" */
#define SHARD_METADATA 4

static int64
run_query(const char *sql, int nargs, Oid *types, Datum *values)
{
	int64 result = 0;
	bool isnull;

	SPI_connect();
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute_with_args(sql, nargs, types, values, NULL, true, 1) == SPI_OK_SELECT &&
		SPI_processed == 1)
		result =
			DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	PopActiveSnapshot();
	SPI_finish();
	return result;
}

/* get_shard_id_for_distribution_column(regclass, "any") RETURNS bigint */
Datum
get_shard_id_for_distribution_column(PG_FUNCTION_ARGS)
{
	Oid output;
	bool varlena;
	Oid types[] = {OIDOID, TEXTOID};
	Datum values[] = {PG_GETARG_DATUM(0), (Datum) 0};

	getTypeOutputInfo(get_fn_expr_argtype(fcinfo->flinfo, 1), &output, &varlena);
	values[1] = CStringGetTextDatum(OidOutputFunctionCall(output, PG_GETARG_DATUM(1)));
	PG_RETURN_INT64(run_query(
		"SELECT coalesce((SELECT t.shardid FROM public.fake_tenants t WHERE t.tenant = $2),"
		" (SELECT min(s.shardid) FROM pg_catalog.pg_dist_shard s WHERE s.logicalrelid = $1))",
		2, types, values));
}

/*
 * lock_shard_metadata(integer, bigint[]) RETURNS void
 *
 * As in Citus: only for the table's owner; the number of the lock is the place of the shard among
 * those of its table; and an internal error if there is no such shard.
 */
Datum
lock_shard_metadata(PG_FUNCTION_ARGS)
{
	Datum *shards;
	int n;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), INT8OID, sizeof(int64), FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &shards, NULL, &n);
	for (int i = 0; i < n; i++)
	{
		Oid types[] = {INT8OID};
		Oid table =
			(Oid) run_query("SELECT s.logicalrelid::oid::bigint FROM pg_catalog.pg_dist_shard s"
							" WHERE s.shardid = $1",
							1, types, &shards[i]);
		int64 place = run_query("SELECT count(*) FROM pg_catalog.pg_dist_shard s"
								" JOIN pg_catalog.pg_dist_shard o USING (logicalrelid)"
								" WHERE s.shardid = $1 AND o.shardid < s.shardid",
								1, types, &shards[i]);
		LOCKTAG tag;

		if (!OidIsValid(table))
			elog(ERROR, "could not find valid entry for shard " INT64_FORMAT,
				 DatumGetInt64(shards[i]));
#if PG_VERSION_NUM >= 160000
		if (!object_ownercheck(RelationRelationId, table, GetUserId()))
#else
		if (!pg_class_ownercheck(table, GetUserId()))
#endif
			aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, get_rel_name(table));
		SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, table, (uint32) place, SHARD_METADATA);
		(void) LockAcquire(&tag, PG_GETARG_INT32(0), false, false);
	}
	PG_RETURN_VOID();
}

/*
 * A trigger of the catalogs.  Its argument is the column that tells which table is concerned:
 * logicalrelid, shardid, or "" for the catalog itself.
 */
Datum
fake_invalidate(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	const char *column = trigdata->tg_trigger->tgargs[0];
	TupleDesc desc = RelationGetDescr(trigdata->tg_relation);
	HeapTuple row = trigdata->tg_trigtuple;
	Oid relid = RelationGetRelid(trigdata->tg_relation);
	bool isnull;

	if (strcmp(column, "logicalrelid") == 0)
		relid = DatumGetObjectId(SPI_getbinval(row, desc, SPI_fnumber(desc, column), &isnull));
	else if (strcmp(column, "shardid") == 0)
	{
		Oid types[] = {INT8OID};
		Datum shard = SPI_getbinval(row, desc, SPI_fnumber(desc, column), &isnull);

		relid = (Oid) run_query(
			"SELECT s.logicalrelid::oid::bigint FROM pg_catalog.pg_dist_shard s WHERE s.shardid = $1",
			1, types, &shard);
	}
	else if (strcmp(column, "all") == 0)
		relid = (Oid) run_query("SELECT 'public.idem_tenant_keys'::regclass::oid::bigint", 0, NULL,
								NULL);
	CacheInvalidateRelcacheByRelid(relid);
	return PointerGetDatum(NULL);
}
