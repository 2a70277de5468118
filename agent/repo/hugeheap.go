package repo

import (
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inHugePages calls f, whose memory is one piece of n bytes on Go's heap. That
// lies in huge pages then, if the system gives them to who asks: of the time that
// argon2id takes with 64 MiB a third is page faults and misses of the TLB.
//
// Nobody can tell Go's allocator to use them, but it takes the lowest place that
// is large enough. So a piece like that is allocated first, the system is told
// about its place, and the collector frees it. Should f's lie elsewhere it takes
// as long as it did. The advice is taken back in the end, since a heap in huge
// pages keeps more of them than it has use for.
func inHugePages(n int, f func()) {
	const page = 2 << 20 // of amd64 and arm64
	if n < 2*page || !hugeOnRequest() {
		f()
		return
	}
	piece := make([]byte, n)
	at := (uintptr(unsafe.Pointer(unsafe.SliceData(piece))) + page - 1) &^ (page - 1)
	length := uintptr(n) &^ (page - 1)
	if at != uintptr(unsafe.Pointer(unsafe.SliceData(piece))) {
		length -= page
	}
	advise := func(advice uintptr) { unix.Syscall(unix.SYS_MADVISE, at, length, advice) } // which may fail: it is advice
	advise(unix.MADV_HUGEPAGE)
	runtime.KeepAlive(piece)
	runtime.GC()
	f()
	advise(unix.MADV_NOHUGEPAGE)
}

// hugeOnRequest reports whether the system gives huge pages to who asks for
// them, and to nobody else: Linux, admin-guide/mm/transhuge.rst.
func hugeOnRequest() bool {
	b, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	return err == nil && strings.Contains(string(b), "[madvise]")
}
