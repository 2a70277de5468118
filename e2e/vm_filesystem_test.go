package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"varve/e2e/testbed"
)

// TestVMFileSystems: ext4 and XFS on a device are filled, trimmed, snapshotted
// while they are written, grown, backed up and restored. The copy beside its
// source is what XFS refuses, and is cured both ways. V2, S1, S2, B18
func TestVMFileSystems(t *testing.T) {
	for _, fs := range []struct{ name, make, grow, check, quiet string }{
		{"ext4", "mkfs.ext4 -q", "resize2fs /dev/varve/db", "e2fsck -fn", "noload"},
		{"xfs", "mkfs.xfs -q", "xfs_growfs /mnt", "xfs_repair -n", "norecovery,nouuid"},
	} {
		t.Run(fs.name, func(t *testing.T) {
			script := guestVarve + fmt.Sprintf("make=%q grow=%q check=%q quiet=%q type=%s\n", fs.make, fs.grow, fs.check, fs.quiet, fs.name) + `
serve
varve volume create db --size 320M >/dev/null
attach db >/dev/null
$make /dev/varve/db
mount -t $type /dev/varve/db /mnt

fill /mnt a 32
dd if=/dev/zero of=/mnt/large bs=1M count=24 2>/dev/null
sync
blocks=$(du -s /var/lib/varve/volumes | cut -f1)
rm /mnt/large
# XFS frees the blocks of a file in the background.
until sync; fstrim /mnt; [ $((blocks - $(du -s /var/lib/varve/volumes | cut -f1))) -gt 20000 ]; do sleep 0.1; done

# A snapshot under writers is the file system's state at an instant.
(i=0; while [ ! -e /run/enough ]; do i=$((i + 1)); dd if=/dev/urandom of=/mnt/x$((i % 8)) bs=64k count=1 2>/dev/null; done) &
writer=$!
varve snapshot create db --name during >/dev/null
touch /run/enough
wait $writer
attach db@during >/dev/null
mkdir /tmp/during
mount -t $type -o ro,$quiet /dev/varve/db@during /tmp/during
whole /tmp/during a
umount /tmp/during
# A frozen XFS has a log to replay, which its checker cannot look past.
[ $type = xfs ] || $check /dev/varve/db@during >/run/check 2>&1 || fail "the snapshot is damaged: $(cat /run/check)"
varve detach db@during >/dev/null

varve volume grow db 384M >/dev/null
$grow >/dev/null 2>&1 || fail "the file system does not grow"
[ $(df -m /mnt | awk 'END { print $2 }') -gt 290 ] || fail "the file system did not grow: $(df -m /mnt)"
fill /mnt b 8
sync

mkdir /tmp/target
varve target add t file:///tmp/target >/dev/null
varve backup create db --force --name b --wait >/dev/null 2>&1 || varve backup create db --force --name b >/dev/null
varve backup restore b --name copy >/dev/null
attach copy >/dev/null
if [ $type = xfs ]; then
	refused "" mount -t xfs /dev/varve/copy /tmp/during
	dmesg | grep -q "duplicate UUID" || fail "XFS refused for another reason"
	mount -t xfs -o nouuid /dev/varve/copy /tmp/during
	whole /tmp/during a
	whole /tmp/during b
	umount /tmp/during
	xfs_admin -U generate /dev/varve/copy >/dev/null || fail "no new UUID"
fi
mount -t $type /dev/varve/copy /tmp/during
whole /tmp/during a
whole /tmp/during b
umount /tmp/during /mnt
$check /dev/varve/copy >/run/check 2>&1 || fail "the copy is damaged: $(cat /run/check)"
$check /dev/varve/db >/run/check 2>&1 || fail "the volume is damaged: $(cat /run/check)"
varve detach copy >/dev/null
varve detach db >/dev/null
`
			testbed.RunVM(t, script, testbed.VMOptions{Files: guestFiles(), Memory: 768})
		})
	}
}

