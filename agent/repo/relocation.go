package repo

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"varve/layers"
)

// A sectionPlace says where a section is, and all that is needed to open it.
type sectionPlace struct {
	pack   packRef
	number uint32
	off    int64 // bytes, in the object
	stored uint32
	kind   sectionKind // frame, leaf or inventory
	blocks uint8       // of a frame
	zstd   bool
}

// A relocation says that a section of a pack is somewhere else too.
type relocation struct {
	from sectionKey
	to   sectionPlace
}

const (
	relocationVersion = 1
	maxRelocations    = 1 << 20 // in one object
	relocationLimit   = 32 << 20

	bodyRows = 12
)

// appendRelocations writes the text of relocations, which ascend by their packs
// and numbers: docs/format.md 2.10.
func appendRelocations(b []byte, volume layers.ID, rows []relocation) []byte {
	keys := keyTable{own: volume}
	var packs, objects []objectID
	var counts, keyOf []int
	index := make(map[packRef]int)
	for i := range rows {
		if n := len(packs); n == 0 || packs[n-1] != rows[i].from.id {
			packs, counts = append(packs, rows[i].from.id), append(counts, 0)
		}
		counts[len(counts)-1]++
		if _, ok := index[rows[i].to.pack]; !ok {
			index[rows[i].to.pack] = len(objects)
			objects, keyOf = append(objects, rows[i].to.pack.id), append(keyOf, keys.index(rows[i].to.pack.key))
		}
	}
	b = keys.append(append(b, relocationVersion))
	b = binary.AppendUvarint(b, uint64(len(packs)))
	for i := range packs {
		b = append(b, packs[i][:]...)
	}
	for _, n := range counts {
		b = binary.AppendUvarint(b, uint64(n))
	}
	b = binary.AppendUvarint(b, uint64(len(objects)))
	for i := range objects {
		b = append(b, objects[i][:]...)
	}
	for _, k := range keyOf {
		b = binary.AppendUvarint(b, uint64(k))
	}
	next := int64(0)
	for i := range rows {
		if i == 0 || rows[i].from.id != rows[i-1].from.id {
			next = 0
		}
		b = binary.AppendUvarint(b, uint64(int64(rows[i].from.number)-next))
		next = int64(rows[i].from.number) + 1
	}
	for i := range rows {
		b = binary.AppendUvarint(b, uint64(index[rows[i].to.pack]))
	}
	for i := range rows {
		b = binary.AppendUvarint(b, uint64(rows[i].to.number))
	}
	for i := range rows {
		b = binary.AppendUvarint(b, uint64(rows[i].to.off))
	}
	lengths := make([]uint32, len(rows))
	for i := range rows {
		to := &rows[i].to
		lengths[i] = to.stored
		b = append(b, shapeByte(to.kind, to.blocks, to.zstd))
	}
	return appendU24s(b, lengths)
}

// parseRelocations reads the text of relocations.
func parseRelocations(b []byte, volume layers.ID) ([]relocation, error) {
	d := &decoder{rest: b}
	if v := d.u8(); d.err == nil && v != relocationVersion {
		return nil, fmt.Errorf("relocations version %d, this program knows version %d: %w", v, relocationVersion, ErrVersion)
	}
	keys := parseKeys(d, volume)
	packs := make([]objectID, d.count(21, "number of packs"))
	for i := range packs {
		copy(packs[i][:], d.bytes(20))
		if d.err == nil && i > 0 && slices.Compare(packs[i-1][:], packs[i][:]) >= 0 {
			d.fail(errors.New("packs do not ascend"))
		}
	}
	var rows []relocation
	for i := range packs {
		n := d.upTo(min(maxRelocations, int64(len(d.rest))), "number of sections")
		if d.err == nil && (n == 0 || len(rows)+int(n) > len(d.rest)/7) { // the least that a row takes
			d.fail(errCut)
		}
		for range n {
			if d.err == nil {
				rows = append(rows, relocation{from: sectionKey{id: packs[i]}})
			}
		}
	}
	objects := make([]packRef, d.count(21, "number of objects"))
	for i := range objects {
		copy(objects[i].id[:], d.bytes(20))
	}
	used := 0
	for i := range objects {
		objects[i].key, used = keyAt(d, keys, used)
		if d.err == nil && slices.Contains(objects[:i], objects[i]) {
			d.fail(errors.New("an object stands twice"))
		}
	}
	if d.err == nil && used != len(keys) {
		d.failf("%d of %d keys are used", used, len(keys))
	}
	parseRows(d, rows, objects)
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("relocations: %w", err)
	}
	return rows, nil
}

