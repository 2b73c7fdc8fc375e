// What t/068_clients_nuget.pl asks Npgsql, Dapper and EF Core: one line "NAME<tab>RESULT" for each trap of
// doc/clients.md.  Connects as PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE say.  With a second argument it is behind
// PgBouncer, "with" the page's setting, "without" or "reset", and says only how many of 40 transactions did not fail.
using System.ComponentModel.DataAnnotations.Schema;
using System.Text.Json;
using System.Transactions;
using Dapper;
using Microsoft.EntityFrameworkCore;
using Microsoft.EntityFrameworkCore.Storage;
using Npgsql;
using NpgsqlTypes;

var connectionString = new NpgsqlConnectionStringBuilder
{
    Host = Variable("PGHOST"), Port = int.Parse(Variable("PGPORT")), Username = Variable("PGUSER"), Database = Variable("PGDATABASE"),
    Password = Environment.GetEnvironmentVariable("PGPASSWORD"), SslMode = SslMode.Disable,
    NoResetOnClose = args.Length > 1 && args[1] != "reset", MaxAutoPrepare = args.Length > 1 && args[1] == "without" ? 20 : 0,
    AutoPrepareMinUsages = 2,
}.ConnectionString;
await using var db = NpgsqlDataSource.Create(connectionString);
var count = 0;

if (args.Length > 1)
{
    await SwapAsync();
    return;
}
await (args[0] switch { "npgsql" => NpgsqlAsync(), "dapper" => DapperAsync(), _ => EfCoreAsync() });

static string Variable(string name) => Environment.GetEnvironmentVariable(name)!;

string Key() => $"{string.Join(' ', args)} {++count}";

static void Say(string name, object? result) => Console.WriteLine($"{name}\t{result}");

static async Task<object?> Outcome(Func<Task<object?>> work)
{
    try
    {
        return await work() ?? "no error";
    }
    catch (TransactionAbortedException e)
    {
        return $"{e.GetType().Name} {(e.InnerException as PostgresException)?.SqlState}";
    }
    catch (Exception e) when (e is PostgresException || e.InnerException is PostgresException)
    {
        return (e as PostgresException ?? (PostgresException)e.InnerException!).SqlState;
    }
    catch (Exception e)
    {
        return e.GetType().Name;
    }
}

async Task<object?> Value(string sql, params object[] values)
{
    await using var command = db.CreateCommand(sql);
    foreach (var value in values) command.Parameters.Add(value as NpgsqlParameter ?? new() { Value = value });
    return await command.ExecuteScalarAsync();
}

Task<object?> State(string key) => Value("SELECT coalesce((SELECT state FROM idem_lookup($1)), 'free')", key);

// First one connection alone, which may prepare its statements.  Then two in a transaction at once, that begin and commit in
// turn first, so they get each other's server connection.
async Task SwapAsync()
{
    const string begin = "SELECT state FROM idem_begin(@k)", finish = "SELECT idem_finish(@k)";
    var resolved = 0;
    for (var attempt = 0; attempt < 25; attempt++)
    {
        var inside = new List<(NpgsqlConnection Connection, NpgsqlTransaction Transaction)>();
        for (var i = 0; i < (attempt < 10 ? 1 : 2); i++)
        {
            var (connection, k) = (await db.OpenConnectionAsync(), Key());
            try
            {
                var transaction = await connection.BeginTransactionAsync();
                if (args[0] == "efcore")
                {
                    await using var context = new TestContext(new DbContextOptionsBuilder<TestContext>().UseNpgsql(connection).Options);
                    await context.Database.UseTransactionAsync(transaction);
                    await context.Database.ExecuteSqlAsync($"SELECT state FROM idem_begin({k})");
                    await context.Database.ExecuteSqlAsync($"SELECT idem_finish({k})");
                }
                else
                {
                    await connection.ExecuteAsync(begin, new { k }, transaction);
                    await connection.ExecuteAsync(finish, new { k }, transaction);
                }
                inside.Add((connection, transaction));
            }
            catch (NpgsqlException)
            {
                await connection.CloseAsync();
            }
        }
        if (attempt % 4 < 2) inside.Reverse();
        foreach (var (connection, transaction) in inside)
        {
            resolved += await Outcome(async () => { await transaction.CommitAsync(); return null; }) as string == "no error" ? 1 : 0;
            await connection.CloseAsync();
        }
    }
    Say("resolved", resolved);
}

