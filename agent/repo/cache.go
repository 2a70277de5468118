package repo

import (
	"container/list"
	"context"
	"sync"
)

// cacheBytes bounds what an open repository keeps of what it read: expanded
// frames, and the stacked leaves of spans.
const cacheBytes = 64 << 20

// A sectionKey names a section of any object.
type sectionKey struct {
	id     objectID
	number uint32
}

// A cache keeps values by the section that they were read from, the least
// recently used ones going first. Whoever asks for one that is under way waits
// for the same fetch. It is safe for concurrent use.
type cache struct {
	mu    sync.Mutex
	limit int64
	used  int64
	slots map[sectionKey]*slotEntry
	order list.List // of filled *slotEntry, the most recently used in front
}

// A slotEntry is a place in the cache: to be filled until ready is closed.
type slotEntry struct {
	key   sectionKey
	ready chan struct{}
	value any   // after ready: *keptFrame or *leaf
	err   error // after ready
	size  int64
	place *list.Element
}

func newCache(limit int64) *cache {
	return &cache{limit: limit, slots: make(map[sectionKey]*slotEntry)}
}

// claim returns the entry of a key. If mine is true it is new, and the caller
// must fill it.
func (c *cache) claim(key sectionKey) (e *slotEntry, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.slots[key]; ok {
		if e.place != nil {
			c.order.MoveToFront(e.place)
		}
		return e, false
	}
	e = &slotEntry{key: key, ready: make(chan struct{})}
	c.slots[key] = e
	return e, true
}

// fill ends the wait for an entry. Errors are not kept: the next one who asks
// tries again.
func (c *cache) fill(e *slotEntry, value any, size int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.value, e.err, e.size = value, err, size
	close(e.ready)
	if err != nil {
		delete(c.slots, e.key)
		return
	}
	e.place = c.order.PushFront(e)
	c.used += size
	c.shrink()
}

// grow counts what a filled entry takes beyond what it took, in bytes.
func (c *cache) grow(e *slotEntry, more int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slots[e.key] != e {
		return // it has left the cache
	}
	e.size += more
	c.used += more
	c.shrink()
}

// shrink drops what was not used for longest until the rest is within the limit.
func (c *cache) shrink() {
	for c.used > c.limit && c.order.Len() > 1 {
		last := c.order.Remove(c.order.Back()).(*slotEntry)
		delete(c.slots, last.key)
		c.used -= last.size
	}
}

// wait returns the value of an entry, or the error of its fetch or of ctx.
func (e *slotEntry) wait(ctx context.Context) (any, error) {
	select {
	case <-e.ready:
		return e.value, e.err
	default:
	}
	select {
	case <-e.ready:
		return e.value, e.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
