package repo

import (
	"os"
	"runtime"
	"runtime/debug"
	"sync"

	"golang.org/x/crypto/argon2"
	"golang.org/x/sys/unix"
)

// stretching lets one argon2id run at a time: each takes as much memory as its
// cost says.
var stretching sync.Mutex

// stretchPassphrase makes a key of a passphrase: argon2id (RFC 9106), 32 bytes.
func stretchPassphrase(passphrase string, salt []byte, c argonCost) []byte {
	stretching.Lock()
	defer stretching.Unlock()
	large := c.memory >= defaultCost.memory
	if large {
		populateHeap(int(c.memory) << 10)
	}
	key := argon2.IDKey([]byte(passphrase), salt, c.passes, c.memory, c.threads, 32)
	if large {
		// Its memory would stay with the process, and count double when the
		// collector next sets a goal. Who waits for the key does not wait for this.
		go debug.FreeOSMemory()
	}
	return key
}

// populateHeap makes it likely that the next n bytes that are allocated at once
// have their pages.
//
// argon2id of golang.org/x/crypto allocates its memory, and reads each part of
// it before it first writes there. In memory that the system has just mapped
// each page is then faulted in twice, first as the page of zeros that all share, and
// to take that away again interrupts the other processors. Pages that are asked
// for together, for writing, cost a tenth of it. If the allocator takes other
// memory than what it has just been given back, only this is lost.
func populateHeap(n int) {
	b := make([]byte, n)
	middle := n / 2 &^ (os.Getpagesize() - 1)
	var halves sync.WaitGroup
	for _, half := range [][]byte{b[:middle], b[middle:]} {
		halves.Go(func() { unix.Madvise(half, unix.MADV_POPULATE_WRITE) }) // without it nothing is won
	}
	halves.Wait()
	runtime.KeepAlive(b)
	runtime.GC() // gives b back
}
