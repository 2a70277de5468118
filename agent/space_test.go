package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"varve/layers"
)

func TestRoomLevels(t *testing.T) {
	const gib = 1 << 30
	for _, tt := range []struct {
		r    room
		want roomLevel
	}{
		{room{100 * gib, 1000 * gib}, roomy},
		{room{49 * gib, 1000 * gib}, roomLow},
		{room{gib - 1, 10 * gib}, roomLow},
		{room{fullBytes, 10 * gib}, roomLow},
		{room{fullBytes - 1, 10 * gib}, roomFull},
		{room{0, 10 * gib}, roomFull},
		{room{30 * mib, 96 * mib}, roomLow}, // A small disk is full later.
		{room{mib, 96 * mib}, roomFull},
	} {
		if got := tt.r.level(); got != tt.want {
			t.Errorf("%d of %d free: level %d, want %d", tt.r.free, tt.r.capacity, got, tt.want)
		}
	}
}

// The log hears of a change once, and a warning names who grew, the fastest
// first, over the last ten minutes.
func TestRoomWatch(t *testing.T) {
	w := &roomWatch{}
	start := time.Now()
	x, y, z := layers.NewID(), layers.NewID(), layers.NewID()
	for i, tt := range []struct {
		level   roomLevel
		changed bool
	}{{roomy, false}, {roomLow, true}, {roomLow, false}, {roomFull, true}, {roomy, true}, {roomy, false}} {
		if got := w.look(start.Add(time.Duration(i)*watchEvery), tt.level, map[layers.ID]int64{x: 10, z: 5}); got != tt.changed {
			t.Errorf("look %d: changed %v, want %v", i, got, tt.changed)
		}
	}
	if len(w.samples) != 1 {
		t.Errorf("%d samples of less than a minute, want 1", len(w.samples))
	}
	list, over := w.growths(start.Add(time.Minute), map[layers.ID]int64{x: 11, y: 3, z: 4})
	if want := []growth{{y, 3}, {x, 1}}; !slices.Equal(list, want) || over != time.Minute {
		t.Errorf("growths %v over %s, want %v over a minute", list, over, want)
	}
	for i := range 30 {
		w.look(start.Add(time.Duration(i)*time.Minute), roomy, map[layers.ID]int64{x: int64(i)})
	}
	list, over = w.growths(start.Add(29*time.Minute), map[layers.ID]int64{x: 29})
	if want := []growth{{x, 10}}; !slices.Equal(list, want) || over != growthWindow {
		t.Errorf("growths %v over %s, want %v over ten minutes", list, over, want)
	}
}

func TestRoomWarning(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	createVolume(t, a, "grower", 8*mib)
	createVolume(t, a, "idle", 8*mib)
	now := time.Now()
	a.room.mu.Lock()
	a.room.samples = []roomSample{{now.Add(-5 * time.Minute), map[layers.ID]int64{}}}
	a.room.mu.Unlock()
	write(t, a, "grower", 1, 0, 4*mib)
	if got := a.warnRoom(now, room{100 << 30, 200 << 30}); got != "" {
		t.Errorf("with room: %q", got)
	}
	low := a.warnRoom(now, room{8 * mib, 100 * mib})
	for _, part := range []string{"only 8 MiB free of 100", "last 5m0s: grower by 4 MiB", "full in 10m0s"} {
		if !strings.Contains(low, part) {
			t.Errorf("%q does not say %q", low, part)
		}
	}
	if full := a.warnRoom(now, room{mib, 100 * mib}); !strings.Contains(full, "is full") || strings.Contains(full, "rate") || strings.Contains(full, "idle") {
		t.Errorf("full: %q", full)
	}
}
