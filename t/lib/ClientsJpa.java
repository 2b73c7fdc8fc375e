// What t/061_clients.pl asks JPA and Spring's JPA transactions: see clients.py.  Connects as Clients.java does.
import java.lang.reflect.Method;
import java.sql.SQLException;
import java.util.Collections;
import java.util.function.Consumer;
import java.util.function.Function;
import javax.persistence.Column;
import javax.persistence.Entity;
import javax.persistence.EntityManager;
import javax.persistence.EntityManagerFactory;
import javax.persistence.GeneratedValue;
import javax.persistence.GenerationType;
import javax.persistence.Id;
import javax.persistence.Persistence;
import javax.persistence.Query;
import javax.persistence.Table;
import org.springframework.aop.framework.ProxyFactory;
import org.springframework.dao.DataAccessException;
import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.jdbc.datasource.DriverManagerDataSource;
import org.springframework.jdbc.datasource.SingleConnectionDataSource;
import org.springframework.orm.jpa.EntityManagerFactoryUtils;
import org.springframework.orm.jpa.JpaTransactionManager;
import org.springframework.orm.jpa.vendor.EclipseLinkJpaDialect;
import org.springframework.transaction.annotation.AnnotationTransactionAttributeSource;
import org.springframework.transaction.annotation.Transactional;
import org.springframework.transaction.interceptor.TransactionInterceptor;
import org.springframework.transaction.support.TransactionTemplate;

public class ClientsJpa {
    @Entity
    @Table(name = "jpa_raise")
    public static class Raise {
        @Id
        @GeneratedValue(strategy = GenerationType.IDENTITY)
        public long id;
        @Column
        public String k;
    }

    @Entity
    @Table(name = "jpa_skip")
    public static class Skip {
        @Id
        @GeneratedValue(strategy = GenerationType.IDENTITY)
        public long id;
        @Column
        public String k;
    }

    static class Checked extends Exception {
    }

    public interface Service {
        @Transactional
        void checked() throws Exception;

        @Transactional(rollbackFor = Exception.class)
        void rolledBack() throws Exception;
    }

    interface Work {
        Object run() throws Exception;
    }

    static void say(String name, Object result) {
        System.out.println(name + "\t" + result);
    }

    /** The SQLSTATE, and the exception around it. */
    static Object outcome(Work work) {
        try {
            Object result = work.run();
            return result == null ? "no error" : result;
        } catch (Exception e) {
            for (Throwable cause = e; cause != null; cause = cause.getCause())
                if (cause instanceof SQLException)
                    return e.getClass().getSimpleName() + " " + ((SQLException) cause).getSQLState();
            return e.getClass().getSimpleName();
        }
    }

    static final String BEGIN = "SELECT state FROM idem_begin(?1)";
    static EntityManagerFactory factory;
    static JdbcTemplate db;

    static Object value(EntityManager em, String sql, Object... values) {
        Query query = em.createNativeQuery(sql);
        for (int i = 0; i < values.length; i++)
            query.setParameter(i + 1, values[i]);
        return query.getSingleResult();
    }

    static Object inTransaction(Function<EntityManager, Object> work) {
        EntityManager em = factory.createEntityManager();
        try {
            em.getTransaction().begin();
            Object result = work.apply(em);
            em.getTransaction().commit();
            return result;
        } finally {
            if (em.getTransaction().isActive())
                em.getTransaction().rollback();
            em.close();
        }
    }

    static String state(String key) {
        return db.queryForObject("SELECT coalesce((SELECT state FROM idem_lookup(?)), 'free')", String.class, key);
    }

    static void jpa() {
        say("no finish", outcome(() -> inTransaction(em -> value(em, BEGIN, "jpa 1"))));
        say("caught error", outcome(() -> inTransaction(em -> {
            value(em, BEGIN, "jpa 1");
            value(em, "SELECT CAST(idem_finish(?1) AS text)", "jpa 1");
            return outcome(() -> value(em, "SELECT 1/0"));
        })));
        say("and the key", state("jpa 1"));
        say("without a transaction", outcome(() -> value(factory.createEntityManager(), BEGIN, "jpa 1")));

        String request = "SELECT state FROM idem_begin(?1, request => %s, lease => CAST(?3 AS interval))", json = "{\"a\": 1}";
        say("text", outcome(() -> inTransaction(em -> value(em, String.format(request, "?2"), "jpa 2", json, "1 min"))));
        say("CAST", outcome(() -> inTransaction(em -> value(em, String.format(request, "CAST(?2 AS jsonb)"), "jpa 3", json, "1 min"))));
        say("::jsonb", outcome(() -> inTransaction(em -> value(em, String.format(request, "?2::jsonb"), "jpa 4", json, "1 min"))));
        say("null", outcome(() -> inTransaction(em -> value(em, String.format(request, "CAST(?2 AS jsonb)"), "jpa 5", null, "1 min"))));
        say("named", outcome(() -> inTransaction(em -> em.createNativeQuery("SELECT state FROM idem_begin(#k)").setParameter("k", "jpa 3").getSingleResult())));
        say("jsonb", outcome(() -> inTransaction(em -> value(em, "SELECT CAST('{}' AS jsonb)").getClass().getSimpleName())));

        // no second level cache answers
        say("claim", outcome(() -> inTransaction(em -> value(em, "SELECT idem_claim(?1)", "jpa 6") + " " + value(em, "SELECT idem_claim(?1)", "jpa 6"))));

        // the INSERT is sent at the flush, which is at the commit unless somebody asks for it
        Consumer<EntityManager> add = em -> {
            Raise row = new Raise();
            row.k = "a";
            em.persist(row);
        };
        outcome(() -> inTransaction(em -> {
            add.accept(em);
            return null;
        }));
        say("raise, persist", outcome(() -> inTransaction(em -> outcome(() -> {
            add.accept(em);
            return "later";
        }))));
        say("raise, flush", outcome(() -> inTransaction(em -> {
            add.accept(em);
            em.flush();
            return null;
        })));
        for (int i = 0; i < 2; i++) {
            Skip row = new Skip();
            row.k = "a";
            String name = "skip " + i;
            say(name, outcome(() -> inTransaction(em -> {
                em.persist(row);
                em.flush();
                return "id " + row.id;
            })));
        }
        say("skip, rows", db.queryForObject("SELECT string_agg(id::text, ' ') FROM jpa_skip", String.class));
    }

