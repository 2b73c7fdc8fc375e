/*-------------------------------------------------------------------------
 *
 * find_function.c
 *	  Find the function that a caller names.
 *
 * The name is looked up in every call: the result depends on the caller's search_path and
 * privileges, and the look-up is cheap.  A "callee" caches, by OID and for the session, what
 * we know of a function: its parameters, their types and defaults, and the state of their
 * conversion.  (That state is kept only for types whose changes the conversion notices.)
 * Any change of a function or a schema makes all callees stale; a stale one is rebuilt when
 * it is needed next.  A conversion or a default can run user code, which may call back into
 * this file.  So a callee in use is pinned, and not freed before it is unpinned.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_collate.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/key.h"
#include "base/qualified_name.h"
#include "call/find_function.h"

/* remove stale callees above this number: their functions may be gone */
#define MAX_STALE 200

/* the most candidates that a hint lists */
#define MAX_LISTED 10

typedef struct CalleeEntry
{
	Oid function; /* hash key */
	Callee *callee;
} CalleeEntry;

struct Function
{
	text *name;		/* as the caller gave it */
	uint64 changes; /* value of "changes" when it was looked up */
	Callee *callee; /* valid until the next get_callee() */
	char *identity;
};

static HTAB *callees = NULL;

/* counts changes that make callees stale: a callee with an older number is stale */
static uint64 changes = 0;

/* ------------------------------------------------------------------------
 * Texts of errors
 * ------------------------------------------------------------------------
 */

/* schema.name(types), as an error shows it */
static char *
callee_display(const Callee *callee)
{
	StringInfoData s;

	initStringInfo(&s);
	appendStringInfo(&s, "%s(", quote_qualified_identifier(callee->schema, callee->name));
	for (int i = 0; i < callee->nparams; i++)
		appendStringInfo(&s, "%s%s", i > 0 ? ", " : "", format_type_be(callee->params[i].type));
	appendStringInfoChar(&s, ')');
	return s.data;
}

static char *
param_hint(const Callee *callee)
{
	StringInfoData s;

	initStringInfo(&s);
	for (int i = 0; i < callee->nparams; i++)
		if (callee->params[i].name != NULL)
			appendStringInfo(&s, "%s\"%s\"", s.len > 0 ? ", " : "", callee->params[i].name);
	if (s.len > 0)
		return psprintf("It has %s.", s.data);
	return pstrdup(callee->nparams > 0 ? "It has no named parameters." : "It has no parameters.");
}

/* The candidates of a name that is not unique, as an error shows them. */
static char *
candidates_display(FuncCandidateList candidates)
{
	StringInfoData s;
	int n = 0;

	initStringInfo(&s);
	for (; candidates != NULL && n < MAX_LISTED; candidates = candidates->next, n++)
		appendStringInfo(&s, "%s%s", n > 0 ? ", " : "", format_procedure(candidates->oid));
	if (candidates != NULL)
		appendStringInfoString(&s, ", ...");
	return s.data;
}

/* ------------------------------------------------------------------------
 * Callees
 * ------------------------------------------------------------------------
 */

static void
count_change(Datum arg, int cacheid, uint32 hashvalue)
{
	changes++;
}

static void
init_callees(void)
{
	HASHCTL ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(CalleeEntry)};

	callees = hash_create("idempotency functions", 16, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterSyscacheCallback(PROCOID, count_change, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, count_change, (Datum) 0);
}

static void
forget_callee(Callee *callee)
{
	(void) hash_search(callees, &callee->function, HASH_REMOVE, NULL);
	callee->forgotten = true;
	if (callee->pins == 0)
		MemoryContextDelete(callee->context);
}

void
callee_pin(Callee *callee)
{
	callee->pins++;
}

void
callee_unpin(Callee *callee, bool failed)
{
	if (failed && !callee->forgotten)
		forget_callee(callee);
	callee->pins--;
	if (callee->pins == 0 && callee->forgotten)
		MemoryContextDelete(callee->context);
}

