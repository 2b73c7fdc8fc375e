// What t/061_clients.pl asks Java's pgjdbc and Spring JDBC: see clients.py.  JDBC_URL, JDBC_USER and JDBC_PASSWORD say where.
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.time.Duration;
import java.util.Collections;
import java.util.LinkedList;
import org.postgresql.core.BaseConnection;
import org.postgresql.util.PGobject;
import org.postgresql.util.PSQLException;
import org.springframework.dao.DataAccessException;
import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.jdbc.datasource.DataSourceTransactionManager;
import org.springframework.jdbc.datasource.DriverManagerDataSource;
import org.springframework.jdbc.datasource.SingleConnectionDataSource;
import org.springframework.transaction.TransactionDefinition;
import org.springframework.transaction.support.TransactionTemplate;

public class Clients {
    interface Work {
        Object run() throws Exception;
    }

    static void say(String name, Object result) {
        System.out.println(name + "\t" + result);
    }

    static Object outcome(Work work) {
        try {
            return work.run();
        } catch (DataAccessException e) {
            return e.getCause() instanceof PSQLException ? ((PSQLException) e.getCause()).getSQLState() : e;
        } catch (SQLException e) {
            return e.getSQLState();
        } catch (Exception e) {
            return e;
        }
    }

    static Connection connect(String options) throws SQLException {
        return DriverManager.getConnection(System.getenv("JDBC_URL") + options, System.getenv("JDBC_USER"), System.getenv("JDBC_PASSWORD"));
    }

