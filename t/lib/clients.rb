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
def key = "#{ARGV[0]} #{$count += 1}"
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

def pg
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

  base.cache do
    k = key
    say('query cache', Array.new(2) { db.select_value("SELECT idem_claim('#{k}')") }.inspect)
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
