#!/bin/bash
# peers.sh: unpack newer NBD clients and servers than the machine's into .tools/peers, from Debian 13's archive.
#
# They speak what Debian 12's do not: extended headers. Nothing is installed,
# and root is not needed; the tests run them with the dynamic linker that comes
# with them.
set -euo pipefail

peers=$(cd "$(dirname "$0")/.." && pwd)/.tools/peers
[ ! -e "$peers/usr/bin/nbd-server" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{etc,state/lists/partial,cache/archives/partial,root}
touch "$work/state/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" >"$work/etc/sources.list"
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
mkdir -p "$(dirname "$peers")"
rm -rf "$peers"
mv "$work/root" "$peers"
