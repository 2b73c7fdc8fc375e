/*-------------------------------------------------------------------------
 *
 * errors.h
 *	  One macro per error condition that a user can meet, in the order of the SQLSTATEs.
 *
 * Errors about triggers, which nothing below once/ knows, are in once/errors.h.  No other
 * file raises an error with an SQLSTATE, which scripts/check-errors checks: what no user can
 * cause is an elog() where it is found.
 *
 * Every message about a claim names the key, truncated by key_display().  No message ever
 * shows a token or a code.  A file that uses a macro with a key includes base/key.h.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ERRORS_H
#define IDEM_ERRORS_H

#include "access/parallel.h"
#include "access/xact.h"

#define ERRCODE_IDEM_REQUEST_MISMATCH MAKE_SQLSTATE('I', 'D', '0', '0', '2')
#define ERRCODE_IDEM_NO_CLAIM MAKE_SQLSTATE('I', 'D', '0', '0', '3')
#define ERRCODE_IDEM_SUPERSEDED MAKE_SQLSTATE('I', 'D', '0', '0', '4')
#define ERRCODE_IDEM_UNFINISHED MAKE_SQLSTATE('I', 'D', '0', '0', '5')
#define ERRCODE_IDEM_FINISHED MAKE_SQLSTATE('I', 'D', '0', '0', '6')

/* 0A000 */
#define error_unfit_table(purpose_, name_, detail_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
		 errmsg("cannot keep %s in table \"%s\"", (purpose_), (name_)), \
		 errdetail("%s", (detail_)), \
		 errhint( \
			 "The table must stay the plain, logged, local table that CREATE EXTENSION made.")))

/* 0A000; "qualified_" is the table's name as well */
#define error_unfit_trigger(purpose_, name_, trigger_, qualified_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
		 errmsg("cannot keep %s in table \"%s\"", (purpose_), (name_)), \
		 errdetail("It has the trigger \"%s\", which would not fire.", (trigger_)), \
		 errhint("Run DROP TRIGGER %s ON %s, and exclude the extension's tables from whatever " \
				 "created it; pg_repack and audit tools create such triggers.", \
				 quote_identifier(trigger_), (qualified_))))

/* 0A000: the table that idem_distribute() has made, or a shard of it */
#define error_tenant_table(name_, detail_) \
	ereport(ERROR, \
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
			 errmsg("cannot keep idempotency keys in table \"%s\"", (name_)), \
			 errdetail("%s", (detail_)), \
			 errhint("Undo what was done to it; or, once its keys have expired, drop it and the " \
					 "functions of idem_distribute().")))

/* 0A000: a node of a cluster has an idem_keys that the other nodes do not look at */
#define error_keys_on_worker(name_) \
	ereport(ERROR, \
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
			 errmsg("cannot keep idempotency keys in table \"%s\" of a Citus worker", (name_)), \
			 errdetail("Each node has a table of its own, so a request could run once on each."), \
			 errhint("Call idem_distribute() on the coordinator.")))

/* 0A000: a batch is written to one table */
#define error_many_tenants(scope_, other_) \
	ereport(ERROR, \
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
			 errmsg("keys of tenants \"%s\" and \"%s\" in one batch", key_text_display(scope_), \
					key_text_display(other_)), \
			 errhint("The keys are distributed by tenant: make a batch for each.")))

/* 0A000: a function that idem_call cannot call */
#define error_not_callable(function_, detail_) \
	ereport(ERROR, \
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
			 errmsg("%s cannot be called with JSON arguments", format_procedure(function_)), \
			 errdetail("%s", (detail_)), \
			 errhint("Write a function around it that takes named parameters of plain types.")))

/* 22004: a required value is NULL */
#define error_null(what_) \
	ereport(ERROR, \
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be null", (what_))))

/* 22004 and 22023: an array of keys, which would be claimed in part otherwise */
#define error_element(sqlstate_, number_, what_) \
	ereport(ERROR, \
			(errcode(sqlstate_), \
			 errmsg("element %d of the idempotency keys must not be %s", (number_), (what_)), \
			 errhint("Pass only what can be a key: ARRAY(SELECT id FROM ... WHERE id <> '').")))

#define error_null_element(number_) error_element(ERRCODE_NULL_VALUE_NOT_ALLOWED, number_, "null")
#define error_empty_element(number_) \
	error_element(ERRCODE_INVALID_PARAMETER_VALUE, number_, "empty")

/* 22023 */
#define error_empty(what_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must not be empty", (what_))))

/* 22023: a number out of range; the limits are allowed */
#define error_range(what_, lower_, upper_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("%s must be between %lld and %lld", (what_), (long long) (lower_), \
					(long long) (upper_))))

