// What t/067_clients_npm.pl asks the clients of npm: one line "NAME<tab>RESULT" for each trap of doc/clients.md.
// Prisma's packages are those of t/lib/prisma.
//   node clients.js CLIENT                 connects as PGHOST, PGPORT, PGUSER and PGDATABASE say
//   node clients.js CLIENT with|without    behind PgBouncer, with the page's setting for it or without: only how many of
//                                          40 transactions did not fail
import { createRequire } from 'node:module';
import pg from 'pg';

const [, , client, bouncer] = process.argv;
const { PGHOST: host, PGPORT: port, PGUSER: user, PGDATABASE: database, PGPASSWORD: password = '' } = process.env;
const admin = new pg.Pool({ max: 1 });    // another connection, which sees only what was committed
let count = 0;

const key = () => [client, bouncer, ++count].filter(part => part !== undefined).join(' ');
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

// First one transaction alone, which may prepare its statements.  Then two at once.  Pools, as PgBouncer, take what was given
// back last; so in each second turn another client holds that server connection, and the first gets the other one.
// work(tx, k) begins and finishes, and transaction(work) commits.
async function swap(transaction, work) {
  let resolved = 0;
  for (let attempt = 0; attempt < 25; attempt++) {
    const open = [];
    const holder = attempt >= 10 && attempt % 2 === 0 ? await admin.connect() : undefined;
    await holder?.query('BEGIN');
    for (let i = 0; i < (attempt < 10 ? 1 : 2); i++) {
      const one = {};
      const released = new Promise(resolve => { one.release = resolve; });
      const inside = new Promise(resolve => {
        one.done = transaction(async tx => {
          await work(tx, key());
          resolve();
          await released;
        }).then(() => true, () => false).then(well => { resolve(); return well; });
      });
      await inside;
      open.push(one);
      if (i === 0) {
        await holder?.query('COMMIT');
        holder?.release();
      }
    }
    for (const { release, done } of open) {
      release();
      resolved += await done;
    }
  }
  say('resolved', resolved);
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
    if (bouncer) {
      // a query that has a name is what the page warns of
      const named = text => (bouncer === 'without' ? { name: text, text } : { text });
      await swap(transaction, async (c, k) => {
        await c.query({ ...named(sql.begin), values: [k] });
        await c.query({ ...named(sql.finish), values: [k] });
      });
      return pool.end();
    }
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
    await pool.query("CREATE TABLE pg_once (k text); CREATE TRIGGER once AFTER INSERT ON pg_once FOR EACH ROW EXECUTE FUNCTION idem_once('k')");
    say('raise', await outcome(() => pool.query("INSERT INTO pg_once VALUES ('a'), ('a')"), error => `${error.code} ${error.constraint}`));
    say('text[]', (await pool.query('SELECT count(*)::int AS n FROM idem_claim_many($1)', [[key(), key()]])).rows[0].n);
    say('bigint', typeof (await pool.query('SELECT 1::bigint AS n')).rows[0].n);
    await pool.end();
  },

  async postgres() {
    const { default: postgres } = await import('postgres');
    if (bouncer) {
      const sql = postgres({ host, port, user, database, password, max: 2, prepare: bouncer !== 'with', onnotice() {} });
      const work = async (tx, k) => {
        await tx`SELECT state FROM idem_begin(${k})`;
        await tx`SELECT idem_finish(${k})`;
      };
      await swap(body => sql.begin(body), work);
      await sql.end();

      // One transaction prepares all statements on a server connection; then another client has that one.  On the other
      // server connection each transaction fails at the first statement that is missing there, which is the COMMIT at last.
      // That it sends again, in a transaction that is aborted.
      const single = postgres({ host, port, user, database, password, max: 1, prepare: bouncer !== 'with', onnotice() {} });
      const keys = Array.from({ length: 6 }, key);
      let committed = 0;
      const commit = async k => { committed += await single.begin(tx => work(tx, k)).then(() => true, () => false); };
      await commit(keys[0]);
      const holder = await admin.connect();
      await holder.query('BEGIN');
      for (const k of keys.slice(1)) await commit(k);
      await holder.query('COMMIT');
      holder.release();
      const stored = await Promise.all(keys.map(state));
      say('committed', `${committed} of 6, stored ${stored.filter(s => s === 'finished').length}`);
      return single.end();
    }
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
    const text = key();
    await sql.begin(async tx => {
      await tx`SELECT idem_begin(${text})`;
      await tx`SELECT idem_finish(${text}, ${JSON.stringify({ a: 1 })}::text::jsonb)`;
    });
    say('::text::jsonb', await typeOf(text));
    const [outer, inner] = [key(), key()];
    await sql.begin(async tx => {
      await tx`SELECT idem_claim(${outer})`;
      await tx.savepoint(async nested => {
        await nested`SELECT idem_claim(${inner})`;
        throw new Error('no');
      }).catch(() => {});
    });
    say('savepoint', `${await state(outer)} ${await state(inner)}`);
    await sql`CREATE TABLE postgres_once (k text)`;
    await sql`CREATE TRIGGER once AFTER INSERT ON postgres_once FOR EACH ROW EXECUTE FUNCTION idem_once('k')`;
    say('raise', await outcome(() => sql`INSERT INTO postgres_once VALUES ('a'), ('a')`, error => `${error.code} ${error.constraint_name}`));
    say('undefined', await outcome(() => sql`SELECT idem_begin(${key()}, request => ${undefined})`, error => error.code));
    await sql.end();
  },

  async knex() {
    const { default: Knex } = await import('knex');
    const knex = Knex({ client: 'pg', connection: { host, port, user, database, password }, pool: { min: 0, max: 2 } });
    const sql = sqlOf('?');
    const run = async (trx, what, ...values) => { await trx.raw(sql[what], values); };
    if (bouncer) {
      await swap(work => knex.transaction(work), async (trx, k) => { await run(trx, 'begin', k); await run(trx, 'finish', k); });
      return knex.destroy();
    }
    await traps({ transaction: async work => { await knex.transaction(work); }, of: error => error.code, run });
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
    const sequelize = new Sequelize(database, user, password, { host, port, dialect: 'postgres', logging: false });
    const sql = sqlOf();
    let fired = 0;
    const transaction = async work => {
      await sequelize.transaction(async t => {
        t.afterCommit(() => { fired++; });
        await work(t);
      });
    };
    const run = (t, what, ...bind) => sequelize.query(sql[what], { bind, transaction: t });
    if (bouncer) {
      await swap(transaction, async (t, k) => { await run(t, 'begin', k); await run(t, 'finish', k); });
      return sequelize.close();
    }
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
    await sequelize.query("CREATE TABLE sequelize_once (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, k text)");
    await sequelize.query("CREATE TRIGGER once AFTER INSERT ON sequelize_once FOR EACH ROW EXECUTE FUNCTION idem_once('k')");
    const { DataTypes } = await import('sequelize');
    const Once = sequelize.define('once', { k: DataTypes.TEXT }, { tableName: 'sequelize_once', timestamps: false });
    await Once.create({ k: 'a' });
    say('raise', await outcome(() => Once.create({ k: 'a' }), error => `${error.name} ${error.original.code} ${error.original.constraint}`));
    say('replacements', await outcome(() => sequelize.query('SELECT idem_begin(?, request => ?)', { replacements: [key(), { a: 1 }] }), () => 'refused'));
    await sequelize.close();
  },

  async drizzle() {
    const { drizzle } = await import('drizzle-orm/node-postgres');
    const { sql } = await import('drizzle-orm');
    const pool = new pg.Pool({ max: 2 });
    const db = drizzle(pool);
    const run = (tx, what, k) => tx.execute({ begin: sql`SELECT state FROM idem_begin(${k})`, finish: sql`SELECT idem_finish(${k})`,
      divide: sql`SELECT 1/0` }[what]);
    if (bouncer) {
      await swap(work => db.transaction(work), async (tx, k) => { await run(tx, 'begin', k); await run(tx, 'finish', k); });
      return pool.end();
    }
    await traps({ transaction: async work => { await db.transaction(work); }, of: error => error.cause?.code ?? error.code, run });
    const [outer, inner] = [key(), key()];
    await db.transaction(async tx => {
      await tx.execute(sql`SELECT idem_claim(${outer})`);
      await tx.transaction(async nested => {
        await nested.execute(sql`SELECT idem_claim(${inner})`);
        throw new Error('no');
      }).catch(() => {});
    });
    say('nested', `${await state(outer)} ${await state(inner)}`);
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
    const source = await new DataSource({ type: 'postgres', host, port: Number(port), username: user, database, password }).initialize();
    const sql = sqlOf();
    const run = (manager, what, ...values) => manager.query(sql[what], values);
    if (bouncer) {
      await swap(work => source.transaction(work), async (manager, k) => { await run(manager, 'begin', k); await run(manager, 'finish', k); });
      return source.destroy();
    }
    await traps({ transaction: async work => { await source.transaction(work); }, of: error => error.driverError?.code ?? error.code, run });
    const k = key();
    await source.transaction(async manager => {
      await run(manager, 'begin', k);
      await manager.query('SELECT idem_finish($1, $2)', [k, { a: 1 }]);
    });
    say('object', await typeOf(k));
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
    const run = (trx, what, k) => ({ begin: sql`SELECT state FROM idem_begin(${k})`, finish: sql`SELECT idem_finish(${k})`,
      divide: sql`SELECT 1/0` })[what].execute(trx);
    if (bouncer) {
      await swap(work => db.transaction().execute(work), async (trx, k) => { await run(trx, 'begin', k); await run(trx, 'finish', k); });
      return db.destroy();
    }
    await traps({ transaction: async work => { await db.transaction().execute(work); }, of: error => error.code ?? error.constructor.name, run });
    const k = key();
    await db.transaction().execute(async trx => {
      await run(trx, 'begin', k);
      await sql`SELECT idem_finish(${k}, ${{ a: 1 }})`.execute(trx);
    });
    say('object', await typeOf(k));
    await db.destroy();
  },

  async prisma() {
    const { PrismaPg } = await import('@prisma/adapter-pg');
    const { PrismaClient } = createRequire(import.meta.url)('@prisma/client');
    const connect = max => new PrismaClient({ adapter: new PrismaPg({ host, port: Number(port), user, database, password, max }), errorFormat: 'minimal' });
    const prisma = connect(2);
    const of = error => (error.meta?.driverAdapterError?.cause ?? error.cause)?.originalCode ?? error.code;
    const run = (tx, what, k) => ({ begin: () => tx.$queryRaw`SELECT state FROM idem_begin(${k})`, finish: () => tx.$queryRaw`SELECT idem_finish(${k})`,
      divide: () => tx.$queryRaw`SELECT 1/0` })[what]();
    if (bouncer) {
      await swap(work => prisma.$transaction(work), async (tx, k) => {
        await run(tx, 'begin', k);
        await run(tx, 'finish', k);
      });
      return prisma.$disconnect();
    }
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
