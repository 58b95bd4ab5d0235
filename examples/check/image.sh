#!/usr/bin/env bash
# Runs the files of the image of examples/container as an engine would: in a root
# directory that has nothing else and is read-only, as the user of the image, with a
# network of its own, in which there is an imitation of the API.
#
# Run it:   CADDY=/path/to/caddy examples/check/image.sh DIRECTORY
#           CADDY has to contain the sandbox; DIRECTORY has what the image has.
# Needs:    root, util-linux, curl. It exits with status 77 without.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
self=$PWD/examples/check/image.sh
image=$(realpath "$1")

if [ "${2:-}" != inside ]; then
	[ "$(id -u)" = 0 ] && unshare --mount --net --pid --fork true 2>/dev/null || { echo "no namespaces can be made"; exit 77; }
	WORK=$(mktemp -d)
	export WORK
	trap 'rm -rf "$WORK"' EXIT
	unshare --mount --net --pid --fork --kill-child --mount-proc "$self" "$image" inside
	exit
fi

die() {
	echo "FAIL  $*"
	grep -v '"http.log.access"' "$WORK/gateway.log" | tail -20 || true
	exit 1
}
code() { curl -s --noproxy '*' --max-time 10 -o /dev/null -w '%{http_code}' "$@"; }
in_image=(setpriv --no-new-privs --inh-caps=-all chroot --userspec=65532:65532 --groups=65532)

mount --make-rprivate /
ip link set lo up
rootfs=$WORK/root
mkdir -p "$rootfs"
cp -a "$image"/. "$rootfs"
# which engines add
mkdir -p "$rootfs/run/secrets" "$rootfs/proc" "$rootfs/dev"
echo "127.0.0.1 localhost" >"$rootfs/etc/hosts"
sed -i 's,credential promo voucherify {,credential promo voucherify http://127.0.0.1:9002 {,' "$rootfs/etc/caddy/Caddyfile"
mount --bind "$rootfs" "$rootfs"
mount -o remount,ro,bind "$rootfs"
mount -t tmpfs -o uid=65532,gid=65532,mode=700 tmpfs "$rootfs/data"
mount -t tmpfs tmpfs "$rootfs/run/secrets"
mount -t proc proc "$rootfs/proc"
(
	umask 077
	cd "$rootfs/run/secrets"
	echo sandbox >app_id
	echo secret-of-the-test >app_token
	"${in_image[@]}" "$rootfs" /usr/bin/caddy egress key >web-shop
	chown 65532:65532 app_id app_token web-shop
	chmod 400 app_id app_token web-shop
)
key=$(cat "$rootfs/run/secrets/web-shop")

cat >"$WORK/api.caddyfile" <<-END
	{
		admin off
		persist_config off
		auto_https off
	}
	http://127.0.0.1:9002 {
		sandbox voucherify {
			app_id sandbox
			app_token secret-of-the-test
		}
	}
END
HOME=$WORK "$CADDY" run --config "$WORK/api.caddyfile" >"$WORK/api.log" 2>&1 &
for _ in {1..100}; do
	[ "$(code http://127.0.0.1:9002/ || true)" = 000 ] || break
	sleep 0.1
done
eval "$(sed -n 's/^ENV /export /p' examples/container/Dockerfile | grep HOME)"
export PATH=$PATH:/usr/sbin:/sbin:/bin
# shellcheck disable=SC2046 # the words of CMD
"${in_image[@]}" "$rootfs" /usr/bin/caddy $(sed -n 's/^CMD \[\(.*\)\]/\1/p' examples/container/Dockerfile | tr -d '",') >"$WORK/gateway.log" 2>&1 &
gateway=$!
for _ in {1..100}; do
	[ "$(code http://127.0.0.1:8080/ready || true)" != 200 ] || break
	sleep 0.1
done
[ "$(code http://127.0.0.1:8080/ready)" = 200 ] || die "it is not ready"
[ "$(code -H "Authorization: Bearer $key" http://127.0.0.1:8080/v1/vouchers)" = 200 ] || die "a caller is not served"
[ "$(code http://127.0.0.1:8080/v1/vouchers)" = 401 ] || die "somebody else is served"
"${in_image[@]}" "$rootfs" /usr/bin/caddy egress status >"$WORK/status" 2>&1 && grep -q 'promo.*fresh' "$WORK/status" || die "the health check: $(cat "$WORK/status")"
grep -q '^Uid:.65532' "/proc/$gateway/status" || die "it is another user"
grep -q '^CapPrm:.0000000000000000' "/proc/$gateway/status" || die "it has capabilities"
if grep '"level":"\(error\|warn\)"' "$WORK/gateway.log" | grep -v -e caller_unknown -e http.log.access; then die "its log has warnings"; fi
if touch "$rootfs/etc/x" 2>/dev/null; then die "its root is not read-only"; fi
[ "$(find "$rootfs/data" -path '*egress/tokens*' -type f | wc -l)" = 1 ] || die "it keeps no token"
kill -TERM "$gateway"
wait "$gateway" || die "it ends with status $?"
echo "all is well"
