package layers

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options tune a Volume. The zero value is useful.
type Options struct {
	Log *slog.Logger // background work reports here; nil is silent

	// Turn, if it is not nil, returns when a step of tidying, of milliseconds,
	// may begin; end is called when it has ended. If stop is closed before, end
	// is nil.
	Turn func(stop <-chan struct{}) (end func())
}

// A Volume is a chain of layers in a directory, open for reading and writing.
// All methods are safe for concurrent use. It is an nbd.Device.
type Volume struct {
	id     ID
	d      disk
	log    *slog.Logger
	turn   func(stop <-chan struct{}) (end func())
	tuning tuning
	unlock func() error

	size   atomic.Int64 // bytes
	closed atomic.Bool
	covers atomic.Bool           // zeros were written over a layer below, or something was given up, since tidying last looked
	failed atomic.Pointer[error] // why the volume takes no more writes

	promising sync.Mutex // promised; taken before commits, and by nobody who holds another lock
	promised  *promised  // what is read since it failed; nil: nobody has asked

	// Reading. A reader is inside grace from the lookup to the end of the read.
	grace *grace
	live  *blockMap
	seen  atomic.Pointer[seen]         // replaced at each seal, and when the volume grows
	slots atomic.Pointer[[]*layerFile] // by value of live, less slotBase

	// Writing. Locks are taken in this order: tidying, admin, gate, commits, checkpoints,
	// stripes in ascending order, meta, ring, mu, layout, a layer's own.
	admin       sync.Mutex   // one change of the chain at a time
	gate        sync.RWMutex // writes hold it shared; a seal stops them with it
	commits     committer    // flushes that run together share one record
	checkpoints sync.Mutex   // one at a time
	stripes     [64]stripe   // 1 MiB of addresses each, in turn
	meta        sync.Mutex   // changes of live; head, pending, spare, unsettled
	head        *layerFile   //
	pending     *pendingSet  // written since the last flush
	spare       *pendingSet  //
	unsettled   []*layerFile // sealed layers that the journal may have records of
	ring        sync.Mutex   // the fields of journal
	journal     *journal     //
	gap         *gap         // between flushes
	recent      *recent      // what a killed process would forget; has a lock of its own

	mu      sync.RWMutex           // chain, files, anchors
	chain   *chain                 // replaced, never changed
	files   []*layerFile           // of chain.Layers, in that order; replaced with it
	anchors map[*layerFile]*anchor // open views of the boundary above a layer

	figures   sync.Mutex    // held of the layers; no other lock is taken under it but a layer's own
	tidies    atomic.Bool   // background work is under way
	layout    sync.RWMutex  // held while a view resolves a page, and while blocks move
	layoutGen atomic.Uint64 // one more whenever blocks moved from layer to layer
	tidying   sync.Mutex    // one at a time changes sealed layers

	pace           pace // of tidying
	wantCheckpoint chan struct{}
	wantTidy       chan struct{}
	stop           chan struct{}
	background     sync.WaitGroup
}

// tuning is what tests make smaller.
type tuning struct {
	journalSmall, journalLarge int64 // bytes
	recordBlocks               int   // blocks of data in a record, at most
	moveBlocks                 int64 // blocks that a merge moves between syncs, about
	background                 bool  // checkpoints and merges run by themselves
}

var defaultTuning = tuning{
	journalSmall: journalSmall,
	journalLarge: journalLarge,
	recordBlocks: 1024,
	moveBlocks:   16384,
	background:   true,
}

// A Boundary is a place in the chain where a head was sealed: a snapshot, or a
// mark.
type Boundary struct {
	ID     ID
	Parent ID        // the boundary below; zero: none
	Size   int64     // bytes, of the volume at that instant
	Sealed time.Time // the instant
	Mark   bool      // only the knowledge of what changed since is kept, no data
	Live   bool      // the live volume lies on it; false: it is on another branch
	Bytes  int64     // data in the layers between the boundary below and this one
}

// Usage is what a volume takes on disk, without the maps and the journal.
type Usage struct {
	Allocated int64 // bytes of data in all layers
	Live      int64 // bytes of data that the live volume reads
}

// ID is the volume's.
func (v *Volume) ID() ID { return v.id }

// Size is the volume's size now, in bytes.
func (v *Volume) Size() int64 { return v.size.Load() }

