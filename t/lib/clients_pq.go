// What t/061_clients.pl asks Go's lib/pq: see clients.py.
package main

import (
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/lib/pq"
)

func say(name string, result interface{}) { fmt.Printf("%s\t%v\n", name, result) }

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func sqlState(err error) string {
	var pqErr *pq.Error
	if errors.As(err, &pqErr) {
		return string(pqErr.Code)
	}
	return fmt.Sprint(err)
}

type queryer interface {
	QueryRow(sql string, values ...interface{}) *sql.Row
}

func value(db queryer, sql string, values ...interface{}) (text string, err error) {
	err = db.QueryRow(sql, values...).Scan(&text)
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

// In transactions, as the page has it.
func bouncer(which string) {
	clients := make([]client, 2)
	for i := range clients {
		db, err := sql.Open("postgres", "")
		check(err)
		db.SetMaxOpenConns(1)
		var tx *sql.Tx
		clients[i] = client{
			begin: func(key string) (err error) {
				if tx, err = db.Begin(); err != nil {
					return err
				}
				if _, err = value(tx, "SELECT state FROM idem_begin($1)", key); err != nil {
					return err
				}
				_, err = tx.Exec("SELECT idem_finish($1)", key)
				return err
			},
			commit:   func() error { return tx.Commit() },
			rollback: func() error { return tx.Rollback() },
		}
	}
	swap("pq "+which, clients)
}

func main() {
	if len(os.Args) > 1 {
		bouncer(os.Args[1])
		return
	}
	db, err := sql.Open("postgres", "")
	check(err)
	const begin = "SELECT state FROM idem_begin($1)"

	_, err = value(db, begin, "pq 1")
	say("autocommit", sqlState(err))

	tx, err := db.Begin()
	check(err)
	must(value(tx, begin, "pq 1"))
	say("no finish", sqlState(tx.Commit()))

	tx, err = db.Begin()
	check(err)
	must(value(tx, begin, "pq 1"))
	_, err = tx.Exec("SELECT idem_finish($1)", "pq 1")
	check(err)
	_, err = tx.Exec("SELECT 1/0")
	say("caught", sqlState(err))
	say("caught error", tx.Commit() != nil)
	say("and the key", must(value(db, "SELECT coalesce((SELECT state FROM idem_lookup($1)), 'free')", "pq 1")))

	// a Duration is sent as its nanoseconds, which are seconds for PostgreSQL: 951 years
	const lease = "SELECT state FROM idem_begin($1, request => $2, lease => $3)"
	connector, err := pq.NewConnector("")
	check(err)
	noticed := sql.OpenDB(pq.ConnectorWithNoticeHandler(connector, func(notice *pq.Error) { say("notice", notice.Severity) }))
	_, err = value(noticed, lease, "pq 2", `{"a": 1}`, 30*time.Second)
	say("Duration", sqlState(err))
	say("and the lease", must(value(db, "SELECT max(lease_until) > now() + interval '900 years' FROM idem_keys")))
	say("interval as text", must(value(db, lease, "pq 2b", nil, "30 seconds")))
	const request = "SELECT state FROM idem_begin($1, request => $2)"
	tx, err = db.Begin()
	check(err)
	must(value(tx, request, "pq 3", []byte(`{"a": 1}`)))
	_, err = tx.Exec("SELECT idem_finish($1)", "pq 3")
	check(err)
	check(tx.Commit())
	say("string", must(value(db, request, "pq 3", `{"a":1}`)))
	say("bytes", must(value(db, request, "pq 3", []byte(`{"a":2}`))))
	say("array", must(value(db, "SELECT count(*) FROM idem_claim_many($1)", pq.Array([]string{"pq 4", "pq 5", "pq 4"}))))
	_, err = value(db, "SELECT count(*) FROM idem_claim_many($1)", []string{"pq 6"})
	say("slice", err != nil)

	_, err = db.Exec("CREATE TABLE pq_once (k text); CREATE TRIGGER once AFTER INSERT ON pq_once FOR EACH ROW EXECUTE FUNCTION idem_once('k')")
	check(err)
	_, err = db.Exec("INSERT INTO pq_once VALUES ('a'), ('a')")
	say("constraint", err.(*pq.Error).Constraint)
}
