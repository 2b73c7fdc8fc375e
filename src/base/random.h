/*-------------------------------------------------------------------------
 *
 * random.h
 *	  Random bytes, and comparison in constant time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RANDOM_H
#define IDEM_RANDOM_H

/* Cryptographically strong; XX000 if the system has none. */
extern void random_bytes(void *out, size_t len);

/* Takes the same time wherever the difference is. */
extern bool bytes_equal(const void *a, const void *b, size_t len);

#endif /* IDEM_RANDOM_H */