async Task NpgsqlAsync()
{
    async Task<object?> In(NpgsqlConnection connection, string sql, string? key)
    {
        await using var command = new NpgsqlCommand(sql, connection);
        if (key is not null) command.Parameters.Add(new() { Value = key });
        return await command.ExecuteScalarAsync();
    }

    const string begin = "SELECT state FROM idem_begin($1)", finish = "SELECT idem_finish($1)";
    Say("autocommit", await Outcome(() => Value(begin, Key())));
    Say("no finish", await Outcome(async () =>
    {
        await using var connection = await db.OpenConnectionAsync();
        await using var transaction = await connection.BeginTransactionAsync();
        await In(connection, begin, Key());
        await transaction.CommitAsync();
        return null;
    }));
    var k = Key();
    Say("caught error", await Outcome(async () =>
    {
        await using var connection = await db.OpenConnectionAsync();
        await using var transaction = await connection.BeginTransactionAsync();
        await In(connection, begin, k);
        await In(connection, finish, k);
        await Outcome(() => In(connection, "SELECT 1/0", null));
        await transaction.CommitAsync();
        return null;
    }));
    Say("and the key", await State(k));

    const string lease = "SELECT state FROM idem_begin($1, request => $2, lease => $3)";
    var (json, minute) = ("""{"a": 1}""", TimeSpan.FromMinutes(1));
    Say("text", await Outcome(() => Value(lease, Key(), json, minute)));
    Say("::jsonb", await Outcome(() => Value(lease.Replace("$2", "$2::jsonb"), Key(), json, minute)));
    Say("JsonDocument", await Outcome(() => Value(lease, Key(), JsonDocument.Parse(json), minute)));
    Say("NpgsqlDbType.Jsonb", await Outcome(() => Value(lease, Key(), new NpgsqlParameter { Value = json, NpgsqlDbType = NpgsqlDbType.Jsonb }, minute)));
    Say("DBNull", await Outcome(() => Value(lease, Key(), DBNull.Value, minute)));
    Say("interval as text", await Outcome(() => Value(lease, Key(), DBNull.Value, "1 min")));
    Say("::interval", await Outcome(() => Value(lease.Replace("$3", "$3::interval"), Key(), DBNull.Value, "1 min")));
    Say("int", await Outcome(() => Value("SELECT status FROM idem_http_begin(NULL, wait_ms => $1)", 500)));
    Say("long", await Outcome(() => Value("SELECT status FROM idem_http_begin(NULL, wait_ms => $1)", 500L)));

    // JSON null, as a value of JSON and as NULL
    var (stored, none) = (Key(), JsonDocument.Parse("null"));
    await using (var connection = await db.OpenConnectionAsync())
    await using (var transaction = await connection.BeginTransactionAsync())
    {
        await using var command = new NpgsqlCommand("SELECT idem_begin($1, request => '{}')", connection) { Parameters = { new() { Value = stored } } };
        await command.ExecuteNonQueryAsync();
        await In(connection, finish, stored);
        // and a savepoint
        await transaction.SaveAsync("work");
        await Outcome(() => In(connection, "SELECT 1/0", null));
        await transaction.RollbackAsync("work");
        await transaction.CommitAsync();
    }
    Say("SaveAsync", await State(stored));
    foreach (var (name, value) in new (string, object)[] { ("DBNull, again", DBNull.Value), ("JsonElement null", none.RootElement) })
    {
        var parameter = new NpgsqlParameter { Value = value, NpgsqlDbType = NpgsqlDbType.Jsonb };
        Say(name, await Outcome(() => Value("SELECT state FROM idem_begin($1, request => $2)", stored, parameter)));
    }

    // ID005 of an ambient transaction
    Say("TransactionScope", await Outcome(async () =>
    {
        using (var scope = new TransactionScope(TransactionScopeAsyncFlowOption.Enabled))
        {
            await using (var connection = await db.OpenConnectionAsync())
            {
                Say("isolation", await In(connection, "SHOW transaction_isolation", null));
                await In(connection, begin, Key());
            }
            scope.Complete();
            Say("Complete", "no error");
        }
        return null;
    }));
}