static void
check_type(Oid function, Oid type, const char *what)
{
	if (IsPolymorphicType(type))
		error_not_callable(function, psprintf("It has a polymorphic %s.", what));
	if (get_typtype(type) == TYPTYPE_PSEUDO)
		error_not_callable(function,
						   psprintf("It has a %s of pseudo-type %s.", what, format_type_be(type)));
}

/* Raises an error unless it is a plain function with plain parameters. */
static void
check_callable(Form_pg_proc proc)
{
	if (proc->prokind == PROKIND_PROCEDURE)
		error_not_callable(proc->oid, "It is a procedure.");
	if (proc->prokind == PROKIND_AGGREGATE)
		error_not_callable(proc->oid, "It is an aggregate function.");
	if (proc->prokind != PROKIND_FUNCTION)
		error_not_callable(proc->oid, "It is a window function.");
	if (OidIsValid(proc->provariadic))
		error_not_callable(proc->oid, "It is variadic.");
	for (int i = 0; i < proc->pronargs; i++)
		check_type(proc->oid, proc->proargtypes.values[i], "parameter");
	if (proc->prorettype != VOIDOID && proc->prorettype != RECORDOID)
		check_type(proc->oid, proc->prorettype, "result");
	if (proc->prorettype == RECORDOID && proc->proretset &&
		get_func_result_type(proc->oid, NULL, NULL) != TYPEFUNC_COMPOSITE)
		error_not_callable(proc->oid, "It returns a set of records without column names.");
}

static void
callee_param(CalleeParam *param, const char *name, Oid type, Node *default_value)
{
	char typtype = get_typtype(type);

	if (name != NULL && name[0] != '\0')
	{
		param->name = pstrdup(name);
		param->column = CreateTemplateTupleDesc(1);
		TupleDescInitEntry(param->column, 1, name, type, -1, 0);
		idem_tupledesc_finalize(param->column);
	}
	param->type = type;
	param->default_value = default_value;
	param->keep_state =
		(typtype == TYPTYPE_BASE && !OidIsValid(get_element_type(type))) || typtype == TYPTYPE_ENUM;
	fmgr_info(F_JSONB_TO_RECORD, &param->convert);
}

/* Assign collations as the parser does for a call with arguments of these types. */
static void
callee_collations(Callee *callee)
{
	List *args = NIL;
	FuncExpr *call;

	for (int i = 0; i < callee->nparams; i++)
		args = lappend(
			args,
			makeNullConst(callee->params[i].type, -1, get_typcollation(callee->params[i].type)));
	call = makeFuncExpr(callee->function, callee->result_type, args, InvalidOid, InvalidOid,
						COERCE_EXPLICIT_CALL);
	assign_expr_collations(NULL, (Node *) call);
	callee->result_collation = call->funccollid;
	callee->input_collation = call->inputcollid;
}

static List *
proc_defaults(HeapTuple tuple)
{
	bool isnull;
	Datum d = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proargdefaults, &isnull);

	return isnull ? NIL : castNode(List, stringToNode(TextDatumGetCString(d)));
}

/* The caller has switched to the callee's own memory context. */
static void
fill_callee(Callee *callee, HeapTuple tuple)
{
	Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(tuple);
	List *defaults = proc_defaults(tuple);
	int without = proc->pronargs - list_length(defaults);
	Oid *types;
	char **names;
	char *modes;
	int nall = get_func_arg_info(tuple, &types, &names, &modes);

	/* the schema's name must be the same in every session */
	callee->schema = isAnyTempNamespace(proc->pronamespace)
		? pstrdup("pg_temp")
		: get_namespace_name(proc->pronamespace);
	callee->name = pstrdup(NameStr(proc->proname));
	callee->result_type = proc->prorettype;
	callee->returns_set = proc->proretset;
	callee->params = palloc0_array(CalleeParam, Max(proc->pronargs, 1));
	for (int i = 0; i < nall; i++)
	{
		int n = callee->nparams;

		if (modes != NULL && modes[i] != FUNC_PARAM_IN && modes[i] != FUNC_PARAM_INOUT)
			continue;
		callee_param(&callee->params[n], names != NULL ? names[i] : NULL, types[i],
					 n >= without ? list_nth(defaults, n - without) : NULL);
		callee->nparams++;
	}
	callee_collations(callee);
}

