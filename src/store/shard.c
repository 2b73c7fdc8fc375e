/*-------------------------------------------------------------------------
 *
 * shard.c
 *	  Where the keys of a scope are, if Citus has distributed them.
 *
 * Of Citus this uses the catalogs in base/citus.h, the names of shards, and two SQL functions:
 * get_shard_id_for_distribution_column() and lock_shard_metadata().  They have been the same since
 * Citus 10.  Both run as the owner of the table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "base/citus.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/guc.h"
#include "base/key.h"
#include "base/relation.h"
#include "store/shard.h"

/*
 * What this session knows.  Without a distributed table, any change of a relation may bring one,
 * or Citus itself; to look again then costs a failed look-up in the catalog cache.
 */
static struct
{
	bool valid;
	Oid group_catalog; /* InvalidOid: no Citus */
	int32 group;
	Oid keys;
	Oid table; /* the distributed one; InvalidOid: none */

	/* only with a distributed table */
	MemoryContext context;
	Oid tenant_type;
	int16 tenant_length;
	bool tenant_by_value;
	FmgrInfo tenant_input;
	FmgrInfo tenant_output;
	Oid tenant_ioparam;
	FmgrInfo find_shard;
	FmgrInfo lock_shard;
	HTAB *places;

	/* of the last scope, since a transaction needs it at begin and at finish */
	MemoryContext last;
	text *scope; /* NULL: none */
	Datum tenant;
	int64 shard;
} known;

/* A shard that was on this node when it was looked for. */
typedef struct Place
{
	int64 shard;
	Oid relid; /* InvalidOid: look again */
} Place;

static void
forget_place(Oid relid)
{
	HASH_SEQ_STATUS status;
	Place *place;

	if (known.places == NULL)
		return;
	hash_seq_init(&status, known.places);
	while ((place = hash_seq_search(&status)) != NULL)
		if (relid == InvalidOid || place->relid == relid)
			place->relid = InvalidOid;
}

bool shard_no_citus = false;

void
shard_forget(Oid relid)
{
	shard_no_citus = false;
	if (!OidIsValid(known.table) || relid == InvalidOid || relid == known.table ||
		relid == known.keys || relid == known.group_catalog)
		known.valid = false;
	else
		forget_place(relid);
}

/* ------------------------------------------------------------------------
 * The distributed table
 * ------------------------------------------------------------------------
 */

/* An ordinary table of that owner?  Others can create relations with the names of ours. */
static bool
is_table_of(Oid relid, Oid owner)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	bool is_it = false;

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_class form = (Form_pg_class) GETSTRUCT(tuple);

		is_it = form->relowner == owner && form->relkind == RELKIND_RELATION;
		ReleaseSysCache(tuple);
	}
	return is_it;
}

/* Has idem_distribute() made its functions?  Then the keys are distributed, and no others count. */
static bool
has_functions_for(Relation keys)
{
	return OidIsValid(citus_find_function_for("idem_begin", RelationGetNamespace(keys),
											  get_extension_oid(EXTENSION_NAME, false)));
}

/*
 * The table is no member of the extension, since Citus makes no shells of members on new nodes.
 * It has the owner of idem_keys, and Citus distributes it.
 */
static Oid
find_tenant_table(Relation keys)
{
	Oid relid = get_relname_relid(TENANT_TABLE_NAME, RelationGetNamespace(keys));

	if (!OidIsValid(relid) && !OidIsValid(known.group_catalog))
		return InvalidOid;
	if (!OidIsValid(relid) || !is_table_of(relid, keys->rd_rel->relowner))
	{
		if (has_functions_for(keys))
			error_tenant_table(TENANT_TABLE_NAME,
							   "It is not there, or has another owner than table \"idem_keys\".");
		return InvalidOid;
	}
	if (!citus_hashes_table(relid))
		error_tenant_table(
			TENANT_TABLE_NAME,
			"Citus does not distribute it by the hash of a column, with one copy of each row.");
	return relid;
}

static void
find_function(FmgrInfo *finfo, const char *name, Oid type1, Oid type2)
{
	Oid types[] = {type1, type2};
	List *qualified = list_make2(makeString("pg_catalog"), makeString(pstrdup(name)));

	fmgr_info_cxt(LookupFuncName(qualified, 2, types, false), finfo, known.context);
}

