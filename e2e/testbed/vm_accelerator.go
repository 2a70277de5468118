package testbed

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"sync"
	"time"
)

// kvmProbe is how long a kernel may take from nothing to its panic for want of a
// root file system. With KVM that is a second, with tcg two to five.
const kvmProbe = 5 * time.Second

var accelerators struct {
	once sync.Once
	name string
}

// accelerator is what VARVE_VM_ACCEL says, or else kvm where that works, or else
// tcg, which works on every machine. That /dev/kvm can be opened proves nothing:
// inside another virtual machine it may take minutes for what tcg does in
// seconds. So a kernel is booted with it once.
func accelerator(kernel string) string {
	accelerators.once.Do(func() {
		accelerators.name = "tcg"
		if a := os.Getenv("VARVE_VM_ACCEL"); a != "" {
			accelerators.name = a
		} else if boots(kernel, "kvm", kvmProbe) {
			accelerators.name = "kvm"
		}
	})
	return accelerators.name
}

// boots says whether a kernel boots within a time.
func boots(kernel, accel string, within time.Duration) bool {
	if accel == "kvm" {
		device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			return false
		}
		device.Close()
	}
	path, err := find("qemu-system-x86_64")
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	boot := exec.CommandContext(ctx, path, "-M", "q35", "-accel", accel, "-cpu", "max", "-m", "128", "-nodefaults", "-no-user-config",
		"-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-kernel", kernel, "-append", "console=ttyS0 panic=-1")
	out, err := boot.Output()
	return err == nil && bytes.Contains(out, []byte("Kernel panic"))
}