// parseRows reads the columns of the rows.
func parseRows(d *decoder, rows []relocation, objects []packRef) {
	next := int64(0)
	for i := range rows {
		if i == 0 || rows[i].from.id != rows[i-1].from.id {
			next = 0
		}
		next += d.upTo(1<<32-2, "section")
		if d.err == nil && next > 1<<32-2 {
			d.failf("section %d", next)
		}
		rows[i].from.number = uint32(next)
		next++
	}
	used := int64(0)
	for i := range rows {
		at := d.upTo(int64(len(objects)), "object")
		if d.err == nil && (at >= int64(len(objects)) || at > used) {
			d.failf("object %d of %d after %d", at, len(objects), used)
		}
		if d.err != nil {
			return
		}
		rows[i].to.pack = objects[at]
		used = max(used, at+1)
	}
	if used != int64(len(objects)) {
		d.failf("%d of %d objects are used", used, len(objects))
	}
	for i := range rows {
		rows[i].to.number = uint32(d.upTo(1<<32-2, "number"))
	}
	for i := range rows {
		if rows[i].to.off = d.upTo(maxOffset, "offset"); d.err == nil && rows[i].to.off < headerSize {
			d.failf("a section at offset %d", rows[i].to.off)
		}
	}
	for i := range rows {
		to := &rows[i].to
		to.kind, to.blocks, to.zstd = d.shape()
	}
	d.u24s(len(rows), func(i int, v uint32) { rows[i].to.stored = v })
	for i := range rows {
		to := &rows[i].to
		if d.err == nil && to.kind == sectionFrame {
			f := frameRef{blocks: to.blocks, zstd: to.zstd, stored: to.stored}
			if err := f.validate(); err != nil {
				d.fail(err)
			}
		} else if d.err == nil && to.stored <= tagSize {
			d.failf("a section of %d bytes", to.stored)
		}
	}
}

func relocationPrefix(volume layers.ID) string { return volumePrefix(volume) + "r/" }

func relocationName(volume layers.ID, id objectID) string {
	return relocationPrefix(volume) + id.String()
}

// parseRelocationName reads what relocationName wrote.
func parseRelocationName(name string) (volume layers.ID, id objectID, ok bool) {
	n, is := parseVolumeName(name)
	if !is || n.kind != "r" || len(n.rest) != 2*len(id) {
		return volume, id, false
	}
	_, err := hex.Decode(id[:], []byte(n.rest))
	return n.volume, id, err == nil && relocationName(n.volume, id) == name
}

// writeRelocations makes relocations durable, and known to this Repo. What they
// name is durable already. It returns the name of the object.
func (r *Repo) writeRelocations(ctx context.Context, volume, session layers.ID, rows []relocation) (string, error) {
	slices.SortFunc(rows, func(x, y relocation) int {
		return cmp.Or(slices.Compare(x.from.id[:], y.from.id[:]), cmp.Compare(x.from.number, y.from.number))
	})
	f := make(fields)
	f.setID(bodyVolume, volume)
	f.setTime(bodyTime, time.Now())
	f.setText(bodyHost, hostName())
	f[bodyRows] = compress(nil, appendRelocations(nil, volume, rows))
	id := newObjectID(session)
	name := relocationName(volume, id)
	if err := r.store.Put(ctx, name, r.sealObject(kindRelocation, id, f)); err != nil {
		return "", fmt.Errorf("write relocation: %w", err)
	}
	r.moves.add(volume, name, rows)
	return name, nil
}

// parseRelocation reads a relocation object.
func (r *Repo) parseRelocation(name string, b []byte) ([]relocation, error) {
	volume, id, ok := parseRelocationName(name)
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	if !ok || h.id != id {
		return nil, fmt.Errorf("it is object %s", h.id)
	}
	f, err := r.openBody(b, kindRelocation)
	if err != nil {
		return nil, err
	}
	if of, err := f.id(bodyVolume); err != nil || of != volume {
		return nil, fmt.Errorf("it is of volume %s", of)
	}
	text, err := expand(f[bodyRows], relocationLimit)
	if err != nil {
		return nil, err
	}
	return parseRelocations(text, volume)
}

// moves are the relocations that were read, by volume. They are asked for only
// when a section cannot be read where it was written.
type moves struct {
	mu      sync.Mutex
	volumes map[layers.ID]*volumeMoves
}

type volumeMoves struct {
	reading sync.Mutex                    // one reads at a time
	listed  time.Time                     // when the names were listed last
	known   map[string][]hop              // by object
	places  map[sectionKey][]sectionPlace // the newest first
}

// movesFresh is how long a listing of relocations is taken for true.
const movesFresh = 10 * time.Second

func (m *moves) of(volume layers.ID) *volumeMoves {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.volumes == nil {
		m.volumes = make(map[layers.ID]*volumeMoves)
	}
	v := m.volumes[volume]
	if v == nil {
		v = &volumeMoves{known: make(map[string][]hop), places: make(map[sectionKey][]sectionPlace)}
		m.volumes[volume] = v
	}
	return v
}

