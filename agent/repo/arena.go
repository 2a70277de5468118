package repo

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// arenaBytes is the size of an arena: room for any pack, and for what a restore
// has under way. Pages that nobody wrote to take no memory.
const arenaBytes = maxPack

// Arenas are pieces of memory outside of Go's heap, for what a backup or a
// restore moves. On the heap a collector that lets it grow to twice what is in
// use would count each pack twice, and would give the memory back minutes
// later.
//
// An arena is never unmapped: a store's client may look at an object for an
// instant after its request was given up. It is kept for the next one instead,
// without pages, so there are as many as were ever used at once.
var arenas struct {
	mu   sync.Mutex
	free [][]byte
}

// takeArena returns arenaBytes of zeros, for the caller until freeArena.
func takeArena() ([]byte, error) {
	arenas.mu.Lock()
	defer arenas.mu.Unlock()
	if n := len(arenas.free); n > 0 {
		b := arenas.free[n-1]
		arenas.free = arenas.free[:n-1]
		return b, nil
	}
	b, err := unix.Mmap(-1, 0, arenaBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("%d MiB of memory for packs: %w; stop other programs, or raise the limit on the daemon's memory", arenaBytes>>20, err)
	}
	return b, nil
}

// freeArena gives the memory of an arena back to the system, and the arena to
// the next takeArena.
func freeArena(b []byte) {
	if err := unix.Madvise(b, unix.MADV_DONTNEED); err != nil {
		clear(b) // It would keep its pages, and be zero all the same.
	}
	arenas.mu.Lock()
	defer arenas.mu.Unlock()
	arenas.free = append(arenas.free, b)
}
