#!/bin/bash
# setup.sh [PROGRAM...]: install the peers that the tests run against, or of those only these, from Debian's archive.
#
# PROGRAM "kernel" is the kernel of the virtual machines. Installs only what is
# missing and starts no service. Without root it names what is missing and ends
# with 0 (the tests then skip), or with 1 if STRICT=1.
set -euo pipefail

# program or file that must be there -> the package that brings it
needs=(
	"borg borgbackup" # for make bench
	"/usr/lib/python3/dist-packages/pyfuse3_asyncio.py python3-pyfuse3" # for borg mount
	"busybox busybox-static" # virtual machines: this and the kernel below
	"curl curl"
	"depmod kmod"
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
	"qemu-system-x86_64 qemu-system-x86"
	"restic restic"
	"sfdisk fdisk"
	"zstd zstd" # for make bench
	"swift-account-server swift-account"
	"swift-container-server swift-container"
	"swift-object-server swift-object"
	"swift-proxy-server swift-proxy"
	"keystone-manage python3-keystone"
	"/usr/lib/python3/dist-packages/keystonemiddleware python3-keystonemiddleware"
	"/usr/lib/python3/dist-packages/memcache.py python3-memcache"
)

# kernel: Debian's kernel for virtual machines, unpacked here and installed
# nowhere.
kernel=$(cd "$(dirname "$0")/.." && pwd)/.tools/kernel

PATH=$PATH:/usr/sbin:/sbin
missing=()
lacks_kernel=
if [ $# = 0 ] || [[ " $* " == *" kernel "* ]]; then
	[ -e "$kernel/boot" ] || lacks_kernel=1
fi
for need in "${needs[@]}"; do
	read -r what package <<<"$need"
	[ $# = 0 ] || [[ " $* " == *" $what "* ]] || continue
	case $what in
	/*) [ -e "$what" ] || missing+=("$package") ;;
	*) command -v "$what" >/dev/null || missing+=("$package") ;;
	esac
done
[ ${#missing[@]} -gt 0 ] || [ -n "$lacks_kernel" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "setup.sh: these packages are missing, and only root can install them:" >&2
	echo "    apt-get install --no-install-recommends ${missing[*]}" >&2
	[ -z "$lacks_kernel" ] || echo "    and linux-image-cloud-amd64's files in $kernel" >&2
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

# fetch_kernel unpacks the kernel that Debian's package for virtual machines
# names now. It appears under its name when it is whole.
fetch_kernel() {
	local package parts=$kernel.part
	package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
	[ -n "$package" ] || { echo "setup.sh: the archive has no linux-image-cloud-amd64" >&2; return 1; }
	rm -rf "$parts" && mkdir -p "$parts/root" &&
		(cd "$parts" && apt-get "${quiet[@]}" download "$package" && dpkg-deb -x "$package"_*.deb root) &&
		depmod -b "$parts/root" "${package#linux-image-}" &&
		rm -rf "$kernel" && mv "$parts/root" "$kernel" && rm -rf "$parts"
}

echo "setup.sh: installing ${missing[*]} ${lacks_kernel:+[a kernel, only unpacked]}"
export DEBIAN_FRONTEND=noninteractive
quiet=(-qq -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3)
log=$(mktemp)
if ! { apt-get "${quiet[@]}" update &&
	{ [ ${#missing[@]} = 0 ] || apt-get "${quiet[@]}" install -y --no-install-recommends "${missing[@]}"; } &&
	{ [ -z "$lacks_kernel" ] || fetch_kernel; }; } >"$log" 2>&1; then
	tail -n 40 "$log" >&2
	rm -f "$log"
	echo "setup.sh: apt-get failed, its last lines are above" >&2
	exit 1
fi
rm -f "$log"
