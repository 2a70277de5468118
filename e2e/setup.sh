#!/bin/bash
# setup.sh [PROGRAM...]: install the peers that the tests run against, or of those only these, from Debian's archive.
#
# Installs only what is missing and starts no service. Without root it names
# what is missing and ends with 0 (the tests then skip), or with 1 if STRICT=1.
set -euo pipefail

# program or file that must be there -> the package that brings it
needs=(
	"borg borgbackup" # for make bench
	"curl curl"
	"fio fio"
	"fusermount3 fuse3"
	"gcc gcc" # for the race detector
	"/usr/include/stdlib.h libc6-dev"
	"jq jq"
	"losetup mount"
	"memcached memcached"
	"mkfs.ext4 e2fsprogs"
	"mkfs.xfs xfsprogs"
	"nbd-client nbd-client"
	"nbdfuse libnbd-bin"
	"/usr/lib/python3/dist-packages/nbd.py python3-libnbd"
	"nbdkit nbdkit"
	"qemu-img qemu-utils"
	"restic restic"
	"zstd zstd" # for make bench
	"swift-account-server swift-account"
	"swift-container-server swift-container"
	"swift-object-server swift-object"
	"swift-proxy-server swift-proxy"
	"keystone-manage python3-keystone"
	"/usr/lib/python3/dist-packages/keystonemiddleware python3-keystonemiddleware"
	"/usr/lib/python3/dist-packages/memcache.py python3-memcache"
)

PATH=$PATH:/usr/sbin:/sbin
missing=()
for need in "${needs[@]}"; do
	read -r what package <<<"$need"
	[ $# = 0 ] || [[ " $* " == *" $what "* ]] || continue
	case $what in
	/*) [ -e "$what" ] || missing+=("$package") ;;
	*) command -v "$what" >/dev/null || missing+=("$package") ;;
	esac
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "setup.sh: these packages are missing, and only root can install them:" >&2
	echo "    apt-get install --no-install-recommends ${missing[*]}" >&2
	if [ "${STRICT:-}" = 1 ]; then exit 1; fi
	echo "setup.sh: the tests that need them will be skipped" >&2
	exit 0
fi

# Swift and memcached would start services when they are installed. A
# policy-rc.d that ends with 101 forbids it; the machine's own comes back.
policy=/usr/sbin/policy-rc.d
guard() {
	if [ -e "$policy" ] && [ "$(tail -n 1 "$policy")" = "exit 101" ]; then return; fi
	if [ -e "$policy" ]; then mv "$policy" "$policy.before-varve"; fi
	trap unguard EXIT
	trap 'exit 1' HUP INT TERM
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
}
unguard() {
	rm -f "$policy"
	if [ -e "$policy.before-varve" ]; then mv "$policy.before-varve" "$policy"; fi
}
guard

echo "setup.sh: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
quiet=(-qq -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3)
log=$(mktemp)
if ! { apt-get "${quiet[@]}" update &&
	apt-get "${quiet[@]}" install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
	tail -n 40 "$log" >&2
	rm -f "$log"
	echo "setup.sh: apt-get failed, its last lines are above" >&2
	exit 1
fi
rm -f "$log"
