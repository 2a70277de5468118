package e2e

import (
	"testing"

	"varve/e2e/testbed"
)

// TestVMFreeze: a file system on a device of the kernel is found and frozen for
// a snapshot, with a partition and without, and goes on; so it does when the
// daemon is killed while the hook runs. S2, V7
func TestVMFreeze(t *testing.T) {
	testbed.RunVM(t, guestVarve+`
serve
varve volume create db --size 128M >/dev/null
varve attach db >/dev/null
mkfs.ext4 -q /dev/varve/db
mount /dev/varve/db /mnt

echo one >/mnt/one
varve snapshot create db --name crash --no-freeze -o value -c consistency | grep -x crash
state=$(varve snapshot create db --name frozen -o value -c consistency)
[ "$state" = frozen ] || fail "the snapshot is $state"
echo two >/mnt/two

varve volume clone db@frozen copy >/dev/null
varve attach copy >/dev/null
e2fsck -fn /dev/varve/copy
mkdir /copy
mount -o ro /dev/varve/copy /copy
[ "$(cat /copy/one)" = one ] || fail "what was written is not in the snapshot"
[ ! -e /copy/two ] || fail "what was written later is in the snapshot"
umount /copy
varve detach copy

# The daemon dies while a hook runs: the file system goes on with the next one,
# which runs the hook after it.
mkfifo /run/fifo
varve volume set db --pre-snapshot 'echo >/run/fifo; read x </run/fifo' --post-snapshot 'echo $VARVE_OUTCOME >/run/outcome' >/dev/null
varve snapshot create db --name late >/dev/null 2>&1 &
read x </run/fifo
kill -9 $daemon
wait $daemon || true
serve
until [ -s /run/outcome ]; do sleep 0.05; done
[ "$(cat /run/outcome)" = failed ] || fail "the hook says $(cat /run/outcome)"
varve snapshot show late && fail "a snapshot that was cut off is there"
echo three >/mnt/three
sync
umount /mnt
varve detach db
kill $daemon
wait $daemon
`, testbed.VMOptions{Files: guestFiles()})
}
