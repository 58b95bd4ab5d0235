#!/usr/bin/env bash
# Checks the deployments in this directory: each file by the parser, the schema or the
# linter of what reads it, and what runs without an engine or a cluster by running it.
# What needs them is not run: the files say so.
#
# Run it:   examples/check.sh                      (all of them)
#           examples/check.sh systemd container    (or some)
#           CADDY=/path/to/caddy examples/check.sh saves a build; it has to contain the
#           sandbox.
# Needs:    bash, Go, curl; systemd (Debian: systemd). As root it also boots systemd and
#           runs the image's files, in namespaces of their own.
# You see:  a line for each check, and status 1 if one fails. With warm caches it takes
#           about a minute.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

kubectl_validate_version=v0.0.4
kustomize_version=v5.6.0
prometheus_operator_version=v0.85.0
exposure=1.5 # of the service, as systemd-analyze counts it: 10 is the worst

failures=0
say() { printf '%3d s  %s\n' "$SECONDS" "$*"; }
check() { # WHAT COMMAND...
	local what=$1
	shift
	if "$@" >"$work/output" 2>&1; then say "ok    $what"; else
		say "FAIL  $what"
		tail -40 "$work/output"
		failures=$((failures + 1))
	fi
}
# where namespaces cannot be made, status 77 does not count as a failure
try() { # WHAT COMMAND...
	local what=$1 status=0
	shift
	"$@" >"$work/output" 2>&1 || status=$?
	if [ "$status" = 77 ]; then say "left out: $what: $(tail -1 "$work/output")"; else
		mv "$work/output" "$work/kept"
		check "$what" bash -c "cat '$work/kept'; exit $status"
	fi
}

# tool NAME PACKAGE VERSION builds a program in a module of its own.
tool() {
	mkdir -p "$work/tools/$1"
	(cd "$work/tools/$1" && go mod init scratch && go get -tool "$2@$3" && go build -o "$work/$1" "$2") >"$work/tools/$1.log" 2>&1 ||
		{ tail -20 "$work/tools/$1.log"; return 1; }
}
checker() { [ -x "$work/check" ] || (cd examples/check && go build -o "$work/check" .); }
caddy() {
	[ -n "${CADDY:-}" ] || { go build -o "$work/caddy" ./cmd/caddy && export CADDY=$work/caddy; }
}

