/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  Purges in the background.
 *
 * If the library is preloaded, a launcher starts a worker in each database of
 * "idempotency.purge_databases", one after the other, every
 * "idempotency.purge_interval".  A worker runs for at most a second, so that it does not
 * block DROP DATABASE.  If much is left to do, the next worker starts at once.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_WORKER_H
#define IDEM_WORKER_H

extern void worker_init(void);

#endif /* IDEM_WORKER_H */
