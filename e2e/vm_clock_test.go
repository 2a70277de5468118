package e2e

import (
	"crypto/md5"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/e2e/testbed"
)

// A guest's clock is 30 hours ahead, longer than the grace of pruning, and then
// 60 hours behind that. It shares a target with a host here: what either has made
// restores on the other, and the guest's pruning takes nothing away that the host
// deleted a moment ago, or that a backup of the host has stored which a crash
// just cut off. C5
func TestVMHostWithAnotherClock(t *testing.T) {
	testbed.RequireVM(t)
	testbed.Require(t, "nbdcopy", "qemu-io")
	swift := testbed.Swift(t)
	target := fmt.Sprintf("swift://varve-clock-%d/x", time.Now().UnixNano())
	d := startDaemon(t, words(swift.Env())...)
	vm := testbed.StartVM(t, guestVarve+exports(swift.EnvVia(fromGuest(swift.URL)))+`
ahead() { date -s @$(($(date +%s) + $1 * 3600)) >/dev/null; }
sum() { md5sum <$1 | cut -d ' ' -f 1; }
# restored NAME SUM: that backup has these bytes
restored() {
	varve backup restore $1 --name again >/run/told 2>&1 || fail "restore of $1: $(cat /run/told)"
	again=$(attach again --read-only)
	is $(sum $again) $2
	varve detach $again >/dev/null
	varve volume delete again
}
ahead 30
serve
varve target add far `+target+` >/dev/null
varve volume create gv --size 8M >/dev/null
device=$(attach gv)
dd if=/dev/urandom of=$device bs=1M count=8 conv=fsync 2>/dev/null
varve backup create gv --name ahead --force >/dev/null 2>&1
echo "ahead: $(sum $device)"
read mine </dev/console
varve target sync far >/dev/null
restored kept $mine
for i in 1 2; do
	varve target prune far -o value -c freed_objects >/run/freed 2>/run/told || fail "prune: $(cat /run/told)"
	is $(cat /run/freed) 0
done
ahead -60
dd if=/dev/urandom of=$device bs=64k seek=7 count=1 conv=fsync 2>/dev/null
varve backup create gv --name behind --incremental --force >/run/told 2>&1 || fail "backup: $(cat /run/told)"
is $(varve backup show behind -o value -c is_incremental) True
varve target prune far -o value -c freed_objects >/run/freed 2>/run/told || fail "prune: $(cat /run/told)"
is $(cat /run/freed) 0
echo "behind: $(sum $device)"
`, testbed.VMOptions{Files: guestFiles(), Network: true, Memory: 1024})

	// The host: one backup that stays, one that is deleted, one that is cut off.
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	image := randomImage(t, path, 8*MiB)
	d.varve("target", "add", "far", target)
	d.varve("volume", "create", "vol", "--size", "8M")
	client(t, "nbdcopy", path, d.uri("vol"))
	d.varve("backup", "create", "vol", "--name", "kept")
	d.varve("backup", "create", "vol", "--name", "gone")
	d.varve("backup", "delete", "gone")
	d.varve("target", "prune", "far")
	noise := make([]byte, 48*MiB)
	rand.NewChaCha8([32]byte{7}).Read(noise) // more than a pack
	if err := os.WriteFile(path, noise, 0o600); err != nil {
		t.Fatal(err)
	}
	d.varve("volume", "create", "large", "--size", "48M")
	client(t, "nbdcopy", path, d.uri("large"))
	d.varve("target", "set", "far", "--max-upload", "16M")
	d.varve("backup", "create", "large", "--name", "cut", "--no-wait")
	await(t, "the backup is in its midst", func() bool {
		ids := running(t, d)
		return len(ids) == 0 || d.value("done_bytes", "operation", "show", ids[0]) != "0"
	})
	d.kill()
	sums := map[string]string{"ahead": strings.TrimPrefix(vm.Await("ahead: "), "ahead: ")}
	vm.Send(fmt.Sprintf("%x", md5.Sum(image)))
	sums["behind"] = strings.TrimPrefix(vm.Await("behind: "), "behind: ")
	vm.Wait()

	d.start()
	for _, id := range running(t, d) {
		d.varve("operation", "show", id, "--wait")
	}
	d.varve("target", "sync", "far")
	made, err := time.Parse("2006-01-02T15:04:05.000000", d.value("created_at", "backup", "show", "ahead"))
	if err != nil || time.Until(made) < 28*time.Hour {
		t.Errorf("the guest's clock was not ahead: it made a backup at %v, %v", made, err)
	}
	sums["kept"], sums["cut"] = fmt.Sprintf("%x", md5.Sum(image)), fmt.Sprintf("%x", md5.Sum(noise))
	for name, want := range sums {
		out := filepath.Join(dir, "out")
		d.varve("backup", "restore", name, "--name", "again-"+name)
		client(t, "nbdcopy", d.uri("again-"+name), out)
		if got := fmt.Sprintf("%x", md5.Sum(readFile(t, out))); got != want {
			t.Errorf("backup %s restores with MD5 %s, want %s", name, got, want)
		}
	}
	d.varve("target", "verify", "far", "--mode", "deep")
}
