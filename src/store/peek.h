/*-------------------------------------------------------------------------
 *
 * peek.h
 *	  Is a key certainly absent from the primary key?
 *
 * Private to this folder.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_PEEK_H
#define IDEM_PEEK_H

#include "base/key.h"
#include "store/table.h"

/*
 * False if the primary key has no entry of the key at all, dead or alive: what a scan would
 * find, at half the cost.  True if it may have one, and a scan must find out.
 */
extern bool peek_may_exist(Store *store, const IdemKey *key);

#endif /* IDEM_PEEK_H */
