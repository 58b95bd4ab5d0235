#!/usr/bin/env bash
# Makes what callers prove who they are with, for the Caddyfile beside this file:
# keys, a certificate authority with certificates of it, and a password. They go
# to the directory that the environment variable CALLERS names, which only its
# owner may read.
#
# Run it:   export CALLERS=$(mktemp -d)
#           examples/callers/setup.sh
# Needs:    openssl 3; Go, or a Caddy with the plugin in the variable CADDY.
set -euo pipefail
: "${CALLERS:?is not set: export CALLERS=\$(mktemp -d)}"
caddy=${CADDY:-go run ./cmd/caddy}
case $caddy in go\ *) cd "$(dirname "${BASH_SOURCE[0]}")/../.." ;; esac
umask 077
mkdir -p "$CALLERS"

# a key for each application
for name in shop agent; do
	$caddy egress key >"$CALLERS/$name"
done

# certificate NAME SUBJECT-ALTERNATIVE-NAMES USE
certificate() {
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 30 \
		-subj "/CN=$1" -addext "subjectAltName=$2" -addext "extendedKeyUsage=$3" -addext basicConstraints=critical,CA:FALSE \
		-CA "$CALLERS/ca.crt" -CAkey "$CALLERS/ca.key" -keyout "$CALLERS/$1.key" -out "$CALLERS/$1.crt" 2>/dev/null
}
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 30 \
	-subj "/CN=CA of the callers" -keyout "$CALLERS/ca.key" -out "$CALLERS/ca.crt" 2>/dev/null
certificate server DNS:localhost,IP:127.0.0.1 serverAuth
certificate nightly DNS:nightly.jobs.internal clientAuth
certificate other DNS:other.jobs.internal clientAuth

# a password for a person, and its hash for Caddy, which computes it with each
# request; nobody guesses a random one, however cheap that is
openssl rand -hex 12 >"$CALLERS/anna.password"
$caddy hash-password --algorithm bcrypt --bcrypt-cost 10 --plaintext "$(cat "$CALLERS/anna.password")" >"$CALLERS/anna.hash"

echo "made keys, certificates and a password in $CALLERS"
