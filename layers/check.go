package layers

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// CheckOptions tune a Check. The zero value is useful.
type CheckOptions struct {
	// Progress is told how many of how many bytes have been read. It is called
	// after every MiB or so, by one goroutine.
	Progress func(done, total int64)

	// Pace is asked before n bytes are read, and returns when they may be: a
	// limiter. Its error ends the check.
	Pace func(ctx context.Context, n int) error

	// Found is told each finding at once.
	Found func(Finding)
}

// A Finding is one place where what is on disk is not what was written, or cannot
// be read.
type Finding struct {
	Volume   ID
	Layer    ID     // zero: a file of the volume itself
	Path     string // the file
	Off      int64  // bytes from the start of the file; of a block of data: in the volume too
	Expected string
	Found    string
	Data     bool // a block of data, BlockSize bytes: Repair can write it anew
}

// Error says where the damage is and what stands there.
func (f Finding) Error() string {
	return fmt.Sprintf("volume %s: %s", f.Volume, &CorruptError{f.Path, f.Off, f.Expected, f.Found})
}

// Is reports whether target is ErrCorrupt.
func (f Finding) Is(target error) bool { return target == ErrCorrupt }

// CheckReport is what a Check did.
type CheckReport struct {
	Findings  []Finding // the first maxFindings
	Count     int64     // of all findings
	Checked   int64     // bytes of data that were compared with their checksums
	Unchecked int64     // bytes of data that have no checksums yet: of the head, or sealed a moment ago
	Reclaimed int64     // bytes that a crash had left allocated, and nothing needed
}

const maxFindings = 1000

// Check reads everything that the volume keeps, the structure first: the header,
// the chain, the journal's barrier, every page of every map and its checksums;
// then the data that has checksums. It goes on after damage. What a crash has left
// allocated for nobody is given back on the way. Reads and writes go on
// meanwhile, and so does tidying.
//
// Damage is in the report, not in the error, which says why the check is not
// complete: ctx has ended, Pace did not want, or the volume was closed.
func (v *Volume) Check(ctx context.Context, o CheckOptions) (CheckReport, error) {
	c := &check{v: v, ctx: ctx, o: o, layers: v.holdLayers()}
	defer func() {
		for _, l := range c.layers {
			l.release() // the volume's own reference reports a close that goes wrong
		}
	}()
	err := c.run()
	if err != nil {
		err = fmt.Errorf("check volume %s: %w", v.id, err)
	}
	return c.report, err
}

// check is a Check under way.
type check struct {
	v           *Volume
	ctx         context.Context
	o           CheckOptions
	layers      []*layerFile
	report      CheckReport
	done, total int64
}

// holdLayers returns the layers of the chain with a reference to each.
func (v *Volume) holdLayers() []*layerFile {
	v.mu.RLock()
	defer v.mu.RUnlock()
	layers := append([]*layerFile(nil), v.files...)
	for _, l := range layers {
		l.refs.Add(1)
	}
	return layers
}

func (c *check) run() error {
	if err := c.found(ID{}, c.v.checkFiles()); err != nil {
		return err
	}
	for _, l := range c.layers {
		for _, g := range l.present() {
			c.total += slotSize + l.weight(g)
		}
	}
	for _, part := range []func(*layerFile, uint32) error{c.checkMap, c.checkData} {
		for _, l := range c.layers {
			for _, g := range l.present() {
				if err := c.goOn(); err != nil {
					return err
				}
				if err := part(l, g); err != nil {
					return fmt.Errorf("layer %s: %w", l.id, err)
				}
			}
		}
	}
	freed, err := c.v.sweepAll(c.ctx, c.layers)
	c.report.Reclaimed = freed
	return err
}

// goOn returns why the check must end.
func (c *check) goOn() error {
	if c.v.closed.Load() {
		return ErrClosed
	}
	return c.ctx.Err()
}

// found puts damage into the report, and returns any other error.
func (c *check) found(layer ID, err error) error {
	var at *CorruptError
	if !errors.As(err, &at) {
		return err
	}
	c.add(Finding{Layer: layer, Path: at.Path, Off: at.Off, Expected: at.Expected, Found: at.Found})
	return nil
}

func (c *check) add(f Finding) {
	f.Volume = c.v.id
	c.report.Count++
	if len(c.report.Findings) < maxFindings {
		c.report.Findings = append(c.report.Findings, f)
	}
	if c.o.Found != nil {
		c.o.Found(f)
	}
}

// ahead waits until n bytes may be read, and counts them.
func (c *check) ahead(n int) error {
	if c.o.Pace != nil {
		if err := c.o.Pace(c.ctx, n); err != nil {
			return err
		}
	}
	c.done += int64(n)
	if c.o.Progress != nil {
		c.total = max(c.total, c.done) // the volume may have grown meanwhile
		c.o.Progress(c.done, c.total)
	}
	return c.goOn()
}

// weight is how many bytes of a group are read beside its page.
func (l *layerFile) weight(g uint32) int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	gr := l.groups[g]
	if gr == nil || gr.sums == 0 {
		return 0
	}
	return sumsSize + int64(gr.blocks)*BlockSize
}

