// What t/067_clients_npm.pl asks the clients of npm: one line "NAME<tab>RESULT" for each trap of doc/clients.md.
// Prisma's packages are those of t/lib/prisma.
//   node clients.js CLIENT    connects as PGHOST, PGPORT, PGUSER and PGDATABASE say
import { createRequire } from 'node:module';
import pg from 'pg';

const client = process.argv[2];
const { PGHOST: host, PGPORT: port, PGUSER: user, PGDATABASE: database } = process.env;
const admin = new pg.Pool({ max: 1 });    // another connection, which sees only what was committed
let count = 0;

const key = () => `${client} ${++count}`;
const say = (name, result) => console.log(`${name}\t${result}`);
const state = async k => (await admin.query("SELECT coalesce((SELECT state FROM idem_lookup($1)), 'free') AS s", [k])).rows[0].s;
const typeOf = async k => (await admin.query("SELECT coalesce(jsonb_typeof(result), 'NULL') AS t FROM idem_lookup($1)", [k])).rows[0].t;

async function outcome(work, of) {
  try {
    return await work() ?? 'no error';
  } catch (error) {
    return of(error);
  }
}

// run: statement in a transaction; transaction: a function for one; of: the SQLSTATE of an error
async function traps({ run, transaction, of, bare = transaction }) {
  await say('no finish', await outcome(() => bare(async tx => { await run(tx, 'begin', key()); }), of));
  const k = key();
  say('caught error', await outcome(() => transaction(async tx => {
    await run(tx, 'begin', k);
    await run(tx, 'finish', k);
    await run(tx, 'divide').catch(() => {});
  }), of));
  say('and the key', await state(k));
}

const sqlOf = (mark = '$1') => ({
  begin: `SELECT state FROM idem_begin(${mark})`, finish: `SELECT idem_finish(${mark})::text AS r`, divide: 'SELECT 1/0 AS r',
});

