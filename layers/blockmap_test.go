package layers

import (
	"runtime"
	"testing"
)

// The block map takes at most 32 MiB for 1 TiB that was written in order, and
// 600 MiB when no two neighbours lie in the same layer. It is held for 1/16 TiB.
func TestBlockMapMemory(t *testing.T) {
	const blocks = 1 << 40 / 16 / BlockSize
	for _, tt := range []struct {
		name string
		fill func(m *blockMap)
		most int64 // bytes
	}{
		{"in order", func(m *blockMap) {
			for b := int64(0); b < blocks; b += 256 {
				m.set(b, b+256, slotBase)
			}
		}, 32 << 20 / 16},
		{"neighbours in different layers", func(m *blockMap) {
			for b := range int64(blocks) {
				m.set(b, b+1, slotBase+uint16(b%7))
			}
		}, 600 << 20 / 16},
	} {
		var before, after runtime.MemStats
		runtime.GC() // what lies in pools, or has to be closed, lives through one
		runtime.GC()
		runtime.ReadMemStats(&before)
		m := newBlockMap(blocks)
		tt.fill(m)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if used := int64(after.HeapAlloc) - int64(before.HeapAlloc); used > tt.most {
			t.Errorf("%s: %d bytes for 64 GiB, want at most %d", tt.name, used, tt.most)
		} else {
			t.Logf("%s: %.1f MiB for 1 TiB", tt.name, float64(used)*16/(1<<20))
		}
		runtime.KeepAlive(m)
	}
}
