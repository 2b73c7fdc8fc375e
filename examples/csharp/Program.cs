// The shop of examples/README.md with ASP.NET Core, Npgsql and, for orders without a key, EF Core.
// Here is how it is put together, Shop.cs does the work, Model.cs has what goes in and out.
using System.Security.Claims;
using Microsoft.AspNetCore.Authentication;
using Microsoft.AspNetCore.Mvc;
using Microsoft.EntityFrameworkCore;
using Npgsql;

var builder = WebApplication.CreateBuilder(args);
var config = builder.Configuration;
builder.WebHost.UseUrls($"http://127.0.0.1:{config["PORT"] ?? "8080"}");
builder.WebHost.ConfigureKestrel(kestrel => kestrel.Limits.MaxRequestBodySize = 1 << 20);
builder.Logging.SetMinimumLevel(LogLevel.Warning);

// Npgsql prepares nothing under a name unless Max Auto Prepare says so.  With No Reset On Close it sends no
// DISCARD ALL, which behind PgBouncer in transaction mode would reset whatever session comes next.
builder.Services.AddSingleton(NpgsqlDataSource.Create(new NpgsqlConnectionStringBuilder
{
    Host = config["PGHOST"], Port = config.GetValue("PGPORT", 5432), Database = config["PGDATABASE"],
    Username = config["PGUSER"], Password = config["PGPASSWORD"],
    MaxPoolSize = 10, Timeout = 30, NoResetOnClose = true,
}));
builder.Services.AddDbContext<ShopContext>((services, options) => options.UseNpgsql(
    services.GetRequiredService<NpgsqlDataSource>(), npgsql => npgsql.ExecutionStrategy(d => new RetryConflicts(d))));
builder.Services.AddScoped<Shop>().AddHttpContextAccessor();
builder.Services.AddHttpClient("payments", client => client.Timeout = TimeSpan.FromSeconds(10));
builder.Services.AddAuthentication("X-User").AddScheme<AuthenticationSchemeOptions, UserHeader>("X-User", null);
builder.Services.AddAuthorization();
builder.Services.AddValidation();
builder.Services.ConfigureHttpJsonOptions(options => JsonSetup.Configure(options.SerializerOptions));
// Whatever is thrown, and a bare status.  No message of the database comes out here.
builder.Services.AddProblemDetails(options => options.CustomizeProblemDetails = context =>
{
    context.ProblemDetails.Type = "about:blank";
    context.ProblemDetails.Detail = (context.Exception as BadHttpRequestException)?.Message ?? context.ProblemDetails.Title;
    if (context.ProblemDetails.Status == 503) context.HttpContext.Response.Headers.RetryAfter = "1";
});

var app = builder.Build();
app.UseExceptionHandler(new ExceptionHandlerOptions { StatusCodeSelector = error =>
    error is BadHttpRequestException bad ? bad.StatusCode : MayHelp(error) ? 503 : 500,
    SuppressDiagnosticsCallback = context => context.Exception is BadHttpRequestException });    // a client's mistake is for no log
app.UseStatusCodePages();
app.Use(async (http, next) =>
{
    http.Request.Headers.Accept = "application/json";    // problems also for those who do not ask for them
    http.Items["body"] = await JsonSetup.TextOfAsync(http.Request);
    // ASCII only: what a byte above 127 means in a header differs between servers.
    if (http.Request.Headers["Idempotency-Key"].ToString().Any(c => c is not '\t' and (< ' ' or > '~')))
        throw new BadHttpRequestException("The key is not ASCII.");
    if (http.Request.Path.StartsWithSegments("/magic-links")) http.Response.Headers.CacheControl = "no-store";
    await next(http);
});
app.UseAuthentication();
app.UseAuthorization();

// The connection failed, or none was free, or another attempt may succeed.  EF Core wraps what Npgsql throws.
static bool MayHelp(Exception? error) => error is not null
    && (error is NpgsqlException { IsTransient: true } || MayHelp(error.InnerException));

app.MapPost("/orders", async ([FromHeader(Name = "Idempotency-Key")] string? key, CreateOrderRequest request,
    ClaimsPrincipal user, Shop shop) =>
{
    if (key is not null || request.OrderNumber is null) return await shop.CreateOrderAsync(key, request);
    var order = new Order
    {
        UserName = user.Identity!.Name!, Item = request.Item, Quantity = request.Quantity, OrderNumber = request.OrderNumber,
    };
    try
    {
        return await shop.InsertOrderAsync(order) ? Shop.Created(order) : Shop.NumberTaken;
    }
    catch (SoldOutException)
    {
        return Shop.SoldOut;
    }
}).RequireAuthorization();

app.MapPost("/clicks", async (ClaimsPrincipal user, Shop shop) =>
    await shop.TryClickAsync(user.Identity!.Name!) ? Results.NoContent() : Answer.Problem(429, "Too many clicks.")).RequireAuthorization();

app.MapPost("/payments", ([FromHeader(Name = "Idempotency-Key")] string? key, PaymentRequest request, Shop shop) =>
    shop.PayAsync(key, request.Amount)).RequireAuthorization();

app.MapPost("/magic-links", (EmailRequest request, Shop shop) => shop.SendMagicLinkAsync(request.Normalized));

// A scanner of the mail server follows the link: looking burns nothing.
app.MapGet("/magic-links/{token}", async (string token, Shop shop) =>
{
    var state = await shop.PeekTokenAsync(token);
    return state == "valid" ? Answer.Json(200, new { state }) : Shop.NoToken(state);
});

app.MapPost("/magic-links/{token}", async (string token, Shop shop) =>
    await shop.RedeemTokenAsync(token) is { } email ? Answer.Json(200, new { email }) : Shop.NoToken(await shop.PeekTokenAsync(token)));

app.MapPost("/codes", (EmailRequest request, Shop shop) => shop.SendCodeAsync(request.Normalized));

app.MapPost("/codes/verify", (VerifyRequest request, Shop shop) => shop.VerifyCodeAsync(request.Normalized, request.Code));

app.MapPost("/deliveries", (DeliveryRequest request, Shop shop) => shop.DeliverAsync(request.Messages));

app.MapGet("/healthz", async (NpgsqlDataSource db) =>
{
    await using var command = db.CreateCommand("SELECT 1");
    try
    {
        return Results.Ok(await command.ExecuteScalarAsync());
    }
    catch (NpgsqlException)
    {
        return Results.StatusCode(503);
    }
});

app.Run();