// TestVMPowerCut: a machine whose volumes are on a disk of its own loses power.
// After the next start the volume is attached again, because it was to persist,
// the file system is clean and has what was synced. V9
func TestVMPowerCut(t *testing.T) {
	testbed.Require(t, "mkfs.ext4")
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 384*MiB); err != nil {
		t.Fatal(err)
	}
	client(t, "mkfs.ext4", "-q", "-F", disk)
	options := testbed.VMOptions{Files: guestFiles(), Disks: []string{disk}}
	const start = guestVarve + `
mkdir -p /var/lib/varve /disk
mount -t ext4 /dev/vda /disk
export VARVE_STATE=/disk/varve
`
	vm := testbed.StartVM(t, start+`
serve
varve volume create db --size 128M >/dev/null
attach db --persist >/dev/null
varve volume create other --size 16M >/dev/null
attach other >/dev/null
mkfs.ext4 -q /dev/varve/db
mount /dev/varve/db /mnt
fill /mnt a 16
cp /tmp/a.sums /mnt/sums
sync
echo SYNCED
while :; do dd if=/dev/urandom of=/mnt/more bs=64k count=16 2>/dev/null; done
`, options)
	vm.Await("SYNCED")
	vm.Cut()
	testbed.RunVM(t, start+`
serve
is $(status db) in-use
is $(status other) available
[ ! -e /dev/varve/other ] || fail "other is attached, and was not to persist"
mount /dev/varve/db /mnt # replays the journal
cp /mnt/sums /tmp/a.sums
whole /mnt a
umount /mnt
e2fsck -fn /dev/varve/db >/dev/null 2>&1 || fail "the file system is damaged"
varve detach db >/dev/null
kill $daemon
wait $daemon
`, options)
}

// TestVMClient: the kernel's NBD client connects over TCP to a daemon of another
// machine, with several connections. What it wrote is in a snapshot there.
func TestVMClient(t *testing.T) {
	testbed.RequireVM(t)
	testbed.Require(t, "qemu-img")
	d := startDaemon(t)
	d.stop()
	d.start("--listen", "127.0.0.1:0")
	_, address, _ := strings.Cut(d.ready, " and 127.0.0.1:")
	port, _, _ := strings.Cut(address, ";")
	if _, err := strconv.Atoi(port); err != nil {
		t.Fatalf("the daemon says %q", d.ready)
	}
	d.varve("volume", "create", "db", "--size", "64M")
	testbed.RunVM(t, guestVarve+`
nbd-client 10.0.2.2 `+port+` /dev/nbd0 -N db -C 2 >/dev/null 2>&1
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
fill /mnt a 16
echo "the file" >/mnt/file
rm /mnt/a1 /mnt/a2
sync
fstrim /mnt
umount /mnt
e2fsck -fn /dev/nbd0 >/dev/null 2>&1 || fail "the file system is damaged"
nbd-client -d /dev/nbd0 >/dev/null 2>&1
`, testbed.VMOptions{Network: true})
	d.varve("snapshot", "create", "db", "--name", "s")
	raw := filepath.Join(t.TempDir(), "raw")
	client(t, "qemu-img", "convert", "-O", "raw", d.uri("db@s"), raw)
	client(t, "e2fsck", "-fn", raw)
	if got := client(t, "debugfs", "-R", "cat /file", raw); got != "the file\n" {
		t.Errorf("the file on the volume holds %q", got)
	}
}

// TestVMDisk: a machine whose disk is a volume, through QEMU's own NBD client,
// makes a file system, and after a cut of its power finds it as it was synced. The
// daemon is killed under it, and QEMU connects again.
func TestVMDisk(t *testing.T) {
	testbed.RequireVM(t)
	d := startDaemon(t)
	d.varve("volume", "create", "root", "--size", "64M")
	disk := []string{
		"-blockdev", "driver=nbd,node-name=n0,server.type=unix,server.path=" + filepath.Join(d.state, "nbd.sock") + ",export=root,reconnect-delay=600,discard=unmap",
		"-device", "virtio-blk-pci,drive=n0",
	}
	vm := testbed.StartVM(t, guestVarve+`
mkfs.ext4 -q /dev/vda
mount -t ext4 /dev/vda /mnt
fill /mnt a 16
sync
echo KILL
read answer </dev/console
fill /mnt b 16
forget
whole /mnt a
whole /mnt b
cat /tmp/a.sums /tmp/b.sums >/mnt/sums
sync
echo SYNCED
sleep 600
`, testbed.VMOptions{QEMU: disk})
	vm.Await("KILL")
	d.kill()
	d.start()
	vm.Send("go on")
	vm.Await("SYNCED")
	vm.Cut()
	testbed.RunVM(t, guestVarve+`
mount -t ext4 /dev/vda /mnt
cp /mnt/sums /tmp/s.sums
whole /mnt s
umount /mnt
e2fsck -fn /dev/vda >/dev/null 2>&1 || fail "the file system is damaged"
`, testbed.VMOptions{QEMU: disk})
}
