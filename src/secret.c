/*-------------------------------------------------------------------------
 *
 * secret.c
 *	  Random numbers, comparisons that tell nothing by their time, and the
 *	  secrets of this database.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"

#include "relation.h"
#include "secret.h"

#define SECRET_TABLE "idem_secrets"
#define SECRET_BYTES 32

void
secret_random(void *out, size_t len)
{
	if (!pg_strong_random(out, len))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values")));
}

bool
secret_equal(const void *a, const void *b, size_t len)
{
	const volatile uint8 *x = a;
	const volatile uint8 *y = b;
	uint8 difference = 0;

	while (len-- > 0)
		difference |= *x++ ^ *y++;
	return difference == 0;
}

bytea *
secret_by_id(const pg_uuid_t *id)
{
	OwnSql sql;
	OwnParam param = PARAM(UUIDOID, UUIDPGetDatum(id));
	Datum secret = PointerGetDatum(NULL);

	own_sql_start(&sql, SECRET_TABLE, AccessShareLock);
	if (own_sql_run(&sql, "SELECT secret FROM %s WHERE id OPERATOR(pg_catalog.=) $1", 1, &param) >
		0)
		(void) own_sql_column(&sql, 1, &secret);
	own_sql_end(&sql);
	return DatumGetByteaP(secret);
}

/* Two sessions that are both the first make one each, which does no harm. */
static bytea *
make_secret(OwnSql *sql, pg_uuid_t *id)
{
	bytea *secret = MemoryContextAlloc(sql->caller, VARHDRSZ + SECRET_BYTES);
	OwnParam params[2];

	secret_random(id, sizeof(*id));
	SET_VARSIZE(secret, VARHDRSZ + SECRET_BYTES);
	secret_random(VARDATA(secret), SECRET_BYTES);
	params[0] = PARAM(UUIDOID, UUIDPGetDatum(id));
	params[1] = PARAM(BYTEAOID, PointerGetDatum(secret));
	(void) own_sql_run(sql, "INSERT INTO %s (id, secret) VALUES ($1, $2)", 2, params);
	return secret;
}

bytea *
secret_current(pg_uuid_t *id)
{
	OwnSql sql;
	Datum value;
	bytea *secret;

	own_sql_start(&sql, SECRET_TABLE, RowExclusiveLock);
	if (own_sql_run(&sql, "SELECT id, secret FROM %s ORDER BY created_at DESC LIMIT 1", 0, NULL) ==
		0)
		secret = make_secret(&sql, id);
	else
	{
		(void) own_sql_column(&sql, 1, &value);
		*id = *DatumGetUUIDP(value);
		(void) own_sql_column(&sql, 2, &value);
		secret = DatumGetByteaP(value);
	}
	own_sql_end(&sql);
	return secret;
}
