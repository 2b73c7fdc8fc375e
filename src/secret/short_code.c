/*-------------------------------------------------------------------------
 *
 * short_code.c
 *	  Short codes with a limit on attempts.
 *
 * A code has few digits and could be guessed from a plain hash.  So the table stores an HMAC
 * over purpose, subject, a nonce and the code, under a secret of this database.  There is
 * one row for each purpose and subject: a new code replaces the old one.
 *
 * An attempt first locks the row, so attempts are serialized.  It is counted before the code
 * is compared (attempt_counter.h): in shared memory, which survives a rollback, and in the
 * row, which survives a crash.
 *
 * The count belongs to a series of codes.  A new code continues the series while its count
 * lasts, so asking for new codes buys no attempts.  But it does not prolong a locked series:
 * a lockout ends.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hmac.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/args.h"
#include "base/errors.h"
#include "base/interval.h"
#include "base/key.h"
#include "base/random.h"
#include "base/relation.h"
#include "base/result_row.h"
#include "base/sha256.h"
#include "secret/attempt_counter.h"
#include "secret/secret_keys.h"
#include "stat/stats.h"
#include "store/durable.h"

PG_FUNCTION_INFO_V1(idem_code_issue);
PG_FUNCTION_INFO_V1(idem_code_verify);

#define CODE_TABLE "idem_codes"

#define DIGITS_DEFAULT 6
#define DIGITS_MIN 4
#define DIGITS_MAX 10
/* with white space, and digits of three bytes each */
#define TYPED_MAX_BYTES 100
#define ATTEMPTS_DEFAULT 5

#define NONCE_BYTES 16
#define MAC_BYTES PG_SHA256_DIGEST_LENGTH

/* The purpose and subject of a code, in UTF-8. */
typedef struct CodeId
{
	text *purpose_text;
	text *subject_text;
	const char *purpose;
	int purpose_len;
	const char *subject;
	int subject_len;
	pg_uuid_t digest; /* of both, the primary key */
} CodeId;

/* ------------------------------------------------------------------------
 * Arguments
 * ------------------------------------------------------------------------
 */

static void
arg_code_id(FunctionCallInfo fcinfo, CodeId *id)
{
	Sha256 *sha;
	uint8 hash[PG_SHA256_DIGEST_LENGTH];

	id->purpose_text = arg_text(fcinfo, 0);
	id->subject_text = arg_text(fcinfo, 1);
	if (id->purpose_text == NULL)
		error_null("purpose");
	if (id->subject_text == NULL)
		error_null("subject");
	id->purpose = key_utf8("purpose", id->purpose_text, 1, &id->purpose_len);
	id->subject = key_utf8("subject", id->subject_text, 1, &id->subject_len);

	sha = sha256_start();
	sha256_framed(sha, id->purpose, id->purpose_len);
	sha256_framed(sha, id->subject, id->subject_len);
	sha256_finish(sha, hash);
	memcpy(id->digest.data, hash, UUID_LEN);
}

static int
arg_int(FunctionCallInfo fcinfo, int n, const char *what, int ifnull, int min, int max)
{
	int value = PG_ARGISNULL(n) ? ifnull : PG_GETARG_INT32(n);

	if (value < min || value > max)
		error_range(what, min, max);
	return value;
}

/* ------------------------------------------------------------------------
 * Codes
 * ------------------------------------------------------------------------
 */

/*
 * Uniform over all codes of that many digits, leading zeros included: a number beyond the
 * last full range is drawn again.
 */
static text *
make_code(int digits)
{
	uint64 range = 1;
	uint64 n;

	for (int i = 0; i < digits; i++)
		range *= 10;
	do
		random_bytes(&n, sizeof(n));
	while (n >= PG_UINT64_MAX - PG_UINT64_MAX % range);
	return cstring_to_text(psprintf("%0*llu", digits, (unsigned long long) (n % range)));
}

