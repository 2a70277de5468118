package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/layers"
)

const (
	// A range of a pack is read with one request if what lies between two
	// sections costs less than another one would.
	copyGap  = 512 << 10
	copyRead = 8 << 20

	// commitEvery is how many bytes are copied before a relocation tells of
	// them: what a crash costs.
	commitEvery = 1 << 30
)

// errLate ends a run that takes so long that what it goes by may not be true
// any more.
var errLate = errors.New("the run took too long, the next one goes on")

// A copied section waits for its place in a new pack.
type copiedSection struct {
	name sectionKey // what maps call it
	text []byte
	section
}

// A repacker copies packs of one volume. The order is packs, then the relocation
// that names them; that is the commit.
type repacker struct {
	*prune
	volume  layers.ID
	places  *volumePlaces // nil: nothing was moved yet
	session layers.ID     // of the packs that it writes
	key     *volumeKey

	names   map[sectionKey]sectionKey // of sections in packs that repacking wrote
	pending []copiedSection
	bytes   int64 // in pending
	pack    packBuilder
	moved   *relocating
	whole   map[objectID]movedClass // sources all of whose needed sections are copied, or pending
	written []objectID              // relocations of this run
	since   int64                   // bytes copied since the last of them
}

func newRepacker(p *prune, volume layers.ID) *repacker {
	return &repacker{
		prune: p, volume: volume, places: p.places[volume], session: layers.NewID(),
		names: make(map[sectionKey]sectionKey), moved: newRelocating(), whole: make(map[objectID]movedClass),
	}
}

func (k *repacker) run(ctx context.Context, from []source) error {
	var err error
	if len(from) > 0 {
		if k.key, err = k.newestKey(ctx); err != nil {
			return err
		}
	}
	k.findNames(from)
	for i := range from {
		if k.full() {
			k.keep(fmt.Errorf("volume %s: no more of its packs are repacked: %d sections are moved already, and a relocation says of %d at most", k.volume, k.moved.rows, maxRelocations))
			break
		}
		if err := k.copy(ctx, &from[i]); err != nil {
			return err
		}
		k.progress(from[i].bytes(), 0)
		if k.since >= commitEvery {
			if err := k.commit(ctx); err != nil {
				return err
			}
		}
	}
	if len(k.pending) > 0 || k.since > 0 || k.places.merges() {
		return k.commit(ctx)
	}
	return nil
}

// class is what copying makes of a source.
func (s *source) class() movedClass {
	if s.all {
		return movedAll
	}
	return movedNeeded
}

// newestKey is the key that new packs of the volume are sealed with.
func (k *repacker) newestKey(ctx context.Context) (*volumeKey, error) {
	ref := keyRef{volume: k.volume, epoch: firstEpoch}
	if k.repo.Encrypted() {
		var ok bool
		if ref, ok = k.repo.index.newestKey(k.volume); !ok {
			return nil, damaged(volumePrefix(k.volume)+"k/", 0, errMissing)
		}
	}
	return k.repo.volumeKey(ctx, ref)
}

// findNames finds out what maps call the sections of packs that repacking wrote.
func (k *repacker) findNames(from []source) {
	if k.places == nil {
		return
	}
	wanted := make(map[objectID]bool, len(from))
	for i := range from {
		wanted[from[i].id] = true
	}
	for i, o := range k.places.objects {
		for name, row := range o.names() {
			to := o.objects[row.object].id
			if !wanted[to] {
				continue
			}
			if _, ok := firstPlace(k.places.objects[:i], name); !ok {
				k.names[sectionKey{to, row.number}] = name
			}
		}
	}
}

// name is what maps call a section of a source.
func (k *repacker) name(at sectionKey) sectionKey {
	if name, ok := k.names[at]; ok {
		return name
	}
	return at
}

