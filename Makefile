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
	token code purge parallel
ENCODING = UTF8
ISOLATION = $(patsubst $(srcdir)/specs/%.spec,%,$(sort $(wildcard $(srcdir)/specs/*.spec)))
TAP_TESTS = 1
PROVE_TESTS = $(patsubst $(srcdir)/%,%,$(sort $(wildcard $(srcdir)/t/[0-9]*.pl)))

ifdef TEMP_INSTANCE
REGRESS_OPTS += --temp-instance=$(TEMP_INSTANCE) --temp-config=$(srcdir)/test/temp.conf
ISOLATION_OPTS += --temp-instance=$(TEMP_INSTANCE) --temp-config=$(srcdir)/test/temp.conf
endif

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
srcdir ?= .
include $(PGXS)