static Callee *
make_callee(Oid function)
{
	MemoryContext context;
	MemoryContext old;
	Callee *callee;
	uint64 changes_before = changes;
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));

	if (!HeapTupleIsValid(tuple))
		error_function_gone(function);
	check_callable((Form_pg_proc) GETSTRUCT(tuple));

	/* get_callee() keeps the context once the callee is complete; an error frees it */
	context =
		AllocSetContextCreate(CurrentMemoryContext, "idempotency function", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	callee = palloc0(sizeof(Callee));
	callee->function = function;
	callee->context = context;
	callee->changes = changes_before;
	fill_callee(callee, tuple);
	MemoryContextSwitchTo(old);
	ReleaseSysCache(tuple);
	return callee;
}

/* Otherwise the callees of functions that are never called again would stay for ever. */
static void
forget_stale_callees(void)
{
	HASH_SEQ_STATUS scan;
	CalleeEntry *entry;

	if (hash_get_num_entries(callees) <= MAX_STALE)
		return;
	hash_seq_init(&scan, callees);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (entry->callee->changes != changes)
			forget_callee(entry->callee);
}

static Callee *
get_callee(Oid function)
{
	CalleeEntry *entry;
	Callee *callee;

	if (callees == NULL)
		init_callees();
	entry = hash_search(callees, &function, HASH_FIND, NULL);
	if (entry != NULL && entry->callee->changes == changes)
		return entry->callee;
	if (entry != NULL)
		forget_callee(entry->callee);

	callee = make_callee(function);
	forget_stale_callees();
	entry = hash_search(callees, &function, HASH_ENTER, NULL);
	entry->callee = callee;
	MemoryContextSetParent(callee->context, TopMemoryContext);
	return callee;
}

/* ------------------------------------------------------------------------
 * Finding
 * ------------------------------------------------------------------------
 */

static bool
gives_types(const char *name)
{
	bool quoted = false;

	for (; *name != '\0'; name++)
	{
		if (*name == '"')
			quoted = !quoted;
		else if (*name == '(' && !quoted)
			return true;
	}
	return false;
}

