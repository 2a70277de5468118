package layers

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// damagedVolume returns a volume with two sealed layers, blocks 0 to 99 of the
// first, with two damaged blocks, 44 and 49, that the second hides.
func damagedVolume(t *testing.T) (v *Volume, dir string, layer ID) {
	t.Helper()
	v, dir = newVolume(t, 256)
	writeBlocks(t, v, 1, 0, 100)
	takeSnapshot(t, v)
	layer = v.files[0].id
	writeBlocks(t, v, 2, 40, 10)
	takeSnapshot(t, v)
	mustTidy(t, v)
	if err := sound(v); err != nil {
		t.Fatalf("check of a sound volume: %v", err)
	}
	flip(t, filepath.Join(dir, dataName(layer)), 44*BlockSize+17)
	flip(t, filepath.Join(dir, dataName(layer)), 49*BlockSize)
	return v, dir, layer
}

// S8: a damaged sealed block is found by Check and by a view, and named with
// volume, layer, file, offset, expected and found.
func TestCheckFindsDamage(t *testing.T) {
	v, dir, layer := damagedVolume(t)
	var told []Finding
	report, err := v.Check(t.Context(), CheckOptions{Found: func(f Finding) { told = append(told, f) }})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Findings) != 2 || report.Count != 2 || len(told) != 2 || told[1] != report.Findings[1] {
		t.Fatalf("%d findings, count %d, %d told, want 2: %v", len(report.Findings), report.Count, len(told), report.Findings)
	}
	want := Finding{
		Volume: v.ID(), Layer: layer, Path: filepath.Join(dir, dataName(layer)), Off: 44 * BlockSize, Data: true,
		Expected: report.Findings[0].Expected, Found: report.Findings[0].Found,
	}
	if f := report.Findings[0]; f != want || f.Expected == f.Found || f.Found == "" || !errors.Is(f, ErrCorrupt) {
		t.Errorf("found %+v, want %+v", f, want)
	}
	if report.Checked != 110*BlockSize || report.Unchecked != 0 {
		t.Errorf("%d bytes checked and %d not, want %d and 0", report.Checked, report.Unchecked, 110*BlockSize)
	}

	w, err := v.View(v.Boundaries()[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p := make([]byte, 10*BlockSize)
	var damage *CorruptError
	n, err := w.ReadAt(p, 40*BlockSize)
	if !errors.As(err, &damage) || damage.Off != 44*BlockSize || n > 4*BlockSize {
		t.Errorf("read of damaged blocks: %d, %v", n, err)
	}
	if _, err := w.ReadAt(p[:4*BlockSize], 45*BlockSize); err != nil {
		t.Errorf("read of sound blocks between damaged ones: %v", err)
	}
}

// S8: the live volume finds damage when it reads a block for the first time, and
// again after each snapshot; it does not copy a damaged block up as if it were good.
func TestReadFindsDamage(t *testing.T) {
	v, dir, layer := damagedVolume(t)
	data := filepath.Join(dir, dataName(layer))
	p := make([]byte, BlockSize)
	for b := range int64(100) { // the damaged blocks are hidden by newer ones
		if _, err := v.ReadAt(p, b*BlockSize); err != nil {
			t.Fatalf("block %d: %v", b, err)
		}
	}
	flip(t, data, 60*BlockSize+5)
	id := takeSnapshot(t, v)
	var damage *CorruptError
	n, err := v.ReadAt(make([]byte, 30*BlockSize), 50*BlockSize)
	if !errors.As(err, &damage) || damage.Off != 60*BlockSize || filepath.Base(damage.Path) != dataName(layer) || n > 10*BlockSize {
		t.Errorf("read of damage after a snapshot: %d, %v", n, err)
	}
	if _, err := v.WriteAt(p[:10], 60*BlockSize); !errors.Is(err, ErrCorrupt) {
		t.Errorf("write into a damaged block: %v, want %v", err, ErrCorrupt)
	}
	writeBlocks(t, v, 3, 60, 1)
	if _, err := v.ReadAt(p, 60*BlockSize); err != nil || p[0] != 3 {
		t.Errorf("a block that was written anew: %d, %v", p[0], err)
	}
	if err := errors.Join(v.Revert(id, NewID()), v.Close()); err != nil {
		t.Fatal(err)
	}
	v = reopenQuiet(t, dir)
	if _, err := v.ReadAt(p, 60*BlockSize); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read of damage after opening: %v, want %v", err, ErrCorrupt)
	}
	if _, err := v.ReadAt(p, 61*BlockSize); err != nil {
		t.Error(err)
	}
}

