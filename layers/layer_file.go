package layers

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// A layerFile is one layer of a volume: LAYER.data and LAYER.map.
//
// The kinds of the head, and of a sealed layer until its map on disk is
// complete, are in memory. After that they are read from the map when somebody
// asks, so that a thousand snapshots cost no memory but a few bytes a group.
type layerFile struct {
	id       ID
	data     file
	maps     file
	path     string // of the map, for messages
	dataPath string
	size     int64 // bytes, of the address range; atomic: the head grows

	slot uint16       // value in the volume's block map
	refs atomic.Int32 // the volume's, and one for each view; at 0 the files are closed

	unsynced atomic.Bool // data was written since the last sync
	unkept   atomic.Bool // something was written to the map since the last sync
	backlog  []span      // blocks of records that were not written back; Volume.ring guards it

	summed atomic.Bool // every block of data has a checksum
	held   *held       // Volume.figures guards it
	tidied tidied      // tidying only
	swept  uint32      // groups below it have been swept; tidying only

	mu      sync.RWMutex
	groups  map[uint32]*group
	dirty   []uint32               // groups whose kinds in memory are newer than on disk
	commits uint64                 // pages that were made durable since it was opened
	totals  atomic.Pointer[totals] // of the groups; nil: not known
}

// group is what is known in memory of a group of the map.
type group struct {
	kinds   *kindBits // nil: read them from the map
	slot    int8      // the slot that counts; -1: none was written
	dirty   bool
	gen     uint64
	sums    uint32 // as in mapPage
	sumsCRC uint32
	stamp   uint64 // layerFile.commits when it was last made durable
	blocks  int32  // blocks of data
	says    int32  // blocks that are not absent
}

func dataName(id ID) string { return id.String() + ".data" }
func mapName(id ID) string  { return id.String() + ".map" }

func groupOffset(g uint32) int64 { return mapHeader + int64(g)*groupSize }

func slotOffset(g uint32, slot int8) int64 { return groupOffset(g) + int64(slot)*slotSize }

// sumsOffset is where the checksums are that a page calls sums 1 or 2.
func sumsOffset(g, sums uint32) int64 {
	return groupOffset(g) + 2*slotSize + int64(sums-1)*sumsSize
}

