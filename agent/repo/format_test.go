package repo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"varve/layers"
)

// A form is a structure of docs/format.md, "Repository": an example, and a function
// that reads it and writes it again.
type form struct {
	name    string
	example []byte
	again   func(b []byte) ([]byte, error)
	// version is the offset of the version, width its bytes.
	version, width int
	// summed says that a checksum or a tag covers every byte.
	summed bool
}

var (
	fixedID   = layers.ID{1, 2, 3, 4, 5, 6, 0x77, 8, 0x89, 10, 11, 12, 13, 14, 15, 16}
	otherID   = layers.ID{16, 15, 14, 13, 12, 11, 0x70, 9, 0x88, 7, 6, 5, 4, 3, 2, 1}
	fixedTime = time.UnixMilli(1_700_000_000_123).UTC()
	fixedKey  = [32]byte{7}
)

func forms() []form {
	h := &head{suite: suiteAES, level: Fastest, conditional: 1, id: fixedID, created: fixedTime, containers: 16, label: "étiquette"}
	s := &slot{id: fixedID, repository: otherID, kind: SlotPassphrase, label: "bürö", created: fixedTime, cost: defaultCost, salt: fixedKey, nonce: [12]byte{1}, wrapped: [48]byte{2}, mac: [16]byte{3}}
	file := *s
	file.kind, file.label, file.cost = SlotKeyFile, "", argonCost{}
	w := &wrappedKey{domainEpoch: 1, repository: fixedID, domain: otherID, ref: keyRef{otherID, 3, 1 << 60}, created: fixedTime, nonce: [12]byte{1}, wrapped: [48]byte{2}}
	o := &header{kind: kindRoot, suite: suiteOpen, id: objectID{1}, key: keyRef{fixedID, 1, 2}, commitment: fixedKey, inner: 100, total: 1000}
	rnd := rand.New(rand.NewPCG(1, 1))
	r := &root{
		name: rootName{fixedID, 1, 2, otherID}, spans: exampleSpans(rnd), packs: 3, ancestors: []layers.ID{fixedID},
		backup: Backup{
			ID: otherID, Volume: fixedID, Parent: fixedID, Boundary: otherID, Host: "hôte", Claim: fixedID, VolumeName: "v", Name: "n", Size: 1 << 40, Logical: 5, Changed: 6,
			Stored: 7, Objects: 8, Incremental: true, Created: fixedTime, DataTimestamp: fixedTime, Meta: map[string]string{"": "x", "k": ""},
		},
	}
	c := &Claim{ID: fixedID, Volume: otherID, Epoch: 3, After: Position{fixedID, 2, 70_000}, Host: "hôte", Created: fixedTime}
	p := &caption{captionName{fixedID, otherID, 70_000, objectID{5}}, Caption{"n", "d", map[string]string{"": "x", "k": ""}}, fixedTime, "hôte"}
	r.inventory = &leafRef{pack: r.spans.packs[1], number: 3, off: 500, stored: 99}
	return []form{
		{"head", h.append(nil, fixedKey), func(b []byte) ([]byte, error) {
			h, err := parseHead(b)
			if err == nil {
				err = verifyHead(b, fixedKey)
			}
			if err != nil {
				return nil, err
			}
			return h.append(nil, fixedKey), nil
		}, 8, 2, true},
		{"slot", s.append(nil), slotAgain, 8, 2, true},
		{"slot of a key file", file.append(nil), slotAgain, 8, 2, true},
		{"wrapped key", w.append(nil), func(b []byte) ([]byte, error) {
			w, err := parseWrappedKey(b)
			if err != nil {
				return nil, err
			}
			return w.append(nil), nil
		}, 8, 2, true},
		{"header", o.append(nil), func(b []byte) ([]byte, error) {
			h, err := parseHeader(b)
			if err != nil {
				return nil, err
			}
			return append(h.append(nil), b[headerSize:]...), nil
		}, 8, 2, true},
		{"leaf", exampleLeaf(rnd, 40).append(nil, fixedID), func(b []byte) ([]byte, error) {
			l, err := parseLeaf(b, fixedID)
			if err != nil {
				return nil, err
			}
			return l.append(nil, fixedID), nil
		}, 0, 1, false},
		{"spans", r.spans.append(nil, fixedID), func(b []byte) ([]byte, error) {
			s, err := parseSpans(b, fixedID)
			if err != nil {
				return nil, err
			}
			return s.append(nil, fixedID), nil
		}, 0, 1, false},
		{"summary", r.summary().append(nil), func(b []byte) ([]byte, error) {
			again, f, err := parseSummary(b, r.name)
			if err != nil {
				return nil, err
			}
			again.spans = r.spans
			if err := again.setInventory(f[fieldInventory]); err != nil {
				return nil, err
			}
			return f.append(nil), nil
		}, -1, 0, false},
		{"claim", c.body().append(nil), func(b []byte) ([]byte, error) {
			f, err := parseFields(b)
			if err != nil {
				return nil, err
			}
			again, err := parseClaim(f, c.name())
			if err != nil {
				return nil, err
			}
			for tag := range f { // those that readers pass over
				if c.body()[tag] != nil {
					f[tag] = again.body()[tag]
				}
			}
			return f.append(nil), nil
		}, -1, 0, false},
		{"caption", p.body().append(nil), func(b []byte) ([]byte, error) {
			f, err := parseFields(b)
			if err != nil {
				return nil, err
			}
			again, err := parseCaption(f, p.name)
			if err != nil {
				return nil, err
			}
			for tag := range f { // those that readers pass over
				if p.body()[tag] != nil {
					f[tag] = again.body()[tag]
				}
			}
			return f.append(nil), nil
		}, -1, 0, false},
		{"trailer", appendTrailer(nil, fixedID, exampleSections(rnd)), func(b []byte) ([]byte, error) {
			backup, sections, err := parseTrailer(b)
			if err != nil {
				return nil, err
			}
			return appendTrailer(nil, backup, sections), nil
		}, 0, 1, false},
		{"relocations", exampleRelocations().append(nil, fixedID), func(b []byte) ([]byte, error) {
			l, err := parseRelocations(b, fixedID)
			if err != nil {
				return nil, err
			}
			return l.append(nil, fixedID), nil
		}, 0, 1, false},
		{"inventory", appendInventoryText(nil, []packSize{{inData, objectID{1}, 5}, {inLeaves, objectID{2}, 1 << 33}}), func(b []byte) ([]byte, error) {
			packs, err := parseInventory(b)
			if err != nil {
				return nil, err
			}
			return appendInventoryText(nil, packs), nil
		}, 0, 1, false},
		{"roots", appendRoots(nil, []rootName{{fixedID, 1, 1, otherID}, {otherID, 1, 300, fixedID}}), func(b []byte) ([]byte, error) {
			roots, err := parseRoots(b)
			if err != nil {
				return nil, err
			}
			return appendRoots(nil, roots), nil
		}, 0, 1, false},
	}
}

