package repo

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// The repository v1-moved.zip has lived: backups under two keys of the volume and
// at both levels, a host that took over, packs that were repacked, a leaf and
// a frame that were repaired, what was condemned, deleted and protected. Each
// key of goldens[0] opens it.
const movedFile = "v1-moved.zip"

const movedSteps = 12

// What is there of it: the others were deleted, the last of them lately.
var movedLive = []int{4, 6, 8, 9, 10, 11}

func movedID(step int) layers.ID {
	return layers.ID{0x01, 0x91, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 1, byte(step)}
}

// movedStep is the volume after another step.
func movedStep(v *volume, step int) {
	rnd := rand.New(rand.NewPCG(2, uint64(step)))
	noise := make([]byte, 12*layers.BlockSize) // a frame of its own
	for i := range 3 {
		fill(rnd, noise)
		if step == 0 || i == step%3 {
			v.write(int64(i)*frameBytes, noise)
		}
	}
	v.write(rnd.Int64N(300_000), []byte("scattered"))
	v.zero(int64(step)*9000, 5000)
	if step == 7 {
		v.grow(500_003)
	}
}

func fill(rnd *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rnd.Uint32() & 0x0f)
	}
}

// TestGoldenMoved: a repository that was repacked and repaired is readable for
// ever, with each of its keys, and can be pruned. // C5
func TestGoldenMoved(t *testing.T) {
	file := filepath.Join("testdata", movedFile)
	if *golden {
		synctest.Test(t, func(t *testing.T) { writeMoved(t, file) })
	}
	objects := readZip(t, file)
	kinds := make(map[string]bool)
	for name := range objects {
		kinds[objectKindOf(name)] = true
	}
	for _, kind := range []string{"repo", "k/", "g/", "p/", "k", "b", "d", "h", "r", "c"} {
		if !kinds[kind] {
			t.Errorf("no object of kind %q", kind)
		}
	}
	images, v := make(map[layers.ID][]byte), newVolume(400_001)
	for step := range movedSteps {
		movedStep(v, step)
		if slices.Contains(movedLive, step) {
			images[movedID(step)] = bytes.Clone(v.bytes)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		store := storeOf(t, objects)
		for _, k := range goldens[0].keys {
			if err := opens(t, store, k); err != nil {
				t.Errorf("open with %+v: %v", k, err)
			}
		}
		expectAll(t, store, images)
		r, err := Open(t.Context(), store, goldens[0].keys[0])
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		expectMoved(t, r)
		for range 4 {
			time.Sleep(25 * time.Hour)
			prunes(t, r, PruneOptions{RepackBelow: RepackBelow})
			expectAll(t, store, images)
		}
	})
}

// expectMoved compares what the repository tells of its backups.
func expectMoved(t *testing.T, r *Repo) {
	var listed []layers.ID
	for b, err := range r.Backups(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, b.ID)
		step := int(b.ID[15])
		host, epoch := "first", uint64(1)
		if step >= 6 {
			host, epoch = "second", 2
		}
		if b.Host != host || b.Epoch != epoch || b.Protected != (step == 4 || step == 11) || !b.Created.Equal(fixedTime) {
			t.Errorf("backup %d is %+v", step, b)
		}
	}
	slices.SortFunc(listed, compareIDs)
	var want []layers.ID
	for _, step := range movedLive {
		want = append(want, movedID(step))
	}
	if !slices.Equal(listed, want) {
		t.Errorf("listed are %v, want %v", listed, want)
	}
	claims, err := r.Claims(t.Context())
	if err != nil || len(claims) != 1 || claims[0].After.Backup != movedID(5) || claims[0].Host != "second" {
		t.Errorf("claims: %+v, %v", claims, err)
	}
	if usage(t, r).Volumes[0].Backups != len(movedLive) {
		t.Errorf("usage: %+v", usage(t, r))
	}
}