// blocksOf is the number of blocks of size bytes, the last one maybe partial.
func blocksOf(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

func groupsOf(size int64) uint32 {
	return uint32((blocksOf(size) + pageBlocks - 1) / pageBlocks)
}

// createLayer makes the files of an empty layer. They are durable, their names
// are not yet.
func createLayer(d disk, id, volume ID, size int64) (*layerFile, error) {
	l := newLayerFile(d, id, size)
	var err error
	if l.data, err = d.create(dataName(id)); err != nil {
		return nil, err
	}
	if l.maps, err = d.create(mapName(id)); err != nil {
		l.close()
		return nil, err
	}
	err = setLength(d, l.data, size)
	if err == nil {
		err = l.maps.writeAt(encodeMapHeader(id, volume), 0)
	}
	if err == nil {
		err = l.data.sync()
	}
	if err == nil {
		err = l.maps.sync()
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func newLayerFile(d disk, id ID, size int64) *layerFile {
	l := &layerFile{id: id, size: size, swept: sweptAll, path: d.path(mapName(id)), dataPath: d.path(dataName(id)), groups: map[uint32]*group{}}
	l.refs.Store(1)
	return l
}

// openLayer opens a layer of the chain of a volume. clean says that the volume
// was closed, so that every page of the map must be whole.
func openLayer(d disk, r layerRecord, volume ID, clean bool) (*layerFile, error) {
	l := newLayerFile(d, r.ID, r.Size)
	if !clean {
		l.swept = 0
	}
	var err error
	if l.data, err = d.open(dataName(r.ID)); err != nil {
		return nil, err
	}
	if l.maps, err = d.open(mapName(r.ID)); err != nil {
		l.close()
		return nil, err
	}
	if !r.Origin.IsZero() {
		volume = r.Origin
	}
	err = l.readGroups(volume, clean, r.Shared)
	if err == nil {
		err = l.checkLength()
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// checkLength refuses a data file that ends before the last block that the map
// says it has: a read would take what is cut off for zeros. No crash leads to
// that, since a page of the map is written after the data that it names is
// durable.
func (l *layerFile) checkLength() error {
	last := int64(-1)
	for g, gr := range l.groups {
		if gr.blocks > 0 {
			last = max(last, int64(g))
		}
	}
	if last < 0 {
		return nil
	}
	var kinds kindBits
	if _, err := l.load(uint32(last), &kinds); err != nil {
		return err
	}
	block := pageBlocks - 1
	for kinds.at(block) != Data {
		block--
	}
	need := (last*pageBlocks + int64(block) + 1) * BlockSize
	size, err := l.data.size()
	if err != nil {
		return err
	}
	if size < need {
		return &CorruptError{l.dataPath, size, fmt.Sprintf("a file of %d bytes at least", need), "its end; put the whole file back, or delete the volume and restore a backup"}
	}
	return nil
}

// readGroups finds the groups that the map has.
func (l *layerFile) readGroups(volume ID, clean, shared bool) error {
	head := make([]byte, mapHeader)
	n, err := l.maps.readAt(head, 0)
	if err != nil && !isEOF(err) {
		return err
	}
	if err := checkMapHeader(l.path, head[:n], l.id, volume); err != nil {
		return err
	}
	end := groupsOf(l.size)
	for g := uint32(0); g < end; g++ {
		next, err := l.maps.nextData(groupOffset(g))
		if err != nil {
			return err
		}
		if next < 0 {
			return nil
		}
		if at := (next - mapHeader) / groupSize; at > int64(g) {
			if at >= int64(end) {
				return nil
			}
			g = uint32(at)
		}
		if err := l.readGroup(g, clean, shared); err != nil {
			return err
		}
	}
	return nil
}

// readGroup reads both slots of a group and keeps what the newer valid one
// says. A slot that a crash tore is written anew with the next checkpoint, so
// that a torn slot after a clean close is damage.
//
// A shared layer is torn only where another volume was adding checksums. It is
// left as it is: what adds them here writes that slot.
func (l *layerFile) readGroup(g uint32, clean, shared bool) error {
	var both [2 * slotSize]byte
	if err := readFull(l.maps, both[:], groupOffset(g)); err != nil {
		return err
	}
	var newest *mapPage
	var slot int8
	torn, foreign := false, error(nil)
	for i := range int8(2) {
		b := both[int(i)*slotSize : (int(i)+1)*slotSize]
		if isZero(b) {
			continue
		}
		p, err := decodePage(l.path, slotOffset(g, i), b, l.id, g)
		switch {
		case err == nil:
			if newest == nil || p.Generation > newest.Generation {
				newest, slot = p, i
			}
		case shared && errors.Is(err, ErrCorrupt):
			foreign = err
		case !clean && errors.Is(err, ErrCorrupt):
			torn = true
		default:
			return err
		}
	}
	if foreign != nil && (newest == nil || newest.Sums != 0) {
		return foreign // checksums are added to pages without them, and once
	}
	if newest == nil && !torn {
		return nil
	}
	gr := &group{slot: -1, kinds: new(kindBits)}
	if newest != nil {
		gr.setPage(newest, slot)
	}
	l.groups[g] = gr
	if torn {
		if _, err := l.own(g); err != nil {
			return err
		}
		gr.dirty = true
		l.dirty = append(l.dirty, g)
	}
	return nil
}

// setPage makes p, which is in the slot, the page that counts.
func (gr *group) setPage(p *mapPage, slot int8) {
	*gr = group{
		slot: slot, gen: p.Generation, sums: p.Sums, sumsCRC: p.SumsCRC,
		blocks: int32(p.Kinds.count(Data)),
		says:   int32(pageBlocks - p.Kinds.count(Absent)),
	}
}

// load copies the kinds of a group. It returns false if the layer says nothing
// there.
func (l *layerFile) load(g uint32, into *kindBits) (bool, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	gr := l.groups[g]
	if gr == nil {
		return false, nil
	}
	return true, l.loadLocked(g, gr, into)
}

func (l *layerFile) loadLocked(g uint32, gr *group, into *kindBits) error {
	if gr.kinds != nil {
		*into = *gr.kinds
		return nil
	}
	var b [slotSize]byte
	off := slotOffset(g, gr.slot)
	if err := readFull(l.maps, b[:], off); err != nil {
		return err
	}
	p, err := decodePage(l.path, off, b[:], l.id, g)
	if err != nil {
		return err
	}
	if p.Generation != gr.gen {
		return &CorruptError{l.path, off + 8, fmt.Sprintf("generation %d", gr.gen), fmt.Sprint(p.Generation)}
	}
	*into = p.Kinds
	return nil
}

// loadDurable copies the kinds of a group as they are on disk.
func (l *layerFile) loadDurable(g uint32, into *kindBits) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	gr := l.groups[g]
	if gr == nil || gr.slot < 0 {
		*into = kindBits{}
		return nil
	}
	onDisk := *gr
	onDisk.kinds = nil
	return l.loadLocked(g, &onDisk, into)
}

// own makes the kinds of a group ready to be changed in memory.
func (l *layerFile) own(g uint32) (*group, error) {
	gr := l.groups[g]
	if gr == nil {
		gr = &group{slot: -1, kinds: new(kindBits)}
		l.groups[g] = gr
	}
	if gr.kinds == nil {
		kinds := new(kindBits)
		if err := l.loadLocked(g, gr, kinds); err != nil {
			return nil, err
		}
		gr.kinds = kinds
	}
	return gr, nil
}

// set gives the blocks [b, end) of the head a kind, in memory.
func (l *layerFile) set(b, end int64, kind Kind) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for b < end {
		g := uint32(b / pageBlocks)
		first := int64(g) * pageBlocks
		gr, err := l.own(g)
		if err != nil {
			return err
		}
		stop := min(end, first+pageBlocks)
		gr.change(int(b-first), int(stop-first), kind)
		l.totals.Store(nil)
		if !gr.dirty {
			gr.dirty = true
			l.dirty = append(l.dirty, g)
		}
		b = stop
	}
	return nil
}

// change sets kinds and keeps the counts.
func (gr *group) change(i, end int, kind Kind) {
	for j := i; j < end; {
		next := gr.kinds.run(j, end)
		gr.tally(gr.kinds.at(j), int32(j-next))
		j = next
	}
	gr.kinds.fill(i, end, kind)
	gr.tally(kind, int32(end-i))
}

func (gr *group) tally(kind Kind, n int32) {
	if kind == Data {
		gr.blocks += n
	}
	if kind != Absent {
		gr.says += n
	}
}

// run returns the kind of block b and the end of its run, at most end and at
// most the end of the group.
func (l *layerFile) run(b, end int64) (Kind, int64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	g := uint32(b / pageBlocks)
	first := int64(g) * pageBlocks
	end = min(end, first+pageBlocks)
	gr := l.groups[g]
	if gr == nil {
		return Absent, end, nil
	}
	kinds := gr.kinds
	if kinds == nil {
		kinds = new(kindBits)
		if err := l.loadLocked(g, gr, kinds); err != nil {
			return 0, 0, err
		}
	}
	i := int(b - first)
	return kinds.at(i), first + int64(kinds.run(i, int(end-first))), nil
}

// totals are sums over the groups of a layer.
type totals struct{ data, says int64 } // blocks

// usage returns the blocks of data, and the blocks that the layer says anything
// about.
func (l *layerFile) usage() (data, says int64) {
	if t := l.totals.Load(); t != nil {
		return t.data, t.says
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	t := new(totals)
	for _, gr := range l.groups {
		t.data += int64(gr.blocks)
		t.says += int64(gr.says)
	}
	l.totals.Store(t) // nobody changes a group now
	return t.data, t.says
}

// present returns the groups about which the layer says something, ascending.
func (l *layerFile) present() []uint32 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var list []uint32
	for g, gr := range l.groups {
		if gr.says > 0 {
			list = append(list, g)
		}
	}
	slices.Sort(list)
	return list
}

// release drops one reference; the last one closes the files.
func (l *layerFile) release() error {
	if l.refs.Add(-1) > 0 {
		return nil
	}
	return l.close()
}

func (l *layerFile) close() error {
	var first error
	for _, f := range []file{l.data, l.maps} {
		if f == nil {
			continue
		}
		if err := f.close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// forget lets go of kinds in memory that the map on disk has.
func (l *layerFile) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, gr := range l.groups {
		if !gr.dirty && gr.slot >= 0 {
			gr.kinds = nil
		}
	}
	maps.DeleteFunc(l.groups, func(_ uint32, gr *group) bool { return gr.slot < 0 && gr.says == 0 })
	l.dirty = nil
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
