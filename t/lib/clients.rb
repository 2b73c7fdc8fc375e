# What t/061_clients.pl asks Ruby's pg and ActiveRecord: see clients.py.
require 'json'

driver = ARGV.fetch(0)
begin
  require 'pg'
  require 'active_record' if driver == 'activerecord'
rescue LoadError => e
  puts e.message
  exit 77
end

$count = 0
def key = "#{ARGV.join(' ')} #{$count += 1}"
def say(name, result) = puts("#{name}\t#{result}")

def sqlstate
  yield
  'no error'
rescue PG::Error => e
  e.result.error_field(PG::PG_DIAG_SQLSTATE)
rescue ActiveRecord::StatementInvalid => e
  e.cause.result.error_field(PG::PG_DIAG_SQLSTATE)
end

# What the row of a key says, or "free": nothing was committed.
def state(query, key) = query["SELECT coalesce((SELECT state FROM idem_lookup('#{key}')), 'free')"]

# See swap of clients.py.  Each client has a begin, a commit and a rollback.
def swap(clients)
  resolved = 0
  25.times do |attempt|
    turn = attempt < 10 ? clients.first(1) : attempt.even? ? clients.reverse : clients
    inside = turn.select do |client|
      client[:begin][key]
      true
    rescue StandardError
      client[:rollback][]
      false
    end
    (attempt % 4 < 2 ? inside : inside.reverse).each do |client|
      client[:commit][]
      resolved += 1
    rescue StandardError
      client[:rollback][]
    end
  end
  say('resolved', resolved)
end

def pg_bouncer
  # a statement that has a name is what the page warns of
  run = if ARGV[1] == 'with'
          ->(db, sql, k) { db.exec_params(sql, [k]) }
        else
          lambda do |db, sql, k|
            db.prepare(sql, sql) unless (@prepared ||= {})[[db, sql]]
            @prepared[[db, sql]] = true
            db.exec_prepared(sql, [k])
          end
        end
  swap(Array.new(2) { PG.connect }.map do |db|
    { begin: ->(k) { db.exec('BEGIN'); run[db, 'SELECT idem_begin($1)', k]; run[db, 'SELECT idem_finish($1)', k] },
      commit: -> { db.exec('COMMIT') }, rollback: -> { db.exec('ROLLBACK') } }
  end)
end

class First < ActiveRecord::Base
  self.abstract_class = true
end if driver == 'activerecord'
class Second < ActiveRecord::Base
  self.abstract_class = true
end if driver == 'activerecord'

def activerecord_bouncer
  swap([First, Second].map do |base|
    base.establish_connection(adapter: 'postgresql', prepared_statements: ARGV[1] != 'with', host: ENV['PGHOST'], port: ENV['PGPORT'],
                              database: ENV['PGDATABASE'], username: ENV['PGUSER'], password: ENV['PGPASSWORD'])
    db = base.connection
    run = ->(sql, k) { db.exec_query(sql, 'SQL', [ActiveRecord::Relation::QueryAttribute.new('k', k, ActiveRecord::Type::String.new)], prepare: true) }
    { begin: ->(k) { db.begin_transaction(joinable: false, _lazy: false); run['SELECT state FROM idem_begin($1)', k]; run['SELECT idem_finish($1)', k] },
      commit: -> { db.commit_transaction }, rollback: -> { db.rollback_transaction if db.transaction_open? } }
  end)
end

# What a consumer parks: the exceptions of three classes
def poison(db)
  say('poison', %w[22003 23502 54000].map do |code|
    db.exec("DO $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '#{code}'; END $$")
  rescue PG::DataException, PG::IntegrityConstraintViolation, PG::ProgramLimitExceeded => e
    e.class.ancestors.find { |c| [PG::DataException, PG::IntegrityConstraintViolation, PG::ProgramLimitExceeded].include?(c) }
  end.join(' '))
end

