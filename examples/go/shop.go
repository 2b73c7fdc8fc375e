// The shop of examples/README.md with net/http and pgx.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgtype"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

var pool *pgxpool.Pool

func connect() (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return nil, err
	}
	config.MaxConns = 10
	config.LazyConnect = true // start without the database, too
	// No prepared statements with names, which PgBouncer in transaction mode does not know before 1.21.
	config.ConnConfig.PreferSimpleProtocol = true
	config.ConnConfig.BuildStatementCache = nil
	return pgxpool.ConnectConfig(context.Background(), config)
}

// ---- answers

type answer struct {
	status  int
	headers map[string]string
	body    *string
}

func (a *answer) with(name, value string) *answer {
	a.headers[name] = value
	return a
}

// A problem is an answer, and an error: in a transaction it rolls back.
type problem struct{ *answer }

func (p problem) Error() string { return *p.body }

func withBody(status int, contentType string, value interface{}) *answer {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	body := string(text)
	return &answer{status, map[string]string{"Content-Type": contentType}, &body}
}

func jsonAnswer(status int, value interface{}) *answer {
	return withBody(status, "application/json", value)
}

func noBody(status int) *answer { return &answer{status, map[string]string{}, nil} }

type problemBody struct {
	Type         string `json:"type"`
	Title        string `json:"title"`
	Status       int    `json:"status"`
	Detail       string `json:"detail"`
	AttemptsLeft *int   `json:"attempts_left,omitempty"`
}

func problemAnswer(body problemBody) problem {
	body.Title = http.StatusText(body.Status)
	if body.Type == "" {
		body.Type = "about:blank"
	}
	return problem{withBody(body.Status, "application/problem+json", body)}
}

func refuse(status int, detail string) problem {
	return problemAnswer(problemBody{Status: status, Detail: detail})
}

func tryAgain(status int) *answer { return refuse(status, "Try again.").with("Retry-After", "1") }

// ---- requests

type request struct {
	*http.Request
	text string // the body as it came, which is what idem_http_begin compares
	user string
}

type handler func(*request) (*answer, error)

// What goes out, for a first answer and for its replay, so that both are the same bytes.
func (handle handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	a, err := handle.answer(r)
	var p problem
	switch {
	case errors.As(err, &p):
		a = p.answer
	case mayHelp(err):
		log.Print(err)
		a = tryAgain(503)
	case err != nil:
		log.Print(err)
		a = refuse(500, "This did not work.").answer
	}
	for name, value := range a.headers {
		w.Header().Set(name, value)
	}
	w.WriteHeader(a.status)
	if a.body != nil {
		io.WriteString(w, *a.body)
	}
}

func (handle handler) answer(r *http.Request) (*answer, error) {
	text, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, refuse(413, "The body has more than 1 MiB.")
	}
	// ASCII only: what a byte above 127 means in a header differs between servers.
	if err != nil || !utf8.Valid(text) || !asciiOnly.MatchString(strings.Join(r.Header.Values("Idempotency-Key"), "")) {
		return nil, refuse(400, "The request cannot be read.")
	}
	return handle(&request{Request: r, text: string(text)})
}

var asciiOnly = regexp.MustCompile(`^[\t -~]*$`)

// Whether PostgreSQL can hold the text, and it is what was sent: encoding/json takes half a surrogate pair for U+FFFD,
// so that two ids would be one.
func isText(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsAny(text, "\x00\ufffd")
}

var userName = regexp.MustCompile(`^[A-Za-z0-9._@-]{1,100}$`)

// In a real service this is the user of the session or the token.  Whoever believes a header
// that the client can choose gives every user's answers to everybody.
func withUser(handle handler) handler {
	return func(r *request) (*answer, error) {
		r.user = strings.Join(r.Header.Values("X-User"), ", ")
		if !userName.MatchString(r.user) {
			return nil, refuse(401, "Who are you?")
		}
		return handle(r)
	}
}

func method(name string, handle handler) handler {
	return func(r *request) (*answer, error) {
		if r.Method != name {
			return nil, problem{refuse(405, "This is "+name+" only.").with("Allow", name)}
		}
		return handle(r)
	}
}

