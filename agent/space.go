package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/layers"
)

// The file system of the state folder is low when less than this is free, of
// all of it or in bytes, and full when not even a snapshot is sure to fit.
const (
	lowShare  = 20 // one part in
	lowBytes  = 1 << 30
	fullBytes = 64 << 20 // what the catalog wants to have to spare
)

const (
	watchEvery   = 10 * time.Second
	growthSample = time.Minute
	growthWindow = 10 * time.Minute
)

// A room is how much a file system can take.
type room struct{ free, capacity int64 } // bytes

// roomOf asks the file system of a folder.
func roomOf(dir string) (room, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return room{}, fail(Unavailable, "look at the space of %s: %w", dir, err)
	}
	return room{free: int64(fs.Bavail) * fs.Bsize, capacity: int64(fs.Blocks) * fs.Bsize}, nil
}

// A roomLevel is how near a full disk is.
type roomLevel int

const (
	roomy roomLevel = iota
	roomLow
	roomFull
)

func (r room) level() roomLevel {
	switch {
	case r.free < min(fullBytes, r.capacity/lowShare):
		return roomFull
	case r.free < lowBytes || r.free < r.capacity/lowShare:
		return roomLow
	}
	return roomy
}

// A roomWatch remembers what volumes took, to say which of them grow, and when
// it last told that the disk fills.
type roomWatch struct {
	mu      sync.Mutex
	level   roomLevel
	samples []roomSample // oldest first, a growthSample apart, growthWindow in all
}

type roomSample struct {
	at    time.Time
	taken map[layers.ID]int64 // bytes, by volume
}

// look keeps a sample and reports whether the level is another one than at the
// last look.
func (w *roomWatch) look(now time.Time, level roomLevel, taken map[layers.ID]int64) (changed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed = level != w.level
	w.level = level
	if n := len(w.samples); n == 0 || now.Sub(w.samples[n-1].at) >= growthSample {
		w.samples = append(w.samples, roomSample{now, taken})
	}
	for len(w.samples) > 1 && now.Sub(w.samples[0].at) > growthWindow {
		w.samples = w.samples[1:]
	}
	return changed
}

// A growth is what a volume took more.
type growth struct {
	id    layers.ID
	bytes int64
}

// growths returns the volumes that take more than at the oldest sample, the
// fastest first, and how long ago that was. A volume that was not there then
// took nothing.
func (w *roomWatch) growths(now time.Time, taken map[layers.ID]int64) (list []growth, over time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.samples) == 0 {
		return nil, 0
	}
	before := w.samples[0]
	for id, bytes := range taken {
		if more := bytes - before.taken[id]; more > 0 {
			list = append(list, growth{id, more})
		}
	}
	slices.SortFunc(list, func(x, y growth) int {
		if x.bytes != y.bytes {
			return int(min(max(y.bytes-x.bytes, -1), 1))
		}
		return slices.Compare(x.id[:], y.id[:])
	})
	return list, now.Sub(before.at)
}

// watchRoom tells in the log when the disk begins to fill, is full, and has
// room again, until ctx ends.
func (a *Agent) watchRoom(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if r, err := roomOf(a.config.State); err != nil {
			a.log.Error("the free space is not known", "error", err)
		} else if a.room.look(time.Now(), r.level(), a.taken()) {
			a.tellRoom(r)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (a *Agent) tellRoom(r room) {
	if r.level() == roomy {
		a.log.Info("there is room again in the file system of the state folder", "free", r.free, "capacity", r.capacity)
		return
	}
	a.log.Warn(a.warnRoom(time.Now(), r), "free", r.free, "capacity", r.capacity)
}

// taken returns what each open volume takes on disk, in bytes.
func (a *Agent) taken() map[layers.ID]int64 {
	a.mu.Lock()
	open := map[layers.ID]*layers.Volume{}
	for id, v := range a.volumes {
		if v.data != nil {
			open[id] = v.data
		}
	}
	a.mu.Unlock()
	taken := make(map[layers.ID]int64, len(open))
	for id, data := range open {
		taken[id] = data.Usage().Allocated
	}
	return taken
}

// maxGrowths is how many growing volumes a warning names.
const maxGrowths = 3

// warnRoom says that there is little room, what that means, and which volumes
// take it; nothing where there is enough.
func (a *Agent) warnRoom(now time.Time, r room) string {
	var b strings.Builder
	switch r.level() {
	case roomy:
		return ""
	case roomLow:
		fmt.Fprintf(&b, "The file system of %s has only %d MiB free of %d: volumes fail to write when it is full. "+
			"Delete snapshots or volumes, or make room.", a.config.State, r.free>>20, r.capacity>>20)
	case roomFull:
		fmt.Fprintf(&b, "The file system of %s is full, %d MiB are free: writes to volumes fail with \"no space left\", reads go on, "+
			"and writing resumes when there is room. Delete snapshots or volumes, or make room.", a.config.State, r.free>>20)
	}
	list, over := a.room.growths(now, a.taken())
	if len(list) == 0 {
		return b.String()
	}
	total := int64(0)
	texts := []string{}
	for i, g := range list {
		total += g.bytes
		if i < maxGrowths {
			texts = append(texts, fmt.Sprintf("%s by %d MiB", a.nameOf(g.id), (g.bytes+mebi-1)/mebi))
		}
	}
	fmt.Fprintf(&b, " What grew in the last %s: %s", over.Round(time.Second), strings.Join(texts, ", "))
	if left := len(list) - len(texts); left > 0 {
		fmt.Fprintf(&b, " and %d more", left)
	}
	// Less than a sample's time says nothing about a rate.
	if over >= growthSample && r.level() == roomLow {
		left := time.Duration(float64(r.free) / float64(total) * float64(over))
		fmt.Fprintf(&b, "; at that rate it is full in %s", left.Round(time.Minute))
	}
	return b.String() + "."
}

const mebi = 1 << 20

// nameOf is a volume's name, or its id where the catalog does not know.
func (a *Agent) nameOf(id layers.ID) string {
	records, _, err := a.volumeRecords()
	if err == nil {
		for _, r := range records {
			if r.ID == id {
				return r.Name
			}
		}
	}
	return id.String()
}
