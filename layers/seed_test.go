package layers

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

var seedFlag = flag.Uint64("seed", 0, "replay the model and crash tests with this seed")

// eachSeed runs a random test with as many seeds as the variable SEEDS says, one
// if it is not set.
func eachSeed(t *testing.T, f func(t *testing.T, seed uint64)) {
	count := 1
	if s := os.Getenv("SEEDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("SEEDS=%s: want a number of seeds", s)
		}
		count = n
	}
	for i := range uint64(count) {
		t.Run(fmt.Sprintf("seed %d", i), func(t *testing.T) { f(t, testSeed(t)) })
	}
}

// testSeed returns the seed of a random test and prints it when the test fails.
// It is always the same, so that a change is not held up by what another did;
// make soak, which sets SEEDS, draws new ones.
func testSeed(t testing.TB) uint64 {
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
