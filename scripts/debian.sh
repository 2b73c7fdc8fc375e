# shellcheck shell=bash
# scripts/test in a folder with another Debian, for a version of PostgreSQL that this
# machine's Debian does not have.  To be sourced, after lib.sh.
#
# debootstrap makes the folder once, under $CACHE: a Debian of the release that SUITE (lib.sh)
# says has that version, or has it in experimental, with the packages that the tests need.  Each
# run copies the sources to its /var/tmp and starts scripts/test there by chroot, in namespaces
# of its own, so that nothing of it is left on the machine.  All of that needs root, and
# the right to mount.  To be rid of a folder, remove it.

CACHE=${IDEM_CACHE:-/var/cache/idempotency-test}

# A namespace of its own, so that mounts and processes go when it goes.  With a folder in
# CHANGES, what is written goes there, and the Debian stays as it is.
in_debian()    # folder, temporary folder for it, command
{
	# shellcheck disable=SC2016
	IDEM_RUN=$T CHANGES=${CHANGES-} unshare --mount --pid --ipc --fork --kill-child bash -euc '
		root=$1 tmp=$2
		shift 2
		if [[ -n $CHANGES ]]; then
			mkdir -p "$CHANGES/upper" "$CHANGES/work" "$CHANGES/root"
			# a file system that is an overlay itself, as in containers, takes none
			mount -t overlay -o "lowerdir=$root,upperdir=$CHANGES/upper,workdir=$CHANGES/work" overlay "$CHANGES/root" 2>/dev/null ||
				cp -a "$root/." "$CHANGES/root"
			root=$CHANGES/root
		fi
		unset CHANGES
		mount -t proc proc "$root/proc"
		mount --rbind /dev "$root/dev"
		mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
		mount --bind "$tmp" "$root/var/tmp"
		exec chroot "$root" /usr/bin/env -C / "$@"' bash "$@"
}

# What runs the tests in the folder: this script's copy there.
test_in_debian()    # folder, arguments of scripts/test
{
	local dir=$1

	shift
	waited in_debian "$dir" "$T/debian" bash /var/tmp/source/scripts/test "$@"
}

# Debian and nothing else, in a folder.
bootstrap_debian()    # suite, folder
{
	local suite=$1 dir=$2 mirror script extra=() rc=0

	ensure_apt_lists
	ensure_packages debootstrap
	# the one this machine uses; where only snapshots or mirrors are reachable, it is
	# shellcheck disable=SC2016
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' | sed -n 1p)
	[[ -n $mirror ]] || die "found no Debian mirror in apt's sources"
	[[ $mirror == http:* ]] || extra+=(--include=ca-certificates)
	# a debootstrap knows only releases older than itself; all are made as sid is
	script=/usr/share/debootstrap/scripts/sid
	say "making a folder with Debian $suite: $dir (about a minute)"
	rm -rf "$dir"
	UNDO+=("rm -rf '$dir'")
	mkdir -p "$dir"
	IDEM_RUN=$T waited timeout --kill-after=10 20m unshare --mount --pid --fork --kill-child debootstrap --variant=minbase "${extra[@]}" \
		"${suite%+*}" "$dir" "$mirror" "$script" >"$T/debootstrap.log" 2>&1 || rc=$?
	((rc == 0)) || { tail -n 20 "$T/debootstrap.log"; die "debootstrap failed"; }
	{
		apt-config dump Acquire::http::Proxy
		# a mirror that stands still is good enough for a test
		say 'Acquire::Check-Valid-Until "false";'
	} >"$dir/etc/apt/apt.conf.d/90test"
	# nor need it survive a crash: dpkg syncs every file
	say force-unsafe-io >"$dir/etc/dpkg/dpkg.cfg.d/90test"
	[[ $suite != *+experimental ]] || say "deb $mirror experimental main" >>"$dir/etc/apt/sources.list"
}

