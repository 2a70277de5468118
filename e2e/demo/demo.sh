#!/bin/bash
# demo.sh VARVE   Varve's main job, end to end, on real data: what `make demo` runs.
#
# Everything it makes lies in one temporary folder, and every process that it starts is stopped by its pid, also when it is
# interrupted.
set -euo pipefail

varve=$(readlink -f "$1")
work=$(mktemp -d "${TMPDIR:-/tmp}/varve-demo.XXXXXX")
export VARVE_STATE=$work/state VARVE_PASSPHRASE="a passphrase for the demo"
daemon=
fuse_pid=
loop=
bold= plain=
if [ -t 1 ]; then bold=$(tput bold 2>/dev/null || true) plain=$(tput sgr0 2>/dev/null || true); fi

step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
note() { printf '   %s\n' "$*"; }
# run prints a command as a user would type it, then runs it.
run() {
	local shown=$*
	shown=${shown//$varve/varve}
	printf '%s$ %s%s\n' "$bold" "${shown//$work/\$DEMO}" "$plain"
	"$@"
}
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f s", b - a }'; }
uri() { printf 'nbd+unix:///%s?socket=%s/nbd.sock' "$1" "$VARVE_STATE"; }
field() { "$varve" "${@:2}" -o value -c "$1"; }

serve() {
	"$varve" serve >"$work/serve.out" 2>>"$work/serve.log" &
	daemon=$!
	for _ in $(seq 1 300); do
		"$varve" status >/dev/null 2>&1 && return
		kill -0 "$daemon" 2>/dev/null || die "varve serve ended: $(tail -3 "$work/serve.log")"
		sleep 0.1
	done
	die "varve serve did not answer within 30 s"
}
stop() {
	[ -z "$daemon" ] || { kill "$daemon" 2>/dev/null && wait "$daemon" || true; }
	daemon=
}
cleanup() {
	local status=$?
	trap - EXIT INT TERM
	mountpoint -q "$work/fs" 2>/dev/null && umount "$work/fs"
	[ -z "$loop" ] || losetup -d "$loop" 2>/dev/null || true
	mountpoint -q "$work/nbd" 2>/dev/null && umount "$work/nbd"
	[ -z "$fuse_pid" ] || { kill "$fuse_pid" 2>/dev/null && wait "$fuse_pid" || true; }
	stop
	rm -rf --one-file-system "$work"
	[ $status = 0 ] || printf 'demo: stopped with status %s\n' "$status" >&2
	exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

for tool in mke2fs debugfs e2fsck nbdcopy qemu-img; do
	PATH=$PATH:/sbin:/usr/sbin command -v $tool >/dev/null || die "$tool is missing; run e2e/setup.sh as root, or: apt-get install e2fsprogs libnbd-bin qemu-utils"
done
PATH=$PATH:/sbin:/usr/sbin
mkdir -p "$work/target"
printf 'Everything happens in DEMO=%s and is removed at the end.\n' "$work"

step "1. The daemon: one process owns the volumes, serves them over NBD and makes the backups"
note "\$ varve serve &          (VARVE_STATE says where its files lie; no configuration, no root)"
serve
note "its NBD exports: $VARVE_STATE/nbd.sock"

step "2. A volume: it takes no space until something is written"
run "$varve" volume create files --size 2G -c name -c size -c status -c id

step "3. A real ext4 file system with real files, written over NBD by libnbd's nbdcopy"
src=$(go env GOROOT 2>/dev/null)/src
[ -d "$src" ] || src=/usr/share
note "the files: $src, $(du -sm --apparent-size "$src" | cut -f1) MiB in $(find "$src" -type f | wc -l) files"
run mke2fs -q -F -t ext4 -d "$src" "$work/image.raw" 2G
run nbdcopy "$work/image.raw" "$(uri files)"
run "$varve" volume show files -c size -c actual_size --long

step "4. A snapshot, and a full backup into a directory (a Swift container or an S3 bucket is named the same way)"
run "$varve" snapshot create files --name monday
run "$varve" target add local "file://$work/target"
began=$(now)
run "$varve" backup create files --snapshot monday --name full
full_time=$(since "$began")

step "5. Files change"
changed_by_kernel() {
	[ "$(id -u)" = 0 ] && [ -e /dev/fuse ] && [ -e /dev/loop-control ] && command -v nbdfuse >/dev/null
}
if changed_by_kernel; then
	note "the volume is mounted like any disk; nbdfuse and a loop device stand in for nbd-client, so that no kernel module is needed"
	mkdir -p "$work/nbd" "$work/fs"
	nbdfuse "$work/nbd" "$(uri files)" & fuse_pid=$!
	for _ in $(seq 1 100); do [ -e "$work/nbd/nbd" ] && break; sleep 0.1; done
	loop=$(losetup -f --show "$work/nbd/nbd")
	run mount "$loop" "$work/fs"
	head -c 4194304 /dev/urandom >"$work/fs/letter.bin"
	echo "written on tuesday" >"$work/fs/README.tuesday"
	rm -r "$work/fs/archive"* 
	note "a file of 4 MiB and a small one were added, a folder was removed"
	run umount "$work/fs"
	losetup -d "$loop"; loop=
	umount "$work/nbd"; wait "$fuse_pid" || true; fuse_pid=
else
	note "not root, or no FUSE: debugfs changes a copy of the image, and qemu-img writes only the blocks that differ"
	cp --sparse=always "$work/image.raw" "$work/new.raw"
	head -c 4194304 /dev/urandom >"$work/letter.bin"
	echo "written on tuesday" >"$work/README.tuesday"
	run debugfs -w -R "write $work/letter.bin letter.bin" "$work/new.raw" 2>/dev/null
	run debugfs -w -R "write $work/README.tuesday README.tuesday" "$work/new.raw" 2>/dev/null
	qemu-img create -q -f qcow2 -o cluster_size=4096 -b "$work/new.raw" -F raw "$work/diff.qcow2"
	qemu-img rebase -q -b "$work/image.raw" -F raw "$work/diff.qcow2"
	qemu-img rebase -q -u -b "$(uri files)" -F raw "$work/diff.qcow2"
	run qemu-img commit -q "$work/diff.qcow2"
fi

step "6. A second snapshot and an incremental backup: only what changed is read and stored"
run "$varve" snapshot create files --name tuesday
began=$(now)
run "$varve" backup create files --snapshot tuesday --name incremental --incremental
incremental_time=$(since "$began")
run "$varve" backup list
printf '\n   %-12s %14s %10s %10s\n' backup "bytes stored" objects time
for backup in full incremental; do
	took=${backup}_time
	printf '   %-12s %14s %10s %10s\n' $backup "$(field stored_bytes backup show $backup --long)" \
		"$(field object_count backup show $backup)" "${!took}"
done

step "7. Browse: every snapshot and backup is a folder with its disk image, fetched as it is read"
mkdir -p "$work/browse"
if "$varve" mount "$work/browse" 2>"$work/mount.err"; then
	note "\$ varve mount \$DEMO/browse"
	run ls -l "$work"/browse/files/*
	note "one file out of the backup, compared with the original:"
	file=fmt/print.go; [ -f "$src/$file" ] || file=$(cd "$src" && find . -type f -size -64k | head -1)
	debugfs -R "cat $file" "$work/browse/files/full/disk.raw" 2>/dev/null | cmp - "$src/$file"
	note "same: $file"
	run "$varve" unmount "$work/browse"
else
	note "this machine cannot mount: $(cat "$work/mount.err")"
fi

step "8. Verify: every frame of both backups is fetched, authenticated and compared"
run "$varve" backup verify full --deep
run "$varve" backup verify incremental --deep
nbdcopy "$(uri files@monday)" - | sha256sum >"$work/full.sum"
nbdcopy "$(uri files@tuesday)" - | sha256sum >"$work/incremental.sum"
note "the checksums of both snapshots are kept, to compare with at the end"

step "9. The disaster: the daemon is stopped, its state folder with volume and snapshots is destroyed"
stop
run rm -rf "$VARVE_STATE"
run ls "$work/target"

step "10. Everything comes back from the target alone"
serve
run "$varve" target add local "file://$work/target"
run "$varve" backup list
for backup in full incremental; do
	run "$varve" backup restore $backup --name "restored-$backup"
	nbdcopy "$(uri "restored-$backup")" - | sha256sum | cmp - "$work/$backup.sum"
	note "restored-$backup is byte for byte what its snapshot was"
done

step "11. On a bare machine no daemon is needed: the binary reads the target directly"
run "$varve" --target "file://$work/target" backup restore incremental "$work/bare.raw"
sha256sum <"$work/bare.raw" | cmp - "$work/incremental.sum"
run e2fsck -fn "$work/bare.raw"
note "the image is the same, and its file system is clean"

step "Done: written, snapshotted, backed up, browsed, verified, destroyed, restored"
