/*-------------------------------------------------------------------------
 *
 * token.c
 *	  One-time tokens: secrets that are accepted once.
 *
 * A token is 256 random bits.  The table stores its SHA-256, framed with the purpose.  The
 * hash needs no key: guessing 256 bits is hopeless even with the hash at hand.  Half of the
 * hash is the primary key; the other half is compared here, in constant time.
 *
 * Redeeming is a single UPDATE of an unredeemed row.  A concurrent redeem waits for it and
 * finds the row used, or redeems it if the first transaction rolled back.  A token never
 * becomes valid again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "base/args.h"
#include "base/errors.h"
#include "base/interval.h"
#include "base/key.h"
#include "base/random.h"
#include "base/relation.h"
#include "base/result_row.h"
#include "base/sha256.h"
#include "secret/secret_keys.h"
#include "stat/stats.h"
#include "store/durable.h"

PG_FUNCTION_INFO_V1(idem_token_issue);
PG_FUNCTION_INFO_V1(idem_token_redeem);
PG_FUNCTION_INFO_V1(idem_token_peek);
PG_FUNCTION_INFO_V1(idem_token_revoke);
PG_FUNCTION_INFO_V1(idem_token_revoke_all);

#define TOKEN_TABLE "idem_tokens"
#define TOKEN_BYTES 32
#define TOKEN_CHARS 43 /* in base64url, without padding */

typedef enum TokenState
{
	TOKEN_UNKNOWN,
	TOKEN_USED,
	TOKEN_EXPIRED,
	TOKEN_VALID
} TokenState;

/* A token's hash, as the table stores it. */
typedef struct TokenDigest
{
	pg_uuid_t digest; /* first half of the hash */
	bytea *verifier;  /* second half */
} TokenDigest;

typedef struct Token
{
	TokenState state;
	bool has_subject;
	Datum subject;
	bool has_payload;
	Datum payload;
} Token;

#define VERIFIER_BYTES (PG_SHA256_DIGEST_LENGTH - UUID_LEN)

/* ------------------------------------------------------------------------
 * Tokens and their digests
 * ------------------------------------------------------------------------
 */

static text *
make_token(void)
{
	bytea *random = palloc(VARHDRSZ + TOKEN_BYTES);
	text *token;

	SET_VARSIZE(random, VARHDRSZ + TOKEN_BYTES);
	random_bytes(VARDATA(random), TOKEN_BYTES);
	token = DatumGetTextP(
		DirectFunctionCall2(binary_encode, PointerGetDatum(random), CStringGetTextDatum("base64")));
	secret_forget(random);
	SET_VARSIZE(token, VARHDRSZ + TOKEN_CHARS);
	for (int i = 0; i < TOKEN_CHARS; i++)
	{
		char *c = VARDATA(token) + i;

		if (*c == '+')
			*c = '-';
		else if (*c == '/')
			*c = '_';
	}
	return token;
}

/* Input from outside: text that could never have been issued is unknown, not an error. */
static bool
could_be_token(text *token)
{
	const char *c = VARDATA_ANY(token);

	if (VARSIZE_ANY_EXHDR(token) != TOKEN_CHARS)
		return false;
	for (int i = 0; i < TOKEN_CHARS; i++)
		if (!((c[i] >= 'A' && c[i] <= 'Z') || (c[i] >= 'a' && c[i] <= 'z') ||
			  (c[i] >= '0' && c[i] <= '9') || c[i] == '-' || c[i] == '_'))
			return false;
	return true;
}

static void
make_digest(TokenDigest *out, text *purpose, text *token)
{
	Sha256 *sha = sha256_start();
	uint8 hash[PG_SHA256_DIGEST_LENGTH];
	int len;
	const char *utf8 = key_utf8("purpose", purpose, 1, &len);

	sha256_framed(sha, utf8, len);
	sha256_framed(sha, VARDATA_ANY(token), VARSIZE_ANY_EXHDR(token));
	sha256_finish(sha, hash);
	memcpy(out->digest.data, hash, UUID_LEN);
	out->verifier = palloc(VARHDRSZ + VERIFIER_BYTES);
	SET_VARSIZE(out->verifier, VARHDRSZ + VERIFIER_BYTES);
	memcpy(VARDATA(out->verifier), hash + UUID_LEN, VERIFIER_BYTES);
}

/* ------------------------------------------------------------------------
 * Arguments
 * ------------------------------------------------------------------------
 */

static text *
arg_purpose(FunctionCallInfo fcinfo, int n)
{
	text *purpose = arg_text(fcinfo, n);
	int len;

	if (purpose == NULL)
		error_null("purpose");
	(void) key_utf8("purpose", purpose, 1, &len);
	return purpose;
}

