package testbed

import (
	"strings"
	"testing"
	"time"
)

// TestVM boots a machine, talks with it, and has it power off.
func TestVM(t *testing.T) {
	vm := StartVM(t, `
echo "READY"
read answer </dev/console
echo "HEARD $answer"
insmod /lib/modules/nbd.ko
test -e /dev/nbd0
`, VMOptions{})
	vm.Await("READY")
	t.Logf("up after %v", time.Since(vm.began).Round(100*time.Millisecond))
	vm.Send("hello")
	if line := vm.Await("HEARD"); line != "HEARD hello" {
		t.Errorf("the machine said %q", line)
	}
	vm.Wait()
	if out := vm.Output(); strings.Contains(out, "not found") {
		t.Errorf("something is missing in the guest:\n%s", out)
	}
}
