# The shop of examples/README.md with Sinatra and pg.
require 'connection_pool'
require 'digest'
require 'json'
require 'logger'
require 'net/http'
require 'pg'
require 'sinatra'
require 'timeout'

set bind: '127.0.0.1', port: ENV.fetch('PORT', 8080), server: :puma, server_settings: { Threads: '4:16' }
# no access log, since the paths of magic links have their tokens
set raise_errors: false, show_exceptions: false, dump_errors: false, logging: false
# Rack::Protection is for pages and cookies.  For a Referer of another site it answers 403 in place of JSON, when the order
# is committed already.  With cookies keep what looks before the work: protection: { except: :json_csrf }
set protection: false, method_override: false
LOG = Logger.new($stderr)

# exec_params has no name on the server, so PgBouncer in transaction mode needs no setting.
POOL = ConnectionPool.new(size: 10, timeout: 30) do
  PG.connect(ENV.fetch('DATABASE_URL')).tap { |db| db.type_map_for_results = PG::BasicTypeMapForResults.new(db) }
end

# ---- answers

Answer = Struct.new(:status, :headers, :body)

# The business says no: rolls back to where it is rescued, and has the answer.
class Refused < StandardError
  attr_reader :answer

  def initialize(answer)
    super(answer.body)
    @answer = answer
  end
end

def json(status, value, headers = {})
  Answer.new(status, { 'Content-Type' => 'application/json', **headers }, JSON.generate(value))
end

def problem(status, detail, type: 'about:blank', headers: {}, **members)
  title = Rack::Utils::HTTP_STATUS_CODES[status]
  json(status, { type: type, title: title, status: status, detail: detail, **members },
       { 'Content-Type' => 'application/problem+json', **headers })
end

def refuse(...) = raise(Refused.new(problem(...)))

def again(status) = problem(status, 'Try again.', headers: { 'Retry-After' => '1' })

# The only way out, for a first answer and for its replay, so that both are the same bytes.
def reply(answer) = [answer.status, answer.headers, [answer.body.to_s]]

error(Refused) { reply(env['sinatra.error'].answer) }
error(Sinatra::BadRequest) { reply(problem(400, 'The request cannot be read.')) }
not_found { reply(problem(404, 'There is nothing.')) }

# No connection, none free, 55P03, and 40001 and 40P01 (class 40) after the last attempt; never stored.
error(PG::ConnectionBad, PG::UnableToSend, PG::OperatorIntervention, PG::InsufficientResources, PG::LockNotAvailable,
      PG::TransactionRollback, ConnectionPool::TimeoutError) do
  LOG.warn(env['sinatra.error'].message)
  reply(again(503))
end

error do
  LOG.error(env['sinatra.error'].full_message)
  reply(problem(500, 'This did not work.'))
end

# ---- requests

