#!/usr/bin/env bash
# Boots systemd as process 1 of namespaces of its own, network included, with the
# files of examples/systemd and an imitation of the API, and does there what an
# operator does: starts, calls, reloads, rotates secrets, restarts under traffic,
# stops. All that it mounts or starts ends with it.
#
# Run it:   CADDY=/path/to/caddy examples/check/boot.sh    (a Caddy with the sandbox)
# Needs:    root, systemd, util-linux, curl, a cgroup2 that is mounted. It exits with
#           status 77 where that is missing.
set -euo pipefail
set -E
trap 'echo "$0: line $LINENO: $BASH_COMMAND ends with status $?" >&2' ERR
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
boot=$PWD/examples/check/boot.sh

# --- outside

outside() {
	[ "$(id -u)" = 0 ] || { echo "systemd can be booted by root only"; exit 77; }
	local cgroup2
	cgroup2=$(findmnt -n -t cgroup2 -o TARGET | head -1)
	[ -n "$cgroup2" ] && [ -x /lib/systemd/systemd ] || { echo "no cgroup2, or no systemd"; exit 77; }
	export WORK CGROUP=$cgroup2/egress-check-$$
	WORK=$(mktemp -d)
	init= finder=
	finish() {
		trap - EXIT
		if [ -n "$init" ]; then
			kill -9 "$init" 2>/dev/null || true # unshare, and by --kill-child all the rest
			wait "$init" 2>/dev/null || true
		fi
		local _
		for _ in {1..50}; do
			find "$CGROUP" -depth -type d -exec rmdir {} \; 2>/dev/null || true
			[ -d "$CGROUP" ] || break
			sleep 0.1
		done
		rm -rf "$WORK"
	}
	trap finish EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	mkdir "$CGROUP" 2>/dev/null || { echo "no cgroup can be made in $cgroup2"; exit 77; }
	chmod 755 "$WORK"
	install -m 755 "$CADDY" "$WORK/caddy"

	bash -c 'echo $$ >"$CGROUP/cgroup.procs" && exec unshare --fork --pid --mount --cgroup --ipc --uts --net --kill-child '"$boot"' init' >"$WORK/init.log" 2>&1 &
	init=$!
	local _ pid=
	for _ in {1..100}; do
		pid=$(cat "/proc/$init/task/$init/children" 2>/dev/null || true)
		pid=${pid%% *}
		[ -z "$pid" ] || ! inside "$pid" systemctl is-active --quiet check.target 2>/dev/null || break
		kill -0 "$init" 2>/dev/null || break
		sleep 0.1
	done
	if ! kill -0 "$init" 2>/dev/null || ! inside "$pid" systemctl is-active --quiet check.target; then
		echo "systemd does not start in namespaces here:"
		tail -5 "$WORK/init.log"
		exit 77
	fi
	inside "$pid" "$boot" operate
}

inside() { # PID COMMAND...
	local pid=$1
	shift
	nsenter -t "$pid" --mount --pid --cgroup --ipc --uts --net "$@"
}

# --- process 1 of the namespaces

