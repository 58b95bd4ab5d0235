#!/usr/bin/env bash
# Checks the rules and the dashboard beside this file against the real thing:
# starts the gateway with the sandboxes and a Prometheus, sends requests, breaks
# one thing after the other, and looks whether each alert fires in its fault and
# clears after, and whether every query of the dashboard returns data.
#
# Run it:   examples/observability/check.sh            (builds Caddy)
#           CADDY=/path/to/caddy examples/observability/check.sh
# Needs:    bash, curl, jq, sed; prometheus and promtool; Go without CADDY. The
#           Caddy has to contain the sandbox.
# You see:  a line for each check, and status 1 if one fails. It takes about
#           a minute, for which windows, waits and token lifetimes are
#           shortened in copies of the files. It listens on 127.0.0.1 only, on
#           free ports, and ends what it has started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=examples/observability

limit=180 # seconds for all of it
failures=0
pids=()
gateway_pid=
work=$(mktemp -d)

finish() {
	local status=$? pid
	trap - EXIT
	for pid in "${pids[@]}" $gateway_pid; do
		kill "$pid" 2>/dev/null || true
	done
	for pid in "${pids[@]}" $gateway_pid; do
		wait "$pid" 2>/dev/null || true
	done
	rm -rf "$work"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '%3d s  %s\n' "$SECONDS" "$*"; }
pass() { say "ok    $*"; }
fail() {
	say "FAIL  $*"
	failures=$((failures + 1))
}
die() {
	say "FAIL  $*" >&2
	exit 1
}

for program in prometheus promtool curl jq sed; do
	command -v "$program" >/dev/null || die "$program is missing: install it (Debian and Ubuntu have prometheus and promtool in the package prometheus)"
done

# --- the files by themselves

check() { # NAME COMMAND...
	local name=$1
	shift
	if "$@" >"$work/output" 2>&1; then pass "$name"; else
		fail "$name"
		cat "$work/output"
	fi
}
# every alert has a runbook, where its link points to
runbooks() {
	local alert
	for alert in $alerts; do
		grep -q "docs/operations.md#${alert,,}\$" $here/rules.yml || { echo "$alert: no link to its runbook"; return 1; }
		grep -qx "#\+ $alert" docs/operations.md || { echo "$alert: no such heading in docs/operations.md"; return 1; }
		grep -q "alertname: $alert\$" $here/rules_test.yml || { echo "$alert: no unit test"; return 1; }
	done
}

alerts=$(sed -n 's/^ *- alert: //p' $here/rules.yml)
check "promtool accepts prometheus.yml and rules.yml" promtool check config $here/prometheus.yml
check "promtool's unit tests of the rules pass" promtool test rules $here/rules_test.yml
check "every alert has a runbook and a unit test" runbooks
check "dashboard.json is JSON" jq -e .panels $here/dashboard.json

# --- the gateway, the sandboxes and Prometheus, on free ports

used=()
free_port() { # sets port; ports that systems give to clients begin at 32768
	local i
	for i in {1..50}; do
		port=$((20000 + RANDOM % 12000))
		[[ " ${used[*]} " != *" $port "* ]] || continue
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue
		used+=("$port")
		return
	done
	die "no free port found"
}
free_port && gateway=127.0.0.1:$port
free_port && probes=127.0.0.1:$port
free_port && understory=127.0.0.1:$port
free_port && voucherify=127.0.0.1:$port
free_port && admin=127.0.0.1:$port
free_port && prometheus=127.0.0.1:$port

if [ -z "${CADDY:-}" ]; then
	CADDY=$work/caddy
	go build -o "$CADDY" ./cmd/caddy
	SECONDS=0 # for those who have built it before
fi
"$CADDY" list-modules | grep -x http.handlers.sandbox >/dev/null || die "$CADDY contains no sandbox"

sed -e "s,http://:8080,http://$gateway,; s/127\.0\.0\.1:8080/$gateway/g; s/127\.0\.0\.1:8081/$probes/g" \
	-e "s/127\.0\.0\.1:9001/$understory/g; s/127\.0\.0\.1:9002/$voucherify/g" \
	-e "s/lifetime 1m/lifetime 6s/" \
	-e "s/^\tauto_https off/&\n\tadmin $admin\n\tpersist_config off/" $here/Caddyfile >"$work/Caddyfile"
