package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	headerName = "volume"
	headerTemp = "volume.tmp"
	chainName  = "chain"
	chainTemp  = "chain.tmp"

	maxChainFile = chainHeaderSize + recordSize*maxLayers + 4
)

// Create makes a volume of size bytes in dir, which must not exist or be empty,
// and opens it. size is a multiple of 512, from 512 to MaxSize; the volume
// takes 8 MiB for its journal and grows with what is written. A directory that
// holds a volume already is fs.ErrExist, a wrong size fs.ErrInvalid, one that is
// too large, here or anywhere, a *TooLargeError. After an
// error nothing is left but empty directories.
func Create(dir string, id ID, size int64, o Options) (*Volume, error) {
	if id.IsZero() {
		return nil, fmt.Errorf("create volume in %s: no id: %w", dir, fs.ErrInvalid)
	}
	if err := checkSize(size); err != nil {
		return nil, fmt.Errorf("create volume %s: %w", id, err)
	}
	d, err := newDirectory(dir)
	if err != nil {
		return nil, fmt.Errorf("create volume %s: %w", id, err)
	}
	v, err := finishVolume(d, o, createVolume(d, id, size, defaultTuning))
	if err != nil {
		return nil, fmt.Errorf("create volume %s: %w", id, err)
	}
	return v, nil
}

// newDirectory makes the directory of a volume. One that is there must be empty.
func newDirectory(dir string) (osDisk, error) {
	d := osDisk{dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return d, err
	}
	names, err := d.list()
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("directory %s is not empty: %w", dir, fs.ErrExist)
	}
	return d, err
}

// finishVolume makes the name of a new volume durable and opens it. If its files
// could not be made, which err says, or it cannot be opened, it removes them.
func finishVolume(d osDisk, o Options, err error) (*Volume, error) {
	if err == nil {
		err = syncPath(filepath.Dir(filepath.Clean(d.dir)))
	}
	var v *Volume
	if err == nil {
		v, err = openVolume(d, o, defaultTuning)
	}
	if err != nil {
		removeFiles(d)
	}
	return v, err
}

// removeFiles empties the directory of a volume that could not be made.
func removeFiles(d disk) {
	names, _ := d.list() // nothing listed, nothing removed
	for _, name := range names {
		d.remove(name) // what stays is reported by the next Create
	}
}

// createVolume writes the files of an empty volume.
func createVolume(d disk, id ID, size int64, tune tuning) error {
	return writeVolume(d, id, size, nil, tune)
}

// writeVolume writes the files of a volume whose head lies on the layers below,
// from the root up, which are there already. The header comes last: without it
// the directory is no volume.
func writeVolume(d disk, id ID, size int64, below []layerRecord, tune tuning) error {
	l, err := createLayer(d, NewID(), id, size)
	if err != nil {
		return err
	}
	if err := l.close(); err != nil {
		return err
	}
	j, err := createJournal(d, journalName, id, tune.journalSmall)
	if err != nil {
		return err
	}
	err = j.begin(0, 1)
	if cerr := j.f.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	c := &chain{Volume: id, Generation: 1, Head: len(below)}
	c.Layers = append(slices.Clone(below), layerRecord{ID: l.id, Size: size, Parent: len(below) - 1})
	if err := createWhole(d, chainName, c.encode()); err != nil {
		return err
	}
	if err := d.syncDir(); err != nil {
		return err
	}
	h := volumeHeader{ID: id, Created: time.Now(), Size: size}
	if err := createWhole(d, headerTemp, h.encode()); err != nil {
		return err
	}
	if err := d.rename(headerTemp, headerName); err != nil {
		return err
	}
	return d.syncDir()
}

// createWhole makes a file with the bytes b, and syncs it.
func createWhole(d disk, name string, b []byte) error {
	f, err := d.create(name)
	if err != nil {
		return err
	}
	err = f.writeAt(b, 0)
	if err == nil {
		err = f.sync()
	}
	if cerr := f.close(); err == nil {
		err = cerr
	}
	return err
}

// Open opens the volume in dir. One that is open already is a *LockedError; a
// directory without a volume is fs.ErrNotExist; damage is ErrCorrupt. What a
// crash left half done is finished first.
func Open(dir string, o Options) (*Volume, error) {
	if _, err := os.Stat(filepath.Join(dir, headerName)); err != nil {
		return nil, fmt.Errorf("open volume %s: not a volume: %w", dir, err)
	}
	v, err := openVolume(osDisk{dir}, o, defaultTuning)
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", dir, err)
	}
	return v, nil
}

