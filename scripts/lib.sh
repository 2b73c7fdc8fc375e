# shellcheck shell=bash
# What scripts/demo and scripts/test share: packages, a private PostgreSQL, a
# private build, and an end that leaves nothing behind.  To be sourced.

set -euo pipefail
umask 022

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ME=scripts/$(basename "$0")
T=           # temporary folder of this run, by make_temp
exec {STDERR}>&2 # what is interrupted may have its own redirected
UNDO=()      # commands for the end, last one first
FORBIDDEN=   # are services kept from starting?
BUILD_ENV=() # where the compiler finds headers that were only unpacked

# Debian's own PostgreSQL of a release; the first is what "installed" is held against.  With
# "+experimental", PostgreSQL comes from there: one that is not released yet.
declare -A SUITE=([15]=bookworm [17]=trixie [18]=forky [19]=forky+experimental)
OLDEST=15

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "$ME" "$*" >&2; exit 1; }
is_root() { [[ $EUID -eq 0 ]]; }

# ---------------------------------------------------------------- the end

# Processes of this run.  Servers leave the process group and overwrite their
# environment, so look for the mark in the environment and for our binaries.
own_processes()
{
	{
		grep -lsF "IDEM_RUN=$T" /proc/[0-9]*/environ
		find /proc/[0-9]*/exe -maxdepth 0 -lname "$T/*" 2>/dev/null
	} | cut -d/ -f3 | sort -un || true
}

# A server is ended by INT, since at TERM it waits for its clients; the rest by TERM: what
# runs in the background has INT ignored.
signal_for()    # process, signal
{
	if [[ $2 == TERM && $(readlink "/proc/$1/exe") == */postgres ]]; then say INT; else say "$2"; fi
}