const clients = {
  async pg() {
    const pool = new pg.Pool({ max: 2 });
    const transaction = async work => {
      const c = await pool.connect();
      try {
        await c.query('BEGIN');
        await work(c);
        return (await c.query('COMMIT')).command;
      } catch (error) {
        await c.query('ROLLBACK');
        throw error;
      } finally {
        c.release();
      }
    };
    const sql = sqlOf();
    await traps({ transaction, run: (c, what, ...values) => c.query(sql[what], values), of: error => error.code });
    const result = value => outcome(async () => {
      const k = key();
      await transaction(async c => {
        await c.query('SELECT idem_begin($1)', [k]);
        await c.query('SELECT idem_finish($1, $2)', [k, value]);
      });
      return typeOf(k);
    }, error => error.code);
    say('object', await result({ a: 1 }));
    say('array', await result([{ a: 1 }]));
    say('array, JSON.stringify', await result(JSON.stringify([{ a: 1 }])));
    say('string', await result('text'));
    say('string, JSON.stringify', await result(JSON.stringify('text')));
    say('text[]', (await pool.query('SELECT count(*)::int AS n FROM idem_claim_many($1)', [[key(), key()]])).rows[0].n);
    say('bigint', typeof (await pool.query('SELECT 1::bigint AS n')).rows[0].n);
    await pool.end();
  },

  async postgres() {
    const { default: postgres } = await import('postgres');
    const sql = postgres({ host, port, user, database, max: 1, prepare: false, onnotice() {} });
    await traps({
      transaction: async work => { await sql.begin(work); }, of: error => error.code,
      run: (tx, what, k) => ({ begin: () => tx`SELECT state FROM idem_begin(${k})`, finish: () => tx`SELECT idem_finish(${k})`,
        divide: () => tx`SELECT 1/0` })[what](),
    });
    const result = async value => {
      const k = key();
      await sql.begin(async tx => {
        await tx`SELECT idem_begin(${k})`;
        await tx`SELECT idem_finish(${k}, ${value})`;
      });
      return typeOf(k);
    };
    say('object', await result({ a: 1 }));
    say('JSON.stringify', await result(JSON.stringify({ a: 1 })));
    say('sql.json(null)', await result(sql.json(null)));
    say('undefined', await outcome(() => sql`SELECT idem_begin(${key()}, request => ${undefined})`, error => error.code));
    await sql.end();
  },

  async knex() {
    const { default: Knex } = await import('knex');
    const knex = Knex({ client: 'pg', connection: { host, port, user, database }, pool: { min: 0, max: 2 } });
    const sql = sqlOf('?');
    await traps({
      transaction: async work => { await knex.transaction(work); }, of: error => error.code,
      run: async (trx, what, ...values) => { await trx.raw(sql[what], values); },
    });
    const trx = await knex.transaction();
    const promise = trx.executionPromise.then(() => 'resolves', error => error.code);
    await trx.raw(sql.begin, [key()]);
    say('trx.commit', await outcome(async () => { await trx.commit(); }, error => error.code));
    say('executionPromise', await promise);
    const k = key();
    await knex.transaction(async trx => {
      await trx.raw('SELECT idem_begin(?)', [k]);
      await trx.raw('SELECT idem_finish(?, ?)', [k, { a: 1 }]);
    });
    say('object', await typeOf(k));
    say('array', (await knex.raw('SELECT count(*)::int AS n FROM idem_claim_many(?)', [[key(), key()]])).rows[0].n);
    say('undefined', await outcome(() => knex.raw('SELECT idem_begin(?)', [undefined]), () => 'refused'));
    await knex.destroy();
  },

  async sequelize() {
    const { Sequelize } = await import('sequelize');
    const sequelize = new Sequelize(database, user, '', { host, port, dialect: 'postgres', logging: false });
    const sql = sqlOf();
    let fired = 0;
    const transaction = async work => {
      await sequelize.transaction(async t => {
        t.afterCommit(() => { fired++; });
        await work(t);
      });
    };
    const run = (t, what, ...bind) => sequelize.query(sql[what], { bind, transaction: t });
    say('ID005', await outcome(() => transaction(t => run(t, 'begin', key())), error => error.original?.code ?? error.code));
    say('afterCommit of ID005', fired);
    await traps({ transaction, run, of: error => error.original?.code ?? error.code });
    say('afterCommit of all', fired);
    const k = key();
    await transaction(async t => {
      await run(t, 'begin', k);
      await sequelize.query('SELECT idem_finish($1, $2)', { bind: [k, { a: 1 }], transaction: t });
    });
    say('object', await typeOf(k));
    say('replacements', await outcome(() => sequelize.query('SELECT idem_begin(?, request => ?)', { replacements: [key(), { a: 1 }] }), () => 'refused'));
    await sequelize.close();
  },

  async drizzle() {
    const { drizzle } = await import('drizzle-orm/node-postgres');
    const { sql } = await import('drizzle-orm');
    const pool = new pg.Pool({ max: 2 });
    const db = drizzle(pool);
    await traps({
      transaction: async work => { await db.transaction(work); }, of: error => error.cause?.code ?? error.code,
      run: (tx, what, k) => tx.execute({ begin: sql`SELECT state FROM idem_begin(${k})`, finish: sql`SELECT idem_finish(${k})`,
        divide: sql`SELECT 1/0` }[what]),
    });
    const k = key();
    await db.transaction(async tx => {
      await tx.execute(sql`SELECT idem_begin(${k})`);
      await tx.execute(sql`SELECT idem_finish(${k}, ${{ a: 1 }})`);
    });
    say('object', await typeOf(k));
    say('sql.param', (await db.execute(sql`SELECT count(*)::int AS n FROM idem_claim_many(${sql.param([key(), key()])})`)).rows[0].n);
    say('array', await outcome(() => db.execute(sql`SELECT count(*) FROM idem_claim_many(${[key(), key()]})`), () => 'refused'));
    await pool.end();
  },

  async typeorm() {
    await import('reflect-metadata');
    const { DataSource } = createRequire(import.meta.url)('typeorm');
    const source = await new DataSource({ type: 'postgres', host, port: Number(port), username: user, database }).initialize();
    const sql = sqlOf();
    await traps({
      transaction: async work => { await source.transaction(work); }, of: error => error.driverError?.code ?? error.code,
      run: (manager, what, ...values) => manager.query(sql[what], values),
    });
    const [outer, inner] = [key(), key()];
    await source.transaction(async manager => {
      await manager.query('SELECT idem_claim($1)', [outer]);
      await manager.transaction(async nested => {
        await nested.query('SELECT idem_claim($1)', [inner]);
        throw new Error('no');
      }).catch(() => {});
    });
    say('nested', `${await state(outer)} ${await state(inner)}`);
    await source.destroy();
  },

  async kysely() {
    const { Kysely, PostgresDialect, sql } = await import('kysely');
    const db = new Kysely({ dialect: new PostgresDialect({ pool: new pg.Pool({ max: 2 }) }) });
    await traps({
      transaction: async work => { await db.transaction().execute(work); }, of: error => error.code ?? error.constructor.name,
      run: (trx, what, k) => ({ begin: sql`SELECT state FROM idem_begin(${k})`, finish: sql`SELECT idem_finish(${k})`,
        divide: sql`SELECT 1/0` })[what].execute(trx),
    });
    await db.destroy();
  },

  async prisma() {
    const { PrismaPg } = await import('@prisma/adapter-pg');
    const { PrismaClient } = createRequire(import.meta.url)('@prisma/client');
    const connect = max => new PrismaClient({ adapter: new PrismaPg({ host, port: Number(port), user, database, max }), errorFormat: 'minimal' });
    const prisma = connect(2);
    const of = error => (error.meta?.driverAdapterError?.cause ?? error.cause)?.originalCode ?? error.code;
    const run = (tx, what, k) => ({ begin: () => tx.$queryRaw`SELECT state FROM idem_begin(${k})`, finish: () => tx.$queryRaw`SELECT idem_finish(${k})`,
      divide: () => tx.$queryRaw`SELECT 1/0` })[what]();
    await traps({ transaction: async work => { await prisma.$transaction(work); }, of, run });
    say('autocommit', await outcome(() => run(prisma, 'begin', key()), error => `${error.code} ${of(error)}`));

    // types that it cannot read are an error after the statement ran
    let k = key();
    const kind = error => error.meta.driverAdapterError.cause.kind;
    say('record', await outcome(() => prisma.$queryRaw`SELECT idem_begin(${k}, lease => '1 min')`, kind));
    say('and the claim', await state(k));
    say('void', await outcome(() => prisma.$queryRaw`SELECT idem_check()`, kind));
    say('$executeRaw', await outcome(() => prisma.$executeRaw`SELECT idem_check()`, kind));

    k = key();
    await prisma.$transaction(async tx => {
      await run(tx, 'begin', k);
      await tx.$queryRaw`SELECT idem_finish(${k}, ${{ a: 1 }})`;
    });
    say('object', await typeOf(k));
    const [{ n }] = await prisma.$queryRaw`SELECT count(*) AS n FROM idem_claim_many(${[key(), key()]})`;
    say('text[]', `${typeof n} ${n}`);

    for (const [mode, when] of [['raise', 'AFTER'], ['skip', 'BEFORE']]) {
      await admin.query(`CREATE TABLE prisma_${mode} (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, k text);
        CREATE TRIGGER once ${when} INSERT ON prisma_${mode} FOR EACH ROW EXECUTE FUNCTION idem_once('k', NULL, '${mode}')`);
      const create = () => prisma[mode].create({ data: { k: 'a' } });
      await create();
      say(mode, await outcome(async () => String(await create()), error => `${error.code} ${error.meta.driverAdapterError?.cause.constraint.index}`));
    }

    // Its clock runs while a claim waits, and while a transaction waits for a connection.
    k = key();
    const holder = await admin.connect();
    await holder.query('BEGIN');
    await holder.query('SELECT idem_begin($1)', [k]);
    const wait = (seconds, options) => outcome(() => prisma.$transaction(async tx => (
      await tx.$queryRaw`SELECT state FROM idem_begin(${k}, wait => make_interval(secs => ${seconds}))`)[0].state, options),
    error => `${error.code} ${error.meta.timeout}`);
    say('wait of 1 s', await wait(1));
    say('wait of 6 s', await wait(6));
    say('wait of 6 s, timeout', await wait(6, { timeout: 60000 }));
    const single = connect(1);
    let done;
    const other = single.$transaction(tx => { tx.$queryRaw`SELECT 1`.catch(() => {}); return new Promise(resolve => { done = resolve; }); }, { timeout: 60000 });
    say('maxWait', await outcome(() => single.$transaction(tx => tx.$queryRaw`SELECT 1`), error => `${error.code} ${error.message.replace(/.*: /s, '')}`));
    done();
    await other;
    await holder.query('ROLLBACK');
    holder.release();
    await Promise.all([prisma.$disconnect(), single.$disconnect()]);
  },
};

await clients[client]();
await admin.end();
