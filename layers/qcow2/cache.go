package qcow2

import (
	"container/list"
	"sync"
)

// A cache keeps the blocks that were used last. Two that want the same block at
// the same time both make it.
type cache struct {
	room int // blocks
	make func(key uint64) ([]byte, error)

	mu     sync.Mutex
	blocks map[uint64]*list.Element
	recent *list.List // of *cached, the last used first
}

type cached struct {
	key  uint64
	data []byte
}

func newCache(room int64, make func(uint64) ([]byte, error)) *cache {
	return &cache{room: int(max(room, 2)), make: make, blocks: map[uint64]*list.Element{}, recent: list.New()}
}

// get returns a block, which nobody may change.
func (c *cache) get(key uint64) ([]byte, error) {
	c.mu.Lock()
	if e := c.blocks[key]; e != nil {
		c.recent.MoveToFront(e)
		c.mu.Unlock()
		return e.Value.(*cached).data, nil
	}
	c.mu.Unlock()
	data, err := c.make(key)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocks[key] == nil {
		c.blocks[key] = c.recent.PushFront(&cached{key, data})
	}
	for c.recent.Len() > c.room {
		delete(c.blocks, c.recent.Remove(c.recent.Back()).(*cached).key)
	}
	return data, nil
}
