package layers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// codec is one structure of docs/format.md, part "Volumes".
type codec struct {
	name    string
	valid   []byte
	crcAt   int  // offset of the checksum; from the end if negative
	version bool // has one of its own
	decode  func(b []byte) (again []byte, err error)
}

// fix makes the checksum right.
func (c codec) fix(b []byte) {
	switch {
	case len(b) < 8:
	case c.crcAt == 4:
		le.PutUint32(b[4:], crcWithout(b, 4))
	case c.crcAt < 0:
		le.PutUint32(b[len(b)-4:], crc(b[:len(b)-4]))
	case len(b) >= c.crcAt+4:
		le.PutUint32(b[c.crcAt:], crc(b[:c.crcAt]))
	}
}

func codecs() []codec {
	at := time.Date(2026, 2, 26, 12, 20, 41, 123456789, time.UTC)
	vol, layer := ID{1, 2, 3}, ID{4, 5, 6}
	page := mapPage{Layer: layer, Generation: 7, Group: 3, Sums: 2, SumsCRC: 99}
	page.Kinds.fill(5, 700, Data)
	page.Kinds.fill(701, 702, Zero)
	page.Kinds.set(9, dropped)
	pageBytes := make([]byte, slotSize)
	page.encode(pageBytes)
	data := bytes.Repeat([]byte("abcd"), 2*BlockSize/4)
	record := appendRecordHead(nil, recordHead{Sequence: 3, Barrier: 2, Layer: layer},
		[]entry{{Block: 4, Count: 2, Kind: Data}, {Block: 9, Count: 1 << 20, Kind: Zero}}, data)
	return []codec{
		{"volume", volumeHeader{ID: vol, Created: at, Size: 1 << 30}.encode(), -4, true, func(b []byte) ([]byte, error) {
			h, err := decodeHeader("volume", b)
			return h.encode(), err
		}},
		{"chain", (&chain{Volume: vol, Generation: 9, Head: 2, Layers: []layerRecord{
			{ID: layer, Boundary: ID{7}, Size: 512, Sealed: at, Parent: -1, Flags: flagSnapshot},
			{ID: ID{8}, Origin: ID{3}, Boundary: ID{9}, Size: 1024, Sealed: at, Parent: 0, Flags: flagMark, Shared: true},
			{ID: ID{10}, Size: 4096, Parent: 1},
		}}).encode(), -4, true, func(b []byte) ([]byte, error) {
			c, err := decodeChain("chain", b)
			if err != nil {
				return nil, err
			}
			return c.encode(), nil
		}},
		{"map header", encodeMapHeader(layer, vol), 124, true, func(b []byte) ([]byte, error) {
			return encodeMapHeader(layer, vol), checkMapHeader("map", b, layer, vol)
		}},
		{"page", pageBytes, 4, false, func(b []byte) ([]byte, error) {
			p, err := decodePage("map", 0, b, layer, 3)
			if err != nil {
				return nil, err
			}
			again := make([]byte, slotSize)
			p.encode(again)
			return again, nil
		}},
		{"barrier", barrier{Volume: vol, Generation: 5, Sequence: 6, Position: 8192, End: 1 << 20, Clean: true}.encode(), 124, true, func(b []byte) ([]byte, error) {
			x, err := decodeBarrier("journal", b)
			return x.encode(), err
		}},
		{"record", append(record, data...), 4, false, func(b []byte) ([]byte, error) {
			r, err := decodeJournalRecord("journal", 0, b)
			if err != nil {
				return nil, err
			}
			return append(appendRecordHead(nil, r.recordHead, r.Entries, r.Data), r.Data...), nil
		}},
	}
}

func TestDecodedEncodesToTheSame(t *testing.T) {
	for _, c := range codecs() {
		got, err := c.decode(c.valid)
		if err != nil || !bytes.Equal(got, c.valid) {
			t.Errorf("%s: error %v, same bytes: %v", c.name, err, bytes.Equal(got, c.valid))
		}
	}
}

func TestCutAtEveryLength(t *testing.T) {
	for _, c := range codecs() {
		for n := range c.valid {
			if _, err := c.decode(slices.Clone(c.valid[:n])); err == nil {
				t.Errorf("%s: %d of %d bytes were accepted", c.name, n, len(c.valid))
			}
		}
		if _, err := c.decode(append(slices.Clone(c.valid), 0)); err == nil {
			t.Errorf("%s: a byte too many was accepted", c.name)
		}
	}
}

func TestFlipEveryByte(t *testing.T) {
	for _, c := range codecs() {
		for i := range c.valid {
			b := slices.Clone(c.valid)
			b[i] ^= 0x41
			_, err := c.decode(b)
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("%s: byte %d flipped: got %v, want damage", c.name, i, err)
			}
		}
	}
}