/* The arguments purpose and token; false if the token cannot have been issued. */
static bool
arg_token(FunctionCallInfo fcinfo, TokenDigest *digest)
{
	text *purpose = arg_purpose(fcinfo, 0);
	Size size;

	if (PG_ARGISNULL(1))
		error_null("token");
	/* do not detoast what may be megabytes of nonsense */
	size = toast_raw_datum_size(PG_GETARG_DATUM(1)) - VARHDRSZ;
	if (size != TOKEN_CHARS || !could_be_token(PG_GETARG_TEXT_PP(1)))
		return false;
	make_digest(digest, purpose, PG_GETARG_TEXT_PP(1));
	return true;
}

static void
check_payload_size(Datum payload)
{
	Size size = toast_raw_datum_size(payload) - VARHDRSZ;

	if (size > (Size) idem_max_result_size)
		error_payload_too_large(size, idem_max_result_size);
}

static void
check_writable(const char *verb)
{
	if (XactReadOnly)
		error_token_read_only(verb);
}

/* ------------------------------------------------------------------------
 * The table
 * ------------------------------------------------------------------------
 */

/* Read the token's state from a row that is committed or our own. */
static void
look_up(OwnSql *sql, const TokenDigest *digest, Token *token)
{
	OwnParam params[] = {PARAM(UUIDOID, UUIDPGetDatum(&digest->digest))};
	bytea *verifier;
	Datum value;

	memset(token, 0, sizeof(*token));
	if (own_sql_run(sql,
					"SELECT verifier, used_at,"
					" expires_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp(), subject,"
					" payload, xmin FROM %s WHERE digest OPERATOR(pg_catalog.=) $1",
					lengthof(params), params) == 0)
		return;
	verifier = (bytea *) DatumGetPointer(own_sql_value(sql, 1, BYTEAOID));
	if (VARSIZE_ANY_EXHDR(verifier) != VERIFIER_BYTES ||
		!bytes_equal(VARDATA_ANY(verifier), VARDATA(digest->verifier), VERIFIER_BYTES))
		return;

	if (own_sql_column(sql, 2, TIMESTAMPTZOID, &value))
	{
		token->state = TOKEN_USED;
		durable_xmin(DatumGetTransactionId(own_sql_value(sql, 6, XIDOID)));
	}
	else if (DatumGetBool(own_sql_value(sql, 3, BOOLOID)))
		token->state = TOKEN_EXPIRED;
	else
	{
		token->state = TOKEN_VALID;
		token->has_subject = own_sql_column(sql, 4, TEXTOID, &token->subject);
		token->has_payload = own_sql_column(sql, 5, JSONBOID, &token->payload);
	}
}

/*
 * Change the row if it is still valid, waiting for concurrent changes.  The statement reads
 * the clock, and reads it again if it has waited.
 */
static bool
change_valid(OwnSql *sql, const TokenDigest *digest, const char *format)
{
	OwnParam params[] = {PARAM(UUIDOID, UUIDPGetDatum(&digest->digest))};

	return own_sql_run(sql, format, lengthof(params), params) > 0;
}

#define WHERE_VALID \
	" WHERE digest OPERATOR(pg_catalog.=) $1 AND used_at IS NULL" \
	" AND expires_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()"

static Datum
token_row(const Token *token, const char *state)
{
	static TupleDesc desc = NULL;
	static const RowColumn columns[] = {
		{"state", TEXTOID}, {"subject", TEXTOID}, {"payload", JSONBOID}};
	Datum values[] = {CStringGetTextDatum(state), token->subject, token->payload};
	bool isnull[] = {false, !token->has_subject, !token->has_payload};

	return row_datum(&desc, columns, lengthof(columns), values, isnull);
}

static const char *
state_name(TokenState state, const char *valid)
{
	switch (state)
	{
		case TOKEN_VALID:
			return valid;
		case TOKEN_USED:
			return "used";
		case TOKEN_EXPIRED:
			return "expired";
		default:
			return "unknown";
	}
}

/* ------------------------------------------------------------------------
 * SQL functions
 * ------------------------------------------------------------------------
 */

/*
 * idem_token_issue(purpose text, ttl interval, payload jsonb, subject text) RETURNS text
 */
