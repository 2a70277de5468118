package layers

import (
	"bytes"
	"errors"
	"io/fs"
	"iter"
	"path/filepath"
	"slices"
	"testing"
)

// collect returns the runs, and checks that they are in order, apart and not
// empty.
func collect(t testing.TB, runs iter.Seq2[Run, error]) []Run {
	t.Helper()
	var all []Run
	for r, err := range runs {
		if err != nil {
			t.Fatal(err)
		}
		if n := len(all); r.Len <= 0 || r.Value == 0 || n > 0 && r.Off < all[n-1].End() {
			t.Fatalf("run %+v after %+v", r, all)
		}
		all = append(all, r)
	}
	return all
}

// checkHistory holds Depths and Changes to the model: what differs is in
// Changes, what has no depth is zero.
func (m *model) checkHistory() {
	m.t.Helper()
	ats := []modelSnapshot{{data: m.live}}
	if i := m.pick(false); i >= 0 {
		ats = append(ats, m.marks[i])
	}
	for _, at := range ats {
		for _, s := range m.spans(int64(len(at.data))) {
			rest := bytes.Clone(at.data[s.start:s.end])
			for _, r := range collect(m.t, m.v.Depths(at.id, s.start, s.end-s.start)) {
				clear(rest[r.Off-s.start : r.End()-s.start])
			}
			if !IsZero(rest) {
				m.t.Fatalf("at %s: bytes without a depth are not zero", at.id)
			}
			if len(m.marks) == 0 {
				continue
			}
			from := m.marks[m.r.IntN(len(m.marks))]
			got := make([]byte, s.end-s.start)
			if s.start < int64(len(from.data)) {
				copy(got, from.data[s.start:])
			}
			for _, r := range collect(m.t, m.v.Changes(from.id, at.id, s.start, s.end-s.start)) {
				copy(got[r.Off-s.start:r.End()-s.start], at.data[r.Off:])
			}
			if i := differ(got, at.data[s.start:s.end]); i >= 0 {
				m.t.Fatalf("from %s to %s: byte %d differs and is not in Changes", from.id, at.id, s.start+int64(i))
			}
		}
	}
}

// TestHistory: what was written since a snapshot, and where it lies, to the
// block.
func TestHistory(t *testing.T) {
	const size = 200 << 20 // pages of the map end at 62 MiB
	v, err := Create(filepath.Join(t.TempDir(), "v"), NewID(), size, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	write := func(off int64) {
		t.Helper()
		if _, err := v.WriteAt(bytes.Repeat([]byte{1}, BlockSize), off); err != nil {
			t.Fatal(err)
		}
	}
	seal := func() ID {
		t.Helper()
		id := NewID()
		if err := v.Snapshot(id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	const page = pageBlocks * BlockSize
	write(0)
	write(page - BlockSize)
	write(page)
	first := seal()
	write(BlockSize)
	write(page)
	if err := v.WriteZeroes(0, BlockSize); err != nil {
		t.Fatal(err)
	}
	second := seal()
	write(size - BlockSize)
	for _, c := range []struct {
		name string
		got  iter.Seq2[Run, error]
		want []Run
	}{
		{"depth of the live volume", v.Depths(ID{}, 0, size), []Run{{0, 2 * BlockSize, 2}, {page - BlockSize, BlockSize, 3}, {page, BlockSize, 2}, {size - BlockSize, BlockSize, 1}}},
		{"depth of a snapshot", v.Depths(second, 0, size), []Run{{0, 2 * BlockSize, 1}, {page - BlockSize, BlockSize, 2}, {page, BlockSize, 1}}},
		{"depth of the oldest", v.Depths(first, 0, size), []Run{{0, BlockSize, 1}, {page - BlockSize, 2 * BlockSize, 1}}},
		{"live since the first", v.Changes(first, ID{}, 0, size), []Run{{0, 2 * BlockSize, 1}, {page, BlockSize, 1}, {size - BlockSize, BlockSize, 1}}},
		{"live since the second", v.Changes(second, ID{}, 0, size), []Run{{size - BlockSize, BlockSize, 1}}},
		{"between", v.Changes(first, second, 0, size), []Run{{0, 2 * BlockSize, 1}, {page, BlockSize, 1}}},
		{"the other way", v.Changes(second, first, 0, size), []Run{{0, 2 * BlockSize, 1}, {page, BlockSize, 1}}},
		{"of itself", v.Changes(first, first, 0, size), nil},
		{"a part, unaligned", v.Changes(first, ID{}, 100, BlockSize), []Run{{100, BlockSize, 1}}},
		{"beyond the end", v.Changes(first, ID{}, size-10, 100), []Run{{size - 10, 10, 1}}},
	} {
		if got := collect(t, c.got); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	for name, runs := range map[string]iter.Seq2[Run, error]{
		"depths": v.Depths(NewID(), 0, size), "from": v.Changes(NewID(), ID{}, 0, size), "at": v.Changes(first, NewID(), 0, size),
	} {
		for _, err := range runs {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s of a snapshot that is not there: %v", name, err)
			}
		}
	}
	for _, err := range v.Changes(ID{}, first, 0, size) {
		if !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("changes since nothing: %v", err)
		}
	}
}