    static Object value(Connection db, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = db.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++)
                statement.setObject(i + 1, values[i]);
            try (ResultSet rows = statement.executeQuery()) {
                return rows.next() ? rows.getObject(1) : null;
            }
        }
    }

    static final String BEGIN = "SELECT state FROM idem_begin(?)";
    static final String STATE = "SELECT coalesce((SELECT state FROM idem_lookup(?)), 'free')";

    /** Begin, finish and an error that is caught. */
    static void abort(Connection db, String key) throws SQLException {
        value(db, BEGIN, key);
        value(db, "SELECT idem_finish(?)", key);
        outcome(() -> value(db, "SELECT 1/0"));
    }

    static void pgjdbc() throws Exception {
        Connection db = connect("");
        say("autocommit", outcome(() -> value(db, BEGIN, "java 1")));
        db.setAutoCommit(false);
        value(db, BEGIN, "java 1");
        say("no finish", outcome(() -> {
            db.commit();
            return "no error";
        }));
        db.rollback();
        abort(db, "java 1");
        say("state", db.unwrap(BaseConnection.class).getTransactionState());
        say("caught error", outcome(() -> {
            db.commit();
            return "no error";
        }));
        say("and the key", value(db, STATE, "java 1"));
        db.setAutoCommit(true);

        String claim = "SELECT state FROM idem_begin(?, request => ?, lease => '1 min')", json = "{\"a\": 1}";
        say("setString", outcome(() -> value(db, claim, "java 2", json)));
        say("::jsonb", outcome(() -> value(db, claim.replace("request => ?", "request => ?::jsonb"), "java 3", json)));
        PGobject object = new PGobject();
        object.setType("jsonb");
        object.setValue(json);
        say("PGobject", outcome(() -> value(db, claim, "java 4", object)));
        try (Connection unspecified = connect("?stringtype=unspecified")) {
            say("unspecified", outcome(() -> value(unspecified, claim, "java 5", json)));
        }
        String lease = "SELECT state FROM idem_begin(?, lease => ?)";
        say("Duration", outcome(() -> value(db, lease, "java 6", Duration.ofMinutes(1))));
        say("::interval", outcome(() -> value(db, lease.replace("=> ?", "=> ?::interval"), "java 7", "1 min")));
        say("make_interval", outcome(() -> value(db, lease.replace("=> ?", "=> make_interval(secs => ?)"), "java 8", 60)));
        String http = "SELECT status FROM idem_http_begin(NULL, wait_ms => ?)";
        say("int", outcome(() -> value(db, http, 500)));
        say("long", outcome(() -> value(db, http, 500L)));

        try (Connection autosave = connect("?autosave=always")) {
            autosave.setAutoCommit(false);
            abort(autosave, "java 9");
            autosave.commit();
            say("autosave", value(autosave, STATE, "java 9"));
        }
        value(db, "INSERT INTO java_once VALUES ('a') RETURNING 1");
        try {
            value(db, "INSERT INTO java_once VALUES ('a') RETURNING 1");
        } catch (PSQLException e) {
            say("constraint", e.getSQLState() + " " + e.getServerErrorMessage().getConstraint());
        }
    }

    static void spring() throws Exception {
        DriverManagerDataSource source = new DriverManagerDataSource(System.getenv("JDBC_URL"), System.getenv("JDBC_USER"), System.getenv("JDBC_PASSWORD"));
        JdbcTemplate db = new JdbcTemplate(source);
        DataSourceTransactionManager manager = new DataSourceTransactionManager(source);
        TransactionTemplate transaction = new TransactionTemplate(manager);
        TransactionTemplate nested = new TransactionTemplate(manager);
        nested.setPropagationBehavior(TransactionDefinition.PROPAGATION_NESTED);

        say("autocommit", outcome(() -> db.queryForObject(BEGIN, String.class, "spring 1")));
        Object failed = outcome(() -> transaction.execute(status -> db.queryForObject(BEGIN, String.class, "spring 1")));
        say("no finish", failed instanceof Exception ? ((SQLException) ((Exception) failed).getCause()).getSQLState() : failed);
        say("caught error", transaction.execute(status -> {
            db.queryForObject(BEGIN, String.class, "spring 1");
            db.queryForObject("SELECT idem_finish(?)", Object.class, "spring 1");
            return outcome(() -> db.queryForObject("SELECT 1/0", Integer.class));
        }));
        say("and the key", db.queryForObject(STATE, String.class, "spring 1"));
        transaction.execute(status -> {
            db.queryForObject("SELECT idem_claim(?)", Boolean.class, "spring 2");
            return nested.execute(inner -> {
                db.queryForObject("SELECT idem_claim(?)", Boolean.class, "spring 3");
                inner.setRollbackOnly();
                return null;
            });
        });
        say("nested", db.queryForObject(STATE, String.class, "spring 2") + " " + db.queryForObject(STATE, String.class, "spring 3"));
        db.update("INSERT INTO java_once VALUES ('b')");
        try {
            db.update("INSERT INTO java_once VALUES ('b')");
        } catch (DataAccessException e) {
            say("raise", e.getClass().getSimpleName());
        }
    }

    interface Client {
        void begin(String key) throws Exception;

        void commit() throws Exception;

        void rollback() throws Exception;
    }

    static boolean done(Client client, Work work) {
        try {
            work.run();
            return true;
        } catch (Exception e) {
            outcome(() -> {
                client.rollback();
                return null;
            });
            return false;
        }
    }

    /** See swap() of clients.py. */
    static void swap(String name, Client... clients) {
        int resolved = 0, count = 0;
        for (int attempt = 0; attempt < 25; attempt++) {
            LinkedList<Client> inside = new LinkedList<>();
            for (int i : attempt < 10 ? new int[] {0} : attempt % 2 == 0 ? new int[] {1, 0} : new int[] {0, 1}) {
                Client client = clients[i];
                String key = name + " " + ++count;
                if (done(client, () -> {
                    client.begin(key);
                    return null;
                }))
                    inside.add(client);
            }
            if (attempt % 4 >= 2)
                Collections.reverse(inside);
            for (Client client : inside)
                if (done(client, () -> {
                    client.commit();
                    return null;
                }))
                    resolved++;
        }
        say("resolved", resolved);
    }

    static Client jdbc(String options) throws SQLException {
        Connection db = connect(options);
        db.setAutoCommit(false);
        return new Client() {
            @Override
            public void begin(String key) throws SQLException {
                value(db, BEGIN, key);
                value(db, "SELECT idem_finish(?)", key);
            }

            @Override
            public void commit() throws SQLException {
                db.commit();
            }

            @Override
            public void rollback() throws SQLException {
                db.rollback();
            }
        };
    }

    /** A connection that stays, with Spring's transactions on it. */
    static Client spring(String options) throws SQLException {
        SingleConnectionDataSource source = new SingleConnectionDataSource(connect(options), true);
        JdbcTemplate db = new JdbcTemplate(source);
        return new Client() {
            private Connection connection;

            @Override
            public void begin(String key) throws SQLException {
                connection = source.getConnection();
                connection.setAutoCommit(false);
                db.queryForObject(BEGIN, String.class, key);
                db.queryForObject("SELECT idem_finish(?)", Object.class, key);
            }

            @Override
            public void commit() throws SQLException {
                connection.commit();
            }

            @Override
            public void rollback() throws SQLException {
                connection.rollback();
            }
        };
    }

    public static void main(String[] args) throws Exception {
        String options = args.length > 1 && args[1].equals("with") ? "?prepareThreshold=0" : "";
        if (args.length > 1 && args[0].equals("pgjdbc"))
            swap("pgjdbc " + args[1], jdbc(options), jdbc(options));
        else if (args.length > 1)
            swap("spring " + args[1], spring(options), spring(options));
        else if (args[0].equals("pgjdbc"))
            pgjdbc();
        else
            spring();
    }
}