# Text that PostgreSQL can hold.
def text?(value, pattern = //)
  value.is_a?(String) && value.valid_encoding? && !value.include?("\0") && pattern.match?(value)
end

def valid(condition, detail)
  refuse(400, detail) unless condition
end

# In a real service this is the user of the session or the token.  Whoever believes a header that the client can
# choose gives every user's answers to everybody.
def user
  name = request.env['HTTP_X_USER']
  refuse(401, 'Who are you?') unless text?(name, /\A[A-Za-z0-9._@-]{1,100}\z/)
  name
end

# The header field as it came; nil if there is none.  ASCII only: what a byte above 127 means differs between servers.
def key
  value = request.env['HTTP_IDEMPOTENCY_KEY']
  valid(value.nil? || text?(value, /\A[\t -~]*\z/n), 'The key is not ASCII.')
  value
end

# "abc" and abc are one key, and so must be what is derived from it.
def bare_key
  bare = key.gsub(/\A[ \t]+|[ \t]+\z/, '')
  bare.start_with?('"') ? bare[1..-2].gsub(/\\(.)/, '\1') : bare
end

# The body as it came is what idem_http_begin compares.
def body_text = @body_text ||= (request.body.read(MAX_BODY + 1) || +'').force_encoding(Encoding::UTF_8)

MAX_BODY = 1024 * 1024

def input
  refuse(413, 'The body has more than 1 MiB.') if body_text.bytesize > MAX_BODY
  valid(body_text.valid_encoding?, 'The body is not UTF-8.')
  # JSON.parse reads half a surrogate pair and what follows as another character.  With U+0000 in its place, text? and
  # PostgreSQL refuse it.
  halves = /\\(?:ud[89ab]\h\h\\ud[c-f]\h\h|ud[89a-f]\h\h|.)/im
  value = JSON.parse(body_text.gsub(halves) { |escape| escape.size == 6 ? '\u0000' : escape })
  valid(value.is_a?(Hash), 'The body is not a JSON object.')
  value
rescue JSON::JSONError, EncodingError
  refuse(400, 'The body is not JSON.')
end

# ---- the database

# What the block returns is answered only after COMMIT.  40001 and 40P01, also of the COMMIT, repeat it from BEGIN,
# never from a savepoint, where the same snapshot fails for ever.
# Leave the block by its end or by raise: pg COMMITs after halt, return and break.
def transaction
  attempt = 1
  begin
    with_connection do |db|
      db.transaction do
        result = yield db
        # COMMIT of a transaction that an error has aborted "succeeds", also if the error was rescued
        raise 'the transaction was aborted' if db.transaction_status == PG::PQTRANS_INERROR

        result
      end
    end
  rescue PG::TRSerializationFailure, PG::TRDeadlockDetected
    raise if attempt == 3

    attempt += 1
    retry
  end
end

def with_connection
  POOL.with do |db|
    begin
      db.consume_input while db.socket_io.wait_readable(0)    # raises if the server has closed the connection
    rescue PG::Error
      db.reset
    end
    yield db
  end
end

def one(db, sql, *values) = db.exec_params(sql, values).first&.transform_keys(&:to_sym)

# Method and path go into the scope, and so does the user: nobody gets the answer to another user's request.
# The path of the route, since /%6frders is the same here.
def scope = "#{user} #{env['sinatra.route']}"

# What says to run, or the answer to send.
# A missing key is nil, which idem_http_begin answers with 400.
# In autocommit mode it fails with ID005: its transaction ends without the finish.
def begin_once(db, lease_ms: nil)
  claim = one(db, 'SELECT * FROM idem_http_begin($1, $2, $3, wait_ms => 500, lease_ms => $4)',
              key, body_text, scope, lease_ms)
  return [claim, nil] if claim[:run]

  # A replay has the first status, 201, not 200.  Retry-After of a 409 is whole seconds already.
  headers = JSON.parse(claim[:headers] || '{}')
  if claim[:replayed]
    headers['Idempotent-Replayed'] = 'true'
  else    # 400, 409 and 422 say where your API's documentation is
    headers['Link'] = '<https://shop.example/docs/idempotency>; rel="describedby"'
  end
  [nil, Answer.new(claim[:status], headers, claim[:body])]
end

# The scope is that of the begin: a claim is a key in a scope.
def finish_once(db, answer, fence = nil)
  row = one(db, 'SELECT idem_http_finish($1, $2, $3, $4, $5, $6) AS status',
            key, answer.status, answer.body, JSON.generate(answer.headers), scope, fence)
  Answer.new(row[:status], answer.headers, answer.body)
end

# ---- orders

def place_order(db, who, order)
  item, quantity, number = order.values_at('item', 'quantity', 'order_number')
  row = one(db, 'INSERT INTO orders (user_name, item, quantity, order_number) VALUES ($1, $2, $3, $4) RETURNING id',
            who, item, quantity, number)
  taken = db.exec_params('UPDATE stock SET available = available - $2 WHERE item = $1 AND available >= $2',
                         [item, quantity])
  refuse(422, "There is not enough of #{item}.", type: '/problems/sold-out') if taken.cmd_tuples.zero?
  json(201, { id: row[:id], item: item, quantity: quantity, order_number: number }, { 'Location' => "/orders/#{row[:id]}" })
rescue PG::UniqueViolation => e    # the SQLSTATE of the trigger is that of a unique constraint
  raise unless e.result.error_field(PG::PG_DIAG_CONSTRAINT_NAME) == 'orders_once'

  refuse(409, 'This order number is taken.', type: '/problems/order-number-taken')
end

post '/orders' do
  who = user
  order = input
  valid(text?(order['item'], /\A[a-z0-9-]{1,60}\z/), 'item is missing or wrong')
  valid(order['quantity'].is_a?(Integer) && order['quantity'].between?(1, 100), 'quantity is 1 to 100')
  number = order['order_number']
  valid(number.nil? || text?(number, /\A[A-Za-z0-9-]{1,60}\z/), 'order_number is wrong')
  next reply(transaction { |db| place_order(db, who, order) }) if key.nil? && number

  answer = transaction do |db|
    claim, told = begin_once(db)
    if claim
      db.exec('SAVEPOINT work')
      begin
        told = place_order(db, who, order)
      rescue Refused => e
        # A business failure is an answer, too: undo the work, and store the answer with its status.
        db.exec('ROLLBACK TO SAVEPOINT work')
        told = e.answer
      end
      told = finish_once(db, told)
    end
    told
  end
  reply(answer)
end

# ---- clicks

post '/clicks' do
  who = user
  with_connection do |db|
    # Whole seconds until one call more is allowed, rounded up: who comes back a moment too early is refused again.
    # reset_after is until all five are, a minute for each.
    call = one(db, "SELECT allowed, remaining, ceil(reset_after - 60 * (4 - remaining))::int AS seconds
      FROM idem_throttle($1, '5 min', 5, 'clicks')", who)
    headers 'RateLimit-Policy' => '"clicks";q=5;w=300', 'RateLimit' => "\"clicks\";r=#{call[:remaining]};t=#{call[:seconds]}"
    next reply(problem(429, 'Too many clicks.', headers: { 'Retry-After' => call[:seconds].to_s })) unless call[:allowed]

    db.exec_params('INSERT INTO clicks (user_name) VALUES ($1)', [who])
    204
  end
end

# ---- payments

# The charge, or nil if it was declined.
def charge(remote_key, amount)
  headers = { 'Content-Type' => 'application/json', 'Idempotency-Key' => remote_key }
  response = Timeout.timeout(10) do
    Net::HTTP.post(URI("#{ENV.fetch('PAYMENT_URL')}/charges"), JSON.generate({ amount: amount }), headers)
  end
  return nil if response.code == '402'

  charged = JSON.parse(response.body).fetch('charge') if response.code == '201'
  raise "the payment service says #{response.code}" unless charged.is_a?(String)    # it may have charged

  charged
end

post '/payments' do
  who = user
  amount = input['amount']
  valid(amount.is_a?(Integer) && amount.between?(1, 1_000_000), 'amount is 1 to 1000000')
  remote_key = nil

  # Committed before the call, so that all see the claim in progress, until it is finished or its lease is over.
  claim, told = transaction do |db|
    begun = begin_once(db, lease_ms: 30_000)
    if begun.first
      remote_key = Digest::SHA256.hexdigest("#{scope}\n#{bare_key}")
      db.exec_params('INSERT INTO payments (remote_key, user_name, amount) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING',
                     [remote_key, who, amount])
    end
    begun
  end
  next reply(told) if told

  begin
    paid = charge(remote_key, amount)
  rescue StandardError => e
    # We do not know whether it was charged.  The next attempt asks again, under the same key.
    LOG.warn(e.message)
    begin
      transaction { |db| one(db, 'SELECT idem_release($1, $2, $3)', bare_key, scope, claim[:fence]) }
    rescue PG::Error, ConnectionPool::TimeoutError => e
      LOG.warn(e.message)    # then the lease ends by itself
    end
    next reply(again(503))
  end
  answer = paid ? json(201, { charge: paid, amount: amount })
                : problem(402, 'The card was declined.', type: '/problems/declined')
  begin
    reply(transaction do |db|
      db.exec_params('UPDATE payments SET status = $2, charge = $3 WHERE remote_key = $1',
                     [remote_key, paid ? 'paid' : 'declined', paid])
      finish_once(db, answer, claim[:fence])
    end)
  rescue PG::ServerError => e
    # another request has taken over, or has finished already: its answer is the answer
    raise unless %w[ID004 ID006].include?(e.result&.error_field(PG::PG_DIAG_SQLSTATE))

    reply(again(409))
  end
end

# ---- magic links and codes

NO_STORE = { 'Cache-Control' => 'no-store' }.freeze

def email_of(body)
  email = text?(body['email']) ? body['email'].strip.downcase : ''
  valid(email.size <= 100 && text?(email, /\A[^@]+@[^@]+\z/), 'email is missing or wrong')
  email
end

def token
  refuse(404, 'There is no such link.', headers: NO_STORE) unless text?(params['token'])
  params['token']
end

def no_token(state)
  return problem(404, 'There is no such link.', headers: NO_STORE) if state == 'unknown'

  problem(410, 'This link was used before, or is too old.', headers: NO_STORE)
end

# The token goes from the database into the mail, and not through this program's logs.
post '/magic-links' do
  email = email_of(input)
  transaction do |db|
    db.exec_params("INSERT INTO outbox (recipient, kind, secret)
      SELECT $1, 'magic-link', idem_token_issue('login', '15 min', subject => $1)", [email])
  end
  202
end

# A scanner of the mail server follows the link: looking burns nothing.
get '/magic-links/:token' do
  state = transaction { |db| one(db, "SELECT state FROM idem_token_peek('login', $1)", token) }[:state]
  reply(state == 'valid' ? json(200, { state: state }, NO_STORE) : no_token(state))
end

post '/magic-links/:token' do
  reply(transaction do |db|
    row = one(db, "SELECT * FROM idem_token_redeem('login', $1)", token)
    if row[:state] == 'redeemed'
      db.exec_params('INSERT INTO logins (email) VALUES ($1)', [row[:subject]])
      json(200, { email: row[:subject] }, NO_STORE)
    else
      no_token(row[:state])
    end
  end)
end

post '/codes' do
  email = email_of(input)
  transaction do |db|
    db.exec_params("INSERT INTO outbox (recipient, kind, secret)
      SELECT $1, 'code', idem_code_issue('login', $1, '5 min', max_attempts => 3)", [email])
  end
  202
end

post '/codes/verify' do
  typed = input
  email = email_of(typed)
  valid(text?(typed['code']), 'code is missing or wrong')
  reply(transaction do |db|
    row = one(db, "SELECT * FROM idem_code_verify('login', $1, $2)", email, typed['code'])
    case row[:state]
    when 'verified'
      db.exec_params('INSERT INTO logins (email) VALUES ($1)', [email])
      json(200, { verified: true })
    when 'wrong', 'locked'    # an answer, not raised: it commits, or the attempt would not count
      problem(403, 'This is not the code.', attempts_left: row[:attempts_left])
    else
      problem(410, 'There is no such code any more; ask for a new one.')
    end
  end)
end

# ---- a consumer

def payload_of(message)
  JSON.generate(message['payload']) if message.key?('payload')
rescue JSON::JSONError, EncodingError => e
  JSON.generate(e.class.name)    # 1e999; a string is parked below
end

def park(db, id, payload, error)
  db.exec_params('INSERT INTO dead_letters (message_id, payload, error) VALUES ($1, $2, $3)', [id, payload, error])
end

post '/deliveries' do
  messages = input['messages']
  valid(messages.is_a?(Array) && messages.size <= 100, 'messages is missing or wrong')
  messages = messages.map { |message| message.is_a?(Hash) ? message : {} }
  usable, unusable = messages.partition { |m| text?(m['id'], /./m) && m['id'].bytesize <= 1024 }
  # idem_claim_many returns keys, not payloads: by_id leads back to those.
  by_id = usable.uniq { |message| message['id'] }.to_h { |message| [message['id'], message] }

  reply(transaction do |db|
    parked = unusable.size
    unusable.each { |message| park(db, nil, payload_of(message), 'no usable id') }    # it would fail the whole batch
    new = 0
    db.exec_params("SELECT key FROM idem_claim_many($1, '7 days', 'deliveries')",
                   [PG::TextEncoder::Array.new.encode(by_id.keys)]).each do |row|
      id = row['key']
      payload = payload_of(by_id[id])
      db.exec('SAVEPOINT message')
      begin
        db.exec_params('INSERT INTO shipments SELECT $1, p.order_number, p.quantity
          FROM jsonb_to_record($2::jsonb) AS p(order_number text, quantity int)', [id, payload])
        new += 1
      rescue PG::DataException, PG::IntegrityConstraintViolation, PG::ProgramLimitExceeded => e
        # Poison is what will always fail: class 22 (bad values), 23 (constraints), 54 (too large, too deep).  It is
        # parked, still claimed.  Anything else fails the batch, and the broker sends it again.
        db.exec('ROLLBACK TO SAVEPOINT message')
        park(db, id, payload, e.message)
        parked += 1
      end
    end
    json(200, { received: messages.size, new: new, parked: parked })
  end)
end

get '/healthz' do
  with_connection { |db| db.exec('SELECT 1') }
  reply(json(200, { up: true }))
end