func (m *moves) add(volume layers.ID, name string, rows []relocation) {
	v := m.of(volume)
	v.reading.Lock()
	defer v.reading.Unlock()
	v.add(name, rows)
}

func (v *volumeMoves) add(name string, rows []relocation) {
	if _, again := v.known[name]; again {
		return
	}
	v.known[name] = []hop{}
	for _, row := range rows {
		if h := (hop{row.from.id, row.to.pack}); !slices.Contains(v.known[name], h) {
			v.known[name] = append(v.known[name], h)
		}
		v.places[row.from] = append([]sectionPlace{row.to}, v.places[row.from]...)
	}
}

// movedTo returns the other places of a section of a volume's pack. Relocations
// that cannot be read are passed over: what they would have said stays damaged.
func (r *Repo) movedTo(ctx context.Context, volume layers.ID, from sectionKey) ([]sectionPlace, error) {
	v := r.moves.of(volume)
	v.reading.Lock()
	defer v.reading.Unlock()
	if places := v.places[from]; len(places) > 0 || time.Since(v.listed) < movesFresh {
		return places, nil
	}
	if _, err := r.readMoves(ctx, volume, v); err != nil {
		return nil, err
	}
	return v.places[from], nil
}

// readMoves reads the relocations of a volume that are not known yet, and
// returns the names of all that are listed. v.reading is held.
func (r *Repo) readMoves(ctx context.Context, volume layers.ID, v *volumeMoves) (names []string, err error) {
	for info, err := range r.store.List(ctx, relocationPrefix(volume)) {
		if err != nil {
			return nil, fmt.Errorf("list relocations: %w", err)
		}
		if _, _, ok := parseRelocationName(info.Name); !ok {
			continue
		}
		names = append(names, info.Name)
		if _, known := v.known[info.Name]; known {
			continue
		}
		b, err := r.readAll(ctx, info.Name, min(max(info.Size, 0), relocationLimit))
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read relocation: %w", err)
		}
		if err == nil {
			if rows, err := r.parseRelocation(info.Name, b); err == nil {
				v.add(info.Name, rows)
			}
		}
	}
	v.listed = time.Now()
	return names, nil
}

// openMoved reads a section at its other places, and returns the first that is
// whole; err, why it cannot be read where it was written, if there is none.
func (r *Repo) openMoved(ctx context.Context, volume layers.ID, from sectionKey, want sectionKind, err error) (*sectionPlace, []byte, error) {
	if !errors.Is(err, ErrCorrupt) {
		return nil, nil, err
	}
	places, other := r.movedTo(ctx, volume, from)
	if other != nil {
		return nil, nil, other
	}
	for i := range places {
		to := &places[i]
		if to.kind != want {
			continue
		}
		key, other := r.volumeKey(ctx, to.pack.key)
		b := make([]byte, to.stored)
		if other == nil {
			other = r.readRange(ctx, packName(inData, to.pack.id), b, to.off)
		}
		if other == nil {
			if b, other = key.sealer(to.pack.id).open(b, to.kind, to.number, nil); other == nil {
				return to, b, nil
			}
			continue
		}
		if !errors.Is(other, ErrCorrupt) {
			return nil, nil, other
		}
	}
	return nil, nil, err
}

// A hop leads from a pack to one that has some of its sections too, and is
// needed as long as that.
type hop struct {
	from objectID
	to   packRef
}

// hops returns all hops of a volume's relocations that are listed.
func (r *Repo) hops(ctx context.Context, volume layers.ID) ([]hop, error) {
	v := r.moves.of(volume)
	v.reading.Lock()
	defer v.reading.Unlock()
	names, err := r.readMoves(ctx, volume, v)
	if err != nil {
		return nil, err
	}
	var hops []hop
	for _, name := range names {
		hops = append(hops, v.known[name]...)
	}
	return hops, nil
}

// hopsOf returns the hops of one relocation; none if it cannot be read.
func (r *Repo) hopsOf(ctx context.Context, volume layers.ID, name string) ([]hop, error) {
	v := r.moves.of(volume)
	v.reading.Lock()
	defer v.reading.Unlock()
	if _, known := v.known[name]; !known {
		if _, err := r.readMoves(ctx, volume, v); err != nil {
			return nil, err
		}
	}
	return v.known[name], nil
}

// allMoved reports whether relocations have all frames elsewhere too.
func (r *Repo) allMoved(ctx context.Context, frames []wanted) (bool, error) {
	for i := range frames {
		places, err := r.movedTo(ctx, frames[i].pack.key.volume, sectionKey{frames[i].pack.id, frames[i].frame.number})
		if err != nil || len(places) == 0 {
			return false, err
		}
	}
	return true, nil
}
