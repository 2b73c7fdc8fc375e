// What goes in and out: requests, answers, and the tables as EF Core sees them.
using System.ComponentModel.DataAnnotations;
using System.ComponentModel.DataAnnotations.Schema;
using System.Security.Claims;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using System.Text.RegularExpressions;
using Microsoft.AspNetCore.Authentication;
using Microsoft.AspNetCore.Mvc;
using Microsoft.AspNetCore.WebUtilities;
using Microsoft.EntityFrameworkCore;
using Microsoft.EntityFrameworkCore.Storage;
using Microsoft.Extensions.Options;
using Npgsql;
using Npgsql.EntityFrameworkCore.PostgreSQL;

// ---- requests: AddValidation() answers 400 before anything is claimed.  They are public, since it lets others
// pass unchecked, without a word.

public record CreateOrderRequest([Required, RegularExpression("[a-z0-9-]{1,60}")] string Item, [Range(1, 100)] int Quantity,
    [MinLength(1), RegularExpression("[A-Za-z0-9-]{1,60}")] string? OrderNumber = null);

public record PaymentRequest([Range(1, 1_000_000)] int Amount);

public record EmailRequest(string Email)
{
    // one form in all calls: trimmed, lower case
    [JsonIgnore]
    public string Normalized => Email.Trim().ToLowerInvariant() is { Length: <= 100 } email && Regex.IsMatch(email, @"^[^@\0]+@[^@\0]+$")
        ? email : throw new BadHttpRequestException("email is missing or wrong");
}

public record VerifyRequest(string Email, [RegularExpression(@"[^\0]*")] string Code) : EmailRequest(Email);

public record DeliveryRequest([MaxLength(100)] List<JsonElement> Messages);

// A message without an id that can be claimed has none: it is a string, not empty, and up to 1024 bytes long.
record Message(string? Id, string? Payload)
{
    public static Message From(JsonElement message)
    {
        if (message.ValueKind != JsonValueKind.Object) return new(null, null);
        var payload = message.TryGetProperty("payload", out var p) ? p.GetRawText() : null;
        var id = message.TryGetProperty("id", out var i) && i.ValueKind == JsonValueKind.String ? TextOf(i) : null;
        return new(string.IsNullOrEmpty(id) || id.Contains('\0') || Encoding.UTF8.GetByteCount(id) > 1024 ? null : id, payload);
    }

    // Null for what is no text: "\ud800", half of a surrogate pair.
    static string? TextOf(JsonElement element)
    {
        try
        {
            return element.GetString();
        }
        catch (InvalidOperationException)
        {
            return null;
        }
    }
}

record ChargeResponse(string Charge);

static class JsonSetup
{
    public static readonly JsonSerializerOptions Options = Configure(new(JsonSerializerDefaults.Web));

    public static JsonSerializerOptions Configure(JsonSerializerOptions options)
    {
        options.PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower;
        options.NumberHandling = JsonNumberHandling.Strict;    // "1" is no number
        options.PropertyNameCaseInsensitive = false;    // and "Quantity" is not quantity
        options.RespectNullableAnnotations = options.RespectRequiredConstructorParameters = true;
        return options;
    }

    // The body as it came, which idem_http_begin compares.  The serializer takes UTF-16 as well, and in what it
    // ignores any bytes; JSON is UTF-8, whatever the header says.
    public static async Task<string> TextOfAsync(HttpRequest request)
    {
        request.EnableBuffering();
        if (request.HasJsonContentType()) request.ContentType = "application/json";
        try
        {
            using var reader = new StreamReader(request.Body, new UTF8Encoding(false, throwOnInvalidBytes: true), false, leaveOpen: true);
            return await reader.ReadToEndAsync();
        }
        catch (DecoderFallbackException)
        {
            throw new BadHttpRequestException("The body is not UTF-8.");
        }
        finally
        {
            request.Body.Position = 0;
        }
    }
}

// ---- answers

// One way out for a first answer and for its replay, so that both are the same bytes.
record Answer(int Status, string? Body, Dictionary<string, string> Headers, bool Replayed = false) : IResult
{
    public static Answer Json(int status, object value, params (string Name, string Value)[] headers) =>
        new(status, JsonSerializer.Serialize(value, JsonSetup.Options),
            headers.Append(("Content-Type", "application/json")).ToDictionary(h => h.Item1, h => h.Item2));

    public static Answer Problem(int status, string detail, string type = "about:blank", Dictionary<string, object?>? members = null) =>
        new(status, JsonSerializer.Serialize(new ProblemDetails
        {
            Type = type, Title = ReasonPhrases.GetReasonPhrase(status), Status = status, Detail = detail, Extensions = members ?? [],
        }), new() { ["Content-Type"] = "application/problem+json" });

    public static Answer TryAgain(int status)
    {
        var answer = Problem(status, "Try again.");
        answer.Headers["Retry-After"] = "1";
        return answer;
    }

    public async Task ExecuteAsync(HttpContext http)
    {
        http.Response.StatusCode = Status;
        foreach (var (name, value) in Headers) http.Response.Headers[name] = value;
        if (Replayed) http.Response.Headers["Idempotent-Replayed"] = "true";
        if (Body is not null) await http.Response.WriteAsync(Body);
    }
}

// In a real service this is AddJwtBearer(), AddCookie() or the like, and nothing else changes.  Whoever believes
// a header that the client can choose gives every user's answers to everybody.
class UserHeader(IOptionsMonitor<AuthenticationSchemeOptions> options, ILoggerFactory logger, UrlEncoder encoder)
    : AuthenticationHandler<AuthenticationSchemeOptions>(options, logger, encoder)
{
    protected override Task<AuthenticateResult> HandleAuthenticateAsync()
    {
        var name = Request.Headers["X-User"].ToString();
        if (!Regex.IsMatch(name, @"\A[A-Za-z0-9._@-]{1,100}\z")) return Task.FromResult(AuthenticateResult.NoResult());
        var identity = new ClaimsIdentity([new Claim(ClaimTypes.Name, name)], Scheme.Name);
        return Task.FromResult(AuthenticateResult.Success(new(new ClaimsPrincipal(identity), Scheme.Name)));
    }
}

// ---- EF Core

[Table("orders")]
class Order
{
    [Column("id")] public long Id { get; set; }
    [Column("user_name")] public required string UserName { get; set; }
    [Column("item")] public required string Item { get; set; }
    [Column("quantity")] public required int Quantity { get; set; }
    [Column("order_number")] public string? OrderNumber { get; set; }
}

[Table("stock")]
class Stock
{
    [Key, Column("item")] public required string Item { get; set; }
    [Column("available")] public int Available { get; set; }
}

class ShopContext(DbContextOptions<ShopContext> options) : DbContext(options)
{
    public DbSet<Order> Orders => Set<Order>();
    public DbSet<Stock> Stock => Set<Stock>();
}

// EnableRetryOnFailure() repeats after a lost connection as well.  If that was lost in COMMIT, the order may be
// there, and the second attempt would say that its number is taken.  After these two errors it is not there.
class RetryConflicts(ExecutionStrategyDependencies dependencies)
    : NpgsqlRetryingExecutionStrategy(dependencies, maxRetryCount: 2, maxRetryDelay: TimeSpan.FromMilliseconds(100), errorCodesToAdd: null)
{
    protected override bool ShouldRetryOn(Exception? exception) => exception is PostgresException
    {
        SqlState: PostgresErrorCodes.SerializationFailure or PostgresErrorCodes.DeadlockDetected
    };
}

class SoldOutException : Exception;
