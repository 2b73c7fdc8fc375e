/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  The extension's settings.
 *
 * Defaults are applied in C, where the library is certainly loaded.  A DEFAULT in the SQL
 * signature that reads a setting would fail in the first call of a session, because the
 * library has not defined the setting yet.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/varlena.h"

#include "base/guc.h"

bool idem_allow_keys_on_worker;
char *idem_default_scope;
int idem_default_ttl;
int idem_guess_entries;
int idem_max_result_size;
int idem_purge_batch_size;
char *idem_purge_databases;
double idem_purge_interval;
int idem_retry_after;
bool idem_require_scope;
int idem_throttle_entries;

/* 0 is not a valid ttl, and fractions of a second may be rounded to it. */
static bool
check_default_ttl(int *newval, void **extra, GucSource source)
{
	if (*newval != 0)
		return true;
	GUC_check_errdetail("A time to live must be at least one second, or -1 for ever.");
	return false;
}

/* A real, because an integer would round "100ms" to 0, which means never. */
static bool
check_purge_interval(double *newval, void **extra, GucSource source)
{
	if (*newval == 0 || *newval >= 1)
		return true;
	GUC_check_errdetail("An interval must be at least one second, or 0 for no purges.");
	return false;
}

static bool
check_purge_databases(char **newval, void **extra, GucSource source)
{
	char *copy = pstrdup(*newval);
	List *names;
	bool ok = SplitGUCList(copy, ',', &names);

	if (!ok)
		GUC_check_errdetail("List syntax is invalid.");
	list_free(names);
	pfree(copy);
	return ok;
}

void
guc_init(void)
{
	/* PGC_POSTMASTER settings cannot be defined after the server has started */
	GucContext of_shared_memory =
		process_shared_preload_libraries_in_progress ? PGC_POSTMASTER : PGC_SIGHUP;

	DefineCustomBoolVariable("idempotency.allow_keys_on_worker",
							 "Allows a Citus worker to have keys of its own.",
							 "Requests with the same key must then always reach the same node.",
							 &idem_allow_keys_on_worker, false, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomStringVariable(
		"idempotency.default_scope", "Scope of a key when the caller gives none.",
		"Set it to the tenant or the user, so that nobody gets the answer to another's request.",
		&idem_default_scope, "", PGC_USERSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.default_ttl",
							"How long a finished key is kept when the caller gives no ttl.",
							"-1 keeps it for ever.", &idem_default_ttl, 24 * 60 * 60, -1, INT_MAX,
							PGC_USERSET, GUC_UNIT_S, check_default_ttl, NULL, NULL);

	DefineCustomIntVariable(
		"idempotency.max_result_size", "Largest result or progress that is stored with a key.",
		"Measured as uncompressed jsonb.", &idem_max_result_size, 4 * 1024 * 1024, 0, INT_MAX,
		PGC_USERSET, GUC_UNIT_BYTE, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"idempotency.purge_batch_size", "Expired rows that a purge deletes in one transaction.",
		"A session that claims such a key waits for that transaction. A row counts as one more for "
		"each 2 kB that is stored out of line.",
		&idem_purge_batch_size, 5000, 1, INT_MAX, PGC_USERSET, 0, NULL, NULL, NULL);

	DefineCustomStringVariable(
		"idempotency.purge_databases", "Databases in which a background worker purges.",
		"Names, separated by commas, or * for all that have the extension.", &idem_purge_databases,
		"*", PGC_SIGHUP, GUC_LIST_INPUT, check_purge_databases, NULL, NULL);

	DefineCustomRealVariable(
		"idempotency.purge_interval", "Time between two purges by the background worker.",
		"0 turns it off. Needs shared_preload_libraries.", &idem_purge_interval, 60, 0,
		INT_MAX / 1000, PGC_SIGHUP, GUC_UNIT_S, check_purge_interval, NULL, NULL);

	DefineCustomIntVariable("idempotency.retry_after",
							"retry_after that is answered while another transaction holds a key.",
							NULL, &idem_retry_after, 1000, 1, INT_MAX, PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomBoolVariable("idempotency.require_scope", "Refuses claims that give no scope.",
							 "Keeps a tenant's keys from meeting another's by omission.",
							 &idem_require_scope, false, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"idempotency.guess_entries",
		"Guesses at codes that shared memory can count until their transactions have committed.",
		"Takes effect when the shared memory is created. A full table refuses guesses.",
		&idem_guess_entries, 10000, 16, 100 * 1000 * 1000, of_shared_memory, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"idempotency.throttle_entries", "Rate limits that shared memory can hold at once.",
		"Takes effect when the shared memory is created, about 90 bytes each. When all are "
		"live, a new one evicts the one that would have ended first.",
		&idem_throttle_entries, 100000, 16, 100 * 1000 * 1000, of_shared_memory, 0, NULL, NULL,
		NULL);

	MarkGUCPrefixReserved("idempotency");
}