/* 22023: "text_" is shown, truncated */
#define error_too_long(what_, text_, size_, limit_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("%s \"%s\" is too long", (what_), key_text_display(text_)), \
			 errdetail("It has %d bytes in UTF-8; at most %d are allowed.", (size_), (limit_)), \
			 errhint("Use a hash of it instead.")))

#define hint_tenant() errhint("The keys are distributed by tenant: give the tenant as the scope.")

/* 22023, in an error context callback: the type's input function has refused the scope */
#define hint_not_tenant() ((void) errcode(ERRCODE_INVALID_PARAMETER_VALUE), (void) hint_tenant())

/* 22023: the scope of keys that are distributed by tenant */
#define error_not_tenant(scope_, type_, written_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("idempotency scope \"%s\" is not a tenant of type %s", \
					key_text_display(scope_), format_type_be(type_)), \
			 VARSIZE_ANY_EXHDR(scope_) == 0 \
				 ? hint_tenant() \
				 : errhint("Write the tenant as the server does: \"%s\".", (written_))))

/* 22023: an element of keep_errors */
#define error_invalid_sqlstate(code_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("invalid SQLSTATE \"%s\" in keep_errors", (code_)), \
			 errhint("Give five digits and upper-case letters, or the two of a class.")))

/* 22023: an element of keep_errors */
#define error_not_an_answer(code_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
		 errmsg("cannot keep errors of SQLSTATE \"%s\"", (code_)), \
		 errdetail("Classes 08, 25, 40, 53, 55, 57, 58, 72, F0, HV, XX and ID are no answers: a " \
				   "retry may succeed."), \
		 errhint("List only errors that a repeated request would meet again.")))

/* 22023 */
#define error_no_scope(what_, key_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
		 errmsg("%s \"%s\" needs a scope", (what_), key_text_display(key_)), \
		 errhint( \
			 "\"idempotency.require_scope\" is on: pass a non-empty scope, such as the tenant " \
			 "or the endpoint, or set \"idempotency.default_scope\".")))

/* 22023: the value of a header field Idempotency-Key */
#define error_http_key(value_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("malformed idempotency key %s", key_text_display(value_)), \
			 errdetail("What begins with a double quote must be a structured string: printable " \
					   "ASCII in double quotes, with \\\" and \\\\ for these two."), \
			 errhint("Pass the key that idem_http_begin got.")))

/* 22023: a status that says "try again" */
#define error_http_try_again(key_, status_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("cannot store status %d as the answer of idempotency key \"%s\"", (status_), \
					key_display(key_)), \
			 errdetail("408, 425, 429 and 500 and more tell the client to try again."), \
			 errhint("Roll back, and the next attempt runs.")))

/* 22023 */
#define error_http_status(key_, status_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("cannot store status %d as the answer of idempotency key \"%s\"", (status_), \
					key_display(key_)), \
			 errdetail("It is not the status of a final answer."), \
			 errhint("Give one from 200 to 499, but not 408, 425 or 429.")))

/* 22023 */
#define error_http_headers() \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("headers must be a JSON object of strings"), \
			 errhint("Pass names and values, such as {\"Content-Type\": \"application/json\"}.")))

/* 22023 */
#define error_http_field_name(name_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("invalid name \"%s\" of a header field", (name_)), \
			 errhint("Use letters, digits and hyphens.")))

/* 22023: the value may be secret */
#define error_http_field_value(name_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("value of header field \"%s\" has a line break", (name_)), \
			 errhint("Remove it: a line break would begin another field.")))

/* 22023: of a claim, unless the key is NULL */
#define error_interval(what_, interval_, key_, hint_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 (key_) != NULL ? errmsg("invalid %s \"%s\" for idempotency key \"%s\"", (what_), \
									 (interval_), key_display(key_)) \
							: errmsg("invalid %s \"%s\"", (what_), (interval_)), \
			 errhint("%s", (hint_))))

