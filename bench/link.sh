# shellcheck shell=bash
# What benchmarks share: a link with a round trip of 0.5 ms between the clients and the
# server.  To be sourced after scripts/lib.sh.  Needs root: server and clients get a
# network namespace each.
#
# The server of $T/s is started with SETTINGS; "round_trip socket" and "round_trip link"
# print the milliseconds of a SELECT 1.

SERVER_NET=idem-server-$$ CLIENT_NET=idem-client-$$
SERVER_IP=10.231.0.1 CLIENT_IP=10.231.0.2
ROUND_TRIP=500 # microseconds that the link adds to a SELECT 1
WIRE=

# as_user in a network namespace; unix sockets are reached from all of them
export -f as_user is_root
in_net()
{
	local net=/run/netns/$1

	shift
	# shellcheck disable=SC2016  # expanded there
	T=$T nsenter --net="$net" bash -c 'as_user "$@"' bash "$@"
}

# Lay the link, or lay it anew.  Kernels without netem get the same from a
# process of ours.
lay_link()    # delay of each direction, microseconds
{
	[[ -z $WIRE ]] || kill "$WIRE"
	ip -n "$SERVER_NET" link delete wire 2>/dev/null || true
	ip -n "$CLIENT_NET" link delete wire 2>/dev/null || true
	WIRE=
	LINK="veth, netem"
	ip -n "$SERVER_NET" link add wire type veth peer name wire netns "$CLIENT_NET"
	if ! tc -n "$SERVER_NET" qdisc add dev wire root netem delay "$1us" 2>/dev/null ||
		! tc -n "$CLIENT_NET" qdisc add dev wire root netem delay "$1us"; then
		# shellcheck disable=SC2034  # for the description of the measurement
		LINK="tun, wire.c, since this kernel has no netem"
		ip -n "$SERVER_NET" link delete wire
		[[ -x $T/wire ]] || cc -O2 -o "$T/wire" "$ROOT/bench/call/wire.c"
		WIRE=$(IDEM_RUN=$T "$T/wire" "$SERVER_NET" "$CLIENT_NET" "$1")
	fi
	ip -n "$SERVER_NET" address add $SERVER_IP/30 dev wire
	ip -n "$CLIENT_NET" address add $CLIENT_IP/30 dev wire
	ip -n "$SERVER_NET" link set wire up
	ip -n "$CLIENT_NET" link set wire up
}

# The same server, restarted where the link is.
make_link()
{
	local delay=$((ROUND_TRIP / 2)) try excess near

	ip netns add "$SERVER_NET"
	UNDO+=("ip netns delete $SERVER_NET")
	ip netns add "$CLIENT_NET"
	UNDO+=("ip netns delete $CLIENT_NET")
	lay_link $delay
	say "host all all $CLIENT_IP/32 trust" | as_user tee -a "$T/s/data/pg_hba.conf" >/dev/null
	waited in_net "$SERVER_NET" "$PGBIN/pg_ctl" -s -w -D "$T/s/data" -l "$T/s/log" \
		-o "-c listen_addresses=$SERVER_IP -c unix_socket_directories='$T/s' ${SETTINGS[*]}" restart

	# the way through the kernel and waking up come on top: less delay, then
	for try in 1 2 3 4; do
		LINK_TRIP=$(round_trip link)
		read -r excess near < <(awk -v socket="$SOCKET_TRIP" -v link="$LINK_TRIP" -v want=$ROUND_TRIP \
			'BEGIN { d = (link - socket) * 1000 - want; print int(d / 2), d * d < 625 }')
		((! near && try < 4 && delay - excess > 0)) || break
		delay=$((delay - excess))
		lay_link $delay
	done
}

# Why is there no link?  Nothing, if there can be one.
no_link()
{
	if ! is_root; then say "not root";
	elif ! command -v ip >/dev/null || ! command -v tc >/dev/null; then say "no iproute2";
	elif ! unshare --net true 2>/dev/null; then say "no network namespaces here"; fi
}