# From experimental comes what is built of PostgreSQL's source, and nothing else.  False if that is not there, or
# cannot be installed on the release; apt says why.  PostgreSQL leaves experimental when it is released.
has_experimental()    # PostgreSQL's version, folder
{
	local n=$1 dir=$2

	printf 'Package: src:postgresql-%s\nPin: release a=experimental\nPin-Priority: 990\n' "$n" >"$dir/etc/apt/preferences.d/90test"
	# shellcheck disable=SC2016
	waited in_debian "$dir" "$T/debian" bash -c '
		apt-get update -qq -o Acquire::Retries=2 || echo "apt-get update had problems, going on"
		apt-get install -qq --simulate --no-install-recommends "$@" 2>&1 | grep -vE "^(Inst|Conf|Remv) "
		exit "${PIPESTATUS[0]}"' bash "postgresql-$n" "postgresql-server-dev-$n"
}

make_debian()    # PostgreSQL's version, suite, folder
{
	local n=$1 suite=$2 dir=$3

	bootstrap_debian "$suite" "$dir.partial"
	if [[ $suite == *+experimental ]] && ! has_experimental "$n" "$dir.partial"; then
		say "skipped: Debian's experimental has no PostgreSQL $n that can be installed on ${suite%+*}"
		say "0 passed, 0 failed, 1 skipped"
		exit 0
	fi
	test_in_debian "$dir.partial" --pg "$n" --only "$(IFS=,; say "${IN_DEBIAN[*]}")" --install || die "could not install the packages in $dir.partial"
	mv "$dir.partial" "$dir"
}

may_mount()    # what for
{
	is_root || die "$1 needs a folder with another Debian, and that needs root"
	unshare --mount --pid --ipc --fork true 2>"$T/unshare.log" ||
		die "$1 needs a folder with another Debian, and for that the right to mount, which is not given here" \
			"($(head -n 1 "$T/unshare.log")): run it outside of the chroot or container"
}

# pg_upgrade needs an older PostgreSQL beside the new one.  This machine's own goes along, with the
# extension and the libraries it was made with, and each of its programs is started with those.  It runs
# there if the folder's libc is no older than this machine's, else the test skips.
lend_pg()
{
	local n to=$T/debian/older there=/var/tmp/older program

	n=$(default_pg)
	pg_installed "$n" || return 0
	say "building the extension for PostgreSQL $n, to upgrade from"
	private_pg "$n"
	private_extension
	mkdir -p "$to/lib"
	mv "$T/usr" "$to/"
	# not libc, which goes with the dynamic linker
	{ find "$to/usr/lib/postgresql/$n" -type f \( -name '*.so' -o -path '*/bin/*' \) -exec ldd {} + 2>/dev/null || true; } |
		sed -nE 's,.* => (/[^ ]+) .*,\1,p' | sort -u | grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv)\.so' |
		xargs -r cp -Lt "$to/lib"
	for program in "$to/usr/lib/postgresql/$n/bin"/*; do
		[[ $program != *.pl && -f $program && $(head -c 2 "$program") != '#!' ]] || continue
		mv "$program" "$program.plain"
		# shellcheck disable=SC2016
		printf '#!/bin/bash\nexport LD_LIBRARY_PATH=%s\nexec -a "$0" "$0.plain" "$@"\n' "$there/lib" >"$program"
		chmod 755 "$program"
	done
	export IDEM_OLD_BINDIR=$there/usr/lib/postgresql/$n/bin
}

run_in_debian()    # PostgreSQL's version, further arguments of scripts/test
{
	local n=$1 suite=${SUITE[$1]-} dir lock

	[[ -n $suite ]] || die "PostgreSQL $n is not in this machine's apt, and no Debian release is known to have it"
	may_mount "PostgreSQL $n"
	dir=$CACHE/debian-$suite
	mkdir -p "$CACHE" "$T/debian"
	chmod 1777 "$T/debian"
	copy_source "$T/debian/source"
	exec {lock}<"$CACHE"
	flock "$lock"
	[[ -d $dir ]] || make_debian "$n" "$suite" "$dir"
	exec {lock}<&-
	say "running in $dir"
	test_in_debian "$dir" --pg "$@"
}
