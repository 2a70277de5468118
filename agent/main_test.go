package agent

import (
	"os"
	"testing"

	"varve/agent/freeze"
)

// The test's own binary is the helper that freezes.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == freezeHelper[0] {
		os.Exit(freeze.Main(os.Args[2:], os.Stdin, os.Stdout))
	}
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // The helper need not linger.
	os.Exit(m.Run())
}

var freezeHelper = []string{"freeze-helper"}
