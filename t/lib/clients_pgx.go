// What t/061_clients.pl asks Go's pgx: see clients.py.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
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

// swap: see clients.py.  Each client begins, and then commits or rolls back.
type client struct {
	begin            func(key string) error
	commit, rollback func() error
}

func swap(name string, clients []client) {
	resolved, count := 0, 0
	for attempt := 0; attempt < 25; attempt++ {
		turn := []int{0, 1}
		if attempt < 10 {
			turn = []int{0}
		} else if attempt%2 == 0 {
			turn = []int{1, 0}
		}
		inside := []int{}
		for _, i := range turn {
			count++
			if clients[i].begin(fmt.Sprint(name, " ", count)) == nil {
				inside = append(inside, i)
			} else {
				clients[i].rollback()
			}
		}
		if attempt%4 >= 2 && len(inside) == 2 {
			inside[0], inside[1] = inside[1], inside[0]
		}
		for _, i := range inside {
			if clients[i].commit() == nil {
				resolved++
			}
		}
	}
	say("resolved", resolved)
}

// The settings of the page, or none.
func settings(which string) string {
	switch which {
	case "describe":
		return "statement_cache_mode=describe"
	case "capacity":
		return "statement_cache_capacity=0"
	}
	return ""
}

func bouncer(which string) {
	clients := make([]client, 2)
	for i := range clients {
		config, err := pgx.ParseConfig(settings(which))
		check(err)
		config.PreferSimpleProtocol = which == "simple"
		db, err := pgx.ConnectConfig(ctx, config)
		check(err)
		var tx pgx.Tx
		clients[i] = client{
			begin: func(key string) (err error) {
				if tx, err = db.Begin(ctx); err != nil {
					return err
				}
				if _, err = value(tx, "SELECT state FROM idem_begin($1)", key); err != nil {
					return err
				}
				_, err = tx.Exec(ctx, "SELECT idem_finish($1)", key)
				return err
			},
			commit:   func() error { return tx.Commit(ctx) },
			rollback: func() error { return tx.Rollback(ctx) },
		}
	}
	swap("pgx "+which, clients)
}

func main() {
	if len(os.Args) > 1 {
		bouncer(os.Args[1])
		return
	}
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

	_, err = db.Exec(ctx, "CREATE TABLE pgx_once (k text); CREATE TRIGGER once AFTER INSERT ON pgx_once FOR EACH ROW EXECUTE FUNCTION idem_once('k')")
	check(err)
	_, err = db.Exec(ctx, "INSERT INTO pgx_once VALUES ('a'), ('a')")
	var pgErr *pgconn.PgError
	say("constraint", errors.As(err, &pgErr) && pgErr.ConstraintName == "once")
}
