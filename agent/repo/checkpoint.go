package repo

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"math"
	"slices"
	"sync"

	"varve/layers"
)

// A Checkpoint says what a backup that is being made may have stored so far, in
// a few bytes however large the backup is: names of packs are numbered, and
// numbers are set aside before they are used. It is plain data, for the caller
// to keep.
//
// What a backup has stored says itself where it belongs: the trailer of each
// pack names its blocks. So a Checkpoint says nothing about how far the copy
// got, and holds no map.
type Checkpoint struct {
	Tries    []Try
	Sessions int64  // sessions numbered below it may exist
	Root     string // the name of the root, once it may exist
	MadeKey  bool   // the volume's key was made for this backup
}

// A Try is one Create of a backup. Its packs have the numbers from 0 on.
type Try struct {
	Salt   uint64 // random; in the names of all its packs
	Data   uint32 // packs of data numbered below it may exist
	Leaves uint32 // packs of leaves
}

const (
	leavesFrom = 1 << 31 // number of a Try's first pack of leaves
	setAside   = 32      // numbers of data packs at a time, where a Checkpoint is recorded
	triesMax   = 256     // of one backup that stored something
)

// pack returns the object ID of a pack: docs/format.md 2.1.
func (t *Try) pack(backup layers.ID, number uint32) objectID {
	var id objectID
	copy(id[:8], backup[8:])
	binary.BigEndian.PutUint64(id[8:], t.Salt)
	binary.BigEndian.PutUint32(id[16:], number)
	return id
}

// A ledger hands out the names of a backup that is being made, and has them
// recorded before. It is safe for concurrent use.
type ledger struct {
	backup layers.ID
	record func(Checkpoint) error // nil: nobody keeps it

	mu     sync.Mutex
	point  Checkpoint
	data   uint32 // packs of the last Try that have their numbers
	leaves uint32
}

func newLedger(j *Job) *ledger {
	l := &ledger{backup: j.ID, record: j.Checkpoint, point: j.Resume}
	var salt [8]byte
	rand.Read(salt[:]) // never fails: crypto/rand
	l.point.Tries = append(j.Resume.stored(), Try{Salt: binary.BigEndian.Uint64(salt[:])})
	return l
}

// change alters the checkpoint and has it recorded. The caller holds mu.
func (l *ledger) change(f func(*Checkpoint)) error {
	next := l.point
	next.Tries = slices.Clone(next.Tries)
	f(&next)
	if l.record != nil {
		if err := l.record(next); err != nil {
			return err
		}
	}
	l.point = next
	return nil
}

// pack returns the ID of the next pack.
func (l *ledger) pack(where place) (objectID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	try := l.try()
	if where == inLeaves {
		err := l.change(func(c *Checkpoint) { c.Tries[len(c.Tries)-1].Leaves++ })
		l.leaves++
		return try.pack(l.backup, leavesFrom+l.leaves-1), err
	}
	if l.data == try.Data {
		more := uint32(1)
		if l.record != nil {
			more = setAside
		}
		if err := l.change(func(c *Checkpoint) { c.Tries[len(c.Tries)-1].Data += more }); err != nil {
			return objectID{}, err
		}
	}
	l.data++
	return try.pack(l.backup, l.data-1), nil
}

func (l *ledger) try() Try { return l.point.Tries[len(l.point.Tries)-1] }

// session sets the number n of a session aside.
func (l *ledger) session(n int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.change(func(c *Checkpoint) { c.Sessions = max(c.Sessions, n+1) })
}

// root sets the name of the root aside.
func (l *ledger) root(name rootName) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.change(func(c *Checkpoint) { c.Root = name.String() })
}

// key says that the volume's key was made.
func (l *ledger) key() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.change(func(c *Checkpoint) { c.MadeKey = true })
}

func (l *ledger) madeKey() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.point.MadeKey
}

// stored are the tries that may have stored something.
func (c *Checkpoint) stored() []Try {
	return slices.DeleteFunc(slices.Clone(c.Tries), func(t Try) bool { return t.Data == 0 && t.Leaves == 0 })
}

// names are those of all packs and sessions that may exist.
func (c *Checkpoint) names(backup layers.ID) []string {
	var names []string
	for i := range c.Tries {
		names = append(names, c.Tries[i].names(backup, 0)...)
	}
	for n := range min(c.Sessions, math.MaxInt32) {
		names = append(names, sessionName(backup, n))
	}
	return names
}

// names are those of the packs of leaves, and of data from a number on.
func (t *Try) names(backup layers.ID, from uint32) []string {
	var names []string
	for n := from; n < t.Data; n++ {
		names = append(names, packName(inData, t.pack(backup, n)))
	}
	for n := range t.Leaves {
		names = append(names, packName(inLeaves, t.pack(backup, leavesFrom+n)))
	}
	return names
}

// Discard removes what a backup has stored that was not, and will not be,
// finished. If its root may have been written, only that goes, with the
// sessions: the packs are left to pruning, since the store may still be about to
// obey, and then the backup must be whole. What an error leaves can be discarded
// again.
func (r *Repo) Discard(ctx context.Context, backup layers.ID, c Checkpoint) error {
	if c.Root != "" {
		if err := r.store.Delete(ctx, c.Root); err != nil {
			return err
		}
		r.index.forget(backup)
		c.Tries = nil
	}
	return r.deleteAll(ctx, c.names(backup))
}

// deleteBatch is how many names one call of Delete is given.
const deleteBatch = 1000

func (r *Repo) deleteAll(ctx context.Context, names []string) error {
	for batch := range slices.Chunk(names, deleteBatch) {
		if err := r.store.Delete(ctx, batch...); err != nil {
			return err
		}
	}
	return nil
}
