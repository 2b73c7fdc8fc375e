# shellcheck shell=bash
# scripts/test in a folder with another Debian, for a version of PostgreSQL that this
# machine's Debian does not have.  To be sourced, after lib.sh.
#
# debootstrap makes the folder once, under $CACHE: a Debian of the release that SUITE (lib.sh)
# says has that version, with the packages that the tests need.  Each run copies the
# sources to its /var/tmp and starts scripts/test there by chroot, in namespaces of
# its own, so that nothing of it is left on the machine.  All of that needs root, and
# the right to mount.  To be rid of a folder, remove it.

CACHE=${IDEM_CACHE:-/var/cache/idempotency-test}

# A namespace of its own, so that mounts and processes go when it goes.
in_debian()    # folder, temporary folder for it, command
{
	# shellcheck disable=SC2016
	IDEM_RUN=$T unshare --mount --pid --ipc --fork --kill-child bash -euc '
		root=$1 tmp=$2
		shift 2
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

make_debian()    # PostgreSQL's version, suite, folder
{
	local n=$1 suite=$2 dir=$3 mirror script extra=() rc=0

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
	rm -rf "$dir.partial"
	UNDO+=("rm -rf '$dir.partial'")
	mkdir -p "$dir.partial"
	IDEM_RUN=$T waited unshare --mount --pid --fork --kill-child debootstrap --variant=minbase "${extra[@]}" \
		"$suite" "$dir.partial" "$mirror" "$script" >"$T/debootstrap.log" 2>&1 || rc=$?
	((rc == 0)) || { tail -n 20 "$T/debootstrap.log"; die "debootstrap failed"; }
	{
		apt-config dump Acquire::http::Proxy
		# a mirror that stands still is good enough for a test
		say 'Acquire::Check-Valid-Until "false";'
	} >"$dir.partial/etc/apt/apt.conf.d/90test"
	test_in_debian "$dir.partial" --pg "$n" --only "$(IFS=,; say "${IN_DEBIAN[*]}")" --install || die "could not install the packages in $dir.partial"
	mv "$dir.partial" "$dir"
}

run_in_debian()    # PostgreSQL's version, further arguments of scripts/test
{
	local n=$1 suite=${SUITE[$1]-} dir lock

	[[ -n $suite ]] || die "PostgreSQL $n is not in this machine's apt, and no Debian release is known to have it"
	is_root || die "PostgreSQL $n needs a folder with Debian $suite, and that needs root:  sudo $ME --pg $n"
	unshare --mount --pid --ipc --fork true 2>"$T/unshare.log" ||
		die "PostgreSQL $n needs a folder with Debian $suite, and for that the right to mount, which is not given here" \
			"($(head -n 1 "$T/unshare.log")): run it outside of the chroot or container, or in one with Debian $suite"
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
