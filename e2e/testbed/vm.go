package testbed

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// vmLimit is how long a machine may run. The slowest test needs a twentieth on
// an idle machine; a kernel that hangs must not hold the others for ever.
const vmLimit = 10 * time.Minute

// VMOptions say what a virtual machine has beside the common image. The zero
// value is good.
type VMOptions struct {
	Files   map[string]string // path in the guest, without the first slash -> file here
	Disks   []string          // raw files, /dev/vda and so on; kept when the machine ends
	QEMU    []string          // more arguments
	Network bool              // a card; 10.0.2.2 is this machine's loopback interface
	Memory  int               // MiB; 0: 512
}

// A VM is a running virtual machine: a Debian kernel with busybox, the tools of
// ext4 and XFS, and nbd-client. It runs one script, whose output is the serial
// console's, and powers off.
//
// The script runs under sh -eu. It may read lines that Send gives it from
// /dev/console. "load nbd" is: insmod /lib/modules/nbd.ko.
type VM struct {
	t     testing.TB
	cmd   *exec.Cmd
	input io.WriteCloser
	done  chan struct{} // closed when qemu has ended
	began time.Time

	mu     sync.Mutex
	more   sync.Cond // output has grown, or ended is set
	output []byte    // of the console
	seen   int       // up to where Await has looked
	ended  bool
	cut    bool
}

var guests shared[*guestImage]

// RequireVM skips the test, or fails it if STRICT=1, where no virtual machine
// can be started.
func RequireVM(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("a virtual machine takes its time")
	}
	Require(t, append([]string{"qemu-system-x86_64", "busybox", "ldd"}, guestPrograms...)...)
	folder, err := kernelFolder()
	if err == nil {
		_, err = os.Stat(filepath.Join(folder, "boot"))
	}
	if err != nil {
		lack(t, "there is no kernel for virtual machines (%v); e2e/setup.sh fetches one", err)
	}
}

// StartVM starts a machine that runs the script. It is ended with the test.
func StartVM(t testing.TB, script string, o VMOptions) *VM {
	t.Helper()
	RequireVM(t)
	image := guests.get(t, func(*bed) (*guestImage, error) { return buildGuest() })
	b := new(bed)
	t.Cleanup(b.close)
	folder, err := b.newFolder()
	if err != nil {
		t.Fatal(err)
	}
	var own cpio
	own.file("script", 0o644, []byte(script))
	for name, path := range o.Files {
		if err := own.copy(name, path); err != nil {
			t.Fatal(err)
		}
	}
	initrd := filepath.Join(folder, "initrd")
	if err := image.writeInitrd(initrd, &own); err != nil {
		t.Fatal(err)
	}
	vm := &VM{t: t, done: make(chan struct{}), began: time.Now()}
	vm.more.L = &vm.mu
	if err := vm.start(vmArguments(image.kernel, initrd, o)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.end)
	return vm
}

// vmArguments are qemu's. A machine without hardware help is faster with one
// processor; see accelerator.
func vmArguments(kernel, initrd string, o VMOptions) []string {
	if o.Memory == 0 {
		o.Memory = 512
	}
	args := []string{
		"-M", "q35", "-accel", accelerator(kernel), "-cpu", "max", "-smp", "1", "-m", strconv.Itoa(o.Memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off",
	}
	for i, disk := range o.Disks {
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=d%d,discard=unmap", disk, i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d", i))
	}
	if o.Network {
		args = append(args, "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=")
	}
	return append(args, o.QEMU...)
}

func (vm *VM) start(args []string) error {
	path, err := find("qemu-system-x86_64")
	if err != nil {
		return err
	}
	vm.cmd = exec.Command(path, args...)
	vm.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if vm.input, err = vm.cmd.StdinPipe(); err != nil {
		return err
	}
	out, w, err := os.Pipe()
	if err != nil {
		return err
	}
	vm.cmd.Stdout, vm.cmd.Stderr = w, w
	err = fromLastingThread(vm.cmd.Start)
	w.Close() // the child has its own
	if err != nil {
		out.Close()
		return err
	}
	late := time.AfterFunc(vmLimit, func() { vm.cmd.Process.Kill() })
	go func() {
		vm.collect(out)
		vm.cmd.Wait() // how it ended is seen in the output
		late.Stop()
		vm.mu.Lock()
		vm.ended = true
		vm.more.Broadcast()
		vm.mu.Unlock()
		close(vm.done)
	}()
	return nil
}

// collect reads the console until it is closed.
func (vm *VM) collect(out io.ReadCloser) {
	defer out.Close()
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		vm.mu.Lock()
		vm.output = append(vm.output, bytes.ReplaceAll(buf[:n], []byte("\r"), nil)...)
		vm.more.Broadcast()
		vm.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Await returns when a line that begins with the text has come, and returns
// that line. What came before it is not looked at again. If the machine ends
// without it, so does the test.
func (vm *VM) Await(text string) string {
	vm.t.Helper()
	vm.mu.Lock()
	defer vm.mu.Unlock()
	for {
		if line, ok := vm.nextLine(text); ok {
			return line
		}
		if vm.ended {
			vm.t.Fatalf("the machine ended and never said %q:\n%s", text, vm.output)
		}
		vm.more.Wait()
	}
}

// nextLine looks for a whole line behind what was seen.
func (vm *VM) nextLine(text string) (string, bool) {
	for {
		rest := vm.output[vm.seen:]
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			return "", false
		}
		vm.seen += end + 1
		if strings.HasPrefix(string(rest[:end]), text) {
			return string(rest[:end]), true
		}
	}
}

// Send types a line on the console.
func (vm *VM) Send(line string) {
	vm.t.Helper()
	if _, err := io.WriteString(vm.input, line+"\n"); err != nil {
		vm.t.Fatalf("console of the machine: %v", err)
	}
}

// Wait returns what the console showed when the machine has powered off. A
// script that failed fails the test.
func (vm *VM) Wait() string {
	vm.t.Helper()
	<-vm.done
	out := vm.Output()
	if !strings.Contains(out, "GUEST-RC=0\n") {
		vm.t.Fatalf("the machine's script failed, or the machine was ended after %v:\n%s", time.Since(vm.began).Round(time.Second), out)
	}
	return out
}

// Output is what the console has shown so far.
func (vm *VM) Output() string {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return string(vm.output)
}

// Cut ends the machine as a power failure does: what the guest had in memory is
// gone, what it wrote to its disks stays.
func (vm *VM) Cut() {
	vm.cmd.Process.Kill() // fails if it has ended, which will do
	<-vm.done
}

// end is Cut, at the end of the test.
func (vm *VM) end() {
	vm.Cut()
	if vm.t.Failed() {
		vm.t.Logf("console of a machine:\n%s", vm.Output())
	}
}

// RunVM runs a script in a machine of its own and returns what the console
// showed. A failure fails the test.
func RunVM(t testing.TB, script string, o VMOptions) string {
	t.Helper()
	return StartVM(t, script, o).Wait()
}