/* 22023 */
#define error_array(what_, ndim_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("%s must be a one-dimensional array", (what_)), \
			 errdetail("The array has %d dimensions.", (ndim_))))

/* 22023: an array of what belongs to each key */
#define error_array_length(what_, n_, nkeys_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("array \"%s\" must have as many elements as there are keys", (what_)), \
			 errdetail("Number of elements: %d. Number of keys: %d.", (n_), (nkeys_)), \
			 errhint("Pass null for an element, or for the array, to give nothing.")))

/* 22023: when a key that is imported was created */
#define error_created_at(created_at_, key_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
		 errmsg("invalid created_at \"%s\" for idempotency key \"%s\"", (created_at_), \
				key_display(key_)), \
		 errhint("Give a time that has passed, such as least(created_at, now()) where another " \
				 "machine's clock is ahead.")))

/* 22023 */
#define error_period(key_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("period of throttle key \"%s\" is out of range", key_text_display(key_)), \
			 errhint("It must be from 1 millisecond to 10 years.")))

/* 22023 */
#define error_cost(key_, cost_, max_calls_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
		 errmsg("cost of throttle key \"%s\" must be at most max_calls", key_text_display(key_)), \
		 errdetail("A call that costs %d would never be allowed with max_calls %d.", (cost_), \
				   (max_calls_))))

/* 22023 */
#define error_job(name_, jobs_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("unrecognized job \"%s\"", (name_)), \
			 errhint("Jobs are %s.", (jobs_))))

/* 22023: the name of a function, as it was given */
#define error_function_name(name_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("invalid function name \"%s\"", (name_)), \
			 errhint("Give a name, as in SQL, or a name and argument types in parentheses.")))

/* 22023: arguments of idem_call that are no JSON object */
#define error_args_no_object(name_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("args of function \"%s\" must be a JSON object", (name_)), \
			 errhint("Pass the arguments by name: {\"name\": value, ...}.")))

/* 22023: an argument that the function does not have */
#define error_no_parameter(function_, name_, hint_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("function %s has no parameter \"%s\"", (function_), (name_)), \
			 errhint("%s", (hint_))))

/* 22023: a parameter without name or default */
#define error_unnamed_parameter(function_, number_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("parameter %d of function %s has no name", (number_), (function_)), \
			 errhint("Arguments are passed by name: give it one, or a default.")))

/* 22023: a parameter without default that gets no value */
#define error_missing_argument(function_, name_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), \
			 errmsg("argument \"%s\" of function %s is missing", (name_), (function_)), \
			 errhint("The parameter has no default: pass a value, or null.")))

/*
 * 25000.  The functions are PARALLEL UNSAFE, but a function that calls them may be marked
 * otherwise; and a parallel worker has neither the transaction's claims nor the commit
 * guard.
 */
#define refuse_in_parallel_if(condition_, function_, safe_) \
	do \
	{ \
		if (condition_) \
			ereport(ERROR, \
					(errcode(ERRCODE_INVALID_TRANSACTION_STATE), \
					 errmsg("cannot call %s() during a parallel operation", (function_)), \
					 errhint("Mark the function that calls it PARALLEL %s.", (safe_)))); \
	} while (0)

#define refuse_in_parallel(function_) \
	refuse_in_parallel_if(IsInParallelMode() || IsParallelWorker(), function_, "UNSAFE")

/* for a PARALLEL RESTRICTED function, which the leader may call */
#define refuse_in_worker(function_) \
	refuse_in_parallel_if(IsParallelWorker(), function_, "RESTRICTED or UNSAFE")

/* 25000: the commit guard could no longer check whether the claim is finished */
#define error_too_late(key_) \
	ereport(ERROR, \
			(errcode(ERRCODE_INVALID_TRANSACTION_STATE), \
			 errmsg("cannot claim idempotency key \"%s\" while its transaction commits", \
					key_display(key_)), \
			 errhint("Claim the key before the transaction commits, or load this library before " \
					 "the one that claims in a commit callback.")))

/* 25006 */
#define error_read_only(key_, verb_) \
	ereport(ERROR, \
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION), \
			 errmsg("cannot %s idempotency key \"%s\" in a read-only transaction", (verb_), \
					key_display(key_)), \
			 errhint("A read-only transaction or a standby can only replay finished keys; run " \
					 "this on the primary in a read-write transaction.")))

