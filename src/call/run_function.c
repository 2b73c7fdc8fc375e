/*-------------------------------------------------------------------------
 *
 * run_function.c
 *	  Run a function that was found, with JSON arguments and a JSON result.
 *
 * The call is an expression tree with the function's OID, built for each call.  SQL text
 * would be resolved a second time, and could then mean another function.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "base/guc.h"
#include "call/run_function.h"

/* ------------------------------------------------------------------------
 * Arguments
 * ------------------------------------------------------------------------
 */

typedef struct ArgumentContext
{
	ErrorContextCallback callback;
	const Callee *callee;
	const CalleeParam *param;
} ArgumentContext;

static void
argument_context(void *arg)
{
	ArgumentContext *context = arg;

	if (context->param != NULL)
		errcontext("argument \"%s\" of function %s", context->param->name,
				   quote_qualified_identifier(context->callee->schema, context->callee->name));
}

static Datum
convert_argument(CalleeParam *param, Jsonb *args, bool *isnull)
{
	LOCAL_FCINFO(fcinfo, 1);
	ReturnSetInfo rsinfo = {.type = T_ReturnSetInfo, .expectedDesc = param->column};
	FmgrInfo once;
	HeapTupleData tuple = {0};

	if (!param->keep_state)
		fmgr_info(F_JSONB_TO_RECORD, &once);
	InitFunctionCallInfoData(*fcinfo, param->keep_state ? &param->convert : &once, 1, InvalidOid,
							 NULL, (Node *) &rsinfo);
	fcinfo->args[0].value = JsonbPGetDatum(args);
	fcinfo->args[0].isnull = false;
	tuple.t_data = DatumGetHeapTupleHeader(FunctionCallInvoke(fcinfo));
	tuple.t_len = HeapTupleHeaderGetDatumLength(tuple.t_data);
	return heap_getattr(&tuple, 1, param->column, isnull);
}

static Datum
eval(Expr *expr, ExprContext *econtext, bool *isnull)
{
	return ExecEvalExpr(ExecInitExpr(expr, NULL), econtext, isnull);
}

/* The argument list of the call: all arguments as constants. */
static List *
make_arguments(Callee *callee, Jsonb *args, ExprContext *econtext)
{
	List *list = NIL;
	ArgumentContext context = {.callee = callee};

	context.callback.callback = argument_context;
	context.callback.arg = &context;
	context.callback.previous = error_context_stack;
	error_context_stack = &context.callback;

	for (int i = 0; i < callee->nparams; i++)
	{
		CalleeParam *param = &callee->params[i];
		bool given = callee_has_argument(param, args);
		int16 typlen;
		bool typbyval;
		bool isnull;
		Datum value;

		context.param = given ? param : NULL;
		if (given)
			value = convert_argument(param, args, &isnull);
		else
			value = eval(expression_planner(copyObject((Expr *) param->default_value)), econtext,
						 &isnull);
		get_typlenbyval(param->type, &typlen, &typbyval);
		list = lappend(list,
					   makeConst(param->type, -1, get_typcollation(param->type), typlen,
								 isnull ? (Datum) 0 : value, isnull, typbyval));
	}

	error_context_stack = context.callback.previous;
	return list;
}

/* ------------------------------------------------------------------------
 * Running
 * ------------------------------------------------------------------------
 */

/* Build the call, with its arguments evaluated. */
static FuncExpr *
make_call(Callee *callee, Jsonb *args, ExprContext *econtext)
{
	FuncExpr *call =
		makeFuncExpr(callee->function, callee->result_type, make_arguments(callee, args, econtext),
					 callee->result_collation, callee->input_collation, COERCE_EXPLICIT_CALL);

	call->funcretset = callee->returns_set;
	return call;
}

/* The same with the callee pinned: conversions and defaults may run user code. */
static FuncExpr *
make_call_pinned(Callee *callee, Jsonb *args, ExprContext *econtext)
{
	FuncExpr *call = NULL;

	callee_pin(callee);
	PG_TRY();
	{
		call = make_call(callee, args, econtext);
	}
	PG_CATCH();
	{
		/* a conversion that failed half-way may have left an incomplete state */
		callee_unpin(callee, true);
		PG_RE_THROW();
	}
	PG_END_TRY();
	callee_unpin(callee, false);
	return call;
}

