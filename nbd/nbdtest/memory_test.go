package nbdtest_test

import (
	"testing"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

func TestMemoryIsADevice(t *testing.T) {
	nbdtest.RunSparse(t, func(*testing.T) nbd.Device { return nbdtest.NewMemory(nbdtest.Size) })
}