/* The keys of a JSON object, as C strings. */
static List *
json_keys(Jsonb *args)
{
	List *keys = NIL;
	JsonbIterator *it;
	JsonbValue v;
	JsonbIteratorToken token;

	if (args == NULL)
		return NIL;
	it = JsonbIteratorInit(&args->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
		if (token == WJB_KEY)
			keys = lappend(keys, pnstrdup(v.val.string.val, v.val.string.len));
	return keys;
}

static List *
parse_name(const char *name, const char *shown)
{
	List *parts;
	List *names = NIL;
	ListCell *lc;

	if (!SplitIdentifierString(pstrdup(name), '.', &parts) || parts == NIL)
		error_function_name(shown);
	foreach(lc, parts)
		names = lappend(names, makeString(lfirst(lc)));
	return names;
}

/* Split "name(type, type)" as regprocedurein() does: returns the name, sets *types. */
static char *
split_types(const char *str, List **types)
{
	char *name = pstrdup(str);
	char *c = name;
	char *type = NULL;
	bool quoted = false;
	int depth = 0;

	*types = NIL;
	for (; *c != '\0'; c++)
	{
		if (*c == '"')
			quoted = !quoted;
		else if (quoted)
			continue;
		else if (*c == '(' || *c == '[')
		{
			if (depth++ == 0 && type == NULL)
			{
				*c = '\0';
				type = c + 1;
			}
		}
		else if ((*c == ')' || *c == ']') && --depth > 0)
			continue;
		else if (type != NULL && ((*c == ',' && depth == 1) || depth == 0))
		{
			char end = *c;

			*c = '\0';
			if (end == ',' || *types != NIL || strspn(type, " \t\n\r\f") != strlen(type))
				*types = lappend(*types, type);
			type = c + 1;
			if (depth == 0)
				break;
		}
	}
	return name;
}

/* "(type,type)", qualified; NULL if one of the types does not exist either. */
static char *
types_identity(List *types)
{
	StringInfoData s;
	ListCell *lc;

	initStringInfo(&s);
	foreach(lc, types)
	{
		Oid type;

		idem_parse_type(lfirst(lc), &type);
		if (!OidIsValid(type))
			return NULL;
		appendStringInfoChar(&s, lc == list_head(types) ? '(' : ',');
		name_append_type(&s, type);
	}
	appendStringInfoString(&s, types != NIL ? ")" : "()");
	return s.data;
}

/*
 * Would a look-up find a function in this schema?  If not, for lack of USAGE, the function
 * need not have been dropped.
 */
static bool
is_searched(const char *schema)
{
	Oid oid;

	if (strncmp(schema, "pg_temp", strlen("pg_temp")) == 0)
		return false;
	oid = get_namespace_oid(schema, true);
	return !OidIsValid(oid) || idem_schema_aclcheck(oid, GetUserId()) == ACLCHECK_OK;
}

/*
 * The schemas of the search_path, by name, because a schema may have been dropped too.  The
 * server never looks for functions in pg_temp.
 */
static List *
searched_schemas(void)
{
	List *schemas;
	List *searched = NIL;
	ListCell *lc;

	if (!SplitIdentifierString(pstrdup(namespace_search_path), ',', &schemas))
		return NIL;
	foreach(lc, schemas)
	{
		char *schema = lfirst(lc);

		if (strcmp(schema, "$user") == 0)
			schema = GetUserNameFromId(GetUserId(), false);
		if (is_searched(schema))
			searched = lappend(searched, schema);
	}
	return lappend(searched, "pg_catalog");
}

List *
function_identities(text *name)
{
	char *str = text_to_cstring(name);
	List *types = NIL;
	char *suffix = "";
	List *parts;
	List *schemas;
	List *identities = NIL;
	ListCell *lc;

	if (gives_types(str))
	{
		str = split_types(str, &types);
		suffix = types_identity(types);
	}
	if (suffix == NULL || !SplitIdentifierString(pstrdup(str), '.', &parts) || parts == NIL)
		return NIL;
	schemas = list_length(parts) > 1 ? list_make1(list_nth(parts, list_length(parts) - 2))
									 : searched_schemas();
	foreach(lc, schemas)
	{
		StringInfoData s;

		initStringInfo(&s);
		name_append(&s, lfirst(lc), llast(parts));
		appendStringInfoString(&s, suffix);
		identities = lappend(identities, s.data);
	}
	return identities;
}

/* Find by name alone if that is unique, else by argument names as in f(a => ..., b => ...). */
static Oid
find_by_name(const char *name, const char *shown, Jsonb *args)
{
	List *names = parse_name(name, shown);
	List *keys;
	FuncCandidateList all = idem_function_candidates(names, -1, NIL, false);
	FuncCandidateList fitting;

	if (all == NULL)
		return InvalidOid;
	if (all->next == NULL)
		return all->oid;

	keys = json_keys(args);
	fitting = idem_function_candidates(names, list_length(keys), keys, true);
	if (fitting == NULL || fitting->next != NULL || !OidIsValid(fitting->oid))
		error_ambiguous_function(shown, candidates_display(all));
	return fitting->oid;
}

bool
callee_has_argument(const CalleeParam *param, Jsonb *args)
{
	JsonbValue value;

	return args != NULL && param->name != NULL &&
		getKeyJsonValueFromContainer(&args->root, param->name, strlen(param->name), &value) != NULL;
}

pg_noreturn static void
raise_unknown(const Callee *callee, Jsonb *args)
{
	ListCell *lc;

	foreach(lc, json_keys(args))
	{
		const char *key = lfirst(lc);
		bool known = false;

		for (int i = 0; i < callee->nparams && !known; i++)
			known = callee->params[i].name != NULL && strcmp(callee->params[i].name, key) == 0;
		if (!known)
			error_no_parameter(callee_display(callee),
							   pnstrdup(key, pg_mbcliplen(key, strlen(key), NAMEDATALEN)),
							   param_hint(callee));
	}
	elog(ERROR, "arguments of function %s do not fit", callee_display(callee));
}

/* Do args have all required arguments and no unknown ones? */
bool
function_takes(const Function *function, Jsonb *args)
{
	const Callee *callee = function->callee;
	int known = 0;

	for (int i = 0; i < callee->nparams; i++)
	{
		if (callee_has_argument(&callee->params[i], args))
			known++;
		else if (callee->params[i].default_value == NULL)
			return false;
	}
	return args == NULL || known == (int) JsonContainerSize(&args->root);
}

/* Raises an error unless args have all required arguments and no unknown ones. */
static void
check_arguments(const Callee *callee, Jsonb *args)
{
	int known = 0;

	for (int i = 0; i < callee->nparams; i++)
	{
		const CalleeParam *param = &callee->params[i];

		if (callee_has_argument(param, args))
			known++;
		else if (param->default_value == NULL && param->name == NULL)
			error_unnamed_parameter(callee_display(callee), i + 1);
		else if (param->default_value == NULL)
			error_missing_argument(callee_display(callee), param->name);
	}
	if (args != NULL && known != (int) JsonContainerSize(&args->root))
		raise_unknown(callee, args);
}

/* Find by name and argument types; InvalidOid if there is none. */
static Oid
find_by_types(const char *str)
{
	LOCAL_FCINFO(fcinfo, 1);
	Datum result;

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = CStringGetTextDatum(str);
	fcinfo->args[0].isnull = false;
	result = to_regprocedure(fcinfo);
	return fcinfo->isnull ? InvalidOid : DatumGetObjectId(result);
}

static char *
callee_identity(const Callee *callee, bool with_types)
{
	StringInfoData s;

	initStringInfo(&s);
	name_append(&s, callee->schema, callee->name);
	if (with_types)
	{
		for (int i = 0; i < callee->nparams; i++)
		{
			appendStringInfoChar(&s, i > 0 ? ',' : '(');
			name_append_type(&s, callee->params[i].type);
		}
		appendStringInfoString(&s, callee->nparams > 0 ? ")" : "()");
	}
	return s.data;
}

Function *
function_find(text *name, Jsonb *args)
{
	Function *function = function_find_if_any(name, args);
	char *str = text_to_cstring(name);

	if (function == NULL && gives_types(str))
		/* raises an error that says which part of the name does not exist */
		(void) DirectFunctionCall1(regprocedurein, CStringGetDatum(str));
	if (function == NULL)
		error_undefined_function(key_text_display(name));
	check_arguments(function->callee, args);
	return function;
}

Function *
function_find_if_any(text *name, Jsonb *args)
{
	Function *function = palloc(sizeof(Function));
	char *str = text_to_cstring(name);
	char *shown = key_text_display(name);
	AclResult acl;
	bool types_given = gives_types(str);
	Oid oid;

	if (args != NULL && !JB_ROOT_IS_OBJECT(args))
		error_args_no_object(shown);

	if (types_given)
		oid = find_by_types(str);
	else
		oid = find_by_name(str, shown, args);
	if (!OidIsValid(oid))
		return NULL;

	acl = idem_function_aclcheck(oid, GetUserId());
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FUNCTION, get_func_name(oid));
	function->name = name;
	function->callee = get_callee(oid);
	function->changes = function->callee->changes;
	function->identity = callee_identity(function->callee, types_given);
	return function;
}

char *
function_identity(const Function *function)
{
	return function->identity;
}

Callee *
function_callee(Function *function, Jsonb *args)
{
	const char *identity = function->identity;

	/* while we waited, the function may have been replaced, or EXECUTE revoked */
	AcceptInvalidationMessages();
	if (function->changes == changes)
		return function->callee;
	function = function_find(function->name, args);
	/* the call was claimed by its identity, and a repeated one would be another request */
	if (strcmp(function->identity, identity) != 0)
		error_function_changed(key_text_display(function->name), identity);
	return function->callee;
}