/* "any": the function asks for the type of its argument, and reads text as any other one */
static void
find_functions(void)
{
	MemoryContext old = MemoryContextSwitchTo(known.context);
	List *args = list_make2(makeNullConst(REGCLASSOID, -1, InvalidOid),
							makeNullConst(TEXTOID, -1, InvalidOid));

	find_function(&known.find_shard, "get_shard_id_for_distribution_column", REGCLASSOID, ANYOID);
	fmgr_info_set_expr((Node *) makeFuncExpr(known.find_shard.fn_oid, INT8OID, args, InvalidOid,
											 InvalidOid, COERCE_EXPLICIT_CALL),
					   &known.find_shard);
	find_function(&known.lock_shard, "lock_shard_metadata", INT4OID, INT8ARRAYOID);
	MemoryContextSwitchTo(old);
}

static void
find_tenant_type(void)
{
	AttrNumber column = get_attnum(known.table, TENANT_COLUMN_NAME);
	Oid input;
	Oid output;
	bool is_varlena;

	if (column != InvalidAttrNumber)
		known.tenant_type = get_atttype(known.table, column);
	/* those that idem_distribute() allows; so no code of a user's runs here */
	if (column == InvalidAttrNumber ||
		(known.tenant_type != INT2OID && known.tenant_type != INT4OID &&
		 known.tenant_type != INT8OID && known.tenant_type != UUIDOID &&
		 known.tenant_type != TEXTOID && known.tenant_type != VARCHAROID))
		error_columns(TENANT_TABLE_NAME);
	get_typlenbyval(known.tenant_type, &known.tenant_length, &known.tenant_by_value);
	getTypeInputInfo(known.tenant_type, &input, &known.tenant_ioparam);
	getTypeOutputInfo(known.tenant_type, &output, &is_varlena);
	fmgr_info_cxt(input, &known.tenant_input, known.context);
	fmgr_info_cxt(output, &known.tenant_output, known.context);
}

static void
forget_all(void)
{
	known.table = InvalidOid;
	known.scope = NULL;
	forget_place(InvalidOid);
}

/* What is known of places stays: a shard that is looked for again may have been here. */
static void
make_memory(void)
{
	HASHCTL places = {.keysize = sizeof(int64), .entrysize = sizeof(Place)};

	/* one of them may have failed before */
	if (known.context == NULL)
		known.context =
			AllocSetContextCreate(TopMemoryContext, "idempotency shards", ALLOCSET_DEFAULT_SIZES);
	if (known.last == NULL)
		known.last =
			AllocSetContextCreate(TopMemoryContext, "idempotency tenant", ALLOCSET_SMALL_SIZES);
	if (known.places == NULL)
		known.places = hash_create("idempotency shards", 64, &places, HASH_ELEM | HASH_BLOBS);
	MemoryContextReset(known.context);
}

static void
look(Relation keys)
{
	/* a change from here on makes it invalid again */
	known.valid = true;
	forget_all();
	known.keys = RelationGetRelid(keys);
	known.group_catalog = citus_group_catalog();
	known.group = citus_group();
	/* also without Citus: keys that were restored where it is missing must not be passed over */
	known.table = find_tenant_table(keys);
	if (!OidIsValid(known.table))
		return;
	make_memory();
	find_tenant_type();
	find_functions();
}

bool
shard_in_use(Relation keys)
{
	if (!known.valid || known.keys != RelationGetRelid(keys))
	{
		known.valid = false;
		PG_TRY();
		{
			look(keys);
		}
		PG_CATCH();
		{
			known.valid = false;
			PG_RE_THROW();
		}
		PG_END_TRY();
	}
	shard_no_citus = known.valid && !OidIsValid(known.group_catalog) && !OidIsValid(known.table);
	return OidIsValid(known.table);
}

void
shard_refuse_worker(Relation keys)
{
	if (known.group != 0 && !idem_allow_keys_on_worker)
		error_keys_on_worker(RelationGetRelationName(keys));
}

/* ------------------------------------------------------------------------
 * The shard of a scope
 * ------------------------------------------------------------------------
 */

static void
tenant_callback(void *arg)
{
	if (geterrcode() == ERRCODE_INVALID_TEXT_REPRESENTATION ||
		geterrcode() == ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE)
		hint_not_tenant();
}

