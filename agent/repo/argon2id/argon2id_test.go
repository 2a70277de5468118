package argon2id

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/crypto/argon2"
	"golang.org/x/sys/unix"
)

// everyway runs a test as this machine mixes, and as one without AVX2 does.
func everyway(t *testing.T, f func(t *testing.T)) {
	was := fast
	defer func() { fast = was }()
	for _, fast = range []bool{was, false} {
		t.Run(fmt.Sprintf("fast=%v", fast), f)
	}
}

// Keys are those of golang.org/x/crypto, whatever the cost and the size.
func TestSameAsXCrypto(t *testing.T) {
	same := func(t *testing.T, c Cost, passphrase, salt []byte, size int) {
		t.Helper()
		got, err := Key(passphrase, salt, c, size)
		if err != nil {
			t.Fatal(err)
		}
		if want := argon2.IDKey(passphrase, salt, c.Passes, c.Memory, c.Lanes, uint32(size)); !bytes.Equal(got, want) {
			t.Errorf("%+v, %d bytes: %x, want %x", c, size, got, want)
		}
	}
	everyway(t, func(t *testing.T) {
		for i, c := range []Cost{
			{1, 8, 1}, {1, 0, 1}, {3, 64, 1}, {1, 64, 4}, {2, 67, 3}, {1, 8, 16}, {16, 100, 16}, {3, 1100, 2}, {2, 4096, 4}, {1, 3000, 255},
		} {
			same(t, c, bytes.Repeat([]byte{'p'}, i*20), bytes.Repeat([]byte{byte(i)}, 8+i), 32)
		}
		for _, size := range []int{1, 31, 63, 64, 65, 95, 96, 97, 128, 200} {
			same(t, Cost{1, 8, 1}, []byte("passphrase"), []byte("some salt"), size)
		}
	})
}

// A key that Debian's argon2 made: echo -n password | argon2 somesalt -id -t 2
// -k 1024 -p 4 -l 24 -r.
func TestKnownKey(t *testing.T) {
	everyway(t, func(t *testing.T) {
		got, err := Key([]byte("password"), []byte("somesalt"), Cost{Passes: 2, Memory: 1024, Lanes: 4}, 24)
		if want := "31f763cdccad11e5d93398a39b8cfc1aeb7c426a633d8e28"; err != nil || hex.EncodeToString(got) != want {
			t.Errorf("%x, %v; want %s", got, err, want)
		}
	})
}

// Both ways of mixing give the same, onto what was there before.
func TestMix(t *testing.T) {
	if !fast {
		t.Skip("this machine has no AVX2: there is one way only")
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		var out, x, y, scratch block
		for i := range out {
			out[i], x[i], y[i] = random.Uint64(), random.Uint64(), random.Uint64()
		}
		want := out
		mixGo(&want, &x, &y, &scratch)
		if mix(&out, &x, &y, &scratch); out != want {
			t.Fatalf("mixed with AVX2 %x, in Go %x", out, want)
		}
	}
}

// Calls that run at once do not meet.
func TestConcurrentKeys(t *testing.T) {
	c := Cost{Passes: 2, Memory: 1024, Lanes: 4}
	t.Run("all", func(t *testing.T) {
		for i := range 4 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				salt := bytes.Repeat([]byte{byte(i)}, 16)
				got, err := Key([]byte("x"), salt, c, 32)
				if want := argon2.IDKey([]byte("x"), salt, c.Passes, c.Memory, c.Lanes, 32); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%x, %v; want %x", got, err, want)
				}
			})
		}
	})
}

// Memory that the system has not is an error that says so.
func TestNoMemory(t *testing.T) {
	var now, was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &was); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var pages uint64
	if _, err := fmt.Sscan(string(status), &pages); err != nil {
		t.Fatal(err)
	}
	const spare = 128 << 20 // for the runtime
	now = unix.Rlimit{Cur: pages*uint64(os.Getpagesize()) + spare, Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_AS, &now); err != nil {
		t.Fatal(err)
	}
	_, got := Key([]byte("x"), make([]byte, 16), Cost{Passes: 1, Memory: 1 << 18, Lanes: 1}, 32)
	if err := unix.Setrlimit(unix.RLIMIT_AS, &was); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(got, unix.ENOMEM) || !strings.Contains(got.Error(), "256 MiB of memory") {
		t.Errorf("a key for 256 MiB where there are 128: %v", got)
	}
}

// What a passphrase of a repository costs.
func BenchmarkKey(b *testing.B) {
	c, salt := Cost{Passes: 3, Memory: 64 << 10, Lanes: 4}, make([]byte, 32)
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			if _, err := Key([]byte("x"), salt, c, 32); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("x/crypto", func(b *testing.B) {
		for b.Loop() {
			argon2.IDKey([]byte("x"), salt, c.Passes, c.Memory, c.Lanes, 32)
		}
	})
}