become_init() {
	mount --make-rprivate /
	umount -R /sys/fs/cgroup 2>/dev/null || true
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	mount -t proc proc /proc
	local at
	# nothing of this machine's own services, and nothing that stays
	for at in /run /usr/local/bin /lib/systemd/system /lib/systemd/system-generators /var/lib; do
		mount -t tmpfs -o mode=755 tmpfs "$at"
	done
	cp -a /etc /run/etc
	rm -rf /run/etc/systemd/system/*
	mount --bind /run/etc /etc
	mkdir -p /var/lib/private /run/systemd/system
	chmod 700 /var/lib/private
	cp "$WORK/caddy" /usr/local/bin/caddy
	local target
	for target in sysinit basic sockets shutdown network network-online multi-user check; do
		printf '[Unit]\nDefaultDependencies=no\n' >/lib/systemd/system/$target.target
	done
	mount --make-rshared / # systemd hands mounts over to services like that
	exec env container=check /lib/systemd/systemd --system --unit=check.target --log-target=console --show-status=0
}

# --- what an operator does

say() { printf '%3d s  %s\n' "$SECONDS" "$*"; }
die() {
	say "FAIL  $*"
	systemctl status --no-pager -n 0 caddy-egress.service caddy-egress.socket || true
	grep -v '"http.log.access"' /run/gateway.log | tail -10 || true
	exit 1
}
pass() { say "ok    $*"; }
expect() { # WHAT WANT COMMAND...
	local what=$1 want=$2 got
	shift 2
	got=$("$@" 2>&1) || true
	[ "$got" = "$want" ] || die "$what: $got, want $want"
	pass "$what"
}
eventually() { # WHAT WANT COMMAND...
	local what=$1 want=$2 got tries
	shift 2
	for tries in {1..100}; do
		got=$("$@" 2>&1) || true
		[ "$got" != "$want" ] || break
		sleep 0.1
	done
	[ "$got" = "$want" ] || die "$what: $got, want $want"
	pass "$what"
}
code() { curl -s --noproxy '*' --max-time 30 -o /dev/null -w '%{http_code}' "$@"; }
vouchers() { code -H "Authorization: Bearer $1" http://127.0.0.1:8080/v1/vouchers; }
admin=unix//run/caddy-egress/admin.sock
secrets=/etc/caddy-egress/secrets
status() { caddy egress status promo --address "$admin" | awk 'NR == 2 { print $3, $(NF - '"${1:-0}"') }'; }
from() { caddy egress status --json --address "$admin" | sed -n 's/.*"token_from": *"\([a-z]*\)".*/\1/p'; }
stats() { curl -s --noproxy '*' http://127.0.0.1:9002/sandbox/stats | sed -n 's/.*"'"$1"'":\([0-9]*\).*/\1/p'; }
property() { systemctl show -P "$1" caddy-egress.service; }

# api PASSWORD... starts an imitation of Voucherify that accepts one secret.
api() {
	systemctl stop api.service 2>/dev/null || true
	cat >/run/api.caddyfile <<-EOF
		{
			admin off
			persist_config off
			auto_https off
		}
		http://127.0.0.1:9002 {
			sandbox voucherify {
				app_id sandbox
				app_token $1
			}
		}
	EOF
	systemctl start api.service
}

operate() {
	PATH=/usr/local/bin:$PATH
	local here=examples/systemd
	# as its Caddyfile says
	install -d -m 755 /etc/caddy-egress
	sed 's,egress promo {,&,; s,credential promo voucherify {,credential promo voucherify http://127.0.0.1:9002 {,' $here/Caddyfile >/etc/caddy-egress/Caddyfile
	install -m 644 $here/caddy-egress.service $here/caddy-egress.socket /etc/systemd/system/
	install -d -m 700 $secrets
	umask 077
	echo sandbox >$secrets/app_id
	echo secret-1-of-the-test >$secrets/app_token
	caddy egress key >$secrets/web-shop
	cat >/run/systemd/system/api.service <<-EOF
		[Unit]
		DefaultDependencies=no
		[Service]
		Type=notify
		ExecStart=/usr/local/bin/caddy run --config /run/api.caddyfile
	EOF
	install -d -m 755 /run/systemd/system/caddy-egress.service.d
	printf '[Service]\nStandardError=append:/run/gateway.log\nStandardOutput=append:/run/gateway.log\n' >/run/systemd/system/caddy-egress.service.d/log.conf
	systemctl daemon-reload
	api secret-1-of-the-test

	systemctl start caddy-egress.socket caddy-egress.service || die "the service does not start"
	pass "the service starts, with all of its hardening"
	local key pid
	key=$(cat $secrets/web-shop)
	eventually "the gateway is ready" 200 code http://127.0.0.1:8080/ready
	expect "a caller is served" 200 vouchers "$key"
	expect "nobody else is" 401 vouchers another
	pid=$(property MainPID)
	expect "it runs as a user of its own" 1 awk '/^Uid:/ { print ($2 >= 61184) }' /proc/"$pid"/status
	expect "it has no capability" 0000000000000000 awk '/^CapBnd:/ { print $2 }' /proc/"$pid"/status
	expect "it filters system calls" 2 awk '/^Seccomp:/ { print $2 }' /proc/"$pid"/status
	expect "nobody may read its secrets by the config" "" grep -F secret-1-of-the-test /run/gateway.log
	expect "its secrets are copies" 400 stat -c %a /run/credentials/caddy-egress.service/app_token
	# of any unix socket Caddy says that it does not check the Host of requests there
	if grep '"level":"\(error\|warn\)"' /run/gateway.log | grep -v -e 'host checking disabled' -e caller_unknown; then die "the log has warnings"; fi
	pass "the log has no warnings"

	sed -i 's/^\tlog$/\tlog\n\theader X-Reloaded yes/' /etc/caddy-egress/Caddyfile
	systemctl reload caddy-egress.service || die "the service does not reload"
	expect "a reload takes the new config" yes curl -s --noproxy '*' -o /dev/null -w '%header{x-reloaded}' http://127.0.0.1:8080/ready
	expect "a reload keeps the process" "$pid" property MainPID
	sed -i 's/^\tlog$/&\n\tnonsense/' /etc/caddy-egress/Caddyfile
	if systemctl reload caddy-egress.service 2>/dev/null; then die "a reload with a wrong config succeeds"; fi
	expect "after a reload that fails the gateway serves" 200 vouchers "$key"
	sed -i '/nonsense/d' /etc/caddy-egress/Caddyfile

	local before
	before=$(stats token_requests)
	systemctl restart caddy-egress.service || die "the service does not restart"
	eventually "after a restart the gateway is ready" 200 code http://127.0.0.1:8080/ready
	expect "it uses the token of the run before" shared from
	expect "the restart costs no token request" "$before" stats token_requests
	traffic "$key"
	systemctl restart caddy-egress.service || die "the service does not restart"
	settle "a restart under traffic refuses no connection"

	# LoadCredential: at the next start
	api secret-2-of-the-test
	echo secret-2-of-the-test >$secrets/app_token
	systemctl reload caddy-egress.service
	expect "a reload does not take a new secret from LoadCredential" secret-1-of-the-test cat /run/credentials/caddy-egress.service/app_token
	if caddy egress refresh promo --address "$admin" >/dev/null 2>&1; then die "the old secret is accepted"; fi
	systemctl restart caddy-egress.service
	eventually "a restart takes the new secret" 200 vouchers "$key"

	# the files themselves: at once
	groupadd --system egress-secrets
	chgrp -R egress-secrets $secrets
	chmod 750 $secrets
	chmod 640 $secrets/*
	install -d /etc/systemd/system/caddy-egress.service.d
	install -m 644 $here/live-secrets.conf /etc/systemd/system/caddy-egress.service.d/
	systemctl daemon-reload
	systemctl restart caddy-egress.service || die "the service does not start with live-secrets.conf"
	eventually "with live-secrets.conf a caller is served" 200 vouchers "$key"
	[ ! -e /run/credentials/caddy-egress.service/app_token ] || die "a copy of the secret is left"
	api secret-3-of-the-test
	(umask 027 && echo secret-3-of-the-test >$secrets/app_token.new)
	chgrp egress-secrets $secrets/app_token.new
	mv $secrets/app_token.new $secrets/app_token
	caddy egress refresh promo --address "$admin" >/dev/null || die "the new secret is not used"
	expect "a new secret counts without a reload" 200 vouchers "$key"

	systemctl stop caddy-egress.socket caddy-egress.service
	expect "it stops without a failure" success property Result
	expect "nothing listens after that" 000 code http://127.0.0.1:8080/ready
	expect "its state is kept" 1 bash -c 'find /var/lib/private/caddy-egress -path "*egress/tokens*" -type f | wc -l'
	if grep -F -e secret-1 -e secret-2 -e secret-3 -e "$key" /run/gateway.log; then die "the log has a secret"; fi
	say "all is well"
}

# traffic KEY calls the gateway until settle, each time over a new connection.
traffic() {
	rm -f /run/traffic.*
	(
		while [ ! -e /run/traffic.stop ]; do
			local status=0
			vouchers "$1" >>/run/traffic.codes || status=$?
			echo " $status" >>/run/traffic.codes
		done
	) &
	traffic=$!
	sleep 0.5
}
# settle ends it. A connection that the old process has accepted, and on which it has
# not yet read a request, ends without an answer (curl's status 52 or 56): of those
# there may be one. None may be refused (7).
settle() { # WHAT
	sleep 0.5
	touch /run/traffic.stop
	wait "$traffic"
	local cut failed
	cut=$(grep -c '^000 5[26]$' /run/traffic.codes || true)
	failed=$(grep -vc -e '^200 0$' -e '^000 5[26]$' /run/traffic.codes || true)
	[ "$failed" = 0 ] && [ "$cut" -le 1 ] || die "$1: $(sort /run/traffic.codes | uniq -c | tr '\n' ' ')"
	pass "$1 ($(wc -l </run/traffic.codes) sent, $cut cut off)"
}

case ${1:-} in
init) become_init ;;
operate) operate ;;
*) outside ;;
esac
