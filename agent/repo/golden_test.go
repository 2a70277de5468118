package repo

import (
	"archive/zip"
	"bytes"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

var golden = flag.Bool("golden", false, "write testdata anew")

// Golden repositories are readable for ever: a full backup, two increments of
// a volume that grew, the second under a new key, and one that is deleted. Each
// key opens; the first makes the repository.
var goldens = []struct {
	file string
	keys []Key
}{
	{"v1-encrypted.zip", []Key{{Passphrase: secret}, {Passphrase: goldenRecovery.String()}, {KeyFile: keyFile}}},
	{"v1-open.zip", []Key{{}}},
}

var goldenRecovery = RecoveryKey{1, 2, 3, 19: 255}

// goldenStep is the volume of the golden repositories after step 0, 1 or 2.
func goldenStep(v *volume, step int) {
	rnd := rand.New(rand.NewPCG(1, uint64(step)))
	switch step {
	case 0:
		for i := range v.bytes[:60<<10] {
			v.bytes[i] = byte(rnd.Uint32() & 0x0f)
		}
		v.mark(0, 60<<10, layers.Data)
	case 1:
		for range 12 {
			v.write(rnd.Int64N(60<<10), []byte("scattered"))
		}
		v.zero(20<<10, 10<<10)
	case 2:
		v.grow(400_001)
		noise := make([]byte, 10_000)
		for i := range noise {
			noise[i] = byte(rnd.Uint32())
		}
		v.write(350_001, noise)
	}
}

var goldenIDs = []layers.ID{
	{0x01, 0x90, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 1},
	{0x01, 0x90, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 2},
	{0x01, 0x90, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 3},
}

func TestGolden(t *testing.T) {
	for _, g := range goldens {
		file := filepath.Join("testdata", g.file)
		if *golden {
			writeGolden(t, file, g.keys)
		}
		store := storeOf(t, readZip(t, file))
		for _, k := range g.keys[1:] {
			if err := opens(t, store, k); err != nil {
				t.Errorf("%s: open with %+v: %v", g.file, k, err)
			}
		}
		r, err := Open(t.Context(), store, g.keys[0])
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		v := newVolume(300_001)
		listed := 0
		for _, err := range r.Backups(t.Context()) {
			if err != nil {
				t.Error(err)
			}
			listed++
		}
		for step, id := range goldenIDs {
			goldenStep(v, step)
			if step == 1 {
				continue // deleted
			}
			compare(t, r, id, v.bytes)
			b, err := r.Backup(t.Context(), id)
			if err != nil || b.VolumeName != "golden" || b.Meta["step"] != string(rune('0'+step)) || !b.Created.Equal(fixedTime) {
				t.Errorf("%s: backup %d is %+v, %v", g.file, step, b, err)
			}
			report, err := r.Verify(t.Context(), id, VerifyOptions{Level: Deep})
			if err != nil || report.Frames == 0 {
				t.Errorf("%s: verify: %+v, %v", g.file, report, err)
			}
		}
		if listed != 2 {
			t.Errorf("%s: %d backups are listed, want 2", g.file, listed)
		}
	}
}

func writeGolden(t *testing.T, file string, keys []Key) {
	store := object.NewMem()
	p := Params{NoEncryption: keys[0].empty(), Label: "golden", cost: cheap}
	if !p.NoEncryption {
		p.Recovery = goldenRecovery
	}
	r, err := Init(t.Context(), store, keys[0], p)
	if err != nil {
		t.Fatal(err)
	}
	if r.Encrypted() {
		if _, err := r.AddSlot(t.Context(), keys[2], "étiquette"); err != nil {
			t.Fatal(err)
		}
	}
	r.packTarget = 32 << 10
	v, parent := newVolume(300_001), layers.ID{}
	v.id = fixedID
	for step, id := range goldenIDs {
		goldenStep(v, step)
		if step == 2 && r.Encrypted() {
			if _, err := r.RotateVolumeKey(t.Context(), v.id); err != nil {
				t.Fatal(err)
			}
		}
		_, err := r.Create(t.Context(), Job{
			ID: id, Volume: v.id, VolumeName: "golden", Parent: parent, Source: v.source(), Changes: v.changes(),
			Created: fixedTime, Meta: map[string]string{"step": string(rune('0' + step))},
		})
		if err != nil {
			t.Fatal(err)
		}
		parent = id
		v.forget()
	}
	if err := r.Delete(t.Context(), goldenIDs[1]); err != nil {
		t.Fatal(err)
	}
	writeZip(t, file, contents(t, store))
}

func writeZip(t *testing.T, file string, objects map[string][]byte) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, content := range objects {
		f, err := w.Create(name)
		if err == nil {
			_, err = f.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readZip(t testing.TB, file string) map[string][]byte {
	z, err := zip.OpenReader(file)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	objects := make(map[string][]byte)
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		objects[f.Name], err = io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
	}
	return objects
}

// TestGoldenRepaired: a repository of two volumes with a pack that was damaged
// and is repaired, a backup that was deleted, and a relocation, is readable for
// ever.
func TestGoldenRepaired(t *testing.T) {
	file := filepath.Join("testdata", "v1-repaired.zip")
	if *golden {
		writeRepaired(t, file)
	}
	r, err := Open(t.Context(), storeOf(t, readZip(t, file)), Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	v := newVolume(300_001)
	goldenStep(v, 0)
	compare(t, r, goldenIDs[0], v.bytes)
	compare(t, r, goldenIDs[2], v.bytes) // of the other volume
	report, err := r.Audit(t.Context(), AuditOptions{Level: Deep})
	if err != nil || report.Backups != 2 || report.Count != 0 {
		t.Errorf("audit: %v, %+v", err, report)
	}
	if report, err := r.Verify(t.Context(), goldenIDs[0], VerifyOptions{Level: Deep}); err != nil || report.Frames == 0 {
		t.Errorf("verify: %v, %+v", err, report)
	}
}

func writeRepaired(t *testing.T, file string) {
	store := object.NewMem()
	key := Key{Passphrase: secret}
	r, err := Init(t.Context(), store, key, Params{Label: "repaired", cost: cheap})
	if err != nil {
		t.Fatal(err)
	}
	r.packTarget = 32 << 10
	v := newVolume(300_001)
	goldenStep(v, 0)
	for i, id := range goldenIDs {
		j := Job{ID: id, Volume: fixedID, VolumeName: "golden", Source: v.source(), Created: fixedTime}
		if i == 2 {
			j.Volume, j.VolumeName = otherID, "other"
		}
		if _, err := r.Create(t.Context(), j); err != nil {
			t.Fatal(err)
		}
	}
	lost, bytes := "", []byte(nil)
	for name, b := range contents(t, store) {
		if id, ok := packOf(name); ok && id.where == inData && id.id.session() == sessionOf(goldenIDs[0]) && (lost == "" || name < lost) {
			lost, bytes = name, b
		}
	}
	bytes[headerSize+10] ^= 1
	if err := store.Put(t.Context(), lost, bytes); err != nil {
		t.Fatal(err)
	}
	if report, err := r.Audit(t.Context(), AuditOptions{Level: Deep, Repair: true}); err != nil || report.Healed == 0 {
		t.Fatalf("repair: %v, %+v", err, report)
	}
	if err := r.Delete(t.Context(), goldenIDs[1]); err != nil {
		t.Fatal(err)
	}
	writeZip(t, file, contents(t, store))
}