sed -e "s/127\.0\.0\.1:8081/$probes/; s/15s/1s/" $here/prometheus.yml >"$work/prometheus.yml"
sed -e 's/\[[0-9]*m\]/[6s]/g; s/for: [0-9]*m/for: 1s/; s/< 5 \* 60/< 6/' $here/rules.yml >"$work/rules.yml"

export SANDBOX_SECRET=check XDG_DATA_HOME=$work/data XDG_CONFIG_HOME=$work/config
start_gateway() {
	"$CADDY" run --config "$work/Caddyfile" --adapter caddyfile >>"$work/caddy.log" 2>&1 &
	gateway_pid=$!
}
start_gateway
prometheus --config.file="$work/prometheus.yml" --web.listen-address="$prometheus" \
	--storage.tsdb.path="$work/tsdb" --storage.tsdb.retention.time=1h >"$work/prometheus.log" 2>&1 &
pids+=($!)

# --- what is done to them

fetch() { curl -s --noproxy '*' --max-time 5 "$@"; }

# traffic sends some requests at once, four times a second: some of the
# understory ones have to wait together where one waits.
traffic() {
	local rounds=$((limit * 4))
	while [ $((rounds--)) -gt 0 ]; do
		curl -s --noproxy '*' -o /dev/null -m 5 -Z "http://$gateway/understory/v1/me?[1-3]" -o /dev/null \
			-H "@$work/headers" "http://$gateway/voucherify/v1/vouchers?[1-2]" >/dev/null 2>&1 &
		sleep 0.25
	done
	wait
}
: >"$work/headers"
traffic &
pids+=($!)

faults() { # SANDBOX JSON
	local status
	status=$(fetch -o /dev/null -w '%{http_code}' -X PUT "http://$1/sandbox/faults" -d "$2") || true
	[ "$status" = 204 ] || die "the sandbox $1 does not take the faults $2: status $status"
}
# refresh has the gateway try again at once.
refresh() { "$CADDY" egress refresh "$1" --address "$admin" >/dev/null 2>&1 || true; }

# query prints the number of series that a query returns, or why it fails.
query() {
	fetch --data-urlencode "query=$1" "http://$prometheus/api/v1/query" |
		jq -r 'if .status == "success" then .data.result | length else .error end' || echo "no answer"
}