// exampleRelocations are rows of two packs to two others, in any order.
func exampleRelocations() *relocations {
	one := packRef{objectID{9}, keyRef{fixedID, 1, 7}}
	two := packRef{objectID{8}, keyRef{otherID, 2, 8}}
	g := newRelocating()
	for _, row := range []struct {
		from sectionKey
		to   sectionPlace
	}{
		{sectionKey{objectID{2}, 5}, sectionPlace{two, inData, 1, 1 << 24, 70_000, sectionFrame, 20, true}},
		{sectionKey{objectID{1}, 70_000}, sectionPlace{one, inData, 0, headerSize, 99, sectionLeaf, 0, true}},
		{sectionKey{objectID{1}, 0}, sectionPlace{one, inData, 3, 5000, 4000, sectionFrame, 32, true}},
		{sectionKey{objectID{1}, 1}, sectionPlace{two, inData, 0, headerSize, 4096 + tagSize, sectionFrame, 1, false}},
	} {
		g.add(row.from, &row.to)
	}
	g.setClass(objectID{2}, movedAll)
	g.setClass(objectID{1}, movedNeeded)
	return g.build()
}

func slotAgain(b []byte) ([]byte, error) {
	s, err := parseSlot(b)
	if err != nil {
		return nil, err
	}
	return s.append(nil), nil
}