func openVolume(d disk, o Options, tune tuning) (*Volume, error) {
	unlock, err := d.lock()
	if err != nil {
		return nil, err
	}
	v := &Volume{
		d: d, log: o.Log, turn: o.Turn, tuning: tune, unlock: unlock, grace: newGrace(), gap: newGap(),
		pending: newPendingSet(tune.recordBlocks), spare: newPendingSet(tune.recordBlocks),
		anchors:        map[*layerFile]*anchor{},
		wantCheckpoint: make(chan struct{}, 1), wantTidy: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	v.commits.done.L = &v.commits.mu
	v.slots.Store(new([]*layerFile))
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	if err := v.load(); err != nil {
		v.closeFiles()
		return nil, err
	}
	if tune.background {
		v.background.Add(2)
		go v.runCheckpoints()
		go v.runTidy()
	}
	return v, nil
}

// load reads what is on disk and finishes what a crash interrupted.
func (v *Volume) load() error {
	b, err := readWhole(v.d, headerName, headerLength+1)
	if err != nil {
		return err
	}
	h, err := decodeHeader(v.d.path(headerName), b)
	if err != nil {
		return err
	}
	v.id = h.ID
	if err := v.loadChain(); err != nil {
		return err
	}
	j, clean, err := openJournal(v.d, v.id)
	if err != nil {
		return err
	}
	v.journal = j
	if err := v.openLayers(clean); err != nil {
		return err
	}
	if err := v.holdFast(clean); err != nil {
		return err
	}
	list, written, err := openRecent(v.d, v.id, blocksOf(v.size.Load()), v.log)
	if err != nil {
		return err
	}
	v.recent = list
	newer := spansOf(written)
	err = j.replay(func(r record) error { return v.applyRecord(r, newer) })
	if err == nil {
		err = v.applyRecent(written)
	}
	if err != nil {
		return err
	}
	if err := v.removeLeftOvers(); err != nil {
		return err
	}
	if err := v.buildMap(); err != nil {
		return err
	}
	return v.begin(clean)
}

// loadChain reads the chain.
func (v *Volume) loadChain() error {
	path := v.d.path(chainName)
	b, err := readWhole(v.d, chainName, maxChainFile+1)
	if err != nil {
		return err
	}
	c, err := decodeChain(path, b)
	if err != nil {
		return err
	}
	if c.Volume != v.id {
		return &CorruptError{path, 16, "volume " + v.id.String(), c.Volume.String()}
	}
	v.chain = c
	v.size.Store(c.Layers[c.Head].Size)
	return nil
}

func (v *Volume) openLayers(clean bool) error {
	for _, r := range v.chain.Layers {
		l, err := openLayer(v.d, r, v.id, clean)
		if err != nil {
			return fmt.Errorf("layer %s: %w", r.ID, err)
		}
		v.files = append(v.files, l)
		if err := v.giveSlot(l); err != nil {
			return err
		}
	}
	v.head = v.files[v.chain.Head]
	return nil
}

// holdFast makes durable what was found. A process that was killed may have left
// it in the memory of the system alone, and what is on the disk is soon written
// over, since this one counts on the newer.
func (v *Volume) holdFast(clean bool) error {
	if err := v.d.syncDir(); err != nil {
		return err
	}
	if err := v.journal.f.sync(); err != nil {
		return err
	}
	var maps []file
	for i, l := range v.files {
		if !clean || v.chain.Layers[i].Shared { // another volume may add checksums to a shared one
			maps = append(maps, l.maps)
		}
	}
	if err := v.d.syncAll(maps); err != nil {
		return err
	}
	if !clean {
		v.head.unsynced.Store(true)
	}
	return nil
}

// applyRecord makes the blocks of a record those of its layer. Done twice, or
// half and then whole, it comes to the same. The head has newer data in some
// blocks already, where the machine has not failed.
func (v *Volume) applyRecord(r record, newer []span) error {
	at := slices.IndexFunc(v.chain.Layers, func(l layerRecord) bool { return l.ID == r.Layer && !l.Shared })
	if at < 0 {
		return &CorruptError{v.journal.path, v.journal.next.pos, "a record of a layer of this volume alone", "layer " + r.Layer.String()}
	}
	l := v.files[at]
	blocks := blocksOf(l.size)
	data := r.Data
	for _, e := range r.Entries {
		end := e.Block + int64(e.Count)
		if end > blocks {
			return &CorruptError{v.journal.path, v.journal.next.pos, fmt.Sprintf("blocks below %d", blocks), fmt.Sprint(end)}
		}
		if e.Kind == Data {
			n := int64(e.Count) * BlockSize
			if l != v.head {
				newer = nil
			}
			for b, stop := range outside(newer, e.Block, end) {
				if err := l.data.writeAt(data[(b-e.Block)*BlockSize:(stop-e.Block)*BlockSize], b*BlockSize); err != nil {
					return err
				}
			}
			data = data[n:]
		}
		l.unsynced.Store(true)
		if err := l.set(e.Block, end, e.Kind); err != nil {
			return err
		}
	}
	return nil
}

// applyRecent makes the head say what a killed process knew of it.
func (v *Volume) applyRecent(written []entry) error {
	if len(written) > 0 {
		v.log.Info("writes that were not flushed are taken from memory", "volume", v.id, "entries", len(written))
	}
	for _, e := range written {
		v.head.unsynced.Store(true)
		if err := v.head.set(e.Block, e.Block+int64(e.Count), e.Kind); err != nil {
			return err
		}
	}
	return nil
}

func (v *Volume) layerByID(id ID) *layerFile {
	for _, l := range v.files {
		if l.id == id {
			return l
		}
	}
	return nil
}

// removeLeftOvers removes the files that a crash left without a name in the
// chain.
func (v *Volume) removeLeftOvers() error {
	names, err := v.d.list()
	if err != nil {
		return err
	}
	removed := false
	for _, name := range names {
		if !v.leftOver(name) {
			continue
		}
		v.log.Info("removing what a crash left", "volume", v.id, "file", name)
		if err := v.d.remove(name); err != nil {
			return err
		}
		removed = true
	}
	if removed {
		return v.syncDir()
	}
	return nil
}

func (v *Volume) leftOver(name string) bool {
	if name == chainTemp || name == journalTemp || name == headerTemp || name == limitTemp {
		return true
	}
	id, ok := layerOfName(name)
	return ok && v.layerByID(id) == nil
}

// buildMap makes the block map of the live volume.
func (v *Volume) buildMap() error {
	v.live = newBlockMap(blocksOf(v.size.Load()))
	v.seen.Store(newSeen(blocksOf(v.size.Load())))
	return v.fillMap(v.live, v.chain.Head)
}

// fillMap adds what a layer and those below it say to an empty map, from the top
// down.
func (v *Volume) fillMap(m *blockMap, at int) error {
	for _, i := range v.chain.line(at) {
		l := v.files[i]
		for _, g := range l.present() {
			var kinds kindBits
			if _, err := l.load(g, &kinds); err != nil {
				return err
			}
			m.under(int64(g)*pageBlocks, &kinds, l.slot, blocksOf(v.size.Load()))
		}
	}
	return nil
}

// begin makes what the replay did durable, and says on disk that the volume is
// open.
func (v *Volume) begin(clean bool) error {
	for _, l := range v.files {
		if l == v.head {
			continue
		}
		l.summed.Store(len(l.unsummed()) == 0)
		if len(l.dirty) > 0 || l.unsynced.Load() {
			v.unsettled = append(v.unsettled, l)
		} else {
			l.forget()
		}
	}
	if v.journal.used() > 0 {
		v.log.Info("volume was not closed; its journal was replayed", "volume", v.id, "bytes", v.journal.used())
	}
	if err := v.checkpoint(); err != nil {
		return err
	}
	return v.recent.start()
}

// readWhole reads a file of less than limit bytes.
func readWhole(d disk, name string, limit int64) ([]byte, error) {
	f, err := d.open(name)
	if err != nil {
		return nil, err
	}
	defer f.close() // nothing was written
	size, err := f.size()
	if err != nil {
		return nil, err
	}
	if size >= limit {
		return nil, &CorruptError{d.path(name), limit, "the end of the file", fmt.Sprintf("%d bytes", size)}
	}
	b := make([]byte, size)
	n, err := f.readAt(b, 0)
	if err != nil && !isEOF(err) {
		return nil, err
	}
	return b[:n], nil
}

// Close flushes, marks the volume as cleanly closed and gives up its lock. Open
// views fail with ErrClosed from then on. It returns the first error; the
// volume is closed in any case.
func (v *Volume) Close() error {
	v.gate.Lock()
	if v.closed.Swap(true) {
		v.gate.Unlock()
		return v.errClosed()
	}
	v.gate.Unlock()
	close(v.stop)
	v.background.Wait()

	v.tidying.Lock()
	defer v.tidying.Unlock()
	v.admin.Lock() // waits for a change of the chain that is under way
	defer v.admin.Unlock()
	err := v.commits.alone(func() error {
		// Both barriers say it, so that neither is worth more than the other.
		err := errors.Join(v.checkpointAs(true), v.checkpointAs(true))
		if err == nil {
			v.recent.distrust() // there is nothing left to say
		}
		return err
	})
	v.grace.wait()
	return errors.Join(err, v.closeFiles())
}

// closeFiles closes what is open, and the lock last.
func (v *Volume) closeFiles() error {
	var errs []error
	for _, l := range v.files {
		errs = append(errs, l.release())
	}
	if v.journal != nil {
		errs = append(errs, v.journal.f.close())
	}
	errs = append(errs, v.recent.close())
	return errors.Join(append(errs, v.unlock())...)
}