/* 25006, for tokens and codes, which no message names */
#define error_token_read_only(verb_) \
	ereport(ERROR, \
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION), \
			 errmsg("cannot %s a token or code in a read-only transaction", (verb_)), \
			 errhint("Run this on the primary in a read-write transaction.")))

/* 25006, for a purge */
#define error_purge_read_only() \
	ereport(ERROR, \
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION), \
			 errmsg("cannot purge in a read-only transaction")))

/* 40001 */
#define error_serialization(key_) \
	ereport(ERROR, \
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE), \
			 errmsg("could not serialize access: idempotency key \"%s\" was written by another " \
					"transaction", \
					key_display(key_)), \
			 errhint("Roll back and retry the transaction; it then gets the stored result.")))

/* 40001, or 55000 if the shard was never on this node */
#define error_shard_elsewhere(scope_, was_here_) \
	ereport( \
		ERROR, \
		(errcode((was_here_) ? ERRCODE_T_R_SERIALIZATION_FAILURE \
							 : ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), \
		 (was_here_) \
			 ? errmsg("could not serialize access: the keys of tenant \"%s\" have moved to " \
					  "another node", \
					  key_text_display(scope_)) \
			 : errmsg("the keys of tenant \"%s\" are on another node", key_text_display(scope_)), \
		 (was_here_) ? errhint("Roll back and retry the transaction.") \
					 : errhint("Call a function that Citus sends to that node, such as " \
							   "idem_begin_for() or one that create_distributed_function() has " \
							   "distributed by tenant.")))

/* 40001: at the commit */
#define error_written_shard_moved() \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE), \
		 errmsg("could not serialize access: keys that the transaction has written have moved to " \
				"another node"), \
		 errhint("Roll back and retry the transaction.")))

/* 40001: between two looks */
#define error_shards_gone() \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE), \
		 errmsg( \
			 "could not serialize access: the table of idempotency keys is no longer distributed"), \
		 errhint("Roll back and retry the transaction.")))

/* 40001: while idem_call waited for its key */
#define error_function_changed(name_, identity_) \
	ereport(ERROR, \
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE), \
			 errmsg("could not serialize access: function name \"%s\" no longer means %s", \
					(name_), (identity_)), \
			 errhint("Roll back and retry the transaction.")))

/* 42725: "candidates" is a list of functions */
#define error_ambiguous_function(name_, candidates_) \
	ereport(ERROR, \
			(errcode(ERRCODE_AMBIGUOUS_FUNCTION), \
			 errmsg("function name \"%s\" is not unique", (name_)), \
			 errhint("Give the argument types as well: %s.", (candidates_))))

/* 42883: the name of a function, as it was given */
#define error_undefined_function(name_) \
	ereport(ERROR, \
			(errcode(ERRCODE_UNDEFINED_FUNCTION), \
			 errmsg("function \"%s\" does not exist", (name_)), \
			 errhint("There is no function of that name that is visible to the caller.")))

/* 42883: dropped after its name was looked up */
#define error_function_gone(oid_) \
	ereport(ERROR, \
			(errcode(ERRCODE_UNDEFINED_FUNCTION), \
			 errmsg("function with OID %u does not exist", (oid_))))

/* 42P01 */
#define error_no_relation(name_) \
	ereport(ERROR, \
			(errcode(ERRCODE_UNDEFINED_TABLE), \
			 errmsg("relation \"%s\" of extension \"idempotency\" does not exist", (name_)), \
			 errhint("Run CREATE EXTENSION idempotency.")))

/* 53200 */
#define error_out_of_memory() \
	ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")))

/* 53200 */
#define error_lock_table_full(key_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_OUT_OF_MEMORY), \
		 errmsg("lock table is full, cannot claim idempotency key \"%s\"", key_display(key_)), \
		 errdetail("Each claim that is begun holds a lock until its transaction ends; other " \
				   "sessions need the lock table as well."), \
		 errhint("Begin fewer claims in one transaction, or increase " \
				 "\"max_locks_per_transaction\". Keys that need no result, such as those of " \
				 "messages, can be claimed with idem_claim_many, which takes no lock for a new " \
				 "key; they replay a null result.")))

