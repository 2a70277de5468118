package layers

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

// S8, V9: the power may fail at each operation on the disk while damage is
// repaired, in a layer that a clone shares. Each damaged block is damaged or
// repaired then, for both, and nothing else has changed; once Repair has
// answered, it is repaired. What is left is repaired by the next.
func TestCrashInRepair(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		const blocks = 64
		d := newMemDisk()
		m := newModel(t, d, rand.New(rand.NewPCG(seed, 1)), blocks*BlockSize, smallTuning)
		writeBlocks(t, m.v, 1, 0, blocks)
		first := takeSnapshot(t, m.v)
		writeBlocks(t, m.v, 2, 20, 20)
		takeSnapshot(t, m.v)
		m.tidy() // makes the checksums
		other := d.mkdir()
		if err := m.v.cloneTo(other, NewID(), first); err != nil {
			t.Fatal(err)
		}
		want, err := m.v.View(first)
		if err != nil {
			t.Fatal(err)
		}
		c := &repairCrash{t: t, d: d, chance: rand.New(rand.NewPCG(seed, 2)), first: first, layer: m.v.files[0].id, good: content(t, want), bad: map[int64]bool{}}
		want.Close()
		for range 8 {
			c.rot(m.r.Int64N(blocks))
		}
		copied := newModel(t, newMemDisk(), m.r, blocks*BlockSize, smallTuning)
		if _, err := copied.v.WriteAt(c.good, 0); err != nil {
			t.Fatal(err)
		}
		c.source = copied.v
		d.hook = func() {
			for range 3 {
				c.inspect(d.crash(c.chance))
			}
		}
		c.repair(m.v)
		c.done = true
		for range 20 {
			c.inspect(d.crash(c.chance))
		}
		t.Logf("%d crashes", c.crashes)
		if c.crashes < 50 || c.half == 0 {
			t.Errorf("%d crashes, %d of them between two blocks, are too few to say anything", c.crashes, c.half)
		}
	})
}

// repairCrash is a damaged volume and its clone on a disk that crashes.
type repairCrash struct {
	t       *testing.T
	d       *memDisk
	chance  *rand.Rand
	first   ID // snapshot of the volume, of which the clone was made
	layer   ID // below it
	good    []byte
	source  Layer          // that has it
	bad     map[int64]bool // blocks of the layer that were damaged
	done    bool           // Repair has answered
	crashes int
	half    int // crashes that left some blocks repaired and some not
}

// rot damages a block of the layer, for good.
func (c *repairCrash) rot(b int64) {
	f := c.d.names[dataName(c.layer)]
	f.data[b*BlockSize+c.chance.Int64N(BlockSize)] ^= 1 + byte(c.chance.IntN(255))
	if crc(f.data[b*BlockSize:][:BlockSize]) == crc(c.good[b*BlockSize:][:BlockSize]) {
		c.t.Fatalf("the damage of block %d was undone by the next", b)
	}
	c.bad[b] = true
}

// repair repairs a volume that may have some of the damage, from what has all.
func (c *repairCrash) repair(v *Volume) {
	c.t.Helper()
	if _, damaged, err := v.Repair(c.t.Context(), c.layer, 0, v.Size(), c.source); damaged > 0 || err != nil {
		c.t.Fatalf("repair: %d blocks stay damaged, %v", damaged, err)
	}
}

// inspect opens what a crash left.
func (c *repairCrash) inspect(d *memDisk) {
	c.t.Helper()
	c.crashes++
	v := c.open(d)
	w, err := v.View(c.first)
	if err != nil {
		c.t.Fatal(err)
	}
	found := c.compare(w)
	clone := c.open(d.dirs[1])
	if got := c.compare(clone); got != found {
		c.t.Fatalf("%d blocks are damaged in the clone, %d in its origin", got, found)
	}
	if c.done && found > 0 {
		c.t.Fatalf("Repair has answered, and %d blocks are damaged again", found)
	}
	if found > 0 && found < len(c.bad) {
		c.half++
	}
	c.repair(v)
	if found := c.compare(w); found > 0 {
		c.t.Fatalf("%d blocks are damaged after another repair", found)
	}
	w.Close()
	if err := errors.Join(sound(v), sound(clone), clone.Close(), v.Close()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *repairCrash) open(d disk) *Volume {
	c.t.Helper()
	v, err := openVolume(d, Options{}, smallTuning)
	if err != nil {
		c.t.Fatalf("open: %v", err)
	}
	return v
}

// compare reads block by block, and returns how many are damaged. Each of them
// must have been before.
func (c *repairCrash) compare(l Layer) (damaged int) {
	c.t.Helper()
	p := make([]byte, BlockSize)
	for b := range int64(len(c.good)) / BlockSize {
		_, err := l.ReadAt(p, b*BlockSize)
		var damage *CorruptError
		switch {
		case errors.As(err, &damage) && c.bad[b] && damage.Off == b*BlockSize && strings.HasPrefix(damage.Path, c.layer.String()):
			damaged++
		case err != nil:
			c.t.Fatalf("block %d: %v", b, err)
		case !bytes.Equal(p, blockOf(c.good, b)):
			c.t.Fatalf("block %d has other bytes, and nobody says so", b)
		}
	}
	return damaged
}
