/*-------------------------------------------------------------------------
 *
 * duplicate.h
 *	  The error for a row whose key is taken, as far as the user may see it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ONCE_DUPLICATE_H
#define IDEM_ONCE_DUPLICATE_H

#include "access/htup.h"
#include "commands/trigger.h"

#include "base/compat.h"
#include "once/arguments.h"

/* 23505 */
pg_noreturn extern void
refuse_duplicate(TriggerData *trigdata, OnceArguments *args, KeyList *list, HeapTuple row);

#endif /* IDEM_ONCE_DUPLICATE_H */