type members map[string]interface{}

// decode takes these members of a JSON object, and ignores others.  Not a struct: encoding/json would take "Quantity"
// for quantity.
func decode(text []byte, into members) error {
	var all map[string]json.RawMessage
	if json.Unmarshal(text, &all) != nil || all == nil {
		return refuse(400, "The body is not a JSON object.")
	}
	for name, value := range into {
		if raw, there := all[name]; there && json.Unmarshal(raw, value) != nil {
			return refuse(400, name+" is wrong.")
		}
	}
	return nil
}

func (r *request) decode(into members) error { return decode([]byte(r.text), into) }

// nil, and so NULL, if there is none.
func (r *request) key() *string {
	values := r.Header.Values("Idempotency-Key")
	if values == nil {
		return nil
	}
	key := strings.Join(values, ", ")
	return &key
}

var escaped = regexp.MustCompile(`\\(.)`)

// "abc" and abc are one key, and so must be what is derived from it.
func (r *request) bareKey() string {
	key := strings.Trim(*r.key(), " \t")
	if strings.HasPrefix(key, `"`) {
		key = escaped.ReplaceAllString(key[1:len(key)-1], "$1")
	}
	return key
}

// Method and path go into the scope, and so does the user: nobody gets the answer to another user's request.
func (r *request) scope() string { return r.user + " " + r.Method + " " + r.URL.Path }

// ---- the database

func withConn(ctx context.Context, work func(*pgxpool.Conn) error) error {
	waiting, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := pool.Acquire(waiting)
	if err != nil {
		return err
	}
	defer conn.Release()
	return work(conn)
}

// A transaction.  Answer only after it has returned without an error.  40001 and 40P01, also of the COMMIT, repeat it
// from BEGIN, never from a savepoint, where the same snapshot fails for ever.
func transaction(ctx context.Context, work func(pgx.Tx) error) error {
	for attempt := 1; ; attempt++ {
		// If the server rolls back instead of committing, this is pgx.ErrTxCommitRollback.
		err := withConn(ctx, func(conn *pgxpool.Conn) error { return conn.BeginFunc(ctx, work) })
		if state := sqlState(err); attempt == 3 || state != "40001" && state != "40P01" {
			return err
		}
	}
}

// A single statement, a transaction of its own.
func exec(ctx context.Context, sql string, values ...interface{}) error {
	return withConn(ctx, func(conn *pgxpool.Conn) error {
		_, err := conn.Exec(ctx, sql, values...)
		return err
	})
}

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

var passing = regexp.MustCompile(`^(08...|53...|57P0.|55P03|40001|40P01)$`)

// The connection failed, none was free, or an attempt may help.
func mayHelp(err error) bool {
	var netErr net.Error // a time-out, too
	return passing.MatchString(sqlState(err)) || errors.As(err, &netErr) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, io.EOF) || err != nil && pgconn.SafeToRetry(err)
}

type claim struct {
	run    bool
	fence  *int64
	answer *answer // to send, unless run
}

// A missing key is nil, which idem_http_begin answers with 400.
// In autocommit mode it fails with ID005: its transaction ends without the finish.
func begin(ctx context.Context, tx pgx.Tx, r *request, leaseMs *int) (*claim, error) {
	c := claim{answer: noBody(0)}
	var status *int
	var headers *string
	var replayed *bool
	err := tx.QueryRow(ctx, `SELECT run, status, headers, body, replayed, fence
		FROM idem_http_begin($1, $2, $3, wait_ms => 500, lease_ms => $4)`, r.key(), r.text, r.scope(), leaseMs).
		Scan(&c.run, &status, &headers, &c.answer.body, &replayed, &c.fence)
	if err != nil || c.run {
		return &c, err
	}
	// A replay has the first status, 201, not 200.  Retry-After of a 409 is whole seconds already.
	c.answer.status = *status
	if headers != nil {
		err = json.Unmarshal([]byte(*headers), &c.answer.headers)
	}
	if *replayed {
		c.answer.with("Idempotent-Replayed", "true")
	} else { // 400, 409 and 422 say where your API's documentation is
		c.answer.with("Link", `<https://shop.example/docs/idempotency>; rel="describedby"`)
	}
	return &c, err
}

