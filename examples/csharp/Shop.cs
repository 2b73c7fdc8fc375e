using System.Net;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Microsoft.EntityFrameworkCore;
using Npgsql;

// What the endpoints do.  CreateOrderAsync, InsertOrderAsync, TryClickAsync and RedeemTokenAsync have the
// signatures of the snippets that README.md compares them with.
class Shop(NpgsqlDataSource db, ShopContext context, IHttpContextAccessor accessor, IHttpClientFactory clients,
    IConfiguration config, ILogger<Shop> log)
{
    HttpContext Http => accessor.HttpContext!;

    string UserName => Http.User.Identity!.Name!;

    // Method and path go into the scope, and so does the user: nobody gets the answer to another user's request.
    // The path of the route, since /Orders and /orders/ are the same endpoint here.
    string Scope => $"{UserName} {Http.Request.Method} {((RouteEndpoint)Http.GetEndpoint()!).RoutePattern.RawText}";

    // ---- the database

    // A transaction.  What it returns is answered only after COMMIT; 40001 and 40P01, also of the COMMIT, repeat it
    // from BEGIN, never from a savepoint, where the same snapshot fails for ever.  Nothing here takes
    // RequestAborted: the order of a client that hangs up is finished, and its answer waits for the client's retry.
    async Task<T> TransactionAsync<T>(Func<NpgsqlTransaction, Task<T>> work)
    {
        for (var attempt = 1; ; attempt++)
        {
            try
            {
                await using var connection = await db.OpenConnectionAsync();
                await using var transaction = await connection.BeginTransactionAsync();
                var result = await work(transaction);
                await transaction.CommitAsync();
                return result;
            }
            catch (PostgresException e) when (attempt < 3
                && e.SqlState is PostgresErrorCodes.SerializationFailure or PostgresErrorCodes.DeadlockDetected)
            {
            }
        }
    }

    static NpgsqlCommand Sql(NpgsqlTransaction transaction, string sql, params object?[] values) =>
        With(new NpgsqlCommand(sql, transaction.Connection, transaction), values);

    static NpgsqlCommand With(NpgsqlCommand command, params object?[] values)
    {
        foreach (var value in values) command.Parameters.Add(new() { Value = value ?? DBNull.Value });
        return command;
    }

    static async Task<int> ExecuteAsync(NpgsqlCommand sql)
    {
        await using var command = sql;
        return await command.ExecuteNonQueryAsync();
    }

    static async Task<List<T>> QueryAsync<T>(NpgsqlCommand sql, Func<NpgsqlDataReader, T> read)
    {
        await using var command = sql;
        await using var reader = await command.ExecuteReaderAsync();
        var rows = new List<T>();
        while (await reader.ReadAsync()) rows.Add(read(reader));
        return rows;
    }

    static async Task<T> OneAsync<T>(NpgsqlCommand sql, Func<NpgsqlDataReader, T> read) => (await QueryAsync(sql, read)).Single();

    // ---- claims

    // The answer to send or, if there is none yet and the work is to be done, the fence of a lease.
    // A missing key is null, which idem_http_begin answers with 400.
    // In autocommit mode it fails with ID005: its transaction ends without the finish.
    async Task<(Answer? Answer, long? Fence)> BeginAsync(NpgsqlTransaction transaction, string? key, int? leaseMs = null)
    {
        return await OneAsync(Sql(transaction, """
            SELECT run, status, headers, body, replayed, fence
            FROM idem_http_begin($1, $2, $3, wait_ms => 500, lease_ms => $4)
            """, key, Http.Items["body"], Scope, leaseMs), row =>
        {
            if (row.GetBoolean(0)) return ((Answer?)null, row["fence"] as long?);
            // A replay has the first status, 201, not 200.  Retry-After of a 409 is whole seconds already.
            var headers = JsonSerializer.Deserialize<Dictionary<string, string>>(row["headers"] as string ?? "{}")!;
            var replayed = row.GetBoolean(4);
            // 400, 409 and 422 say where your API's documentation is
            if (!replayed) headers["Link"] = "<https://shop.example/docs/idempotency>; rel=\"describedby\"";
            return (new Answer(row.GetInt32(1), row["body"] as string, headers, replayed), null);
        });
    }

    // The scope is that of the begin: a claim is a key in a scope.
    async Task<Answer> FinishAsync(NpgsqlTransaction transaction, string? key, Answer answer, long? fence = null)
    {
        var status = await OneAsync(Sql(transaction, "SELECT idem_http_finish($1, $2, $3, $4, $5, $6)",
            key, answer.Status, answer.Body, JsonSerializer.Serialize(answer.Headers), Scope, fence), row => row.GetInt32(0));
        return answer with { Status = status };
    }

    // ---- orders

    public static readonly Answer SoldOut = Answer.Problem(422, "There is not enough of it.", "/problems/sold-out");
    public static readonly Answer NumberTaken = Answer.Problem(409, "This order number is taken.", "/problems/order-number-taken");

    public static Answer Created(Order order) =>
        Answer.Json(201, new { order.Id, order.Item, order.Quantity, order.OrderNumber }, ("Location", $"/orders/{order.Id}"));

    // a row that the trigger orders_once has seen before
    static bool IsNumberTaken(Exception? e) =>
        e is PostgresException { SqlState: PostgresErrorCodes.UniqueViolation, ConstraintName: "orders_once" };

    public async Task<IResult> CreateOrderAsync(string? idempotencyKey, CreateOrderRequest request) => await TransactionAsync(async transaction =>
    {
        var claim = await BeginAsync(transaction, idempotencyKey);
        if (claim.Answer is not null) return claim.Answer;
        await transaction.SaveAsync("work");
        var answer = await PlaceOrderAsync(transaction, request);
        // A business failure is an answer, too: undo the work, and store the answer with its status.
        if (answer.Status >= 400) await transaction.RollbackAsync("work");
        return await FinishAsync(transaction, idempotencyKey, answer);
    });

    async Task<Answer> PlaceOrderAsync(NpgsqlTransaction transaction, CreateOrderRequest request)
    {
        var order = new Order { UserName = UserName, Item = request.Item, Quantity = request.Quantity, OrderNumber = request.OrderNumber };
        try
        {
            order.Id = await OneAsync(Sql(transaction, """
                INSERT INTO orders (user_name, item, quantity, order_number) VALUES ($1, $2, $3, $4) RETURNING id
                """, order.UserName, order.Item, order.Quantity, order.OrderNumber), row => row.GetInt64(0));
        }
        catch (PostgresException e) when (IsNumberTaken(e))
        {
            return NumberTaken;
        }
        return await ExecuteAsync(Sql(transaction, "UPDATE stock SET available = available - $2 WHERE item = $1 AND available >= $2",
            order.Item, order.Quantity)) == 1 ? Created(order) : SoldOut;
    }

    // With EF Core, for an order that has a number instead of a key.  Whoever retries must begin with an empty
    // ChangeTracker: after a COMMIT that failed it takes the order for saved, and the second attempt would write nothing.
    public Task<bool> InsertOrderAsync(Order order) => context.Database.CreateExecutionStrategy().ExecuteAsync(async () =>
    {
        context.ChangeTracker.Clear();
        order.Id = 0;
        await using var transaction = await context.Database.BeginTransactionAsync();
        context.Orders.Add(order);
        try
        {
            await context.SaveChangesAsync();
        }
        catch (DbUpdateException e) when (IsNumberTaken(e.InnerException))    // and no other failure: they are not "there already"
        {
            return false;
        }
        if (await context.Stock.Where(s => s.Item == order.Item && s.Available >= order.Quantity)
            .ExecuteUpdateAsync(s => s.SetProperty(x => x.Available, x => x.Available - order.Quantity)) == 0) throw new SoldOutException();
        await transaction.CommitAsync();
        return true;
    });

    // ---- clicks

    // A statement of its own, which counts and decides in one; it needs no transaction.
    public async Task<bool> TryClickAsync(string userId)
    {
        // Whole seconds until one call more is allowed, rounded up: who comes back a moment too early is refused again.
        // reset_after is until all five are, a minute for each.
        var (allowed, remaining, seconds) = await OneAsync(With(db.CreateCommand("""
            SELECT allowed, remaining, ceil(reset_after - 60 * (4 - remaining))::int
            FROM idem_throttle($1, '5 min', 5, 'clicks')
            """), userId), row => (row.GetBoolean(0), row.GetInt32(1), row.GetInt32(2)));
        Http.Response.Headers["RateLimit-Policy"] = "\"clicks\";q=5;w=300";
        Http.Response.Headers["RateLimit"] = $"\"clicks\";r={remaining};t={seconds}";
        if (allowed) await ExecuteAsync(With(db.CreateCommand("INSERT INTO clicks (user_name) VALUES ($1)"), userId));
        else Http.Response.Headers.RetryAfter = $"{seconds}";
        return allowed;
    }

    // ---- payments

    public async Task<IResult> PayAsync(string? key, int amount)
    {
        var remoteKey = "";
        // Committed before the call, so that all see the claim in progress, until it is finished or its lease is over.
        var claim = await TransactionAsync(async transaction =>
        {
            var claim = await BeginAsync(transaction, key, leaseMs: 30_000);
            if (claim.Answer is not null) return claim;
            remoteKey = Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes($"{Scope}\n{BareKey(key!)}")));
            await ExecuteAsync(Sql(transaction, """
                INSERT INTO payments (remote_key, user_name, amount) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
                """, remoteKey, UserName, amount));
            return claim;
        });
        if (claim.Answer is not null) return claim.Answer;

        string? charge;
        try
        {
            charge = await ChargeAsync(remoteKey, amount);
        }
        catch (Exception e)
        {
            // We do not know whether it was charged.  The next attempt asks again, under the same key.
            log.LogWarning("payment service: {Message}", e.Message);
            try
            {
                await ExecuteAsync(With(db.CreateCommand("SELECT idem_release($1, $2, $3)"), BareKey(key!), Scope, claim.Fence));
            }
            catch (NpgsqlException release)
            {
                log.LogWarning("release: {Message}", release.Message);    // then the lease ends by itself
            }
            return Answer.TryAgain(503);
        }

        var answer = charge is not null ? Answer.Json(201, new { charge, amount })
            : Answer.Problem(402, "The card was declined.", "/problems/declined");
        try
        {
            return await TransactionAsync(async transaction =>
            {
                await ExecuteAsync(Sql(transaction, "UPDATE payments SET status = $2, charge = $3 WHERE remote_key = $1",
                    remoteKey, charge is null ? "declined" : "paid", charge));
                return await FinishAsync(transaction, key, answer, claim.Fence);
            });
        }
        catch (PostgresException e) when (e.SqlState is "ID004" or "ID006")
        {
            return Answer.TryAgain(409);    // another request has taken over, or has finished already: its answer is the answer
        }
    }

    // What the payment service says, or null if it declines.
    async Task<string?> ChargeAsync(string remoteKey, int amount)
    {
        using var request = new HttpRequestMessage(HttpMethod.Post, $"{config["PAYMENT_URL"]}/charges");
        request.Headers.Add("Idempotency-Key", remoteKey);
        request.Content = JsonContent.Create(new { amount });
        using var response = await clients.CreateClient("payments").SendAsync(request);
        if (response.StatusCode == HttpStatusCode.PaymentRequired) return null;
        if (response.StatusCode != HttpStatusCode.Created) throw new HttpRequestException($"it says {response.StatusCode}");
        return (await response.Content.ReadFromJsonAsync<ChargeResponse>(JsonSetup.Options))!.Charge;
    }

    // "abc" and abc are one key, and so must be what is derived from it.
    static string BareKey(string key)
    {
        key = key.Trim(' ', '\t');
        return key.StartsWith('"') ? Regex.Replace(key[1..^1], @"\\(.)", "$1") : key;
    }

    // ---- magic links and codes

    // The secret goes from the database into the mail, and not through this program and its logs.
    public async Task<IResult> SendMagicLinkAsync(string email)
    {
        await ExecuteAsync(With(db.CreateCommand("""
            INSERT INTO outbox (recipient, kind, secret)
            SELECT $1, 'magic-link', idem_token_issue('login', '15 min', subject => $1)
            """), email));
        return Results.Accepted();
    }

    public Task<string> PeekTokenAsync(string token) =>
        OneAsync(With(db.CreateCommand("SELECT state FROM idem_token_peek('login', $1)"), token), row => row.GetString(0));

    // The e-mail address of the token, which is used up now, or null.
    public Task<string?> RedeemTokenAsync(string token) => TransactionAsync(async transaction =>
    {
        var (state, email) = await OneAsync(Sql(transaction, "SELECT state, subject FROM idem_token_redeem('login', $1)", token),
            row => (row.GetString(0), row["subject"] as string));
        if (state != "redeemed") return null;
        await ExecuteAsync(Sql(transaction, "INSERT INTO logins (email) VALUES ($1)", email));
        return email;
    });

    public static Answer NoToken(string state) => state == "unknown" ? Answer.Problem(404, "There is no such link.")
        : Answer.Problem(410, "This link was used before, or is too old.");

    public async Task<IResult> SendCodeAsync(string email)
    {
        await ExecuteAsync(With(db.CreateCommand("""
            INSERT INTO outbox (recipient, kind, secret)
            SELECT $1, 'code', idem_code_issue('login', $1, '5 min', max_attempts => 3)
            """), email));
        return Results.Accepted();
    }

    // A wrong attempt commits as well, or it would not count.
    public async Task<IResult> VerifyCodeAsync(string email, string code) => await TransactionAsync(async transaction =>
    {
        var (state, attemptsLeft) = await OneAsync(Sql(transaction,
            "SELECT state, attempts_left FROM idem_code_verify('login', $1, $2)", email, code),
            row => (row.GetString(0), row["attempts_left"] as int?));
        if (state is "wrong" or "locked")
            return Answer.Problem(403, "This is not the code.", members: new() { ["attempts_left"] = attemptsLeft });
        if (state != "verified") return Answer.Problem(410, "There is no such code any more; ask for a new one.");
        await ExecuteAsync(Sql(transaction, "INSERT INTO logins (email) VALUES ($1)", email));
        return Answer.Json(200, new { verified = true });
    });

    // ---- a consumer

    public async Task<IResult> DeliverAsync(List<JsonElement> messages) => await TransactionAsync(async transaction =>
    {
        int worked = 0, parked = 0;
        // idem_claim_many returns keys, not payloads: this dictionary leads back to those.
        var payloads = new Dictionary<string, string?>();
        foreach (var message in messages.Select(Message.From))
        {
            if (message.Id is not null) payloads.TryAdd(message.Id, message.Payload);
            else await ParkAsync(null, message.Payload, "no usable id");    // it would fail the whole batch
        }
        foreach (var id in await QueryAsync(Sql(transaction, "SELECT key FROM idem_claim_many($1, '7 days', 'deliveries')",
            (object)payloads.Keys.ToArray()), row => row.GetString(0)))
        {
            await transaction.SaveAsync("message");
            try
            {
                await ExecuteAsync(Sql(transaction, """
                    INSERT INTO shipments SELECT $1, p.order_number, p.quantity
                    FROM jsonb_to_record($2::jsonb) AS p(order_number text, quantity int)
                    """, id, payloads[id]));
                worked++;
            }
            catch (PostgresException e) when (e.SqlState[..2] is "22" or "23" or "54")
            {
                // Poison is what will always fail: class 22 (bad values), 23 (constraints), 54 (too large, too deep).  It is
                // parked, still claimed.  Anything else fails the batch, and the broker sends it again.
                await transaction.RollbackAsync("message");
                await ParkAsync(id, payloads[id], e.MessageText);
            }
        }
        return Answer.Json(200, new { received = messages.Count, @new = worked, parked });

        Task<int> ParkAsync(string? id, string? payload, string error)
        {
            parked++;
            return ExecuteAsync(Sql(transaction,
                "INSERT INTO dead_letters (message_id, payload, error) VALUES ($1, $2, $3)", id, payload, error));
        }
    });
}
