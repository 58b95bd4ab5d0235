#!/usr/bin/env bash
# Makes what the Caddyfile beside this file reads: a key for each application of the
# agency, in the directory that the environment variable CALLERS names, and a folder
# with the credential of each tenant, in the directory that TENANTS names. Only their
# owner may read either.
#
# Run it:   export CALLERS=$(mktemp -d) TENANTS=$(mktemp -d)
#           examples/tenants/setup.sh
# Needs:    Go, or a Caddy with the plugin in the variable CADDY.
set -euo pipefail
: "${CALLERS:?is not set: export CALLERS=\$(mktemp -d)}"
: "${TENANTS:?is not set: export TENANTS=\$(mktemp -d)}"
caddy=${CADDY:-go run ./cmd/caddy}
case $caddy in go\ *) cd "$(dirname "${BASH_SOURCE[0]}")/../.." ;; esac
umask 077
mkdir -p "$CALLERS" "$TENANTS"

for name in desk acme-app reports; do
	$caddy egress key >"$CALLERS/$name"
done

# the sandbox of the example knows these; real ones come from each company's project
for tenant in acme globex; do
	mkdir -p "$TENANTS/$tenant"
	echo "$tenant-id" >"$TENANTS/$tenant/app_id"
	echo "$tenant-secret" >"$TENANTS/$tenant/app_token"
done

echo "made keys in $CALLERS, and credentials in $TENANTS"