end_processes()
{
	local signal pids pid i

	# KILL for what hangs
	for signal in TERM QUIT KILL; do
		for ((i = 0; i < 50; i++)); do
			mapfile -t pids < <(own_processes)
			((${#pids[@]})) || return 0
			for pid in "${pids[@]}"; do
				# again and again, for what has been started meanwhile
				((i % 3)) || kill -"$(signal_for "$pid" "$signal")" "$pid" 2>/dev/null || true
			done
			sleep 0.1
		done
	done
}

finish()
{
	local i rc=$?

	trap '' INT TERM HUP PIPE
	trap - EXIT
	[[ -z $T ]] || end_processes
	for ((i = ${#UNDO[@]} - 1; i >= 0; i--)); do eval "${UNDO[i]}" || true; done
	UNDO=()
	[[ -z $T ]] || rm -rf "$T"
	exit "$rc"
}

interrupted()
{
	printf '%s: interrupted, nothing is left behind\n' "$ME" >&"$STDERR"
	exit "$1"
}

trap finish EXIT
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
trap 'exit 129' HUP
trap 'exit 141' PIPE

# Run in the background and wait: bash handles a signal only between
# foreground commands, and "wait" is the one that a signal cuts short.
waited()
{
	"$@" &
	wait $!
}

make_temp()
{
	# not /tmp, which may be memory; short, for the sake of socket paths
	T=$(mktemp -d /var/tmp/idem.XXXXXX)
	chmod 755 "$T"
	mkdir "$T/home" "$T/tmp" "$T/s"
	give_user "$T/home" "$T/tmp" "$T/s"
	chmod 700 "$T/s"
}

# PostgreSQL refuses root.  Not "postgres": that one may enter the servers
# that are already on this machine, and a test should not be able to.
as_user()
{
	local command=(env -i -C "$T" PATH=/usr/local/bin:/usr/bin:/bin HOME="$T/home" TMPDIR="$T/tmp"
		LANG=C.UTF-8 TERM="${TERM:-dumb}" IDEM_RUN="$T" "$@")

	if is_root; then
		setpriv --reuid=nobody --regid=nogroup --clear-groups -- "${command[@]}"
	else
		"${command[@]}"
	fi
}

give_user() { ! is_root || chown -R nobody:nogroup "$@"; }

# ---------------------------------------------------------------- packages

missing_packages()
{
	local p

	for p in "$@"; do
		[[ $(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || say "$p"
	done
}

in_apt() { [[ -n $(apt-cache show --no-all-versions "$1" 2>/dev/null) ]]; }

apt_update()
{
	say "refreshing apt's package lists"
	# a foreign source that is down is no reason to give up
	apt-get update -qq -o Acquire::Retries=2 -o DPkg::Lock::Timeout=300 ||
		say "apt-get update had problems, going on"
}

# A bare machine's apt may know no package yet but those that are installed.
ensure_apt_lists()
{
	local lists

	command -v apt-get >/dev/null || die "this needs Debian or a system made from it"
	lists=$(apt-config shell dir Dir::State::lists/d)
	lists=${lists#dir=\'} lists=${lists%\'}
	# compressed or not
	compgen -G "$lists*_Packages*" >/dev/null || ! is_root || apt_update
}

# Packages may come with services; what we install for a test is not to run.
forbid_services()
{
	local policy=/usr/sbin/policy-rc.d create=/etc/postgresql-common/createcluster.d

	if [[ ! -e $policy.idem ]] && [[ -e $policy ]]; then mv "$policy" "$policy.idem"; fi
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	# nor is a database cluster to be made
	mkdir -p "$create"
	say 'create_main_cluster = false' >"$create/idem.conf"
	FORBIDDEN=1
	UNDO+=(allow_services)
}

allow_services()
{
	local policy=/usr/sbin/policy-rc.d create=/etc/postgresql-common/createcluster.d

	# once: the second time it would be another program's file
	[[ -n $FORBIDDEN ]] || return 0
	FORBIDDEN=
	if [[ -e $policy.idem ]]; then mv "$policy.idem" "$policy"; else rm -f "$policy"; fi
	rm -f "$create/idem.conf"
	rmdir --ignore-fail-on-non-empty "$create" 2>/dev/null || true
}

ensure_packages()
{
	local names missing lock service

	# an argument may name several: apt would take "a b" for the name of one package
	read -ra names <<<"$*"
	mapfile -t missing < <(missing_packages "${names[@]}")
	((${#missing[@]})) || return 0
	if ! is_root; then
		say "These Debian packages are missing; install them, or run $ME as root, which does it:" >&2
		say "  apt-get update" >&2
		if [[ " ${missing[*]} " =~ \ postgresql-[0-9]+\  ]]; then
			# that package makes a server of its own, and starts it
			say "  mkdir -p /etc/postgresql-common/createcluster.d"
			say "  echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/no-main.conf"
		fi >&2
		say "  apt-get install -y --no-install-recommends ${missing[*]}" >&2
		die "packages are missing, nothing was done"
	fi
	exec {lock}</etc/apt
	flock "$lock"
	apt_update
	say "installing with apt: ${missing[*]}"
	forbid_services
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		-o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 \
		"${missing[@]}" >"$T/apt.log" 2>&1 {lock}<&- || { tail -n 30 "$T/apt.log"; die "apt could not install them"; }
	# a service that we brought in is not to start at the next boot either
	for service in pgbouncer redis-server prometheus prometheus-postgres-exporter; do
		if [[ " ${missing[*]} " == *" $service "* ]] && command -v systemctl >/dev/null; then
			systemctl --quiet disable "$service" >/dev/null 2>&1 || true
		fi
	done
	allow_services
	exec {lock}<&-
}

# ---------------------------------------------------------------- PostgreSQL

# With what is needed to build for it: some releases have pgxs in the server's package, none the headers.
pg_installed()
{
	[[ -x /usr/lib/postgresql/$1/bin/initdb && -e /usr/lib/postgresql/$1/lib/pgxs/src/makefiles/pgxs.mk &&
		-e /usr/include/postgresql/$1/server/postgres.h ]]
}

# Can this machine run that version by itself?
pg_native() { pg_installed "$1" || { ensure_apt_lists && in_apt "postgresql-server-dev-$1"; }; }

# The newest that is installed, else the distribution's.
default_pg()
{
	local n

	for n in $(find /usr/lib/postgresql -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null | sort -rn); do
		if [[ $n =~ ^[0-9]+$ ]] && ((n >= OLDEST)) && pg_installed "$n"; then say "$n"; return; fi
	done
	ensure_apt_lists >&2
	n=$(apt-cache depends postgresql 2>/dev/null | sed -n 's/^ *Depends: postgresql-\([0-9]*\)$/\1/p' | sed -n 1p)
	if [[ -z $n ]]; then
		for n in "${!SUITE[@]}" ''; do
			[[ -z $n ]] || ! grep -qx "VERSION_CODENAME=${SUITE[$n]}" /etc/os-release || break
		done
	fi
	[[ -n $n ]] || die "apt knows no PostgreSQL here: run apt-get update"
	say "$n"
}

pg_packages() { say "make gcc libc6-dev postgresql-$1 postgresql-server-dev-$1"; }

# PostgreSQL to run and to build for, without what its development package brings
# for JIT and for tests: a clang, an LLVM, a Python.  Headers and makefiles are enough,
# and those are only unpacked, under $T.
ensure_pg()    # version, further packages
{
	local n=$1 dev=("postgresql-server-dev-$1" libssl-dev) deb triplet lib

	shift
	ensure_packages make gcc libc6-dev "postgresql-$n" "$@"
	! pg_installed "$n" || return 0
	say "fetching headers: ${dev[*]}"
	mkdir "$T/debs"
	if ! (cd "$T/debs" && apt-get download -qq -o Acquire::Retries=3 "${dev[@]}") >"$T/apt.log" 2>&1; then
		cat "$T/apt.log" >&2
		die "could not fetch ${dev[*]}"
	fi
	for deb in "$T"/debs/*.deb; do dpkg-deb -x "$deb" "$T"; done
	rm -r "$T/debs"
	triplet=$(gcc -print-multiarch)
	# links to libraries that the unpacked package does not have itself
	for lib in "$T/usr/lib/$triplet"/*.so; do
		[[ -e $lib ]] || ln -sf "/usr/lib/$triplet/$(readlink "$lib")" "$lib"
	done
	BUILD_ENV=(CPATH="$T/usr/include:$T/usr/include/$triplet" LIBRARY_PATH="$T/usr/lib/$triplet")
}

# A copy of PostgreSQL under $T.  PostgreSQL finds its files relative to its
# binaries, so installing into the copy touches nothing of the system's.
# Copies, because a link would be resolved to the original place.
private_pg()
{
	local n=$1

	mkdir -p "$T/usr/lib/postgresql/$n" "$T/usr/share/postgresql" "$T/usr/include"
	tar cf - -C "/usr/lib/postgresql/$n" --exclude=./lib/bitcode . | tar xf - -C "$T/usr/lib/postgresql/$n"
	cp -a "/usr/share/postgresql/$n" "$T/usr/share/postgresql/"
	[[ -e $T/usr/include/postgresql ]] || ln -s /usr/include/postgresql "$T/usr/include/postgresql"
	give_user "$T/usr"
	PGBIN=$T/usr/lib/postgresql/$n/bin
}

# The sources as they are now, committed or not, without what was built there.
copy_source()
{
	local to=$1 list=$T/sources

	mkdir "$to"
	if ! git -c safe.directory='*' -C "$ROOT" ls-files -zco --exclude-standard >"$list" 2>/dev/null; then
		(cd "$ROOT" && find . -name .git -prune -o -type f -not -name '*.o' -not -name '*.so' -not -name '*.bc' -print0) >"$list"
	fi
	# a file deleted but not committed is listed still
	(cd "$ROOT" && tar cf - --no-recursion --ignore-failed-read --null -T "$list" 2>/dev/null) | tar xf - --no-same-owner -C "$to"
	give_user "$to"
}

# make in a copy of the source; without LLVM's bitcode, which only JIT needs.
# Whatever hangs is to fail.
make_in()
{
	local in=$1

	shift
	as_user "${BUILD_ENV[@]}" timeout --kill-after=10 40m make -s -C "$in" PG_CONFIG="$PGBIN/pg_config" with_llvm=no "$@"
}

# The extension, built from the sources as they are, in the copy.
private_extension()
{
	copy_source "$T/src"
	waited make_in "$T/src" -j"$(nproc)" all install >"$T/build.log" 2>&1 || { cat "$T/build.log"; die "the build failed"; }
}

# A server on a unix socket in $T/s; its superuser is $1, further options follow.
private_server()
{
	local user=$1

	shift
	waited as_user "$PGBIN/initdb" -N -D "$T/s/data" -U "$user" -A trust -E UTF8 --locale=C >"$T/initdb.log" 2>&1 ||
		{ cat "$T/initdb.log"; die "initdb failed"; }
	waited as_user "$PGBIN/pg_ctl" -s -w -D "$T/s/data" -l "$T/s/log" \
		-o "-c listen_addresses='' -c unix_socket_directories='$T/s' $*" start ||
		{ as_user tail -n 20 "$T/s/log"; die "the server did not start"; }
}