// copy takes in what is needed of a pack. One that is damaged stays as it is.
func (k *repacker) copy(ctx context.Context, s *source) error {
	p, err := k.readSource(ctx, s)
	var sections []copiedSection
	if err == nil {
		sections, err = k.sections(ctx, s, p)
	}
	if isDamage(err) {
		k.keep(fmt.Errorf("not repacked: %w", err))
		return nil
	}
	if err != nil {
		return err
	}
	k.whole[s.id] = s.class()
	for i := range sections {
		k.pending = append(k.pending, sections[i])
		k.bytes += int64(len(sections[i].text))
	}
	for k.bytes >= int64(k.repo.packTarget) {
		if err := k.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// full reports whether a relocation may soon have no room for more.
func (k *repacker) full() bool {
	rows := k.moved.rows + len(k.pending)
	if k.places != nil {
		for _, o := range k.places.objects {
			if !k.places.replaced[o] {
				rows += len(o.rows)
			}
		}
	}
	return rows > maxRelocations*3/4
}

// A sourcePack is what a pack says of itself, and how to read its sections.
type sourcePack struct {
	checkedPack
	sealer *sealer
	whole  []byte // nil: it is read in parts
}

// readSource reads the front and the end of a pack, or all of a small one.
func (k *repacker) readSource(ctx context.Context, s *source) (*sourcePack, error) {
	p, name := new(sourcePack), packName(s.where, s.id)
	length := int64(headerSize)
	if k.isSmall(s.size) {
		length = s.size
	}
	front := make([]byte, length)
	if err := k.repo.readRange(ctx, name, front, 0); err != nil {
		return nil, err
	}
	h, err := parseHeader(front)
	if err != nil {
		return nil, damaged(name, 0, err)
	}
	ref := packRef{s.id, h.key}
	if h.key.volume != k.volume {
		return nil, damaged(name, 48, fmt.Errorf("it is of volume %s, expected %s", h.key.volume, k.volume))
	}
	var key *volumeKey
	if length == s.size {
		p.whole = front
		key, err = p.parse(ctx, k.repo, s.where, ref, front)
	} else {
		if key, err = k.repo.volumeKey(ctx, h.key); err == nil {
			err = p.readBehind(ctx, k.repo, s.where, ref, front, true)
		}
	}
	if err != nil {
		return nil, err
	}
	p.sealer = key.sealer(s.id)
	return p, nil
}

// sections reads those of a pack that are needed.
func (k *repacker) sections(ctx context.Context, s *source, p *sourcePack) ([]copiedSection, error) {
	var found []copiedSection
	var numbers []int
	for i := range p.sections {
		if s.all || s.live.has(uint32(i)) {
			numbers = append(numbers, i)
		}
	}
	if !s.all && len(numbers) != s.live.count() {
		return nil, damaged(packName(s.where, s.id), 0, fmt.Errorf("it has %d of the %d sections that maps name", len(numbers), s.live.count()))
	}
	end := func(i int) int64 { return p.offsets[i] + int64(p.sections[i].stored) }
	for len(numbers) > 0 {
		n := 1
		for n < len(numbers) && p.offsets[numbers[n]]-end(numbers[n-1]) <= copyGap && end(numbers[n])-p.offsets[numbers[0]] <= copyRead {
			n++
		}
		from, to := p.offsets[numbers[0]], end(numbers[n-1])
		var b []byte
		if p.whole != nil {
			b = p.whole[from:to]
		} else {
			b = make([]byte, to-from)
			if err := k.repo.readRange(ctx, packName(s.where, s.id), b, from); err != nil {
				return nil, err
			}
		}
		for _, i := range numbers[:n] {
			section := &p.sections[i]
			text, err := p.sealer.open(b[p.offsets[i]-from:end(i)-from:end(i)-from], section.kind, uint32(i), nil)
			if err != nil {
				return nil, damaged(packName(s.where, s.id), p.offsets[i], fmt.Errorf("section %d: %w", i, err))
			}
			found = append(found, copiedSection{k.name(sectionKey{s.id, uint32(i)}), slices.Clone(text), *section})
		}
		numbers = numbers[n:]
	}
	return found, nil
}

// address is where a section belongs in the volume; what is no frame comes last.
func (s *section) address() int64 {
	if s.kind == sectionFrame {
		return s.runs[0].block
	}
	return maxBlocks
}

// flush writes a pack of what is pending, which is something, in the order of
// addresses.
func (k *repacker) flush(ctx context.Context) error {
	slices.SortStableFunc(k.pending, func(a, b copiedSection) int {
		return cmp.Or(cmp.Compare(a.address(), b.address()), cmp.Compare(a.first, b.first))
	})
	k.pack.begin(inData, newObjectID(k.session), k.session, k.key, k.pack.buf)
	n := 0
	for ; n < len(k.pending) && k.pack.fits(len(k.pending[n].text)+tagSize, k.repo.packTarget); n++ {
		s := &k.pending[n]
		to := sectionPlace{pack: packRef{k.pack.id, k.key.ref}, kind: s.kind, blocks: s.blocks, zstd: s.zstd}
		to.number, to.off, to.stored = k.pack.add(s.text, s.section)
		k.moved.add(s.name, &to)
		k.bytes -= int64(len(s.text))
		k.since += int64(len(s.text))
	}
	k.pending = append(k.pending[:0], k.pending[n:]...)
	name, object := packName(inData, k.pack.id), k.pack.finish()
	if err := k.repo.store.Put(ctx, name, object); err != nil {
		return fmt.Errorf("write pack: %w", err)
	}
	k.report.Rewritten.add(int64(len(object)))
	return nil
}