Datum
idem_token_issue(PG_FUNCTION_ARGS)
{
	text *purpose = arg_purpose(fcinfo, 0);
	text *subject = arg_text(fcinfo, 3);
	text *token;
	TokenDigest digest;
	OwnSql sql;
	OwnParam params[7];
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz expires_at;
	Datum payload = (Datum) 0;
	int len;

	refuse_in_parallel("idem_token_issue");
	if (PG_ARGISNULL(1))
		error_null("ttl");
	expires_at = ttl_after(now, PG_GETARG_INTERVAL_P(1), "ttl", NULL);
	if (subject != NULL)
		(void) key_utf8("subject", subject, 1, &len);
	if (!PG_ARGISNULL(2))
	{
		payload = PG_GETARG_DATUM(2);
		check_payload_size(payload);
	}
	check_writable("issue");

	token = make_token();
	make_digest(&digest, purpose, token);
	params[0] = PARAM(UUIDOID, UUIDPGetDatum(&digest.digest));
	params[1] = PARAM(BYTEAOID, PointerGetDatum(digest.verifier));
	params[2] = PARAM(TEXTOID, PointerGetDatum(purpose));
	params[3] = (OwnParam){TEXTOID, PointerGetDatum(subject), subject != NULL};
	params[4] = (OwnParam){JSONBOID, payload, !PG_ARGISNULL(2)};
	params[5] = PARAM(TIMESTAMPTZOID, TimestampTzGetDatum(now));
	params[6] = PARAM(TIMESTAMPTZOID, TimestampTzGetDatum(expires_at));
	own_sql_start(&sql, TOKEN_TABLE, RowExclusiveLock);
	(void) own_sql_run(&sql,
					   "INSERT INTO %s (digest, verifier, purpose, subject, payload, issued_at,"
					   " expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
					   lengthof(params), params);
	own_sql_end(&sql);
	stats_count(STAT_TOKENS_ISSUED, 1);
	PG_RETURN_TEXT_P(token);
}

/* Sets the token's state before the call: TOKEN_VALID means this call has redeemed it. */
static void
redeem(const TokenDigest *digest, Token *token)
{
	OwnSql sql;

	own_sql_start(&sql, TOKEN_TABLE, RowExclusiveLock);
	look_up(&sql, digest, token);
	if (token->state == TOKEN_VALID &&
		!change_valid(&sql, digest,
					  "UPDATE %s SET used_at = pg_catalog.clock_timestamp()" WHERE_VALID))
	{
		/* used, revoked or expired just now, permanently */
		look_up(&sql, digest, token);
		if (token->state == TOKEN_VALID)
			elog(ERROR, "could not redeem a token that is valid");
	}
	own_sql_end(&sql);
}

/*
 * idem_token_redeem(purpose text, token text) RETURNS record
 */
Datum
idem_token_redeem(PG_FUNCTION_ARGS)
{
	TokenDigest digest;
	Token token = {TOKEN_UNKNOWN};

	refuse_in_parallel("idem_token_redeem");
	check_writable("redeem");
	if (arg_token(fcinfo, &digest))
		redeem(&digest, &token);
	stats_count(token.state == TOKEN_VALID ? STAT_TOKENS_REDEEMED : STAT_TOKENS_REFUSED, 1);
	return token_row(&token, state_name(token.state, "redeemed"));
}

/*
 * idem_token_peek(purpose text, token text) RETURNS record
 */
Datum
idem_token_peek(PG_FUNCTION_ARGS)
{
	TokenDigest digest;
	Token token = {TOKEN_UNKNOWN};
	OwnSql sql;

	if (arg_token(fcinfo, &digest))
	{
		own_sql_start(&sql, TOKEN_TABLE, AccessShareLock);
		look_up(&sql, &digest, &token);
		own_sql_end(&sql);
	}
	return token_row(&token, state_name(token.state, "valid"));
}

/*
 * idem_token_revoke(purpose text, token text) RETURNS boolean
 */
Datum
idem_token_revoke(PG_FUNCTION_ARGS)
{
	TokenDigest digest;
	Token token;
	OwnSql sql;
	bool revoked = false;

	refuse_in_parallel("idem_token_revoke");
	check_writable("revoke");
	if (!arg_token(fcinfo, &digest))
		PG_RETURN_BOOL(false);

	own_sql_start(&sql, TOKEN_TABLE, RowExclusiveLock);
	look_up(&sql, &digest, &token);
	if (token.state == TOKEN_VALID)
		revoked = change_valid(&sql, &digest, "DELETE FROM %s" WHERE_VALID);
	own_sql_end(&sql);
	PG_RETURN_BOOL(revoked);
}

/*
 * idem_token_revoke_all(purpose text, subject text) RETURNS bigint
 */
Datum
idem_token_revoke_all(PG_FUNCTION_ARGS)
{
	text *purpose = arg_purpose(fcinfo, 0);
	text *subject = arg_text(fcinfo, 1);
	OwnParam params[2];
	OwnSql sql;
	uint64 revoked;
	int len;

	refuse_in_parallel("idem_token_revoke_all");
	if (subject == NULL)
		error_null("subject");
	(void) key_utf8("subject", subject, 1, &len);
	check_writable("revoke");

	params[0] = PARAM(TEXTOID, PointerGetDatum(purpose));
	params[1] = PARAM(TEXTOID, PointerGetDatum(subject));
	own_sql_start(&sql, TOKEN_TABLE, RowExclusiveLock);
	revoked = own_sql_run(&sql,
						  "DELETE FROM %s WHERE subject OPERATOR(pg_catalog.=) $2"
						  " AND purpose OPERATOR(pg_catalog.=) $1 AND used_at IS NULL"
						  " AND expires_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()",
						  lengthof(params), params);
	own_sql_end(&sql);
	PG_RETURN_INT64((int64) revoked);
}
