/*-------------------------------------------------------------------------
 *
 * subtransaction.h
 *	  Run C code in a subtransaction, and go on after an error in it.
 *
 *		subtransaction_begin(&sub);
 *		PG_TRY();
 *		{
 *			...
 *			subtransaction_commit(&sub);
 *		}
 *		PG_CATCH();
 *		{
 *			ErrorData *error = subtransaction_catch(&sub);
 *			...
 *		}
 *		PG_END_TRY();
 *
 * The memory context stays the caller's throughout.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SUBTRANSACTION_H
#define IDEM_SUBTRANSACTION_H

#include "utils/resowner.h"

/* What the subtransaction's end does not restore. */
typedef struct Subtransaction
{
	MemoryContext context;
	ResourceOwner owner;
} Subtransaction;

extern void subtransaction_begin(Subtransaction *sub);
extern void subtransaction_commit(const Subtransaction *sub);
extern void subtransaction_rollback(const Subtransaction *sub);

/* In PG_CATCH: roll back.  Returns the error, copied into the caller's memory context. */
extern ErrorData *subtransaction_catch(const Subtransaction *sub);

#endif /* IDEM_SUBTRANSACTION_H */