async Task DapperAsync()
{
    await using var connection = await db.OpenConnectionAsync();
    const string begin = "SELECT state FROM idem_begin(@k)";
    Say("autocommit", await Outcome(async () => await connection.ExecuteScalarAsync<string>(begin, new { k = Key() })));
    var k = Key();
    Say("caught error", await Outcome(async () =>
    {
        await using var transaction = await connection.BeginTransactionAsync();
        await connection.ExecuteAsync(begin, new { k });
        await connection.ExecuteAsync("SELECT idem_finish(@k)", new { k });
        await Outcome(async () => await connection.ExecuteAsync("SELECT 1/0"));
        await transaction.CommitAsync();
        return null;
    }));
    Say("and the key", await State(k));
    const string lease = "SELECT state FROM idem_begin(@k, request => CAST(@r AS jsonb), lease => @lease)";
    Say("CAST, TimeSpan", await connection.ExecuteScalarAsync<string>(lease, new { k = Key(), r = "{}", lease = TimeSpan.FromMinutes(1) }));
    Say("array", await connection.ExecuteScalarAsync<long>("SELECT count(*) FROM idem_claim_many(@keys)", new { keys = new[] { Key(), Key() } }));
}

async Task EfCoreAsync()
{
    TestContext Context(bool autoSavepoints = true, bool retry = false)
    {
        var options = new DbContextOptionsBuilder<TestContext>().UseNpgsql(db, npgsql =>
        {
            if (retry) npgsql.ExecutionStrategy(d => new Retry(d));
        });
        var context = new TestContext(options.Options);
        context.Database.AutoSavepointsEnabled = autoSavepoints;
        return context;
    }

    await Value("CREATE TABLE ef (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k text)");
    await Value("CREATE TRIGGER once AFTER INSERT ON ef FOR EACH ROW EXECUTE FUNCTION idem_once('k')");
    await using (var context = Context())
    {
        Say("autocommit", await Outcome(async () =>
            (await context.Database.SqlQuery<string>($"SELECT state AS \"Value\" FROM idem_begin({Key()})").ToListAsync())[0]));
        context.Add(new Row { K = "a" });
        await context.SaveChangesAsync();
        try
        {
            context.Add(new Row { K = "a" });
            await context.SaveChangesAsync();
        }
        catch (DbUpdateException e)
        {
            Say("DbUpdateException", $"{(e.InnerException as PostgresException)?.SqlState} {(e.InnerException as PostgresException)?.ConstraintName}");
        }
    }

    // after raw SQL, and with and without the savepoint that SaveChanges makes
    foreach (var what in new[] { "raw SQL", "SaveChanges", "SaveChanges, no savepoints" })
    {
        await using var context = Context(autoSavepoints: what != "SaveChanges, no savepoints");
        var k = Key();
        Say($"{what}: caught error", await Outcome(async () =>
        {
            await using var transaction = await context.Database.BeginTransactionAsync();
            await context.Database.ExecuteSqlAsync($"SELECT idem_begin({k})");
            await context.Database.ExecuteSqlAsync($"SELECT idem_finish({k})");
            await Outcome(async () =>
            {
                if (what == "raw SQL") return await context.Database.ExecuteSqlAsync($"SELECT 1/0");
                context.Add(new Row { K = "a" });
                return await context.SaveChangesAsync();
            });
            await transaction.CommitAsync();
            return null;
        }));
        Say($"{what}: and the key", await State(k));
    }

    // A strategy that repeats: an entity that was added before its block is taken for saved in the second attempt.
    foreach (var inside in new[] { false, true })
    {
        await using var context = Context(retry: true);
        var (k, attempt) = (Key(), 0);
        if (!inside) context.Add(new Row { K = k });
        await context.Database.CreateExecutionStrategy().ExecuteAsync(async () =>
        {
            if (inside)
            {
                context.ChangeTracker.Clear();
                context.Add(new Row { K = k });
            }
            await using var transaction = await context.Database.BeginTransactionAsync();
            await context.SaveChangesAsync();
            if (++attempt == 1) await context.Database.ExecuteSqlRawAsync("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$");
            await transaction.CommitAsync();
        });
        Say(inside ? "added inside" : "added before", $"{attempt} attempts, {await Value("SELECT count(*) FROM ef WHERE k = $1", k)} rows");
    }
}

[Table("ef")]
class Row
{
    [Column("id")] public long Id { get; set; }
    [Column("k")] public required string K { get; set; }
}

class TestContext(DbContextOptions<TestContext> options) : DbContext(options)
{
    public DbSet<Row> Rows => Set<Row>();
}

class Retry(ExecutionStrategyDependencies dependencies)
    : Npgsql.EntityFrameworkCore.PostgreSQL.NpgsqlRetryingExecutionStrategy(dependencies, 3, TimeSpan.FromMilliseconds(10), ["40001"]);