// exampleLeaf makes a tidy leaf with all kinds of pieces.
func exampleLeaf(rnd *rand.Rand, pieces int) *leaf {
	l := &leaf{first: 3 * spanBlocks, blocks: spanBlocks}
	var off int64
	for i := range pieces {
		if len(l.packs) == 0 || rnd.IntN(20) == 0 {
			l.packs = append(l.packs, packRef{objectID{byte(i), 1, byte(i >> 8)}, keyRef{[]layers.ID{fixedID, otherID}[rnd.IntN(2)], 1, uint64(rnd.IntN(2))}})
			off = headerSize
		}
		f := frameRef{pack: int32(len(l.packs) - 1), number: uint32(i * 2), off: off + rnd.Int64N(3), blocks: uint8(1 + rnd.IntN(32))}
		if f.zstd = rnd.IntN(3) > 0; f.zstd {
			f.stored = uint32(int(f.blocks)*4096*3/4 + rnd.IntN(100))
		} else {
			f.stored = uint32(f.blocks)*4096 + tagSize
		}
		off = f.end()
		l.frames = append(l.frames, f)
	}
	block := l.first
	for i := range l.frames {
		block += rnd.Int64N(200)
		count := 1 + rnd.Int32N(int32(l.frames[i].blocks))
		l.pieces = append(l.pieces, piece{block: block, count: count, frame: int32(i), at: rnd.Int32N(int32(l.frames[i].blocks) - count + 1)})
		block += int64(count)
		if rnd.IntN(4) == 0 {
			l.pieces = append(l.pieces, piece{block: block, count: 5, frame: zeroPiece})
			block += 5
		}
	}
	l.tidy()
	return l
}

func exampleSpans(rnd *rand.Rand) *spans {
	s := new(spans)
	for i := range 6 {
		s.packs = append(s.packs, &leafPack{id: objectID{byte(i)}, where: place(i % 2), key: keyRef{fixedID, 1, 9}, size: int64(1000 * i)})
	}
	block := int64(0)
	for i := range 15 {
		r := row{first: block, blocks: spanBlocks}
		if i%5 == 4 {
			r.blocks = splitBlocks
		}
		for range 1 + rnd.IntN(maxLeaves) {
			r.leaves = append(r.leaves, leafRef{pack: s.packs[rnd.IntN(len(s.packs))], number: rnd.Uint32N(100), off: headerSize + rnd.Int64N(1<<24), stored: 17 + rnd.Uint32N(1<<18)})
		}
		s.rows = append(s.rows, r)
		block += spanBlocks * (1 + rnd.Int64N(3))
	}
	s.collectPacks()
	return s
}

func exampleSections(rnd *rand.Rand) []section {
	var sections []section
	block := int64(0)
	for i := range 10 {
		s := section{kind: sectionFrame, blocks: uint8(1 + rnd.IntN(32)), id: frameID{byte(i)}}
		s.stored = uint32(s.blocks)*4096 + tagSize
		for left := int64(s.blocks); left > 0; {
			r := run{block + rnd.Int64N(10), 1 + rnd.Int64N(left)}
			s.runs = append(s.runs, r)
			left, block = left-r.count, r.block+r.count+1
		}
		for range i % 3 {
			at := rnd.Int64N(int64(s.blocks))
			s.repeats = append(s.repeats, repeat{run{rnd.Int64N(1 << 20), 1 + rnd.Int64N(int64(s.blocks)-at)}, at})
		}
		sections = append(sections, s)
	}
	return append(sections,
		section{kind: sectionLeaf, zstd: true, stored: 700, id: frameID{1}, first: 5 * spanBlocks},
		section{kind: sectionInventory, zstd: true, stored: 70, id: frameID{2}})
}

func TestFormsReadWhatTheyWrote(t *testing.T) {
	for _, f := range forms() {
		got, err := f.again(f.example)
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
		} else if !bytes.Equal(got, f.example) {
			t.Errorf("%s: other bytes after reading and writing", f.name)
		}
	}
}

func TestFormsCutAnywhere(t *testing.T) {
	for _, f := range forms() {
		for n := range f.example {
			if f.name == "summary" || f.name == "claim" || f.name == "caption" {
				break // shorter ones may be whole: fields are all optional; the seal guards them
			}
			if _, err := f.again(f.example[:n:n]); err == nil {
				t.Errorf("%s: cut to %d of %d bytes, and read", f.name, n, len(f.example))
			}
		}
		if f.name == "header" || f.name == "summary" {
			continue
		}
		if _, err := f.again(append(slices.Clone(f.example), 0)); err == nil {
			t.Errorf("%s: a byte too many, and read", f.name)
		}
	}
}

