package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"varve/e2e/testbed"
)

// program is the path of the binary under test.
var program string

// TestMain builds the binary, then runs the tests with shared peers.
func TestMain(m *testing.M) {
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	clearOrphans()
	testbed.Main(m)
}

func build() error {
	var err error
	if program, err = filepath.Abs("../bin/varve"); err != nil {
		return err
	}
	build := exec.Command("go", "build", "-o", program, "../cmd/varve")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build of varve: %w\n%s", err, out)
	}
	return nil
}