// The scope is that of the begin: a claim is a key in a scope.
func finish(ctx context.Context, tx pgx.Tx, r *request, a *answer, fence *int64) error {
	headers, err := json.Marshal(a.headers)
	if err != nil {
		return err
	}
	return tx.QueryRow(ctx, "SELECT idem_http_finish($1, $2, $3, $4, $5, $6)",
		r.key(), a.status, a.body, string(headers), r.scope(), fence).Scan(&a.status)
}

// ---- orders

type order struct {
	ID       int64   `json:"id"`
	Item     string  `json:"item"`
	Quantity int     `json:"quantity"`
	Number   *string `json:"order_number"`
}

var (
	itemName    = regexp.MustCompile(`^[a-z0-9-]{1,60}$`)
	orderNumber = regexp.MustCompile(`^[A-Za-z0-9-]{1,60}$`)
)

func placeOrder(ctx context.Context, tx pgx.Tx, user string, o order) (*answer, error) {
	err := tx.QueryRow(ctx, `INSERT INTO orders (user_name, item, quantity, order_number)
		VALUES ($1, $2, $3, $4) RETURNING id`, user, o.Item, o.Quantity, o.Number).Scan(&o.ID)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "23505" && pgErr.ConstraintName == "orders_once" {
		return nil, problemAnswer(problemBody{Status: 409, Type: "/problems/order-number-taken", Detail: "This order number is taken."})
	} else if err != nil {
		return nil, err
	}
	tag, err := tx.Exec(ctx, "UPDATE stock SET available = available - $2 WHERE item = $1 AND available >= $2", o.Item, o.Quantity)
	if err != nil {
		return nil, err
	}
	if tag.RowsAffected() == 0 {
		return nil, problemAnswer(problemBody{Status: 422, Type: "/problems/sold-out", Detail: "There is not enough of " + o.Item + "."})
	}
	return jsonAnswer(201, o).with("Location", fmt.Sprint("/orders/", o.ID)), nil
}

func orders(r *request) (a *answer, err error) {
	ctx := r.Context()
	var o order
	if err := r.decode(members{"item": &o.Item, "quantity": &o.Quantity, "order_number": &o.Number}); err != nil {
		return nil, err
	}
	if !itemName.MatchString(o.Item) || o.Quantity < 1 || o.Quantity > 100 || o.Number != nil && !orderNumber.MatchString(*o.Number) {
		return nil, refuse(400, "item, quantity (1 to 100) or order_number is wrong.")
	}
	if r.key() == nil && o.Number != nil {
		err = transaction(ctx, func(tx pgx.Tx) (err error) {
			a, err = placeOrder(ctx, tx, r.user, o)
			return err
		})
		return a, err
	}
	err = transaction(ctx, func(tx pgx.Tx) error {
		c, err := begin(ctx, tx, r, nil)
		if err != nil || !c.run {
			a = c.answer
			return err
		}
		err = tx.BeginFunc(ctx, func(savepoint pgx.Tx) (err error) {
			a, err = placeOrder(ctx, savepoint, r.user, o)
			return err
		})
		// A business failure is an answer, too: the savepoint has undone the work, the answer is stored with its status.
		var refused problem
		if errors.As(err, &refused) {
			a = refused.answer
		} else if err != nil {
			return err
		}
		return finish(ctx, tx, r, a, nil)
	})
	return a, err
}

// ---- clicks