static void
mac_framed(pg_hmac_ctx *ctx, const void *data, int len)
{
	uint32 frame = pg_hton32((uint32) len);

	if (pg_hmac_update(ctx, (uint8 *) &frame, sizeof(frame)) < 0 ||
		pg_hmac_update(ctx, data, len) < 0)
		elog(ERROR, "could not compute HMAC: %s", pg_hmac_error(ctx));
}

static void
make_mac(uint8 mac[MAC_BYTES], bytea *secret, const CodeId *id, bytea *nonce, text *code)
{
	pg_hmac_ctx *ctx = pg_hmac_create(PG_SHA256);

	if (ctx == NULL)
		error_out_of_memory();
	if (pg_hmac_init(ctx, (uint8 *) VARDATA_ANY(secret), VARSIZE_ANY_EXHDR(secret)) < 0)
		elog(ERROR, "could not compute HMAC: %s", pg_hmac_error(ctx));
	mac_framed(ctx, id->purpose, id->purpose_len);
	mac_framed(ctx, id->subject, id->subject_len);
	mac_framed(ctx, VARDATA_ANY(nonce), VARSIZE_ANY_EXHDR(nonce));
	mac_framed(ctx, VARDATA_ANY(code), VARSIZE_ANY_EXHDR(code));
	if (pg_hmac_final(ctx, mac, MAC_BYTES) < 0)
		elog(ERROR, "could not compute HMAC: %s", pg_hmac_error(ctx));
	pg_hmac_free(ctx);
}

static bytea *
make_bytea(const void *data, int len)
{
	bytea *b = palloc(VARHDRSZ + len);

	SET_VARSIZE(b, VARHDRSZ + len);
	memcpy(VARDATA(b), data, len);
	return b;
}

/* ------------------------------------------------------------------------
 * The row
 * ------------------------------------------------------------------------
 */

typedef struct CodeRow
{
	bool used;
	bool expired;
	bool counting; /* a new code would continue the series */
	TransactionId xmin;
	pg_uuid_t series;
	int attempts;
	int max_attempts;
	pg_uuid_t secret;
	bytea *nonce;
	bytea *mac;
	TimestampTz valid_until;
	TimestampTz counted_until;
	TimestampTz expires_at; /* the later of the two: the row is dead then */
} CodeRow;

static bytea *
bytea_value(OwnSql *sql, int n)
{
	return (bytea *) DatumGetPointer(own_sql_value(sql, n, BYTEAOID));
}

/* Lock the row, waiting for other sessions, and read it; false if there is none. */
static bool
lock_row(OwnSql *sql, const CodeId *id, CodeRow *row)
{
	OwnParam params[] = {PARAM(UUIDOID, UUIDPGetDatum(&id->digest))};
	TimestampTz now;

	if (own_sql_run(
			sql,
			"SELECT used_at IS NOT NULL, series, attempts, max_attempts, secret, nonce, mac,"
			" valid_until, counted_until, xmin FROM %s WHERE digest OPERATOR(pg_catalog.=) $1"
			" FOR UPDATE",
			lengthof(params), params) == 0)
		return false;

	/* read the clock only now: the statement may have waited */
	now = GetCurrentTimestamp();
	row->used = DatumGetBool(own_sql_value(sql, 1, BOOLOID));
	row->series = *DatumGetUUIDP(own_sql_value(sql, 2, UUIDOID));
	row->attempts = DatumGetInt32(own_sql_value(sql, 3, INT4OID));
	row->max_attempts = DatumGetInt32(own_sql_value(sql, 4, INT4OID));
	row->secret = *DatumGetUUIDP(own_sql_value(sql, 5, UUIDOID));
	row->nonce = bytea_value(sql, 6);
	row->mac = bytea_value(sql, 7);
	row->valid_until = DatumGetTimestampTz(own_sql_value(sql, 8, TIMESTAMPTZOID));
	row->counted_until = DatumGetTimestampTz(own_sql_value(sql, 9, TIMESTAMPTZOID));
	row->xmin = DatumGetTransactionId(own_sql_value(sql, 10, XIDOID));
	row->expires_at = Max(row->valid_until, row->counted_until);
	row->expired = row->valid_until <= now;
	row->counting = row->counted_until > now;
	return true;
}