systemd() {
	command -v systemd-analyze >/dev/null || { say "FAIL  systemd-analyze is missing: install systemd"; failures=$((failures + 1)); return; }
	# it looks for the programs of a service, which are not installed here
	mkdir -p "$work/units"
	cp examples/systemd/*.service examples/systemd/*.socket "$work/units"
	sed -i 's,^\(Exec[A-Za-z]*=\)/usr/local/bin/caddy,\1/bin/true,' "$work/units/caddy-egress.service"
	mkdir -p "$work/units/caddy-egress.service.d"
	check "systemd-analyze accepts the units" quiet systemd-analyze verify --man=no "$work/units/caddy-egress.service" "$work/units/caddy-egress.socket"
	cp examples/systemd/live-secrets.conf "$work/units/caddy-egress.service.d"
	check "systemd-analyze accepts the drop-in" quiet systemd-analyze verify --man=no "$work/units/caddy-egress.service"
	check "the exposure is at most $exposure" exposed
	caddy
	try "systemd runs the service: start, reload, restart under traffic, rotation, stop" examples/check/boot.sh
}
quiet() { # COMMAND... fails if it says anything, too
	local said
	said=$("$@" 2>&1) && [ -z "$said" ] || { echo "$said"; return 1; }
}
exposed() {
	systemd-analyze security --offline=true --no-pager --threshold="$(tr -d . <<<"$exposure")" "$work/units/caddy-egress.service" | tail -1
}

container() {
	checker
	local here=examples/container
	check "BuildKit's linter accepts the Dockerfile" "$work/check" dockerfile $here/Dockerfile
	check "the versions are those of CI" versions
	"$work/check" context $here/Dockerfile.dockerignore . "$work/context"
	check "the build context has no sandbox, no test, no secret" clean "$work/context"
	tool xcaddy github.com/caddyserver/xcaddy/cmd/xcaddy "$(argument XCADDY_VERSION)"
	check "Caddy is built from the context, as the Dockerfile says" build
	check "the image's Caddy has the plugin, and no sandbox" modules
	caddy
	try "the image's files run: read-only, without rights, with nothing else" examples/check/image.sh "$work/image"
}
argument() { sed -n "s/^ARG $1=//p" examples/container/Dockerfile; }
versions() {
	local caddy_version xcaddy_version
	eval "$(grep -E '^(caddy|xcaddy)_version=' .ci/run)"
	[ "$(argument CADDY_VERSION)" = "$caddy_version" ] && [ "$(argument XCADDY_VERSION)" = "$xcaddy_version" ]
}
clean() { # DIRECTORY
	[ -f "$1/module.go" ] && [ -f "$1/examples/container/Caddyfile" ] || { echo "the plugin is missing"; return 1; }
	! find "$1" -type f | grep -E -e /sandbox/ -e _test.go -e /secrets/ -e /e2e/ -e '/\.'
}
# build runs the command of the Dockerfile, and lays out what its last stage copies.
build() {
	local line
	line=$(grep -A1 -- '^ *xcaddy build' examples/container/Dockerfile | sed -e 's/\\$//; s,=/src,='"$work/context"',; s,/out/caddy,'"$work"'/image/usr/bin/caddy,; s/\${CADDY_VERSION}/'"$(argument CADDY_VERSION)"'/' | tr '\n' ' ')
	mkdir -p "$work/image/usr/bin" "$work/image/etc/ssl/certs" "$work/image/etc/caddy" "$work/image/data"
	(cd "$work" && PATH=$work:$PATH CGO_ENABLED=0 bash -xec "$line") || return 1
	cp /etc/ssl/certs/ca-certificates.crt "$work/image/etc/ssl/certs/" 2>/dev/null || true
	sed -n "s/.*echo '\(caddy:x.*\)' >passwd/\1/p" examples/container/Dockerfile >"$work/image/etc/passwd"
	cp "$work/context/examples/container/Caddyfile" "$work/image/etc/caddy/"
	[ -s "$work/image/etc/passwd" ]
}
modules() {
	"$work/image/usr/bin/caddy" list-modules --skip-standard >"$work/modules"
	grep -qx http.reverse_proxy.transport.egress "$work/modules" && ! grep sandbox "$work/modules"
}

compose() {
	checker
	check "Compose's loader and schema accept compose.yaml" "$work/check" compose examples/compose/compose.yaml
	check "Compose's loader and schema accept that of the fleet" env CLIENT_ID=a CLIENT_SECRET=b SHOP_KEY=c "$work/check" compose examples/fleet/compose.yaml
}

kubernetes() {
	tool kubectl-validate sigs.k8s.io/kubectl-validate $kubectl_validate_version
	tool kustomize sigs.k8s.io/kustomize/kustomize/v5 $kustomize_version
	local crds=$work/crds built=$work/kubernetes
	mkdir -p "$crds" "$built"
	# its CRD; the module is downloaded and not built
	cp "$(cd "$work/tools/kustomize" && go mod download -json github.com/prometheus-operator/prometheus-operator@$prometheus_operator_version | sed -n 's/.*"Dir": "\(.*\)",/\1/p')/example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml" "$crds"
	check "kustomize builds it" bash -c "'$work/kustomize' build examples/kubernetes >'$built/gateway.yaml'"
	cp examples/kubernetes/podmonitor.yaml examples/kubernetes/caller.yaml "$built"
	check "the schemas of Kubernetes 1.30 and the CRDs accept it" "$work/kubectl-validate" --version 1.30 --local-crds "$crds" "$built"
	check "they would refuse a mistake" mistake "$built" "$crds"
}
mistake() {
	local name expression
	while IFS='|' read -r name expression; do
		mkdir -p "$work/mistake"
		sed "$expression" "$1/$name" >"$work/mistake/$name"
		! cmp -s "$1/$name" "$work/mistake/$name" || { echo "$name: nothing is changed by $expression"; return 1; }
		if "$work/kubectl-validate" --version 1.30 --local-crds "$2" "$work/mistake/$name"; then echo "$name is accepted with $expression"; return 1; fi
	done <<-EOF
		gateway.yaml|s/readOnlyRootFilesystem/readOnlyRootFileSystem/
		gateway.yaml|s/replicas: 2/replicas: two/
		podmonitor.yaml|s/interval: 15s/interval: soon/
	EOF
}

secrets() {
	checker
	mkdir -p "$work/rendered"
	check "the config of Vault Agent is read, and its templates are rendered" "$work/check" vault-agent examples/secrets/vault-agent.hcl "$work/rendered"
	check "the files are what the gateway needs" rendered
	check "the script for 1Password replaces files when they change" onepassword
}
# onepassword runs the script with another op, and with a caddy that writes down its
# arguments.
onepassword() {
	local directory=$work/onepassword
	mkdir -p "$directory/bin" "$directory/secrets"
	cat >"$directory/bin/op" <<-"EOF"
		#!/bin/sh
		[ "$1 $2" = "read --no-newline" ] && cat "$VAULT/${3#op://}"
	EOF
	printf '#!/bin/sh\necho "$@" >>"$VAULT/calls"\n' >"$directory/bin/caddy"
	chmod +x "$directory/bin"/*
	mkdir -p "$directory/vault/Gateway/Voucherify"
	local -x VAULT=$directory/vault PATH=$directory/bin:$PATH SECRETS=$directory/secrets CADDY=caddy GROUP
	GROUP=$(id -gn)
	printf id >"$VAULT/Gateway/Voucherify/app_id"
	printf one >"$VAULT/Gateway/Voucherify/app_token"
	examples/secrets/onepassword.sh
	examples/secrets/onepassword.sh # nothing has changed
	printf two >"$VAULT/Gateway/Voucherify/app_token"
	examples/secrets/onepassword.sh
	rm "$VAULT/Gateway/Voucherify/app_token"
	! examples/secrets/onepassword.sh 2>/dev/null || { echo "it succeeds without the item"; return 1; }
	[ "$(cat "$SECRETS/app_id") $(cat "$SECRETS/app_token") $(stat -c %a "$SECRETS/app_token")" = "id two 640" ] &&
		[ "$(sort -u "$VAULT/calls")" = "egress refresh promo --address unix//run/caddy-egress/admin.sock" ] &&
		[ "$(wc -l <"$VAULT/calls")" = 2 ]
}
rendered() {
	[ "$(cat "$work/rendered/app_id")" = id-of-the-test ] && [ "$(cat "$work/rendered/app_token")" = token-of-the-test ] &&
		[ "$(stat -c %a "$work/rendered/app_token")" = 440 ]
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
steps=("$@")
[ $# -gt 0 ] || steps=(systemd container compose kubernetes secrets)
for step in "${steps[@]}"; do
	"$step"
done
if [ "$failures" -gt 0 ]; then
	say "$failures checks failed"
	exit 1
fi
say "all is well"
