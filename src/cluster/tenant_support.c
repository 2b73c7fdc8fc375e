/*-------------------------------------------------------------------------
 *
 * tenant_support.c
 *	  Planner support of the functions that idem_distribute() makes.
 *
 * Citus decides where such a call goes from the value of its tenant, after the planner has run.
 * It takes NULL for a value, and crashes if the type is passed by reference.  STRICT would keep
 * NULL out, but all other arguments as well, most of which may be NULL, and the caller would get NULL
 * for an answer.  So the planner asks here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "nodes/primnodes.h"
#include "nodes/supportnodes.h"

#include "base/errors.h"

PG_FUNCTION_INFO_V1(idem_tenant_support);

/*
 * idem_tenant_support(internal) RETURNS internal
 *
 * Simplifies nothing: NULL means that the call stays.
 */
Datum
idem_tenant_support(PG_FUNCTION_ARGS)
{
	Node *request = (Node *) PG_GETARG_POINTER(0);

	if (IsA(request, SupportRequestSimplify))
	{
		List *args = ((SupportRequestSimplify *) request)->fcall->args;
		Node *tenant = args == NIL ? NULL : linitial(args);

		if (tenant != NULL && IsA(tenant, Const) && ((Const *) tenant)->constisnull)
			error_null("tenant");
	}
	PG_RETURN_POINTER(NULL);
}