func clicks(r *request) (*answer, error) {
	var allowed bool
	var remaining, seconds int
	// Whole seconds until one call more is allowed, rounded up: who comes back a moment too early is refused again.
	// reset_after is until all five are, a minute for each.
	err := withConn(r.Context(), func(conn *pgxpool.Conn) error {
		return conn.QueryRow(r.Context(), `SELECT allowed, remaining, ceil(reset_after - 60 * (4 - remaining))::int
			FROM idem_throttle($1, '5 min', 5, 'clicks')`, r.user).Scan(&allowed, &remaining, &seconds)
	})
	a := noBody(204)
	if err == nil && allowed {
		err = exec(r.Context(), "INSERT INTO clicks (user_name) VALUES ($1)", r.user)
	} else {
		a = refuse(429, "Too many clicks.").with("Retry-After", fmt.Sprint(seconds))
	}
	return a.with("RateLimit-Policy", `"clicks";q=5;w=300`).
		with("RateLimit", fmt.Sprintf(`"clicks";r=%d;t=%d`, remaining, seconds)), err
}

// ---- payments

var client = http.Client{Timeout: 10 * time.Second}

// The charge, or nil if it was declined.
func charge(ctx context.Context, remoteKey string, amount int) (*string, error) {
	body := fmt.Sprintf(`{"amount":%d}`, amount)
	r, err := http.NewRequestWithContext(ctx, "POST", os.Getenv("PAYMENT_URL")+"/charges", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", remoteKey)
	response, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode == 402 {
		return nil, nil
	}
	var charged struct{ Charge *string }
	if err := json.NewDecoder(response.Body).Decode(&charged); err != nil || response.StatusCode != 201 || charged.Charge == nil {
		return nil, fmt.Errorf("the payment service says %d", response.StatusCode)
	}
	return charged.Charge, nil
}

func payments(r *request) (a *answer, err error) {
	// A client that hangs up does not stop a payment half-way.
	ctx := context.Background()
	var amount int
	if err := r.decode(members{"amount": &amount}); err != nil {
		return nil, err
	}
	if amount < 1 || amount > 1_000_000 {
		return nil, refuse(400, "amount is 1 to 1000000.")
	}

	// Committed before the call, so that all see the claim in progress, until it is finished or its lease is over.
	var c *claim
	var remoteKey string
	err = transaction(ctx, func(tx pgx.Tx) (err error) {
		leaseMs := 30_000
		if c, err = begin(ctx, tx, r, &leaseMs); err != nil || !c.run {
			return err
		}
		remoteKey = fmt.Sprintf("%x", sha256.Sum256([]byte(r.scope()+"\n"+r.bareKey())))
		_, err = tx.Exec(ctx, `INSERT INTO payments (remote_key, user_name, amount) VALUES ($1, $2, $3)
			ON CONFLICT DO NOTHING`, remoteKey, r.user, amount)
		return err
	})
	if err != nil || !c.run {
		if c != nil {
			a = c.answer
		}
		return a, err
	}

	paid, err := charge(ctx, remoteKey, amount)
	if err != nil {
		// We do not know whether it was charged.  The next attempt asks again, under the same key.
		log.Print(err)
		if err := exec(ctx, "SELECT idem_release($1, $2, $3)", r.bareKey(), r.scope(), c.fence); err != nil {
			log.Print(err) // then the lease ends by itself
		}
		return tryAgain(503), nil
	}
	status := "declined"
	if paid != nil {
		status = "paid"
		a = jsonAnswer(201, struct {
			Charge string `json:"charge"`
			Amount int    `json:"amount"`
		}{*paid, amount})
	} else {
		a = problemAnswer(problemBody{Status: 402, Type: "/problems/declined", Detail: "The card was declined."}).answer
	}
	err = transaction(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "UPDATE payments SET status = $2, charge = $3 WHERE remote_key = $1", remoteKey, status, paid); err != nil {
			return err
		}
		return finish(ctx, tx, r, a, c.fence)
	})
	// another request has taken over, or has finished already: its answer is the answer
	if state := sqlState(err); state == "ID004" || state == "ID006" {
		return tryAgain(409), nil
	}
	return a, err
}

// ---- magic links and codes

var emailForm = regexp.MustCompile(`^[^@]+@[^@]+$`)

func (r *request) email() (email string, err error) {
	if err := r.decode(members{"email": &email}); err != nil {
		return "", err
	}
	email = strings.ToLower(strings.TrimSpace(email))
	if !isText(email) || !emailForm.MatchString(email) || utf8.RuneCountInString(email) > 100 {
		return "", refuse(400, "email is missing or wrong.")
	}
	return email, nil
}