def pg
  return pg_bouncer if ARGV[1]

  db = PG.connect
  begun = ->(k, request = nil) { db.exec_params('SELECT state FROM idem_begin($1, request => $2)', [k, request]).getvalue(0, 0) }
  finish = ->(k) { db.exec_params('SELECT idem_finish($1)', [k]) }
  claim = ->(k) { db.exec_params('SELECT idem_claim($1)', [k]) }
  query = ->(sql) { db.exec(sql).getvalue(0, 0) }

  say('version', PG::VERSION)
  say('autocommit', sqlstate { begun[key] })
  say('no finish', sqlstate { db.transaction { begun[key] } })

  k = key
  said = sqlstate do
    db.transaction do
      begun[k]
      finish[k]
      begin
        db.exec('SELECT 1/0')
      rescue PG::DivisionByZero
        say('transaction_status', db.transaction_status == PG::PQTRANS_INERROR)
      end
    end
  end
  say('caught error', said)
  say('and the key', state(query, k))

  # a Hash is sent as NULL, so no request is stored
  [{ a: 1 }, JSON.generate({ a: 1 })].each do |request|
    k = key
    db.transaction { [begun[k, request], finish[k]] }
    say(request.class, begun[k, '{"b": 2}'])
  end

  db.transaction do
    begun[k = key]
    say('jsonb', db.exec_params('SELECT idem_finish($1, $2)', [k, '{"a": 1}']).getvalue(0, 0).class)
  end
  db.type_map_for_results = PG::BasicTypeMapForResults.new(db)
  say('bigint', db.exec('SELECT 1::bigint').getvalue(0, 0).class)

  poison(db)

  # leaving the block
  k = key
  -> { db.transaction { claim[k]; return } }.call
  say('return', state(query, k))
  db.transaction { claim[k = key]; break }
  say('break', state(query, k))
  catch(:done) { db.transaction { claim[k = key]; throw :done } }
  say('throw', state(query, k))
  begin
    db.transaction { claim[k = key]; raise IOError }
  rescue IOError
    say('raise', state(query, k))
  end
end

def activerecord
  return activerecord_bouncer if ARGV[1]

  base = ActiveRecord::Base
  ActiveSupport::Deprecation.silenced = true
  base.establish_connection(adapter: 'postgresql', prepared_statements: false, host: ENV['PGHOST'], port: ENV['PGPORT'], database: ENV['PGDATABASE'])
  db = base.connection
  %w[skip raise].each do |mode|
    db.execute("CREATE TABLE ruby_#{mode} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k text)")
    db.execute("CREATE TRIGGER once #{mode == 'skip' ? 'BEFORE' : 'AFTER'} INSERT ON ruby_#{mode}
                FOR EACH ROW EXECUTE FUNCTION idem_once('k', NULL, '#{mode}')")
  end
  begun = ->(k) { db.exec_query("SELECT state FROM idem_begin('#{k}')") }
  finish = ->(k) { db.exec_query("SELECT idem_finish('#{k}')") }
  claim = ->(k) { db.exec_query("SELECT idem_claim('#{k}')") }
  query = ->(sql) { db.exec_query(sql).rows[0][0] }

  say('version', ActiveRecord.version)
  say('autocommit', sqlstate { begun[key] })
  say('no finish', sqlstate { base.transaction { begun[key] } })

  k = key
  said = sqlstate do
    base.transaction do
      begun[k]
      finish[k]
      begin
        db.exec_query('SELECT 1/0')
      rescue ActiveRecord::StatementInvalid
        nil
      end
    end
  end
  say('caught error', said)
  say('and the key', state(query, k))

  inbox = Class.new(base) { self.table_name = 'ruby_skip' }
  base.cache do
    k = key
    say('query cache', Array.new(2) { db.select_value("SELECT idem_claim('#{k}')") }.inspect)
    k = key
    say('find_by_sql', Array.new(2) { inbox.find_by_sql("SELECT idem_claim('#{k}') AS claimed").first.claimed }.inspect)
    k = key
    throttle = "SELECT remaining FROM idem_throttle('#{k}', '1 min', 9)"
    say('throttle', Array.new(2) { db.select_value(throttle) }.inspect)
    say('throttle, exec_query', Array.new(2) { query[throttle] }.inspect)
    k = key
    say('exec_query', Array.new(2) { query["SELECT idem_claim('#{k}')"] }.inspect)
    k = key
    say('uncached', base.uncached { Array.new(2) { db.select_value("SELECT idem_claim('#{k}')") } }.inspect)
  end

  k = key
  -> { base.transaction { claim[k]; return } }.call
  say('return', state(query, k))

  [false, true].each do |requires_new|
    base.transaction do
      base.transaction(requires_new: requires_new) { claim[k = key]; raise ActiveRecord::Rollback }
    end
    say("Rollback, requires_new #{requires_new}", state(query, k))
  end

  fired = 0
  inbox = Class.new(base) do
    self.table_name = 'ruby_raise'
    after_commit { fired += 1 }
  end
  say('no finish, with a model', sqlstate { base.transaction { inbox.create!(k: 'not'); begun[key] } })
  say('after_commit', fired)
  inbox.create!(k: 'a')
  say('after_commit, committed', fired)
  begin
    inbox.create!(k: 'a')
  rescue StandardError => e
    say('raise', e.class)
  end

  inbox = Class.new(base) { self.table_name = 'ruby_skip' }
  inbox.create!(k: 'a')
  row = inbox.create!(k: 'a')
  say('skip', [row.persisted?, row.id].inspect)
end

send(driver)
