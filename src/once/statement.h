/*-------------------------------------------------------------------------
 *
 * statement.h
 *	  All rows that a statement has inserted, claimed at once.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ONCE_STATEMENT_H
#define IDEM_ONCE_STATEMENT_H

#include "commands/trigger.h"

#include "once/arguments.h"

/* Claim the keys of all rows of the transition table; 23505 if one of them is taken. */
extern void statement_claim(TriggerData *trigdata, OnceArguments *args);

#endif /* IDEM_ONCE_STATEMENT_H */