// Boundaries lists the snapshots and marks of all branches, oldest first. The
// last one that is Live is where the live volume lies on.
func (v *Volume) Boundaries() []Boundary {
	v.mu.RLock()
	defer v.mu.RUnlock()
	live := make([]bool, len(v.files))
	for _, i := range v.chain.line(v.chain.Head) {
		live[i] = true
	}
	var list []Boundary
	for i, r := range v.chain.Layers {
		if r.Flags == 0 {
			continue
		}
		b := Boundary{
			ID: r.Boundary, Size: r.Size, Sealed: r.Sealed, Mark: r.Flags == flagMark, Live: live[i],
		}
		at := i
		for ; at >= 0 && (at == i || v.chain.Layers[at].Flags == 0); at = v.chain.Layers[at].Parent {
			blocks, _ := v.files[at].usage()
			b.Bytes += blocks * BlockSize
		}
		if at >= 0 {
			b.Parent = v.chain.Layers[at].Boundary
		}
		list = append(list, b)
	}
	return list
}

// Clean reports whether nothing was written since the newest boundary below the
// live volume. Without one it is false.
func (v *Volume) Clean() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, i := range v.chain.line(v.chain.Head) {
		if v.chain.Layers[i].Flags != 0 {
			return true
		}
		if _, says := v.files[i].usage(); says > 0 {
			return false
		}
	}
	return false
}

// Usage returns what the volume takes. It reads no file.
func (v *Volume) Usage() Usage {
	v.meta.Lock()
	u := Usage{Live: v.live.data * BlockSize}
	v.meta.Unlock()
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, l := range v.files {
		blocks, _ := l.usage()
		u.Allocated += blocks * BlockSize
	}
	return u
}

// fail makes the volume read-only: what the disk holds is not known any more,
// and a second sync that succeeds would prove nothing. The first reason stays.
func (v *Volume) fail(cause error) error {
	err := fmt.Errorf("volume %s: %w: %w", v.id, ErrReadOnly, cause)
	if v.failed.CompareAndSwap(nil, &err) {
		v.recent.distrust()
		v.log.Error("volume takes no more writes", "volume", v.id, "cause", cause)
	}
	return *v.failed.Load()
}

// Failure returns why the volume takes no writes until it is opened again, or
// nil. It wraps ErrReadOnly and what the disk said. Reads go on, as ReadAt says.
func (v *Volume) Failure() error {
	if err := v.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// writable returns why the volume takes no writes, or nil.
func (v *Volume) writable() error {
	if v.closed.Load() {
		return v.errClosed()
	}
	return v.Failure()
}

func (v *Volume) errClosed() error { return fmt.Errorf("volume %s: %w", v.id, ErrClosed) }

// sync makes what was written to f durable, or the volume read-only.
func (v *Volume) sync(f file) error {
	if err := f.sync(); err != nil {
		return v.fail(err)
	}
	return nil
}

// syncDir makes the names in the volume's directory durable, or the volume
// read-only.
func (v *Volume) syncDir() error {
	if err := v.d.syncDir(); err != nil {
		return v.fail(err)
	}
	return nil
}

// below returns the layers that a layer lies on, from the top down.
func (v *Volume) below(l *layerFile) []*layerFile {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var list []*layerFile
	for _, i := range v.chain.line(slices.Index(v.files, l)) {
		if v.files[i] != l {
			list = append(list, v.files[i])
		}
	}
	return list
}

// layerOf returns the layer of a value of the block map.
func (v *Volume) layerOf(val uint16) *layerFile { return (*v.slots.Load())[val-slotBase] }

// giveSlot puts a layer into a free slot. The caller holds admin or is alone.
func (v *Volume) giveSlot(l *layerFile) error {
	slots := append([]*layerFile(nil), *v.slots.Load()...)
	i := 0
	for i < len(slots) && slots[i] != nil {
		i++
	}
	if i == maxLayers {
		return fmt.Errorf("volume %s has %d layers, as many as it can: delete snapshots first", v.id, maxLayers)
	}
	if i == len(slots) {
		slots = append(slots, nil)
	}
	slots[i] = l
	l.slot = uint16(i + slotBase)
	v.slots.Store(&slots)
	return nil
}

// takeSlot frees the slot of a layer that the block map does not name and no
// reader uses.
func (v *Volume) takeSlot(l *layerFile) {
	slots := append([]*layerFile(nil), *v.slots.Load()...)
	slots[l.slot-slotBase] = nil
	v.slots.Store(&slots)
}

// kick asks a background goroutine to run, if it does not know yet.
func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