/* ------------------------------------------------------------------------
 * idem_code_issue
 * ------------------------------------------------------------------------
 */

#define ISSUE_PARAMS 13

/* The columns of a new code, as $1 to $13. */
static void
set_params(OwnParam *params, const CodeId *id, const CodeRow *row, TimestampTz now)
{
	params[0] = PARAM(UUIDOID, UUIDPGetDatum(&id->digest));
	params[1] = PARAM(TEXTOID, PointerGetDatum(id->purpose_text));
	params[2] = PARAM(TEXTOID, PointerGetDatum(id->subject_text));
	params[3] = PARAM(UUIDOID, UUIDPGetDatum(&row->series));
	params[4] = PARAM(INT4OID, Int32GetDatum(row->attempts));
	params[5] = PARAM(INT4OID, Int32GetDatum(row->max_attempts));
	params[6] = PARAM(UUIDOID, UUIDPGetDatum(&row->secret));
	params[7] = PARAM(BYTEAOID, PointerGetDatum(row->nonce));
	params[8] = PARAM(BYTEAOID, PointerGetDatum(row->mac));
	params[9] = PARAM(TIMESTAMPTZOID, TimestampTzGetDatum(now));
	params[10] = PARAM(TIMESTAMPTZOID, TimestampTzGetDatum(row->valid_until));
	params[11] = PARAM(TIMESTAMPTZOID, TimestampTzGetDatum(row->counted_until));
	params[12] = PARAM(TIMESTAMPTZOID, TimestampTzGetDatum(row->expires_at));
}

/* The row's count without the right attempt, which is not to count. */
static int
wrong_attempts(const CodeRow *row)
{
	return row->used && row->attempts > 0 ? row->attempts - 1 : row->attempts;
}

/*
 * Continue the series of the existing row, or start one.  A code of a locked series is never
 * compared, so it does not prolong the series.
 */
static void
set_series(CodeRow *row, const CodeRow *old)
{
	if (old == NULL || !old->counting)
	{
		random_bytes(&row->series, sizeof(row->series));
		row->attempts = 0;
		row->counted_until = row->valid_until;
		row->expires_at = row->valid_until;
		attempt_new_series(&row->series);
		return;
	}

	row->series = old->series;
	row->expires_at = Max(old->counted_until, row->valid_until);
	row->attempts = attempt_take_over(&old->series, wrong_attempts(old), row->expires_at);
	attempt_in_row(&row->series, row->attempts);
	row->counted_until = row->attempts >= row->max_attempts ? old->counted_until : row->expires_at;
}

/*
 * Replace the old code, or insert the first.  If another session inserts the first one
 * concurrently, look again.
 */
static void
write_code(const CodeId *id, CodeRow *row, const Interval *ttl)
{
	OwnParam params[ISSUE_PARAMS];
	CodeRow old;
	OwnSql sql;
	bool written = false;

	own_sql_start(&sql, CODE_TABLE, RowExclusiveLock);
	while (!written)
	{
		bool replaces = lock_row(&sql, id, &old);
		TimestampTz now = GetCurrentTimestamp();

		CHECK_FOR_INTERRUPTS();
		row->valid_until = ttl_after(now, ttl, "ttl", NULL);
		set_series(row, replaces ? &old : NULL);
		set_params(params, id, row, now);
		if (replaces)
			own_sql_change(&sql,
						   "UPDATE %s SET purpose = $2, subject = $3, series = $4, attempts = $5,"
						   " max_attempts = $6, secret = $7, nonce = $8, mac = $9, issued_at = $10,"
						   " valid_until = $11, counted_until = $12, expires_at = $13,"
						   " used_at = NULL WHERE digest OPERATOR(pg_catalog.=) $1",
						   ISSUE_PARAMS, params);
		written = replaces ||
			own_sql_run(&sql,
						"INSERT INTO %s (digest, purpose, subject, series, attempts, max_attempts,"
						" secret, nonce, mac, issued_at, valid_until, counted_until, expires_at)"
						" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
						" ON CONFLICT (digest) DO NOTHING",
						ISSUE_PARAMS, params) > 0;
	}
	own_sql_end(&sql);
}

