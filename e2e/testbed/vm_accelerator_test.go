package testbed

import (
	"path/filepath"
	"testing"
	"time"
)

// TestKernelBoots: what decides for KVM can say yes, and no.
func TestKernelBoots(t *testing.T) {
	RequireVM(t)
	folder, err := kernelFolder()
	if err != nil {
		t.Fatal(err)
	}
	kernels, err := filepath.Glob(filepath.Join(folder, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) == 0 {
		t.Fatalf("no kernel in %s: %v", folder, err)
	}
	if !boots(kernels[0], "tcg", vmLimit) {
		t.Error("a kernel does not boot to its panic with tcg, which works everywhere")
	}
	if boots(kernels[0], "tcg", time.Millisecond) {
		t.Error("a kernel boots in a millisecond")
	}
	if boots(filepath.Join(folder, "no-kernel"), "tcg", vmLimit) {
		t.Error("a kernel that is not there boots")
	}
}