# eventually waits until the query returns something (some) or nothing (none).
eventually() { # SECONDS some|none QUERY
	local tries=$(($1 * 4)) got
	while [ $((tries--)) -gt 0 ] && [ "$SECONDS" -lt "$limit" ]; do
		got=$(query "$3")
		case $2:$got in
		none:0) return ;;
		some:[1-9]*) return ;;
		esac
		sleep 0.25
	done
	return 1
}
firing() { # ALERT[/CREDENTIAL]
	local credential=
	[ "$1" = "${1#*/}" ] || credential=", credential=\"${1#*/}\""
	echo "ALERTS{alertname=\"${1%%/*}\", alertstate=\"firing\"$credential}"
}
declare -A seen
fires() { # FAULT ALERT...
	local fault=$1 alert
	shift
	for alert in "$@"; do
		if eventually 20 some "$(firing "$alert")"; then
			pass "$alert fires: $fault"
			seen[${alert%%/*}]=1
		else
			fail "$alert does not fire: $fault"
		fi
	done
}
clears() { # ALERT...
	local alert
	for alert in "$@"; do
		if eventually 25 none "$(firing "$alert")"; then pass "$alert clears"; else fail "$alert does not clear"; fi
	done
}

# --- all is well

for tries in {1..60}; do
	[ "$(fetch -o /dev/null -w '%{http_code}' "http://$probes/ready" || true)" != 200 ] || break
	sleep 0.25
done
[ "$tries" -lt 60 ] || { tail -5 "$work/caddy.log"; die "the gateway is not ready"; }
pass "the gateway is ready"
eventually 20 some 'rate(caddy_egress_requests_total{outcome="forwarded", credential="promo"}[6s]) > 0' ||
	{ tail -5 "$work/prometheus.log"; die "Prometheus gets no metrics of the gateway"; }
pass "Prometheus gets the metrics of the gateway"
sleep 3
if eventually 1 none 'ALERTS{alertstate="firing"}'; then pass "no alert fires"; else fail "an alert fires though all is well"; fi

# --- one fault after the other, at both APIs and the storage at once

faults "$understory" '{"token":{"status":503}}'
faults "$voucherify" '{"api":{"status":401}}'
fires "the token endpoint answers 503" EgressTokenExpiring/bookings EgressTokenEndpointFailing/bookings EgressRequestsFailing/bookings
fires "the API answers 401" EgressUnauthorized/promo
faults "$understory" '{}'
faults "$voucherify" '{}'
refresh bookings
clears EgressTokenExpiring/bookings EgressTokenEndpointFailing/bookings EgressRequestsFailing/bookings EgressUnauthorized/promo

faults "$understory" '{"api":{"status":429,"retry_after":"2"}}'
faults "$voucherify" '{"token":{"status":400,"body":"{\"error\":\"invalid_client\"}"}}'
fires "the API answers 429" EgressRateLimited/bookings
fires "the token endpoint answers 400 invalid_client" EgressCredentialRefused/promo EgressRequestsFailing/promo
faults "$understory" '{}'
faults "$voucherify" '{}'
refresh promo
clears EgressRateLimited/bookings EgressCredentialRefused/promo EgressRequestsFailing/promo

echo "Pretend-Silent: yes" >"$work/headers"
fires "the API ends connections without an answer" EgressAPIUnreachable/promo
: >"$work/headers"
clears EgressAPIUnreachable/promo

# root may write where permissions forbid it, but nobody where a file is in the way
storage=$XDG_DATA_HOME/caddy/egress
mv "$storage" "$storage.away"
touch "$storage"
faults "$understory" '{"token":{"latency":"5s"}}'
echo "Pretend-Remaining: 7" >"$work/headers"
fires "the token endpoint takes 5 s" EgressRequestsWaiting/bookings
fires "the API says that 7 calls are left" EgressQuotaLow/promo
fires "a file is where shared tokens are stored" EgressStoreFailing
if eventually 1 none 'increase(caddy_egress_requests_total{outcome!="forwarded", credential="promo"}[6s]) > 0'; then
	pass "requests are served meanwhile"
else
	fail "requests are not served meanwhile"
fi
rm "$storage"
mv "$storage.away" "$storage"
faults "$understory" '{}'
: >"$work/headers"
clears EgressRequestsWaiting/bookings EgressQuotaLow/promo EgressStoreFailing

kill "$gateway_pid"
wait "$gateway_pid" 2>/dev/null || true
gateway_pid=
fires "the gateway is stopped" EgressDown
start_gateway
clears EgressDown

for alert in $alerts; do
	[ -n "${seen[$alert]:-}" ] || fail "$alert has not fired in any fault"
done
if eventually 25 none 'ALERTS{alertstate="firing"}'; then pass "no alert fires in the end"; else fail "an alert fires though all is mended"; fi

# --- the dashboard

# The windows are those of the whole run, so that every fault is in one.
queries() {
	jq -r '.panels[] | .title as $panel | .targets[]? |
		[$panel, ([.legendFormat | scan("{{(\\w+)}}")[]] | join(" ")), .expr] | @tsv' $here/dashboard.json |
		sed -e 's/\\\\/\\/g; s/\$__rate_interval/5m/g; s/\$\(job\|instance\|credential\|server\)/.*/g'
	jq -r '.templating.list[] | select(.type == "query") | [.name, .name, .definition] | @tsv' $here/dashboard.json |
		sed -e 's/\$\(job\|instance\|credential\|server\)/.*/g; s/label_values(\(.*\), \([a-z]*\))$/group by (\2) (\1)/'
}
eventually 10 some 'caddy_egress_rate_limit_remaining' || true # after the restart

# lacking prints the labels of those named that no series of a query has.
lacking() { # LABELS QUERY
	fetch --data-urlencode "query=$2" "http://$prometheus/api/v1/query" |
		jq -r --arg labels "$1" '($labels | split(" ")) - [.data.result[].metric | keys[]] | join(" ")'
}
asked=0
while IFS='|' read -r panel labels expr; do
	asked=$((asked + 1))
	got=$(query "$expr")
	case $got in
	[1-9]*)
		missing=$(lacking "$labels" "$expr")
		[ -z "$missing" ] || fail "dashboard, $panel: no label $missing: $expr"
		;;
	*) fail "dashboard, $panel: $got series: $expr" ;;
	esac
done < <(queries | sed 's/\t/|/; s/\t/|/') # read would take two tabs for one
[ "$asked" -gt 20 ] || fail "only $asked queries were found in the dashboard"
pass "asked the $asked queries of the dashboard"

if [ "$failures" -gt 0 ]; then
	say "$failures checks failed; the gateway's log ends with:"
	grep -v '"http.log.access"' "$work/caddy.log" | tail -20
	exit 1
fi
say "all is well"
