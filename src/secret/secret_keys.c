/*-------------------------------------------------------------------------
 *
 * secret_keys.c
 *	  The secret keys of this database, used to hash codes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"

#include "base/relation.h"
#include "secret/secret_keys.h"

#define SECRET_TABLE "idem_secrets"

bytea *
secret_by_id(const pg_uuid_t *id)
{
	OwnSql sql;
	OwnParam param = PARAM(UUIDOID, UUIDPGetDatum(id));
	bytea *secret = NULL;

	own_sql_start(&sql, SECRET_TABLE, AccessShareLock);
	if (own_sql_run(&sql, "SELECT secret FROM %s WHERE id OPERATOR(pg_catalog.=) $1", 1, &param) >
		0)
		secret = (bytea *) DatumGetPointer(own_sql_value(&sql, 1, BYTEAOID));
	own_sql_end(&sql);
	return secret;
}

/*
 * The statement itself generates the secret: a parameter would become a constant of the
 * plan, which may be logged.  Two sessions that both call first create one each, which does
 * no harm.
 */
bytea *
secret_current(pg_uuid_t *id)
{
	OwnSql sql;
	bytea *secret;

	own_sql_start(&sql, SECRET_TABLE, RowExclusiveLock);
	if (own_sql_run(&sql, "SELECT id, secret FROM %s ORDER BY created_at DESC LIMIT 1", 0, NULL) ==
		0)
		own_sql_change(
			&sql,
			"INSERT INTO %s (id, secret) SELECT pg_catalog.gen_random_uuid(), pg_catalog.sha256("
			" pg_catalog.string_agg(pg_catalog.uuid_send(pg_catalog.gen_random_uuid()), ''))"
			" FROM pg_catalog.generate_series(1, 3) RETURNING id, secret",
			0, NULL);
	*id = *DatumGetUUIDP(own_sql_value(&sql, 1, UUIDOID));
	secret = (bytea *) DatumGetPointer(own_sql_value(&sql, 2, BYTEAOID));
	own_sql_end(&sql);
	return secret;
}

void
secret_forget(bytea *secret)
{
	explicit_bzero(VARDATA_ANY(secret), VARSIZE_ANY_EXHDR(secret));
	pfree(secret);
}