/* The type's own error, with the SQLSTATE and the hint of a scope that is no tenant. */
static Datum
input_tenant(char *written)
{
	ErrorContextCallback callback = {.callback = tenant_callback, .previous = error_context_stack};
	Datum tenant;

	error_context_stack = &callback;
	tenant = InputFunctionCall(&known.tenant_input, written, known.tenant_ioparam, -1);
	error_context_stack = callback.previous;
	return tenant;
}

/*
 * Two texts for one tenant would make two keys of one, so there is only one: '7', not '07'.
 */
static Datum
read_tenant(text *scope)
{
	char *written = text_to_cstring(scope);
	Datum tenant = input_tenant(written);
	char *as_output = OutputFunctionCall(&known.tenant_output, tenant);

	if (written[0] == '\0' || strcmp(written, as_output) != 0)
		error_not_tenant(scope, known.tenant_type, as_output);
	return tenant;
}

/* Sets known.tenant and known.shard, as the owner. */
static void
find_tenant(text *scope)
{
	MemoryContext old;
	Datum tenant;

	if (known.scope != NULL && key_same_text(known.scope, scope))
		return;
	known.scope = NULL;
	tenant = read_tenant(scope);
	known.shard = DatumGetInt64(
		FunctionCall2(&known.find_shard, ObjectIdGetDatum(known.table), PointerGetDatum(scope)));
	MemoryContextReset(known.last);
	old = MemoryContextSwitchTo(known.last);
	known.tenant = datumCopy(tenant, known.tenant_by_value, known.tenant_length);
	known.scope = DatumGetTextPCopy(PointerGetDatum(scope));
	MemoryContextSwitchTo(old);
}

/* To the end of the transaction, as Citus does before it writes. */
static void
lock_shard(int64 shard)
{
	Datum element = Int64GetDatum(shard);
	ArrayType *shards =
		construct_array(&element, 1, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE);

	(void) FunctionCall2(&known.lock_shard, Int32GetDatum(ShareLock), PointerGetDatum(shards));
	pfree(shards);
}

/* The shards that this transaction has locked to write, rolled back or not. */
static struct
{
	LocalTransactionId transaction;
	Place *places;
	int n;
	int checked; /* at the commit */
	int size;
} written;

static void
note_written(int64 shard, Oid table)
{
	if (written.transaction != idem_local_transaction())
	{
		written.transaction = idem_local_transaction();
		written.n = written.checked = 0;
	}
	for (int i = 0; i < written.n; i++)
		if (written.places[i].shard == shard && written.places[i].relid == table)
			return;
	if (written.n == written.size)
	{
		int size = Max(8, 2 * written.size);
		Size bytes = size * sizeof(Place);

		written.places = written.places == NULL ? MemoryContextAlloc(TopMemoryContext, bytes)
												: repalloc(written.places, bytes);
		written.size = size;
	}
	written.places[written.n++] = (Place){shard, table};
}

/*
 * Which shard has the tenant can change as well: tenants are isolated, and shards split.  So after
 * each wait we look again, until we hold the lock of the shard that has the tenant.  The lock of
 * the distributed table itself is for LOCK TABLE, before commands that make the table anew.  It
 * comes first: to lock a shard that is gone is an internal error of Citus.
 */
static void
find_and_lock(Relation keys, text *scope, ShardUse use)
{
	Oid locked_table = InvalidOid;
	int64 locked = 0; /* of that table */

	for (;;)
	{
		AcceptInvalidationMessages();
		if (!shard_in_use(keys))
			error_shards_gone();
		find_tenant(scope);
		if (!shard_is_written(use) || (locked == known.shard && locked_table == known.table))
			return;
		CHECK_FOR_INTERRUPTS();
		if (locked_table != known.table)
		{
			locked_table = known.table;
			locked = 0;
			LockRelationOid(locked_table, RowExclusiveLock);
		}
		else
		{
			locked = known.shard;
			lock_shard(locked);
		}
	}
}

/* The shard's table, whether the shard is still here or not; InvalidOid if there is none. */
static Oid
find_table(Relation keys, int64 shard)
{
	Oid relid = get_relname_relid(psprintf("%s_" INT64_FORMAT, TENANT_TABLE_NAME, shard),
								  RelationGetNamespace(keys));

	if (OidIsValid(relid) && !is_table_of(relid, keys->rd_rel->relowner))
		error_tenant_table(get_rel_name(relid), "It has another owner than table \"idem_keys\".");
	return relid;
}