static Expr *
to_jsonb_of(Expr *value)
{
	return (Expr *) makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(value), InvalidOid, InvalidOid,
								 COERCE_EXPLICIT_CALL);
}

static Datum
run_once(FuncExpr *call, ExprContext *econtext, bool *isnull)
{
	Datum result;

	if (call->funcresulttype != VOIDOID)
		return eval(to_jsonb_of((Expr *) call), econtext, isnull);
	result = eval((Expr *) call, econtext, isnull);
	*isnull = true;
	return result;
}

/* The row type that a function returns; for a scalar, one column of its type. */
static TupleDesc
set_row_type(Oid function, bool *is_row)
{
	Oid type;
	TupleDesc desc;
	TypeFuncClass class = get_func_result_type(function, &type, &desc);

	*is_row = class == TYPEFUNC_COMPOSITE || class == TYPEFUNC_COMPOSITE_DOMAIN;
	if (*is_row)
		return BlessTupleDesc(desc);
	desc = CreateTemplateTupleDesc(1);
	TupleDescInitEntry(desc, 1, "value", type, -1, 0);
	idem_tupledesc_finalize(desc);
	return desc;
}

/* Set up to_jsonb() for values of one type. */
static void
init_to_jsonb(FmgrInfo *to_jsonb, Oid type)
{
	fmgr_info(F_TO_JSONB, to_jsonb);
	fmgr_info_set_expr((Node *) to_jsonb_of((Expr *) makeNullConst(type, -1, InvalidOid)),
					   to_jsonb);
}

/*
 * A set becomes a JSON array; an empty set is [].  In the array an element takes at least a
 * third of its own size.  So we can stop reading a set that is far too large: the result
 * will be refused anyway.
 */
static Datum
run_set(FuncExpr *call, ExprContext *econtext)
{
	const double enough = 4.0 * idem_max_result_size;
	double size = 0;
	bool is_row;
	TupleDesc desc = set_row_type(call->funcid, &is_row);
	MemoryContext per_row =
		AllocSetContextCreate(CurrentMemoryContext, "idempotency set", ALLOCSET_DEFAULT_SIZES);
	SetExprState *state = ExecInitTableFunctionResult((Expr *) call, econtext, NULL);
	Tuplestorestate *rows = ExecMakeTableFunctionResult(state, econtext, per_row, desc, false);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	ArrayBuildState *elements = initArrayResult(JSONBOID, CurrentMemoryContext, false);
	FmgrInfo to_jsonb;

	init_to_jsonb(&to_jsonb, is_row ? desc->tdtypeid : TupleDescAttr(desc, 0)->atttypid);
	while (size <= enough && tuplestore_gettupleslot(rows, true, false, slot))
	{
		MemoryContext old;
		bool isnull = false;
		Datum value;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(per_row);
		old = MemoryContextSwitchTo(per_row);
		if (is_row)
			value = ExecFetchSlotHeapTupleDatum(slot);
		else
			value = slot_getattr(slot, 1, &isnull);
		if (call->funcresulttype == VOIDOID)
			isnull = true;
		if (!isnull)
		{
			value = FunctionCall1(&to_jsonb, value);
			size += VARSIZE_ANY(DatumGetPointer(value));
		}
		MemoryContextSwitchTo(old);
		elements = accumArrayResult(elements, value, isnull, JSONBOID, CurrentMemoryContext);
	}
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(rows);
	MemoryContextDelete(per_row);

	init_to_jsonb(&to_jsonb, JSONBARRAYOID);
	return FunctionCall1(&to_jsonb, makeArrayResult(elements, CurrentMemoryContext));
}

bool
function_run(Callee *callee, Jsonb *args, Datum *result)
{
	ExprContext *econtext;
	FuncExpr *call;
	bool isnull = false;

	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	econtext = CreateStandaloneExprContext();
	call = make_call_pinned(callee, args, econtext);
	if (call->funcretset)
		*result = run_set(call, econtext);
	else
		*result = run_once(call, econtext, &isnull);
	FreeExprContext(econtext, true);
	PopActiveSnapshot();
	return !isnull;
}
