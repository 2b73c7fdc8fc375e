# The version number is written in idempotency.control, nowhere else.
EXTENSION = idempotency
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(srcdir)/$(EXTENSION).control)

MODULE_big = idempotency
OBJS = $(patsubst %,src/%.o,idempotency call claim code durable fingerprint function grant guc guess held key lease limit lock moved name pending \
	purge relation row rowkey secret sha256 shmem siphash stats store sweep throttle token trigger ttl worker)
# Released scripts are never edited; each version has an upgrade script from the one before.
DATA = $(notdir $(wildcard $(srcdir)/$(EXTENSION)--*.sql))
PG_CPPFLAGS = -DIDEM_VERSION='"$(EXTVERSION)"'

# Where the server has OpenSSL, digests are OpenSSL's (src/sha256.c); its headers come with libpq's.
SHLIB_LINK += $(filter -lcrypto,$(LIBS))

# PostgreSQL's own headers are not clean under these parts of -Wextra.
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers

# "make installcheck" tests against a running server, as PGXS does; with
# TEMP_INSTANCE=folder it makes and removes a server of its own there.
REGRESS = install begin_finish savepoints claim bad_input drivers operate store lease call once once_partitions \
	token code purge
ENCODING = UTF8
ISOLATION = $(addprefix iso-,begin-begin begin-claim begin-claim-many begin-wait begin-wait-crowd \
	begin-wait-timeout call call-ddl code-renamed code-verify claim-claim claim-claim-many claim-many claim-many-deadlock deadlock \
	expired expired-delete expired-pages forget guard levels lost-race savepoint serializable \
	serializable-large lease-begin lease-checkpoint lease-checkpoint-renew lease-claim-many \
	lease-extend lease-finish lease-holders lease-release lease-takers lease-transaction once once-detach \
	once-move purge purge-tokens taken-back token-levels token-redeem)
TAP_TESTS = 1
PROVE_TESTS = $(patsubst %,t/%.pl,001_dump 002_extension 003_guard 004_durable 005_roles \
	006_pgbouncer 007_standby 008_storm 009_plain 010_docs 011_lease 012_payment 013_sync_standby \
	014_call 015_once 016_tokens 017_guesses 018_throttle 019_stat 020_purge \
	021_worker 022_cron 023_steady 024_checker 025_fuzz 026_sqlsmith 027_logical 028_upgrade 031_other_modules)

ifdef TEMP_INSTANCE
REGRESS_OPTS += --temp-instance=$(TEMP_INSTANCE) --temp-config=$(srcdir)/test/temp.conf
ISOLATION_OPTS += --temp-instance=$(TEMP_INSTANCE) --temp-config=$(srcdir)/test/temp.conf
endif

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
srcdir ?= .
include $(PGXS)