/* As it was found before, if nothing has changed since; else InvalidOid. */
static Oid
known_place(int64 shard)
{
	Place *place = hash_search(known.places, &shard, HASH_FIND, NULL);

	return place == NULL ? InvalidOid : place->relid;
}

/* The table of a shard that is here; else InvalidOid, and whether it once was. */
static Oid
find_place(Relation keys, int64 shard, bool *was_here)
{
	Oid relid = known_place(shard);

	*was_here = true;
	if (OidIsValid(relid))
		return relid;
	relid = find_table(keys, shard);
	*was_here = OidIsValid(relid) || hash_search(known.places, &shard, HASH_FIND, NULL) != NULL;
	if (!OidIsValid(relid) || !citus_has_shard(shard))
		return InvalidOid;
	if (known.valid)
	{
		Place *place = hash_search(known.places, &shard, HASH_ENTER, NULL);

		place->relid = relid;
	}
	return relid;
}

static Datum
copy_tenant(void)
{
	return datumCopy(known.tenant, known.tenant_by_value, known.tenant_length);
}

/* For a look, if all is known.  Needs no rights. */
static Oid
find_known(text *scope)
{
	AcceptInvalidationMessages();
	if (!known.valid || !OidIsValid(known.table) || known.scope == NULL ||
		!key_same_text(known.scope, scope))
		return InvalidOid;
	return known_place(known.shard);
}

Oid
shard_find(Relation keys, text *scope, ShardUse use, Datum *tenant)
{
	OwnerContext owner;
	Oid relid = shard_is_written(use) ? InvalidOid : find_known(scope);
	bool was_here;

	if (!OidIsValid(relid))
	{
		owner_become(keys, &owner);
		find_and_lock(keys, scope, use);
		relid = find_place(keys, known.shard, &was_here);
		if (!OidIsValid(relid))
			error_shard_elsewhere(scope, was_here);
		if (shard_is_written(use))
			note_written(known.shard, relid);
		owner_leave(&owner);
	}
	*tenant = copy_tenant();
	return relid;
}

static void
check_place(Relation keys, const Place *place)
{
	bool was_here;

	AcceptInvalidationMessages();
	if (!shard_in_use(keys))
		error_shards_gone();
	if (find_place(keys, place->shard, &was_here) != place->relid)
		error_written_shard_moved();
}

/*
 * The number of a lock is the place of the shard among those of its table.  A split of another
 * shard shifts it, and moves and splits no longer wait for those who hold the old one.  One that
 * is gone is not to be locked, as above.
 */
void
shard_check_written(void)
{
	Relation keys;
	Oid relid;
	OwnerContext owner;

	/* the guard may run twice */
	if (written.checked == written.n || written.transaction != idem_local_transaction())
		return;
	relid = relation_find_if_any("idem_keys");
	/* this transaction has dropped the extension */
	if (!OidIsValid(relid))
		return;
	keys = table_open(relid, AccessShareLock);
	owner_become(keys, &owner);
	for (; written.checked < written.n; written.checked++)
	{
		const Place *place = &written.places[written.checked];

		check_place(keys, place);
		lock_shard(place->shard);
		check_place(keys, place);
	}
	owner_leave(&owner);
	table_close(keys, NoLock);
}

/* ------------------------------------------------------------------------
 * All shards of this node
 * ------------------------------------------------------------------------
 */

bool
shard_tables(bool nowait, List **tables)
{
	Relation keys = NULL;
	List *shards = NIL;
	ListCell *lc;

	*tables = NIL;
	/* one that is dropped just now is looked up again */
	while (keys == NULL)
	{
		Oid relid = relation_find("idem_keys");

		if (nowait && !ConditionalLockRelationOid(relid, AccessShareLock))
			return false;
		keys = try_table_open(relid, nowait ? NoLock : AccessShareLock);
	}
	if (shard_in_use(keys))
		shards = citus_shards(known.table);
	foreach(lc, shards)
	{
		int64 shard = *(int64 *) lfirst(lc);
		Oid table = citus_has_shard(shard) ? find_table(keys, shard) : InvalidOid;

		if (OidIsValid(table))
			*tables = lappend_oid(*tables, table);
	}
	table_close(keys, AccessShareLock);
	return true;
}

int32
shard_group(void)
{
	return known.group;
}
