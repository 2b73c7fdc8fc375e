/*-------------------------------------------------------------------------
 *
 * random.h
 *	  Random bytes, and comparison in constant time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RANDOM_H
#define IDEM_RANDOM_H

/* Cryptographically strong random bytes.  XX000 if the system cannot provide them. */
extern void random_bytes(void *out, size_t len);

/* Its running time does not depend on the contents. */
extern bool bytes_equal(const void *a, const void *b, size_t len);

#endif /* IDEM_RANDOM_H */
