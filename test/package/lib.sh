# shellcheck shell=bash
# What the steps of scripts/package share; they run as root in a folder with a Debian.

set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin

# Into the log, and where step() of scripts/package reads it.
result()    # exit code, what
{
	if (($1 == 0)); then printf 'ok %s\n' "$2"; else printf 'FAILED %s\n' "$2"; fi | tee -a /var/tmp/results
}

# A command whose exit code is the result.
check()    # what, command
{
	local what=$1 rc=0

	shift
	"$@" || rc=$?
	result "$rc" "$what"
}

same() { [[ $1 == "$2" ]] || { printf 'got: %s\nnot: %s\n' "$1" "$2"; return 1; }; }

apt_get() { apt-get -y -qq -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 --no-install-recommends "$@"; }
