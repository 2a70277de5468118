package e2e

import (
	"testing"

	"varve/e2e/testbed"
)

// guestVarve begins the script of a guest that has a daemon of its own: its state
// is in /var/lib/varve, and it is started again with serve.
const guestVarve = `
export VARVE_PASSPHRASE="correct horse battery staple"
insmod /lib/modules/nbd.ko
serve() {
	rm -f /run/ready
	varve serve >/run/ready 2>>/run/varve.log &
	daemon=$!
	until grep -qs ready /run/ready; do
		sleep 0.05
		kill -0 $daemon || { cat /run/varve.log; exit 1; }
	done
}
fail() { echo "FAILED: $*"; tail -n 20 /run/varve.log; dmesg | tail -n 20; exit 1; }
`

// guestFiles are what such a guest needs.
func guestFiles() map[string]string { return map[string]string{"bin/varve": program} }

// TestVMAttach: a kernel shows a volume as a device. V4, V5
func TestVMAttach(t *testing.T) {
	testbed.RunVM(t, guestVarve+`
serve
varve volume create db --size 256M >/dev/null

varve attach db
ls -l /dev/varve
varve volume list
varve volume show db -o value -c attachments
cat /sys/block/nbd0/size /sys/block/nbd0/backend /sys/block/nbd0/queue/write_cache /sys/block/nbd0/queue/fua /sys/block/nbd0/queue/discard_max_bytes
mkfs.ext4 -q /dev/varve/db
mount /dev/varve/db /mnt
varve detach db && fail "detached while mounted"
varve volume grow db 512M >/dev/null
cat /sys/block/nbd0/size
resize2fs /dev/nbd0
df /mnt
umount /mnt
varve detach db
varve volume list
ls /dev/varve
cat /run/varve.log
kill $daemon
wait $daemon
`, testbed.VMOptions{Files: guestFiles()})
}
