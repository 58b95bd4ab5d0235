#!/usr/bin/env bash
# What it shows: secrets of 1Password on a machine with systemd. They are read once,
# by `op read`, and written to files that the gateway reads again when they change.
#
# Needs:    the command op, signed in or with OP_SERVICE_ACCOUNT_TOKEN; an item
#           "Voucherify" in a vault "Gateway" with fields app_id and app_token; the
#           service as in examples/systemd, with live-secrets.conf.
# Run it:   examples/secrets/onepassword.sh         (as root; from a timer, if you like)
# You see:  the credential as fresh, or why the new secret is refused.
# Checked:  by its test, with another op. That of 1Password was not run.
# More:     docs/deploy/secrets.md
set -euo pipefail

directory=${SECRETS:-/etc/caddy-egress/secrets}
group=${GROUP:-egress-secrets}
umask 027

changed=
# the identifier before the secret
for name in app_id app_token; do
	op read --no-newline "op://Gateway/Voucherify/$name" >"$directory/.$name.new"
	if ! cmp -s "$directory/.$name.new" "$directory/$name"; then
		chgrp "$group" "$directory/.$name.new"
		mv "$directory/.$name.new" "$directory/$name" # at once: nobody sees half of it
		changed=yes
	else
		rm "$directory/.$name.new"
	fi
done
[ -z "$changed" ] || ${CADDY:-caddy} egress refresh promo --address "${ADMIN:-unix//run/caddy-egress/admin.sock}"
