package e2e

import (
	"testing"

	"varve/e2e/testbed"
)

// TestVMAttach: a kernel shows a volume as a device, with what it can do, learns
// of its growth under a mounted file system, and gives it back. V4, V5
func TestVMAttach(t *testing.T) {
	testbed.RunVM(t, guestVarve+`
rmmod nbd
serve
varve volume create db --size 256M >/dev/null
refused "modprobe nbd" varve attach db
insmod /lib/modules/nbd.ko
is $(attach db) /dev/nbd0
is $(status db) in-use
varve volume list | grep -q "device /dev/nbd0" || fail "the list does not show the device"
is $(readlink /dev/varve/db) ../nbd0
is $(cat /sys/block/nbd0/size) 524288
varve volume set db --name store >/dev/null
is $(readlink /dev/varve/store) ../nbd0
[ ! -e /dev/varve/db ] || fail "the old name's link stayed"
varve volume set store --name db >/dev/null
is $(readlink /dev/varve/db) ../nbd0
is "$(cat /sys/block/nbd0/queue/write_cache)" "write back"
is $(cat /sys/block/nbd0/queue/fua) 1
[ $(cat /sys/block/nbd0/queue/discard_max_bytes) -gt 0 ] || fail "no trim"
refused "attached already as /dev/nbd0" varve attach db
refused "in use" varve volume delete db

mkfs.ext4 -q /dev/varve/db
mount /dev/varve/db /mnt
fill /mnt a 16
refused "mounted at /mnt" varve detach db
varve volume grow db 512M >/dev/null
is $(cat /sys/block/nbd0/size) 1048576
resize2fs /dev/nbd0 >/dev/null 2>&1
[ $(df -m /mnt | awk 'END { print $2 }') -gt 400 ] || fail "the file system did not grow"
fill /mnt b 16
forget
whole /mnt a
whole /mnt b

# A snapshot beside it, read-only, and a certain device.
varve snapshot create db --name s >/dev/null
is $(attach db@s --device /dev/nbd5 --connections 2) /dev/nbd5
is $(cat /sys/block/nbd5/ro) 1
mkdir /tmp/s
mount -o ro,noload /dev/varve/db@s /tmp/s
whole /tmp/s a
refused "being read" varve snapshot delete db@s
umount /tmp/s
varve detach /dev/nbd5 >/dev/null
varve snapshot delete db@s

umount /mnt
exec 5</dev/nbd0
refused "open in" varve detach db
exec 5<&-
varve detach db >/dev/null
is $(status db) available
[ ! -e /dev/varve/db ] || fail "the link stayed"

# What another program disconnects is not in use any more; a forced detach is
# seen by who uses it.
attach db >/dev/null
nbd-client -d /dev/nbd0 >/dev/null 2>&1
until [ $(status db) = available ]; do sleep 0.1; done
attach db --block-size 4096 >/dev/null
is $(cat /sys/block/nbd0/queue/logical_block_size) 4096
refused "" mount -t ext4 /dev/nbd0 /mnt # its blocks are smaller than the device's
mkfs.ext4 -q -F /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
varve detach db --force >/dev/null
is $(status db) available
ls /mnt >/dev/null || true
umount /mnt
kill $daemon
wait $daemon
`, testbed.VMOptions{Files: guestFiles()})
}

// TestVMTakeOver: the daemon is stopped and started, killed and started, under a
// mounted file system with writers on it. They only wait, and everything that
// they wrote is there, flushed or not. V9, V10
func TestVMTakeOver(t *testing.T) {
	testbed.RunVM(t, guestVarve+`
serve
varve volume create db --size 128M >/dev/null

# Without a file system: what was answered and never flushed.
attach db >/dev/null
dd if=/dev/urandom of=/tmp/pattern bs=1M count=16 2>/dev/null
dd if=/tmp/pattern of=/dev/nbd0 bs=1M 2>/dev/null
kill -9 $daemon
serve
forget
dd if=/dev/nbd0 of=/tmp/back bs=1M count=16 2>/dev/null
cmp /tmp/pattern /tmp/back || fail "writes were lost that had been answered"

mkfs.ext4 -q -F /dev/nbd0
mount /dev/nbd0 /mnt
fill /mnt before 16
(
	i=0
	while [ ! -e /run/enough ]; do
		i=$((i + 1))
		dd if=/dev/urandom of=/mnt/w$i bs=16k count=1 conv=fsync 2>/dev/null || exit 1
		(cd /mnt && md5sum w$i) >>/tmp/w.sums
		echo $i >/run/written
	done
) &
writer=$!
until [ -s /run/written ]; do sleep 0.05; done

for how in TERM 9 9; do
	kill -$how $daemon
	wait $daemon || true
	refused "daemon" varve volume list
	serve
	seen=$(cat /run/written)
	until [ "$(cat /run/written)" -gt $((seen + 2)) ]; do
		sleep 0.1
		kill -0 $writer || fail "the writer ended after kill -$how"
	done
	is $(status db) in-use
done
touch /run/enough
wait $writer || fail "the writer met an error"
forget
whole /mnt before
whole /mnt w
refused "mounted at /mnt" varve detach db
umount /mnt
e2fsck -fn /dev/nbd0 >/dev/null 2>&1 || fail "the file system is damaged"
varve detach db >/dev/null
if dmesg | grep -E "I/O error|EXT4-fs error"; then fail "the kernel saw errors"; fi
`, testbed.VMOptions{Files: guestFiles()})
}
