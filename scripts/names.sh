# shellcheck shell=bash
# Tests of scripts/test by name: what was typed, found in sql/, specs/ and t/, and put into
# the lists that make runs.  To be sourced, after lib.sh; reads NAMES, sets PARTS.
#
#   lease          sql/lease.sql
#   iso-once       specs/iso-once*.spec
#   t/018          t/018*.pl
#   t/throttle     t/*_throttle*.pl
#   sql/lease.sql, specs/iso-once.spec, t/018_throttle.pl: that file alone

REGRESS=()
ISOLATION=()
TAP=()

wrong() { printf '%s: %s\n' "$ME" "$*" >&2; exit 2; }

# The files of tests that a pattern matches.
files() { (cd "$ROOT" && compgen -G "$1") || true; }

# What comes close to a name: one a line, the closest first.
close_to()
{
	# letters to change, insert or delete; what contains the name is as close as one of them
	{ files 'sql/*.sql'; files 'specs/*.spec'; files 't/[0-9]*.pl'; } | sed -E 's,^(sql|specs)/,,; s,\.[a-z]+$,,' | awk -v name="$1" '
		function min(a, b) { return a < b ? a : b }
		function distance(a, b,    d, i, j, n, m)
		{
			n = length(a)
			m = length(b)
			for (i = 0; i <= n; i++) d[i, 0] = i
			for (j = 0; j <= m; j++) d[0, j] = j
			for (i = 1; i <= n; i++)
				for (j = 1; j <= m; j++)
					d[i, j] = min(min(d[i - 1, j], d[i, j - 1]) + 1, d[i - 1, j - 1] + (substr(a, i, 1) != substr(b, j, 1)))
			return d[n, m]
		}
		{
			short = $0
			sub(/^t\/[0-9]+_/, "", short)
			near = min(distance(name, $0), min(distance(name, short), distance(name, substr($0, 1, length(name)))))
			if (index($0, name)) near = 1
			if (near <= 2 || near <= length(name) / 3) print near, $0
		}' | sort -n | head -n 5 | cut -d" " -f2
}

# Put the tests that the user named into the lists.
find_tests()
{
	local name base found close

	for name in "${NAMES[@]}"; do
		found=()
		base=${name##*/}
		case $name in
			*[!A-Za-z0-9_./-]*) ;;
			sql/*.sql | specs/*.spec) mapfile -t found < <(files "$name") ;;
			t/[0-9]*) mapfile -t found < <(files "t/${base%.pl}*.pl") ;;
			t/*) mapfile -t found < <(files "t/[0-9]*_${base%.pl}*.pl") ;;
			iso-*) mapfile -t found < <(files "specs/$name*.spec") ;;
			*) mapfile -t found < <(files "sql/$name.sql") ;;
		esac
		if ((${#found[@]} == 0)); then
			[[ " ${ALL[*]} " != *" $name "* ]] || wrong "\"$name\" is a part, not a test:  $ME --only $name"
			close=$(close_to "${name%.*}" | paste -sd ' ')
			close=${close:+close to it: $close}
			wrong "there is no test \"$name\"; ${close:-the tests are sql/*.sql, specs/*.spec and t/*.pl}"
		fi
		for base in "${found[@]}"; do
			case $base in
				sql/*) add_to REGRESS "$(basename "$base" .sql)" ;;
				specs/*) add_to ISOLATION "$(basename "$base" .spec)" ;;
				t/*) add_to TAP "$base" ;;
			esac
		done
	done
	# "install" finds no extension, or it fails
	if [[ " ${REGRESS[*]} " == *" install "* ]]; then
		mapfile -t found < <(printf '%s\n' "${REGRESS[@]}" | grep -vx install)
		REGRESS=(install "${found[@]}")
	fi
	PARTS=()
	((${#REGRESS[@]} == 0)) || PARTS+=(regress)
	((${#ISOLATION[@]} == 0)) || PARTS+=(isolation)
	((${#TAP[@]} == 0)) || PARTS+=(tap)
}

# What makes make run the named tests only.
named()    # its variable, tests
{
	local variable=$1

	shift
	(($# == 0)) || say "$variable=$*"
}

# A name comes once, however often it was asked for.
add_to()    # list, name
{
	local -n list=$1

	[[ " ${list[*]} " == *" $2 "* ]] || list+=("$2")
}
