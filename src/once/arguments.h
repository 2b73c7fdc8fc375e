/*-------------------------------------------------------------------------
 *
 * arguments.h
 *	  The arguments of idem_once(): lists of columns, ttl, mode, scopes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ONCE_ARGUMENTS_H
#define IDEM_ONCE_ARGUMENTS_H

#include "commands/trigger.h"
#include "datatype/timestamp.h"

#include "once/partition_move.h"
#include "once/row_key.h"

/* A list of columns that make one key. */
typedef struct KeyList
{
	List *columns; /* char * */
	text *scope;
	RowKey key;
	MovedScope moved; /* AFTER, of a partition */
} KeyList;

/* The trigger of one table. */
typedef struct OnceArguments
{
	Oid relid;
	Oid root; /* of a partition */
	bool skip;
	bool has_ttl;
	Interval ttl;
	int nlists;
	KeyList *lists;
} OnceArguments;

/*
 * Fill all but relid and root, which the caller sets first.  Raises an error if something
 * about the trigger or its table is wrong.
 */
extern void once_get_arguments(TriggerData *trigdata, OnceArguments *args);

/* The table, or the root if it is a partition: a key holds in all partitions. */
extern Oid once_table(const OnceArguments *args);

/* 22023 if it is empty. */
extern void once_check_key(const OnceArguments *args, const KeyList *list, const text *key);

#endif /* IDEM_ONCE_ARGUMENTS_H */
