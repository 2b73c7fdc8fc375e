# shellcheck shell=bash
# What benchmarks share: a private redis-server, with a socket at $T/s/redis.  To be
# sourced after scripts/lib.sh; needs the packages redis-server and redis-tools.

# what starts servers, and where this one listens besides
SERVER_AS=(as_user) REDIS_AT=(--port 0)

redis() { as_user redis-cli -s "$T/s/redis" "$@"; }

redis_server()    # options
{
	local i

	# under a name by which the end finds it
	[[ -e $T/redis-server ]] || cp -L "$(command -v redis-server)" "$T/redis-server"
	"${SERVER_AS[@]}" "$T/redis-server" --unixsocket "$T/s/redis" "${REDIS_AT[@]}" --dir "$T/s" \
		--logfile "$T/s/redis.log" --daemonize yes --pidfile "$T/s/redis.pid" "$@" >/dev/null
	for ((i = 0; i < 100; i++)); do
		[[ $(redis ping 2>/dev/null) != PONG ]] || return 0
		sleep 0.05
	done
	die "redis-server did not start"
}

# nothing on disk is what is fastest
fast_redis() { redis_server --save '' --appendonly no; }
