// The shop of examples/README.md with the JDK's own HTTP server, pgjdbc, HikariCP and Jackson.

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.json.JsonWriteFeature;
import com.fasterxml.jackson.core.type.TypeReference;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.SQLTransientConnectionException;
import java.sql.Savepoint;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.postgresql.core.BaseConnection;
import org.postgresql.core.TransactionState;
import org.postgresql.util.PSQLException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

public class Shop {
    static final Logger log = LoggerFactory.getLogger(Shop.class);
    static final JsonMapper JSON = JsonMapper.builder()
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS, DeserializationFeature.USE_BIG_DECIMAL_FOR_FLOATS)
            .build();
    static final HttpClient http = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    static final HikariDataSource pool = new HikariDataSource(config());

    static HikariConfig config() {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl("jdbc:postgresql://%s:%s/%s".formatted(
                System.getenv("PGHOST"), System.getenv("PGPORT"), System.getenv("PGDATABASE")));
        config.setUsername(System.getenv("PGUSER"));
        config.setPassword(System.getenv("PGPASSWORD"));
        config.setMaximumPoolSize(10);
        config.setConnectionTimeout(30_000);
        config.setInitializationFailTimeout(-1);    // start without the database, too
        // No prepared statements with names, which PgBouncer in transaction mode does not know before 1.21.
        config.addDataSourceProperty("prepareThreshold", "0");
        return config;
    }

    // ---- answers

    record Answer(int status, Map<String, String> headers, String body) {
        Answer with(String name, String value) {
            Map<String, String> all = new LinkedHashMap<>(headers);
            all.put(name, value);
            return new Answer(status, all, body);
        }
    }

    /** Refuses a request.  In a transaction it rolls back. */
    static class Problem extends RuntimeException {
        final transient Answer answer;

        Problem(Answer answer) {
            super(answer.body(), null, false, false);
            this.answer = answer;
        }
    }

    static final Map<Integer, String> TITLES = Map.of(400, "Bad Request", 401, "Unauthorized", 402, "Payment Required",
            403, "Forbidden", 404, "Not Found", 409, "Conflict", 410, "Gone", 413, "Content Too Large", 422, "Unprocessable Content",
            429, "Too Many Requests");

    static Answer json(int status, JsonNode body) {
        return new Answer(status, Map.of("Content-Type", "application/json"), body.toString());
    }

    static ObjectNode object() {
        return JSON.createObjectNode();
    }

    static Answer problem(int status, String type, String detail, ObjectNode members) {
        ObjectNode body = object().put("type", type).put("title", TITLES.getOrDefault(status, "Error"))
                .put("status", status).put("detail", detail).setAll(members);
        return new Answer(status, Map.of("Content-Type", "application/problem+json"), body.toString());
    }

    static Answer problem(int status, String detail) {
        return problem(status, "about:blank", detail, object());
    }

    static Answer tryAgain(int status) {
        return problem(status, "Try again.").with("Retry-After", "1");
    }

    static void valid(boolean condition, String detail) {
        if (!condition)
            throw new Problem(problem(400, detail));
    }

    /** Text that PostgreSQL can hold: without U+0000, and without half of a surrogate pair. */
    static boolean isText(String value) {
        return value.indexOf(0) < 0 && StandardCharsets.UTF_8.newEncoder().canEncode(value);
    }

    static boolean matches(JsonNode value, String pattern) {
        return value.isTextual() && isText(value.textValue()) && value.textValue().matches(pattern);
    }

    static boolean between(JsonNode value, int min, int max) {
        return value.isInt() && value.intValue() >= min && value.intValue() <= max;
    }

    // ---- requests

    record Request(HttpExchange exchange, String text) {
        String path() {
            return exchange.getRequestURI().getPath();
        }

        /** null if there is none. */
        String header(String name) {
            List<String> values = exchange.getRequestHeaders().get(name);
            return values == null ? null : String.join(", ", values);
        }

        /** ASCII only: what a byte above 127 means in a header differs between servers. */
        String key() {
            String key = header("Idempotency-Key");
            valid(key == null || key.matches("[\t -~]*"), "The key is not ASCII.");
            return key;
        }

        /** "abc" and abc are one key, and so must be what is derived from it. */
        String bareKey() {
            String key = key().replaceAll("^[ \t]+|[ \t]+$", "");
            return key.startsWith("\"") ? key.substring(1, key.length() - 1).replaceAll("\\\\(.)", "$1") : key;
        }

        // In a real service this is the user of the session or the token.  Whoever believes a header
        // that the client can choose gives every user's answers to everybody.
        String user() {
            String name = header("X-User");
            if (name == null || !name.matches("[A-Za-z0-9._@-]{1,100}"))
                throw new Problem(problem(401, "Who are you?"));
            return name;
        }

        /** Method and path go into the scope, and so does the user: nobody gets the answer to another user's request. */
        String scope() {
            return user() + " " + exchange.getRequestMethod() + " " + path();
        }

        JsonNode body() {
            try {
                JsonNode body = JSON.readTree(text);
                valid(body.isObject(), "The body is not a JSON object.");
                return body;
            } catch (JsonProcessingException e) {
                throw new Problem(problem(400, "The body is not JSON."));
            }
        }

        String email() {
            JsonNode email = body().path("email");
            valid(matches(email, "\\s*[^@]+@[^@]+"), "email is missing or wrong");
            String text = email.textValue().strip().toLowerCase(Locale.ROOT);
            valid(text.length() <= 100, "email is too long");
            return text;
        }
    }

    // ---- the database

    interface Work<T> {
        T run(Connection connection) throws SQLException;
    }

    interface Row<T> {
        T read(ResultSet row) throws SQLException;
    }

    /**
     * A transaction.  What it returns is answered only after COMMIT; 40001 and 40P01, also of the COMMIT, repeat it
     * from BEGIN, never from a savepoint, where the same snapshot fails for ever.
     */
    static <T> T transaction(Work<T> work) throws SQLException {
        for (int attempt = 1;; attempt++) {
            try (Connection connection = pool.getConnection()) {
                connection.setAutoCommit(false);
                try {
                    T result = work.run(connection);
                    // commit() of a transaction that an error has aborted "succeeds", although the server rolls back
                    if (connection.unwrap(BaseConnection.class).getTransactionState() == TransactionState.FAILED)
                        throw new SQLException("The transaction is aborted.", "25P02");
                    connection.commit();
                    return result;
                } catch (SQLException | RuntimeException e) {
                    try {
                        connection.rollback();
                    } catch (SQLException broken) {    // HikariCP throws the connection away
                        e.addSuppressed(broken);
                    }
                    throw e;
                }
            } catch (SQLException e) {
                if (attempt == 3 || !hasState(e, "40001|40P01"))
                    throw e;
            }
        }
    }

    /** A single statement, a transaction of its own. */
    static <T> T autocommit(Work<T> work) throws SQLException {
        try (Connection connection = pool.getConnection()) {
            return work.run(connection);
        }
    }

    static PreparedStatement prepare(Connection connection, String sql, Object... values) throws SQLException {
        PreparedStatement statement = connection.prepareStatement(sql);
        for (int i = 0; i < values.length; i++)
            statement.setObject(i + 1, values[i]);
        return statement;
    }

    static <T> T one(Connection connection, String sql, Row<T> row, Object... values) throws SQLException {
        try (PreparedStatement statement = prepare(connection, sql, values); ResultSet result = statement.executeQuery()) {
            return result.next() ? row.read(result) : null;
        }
    }

    static int update(Connection connection, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = prepare(connection, sql, values)) {
            return statement.executeUpdate();
        }
    }

    /** The SQLSTATE is SQLException.getSQLState(); errors that are not the server's may have none. */
    static boolean hasState(SQLException e, String pattern) {
        return e.getSQLState() != null && e.getSQLState().matches(pattern);
    }

    static boolean isConnectionOrMayHelp(SQLException e) {
        return e instanceof SQLTransientConnectionException || hasState(e, "08...|53...|57P0.|55P03|40001|40P01");
    }

    /** To run, under a fence if it is leased, or the answer to send. */
    record Claim(boolean run, Long fence, Answer answer) {}

    // A missing key is null, which idem_http_begin answers with 400.
    // In autocommit mode it fails with ID005: its transaction ends without the finish.
    static Claim begin(Connection connection, Request request, Integer leaseMs) throws SQLException {
        return one(connection, """
                SELECT run, status, headers, body, replayed, fence
                  FROM idem_http_begin(?, ?, ?, wait_ms => 500, lease_ms => ?)""",
                row -> new Claim(row.getBoolean("run"), row.getObject("fence", Long.class), answerOf(row)),
                request.key(), request.text(), request.scope(), leaseMs);
    }

    // A replay has the first status, 201, not 200.  Retry-After of a 409 is whole seconds already.
    static Answer answerOf(ResultSet row) throws SQLException {
        Map<String, String> headers = Map.of();
        if (row.getString("headers") != null) {
            try {
                headers = JSON.readValue(row.getString("headers"), new TypeReference<>() {});
            } catch (JsonProcessingException e) {
                throw new IllegalStateException(e);
            }
        }
        Answer answer = new Answer(row.getInt("status"), headers, row.getString("body"));
        // 400, 409 and 422 say where your API's documentation is
        return row.getBoolean("replayed") ? answer.with("Idempotent-Replayed", "true")
                : answer.with("Link", "<https://shop.example/docs/idempotency>; rel=\"describedby\"");
    }

    // The scope is that of the begin: a claim is a key in a scope.
    static Answer finish(Connection connection, Request request, Answer answer, Long fence) throws SQLException {
        int status = one(connection, "SELECT idem_http_finish(?, ?, ?, ?, ?, ?)", row -> row.getInt(1),
                request.key(), answer.status(), answer.body(), JSON.valueToTree(answer.headers()).toString(),
                request.scope(), fence);
        return new Answer(status, answer.headers(), answer.body());
    }

    // ---- orders

    static Answer placeOrder(Connection connection, String user, JsonNode order) throws SQLException {
        String item = order.get("item").textValue(), number = order.path("order_number").textValue();
        int quantity = order.get("quantity").intValue();
        long id;
        try {
            id = one(connection, """
                    INSERT INTO orders (user_name, item, quantity, order_number) VALUES (?, ?, ?, ?) RETURNING id""",
                    row -> row.getLong(1), user, item, quantity, number);
        } catch (PSQLException e) {
            if (hasState(e, "23505") && "orders_once".equals(e.getServerErrorMessage().getConstraint()))
                throw new Problem(problem(409, "/problems/order-number-taken", "This order number is taken.", object()));
            throw e;
        }
        if (update(connection, "UPDATE stock SET available = available - ? WHERE item = ? AND available >= ?",
                quantity, item, quantity) == 0)
            throw new Problem(problem(422, "/problems/sold-out", "There is not enough of " + item + ".", object()));
        return json(201, object().put("id", id).put("item", item).put("quantity", quantity).put("order_number", number))
                .with("Location", "/orders/" + id);
    }

    static Answer orders(Request request) throws SQLException {
        String user = request.user();
        JsonNode order = request.body(), number = order.path("order_number");
        valid(matches(order.path("item"), "[a-z0-9-]{1,60}"), "item is missing or wrong");
        valid(between(order.path("quantity"), 1, 100), "quantity is 1 to 100");
        boolean numbered = !number.isMissingNode() && !number.isNull();
        valid(!numbered || matches(number, "[A-Za-z0-9-]{1,60}"), "order_number is wrong");
        if (request.key() == null && numbered)
            return transaction(connection -> placeOrder(connection, user, order));

        return transaction(connection -> {
            Claim claim = begin(connection, request, null);
            if (!claim.run())
                return claim.answer();
            Savepoint work = connection.setSavepoint("work");
            Answer answer;
            try {
                answer = placeOrder(connection, user, order);
            } catch (Problem refused) {
                // A business failure is an answer, too: undo the work, and store the answer with its status.
                connection.rollback(work);
                answer = refused.answer;
            }
            return finish(connection, request, answer, null);
        });
    }

    // ---- clicks

    record Call(boolean allowed, int remaining, int seconds) {}

    static Answer clicks(Request request) throws SQLException {
        String user = request.user();
        // Whole seconds until one call more is allowed, rounded up: who comes back a moment too early is refused again.
        // reset_after is until all five are, a minute for each.
        Call call = autocommit(connection -> one(connection, """
                SELECT allowed, remaining, ceil(reset_after - 60 * (4 - remaining))::int
                  FROM idem_throttle(?, '5 min', 5, 'clicks')""",
                row -> new Call(row.getBoolean(1), row.getInt(2), row.getInt(3)), user));
        Answer answer;
        if (call.allowed()) {
            autocommit(connection -> update(connection, "INSERT INTO clicks (user_name) VALUES (?)", user));
            answer = new Answer(204, Map.of(), null);
        } else {
            answer = problem(429, "Too many clicks.").with("Retry-After", "" + call.seconds());
        }
        return answer.with("RateLimit-Policy", "\"clicks\";q=5;w=300")
                .with("RateLimit", "\"clicks\";r=%d;t=%d".formatted(call.remaining(), call.seconds()));
    }

    // ---- payments

    /** The charge, or null if it was declined. */
    static String charge(String remoteKey, int amount) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(System.getenv("PAYMENT_URL") + "/charges"))
                .header("Content-Type", "application/json").header("Idempotency-Key", remoteKey)
                .POST(HttpRequest.BodyPublishers.ofString(object().put("amount", amount).toString())).build();
        HttpResponse<String> response =
                http.sendAsync(request, HttpResponse.BodyHandlers.ofString()).get(10, TimeUnit.SECONDS);
        if (response.statusCode() == 402)
            return null;
        JsonNode charge = response.statusCode() == 201 ? JSON.readTree(response.body()).path("charge") : object();
        if (!charge.isTextual())
            throw new IOException("the payment service says " + response.statusCode());
        return charge.textValue();
    }

    static Answer payments(Request request) throws SQLException {
        String user = request.user(), scope = request.scope();
        JsonNode body = request.body();
        valid(between(body.path("amount"), 1, 1_000_000), "amount is 1 to 1000000");
        int amount = body.get("amount").intValue();

        // Committed before the call, so that all see the claim in progress, until it is finished or its lease is over.
        Claim claim = transaction(connection -> {
            Claim begun = begin(connection, request, 30_000);
            if (begun.run())
                update(connection, "INSERT INTO payments (remote_key, user_name, amount) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                        remoteKey(request), user, amount);
            return begun;
        });
        if (!claim.run())
            return claim.answer();

        String charge;
        try {
            charge = charge(remoteKey(request), amount);
        } catch (Exception e) {
            // We do not know whether it was charged.  The next attempt asks again, under the same key.
            log.warn("no answer from the payment service: {}", e.toString());
            try {
                autocommit(connection -> one(connection, "SELECT idem_release(?, ?, ?)", row -> row.getBoolean(1),
                        request.bareKey(), scope, claim.fence()));
            } catch (SQLException failed) {
                log.warn("not released, the lease ends by itself: {}", failed.toString());
            }
            return tryAgain(503);
        }
        Answer answer = charge != null ? json(201, object().put("charge", charge).put("amount", amount))
                : problem(402, "/problems/declined", "The card was declined.", object());
        try {
            return transaction(connection -> {
                update(connection, "UPDATE payments SET status = ?, charge = ? WHERE remote_key = ?",
                        charge != null ? "paid" : "declined", charge, remoteKey(request));
                return finish(connection, request, answer, claim.fence());
            });
        } catch (SQLException e) {
            // another request has taken over, or has finished already: its answer is the answer
            if (hasState(e, "ID004|ID006"))
                return tryAgain(409);
            throw e;
        }
    }

    static String remoteKey(Request request) {
        byte[] text = (request.scope() + "\n" + request.bareKey()).getBytes(StandardCharsets.UTF_8);
        try {
            return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(text));
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException(e);
        }
    }

    // ---- magic links and codes

    // The token goes from the database into the mail, and not through this program's logs.
    static Answer sendLink(Request request) throws SQLException {
        String email = request.email();
        autocommit(connection -> update(connection, """
                INSERT INTO outbox (recipient, kind, secret)
                SELECT ?, 'magic-link', idem_token_issue('login', '15 min', subject => ?)""", email, email));
        return new Answer(202, Map.of(), null);
    }

    static Answer noLink(String state) {
        return state.equals("unknown") ? problem(404, "There is no such link.")
                : problem(410, "This link was used before, or is too old.");
    }

    // A scanner of the mail server follows the link: looking burns nothing.
    static Answer peekLink(String token) throws SQLException {
        String state = autocommit(connection -> one(connection, "SELECT state FROM idem_token_peek('login', ?)",
                row -> row.getString(1), token));
        return state.equals("valid") ? json(200, object().put("state", state)) : noLink(state);
    }

    record Redeemed(String state, String subject) {}

    static Answer redeemLink(String token) throws SQLException {
        return transaction(connection -> {
            Redeemed redeemed = one(connection, "SELECT state, subject FROM idem_token_redeem('login', ?)",
                    row -> new Redeemed(row.getString(1), row.getString(2)), token);
            if (!redeemed.state().equals("redeemed"))
                return noLink(redeemed.state());
            update(connection, "INSERT INTO logins (email) VALUES (?)", redeemed.subject());
            return json(200, object().put("email", redeemed.subject()));
        });
    }

    static Answer sendCode(Request request) throws SQLException {
        String email = request.email();
        autocommit(connection -> update(connection, """
                INSERT INTO outbox (recipient, kind, secret)
                SELECT ?, 'code', idem_code_issue('login', ?, '5 min', max_attempts => 3)""", email, email));
        return new Answer(202, Map.of(), null);
    }

    record Verified(String state, Integer attemptsLeft) {}

    static Answer verifyCode(Request request) throws SQLException {
        String email = request.email();
        JsonNode code = request.body().path("code");
        valid(matches(code, "(?s).*"), "code is missing or wrong");
        // a wrong attempt commits as well, or it would not count
        return transaction(connection -> {
            Verified verified = one(connection, "SELECT state, attempts_left FROM idem_code_verify('login', ?, ?)",
                    row -> new Verified(row.getString(1), row.getObject(2, Integer.class)), email, code.textValue());
            switch (verified.state()) {
                case "verified":
                    update(connection, "INSERT INTO logins (email) VALUES (?)", email);
                    return json(200, object().put("verified", true));
                case "wrong", "locked":
                    return problem(403, "about:blank", "This is not the code.",
                            object().put("attempts_left", verified.attemptsLeft()));
                default:
                    return problem(410, "There is no such code any more; ask for a new one.");
            }
        });
    }

    // ---- a consumer

    static boolean usable(JsonNode id) {
        return matches(id, "(?s).+") && id.textValue().getBytes(StandardCharsets.UTF_8).length <= 1024;
    }

    /** Escapes what is not ASCII, so that PostgreSQL refuses half of a surrogate pair, for which pgjdbc would send "?". */
    static String textOf(JsonNode payload) {
        try {
            return payload.isMissingNode() ? null : JSON.writer().with(JsonWriteFeature.ESCAPE_NON_ASCII).writeValueAsString(payload);
        } catch (IOException e) {
            throw new IllegalStateException(e);
        }
    }

    static void park(Connection connection, String id, JsonNode payload, String error) throws SQLException {
        update(connection, "INSERT INTO dead_letters (message_id, payload, error) VALUES (?, ?, ?)", id, textOf(payload), error);
    }

    static List<String> claimMany(Connection connection, Iterable<String> ids) throws SQLException {
        List<String> all = new ArrayList<>(), fresh = new ArrayList<>();
        ids.forEach(all::add);
        try (PreparedStatement statement = prepare(connection, "SELECT key FROM idem_claim_many(?, '7 days', 'deliveries')",
                connection.createArrayOf("text", all.toArray())); ResultSet rows = statement.executeQuery()) {
            while (rows.next())
                fresh.add(rows.getString(1));
        }
        return fresh;
    }

    static Answer deliveries(Request request) throws SQLException {
        JsonNode messages = request.body().path("messages");
        valid(messages.isArray() && messages.size() <= 100, "messages is missing or wrong");
        return transaction(connection -> {
            int worked = 0, parked = 0;
            // idem_claim_many returns keys, not payloads: this map leads back to those.
            Map<String, JsonNode> payloads = new LinkedHashMap<>();
            for (JsonNode message : messages) {
                JsonNode id = message.path("id"), payload = message.path("payload");
                if (usable(id)) {
                    payloads.putIfAbsent(id.textValue(), payload);
                } else {
                    park(connection, null, payload, "no usable id");    // it would fail the whole batch
                    parked++;
                }
            }
            for (String id : claimMany(connection, payloads.keySet())) {
                Savepoint message = connection.setSavepoint("message");
                try {
                    update(connection, """
                            INSERT INTO shipments SELECT ?, p.order_number, p.quantity
                              FROM jsonb_to_record(?::jsonb) AS p(order_number text, quantity int)""",
                            id, textOf(payloads.get(id)));
                    worked++;
                } catch (SQLException e) {
                    // Poison is what will always fail: class 22 (bad values), 23 (constraints), 54 (too large, too deep).  It is
                    // parked, still claimed.  Anything else fails the batch, and the broker sends it again.
                    if (!hasState(e, "(22|23|54)..."))
                        throw e;
                    connection.rollback(message);
                    park(connection, id, payloads.get(id), e.getMessage());
                    parked++;
                }
            }
            return json(200, object().put("received", messages.size()).put("new", worked).put("parked", parked));
        });
    }

    // ---- HTTP

    static Answer health() throws SQLException {
        return autocommit(connection -> one(connection, "SELECT 1", row -> json(200, object().put("up", true))));
    }

    static final String LINKS = "/magic-links/";

    static Answer route(Request request) throws SQLException {
        String route = request.exchange().getRequestMethod() + " " + request.path();
        if (request.path().matches(LINKS + "[^\0]+")) {
            String token = request.path().substring(LINKS.length());
            if (route.startsWith("GET "))
                return peekLink(token).with("Cache-Control", "no-store");
            if (route.startsWith("POST "))
                return redeemLink(token).with("Cache-Control", "no-store");
        }
        return switch (route) {
            case "POST /orders" -> orders(request);
            case "POST /clicks" -> clicks(request);
            case "POST /payments" -> payments(request);
            case "POST /magic-links" -> sendLink(request).with("Cache-Control", "no-store");
            case "POST /codes" -> sendCode(request);
            case "POST /codes/verify" -> verifyCode(request);
            case "POST /deliveries" -> deliveries(request);
            case "GET /healthz" -> health();
            default -> problem(404, "There is nothing here.");
        };
    }

    // The only way out, for a first answer and for its replay, so that both are the same bytes.
    static void send(HttpExchange exchange, Answer answer) throws IOException {
        answer.headers().forEach(exchange.getResponseHeaders()::set);
        byte[] body = answer.body() == null ? new byte[0] : answer.body().getBytes(StandardCharsets.UTF_8);
        exchange.sendResponseHeaders(answer.status(), body.length == 0 ? -1 : body.length);
        if (body.length > 0)
            exchange.getResponseBody().write(body);
    }

    static final int MAX_BODY = 1 << 20;

    static Answer answer(HttpExchange exchange) throws IOException {
        try {
            // The body as it came is what idem_http_begin compares.
            byte[] body = exchange.getRequestBody().readNBytes(MAX_BODY + 1);
            if (body.length > MAX_BODY)
                return problem(413, "The body has more than 1 MiB.");
            return route(new Request(exchange, StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(body)).toString()));
        } catch (Problem problem) {
            return problem.answer;
        } catch (CharacterCodingException e) {
            return problem(400, "The body is not UTF-8.");
        } catch (SQLException e) {
            log.error("A request failed.", e);    // not its path, which may be a token
            return isConnectionOrMayHelp(e) ? tryAgain(503) : problem(500, "This did not work.");
        } catch (RuntimeException e) {
            log.error("A request failed.", e);    // not its path, which may be a token
            return problem(500, "This did not work.");
        }
    }

    public static void main(String[] args) throws IOException {
        String port = System.getenv().getOrDefault("PORT", "8080");
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(port)), 100);
        ExecutorService executor = Executors.newCachedThreadPool();
        server.setExecutor(executor);
        // What runs is answered first: a payment that is cut off leaves its client waiting for the end of the lease.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            executor.shutdown();
            try {
                executor.awaitTermination(20, TimeUnit.SECONDS);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        }));
        server.createContext("/", exchange -> {
            try {
                send(exchange, answer(exchange));
            } finally {
                exchange.close();
            }
        });
        server.start();
    }
}