/*
 * idem_code_issue(purpose text, subject text, ttl interval, digits int,
 *				   max_attempts int) RETURNS text
 */
Datum
idem_code_issue(PG_FUNCTION_ARGS)
{
	CodeId id;
	CodeRow row = {0};
	uint8 nonce[NONCE_BYTES];
	uint8 mac[MAC_BYTES];
	bytea *secret;
	text *code;
	int digits;

	refuse_in_parallel("idem_code_issue");
	arg_code_id(fcinfo, &id);
	if (PG_ARGISNULL(2))
		error_null("ttl");
	(void) ttl_after(GetCurrentTimestamp(), PG_GETARG_INTERVAL_P(2), "ttl", NULL);
	digits = arg_int(fcinfo, 3, "digits", DIGITS_DEFAULT, DIGITS_MIN, DIGITS_MAX);
	row.max_attempts = arg_int(fcinfo, 4, "max_attempts", ATTEMPTS_DEFAULT, 1, PG_INT32_MAX);
	if (XactReadOnly)
		error_token_read_only("issue");

	code = make_code(digits);
	random_bytes(nonce, sizeof(nonce));
	row.nonce = make_bytea(nonce, sizeof(nonce));
	secret = secret_current(&row.secret);
	make_mac(mac, secret, &id, row.nonce, code);
	row.mac = make_bytea(mac, sizeof(mac));
	secret_forget(secret);
	write_code(&id, &row, PG_GETARG_INTERVAL_P(2));
	stats_count(STAT_CODES_ISSUED, 1);
	PG_RETURN_TEXT_P(code);
}

/* ------------------------------------------------------------------------
 * idem_code_verify
 * ------------------------------------------------------------------------
 */

typedef struct Verdict
{
	const char *state;
	bool tells_left;
	int left;
	bool verified;
} Verdict;

static Datum
verdict_row(const Verdict *verdict)
{
	static TupleDesc desc = NULL;
	static const RowColumn columns[] = {{"state", TEXTOID}, {"attempts_left", INT4OID}};
	Datum values[] = {CStringGetTextDatum(verdict->state), Int32GetDatum(verdict->left)};
	bool isnull[] = {false, !verdict->tells_left};

	return row_datum(&desc, columns, lengthof(columns), values, isnull);
}

/* Length in bytes of the white space at "s"; 0 if there is none. */
static int
blank_bytes(const unsigned char *s, int len)
{
	if (*s == ' ' || (*s >= '\t' && *s <= '\r'))
		return 1;
	if (GetDatabaseEncoding() != PG_UTF8)
		return 0;
	/* no-break space; ideographic space */
	if (len >= 2 && s[0] == 0xC2 && s[1] == 0xA0)
		return 2;
	return len >= 3 && s[0] == 0xE3 && s[1] == 0x80 && s[2] == 0x80 ? 3 : 0;
}

/* Length in bytes of a full-width digit (U+FF10 to U+FF19) at "s", stored in *digit; or 0. */
static int
full_width_bytes(const unsigned char *s, int len, char *digit)
{
	if (GetDatabaseEncoding() != PG_UTF8 || len < 3 || s[0] != 0xEF || s[1] != 0xBC ||
		s[2] < 0x90 || s[2] > 0x99)
		return 0;
	*digit = (char) ('0' + s[2] - 0x90);
	return 3;
}

/*
 * Normalize a typed code: drop all white space, and turn the full-width digits of East Asian
 * keyboards into ASCII.  NULL if it is too long for a code.
 */
