package layers

import "sync/atomic"

// Values of a blockMap. Other values are slots: slotBase + the index of a layer
// in Volume.slots.
const (
	cellAbsent = 0
	cellZero   = 1
	slotBase   = 2
)

// cells are the values of the blocks of one region, two to a word, the even
// block in the low half.
type cells [regionBlocks / 2]uint32

func (c *cells) at(i int) uint16 {
	return uint16(atomic.LoadUint32(&c[i>>1]) >> (16 * (i & 1)))
}

func (c *cells) put(i int, val uint16) {
	shift := 16 * (i & 1)
	word := c[i>>1]&^(0xffff<<shift) | uint32(val)<<shift
	atomic.StoreUint32(&c[i>>1], word)
}

// blockMap says for each block which layer of the live chain answers. Lookups
// take no lock and cost the same whatever the length of the chain. Changes need
// the caller's lock.
//
// The blocks are in regions of 512. A region of one value points to an array
// that all regions of that value share; 1 TiB written in order takes 4 MiB, and
// at worst, with neighbours in different layers everywhere, 512 MiB.
type blockMap struct {
	top     atomic.Pointer[[]atomic.Pointer[cells]]
	uniform map[uint16]*cells // the shared arrays, never changed
	data    int64             // blocks whose value is a slot
}

func newBlockMap(blocks int64) *blockMap {
	m := &blockMap{uniform: map[uint16]*cells{}}
	m.grow(blocks)
	return m
}

// grow makes room for more blocks. Readers may go on with the old top: they
// look up blocks that were there before.
func (m *blockMap) grow(blocks int64) {
	top := make([]atomic.Pointer[cells], (blocks+regionBlocks-1)/regionBlocks)
	if old := m.top.Load(); old != nil {
		for i := range *old {
			top[i].Store((*old)[i].Load())
		}
	}
	m.top.Store(&top)
}

// become makes the map say what another one says, which is not used after that.
// Readers find the one or the other.
func (m *blockMap) become(other *blockMap) {
	m.uniform, m.data = other.uniform, other.data
	m.top.Store(other.top.Load())
}

// run returns the value of block b and the end of the run of blocks of that
// value, at most end.
func (m *blockMap) run(b, end int64) (uint16, int64) {
	top := *m.top.Load()
	c := top[b/regionBlocks].Load()
	val := uint16(cellAbsent)
	if c != nil {
		val = c.at(int(b % regionBlocks))
	}
	for b++; b < end; {
		if b%regionBlocks == 0 {
			next := top[b/regionBlocks].Load()
			if next == c { // an array of two regions is a shared one
				b += regionBlocks
				continue
			}
			c = next
		}
		if c == nil && val != cellAbsent || c != nil && c.at(int(b%regionBlocks)) != val {
			return val, b
		}
		b++
	}
	return val, end
}

// set gives the blocks [b, end) a value. The caller holds the lock for changes.
func (m *blockMap) set(b, end int64, val uint16) {
	top := *m.top.Load()
	for b < end {
		r := b / regionBlocks
		i, n := int(b%regionBlocks), int(min(end, (r+1)*regionBlocks)-r*regionBlocks)
		m.setRegion(&top[r], i, n, val)
		b = r*regionBlocks + int64(n)
	}
}

// setRegion gives the blocks [i, end) of a region a value.
func (m *blockMap) setRegion(at *atomic.Pointer[cells], i, end int, val uint16) {
	c := at.Load()
	m.data -= int64(c.count(i, end))
	if val >= slotBase {
		m.data += int64(end - i)
	}
	if i == 0 && end == regionBlocks {
		at.Store(m.shareOf(val))
		return
	}
	own := c
	if m.isShared(c) {
		own = new(cells)
		if c != nil {
			*own = *c
		}
	}
	for ; i < end; i++ {
		own.put(i, val)
	}
	if end == regionBlocks && own.isUniform(val) {
		own = m.shareOf(val)
	}
	if own != c {
		at.Store(own)
	}
}

// replace turns the value from into to in the blocks [b, end), which begin at a
// region and end at one or at the end of the map.
func (m *blockMap) replace(b, end int64, from, to uint16) {
	top := *m.top.Load()
	for r := b / regionBlocks; r < (end+regionBlocks-1)/regionBlocks && r < int64(len(top)); r++ {
		c := top[r].Load()
		if c == nil {
			continue
		}
		if m.isShared(c) {
			if c.at(0) == from {
				top[r].Store(m.shareOf(to))
			}
			continue
		}
		for i := range regionBlocks {
			if c.at(i) == from {
				c.put(i, to)
			}
		}
	}
}

// isShared reports whether an array belongs to more than one region.
func (m *blockMap) isShared(c *cells) bool { return c == nil || m.uniform[c.at(0)] == c }

// shareOf returns the array of a region of one value; nil if that is absent.
func (m *blockMap) shareOf(val uint16) *cells {
	if val == cellAbsent {
		return nil
	}
	c := m.uniform[val]
	if c == nil {
		c = new(cells)
		for i := range c {
			c[i] = uint32(val)<<16 | uint32(val)
		}
		m.uniform[val] = c
	}
	return c
}

func (c *cells) isUniform(val uint16) bool {
	word := uint32(val)<<16 | uint32(val)
	for i := range c {
		if c[i] != word {
			return false
		}
	}
	return true
}

// count returns how many of the blocks [i, end) have data.
func (c *cells) count(i, end int) int {
	if c == nil {
		return 0
	}
	n := 0
	for ; i < end; i++ {
		if c.at(i) >= slotBase {
			n++
		}
	}
	return n
}

// under adds what a layer says of the page that begins at block first, beneath
// all that was added before. Blocks from limit on are left out.
func (m *blockMap) under(first int64, kinds *kindBits, slot uint16, limit int64) {
	end := int(min(pageBlocks, limit-first))
	for i := 0; i < end; {
		kind := kinds.at(i)
		stop := kinds.run(i, end)
		val := uint16(cellZero)
		if kind == Data {
			val = slot
		}
		if kind == Data || kind == Zero {
			m.fillAbsent(first+int64(i), first+int64(stop), val)
		}
		i = stop
	}
}

// fillAbsent gives those of the blocks [b, end) a value that have none.
func (m *blockMap) fillAbsent(b, end int64, val uint16) {
	for b < end {
		old, stop := m.run(b, end)
		if old == cellAbsent {
			m.set(b, stop, val)
		}
		b = stop
	}
}
