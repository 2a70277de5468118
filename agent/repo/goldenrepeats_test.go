package repo

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// The repository v1-repeats.zip has frames with repeats: in a full backup and in
// an increment, at each level. goldens[0].keys[0] opens it.
const repeatsFile = "v1-repeats.zip"

const repeatsSteps = 4 // the even ones are full, the first two at the fastest level

func repeatsID(step int) layers.ID {
	return layers.ID{0x01, 0x92, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 2, byte(step)}
}

// repeatsStep is the volume after another step: noise in one region, and parts
// of it in the two behind, at places of their own.
func repeatsStep(v *volume, step int) {
	noise := make([]byte, 20*layers.BlockSize)
	rnd := rand.New(rand.NewPCG(3, uint64(step)))
	for i := range noise {
		noise[i] = byte(rnd.Uint32() & 3)
	}
	at := int64(step) * layers.BlockSize
	v.write(at, noise)
	v.write(at+40*layers.BlockSize, noise[3*layers.BlockSize:15*layers.BlockSize])
	v.write(at+70*layers.BlockSize, noise[8*layers.BlockSize:16*layers.BlockSize])
}

// TestGoldenRepeats: what was stored once and stands in several places is
// readable for ever, and can be repaired. // B15
func TestGoldenRepeats(t *testing.T) {
	file := filepath.Join("testdata", repeatsFile)
	if *golden {
		writeRepeats(t, file)
	}
	s := &sample{objects: readZip(t, file)}
	images, v := make(map[layers.ID][]byte), newVolume(400_001)
	for step := range repeatsSteps {
		repeatsStep(v, step)
		images[repeatsID(step)] = bytes.Clone(v.bytes)
	}
	store := storeOf(t, s.objects)
	s.expectWhole(t, "as it was written", store, images)
	repeated := make(map[sessionID]int64)
	for name, b := range s.objects {
		id, ok := packOf(name)
		if !ok {
			continue
		}
		var p checkedPack
		h := must(parseHeader(b))(t)
		if _, err := p.parse(t.Context(), hostOf(t, store), id.where, packRef{id.id, h.key}, bytes.Clone(b)); err != nil {
			t.Fatal(err)
		}
		for i, section := range p.sections {
			if len(section.repeats) == 0 {
				continue
			}
			_, n := countBlocks(p.sections[i : i+1])
			repeated[id.id.session()] += n
			broken := bytes.Clone(b)
			broken[p.offsets[i]] ^= 1
			report, healed, err := s.repair(t, name, broken, Deep, func(context.Context, layers.ID) (Source, error) {
				var all []layers.Layer
				for _, image := range images {
					all = append(all, &content{bytes: image})
				}
				return Source{Layers: all}, nil
			})
			if err != nil || report.Healed != 1 {
				t.Errorf("repair of %s, section %d: %v, %+v", name, i, err, report)
			}
			s.expectWhole(t, "repaired", healed, images)
		}
	}
	for step := range repeatsSteps {
		if got := repeated[sessionOf(repeatsID(step))]; got != 20 {
			t.Errorf("%d blocks of backup %d are repeats, want 20", got, step)
		}
	}
}

func writeRepeats(t *testing.T, file string) {
	store := object.NewMem()
	r := must(Init(t.Context(), store, goldens[0].keys[0], Params{Label: "repeats", cost: cheap}))(t)
	defer r.Close()
	v := newVolume(400_001)
	v.id = fixedID
	for step := range repeatsSteps {
		repeatsStep(v, step)
		j := Job{
			ID: repeatsID(step), Volume: v.id, VolumeName: "golden", Source: v.source(),
			Created: fixedTime, Compression: []Compression{Fastest, Default}[step/2],
		}
		if step%2 == 1 {
			j.Parent, j.Changes = repeatsID(step-1), v.changes()
		}
		must(r.Create(t.Context(), j))(t)
		v.forget()
	}
	writeZip(t, file, contents(t, store))
}

// repeatsTexts returns the trailers, or the leaves, of the packs of that
// repository: the trailers have frames with repeats, the leaves name blocks of
// one frame in several places.
func repeatsTexts(t testing.TB, kind sectionKind) (texts [][]byte) {
	objects := readZip(t, filepath.Join("testdata", repeatsFile))
	r := must(Open(t.Context(), storeOf(t, objects), goldens[0].keys[0]))(t)
	defer r.Close()
	repeats := 0
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		id, ok := packOf(name)
		if !ok {
			continue
		}
		var p checkedPack
		b := objects[name]
		h := must(parseHeader(b))(t)
		key := must(p.parse(t.Context(), r, id.where, packRef{id.id, h.key}, bytes.Clone(b)))(t)
		if kind == sectionTrailer {
			texts = append(texts, appendTrailer(nil, repeatsID(0), p.sections))
		}
		for i, s := range p.sections {
			repeats += len(s.repeats)
			if s.kind == kind {
				at := p.offsets[i]
				text := must(key.sealer(id.id).open(bytes.Clone(b[at:at+int64(s.stored)]), kind, uint32(i), nil))(t)
				texts = append(texts, must(expand(text, 1<<20))(t))
			}
		}
	}
	if repeats == 0 || len(texts) == 0 {
		t.Fatalf("%s has %d repeats, and gives %d seeds", repeatsFile, repeats, len(texts))
	}
	return texts
}