func TestRaisedVersion(t *testing.T) {
	for _, c := range codecs() {
		if !c.version {
			continue
		}
		for _, fix := range []bool{true, false} {
			b := slices.Clone(c.valid)
			le.PutUint32(b[8:], formatVersion+1)
			if fix {
				c.fix(b)
			}
			if _, err := c.decode(b); !errors.Is(err, ErrUnsupported) {
				t.Errorf("%s of version 2, checksum right: %v: got %v, want %v", c.name, fix, err, ErrUnsupported)
			}
		}
	}
}

// A reserved byte or an unknown flag with a right checksum is of a newer
// program.
func TestReservedBytes(t *testing.T) {
	at := map[string][]int{
		"volume": {52, 123}, "chain": {48, 63, 64 + 68, 64 + 72, 64 + 127}, "map header": {56, 123, 128, 4095},
		"page": {44, 127}, "barrier": {64, 68, 123}, "record": {48, 63},
	}
	for _, c := range codecs() {
		for _, i := range at[c.name] {
			b := slices.Clone(c.valid)
			b[i] |= 0x80
			c.fix(b)
			if _, err := c.decode(b); !errors.Is(err, ErrUnsupported) {
				t.Errorf("%s: reserved byte %d: got %v, want %v", c.name, i, err, ErrUnsupported)
			}
		}
	}
}

// FuzzDecode gives every decoder arbitrary bytes, as they are and with a right
// checksum: no panic, and what decodes encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	all := codecs()
	for i, c := range all {
		f.Add(byte(i), c.valid)
	}
	f.Fuzz(func(t *testing.T, which byte, b []byte) {
		c := all[int(which)%len(all)]
		for range 2 {
			if again, err := c.decode(b); err == nil && !bytes.Equal(again, b) {
				t.Fatalf("%s: decoded, but encodes to other bytes", c.name)
			}
			b = slices.Clone(b)
			c.fix(b)
		}
	})
}