// The secret goes from the database into the mail, and not through this program's logs.
func send(insert string) handler {
	return func(r *request) (*answer, error) {
		email, err := r.email()
		if err == nil {
			err = exec(r.Context(), "INSERT INTO outbox (recipient, kind, secret) "+insert, email)
		}
		return noBody(202).with("Cache-Control", "no-store"), err
	}
}

func magicLink(r *request) (a *answer, err error) {
	token := strings.TrimPrefix(r.URL.Path, "/magic-links/")
	state := "unknown"
	switch {
	case !isText(token): // so never issued
	case r.Method == "GET":
		// A scanner of the mail server follows the link: looking burns nothing.
		err = withConn(r.Context(), func(conn *pgxpool.Conn) error {
			return conn.QueryRow(r.Context(), "SELECT state FROM idem_token_peek('login', $1)", token).Scan(&state)
		})
		a = jsonAnswer(200, map[string]string{"state": state})
	case r.Method == "POST":
		err = transaction(r.Context(), func(tx pgx.Tx) error {
			var email *string
			err := tx.QueryRow(r.Context(), "SELECT state, subject FROM idem_token_redeem('login', $1)", token).Scan(&state, &email)
			if err != nil || state != "redeemed" {
				return err
			}
			a = jsonAnswer(200, map[string]string{"email": *email})
			_, err = tx.Exec(r.Context(), "INSERT INTO logins (email) VALUES ($1)", *email)
			return err
		})
	}
	if err == nil && state == "unknown" {
		a = refuse(404, "There is no such link.").answer
	} else if err == nil && state != "valid" && state != "redeemed" {
		a = refuse(410, "This link was used before, or is too old.").answer
	}
	if err != nil {
		return nil, err
	}
	return a.with("Cache-Control", "no-store"), nil
}

func verifyCode(r *request) (a *answer, err error) {
	email, err := r.email()
	if err != nil {
		return nil, err
	}
	var code *string
	if err := r.decode(members{"code": &code}); err != nil {
		return nil, err
	}
	if code == nil || !isText(*code) {
		return nil, refuse(400, "code is missing or wrong.")
	}
	// a wrong attempt commits as well, or it would not count
	err = transaction(r.Context(), func(tx pgx.Tx) error {
		var state string
		var left *int
		err := tx.QueryRow(r.Context(), "SELECT state, attempts_left FROM idem_code_verify('login', $1, $2)",
			email, *code).Scan(&state, &left)
		if err != nil {
			return err
		}
		switch state {
		case "verified":
			a = jsonAnswer(200, map[string]bool{"verified": true})
			_, err = tx.Exec(r.Context(), "INSERT INTO logins (email) VALUES ($1)", email)
		case "wrong", "locked":
			a = problemAnswer(problemBody{Status: 403, Detail: "This is not the code.", AttemptsLeft: left}).answer
		default:
			a = refuse(410, "There is no such code any more; ask for a new one.").answer
		}
		return err
	})
	return a, err
}

// ---- a consumer

type message struct{ rawID, rawPayload json.RawMessage }

// The id, if there is a usable one: one that is not would fail the whole batch.
func (m message) id() (id string, usable bool) {
	usable = bytes.HasPrefix(m.rawID, []byte(`"`)) && json.Unmarshal(m.rawID, &id) == nil
	return id, usable && id != "" && len(id) <= 1024 && isText(id)
}

func (m message) payload() *string {
	if m.rawPayload == nil {
		return nil
	}
	text := string(m.rawPayload)
	return &text
}

func park(ctx context.Context, tx pgx.Tx, id *string, m message, why string) error {
	_, err := tx.Exec(ctx, "INSERT INTO dead_letters (message_id, payload, error) VALUES ($1, $2, $3)", id, m.payload(), why)
	return err
}

