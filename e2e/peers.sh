#!/bin/bash
# peers.sh: unpack newer NBD clients and servers than the machine's into .tools/peers, from Debian 13's archive.
#
# They speak what Debian 12's do not: extended headers. And nbd's own tests are
# in no package: their client is compiled from Debian's source, with the
# machine's gcc. Nothing is installed, and root is not needed; the tests run all
# of it with the dynamic linker that comes with it.
set -euo pipefail

peers=$(cd "$(dirname "$0")/.." && pwd)/.tools/peers
[ ! -e "$peers/usr/bin/nbd-tester-client" ] || exit 0

release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-get --print-uris update | sed -n "s,^'\(.*\)/dists/$release/.*,\1,p" | awk 'NR == 1')
if [ -z "$mirror" ]; then
	echo "peers.sh: apt's sources have no archive of Debian's release '$release'; the tests that need newer peers will be skipped" >&2
	if [ "${STRICT:-}" = 1 ]; then exit 1; fi
	exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{etc,state/lists/partial,cache/archives/partial,root}
touch "$work/state/status"
for kind in deb deb-src; do
	echo "$kind [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main"
done >"$work/etc/sources.list"
cat >"$work/apt.conf" <<END
Dir::Etc::SourceList "$work/etc/sources.list";
Dir::Etc::SourceParts "/nonexistent";
Dir::State "$work/state";
Dir::State::status "$work/state/status";
Dir::Cache "$work/cache";
Debug::NoLocking "true";
APT::Install-Recommends "false";
APT::Architecture "$(dpkg --print-architecture)";
Acquire::Retries "3";
END
[ "$(id -u)" != 0 ] || echo 'APT::Sandbox::User "root";' >>"$work/apt.conf"
export APT_CONFIG=$work/apt.conf
echo "peers.sh: unpacking libnbd, qemu-utils and nbd-server of Debian 13 into $peers"
if ! { apt-get -qq update &&
	apt-get -qq install -y --download-only libnbd-bin python3-libnbd qemu-utils nbd-server; } >"$work/log" 2>&1; then
	tail -n 20 "$work/log" >&2
	echo "peers.sh: apt-get failed, its last lines are above; the tests that need newer peers will be skipped" >&2
	if [ "${STRICT:-}" = 1 ]; then exit 1; fi
	exit 0
fi
for package in "$work"/cache/archives/*.deb; do dpkg-deb -x "$package" "$work/root"; done

# compile_tester builds nbd-tester-client, by hand: nbd's configure wants the
# libraries of all its programs. Headers come from the packages that the peers'
# libraries are of.
compile_tester() {
	local libraries=$work/root/usr/lib/$(gcc -print-multiarch)
	mkdir -p "$work/source" "$work/headers" && cd "$work/source" &&
		apt-get -qq source --download-only nbd && tar -xf nbd_*.orig.tar.* && cd nbd-*/ &&
		(cd "$work/headers" && apt-get -qq download libglib2.0-dev libgio-2.0-dev libgnutls28-dev &&
			for package in *.deb; do dpkg-deb -x "$package" .; done) &&
		printf '#define %s\n' 'HAVE_GNUTLS 1' 'HAVE_MKSTEMP 1' 'SIZEOF_UNSIGNED_SHORT_INT __SIZEOF_SHORT__' 'SIZEOF_UNSIGNED_INT __SIZEOF_INT__' \
			'SIZEOF_UNSIGNED_LONG_INT __SIZEOF_LONG__' 'SIZEOF_UNSIGNED_LONG_LONG_INT __SIZEOF_LONG_LONG__' >config.h &&
		gcc -w -O1 -o "$work/root/usr/bin/nbd-tester-client" -I. -I"$work/headers/usr/include" -I"$work/headers/usr/include/glib-2.0" \
			-I"$work/headers/usr/lib/$(gcc -print-multiarch)/glib-2.0/include" \
			tests/run/nbd-tester-client.c cliserv.c buffer.c crypto-gnutls.c \
			-Wl,--allow-shlib-undefined "$libraries/libglib-2.0.so.0" "$libraries/libgnutls.so.30" &&
		mkdir -p "$work/root/usr/share/nbd-tester-client" && cp tests/run/*.tr "$work/root/usr/share/nbd-tester-client"
}
echo "peers.sh: compiling nbd-tester-client"
if ! (compile_tester) >"$work/log" 2>&1; then
	tail -n 20 "$work/log" >&2
	echo "peers.sh: nbd-tester-client could not be built, the last lines are above; the tests that need it will be skipped" >&2
	if [ "${STRICT:-}" = 1 ]; then exit 1; fi
fi
mkdir -p "$(dirname "$peers")"
rm -rf "$peers"
mv "$work/root" "$peers"
