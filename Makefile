# The version number is written in idempotency.control, nowhere else.
EXTENSION = idempotency
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(srcdir)/$(EXTENSION).control)

MODULE_big = idempotency
# every source file; a folder for each subject, doc/explanation/how-it-works.md has the map
OBJS = $(patsubst $(srcdir)/%.c,%.o,$(sort $(wildcard $(srcdir)/src/*.c $(srcdir)/src/*/*.c)))
# Released scripts are never edited; each version has an upgrade script from the one before.
DATA = $(notdir $(wildcard $(srcdir)/$(EXTENSION)--*.sql))
PG_CPPFLAGS = -I$(srcdir)/src -DIDEM_VERSION='"$(EXTVERSION)"'

# Where the server has OpenSSL, digests are OpenSSL's (src/base/sha256.c); its headers come with libpq's.
SHLIB_LINK += $(filter -lcrypto,$(LIBS))

# PostgreSQL's own headers are not clean under these parts of -Wextra.
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers

# "make installcheck" tests against a running server, as PGXS does, and leaves no database
# behind; with TEMP_INSTANCE=folder it makes a server of its own there.
# "install" is first: the others take the extension as it is there, or make it.
REGRESS = install $(filter-out install,$(patsubst $(srcdir)/sql/%.sql,%,$(sort $(wildcard $(srcdir)/sql/*.sql))))
# databases of their own, which any server can have, whatever its locale
ENCODING = UTF8
NO_LOCALE = 1
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

# A build in another folder, as Debian's packages are built: make -f SOURCE/Makefile VPATH=SOURCE.
# Phony, since make would find the folders of the sources in VPATH.
.PHONY: object-folders
object-folders:
	@mkdir -p $(sort $(dir $(OBJS)))
$(OBJS) $(OBJS:.o=.bc): | object-folders

# idempotency-VERSION.zip of the version's tag, or of COMMIT=...
.PHONY: dist
dist:
	$(srcdir)/scripts/dist $(COMMIT)

# What an image with nothing but the extension has, for extension_control_path and
# dynamic_library_path of PostgreSQL 18: $(IMAGE)/share/extension and $(IMAGE)/lib.
.PHONY: install-image
install-image: all
	$(MKDIR_P) '$(IMAGE)/share/extension' '$(IMAGE)/lib'
	$(INSTALL_DATA) $(addprefix $(srcdir)/,$(EXTENSION).control $(DATA)) '$(IMAGE)/share/extension/'
	$(INSTALL_SHLIB) $(MODULE_big)$(DLSUFFIX) '$(IMAGE)/lib/'

# pg_regress leaves its databases on a server that is somebody's.
ifndef TEMP_INSTANCE
server_options = $(patsubst --user=%,--username=%,$(filter --host=% --port=% --user=%,$(1)))
dropping = trap 'rc=$$?; trap - EXIT; PGOPTIONS=-cclient_min_messages=warning "$(bindir)/psql" -Xq -d postgres \
	$(call server_options,$(2)) -c "DROP DATABASE IF EXISTS \"$(1)\" WITH (FORCE)"; exit $$rc' EXIT &&
# expanded at once: theirs has a "#", which another reading as makefile text would take for a comment
regress_installcheck := $(pg_regress_installcheck)
isolation_installcheck := $(pg_isolation_regress_installcheck)
pg_regress_installcheck = $(call dropping,$(CONTRIB_TESTDB),$(EXTRA_REGRESS_OPTS) $(REGRESS_OPTS)) $(regress_installcheck)
pg_isolation_regress_installcheck = $(call dropping,$(ISOLATION_TESTDB),$(EXTRA_REGRESS_OPTS) $(ISOLATION_OPTS)) $(isolation_installcheck)
endif

# The TAP tests start servers of their own, which not everybody can.
ifeq ($(enable_tap_tests)$(filter installcheck,$(MAKECMDGOALS)),yesinstallcheck)
no_tap := $(shell if [ "$$(id -u)" = 0 ]; then echo 'a server does not run as root'; \
	elif ! perl -MTest::More -MIPC::Run -e 1 2>/dev/null; then \
	echo 'the Perl module IPC::Run is missing (libipc-run-perl on Debian)'; fi)
ifneq ($(no_tap),)
prove_installcheck = @printf '%s\n' $(PROVE_TESTS:%='skipped %: $(no_tap)')
endif
endif