// checkFiles decodes the header, the chain and the barrier as they are on disk.
func (v *Volume) checkFiles() error {
	v.admin.Lock()
	defer v.admin.Unlock()
	if v.closed.Load() {
		return ErrClosed
	}
	b, err := readWhole(v.d, headerName, headerLength+1)
	if err != nil {
		return err
	}
	if _, err := decodeHeader(v.d.path(headerName), b); err != nil {
		return err
	}
	if b, err = readWhole(v.d, chainName, maxChainFile+1); err != nil {
		return err
	}
	c, err := decodeChain(v.d.path(chainName), b)
	if err != nil {
		return err
	}
	if c.Generation != v.chain.Generation {
		return &CorruptError{v.d.path(chainName), 32, fmt.Sprintf("generation %d", v.chain.Generation), fmt.Sprint(c.Generation)}
	}
	return v.checkBarrier()
}

func (v *Volume) checkBarrier() error {
	v.checkpoints.Lock()
	defer v.checkpoints.Unlock()
	j := v.journal
	b := make([]byte, slotSize)
	off := int64(j.place) * slotSize
	if err := readFull(j.f, b, off); err != nil {
		return err
	}
	on, err := decodeBarrier(j.path, b)
	if err == nil && on.Generation != j.gen {
		err = &CorruptError{j.path, off + 32, fmt.Sprintf("generation %d", j.gen), fmt.Sprint(on.Generation)}
	}
	return err
}

// stored returns what is on disk of a group: its page, and the checksums if there
// are any. ok is false if nothing is yet.
func (l *layerFile) stored(g uint32) (page mapPage, s *sums, ok bool, err error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	gr := l.groups[g]
	if gr == nil || gr.slot < 0 {
		return page, nil, false, nil
	}
	onDisk := *gr
	onDisk.kinds = nil // what is in memory proves nothing
	page.Sums, page.SumsCRC, page.Generation = gr.sums, gr.sumsCRC, gr.gen
	if err := l.loadLocked(g, &onDisk, &page.Kinds); err != nil {
		return page, nil, false, err
	}
	s = new(sums)
	return page, s, true, l.readSums(g, page.Sums, page.SumsCRC, s)
}

// checkMap checks the page and the checksums of a group.
func (c *check) checkMap(l *layerFile, g uint32) error {
	if err := c.ahead(slotSize + sumsSize); err != nil {
		return err
	}
	_, _, _, err := l.stored(g)
	if err != nil {
		err = c.again(func() error { _, _, _, err := l.stored(g); return err })
	}
	return c.found(l.id, asDamage(err, l.path, groupOffset(g)))
}

// again does something while nothing tidies, so that what it finds is damage and
// not a change.
func (c *check) again(do func() error) error {
	c.v.tidying.Lock()
	defer c.v.tidying.Unlock()
	return do()
}

// asDamage makes damage of an error of the disk itself: a place that cannot be
// read is as lost as one that has other bytes.
func asDamage(err error, path string, off int64) error {
	if errors.Is(err, syscall.EIO) {
		return &CorruptError{path, off, "bytes that can be read", err.Error()}
	}
	return err
}

// checkData compares the blocks of a group with their checksums.
func (c *check) checkData(l *layerFile, g uint32) error {
	page, s, ok, err := l.stored(g)
	switch {
	case err != nil:
		return nil // checkMap has said so
	case !ok || page.Sums == 0:
		l.mu.RLock()
		if gr := l.groups[g]; gr != nil {
			c.report.Unchecked += int64(gr.blocks) * BlockSize
		}
		l.mu.RUnlock()
		return nil
	}
	buf := copyPool.Get().(*[copyBlocks * BlockSize]byte)
	defer copyPool.Put(buf)
	for i := 0; i < pageBlocks; {
		stop := page.Kinds.run(i, pageBlocks)
		if page.Kinds.at(i) != Data {
			i = stop
			continue
		}
		stop = min(stop, i+copyBlocks)
		if err := c.checkBlocks(l, g, i, buf[:(stop-i)*BlockSize], s); err != nil {
			return err
		}
		i = stop
	}
	return nil
}

// checkBlocks reads blocks into b and compares them, one by one if they cannot be
// read at once.
func (c *check) checkBlocks(l *layerFile, g uint32, i int, b []byte, s *sums) error {
	if err := c.ahead(len(b)); err != nil {
		return err
	}
	first := int64(g)*pageBlocks + int64(i)
	whole := readFull(l.data, b, first*BlockSize)
	c.report.Checked += int64(len(b))
	for j := range len(b) / BlockSize {
		one := b[j*BlockSize:][:BlockSize]
		if whole == nil && crc(one) == s[i+j] {
			continue
		}
		err := c.again(func() error { return l.checkBlock(g, i+j, one) })
		var at *CorruptError
		switch err = asDamage(err, l.dataPath, (first+int64(j))*BlockSize); {
		case errors.As(err, &at):
			c.add(Finding{Layer: l.id, Path: at.Path, Off: at.Off, Expected: at.Expected, Found: at.Found, Data: at.Path == l.dataPath})
		case err != nil:
			return err
		}
	}
	return nil
}

// checkBlock reads block i of a group into b and compares it with its checksum,
// both as they are now. The caller holds tidying.
func (l *layerFile) checkBlock(g uint32, i int, b []byte) error {
	page, s, ok, err := l.stored(g)
	if err != nil || !ok || page.Sums == 0 || page.Kinds.at(i) != Data {
		return err
	}
	if err := readFull(l.data, b, (int64(g)*pageBlocks+int64(i))*BlockSize); err != nil {
		return err
	}
	return s.check(l, g, i, b)
}
