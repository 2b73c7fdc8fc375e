/*-------------------------------------------------------------------------
 *
 * http_answer.h
 *	  Answers to HTTP requests: problems, and those that are stored.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_HTTP_ANSWER_H
#define IDEM_HTTP_ANSWER_H

#include "claim/http_key.h"
#include "store/store.h"

/* The row of idem_http_begin. */
typedef struct HttpAnswer
{
	bool run;
	int status; /* 0: none */
	text *headers;
	text *body;
	int retry_after; /* seconds; 0: none */
	bool replayed;
	int64 fence; /* or NO_FENCE */
} HttpAnswer;

/* Why can the status not be stored? */
typedef enum HttpStatusUse
{
	HTTP_STATUS_STORED,	   /* it can */
	HTTP_STATUS_TRY_AGAIN, /* a repeated request is to run: 408, 425, 429, 500 and more */
	HTTP_STATUS_NOT_FINAL  /* 1xx, and what is no status */
} HttpStatusUse;

extern HttpStatusUse http_status_use(int status);

/* Answers that do not come from a row. */
extern HttpAnswer http_bad_key(HttpKeyState state);
extern HttpAnswer http_mismatch(void);
extern HttpAnswer http_in_progress(double retry_after);

/* The answer that a finished row has, whichever function finished it. */
extern HttpAnswer http_stored(const StoreRow *row);

/*
 * An answer as a result that can be stored: {"status", "headers", "body"}.  headers is a JSON
 * object; it and body may be NULL.
 */
extern Datum http_result(int status, const char *headers, text *body);

#endif /* IDEM_HTTP_ANSWER_H */
