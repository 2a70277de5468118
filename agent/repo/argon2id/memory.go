package argon2id

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the unit in which memory is taken, in bytes: so all of it can lie
// in huge pages.
const hugePage = 2 << 20

// takeMemory returns at least n bytes of zeros outside of Go's heap, for the
// caller until giveMemory.
func takeMemory(n uint64) ([]byte, error) {
	n = (n + hugePage - 1) / hugePage * hugePage
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	unix.Madvise(b, unix.MADV_HUGEPAGE) // without them it only takes longer
	return b, nil
}

// giveMemory gives it back to the system, which clears it before anybody else
// gets it.
func giveMemory(b []byte) {
	if err := unix.Munmap(b); err != nil {
		panic("argon2id: unmap: " + err.Error()) // it was mapped just so
	}
}

// blocksOf is memory as the blocks that fit it. They are not on Go's heap and
// hold no pointers.
func blocksOf(memory []byte) []block {
	return unsafe.Slice((*block)(unsafe.Pointer(unsafe.SliceData(memory))), len(memory)/blockBytes)
}
