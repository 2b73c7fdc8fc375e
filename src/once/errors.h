/*-------------------------------------------------------------------------
 *
 * once/errors.h
 *	  The errors of idem_once(), one macro per condition, in the order of the SQLSTATEs.
 *
 * See base/errors.h for all others.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ONCE_ERRORS_H
#define IDEM_ONCE_ERRORS_H

#include "commands/trigger.h"

#include "base/key.h"

#define ON_TABLE "trigger \"%s\" on table \"%s\""
#define trigger_and_table(trigdata_) \
	(trigdata_)->tg_trigger->tgname, RelationGetRelationName((trigdata_)->tg_relation)

/* 0A000 */
#define error_table(trigdata_, kind_) \
	ereport(ERROR, \
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
			 errmsg(ON_TABLE " cannot guard a %s", trigger_and_table(trigdata_), (kind_)), \
			 errdetail("Rows and keys would not commit together.")))

/* 0A000 */
#define error_distributed(trigdata_, detail_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
		 errmsg(ON_TABLE " cannot claim keys in a Citus cluster", trigger_and_table(trigdata_)), \
		 errdetail("%s", (detail_)), \
		 errhint("Make the distribution column part of a UNIQUE constraint: UNIQUE (tenant, " \
				 "event_id).")))

/* 0A000 */
#define error_generated_column(trigdata_, column_) \
	ereport(ERROR, \
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
			 errmsg(ON_TABLE " cannot read the generated column \"%s\"", \
					trigger_and_table(trigdata_), (column_)), \
			 errdetail("It has no value yet when the trigger fires.")))

#define error_generated_partitioned(trigdata_, column_) \
	ereport(ERROR, \
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
			 errmsg(ON_TABLE " cannot read the generated column \"%s\" of a partitioned table", \
					trigger_and_table(trigdata_), (column_)), \
			 errdetail("The transition table may not have its value."), \
			 errhint("Create the trigger FOR EACH ROW.")))

/* 22023 */
#define error_argument(trigdata_, what_, value_, why_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
		 errmsg(ON_TABLE " has the invalid %s \"%s\"", trigger_and_table(trigdata_), (what_), \
				(value_)), \
		 errdetail("%s", (why_)), \
		 errhint("Its arguments are columns, ttl, 'raise' or 'skip', and scope; several lists " \
				 "of columns are separated by semicolons, and so are their scopes.")))

/* 22023 */
#define error_no_column(trigdata_, column_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg(ON_TABLE " needs column \"%s\", which does not exist", \
					trigger_and_table(trigdata_), (column_)), \
			 errhint("If the column was renamed, create the trigger anew.")))

/* 22023 */
#define error_same_scope(trigdata_, other_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg(ON_TABLE " has the same scope as trigger \"%s\"", \
					trigger_and_table(trigdata_), (other_)->tg_trigger->tgname), \
			 errdetail("Keys of different columns would be taken for each other."), \
			 errhint("Give one of them a scope of its own, as the fourth argument.")))

/* 22023 */
#define error_empty_column(column_, table_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("column \"%s\" of table \"%s\" must not be empty", (column_), (table_)), \
			 errdetail("Its value is the row's idempotency key."), \
			 errhint("Rows that need no key have NULL there.")))

/*
 * 23505, as a unique index reports it, so that ORMs and drivers recognise it.  Without
 * "columns_" the values are not shown.
 */
#define error_duplicate(trigdata_, columns_, values_) \
	ereport(ERROR, \
			(errcode(ERRCODE_UNIQUE_VIOLATION), \
			 errmsg("duplicate key value violates unique constraint \"%s\"", \
					(trigdata_)->tg_trigger->tgname), \
			 (columns_) != NULL \
				 ? errdetail("Key (%s)=(%s) already exists.", (columns_), (values_)) \
				 : 0, \
			 errhint("Trigger \"%s\" remembers a key until it expires, even if its row was " \
					 "deleted; idem_forget() frees it. ON CONFLICT does not apply to it.", \
					 (trigdata_)->tg_trigger->tgname), \
			 errtableconstraint((trigdata_)->tg_relation, (trigdata_)->tg_trigger->tgname)))

/* 39P01 */
#define error_not_a_trigger() \
	ereport(ERROR, \
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED), \
			 errmsg("function \"%s\" was not called by trigger manager", "idem_once")))

/* 39P01 */
#define error_fired(trigdata_, how_) \
	ereport(ERROR, \
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED), \
			 errmsg(ON_TABLE " must be fired %s", trigger_and_table(trigdata_), (how_)), \
			 errhint("Create it as AFTER ... FOR EACH ROW, or with 'skip' as BEFORE ... FOR EACH " \
					 "ROW.")))

/* 39P01 */
#define error_fired_for_statement(trigdata_, how_) \
	ereport(ERROR, \
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED), \
			 errmsg(ON_TABLE " must be fired %s", trigger_and_table(trigdata_), (how_)), \
			 errhint("Create it as AFTER INSERT ... REFERENCING NEW TABLE AS new_rows FOR EACH " \
					 "STATEMENT, or else as AFTER ... FOR EACH ROW.")))

/* 39P01: a BEFORE trigger of the event "event_" is fired after ours */
#define error_not_last(trigdata_, other_, event_) \
	ereport(ERROR, \
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED), \
			 errmsg(ON_TABLE " must be fired last, and trigger \"%s\" is fired after it", \
					trigger_and_table(trigdata_), (other_)->tgname), \
			 errdetail("That trigger could drop or change a row whose key is claimed."), \
			 (other_)->tgfoid == (trigdata_)->tg_trigger->tgfoid \
				 ? errhint("Create one trigger with the columns of both, separated by a " \
						   "semicolon.") \
				 : errhint("BEFORE %s triggers are fired in the order of their names: rename " \
						   "one with ALTER TRIGGER.", \
						   (event_))))

/* 39P01: the same, for a BEFORE DELETE trigger */
#define error_not_last_on_delete(trigdata_, other_) \
	ereport(ERROR, \
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED), \
			 errmsg(ON_TABLE " must be fired last, and trigger \"%s\" is fired after it", \
					trigger_and_table(trigdata_), (other_)->tgname), \
			 errdetail("A row that moves to another partition is deleted here, which that " \
					   "trigger could prevent when the row's new key is claimed."), \
			 errhint("Change the key and the partition in two commands.")))

/* 39P01 */
#define error_might_lose_row(trigdata_, key_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED), \
		 errmsg(ON_TABLE " might lose a row that moves to here", trigger_and_table(trigdata_)), \
		 errdetail("No BEFORE UPDATE trigger of idem_once() has let the row pass that is " \
				   "inserted under idempotency key \"%s\".", \
				   key_display(key_)), \
		 errhint("Create it as BEFORE INSERT OR UPDATE, without a list of columns and " \
				 "without WHEN, on all partitions.")))

#endif /* IDEM_ONCE_ERRORS_H */
