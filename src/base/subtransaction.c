/*-------------------------------------------------------------------------
 *
 * subtransaction.c
 *	  Run C code in a subtransaction, and go on after an error in it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"

#include "base/subtransaction.h"

static void
restore(const Subtransaction *sub)
{
	MemoryContextSwitchTo(sub->context);
	CurrentResourceOwner = sub->owner;
}

void
subtransaction_begin(Subtransaction *sub)
{
	sub->context = CurrentMemoryContext;
	sub->owner = CurrentResourceOwner;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(sub->context);
}

void
subtransaction_commit(const Subtransaction *sub)
{
	ReleaseCurrentSubTransaction();
	restore(sub);
}

void
subtransaction_rollback(const Subtransaction *sub)
{
	RollbackAndReleaseCurrentSubTransaction();
	restore(sub);
}

ErrorData *
subtransaction_catch(const Subtransaction *sub)
{
	ErrorData *error;

	MemoryContextSwitchTo(sub->context);
	error = CopyErrorData();
	FlushErrorState();
	subtransaction_rollback(sub);
	return error;
}