// FuzzOpen opens a volume whose chain or journal is arbitrary.
func FuzzOpen(f *testing.F) {
	base := newMemDisk()
	if err := createVolume(base, ID{1}, 64*BlockSize, smallTuning); err != nil {
		f.Fatal(err)
	}
	files := []string{headerName, chainName, journalName}
	for i, name := range files {
		f.Add(byte(i), base.names[name].data[:min(20000, len(base.names[name].data))])
	}
	f.Fuzz(func(t *testing.T, which byte, b []byte) {
		d := newMemDisk()
		for name, x := range base.names {
			d.names[name] = &memFile{d: d.memWorld, name: name, unit: x.unit, data: slices.Clone(x.data), past: map[int64][][]byte{}}
		}
		x := d.names[files[int(which)%len(files)]]
		if copy(x.data, b) < len(b) {
			x.data = append(x.data, b[len(x.data):]...)
		}
		v, err := openVolume(d, Options{}, smallTuning)
		if err != nil {
			return
		}
		p := make([]byte, v.Size())
		v.ReadAt(p, 0) // whatever it holds
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A golden is a volume in testdata that opens for ever.
type golden struct {
	file       string
	make       func(t *testing.T, dir string) *Volume // as a crash leaves it
	blocks     map[string]map[int64]byte              // what live, and each snapshot, holds that is not zero
	boundaries string
}

var goldens = []golden{
	{
		file: "testdata/volume-v1.tar.gz",
		make: makeGoldenLine,
		blocks: map[string]map[int64]byte{
			"live":             {0: 6, 1: 3, 2: 4, 3: 1, 101: 2, 299: 5},
			ID{15: 1}.String(): {0: 1, 1: 1, 2: 1, 3: 1, 100: 2, 101: 2},
			ID{15: 3}.String(): {0: 1, 1: 3, 2: 4, 3: 1, 101: 2},
		},
		boundaries: "1 on 0, mark 2 on 1, 3 on 2",
	},
	{
		file: "testdata/clone-v1.tar.gz",
		make: makeGoldenTree,
		blocks: map[string]map[int64]byte{
			"live":             {0: 1, 1: 1, 2: 3, 50: 4, 52: 6},
			ID{15: 4}.String(): {0: 1, 1: 1, 2: 3, 50: 4},
			ID{15: 5}.String(): {0: 1, 1: 1, 2: 3, 50: 4, 51: 5},
		},
		boundaries: "4 on 0, 5 on 4",
	},
}

func put(v *Volume, c byte, b, n int64) error {
	_, err := v.WriteAt(bytes.Repeat([]byte{c}, int(n)*BlockSize), b*BlockSize)
	return err
}

func createGolden(t *testing.T, dir string) *Volume {
	if err := createVolume(osDisk{dir}, ID{15: 9}, 256*BlockSize, smallTuning); err != nil {
		t.Fatal(err)
	}
	v, err := openVolume(osDisk{dir}, Options{}, smallTuning)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// makeGoldenLine makes a volume without branches, with records in its journal.
func makeGoldenLine(t *testing.T, dir string) *Volume {
	v := createGolden(t, dir)
	err := errors.Join(
		put(v, 1, 0, 4), put(v, 2, 100, 2), v.Snapshot(ID{15: 1}),
		put(v, 3, 1, 1), v.WriteZeroes(100*BlockSize, BlockSize), v.Snapshot(ID{15: 2}),
		put(v, 4, 2, 1), v.Snapshot(ID{15: 3}), v.tidy(),
		v.DeleteSnapshot(ID{15: 2}, true), v.tidy(),
		v.Grow(300*BlockSize), put(v, 5, 299, 1), v.Flush(), put(v, 6, 0, 1), v.Flush(),
	)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// makeGoldenTree makes a clone of a branch, with a branch of its own: layers of
// another volume, called shared, some with checksums and some without.
func makeGoldenTree(t *testing.T, dir string) *Volume {
	origin := createGolden(t, t.TempDir())
	err := errors.Join(
		put(origin, 1, 0, 2), origin.Snapshot(ID{15: 1}), origin.tidy(),
		put(origin, 2, 1, 1), origin.Revert(ID{15: 1}, ID{15: 2}),
		put(origin, 3, 2, 1), origin.Snapshot(ID{15: 3}),
		origin.cloneTo(osDisk{dir}, ID{15: 8}, ID{15: 3}),
	)
	if err != nil {
		t.Fatal(err)
	}
	v, err := openVolume(osDisk{dir}, Options{}, smallTuning)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		put(v, 4, 50, 1), v.Snapshot(ID{15: 4}), put(v, 5, 51, 1), v.Revert(ID{15: 4}, ID{15: 5}),
		put(v, 6, 52, 1), v.Flush(), origin.Close(),
	)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Volumes of version 1 open for ever.
func TestGoldenVolume(t *testing.T) {
	for _, g := range goldens {
		t.Run(filepath.Base(g.file), func(t *testing.T) {
			if *update {
				writeGolden(t, g)
			}
			dir := t.TempDir()
			extract(t, g.file, dir)
			v, err := openVolume(osDisk{dir}, Options{}, smallTuning)
			if err != nil {
				t.Fatal(err)
			}
			checkGolden(t, v, g)
			mustTidy(t, v)
			checkGolden(t, v, g)
			if err := errors.Join(sound(v), v.Close()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func checkGolden(t *testing.T, v *Volume, g golden) {
	t.Helper()
	for name, want := range g.blocks {
		var l Layer = v
		if name != "live" {
			id, err := ParseID(name)
			if err != nil {
				t.Fatal(err)
			}
			w, err := v.View(id)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			l = w
		}
		got := content(t, l)
		for b := range blocksOf(l.Size()) {
			if !bytes.Equal(blockOf(got, b), bytes.Repeat([]byte{want[b]}, len(blockOf(got, b)))) {
				t.Errorf("%s: block %d begins with %d, want %d", name, b, got[b*BlockSize], want[b])
			}
		}
	}
	var list []string
	for _, b := range v.Boundaries() {
		mark := ""
		if b.Mark {
			mark = "mark "
		}
		list = append(list, fmt.Sprintf("%s%d on %d", mark, b.ID[15], b.Parent[15]))
	}
	if got := strings.Join(list, ", "); got != g.boundaries {
		t.Errorf("boundaries %s, want %s", got, g.boundaries)
	}
}

func writeGolden(t *testing.T, g golden) {
	dir := t.TempDir()
	v := g.make(t, dir)
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	names, err := v.d.list()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == lockName {
			continue
		}
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b))}), writeAll(w, b)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close(), os.MkdirAll("testdata", 0o777), os.WriteFile(g.file, out.Bytes(), 0o666)); err != nil {
		t.Fatal(err)
	}
	v.closeFiles() // as a crash leaves it
}

func writeAll(w io.Writer, b []byte) error { _, err := w.Write(b); return err }

func extract(t *testing.T, file, dir string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(h.Name)), b, 0o600)
		}
		if err != nil {
			t.Fatal(fmt.Errorf("%s: %w", h.Name, err))
		}
	}
}