// What was read far and wide is forgotten at a bound.
func TestSeenIsBounded(t *testing.T) {
	s := newSeen(MaxSize / BlockSize)
	s.add(seenBlocks-3, seenBlocks+70)
	for b, want := range map[int64]bool{seenBlocks - 4: false, seenBlocks - 3: true, seenBlocks: true, seenBlocks + 69: true, seenBlocks + 70: false} {
		if s.has(b) != want {
			t.Errorf("block %d seen: %v, want %v", b, s.has(b), want)
		}
	}
	if n := s.spans.Load(); n != 2 {
		t.Errorf("%d spans, want 2", n)
	}
	v, _ := newVolume(t, 64)
	writeBlocks(t, v, 1, 0, 1)
	takeSnapshot(t, v)
	mustTidy(t, v)
	old := v.seen.Load()
	old.spans.Store(maxSeen + 1)
	if _, err := v.ReadAt(make([]byte, BlockSize), 0); err != nil {
		t.Fatal(err)
	}
	if now := v.seen.Load(); now == old || now.has(0) {
		t.Error("the bound was passed and nothing was forgotten")
	}
}

// S8: damage of the structure is found before the data, and hides no other.
func TestCheckFindsDamagedStructure(t *testing.T) {
	v, dir, layer := damagedVolume(t)
	gr := v.files[1].groups[0]
	flip(t, filepath.Join(dir, chainName), 90)
	flip(t, filepath.Join(dir, mapName(v.files[1].id)), sumsOffset(0, gr.sums)+9)
	flip(t, filepath.Join(dir, journalName), int64(v.journal.place)*slotSize+40)
	report, err := v.Check(t.Context(), CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range report.Findings {
		got = append(got, filepath.Base(f.Path))
	}
	want := []string{chainName, mapName(v.files[1].id), dataName(layer), dataName(layer)}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("found damage in %v, want %v", got, want)
	}
	flip(t, filepath.Join(dir, chainName), 90)
	if report, err = v.Check(t.Context(), CheckOptions{}); err != nil || filepath.Base(report.Findings[0].Path) != journalName {
		t.Errorf("found %v, %v first, want the journal", report.Findings, err)
	}
}

// S8: a place that cannot be read is a finding like any other.
func TestCheckFindsWhatCannotBeRead(t *testing.T) {
	d := newMemDisk()
	m := newModel(t, d, testRand(), 64*BlockSize, smallTuning)
	writeBlocks(t, m.v, 1, 0, 3)
	takeSnapshot(t, m.v)
	mustTidy(t, m.v)
	d.fail = func(op, name string) error {
		if op == "read" && strings.HasSuffix(name, ".data") {
			return syscall.EIO
		}
		return nil
	}
	report, err := m.v.Check(t.Context(), CheckOptions{})
	if err != nil || report.Count != 3 || !report.Findings[2].Data || report.Findings[2].Off != 2*BlockSize {
		t.Errorf("%d findings, %v, want 3: %v", report.Count, err, report.Findings)
	}
	if _, err := m.v.ReadAt(make([]byte, 10), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("a read gives %v, want %v", err, syscall.EIO)
	}
}