static text *
typed_code(text *typed)
{
	const unsigned char *s = (const unsigned char *) VARDATA_ANY(typed);
	int len = VARSIZE_ANY_EXHDR(typed);
	char code[DIGITS_MAX];
	int n = 0;

	while (len > 0)
	{
		int skip = blank_bytes(s, len);

		if (skip == 0)
		{
			char c = (char) *s;

			skip = Max(full_width_bytes(s, len, &c), 1);
			if (n == DIGITS_MAX)
				return NULL;
			code[n++] = c;
		}
		s += skip;
		len -= skip;
	}
	return cstring_to_text_with_len(code, n);
}

/* Does not detoast what is much too long: it may be megabytes of nonsense. */
static bool
is_right(const CodeId *id, const CodeRow *row, bytea *secret, Datum typed)
{
	uint8 mac[MAC_BYTES];
	text *code;

	if (VARSIZE_ANY_EXHDR(row->mac) != MAC_BYTES ||
		toast_raw_datum_size(typed) - VARHDRSZ > TYPED_MAX_BYTES)
		return false;
	code = typed_code(DatumGetTextPP(typed));
	if (code == NULL)
		return false;
	make_mac(mac, secret, id, row->nonce, code);
	return bytes_equal(mac, VARDATA_ANY(row->mac), MAC_BYTES);
}

/* The row is locked, and its code is neither used nor expired. */
static Verdict
verify(OwnSql *sql, const CodeId *id, const CodeRow *row, Datum code)
{
	bytea *secret = secret_by_id(&row->secret);
	OwnParam params[3];
	int number;
	bool right;

	/* deleting a secret ends its codes */
	if (secret == NULL)
		return (Verdict){"unknown"};

	number = attempt_count(&row->series, id->purpose, id->purpose_len, row->attempts,
						   row->max_attempts, row->expires_at);
	right = number > 0 && is_right(id, row, secret, code);
	secret_forget(secret);
	if (number <= 0)
		return (Verdict){"locked", true, 0};
	/* before the update, which may fail */
	if (right)
		attempt_give_back(&row->series);
	attempt_in_row(&row->series, right ? number - 1 : number);
	params[0] = PARAM(UUIDOID, UUIDPGetDatum(&id->digest));
	params[1] = PARAM(INT4OID, Int32GetDatum(number));
	params[2] = (OwnParam){TIMESTAMPTZOID, TimestampTzGetDatum(GetCurrentTimestamp()), right};
	own_sql_change(sql,
				   "UPDATE %s SET attempts = $2, used_at = $3"
				   " WHERE digest OPERATOR(pg_catalog.=) $1",
				   lengthof(params), params);
	return right ? (Verdict){"verified", .verified = true}
				 : (Verdict){"wrong", true, row->max_attempts - number};
}

/*
 * idem_code_verify(purpose text, subject text, code text) RETURNS record
 */
Datum
idem_code_verify(PG_FUNCTION_ARGS)
{
	CodeId id;
	CodeRow row;
	OwnSql sql;
	Verdict verdict;

	refuse_in_parallel("idem_code_verify");
	arg_code_id(fcinfo, &id);
	if (PG_ARGISNULL(2))
		error_null("code");
	if (XactReadOnly)
		error_token_read_only("verify");

	own_sql_start(&sql, CODE_TABLE, RowExclusiveLock);
	if (!lock_row(&sql, &id, &row))
		verdict = (Verdict){"unknown"};
	else if (row.used)
	{
		durable_xmin(row.xmin);
		verdict = (Verdict){"used"};
	}
	else if (row.expired)
		verdict = (Verdict){"expired"};
	else
		verdict = verify(&sql, &id, &row, PG_GETARG_DATUM(2));
	own_sql_end(&sql);
	stats_count(verdict.verified ? STAT_CODES_VERIFIED : STAT_CODES_REFUSED, 1);
	return verdict_row(&verdict);
}
