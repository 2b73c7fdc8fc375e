/*-------------------------------------------------------------------------
 *
 * guc.h
 *	  The extension's settings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_GUC_H
#define IDEM_GUC_H

extern bool idem_allow_keys_on_worker; /* of a Citus cluster, in its own idem_keys */
extern char *idem_default_scope;	   /* used where a caller gives no scope; "" for none */
extern int idem_default_ttl;		   /* seconds a finished key is kept when the
								 * caller gives no ttl; -1: for ever */
extern int idem_guess_entries;		   /* entries in the table of attempts at codes */
extern int idem_max_result_size;	   /* bytes of jsonb, uncompressed */
extern int idem_purge_batch_size;	   /* rows deleted in one transaction */
extern char *idem_purge_databases;	   /* names, or "*" */
extern double idem_purge_interval;	   /* seconds; 0: no worker purges */
extern int idem_retry_after;		   /* milliseconds; the retry_after to return while
								 * another transaction holds the key */
extern bool idem_require_scope;		   /* refuse claims without a scope */
extern int idem_throttle_entries;	   /* entries in the table of rate limits */

extern void guc_init(void);

#endif /* IDEM_GUC_H */
