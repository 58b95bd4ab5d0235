#!/usr/bin/env bash
# Runs all of examples/fleet on this machine: an imitation of the API, three
# gateways that share one token, and the load balancer in front of them. A gateway
# that ends is started anew. The Caddyfile beside this says what to try.
#
# Run it:   examples/fleet/run.sh           (builds Caddy)
#           CADDY=/path/to/caddy examples/fleet/run.sh
# Needs:    bash; Go without CADDY. The Caddy has to contain the sandbox.
# Ends:     with Ctrl-C, with all that it has started.
# Logs:     in the directory that it prints, which is removed with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=examples/fleet

umask 077
work=$(mktemp -d)
pids=()
finish() {
	trap - EXIT
	local pid
	for pid in "${pids[@]}"; do
		kill "$pid" 2>/dev/null || true
	done
	wait
	rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -z "${CADDY:-}" ]; then
	echo "building Caddy"
	CADDY=$work/caddy
	go build -o "$CADDY" ./cmd/caddy
fi
export CLIENT_SECRET=sandbox-secret SHOP_KEY
SHOP_KEY=$("$CADDY" egress key)
export STORAGE=${STORAGE:-file_system $work/storage}

# start NAME CADDYFILE runs Caddy in the background; its process ID is in $!.
start() {
	"$CADDY" run --config "$here/$2" --adapter caddyfile 2>>"$work/$1.log" &
	pids+=($!)
}

ports=(8081 8082 8083)
admin_ports=(2021 2022 2023)
gateways=() # their process IDs

# start_gateway INDEX
start_gateway() {
	PORT=${ports[$1]} ADMIN_PORT=${admin_ports[$1]} start "gateway-${ports[$1]}" Caddyfile
	gateways[$1]=$!
	echo "gateway at port ${ports[$1]}, its admin API at ${admin_ports[$1]}: process $!"
}

start api api.caddyfile
start balancer balancer.caddyfile
for index in 0 1 2; do
	start_gateway "$index"
done
echo "logs are in $work"
echo "curl -H 'Authorization: Bearer $SHOP_KEY' http://127.0.0.1:8080/v1/me"

while sleep 1; do
	for index in 0 1 2; do
		if ! kill -0 "${gateways[$index]}" 2>/dev/null; then
			start_gateway "$index"
		fi
	done
done