    static void spring() throws Exception {
        JpaTransactionManager manager = new JpaTransactionManager(factory);
        manager.setJpaDialect(new EclipseLinkJpaDialect());
        manager.setDataSource(db.getDataSource());
        TransactionTemplate transaction = new TransactionTemplate(manager);

        say("no finish", outcome(() -> transaction.execute(status -> db.queryForObject("SELECT state FROM idem_begin(?)", String.class, "spring jpa 1"))));
        say("one connection", transaction.execute(status -> {
            EntityManager em = EntityManagerFactoryUtils.getTransactionalEntityManager(factory);
            Object mine = value(em, "SELECT pg_backend_pid()"), other = db.queryForObject("SELECT pg_backend_pid()", Integer.class);
            return mine.equals(other);
        }));
        say("caught JDBC error", outcome(() -> transaction.execute(status -> {
            db.queryForObject("SELECT state FROM idem_begin(?)", String.class, "spring jpa 1");
            db.queryForObject("SELECT idem_finish(?)", Object.class, "spring jpa 1");
            return outcome(() -> db.queryForObject("SELECT 1/0", Integer.class));
        })));
        say("and the key", state("spring jpa 1"));
        say("caught JPA error", outcome(() -> transaction.execute(status -> {
            EntityManager em = EntityManagerFactoryUtils.getTransactionalEntityManager(factory);
            return outcome(() -> value(em, "SELECT 1/0"));
        })));

        // what @Transactional commits
        ProxyFactory proxy = new ProxyFactory(new Service() {
            private void claim(String key) throws Exception {
                db.queryForObject("SELECT idem_claim(?)", Boolean.class, key);
                throw new Checked();
            }

            @Override
            public void checked() throws Exception {
                claim("spring jpa 2");
            }

            @Override
            public void rolledBack() throws Exception {
                claim("spring jpa 3");
            }
        });
        proxy.addAdvice(new TransactionInterceptor(manager, new AnnotationTransactionAttributeSource()));
        Service service = (Service) proxy.getProxy();
        outcome(() -> {
            service.checked();
            return null;
        });
        say("checked exception", state("spring jpa 2"));
        outcome(() -> {
            service.rolledBack();
            return null;
        });
        say("rollbackFor", state("spring jpa 3"));
    }

    /** An EntityManager on a connection that stays. */
    static Clients.Client jpaClient(String options) throws SQLException {
        SingleConnectionDataSource source = new SingleConnectionDataSource(Clients.connect(options), true);
        EntityManager em = Persistence.createEntityManagerFactory("clients", Collections.singletonMap("javax.persistence.nonJtaDataSource", source)).createEntityManager();
        return new Clients.Client() {
            @Override
            public void begin(String key) {
                em.getTransaction().begin();
                value(em, BEGIN, key);
                value(em, "SELECT CAST(idem_finish(?1) AS text)", key);
            }

            @Override
            public void commit() {
                em.getTransaction().commit();
            }

            @Override
            public void rollback() {
                if (em.getTransaction().isActive())
                    em.getTransaction().rollback();
            }
        };
    }

    public static void main(String[] args) throws Exception {
        if (args.length > 1) {
            String options = args[1].equals("with") ? "?prepareThreshold=0" : "";
            Clients.swap("jpa " + args[1], jpaClient(options), jpaClient(options));
            System.exit(0);
        }
        DriverManagerDataSource source = new DriverManagerDataSource(System.getenv("JDBC_URL"), System.getenv("JDBC_USER"), System.getenv("JDBC_PASSWORD"));
        db = new JdbcTemplate(source);
        factory = Persistence.createEntityManagerFactory("clients", Collections.singletonMap("javax.persistence.nonJtaDataSource", source));
        if (args[0].equals("jpa"))
            jpa();
        else
            spring();
        factory.close();
    }
}