func TestFormsFlippedAnywhere(t *testing.T) {
	for _, f := range forms() {
		for at := range f.example {
			for bit := range 8 {
				b := slices.Clone(f.example)
				b[at] ^= 1 << bit
				again, err := f.again(b)
				switch {
				case err != nil:
				case f.summed:
					t.Errorf("%s: bit %d of byte %d flipped, and read", f.name, bit, at)
				case !bytes.Equal(again, b):
					t.Errorf("%s: bit %d of byte %d flipped: reads, and writes other bytes", f.name, bit, at)
				}
			}
		}
	}
}

func TestFormsOfALaterVersion(t *testing.T) {
	for _, f := range forms() {
		if f.width == 0 {
			continue
		}
		b := slices.Clone(f.example)
		b[f.version]++
		_, err := f.again(b)
		if !errors.Is(err, ErrVersion) {
			t.Errorf("%s of version 2: %v, want ErrVersion", f.name, err)
		}
		if _, err := f.again(b[:f.version+f.width]); !errors.Is(err, ErrVersion) {
			t.Errorf("%s of version 2, cut behind it: %v, want ErrVersion", f.name, err)
		}
	}
	// What a newer program may do within version 1: the answer is the same.
	h := head{suite: suiteAES, level: Fastest, id: fixedID, containers: 1}
	b := h.append(nil, fixedKey)
	b[40] = 1 // a required feature
	binary.LittleEndian.PutUint32(b[len(b)-4:], checksum(b[:len(b)-4]))
	if _, err := parseHead(b); !errors.Is(err, ErrVersion) {
		t.Errorf("a head that requires a feature: %v", err)
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	r := root{name: rootName{fixedID, 1, 1, otherID}, backup: Backup{ID: otherID, Volume: fixedID}, spans: new(spans)}
	f := r.summary()
	f[200] = []byte("from the future")
	again, _, err := parseSummary(f.append(nil), r.name)
	if err != nil || again.backup.ID != otherID {
		t.Errorf("a summary with an unknown field: %v", err)
	}
}

func TestSealBindsItsPlace(t *testing.T) {
	for _, s := range []suite{suiteAES, suiteOpen} {
		key := &volumeKey{suite: s, key: fixedKey}
		id := objectID{1}
		stored := key.sealer(id).seal(nil, []byte("text"), sectionFrame, 5, nil)
		open := func(k *volumeKey, id objectID, kind sectionKind, n uint32, header []byte) error {
			text, err := k.sealer(id).open(slices.Clone(stored), kind, n, header)
			if err == nil && string(text) != "text" {
				err = fmt.Errorf("text %q", text)
			}
			return err
		}
		if err := open(key, id, sectionFrame, 5, nil); err != nil {
			t.Errorf("suite %d: %v", s, err)
		}
		other := &volumeKey{suite: s, key: [32]byte{8}}
		for what, err := range map[string]error{
			"another key":    open(other, id, sectionFrame, 5, nil),
			"another object": open(key, objectID{2}, sectionFrame, 5, nil),
			"another kind":   open(key, id, sectionLeaf, 5, nil),
			"another number": open(key, id, sectionFrame, 6, nil),
			"a header":       open(key, id, sectionFrame, 5, []byte{0}),
			"a missing tag":  func() error { _, err := key.sealer(id).open([]byte("short"), sectionFrame, 5, nil); return err }(),
			"nothing at all": func() error { _, err := key.sealer(id).open(nil, sectionFrame, 5, nil); return err }(),
			"a shifted start": func() error {
				_, err := key.sealer(id).open(slices.Clone(stored[1:]), sectionFrame, 5, nil)
				return err
			}(),
		} {
			if err == nil {
				t.Errorf("suite %d: opens with %s", s, what)
			}
		}
	}
}

// fuzzForm checks that whatever is read is written again as it was. The seeds
// come beside the examples.
func fuzzForm(f *testing.F, seeds [][]byte, names ...string) {
	var again func([]byte) ([]byte, error)
	for _, form := range forms() {
		if slices.Contains(names, form.name) {
			f.Add(form.example)
			again = form.again
		}
	}
	for _, seed := range seeds {
		if written, err := again(slices.Clone(seed)); err != nil || !bytes.Equal(written, seed) {
			f.Fatalf("seed %x writes %x, %v", seed, written, err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		written, err := again(slices.Clone(b))
		if err == nil && !bytes.Equal(written, b) {
			t.Errorf("%x reads, and writes %x", b, written)
		}
	})
}

func FuzzHead(f *testing.F)        { fuzzForm(f, nil, "head") }
func FuzzSlot(f *testing.F)        { fuzzForm(f, nil, "slot", "slot of a key file") }
func FuzzWrappedKey(f *testing.F)  { fuzzForm(f, nil, "wrapped key") }
func FuzzHeader(f *testing.F)      { fuzzForm(f, nil, "header") }
func FuzzLeaf(f *testing.F)        { fuzzForm(f, repeatsTexts(f, sectionLeaf), "leaf") }
func FuzzSpans(f *testing.F)       { fuzzForm(f, nil, "spans") }
func FuzzSummary(f *testing.F)     { fuzzForm(f, nil, "summary") }
func FuzzClaim(f *testing.F)       { fuzzForm(f, nil, "claim") }
func FuzzCaption(f *testing.F)     { fuzzForm(f, nil, "caption") }
func FuzzTrailer(f *testing.F)     { fuzzForm(f, repeatsTexts(f, sectionTrailer), "trailer") }
func FuzzInventory(f *testing.F)   { fuzzForm(f, nil, "inventory") }
func FuzzRoots(f *testing.F)       { fuzzForm(f, nil, "roots") }
func FuzzRelocations(f *testing.F) { fuzzForm(f, nil, "relocations") }

// FuzzNames: whatever reads as a name writes the same name.
func FuzzNames(f *testing.F) {
	f.Add(rootName{fixedID, 1, 2, otherID}.String())
	f.Add(tombstoneName(fixedID, otherID))
	f.Add(volumeKeyName(keyRef{fixedID, 1, 2}))
	f.Add(sessionName(fixedID, 3))
	f.Add(slotName(fixedID))
	f.Add(listName(fixedID))
	f.Add(packName(inLeaves, objectID{1, 2, 3}))
	f.Add(relocationName(fixedID, objectID{1}))
	f.Add(claimName{fixedID, 2, otherID}.String())
	f.Add(captionName{fixedID, otherID, 3, objectID{1}}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := parseSlotName(s); ok && slotName(id) != s {
			t.Errorf("slot %q", s)
		}
		if id, ok := parseList(s); ok && listName(id) != s {
			t.Errorf("condemned list %q", s)
		}
		if where, id, ok := parsePack(s); ok && packName(where, id) != s {
			t.Errorf("pack %q", s)
		}
		if id, n, ok := parseSession(s); ok && sessionName(id, n) != s {
			t.Errorf("session %q", s)
		}
		if volume, id, ok := parseRelocationName(s); ok && relocationName(volume, id) != s {
			t.Errorf("relocation %q", s)
		}
		name, ok := parseVolumeName(s)
		if !ok {
			return
		}
		if root, ok := name.root(); ok && root.String() != s {
			t.Errorf("root %q", s)
		}
		if id, ok := name.tombstone(); ok && tombstoneName(name.volume, id) != s {
			t.Errorf("tombstone %q", s)
		}
		if claim, ok := name.claim(); ok && claim.String() != s {
			t.Errorf("claim %q", s)
		}
		if caption, ok := name.caption(); ok && caption.String() != s {
			t.Errorf("caption %q", s)
		}
		if ref, ok := name.key(); ok && volumeKeyName(ref) != s {
			t.Errorf("key %q", s)
		}
	})
}

// FuzzExpand: no more memory than the limit, no panic.
func FuzzExpand(f *testing.F) {
	f.Add(compress(nil, bytes.Repeat([]byte("abc"), 100)))
	f.Add(compress(nil, mixedFrame(f)))
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := expand(b, 1<<16)
		if err == nil && len(text) > 1<<16 {
			t.Errorf("%d bytes", len(text))
		}
		expandInto(make([]byte, 4096), b)
		for _, need := range []int{1, zstdBlock + 1} {
			if front, ok := expandFront(b, need, frameBytes); ok && len(front) >= frameBytes {
				t.Errorf("%d bytes of a frame's front", len(front))
			}
		}
	})
}