// The keys that are new.
func claimMany(ctx context.Context, tx pgx.Tx, ids []string) (fresh []string, err error) {
	var array pgtype.TextArray
	if err := array.Set(ids); err != nil {
		return nil, err
	}
	var key string
	_, err = tx.QueryFunc(ctx, "SELECT key FROM idem_claim_many($1, '7 days', 'deliveries')", []interface{}{array},
		[]interface{}{&key}, func(pgx.QueryFuncRow) error {
			fresh = append(fresh, key)
			return nil
		})
	return fresh, err
}

var poison = regexp.MustCompile(`^(22|23|54)`)

func deliveries(r *request) (*answer, error) {
	ctx := r.Context()
	var messages []json.RawMessage
	if err := r.decode(members{"messages": &messages}); err != nil {
		return nil, err
	}
	if messages == nil || len(messages) > 100 {
		return nil, refuse(400, "messages is missing or wrong.")
	}
	var counts struct {
		Received int `json:"received"`
		New      int `json:"new"`
		Parked   int `json:"parked"`
	}
	err := transaction(ctx, func(tx pgx.Tx) error {
		counts.Received, counts.New, counts.Parked = len(messages), 0, 0
		// idem_claim_many returns keys, not payloads: byID leads back to those.
		byID := map[string]message{}
		ids := []string{}
		for _, raw := range messages {
			var m message
			_ = decode(raw, members{"id": &m.rawID, "payload": &m.rawPayload}) // what is not an object has no id
			id, usable := m.id()
			if _, twice := byID[id]; usable && !twice {
				byID[id] = m
				ids = append(ids, id)
			} else if !usable {
				if err := park(ctx, tx, nil, m, "no usable id"); err != nil {
					return err
				}
				counts.Parked++
			}
		}
		fresh, err := claimMany(ctx, tx, ids)
		if err != nil {
			return err
		}
		for _, id := range fresh {
			m := byID[id]
			err := tx.BeginFunc(ctx, func(savepoint pgx.Tx) error {
				_, err := savepoint.Exec(ctx, `INSERT INTO shipments SELECT $1, p.order_number, p.quantity
					FROM jsonb_to_record($2::jsonb) AS p(order_number text, quantity int)`, id, m.payload())
				return err
			})
			// Poison is what will always fail: class 22 (bad values), 23 (constraints), 54 (too large, too deep).  It is
			// parked, still claimed.  Anything else fails the batch, and the broker sends it again.
			if poison.MatchString(sqlState(err)) {
				counts.Parked++
				err = park(ctx, tx, &id, m, err.Error())
			} else if err == nil {
				counts.New++
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return jsonAnswer(200, counts), err
}

func health(r *request) (*answer, error) {
	if err := exec(r.Context(), "SELECT 1"); err != nil {
		log.Print(err)
		return tryAgain(503), nil
	}
	return jsonAnswer(200, map[string]bool{"up": true}), nil
}

func main() {
	var err error
	if pool, err = connect(); err != nil {
		log.Fatal(err)
	}
	http.Handle("/orders", method("POST", withUser(orders)))
	http.Handle("/clicks", method("POST", withUser(clicks)))
	http.Handle("/payments", method("POST", withUser(payments)))
	http.Handle("/magic-links", method("POST", send("SELECT $1, 'magic-link', idem_token_issue('login', '15 min', subject => $1)")))
	http.Handle("/magic-links/", handler(magicLink))
	http.Handle("/codes", method("POST", send("SELECT $1, 'code', idem_code_issue('login', $1, '5 min', max_attempts => 3)")))
	http.Handle("/codes/verify", method("POST", verifyCode))
	http.Handle("/deliveries", method("POST", deliveries))
	http.Handle("/healthz", method("GET", health))
	http.Handle("/", handler(func(*request) (*answer, error) { return nil, refuse(404, "There is nothing here.") }))
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	server := http.Server{Addr: "127.0.0.1:" + port, ReadHeaderTimeout: 10 * time.Second}
	terminated, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			log.Fatal(err)
		}
	}()
	<-terminated.Done()
	// What runs is answered first: a payment that is cut off leaves its client waiting for the end of the lease.
	waiting, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := server.Shutdown(waiting); err != nil {
		log.Print(err)
	}
}