/* 54000 */
#define error_too_large(key_, what_, size_, limit_) \
	ereport(ERROR, \
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), \
			 errmsg("%s of idempotency key \"%s\" is too large", (what_), key_display(key_)), \
			 errdetail("It has %zu bytes; \"idempotency.max_result_size\" is %d bytes.", \
					   (Size) (size_), (limit_)), \
			 errhint("Store the data elsewhere and a reference to it here.")))

/* 54000, for a token */
#define error_payload_too_large(size_, limit_) \
	ereport(ERROR, \
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("payload of token is too large"), \
			 errdetail("It has %zu bytes; \"idempotency.max_result_size\" is %d bytes.", \
					   (Size) (size_), (limit_)), \
			 errhint("Store the data elsewhere and a reference to it here.")))

/* 55000 */
#define error_no_shared_memory(what_) \
	ereport(ERROR, \
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), \
			 errmsg("%s needs shared memory, and there is none", (what_)), \
			 errhint("Add \"idempotency\" to \"shared_preload_libraries\" and restart the " \
					 "server; PostgreSQL 17 and later need no preload.")))

/* 55000: a table or the sequence is not as the library needs it */
#define hint_table_changed() \
	errhint("Run ALTER EXTENSION idempotency UPDATE, and undo changes to the table made by hand.")

#define error_columns(table_) \
	ereport(ERROR, \
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), \
			 errmsg("columns of table \"%s\" are not those that version %s of the library knows", \
					(table_), IDEM_VERSION), \
			 hint_table_changed()))

#define error_column(column_, table_) \
	ereport(ERROR, \
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), \
			 errmsg("column \"%s\" of table \"%s\" is not what version %s of the library knows", \
					(column_), (table_), IDEM_VERSION), \
			 hint_table_changed()))

#define error_citus_catalog(catalog_, column_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), \
		 errmsg( \
			 "column \"%s\" of Citus catalog \"%s\" is not what version %s of the library knows", \
			 (column_), (catalog_), IDEM_VERSION), \
		 errhint("Use versions of Citus and idempotency that were tested together.")))

/* 54000 */
#define error_too_many_groups(group_, limit_) \
	ereport(ERROR, \
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), \
			 errmsg("node group %d cannot issue fences", (group_)), \
			 errdetail("The groups of a cluster must have numbers below %d.", (limit_)), \
			 errhint("Use claims without a lease for the tenants on this node.")))

/* "columns_" are those of the key */
#define error_no_primary_key(table_, columns_) \
	ereport(ERROR, \
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), \
			 errmsg("table \"%s\" lacks its primary key", (table_)), \
			 errhint("ALTER TABLE ... ADD PRIMARY KEY (%s) brings it back; until then nothing " \
					 "could keep duplicates out.", \
					 (columns_))))

#define error_renamed(table_) \
	ereport(ERROR, \
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), \
			 errmsg("table \"%s\" was renamed or replaced", (table_)), \
			 errhint("Retry the transaction.")))

#define error_sequence_behind(sequence_, table_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), \
		 errmsg("sequence \"%s\" is behind the fences in table \"%s\"", (sequence_), (table_)), \
		 errhint("Set it past max(fence) with setval(); logical replication does not copy it.")))

/* 55000: a table that is not as the extension made it */
#define error_no_expiry_column(table_) \
	ereport(ERROR, \
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), \
			 errmsg("table \"%s\" has no column \"expires_at\" of type timestamptz", (table_)), \
			 errhint("Undo changes to the table made by hand.")))

/* 55P03: the transaction would wait for itself */
#define error_own_claim(key_) \
	ereport(ERROR, \
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE), \
			 errmsg("idempotency key \"%s\" is claimed by this transaction and not finished", \
					key_display(key_)), \
			 errhint("Call idem_finish or idem_release for it first.")))

/* 55P03: claims never wait for a lease */
#define error_leased(key_) \
	ereport(ERROR, \
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE), \
			 errmsg("idempotency key \"%s\" is under a running lease", key_display(key_)), \
			 errhint("Retry when its holder has finished, or when the lease has run out.")))

/* 55P03, in the words of the server */
#define error_lock_timeout() \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_LOCK_NOT_AVAILABLE), errmsg("canceling statement due to lock timeout")))