// A check tells its progress, asks before it reads, and ends when it is told to.
func TestCheckPace(t *testing.T) {
	v, _, _ := damagedVolume(t)
	asked, last, total := int64(0), int64(0), int64(0)
	o := CheckOptions{
		Pace: func(_ context.Context, n int) error { asked += int64(n); return nil },
		Progress: func(done, all int64) {
			if done <= last || done > all {
				t.Errorf("progress %d of %d after %d", done, all, last)
			}
			last, total = done, all
		},
	}
	if _, err := v.Check(t.Context(), o); err != nil || last != total || last != asked || asked < 110*BlockSize {
		t.Errorf("ended at %d of %d, asked for %d, %v", last, total, asked, err)
	}
	stop := errors.New("stop")
	if _, err := v.Check(t.Context(), CheckOptions{Pace: func(context.Context, int) error { return stop }}); !errors.Is(err, stop) {
		t.Errorf("got %v, want what the limiter says", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o = CheckOptions{Found: func(Finding) { cancel() }}
	if report, err := v.Check(ctx, o); !errors.Is(err, context.Canceled) || report.Count == 0 {
		t.Errorf("canceled: %v with %d findings", err, report.Count)
	}
}

// S8: blocks are repaired from what has them, and only with what the checksum is
// of.
func TestRepair(t *testing.T) {
	v, _, layer := damagedVolume(t)
	good, _ := newVolume(t, 256)
	writeBlocks(t, good, 1, 0, 47) // has block 44, not 49
	repair := func(off, n int64) (int64, int64) {
		t.Helper()
		repaired, damaged, err := v.Repair(t.Context(), layer, off, n, good)
		if err != nil {
			t.Fatal(err)
		}
		return repaired, damaged
	}
	if repaired, damaged := repair(45*BlockSize, BlockSize); repaired != 0 || damaged != 0 {
		t.Errorf("a sound range: %d repaired, %d damaged", repaired, damaged)
	}
	if repaired, damaged := repair(0, v.Size()); repaired != 1 || damaged != 1 {
		t.Errorf("%d repaired, %d damaged, want 1 and 1", repaired, damaged)
	}
	report, err := v.Check(t.Context(), CheckOptions{})
	if err != nil || report.Count != 1 || report.Findings[0].Off != 49*BlockSize {
		t.Errorf("after the first repair: %v, %v", report.Findings, err)
	}
	writeBlocks(t, good, 1, 0, 100)
	if repaired, damaged := repair(49*BlockSize+100, 1); repaired != 1 || damaged != 0 {
		t.Errorf("%d repaired, %d damaged, want 1 and 0", repaired, damaged)
	}
	if err := sound(v); err != nil {
		t.Error(err)
	}
	if _, _, err := v.Repair(t.Context(), NewID(), 0, 10, good); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no layer: %v, want %v", err, fs.ErrNotExist)
	}
	if _, _, err := v.Repair(t.Context(), v.head.id, 0, 10, good); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of the head: %v, want %v", err, fs.ErrNotExist)
	}
}

// Space that a crash left is given back: by tidying when the volume is opened,
// and by a check whenever.
func TestSweep(t *testing.T) {
	v, dir := newVolume(t, 4096)
	writeBlocks(t, v, 1, 0, 100)
	takeSnapshot(t, v)
	writeBlocks(t, v, 2, 0, 10)
	mustTidy(t, v)
	stray := func(v *Volume) {
		t.Helper()
		for _, l := range v.files {
			if err := l.data.writeAt(bytes.Repeat([]byte{9}, 300*BlockSize), 2000*BlockSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	taken := func(when string, want int64) {
		t.Helper()
		if got := diskUsage(t, dir); got < want*BlockSize || got > (want+20)*BlockSize {
			t.Errorf("%s: %d blocks are taken, want about %d", when, got/BlockSize, want)
		}
	}
	stray(v)
	taken("before", 710)
	report, err := v.Check(t.Context(), CheckOptions{})
	if err != nil || report.Reclaimed < 500*BlockSize || report.Count > 0 {
		t.Errorf("check: %+v, %v", report, err)
	}
	taken("after a check", 110)
	stray(v)
	if err := v.closeFiles(); err != nil { // as a crash does
		t.Fatal(err)
	}
	v.closed.Store(true)
	v = reopenQuiet(t, dir)
	mustTidy(t, v)
	taken("after a crash", 110)
	want := append(bytes.Repeat([]byte{2}, 10*BlockSize), bytes.Repeat([]byte{1}, 90*BlockSize)...)
	if got := content(t, v)[:len(want)]; !bytes.Equal(got, want) {
		t.Errorf("the volume differs at %d", differ(got, want))
	}
}