func writeMoved(t *testing.T, file string) {
	ctx, store, keys := t.Context(), object.NewMem(), goldens[0].keys
	r, err := Init(ctx, store, keys[0], Params{Label: "moved", Recovery: goldenRecovery, cost: cheap})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.AddSlot(ctx, keys[2], "étiquette"); err != nil {
		t.Fatal(err)
	}
	r.packTarget = 48 << 10
	v, parent, claim, host := newVolume(400_001), layers.ID{}, Claim{}, "first"
	v.id = fixedID
	images := make(map[layers.ID][]byte)
	for step := range movedSteps {
		movedStep(v, step)
		switch step {
		case 6:
			claim, host = must(r.TakeOver(ctx, otherID, parent, "second"))(t), "second"
		case 8:
			must(r.RotateVolumeKey(ctx, v.id))(t)
		}
		b := must(r.Create(ctx, Job{
			ID: movedID(step), Volume: v.id, VolumeName: "golden", Parent: parent, Source: v.source(), Changes: v.changes(), Claim: claim, Host: host,
			Created: fixedTime, Boundary: movedID(100 + step), Compression: []Compression{Fastest, Default}[step%2],
		}))(t)
		parent, images[b.ID] = b.ID, bytes.Clone(v.bytes)
		v.forget()
	}
	for _, step := range []int{4, 11} {
		if err := r.Protect(ctx, movedID(step), true); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(steps ...int) {
		for _, step := range steps {
			if err := r.Delete(ctx, movedID(step)); err != nil {
				t.Fatal(err)
			}
			delete(images, movedID(step))
		}
	}
	days := func(n int) {
		for range n {
			time.Sleep(25 * time.Hour)
			prunes(t, r, PruneOptions{RepackBelow: RepackBelow})
		}
	}
	remove(0, 1, 2, 3)
	days(4)
	breakOne(t, r, store, images)
	remove(5)
	days(2) // condemns
	remove(7)
	expectAll(t, store, images)
	writeZip(t, file, contents(t, store))
}

// breakOne breaks the first leaf and the first frame of a pack that can be put
// together again, and has that done.
func breakOne(t *testing.T, r *Repo, store *object.Mem, images map[layers.ID][]byte) {
	t.Helper()
	whole := contents(t, store)
	same := func(context.Context, layers.ID) (Source, error) {
		var all []layers.Layer
		for _, image := range images {
			all = append(all, &content{bytes: image})
		}
		return Source{Layers: all}, nil
	}
	kinds := make(map[sectionKind]bool)
	for _, name := range slices.Sorted(maps.Keys(whole)) {
		id, ok := packOf(name)
		if !ok {
			continue
		}
		h := must(parseHeader(whole[name]))(t)
		var p checkedPack
		if _, err := p.parse(t.Context(), r, id.where, packRef{id.id, h.key}, bytes.Clone(whole[name])); err != nil {
			t.Fatal(err)
		}
		for i := range p.sections {
			kind := p.sections[i].kind
			if kinds[kind] || kind == sectionInventory {
				continue
			}
			broken := bytes.Clone(whole[name])
			broken[p.offsets[i]] ^= 1
			trial := storeOf(t, whole)
			trial.Put(t.Context(), name, broken)
			fresh := must(Open(t.Context(), trial, Key{Passphrase: secret}))(t)
			report, err := fresh.Audit(t.Context(), AuditOptions{Level: Deep, Repair: true, Heal: same})
			fresh.Close()
			if err != nil || report.Healed+report.Rebuilt == 0 {
				continue
			}
			kinds[kind] = true
			store.Put(t.Context(), name, broken)
			if _, err := r.Audit(t.Context(), AuditOptions{Level: Deep, Repair: true, Heal: same}); err != nil {
				t.Fatal(err)
			}
			whole = contents(t, store)
			break
		}
	}
	if len(kinds) != 2 {
		t.Errorf("repaired are %v", kinds)
	}
	if !strings.Contains(strings.Join(slices.Collect(maps.Keys(whole)), " "), "/r/") {
		t.Error("nothing was moved")
	}
}
