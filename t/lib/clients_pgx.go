// What t/061_clients.pl asks Go's pgx: see clients.py.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
)

var ctx = context.Background()

func say(name string, result interface{}) { fmt.Printf("%s\t%v\n", name, result) }

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return fmt.Sprint(err)
}

type queryer interface {
	QueryRow(ctx context.Context, sql string, values ...interface{}) pgx.Row
}

func value(db queryer, sql string, values ...interface{}) (text string, err error) {
	err = db.QueryRow(ctx, sql, values...).Scan(&text)
	return text, err
}

func must(text string, err error) string {
	check(err)
	return text
}

func main() {
	db, err := pgx.Connect(ctx, "")
	check(err)
	const begin = "SELECT state FROM idem_begin($1)"

	_, err = value(db, begin, "pgx 1")
	say("autocommit", sqlState(err))

	tx, err := db.Begin(ctx)
	check(err)
	must(value(tx, begin, "pgx 1"))
	say("no finish", sqlState(tx.Commit(ctx)))

	tx, err = db.Begin(ctx)
	check(err)
	must(value(tx, begin, "pgx 1"))
	_, err = tx.Exec(ctx, "SELECT idem_finish($1)", "pgx 1")
	check(err)
	_, err = tx.Exec(ctx, "SELECT 1/0")
	say("caught", sqlState(err))
	say("caught error", errors.Is(tx.Commit(ctx), pgx.ErrTxCommitRollback))
	say("and the key", must(value(db, "SELECT coalesce((SELECT state FROM idem_lookup($1)), 'free')", "pgx 1")))

	// a request as a map, as text and as bytes; an interval; an array
	const request = "SELECT state FROM idem_begin($1, request => $2, wait => $3)"
	tx, err = db.Begin(ctx)
	check(err)
	say("map", must(value(tx, request, "pgx 2", map[string]int{"a": 1}, time.Second)))
	_, err = tx.Exec(ctx, "SELECT idem_finish($1)", "pgx 2")
	check(err)
	check(tx.Commit(ctx))
	say("string", must(value(db, request, "pgx 2", `{"a":1}`, time.Second)))
	say("bytes", must(value(db, request, "pgx 2", []byte(`{"a":1}`), time.Second)))
	say("another", must(value(db, request, "pgx 2", map[string]int{"a": 2}, time.Second)))
	say("array", must(value(db, "SELECT count(*)::text FROM idem_claim_many($1)", []string{"pgx 3", "pgx 4", "pgx 3"})))

	// the savepoint of a nested transaction is undone alone
	tx, err = db.Begin(ctx)
	check(err)
	must(value(tx, "SELECT idem_claim($1)::text", "pgx 5"))
	err = tx.BeginFunc(ctx, func(savepoint pgx.Tx) error {
		must(value(savepoint, "SELECT idem_claim($1)::text", "pgx 6"))
		return errors.New("no")
	})
	say("BeginFunc", err)
	check(tx.Commit(ctx))
	say("savepoint", must(value(db, `SELECT string_agg(coalesce((SELECT state FROM idem_lookup(k)), 'free'), ' ' ORDER BY k)
		FROM unnest(ARRAY['pgx 5', 'pgx 6']) AS k`)))
}
