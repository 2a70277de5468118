package repo

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// A frame that no backup of its volume has any more is taken from a pack of
// another volume that holds the same, as its id proves; what is damaged there too
// is passed over. Where all are damaged, all their backups are told. // B15
func TestRepairFromAnotherVolume(t *testing.T) {
	first := object.NewMem()
	r := testRepo(t, first, true)
	r.packTarget = 64 << 10
	image := make([]byte, 384<<10)
	fill(newRand(t), image)
	const copies = 3
	var ids []layers.ID
	var packs []string // of each backup, the one with the first frame
	for range copies {
		v := newVolume(int64(len(image)))
		copy(v.bytes, image)
		v.mark(0, int64(len(image)), layers.Data)
		b := must(v.backup(t.Context(), r, layers.ID{}))(t)
		ids = append(ids, b.ID)
		root := must(r.openRoot(t.Context(), b.ID))(t)
		leaf := must(r.readRow(t.Context(), v.id, root.spans.rows[0]))(t)
		packs = append(packs, packName(inData, leaf.packs[leaf.frames[0].pack].id))
	}
	for broken := 1; broken <= copies; broken++ {
		store := first.Clone()
		for _, name := range packs[:broken] {
			b := contents(t, store)[name]
			b[headerSize+100] ^= 1
			if err := store.Put(t.Context(), name, b); err != nil {
				t.Fatal(err)
			}
		}
		report, err := hostOf(t, store).Audit(t.Context(), AuditOptions{Level: Deep, Repair: true})
		if broken == copies {
			if !errors.Is(err, ErrCorrupt) || report.Healed != 0 || len(report.Damaged) != copies {
				t.Errorf("all %d copies are damaged: %v, %+v", broken, err, report)
			}
			continue
		}
		if err != nil || report.Healed != int64(broken) || len(report.Damaged) != 0 {
			t.Errorf("%d of %d copies are damaged: %v, %+v", broken, copies, err, report)
		}
		for i, id := range ids {
			compare(t, hostOf(t, store), id, image)
			if now := contents(t, store)[packs[i]]; bytes.Equal(now, contents(t, first)[packs[i]]) != (i >= broken) {
				t.Errorf("pack %s was written again", packs[i])
			}
		}
		if n := len(relocationsIn(t, store)); n != broken {
			t.Errorf("%d of %d copies are damaged, and there are %d relocations", broken, copies, n)
		}
	}
}

// Addresses become the fewest runs that keep their order.
func TestAddressesAreJoined(t *testing.T) {
	for _, c := range []struct {
		blocks []int64
		want   []run
	}{
		{nil, nil},
		{[]int64{5}, []run{{5, 1}}},
		{[]int64{5, 6, 7, 9, 8, 9, 9}, []run{{5, 3}, {9, 1}, {8, 2}, {9, 1}}},
	} {
		got := joined(c.blocks)
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.blocks, got, c.want)
		}
		if back := addressesOf(&section{runs: got}); !slices.Equal(back, c.blocks) {
			t.Errorf("%v come back as %v", c.blocks, back)
		}
	}
}