/* ID002 */
#define error_mismatch(key_) \
	ereport(ERROR, \
			(errcode(ERRCODE_IDEM_REQUEST_MISMATCH), \
			 errmsg("idempotency key \"%s\" was used with another request", key_display(key_)), \
			 errhint("Use a new key for a new request.")))

/* ID003 */
#define error_no_claim(key_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_IDEM_NO_CLAIM), \
		 errmsg("idempotency key \"%s\" has no open claim in this transaction", \
				key_display(key_)), \
		 errhint("Call idem_begin with the same key and scope in the same transaction, and go " \
				 "on only when it answers \"started\".")))

/* ID003: a leased claim, outside the transaction that began it */
#define error_fence_needed(key_) \
	ereport(ERROR, \
			(errcode(ERRCODE_IDEM_NO_CLAIM), \
			 errmsg("idempotency key \"%s\" has a leased claim that was begun in another " \
					"transaction", \
					key_display(key_)), \
			 errhint("Pass the fence that idem_begin returned: fence => ...")))

/* ID003: erased, expired, or never begun */
#define error_lease_gone(key_) \
	ereport(ERROR, \
			(errcode(ERRCODE_IDEM_NO_CLAIM), \
			 errmsg("idempotency key \"%s\" has no leased claim", key_display(key_)), \
			 errhint("Call idem_begin with a lease first; an abandoned claim is kept for " \
					 "its ttl after its last lease.")))

/* ID004 */
#define error_superseded(key_, fence_) \
	ereport(ERROR, \
			(errcode(ERRCODE_IDEM_SUPERSEDED), \
			 errmsg("fence %lld of idempotency key \"%s\" is superseded", (long long) (fence_), \
					key_display(key_)), \
			 errdetail("The claim was taken over or released since."), \
			 errhint("Roll back and stop this work.")))

/* ID004: this fence was never issued for this key */
#define error_not_its_fence(key_, fence_) \
	ereport(ERROR, \
			(errcode(ERRCODE_IDEM_SUPERSEDED), \
			 errmsg("fence %lld is not one of idempotency key \"%s\"", (long long) (fence_), \
					key_display(key_)), \
			 errdetail("It was issued for another key, or by a begin that was rolled back, or " \
					   "never."), \
			 errhint("Roll back, and pass the fence that idem_begin returned for this key and " \
					 "scope.")))

/* ID005, the commit guard */
#define error_unfinished(key_, others_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_IDEM_UNFINISHED), \
		 errmsg("cannot commit: idempotency key \"%s\" is claimed but not finished", \
				key_display(key_)), \
		 (others_) > 0 \
			 ? errdetail_plural("%d more claim is not finished.", \
								"%d more claims are not finished.", (others_), (others_)) \
			 : 0, \
		 errhint("Call idem_finish(key, result) after the work, or idem_release(key) if there " \
				 "was none, in the same transaction as idem_begin.")))

/* ID005, the commit guard: the effects would stay while the key is forgotten */
#define error_expired_before_commit(key_) \
	ereport(ERROR, \
			(errcode(ERRCODE_IDEM_UNFINISHED), \
			 errmsg("cannot commit: idempotency key \"%s\" expired before the commit", \
					key_display(key_)), \
			 errhint("Give a ttl that outlasts the transaction.")))

/* ID006 */
#define error_finished(key_) \
	ereport(ERROR, \
			(errcode(ERRCODE_IDEM_FINISHED), \
			 errmsg("idempotency key \"%s\" is finished already", key_display(key_)), \
			 errhint("Roll back, and fetch the stored result with idem_begin.")))

/* ID006, for a recovery point */
#define error_phase_recorded(key_, phase_) \
	ereport( \
		ERROR, \
		(errcode(ERRCODE_IDEM_FINISHED), \
		 errmsg("idempotency key \"%s\" is at phase \"%s\" already", key_display(key_), (phase_)), \
		 errhint("Roll back: this transaction was committed before.")))

/* XX000 */
#define error_random() \
	ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values")))

/* XX001 */
#define error_fingerprint_size(table_, size_, expected_) \
	ereport(ERROR, \
			(errcode(ERRCODE_DATA_CORRUPTED), \
			 errmsg("fingerprint in table \"%s\" has %d bytes, not %d", (table_), (size_), \
					(expected_))))

#endif /* IDEM_ERRORS_H */
