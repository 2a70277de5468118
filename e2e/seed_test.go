package e2e

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

var seedFlag = flag.Uint64("seed", 0, "replay the random tests with this seed")

// eachSeed runs a random test with as many seeds as the variable SEEDS says, one
// if it is not set.
func eachSeed(t *testing.T, f func(t *testing.T, seed uint64)) {
	for i := range setting(t, "SEEDS", 1) {
		t.Run(fmt.Sprintf("seed %d", i), func(t *testing.T) { f(t, newSeed(t)) })
	}
}

// newSeed returns the seed of a random test and prints it when the test fails.
// It is always the same, so that a change is not held up by what another did;
// make soak, which sets SEEDS, draws new ones.
func newSeed(t *testing.T) uint64 {
	seed := max(*seedFlag, 1)
	if *seedFlag == 0 && os.Getenv("SEEDS") != "" {
		seed = uint64(time.Now().UnixNano())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("replay with -seed %d", seed)
		}
	})
	return seed
}

func seedText(seed uint64) string { return strconv.FormatUint(seed, 10) }

// setting is a number from the environment, which make soak sets.
func setting(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: want a number above 0", name, s)
	}
	return n
}
