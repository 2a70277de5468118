package repo

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// The repository v1-captions.zip has backups that were named when they were
// made, that were renamed since, and one that two hosts renamed at the same
// time, so that it has two captions; and a rotation of its key that was cut off,
// so that goldens[0].keys[0] opens it and captionsKey too.
const captionsFile = "v1-captions.zip"

var captionsKey = Key{KeyFile: keyFile}

// captionsBackups are the backups of it, an increment each but for the first.
var captionsBackups = []struct {
	made    Caption
	renamed []Caption // one after the other
	rival   Caption   // of another host, in the instant of the last; none if empty
	counts  Caption
	updated time.Time // when counts came, if it is not the first
	gone    bool      // deleted
}{
	{
		made:   Caption{"daily", "as it was made", map[string]string{"k": "v"}},
		counts: Caption{"daily", "as it was made", map[string]string{"k": "v"}},
	},
	{
		made:    Caption{"daily", "", nil},
		renamed: []Caption{{"vor dem Umzug", "Äpfel, 日本\nand a second line", map[string]string{"ticket": "4711", "größe": "✓"}}},
		counts:  Caption{"vor dem Umzug", "Äpfel, 日本\nand a second line", map[string]string{"ticket": "4711", "größe": "✓"}},
		updated: fixedTime.Add(1 * time.Hour),
	},
	{
		made:    Caption{"daily", "text", map[string]string{"a": "1", "b": "2"}},
		renamed: []Caption{{"second", "text", map[string]string{"a": "1"}}, {"", "", nil}},
		counts:  Caption{},
		updated: fixedTime.Add(2 * time.Hour),
	},
	{
		made:    Caption{"daily", "text", nil},
		renamed: []Caption{{"mine", "text", map[string]string{"by": "one"}}},
		rival:   Caption{"theirs", "text", map[string]string{"by": "two"}},
		counts:  Caption{"mine", "text", map[string]string{"by": "one"}}, // its object's ID is drawn until it is the greater one
		updated: fixedTime.Add(1 * time.Hour),
	},
	{
		made:    Caption{"deleted", "", nil},
		renamed: []Caption{{"deleted", "with its caption", nil}},
		gone:    true,
	},
}

func captionsID(i int) layers.ID {
	return layers.ID{0x01, 0x93, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 3, byte(i)}
}

// captionsStep is the volume at backup i.
func captionsStep(v *volume, i int) {
	noise := make([]byte, 2*layers.BlockSize)
	fill(rand.New(rand.NewPCG(4, uint64(i))), noise)
	v.write(int64(i)*layers.BlockSize, noise)
}

// TestGoldenCaptions: what backups are called is readable for ever, and can be
// changed; so is what a rotation says of the key that it replaces. // C2
func TestGoldenCaptions(t *testing.T) {
	file := filepath.Join("testdata", captionsFile)
	if *golden {
		writeCaptions(t, file)
	}
	store := storeOf(t, readZip(t, file))
	if err := opens(t, store, goldens[0].keys[0]); err != nil {
		t.Error(err)
	}
	r := must(Open(t.Context(), store, captionsKey))(t)
	defer r.Close()
	listed := map[layers.ID]Backup{}
	for b, err := range r.Backups(t.Context()) {
		if err != nil {
			t.Error(err)
		}
		listed[b.ID] = b
	}
	v := newVolume(200_001)
	for i, want := range captionsBackups {
		captionsStep(v, i)
		id := captionsID(i)
		if b, is := listed[id]; is == want.gone {
			t.Errorf("backup %d is listed: %t, want %t", i, is, !want.gone)
		} else if is {
			if b.Name != want.counts.Name || b.Description != want.counts.Description || !maps.Equal(b.Meta, want.counts.Meta) {
				t.Errorf("backup %d is called %q, %q, %v, want %+v", i, b.Name, b.Description, b.Meta, want.counts)
			}
			if want.updated.IsZero() != (b.Caption == "") || !want.updated.IsZero() && !b.Updated.Equal(want.updated) || !b.Created.Equal(fixedTime) {
				t.Errorf("backup %d was made at %s and called so at %s by caption %q, want %s", i, b.Created, b.Updated, b.Caption, want.updated)
			}
			compare(t, r, id, v.bytes)
		}
	}
	if report, err := r.Audit(t.Context(), AuditOptions{Level: Deep}); err != nil || report.Backups != int64(len(listed)) || report.Count != 0 {
		t.Errorf("audit: %v, %+v", err, report)
	}
	slots := must(r.Slots(t.Context()))(t)
	if len(slots) != 2 || slots[0].ReplacedBy != slots[1].ID || !slots[1].InUse || !slots[1].ReplacedBy.IsZero() {
		t.Errorf("slots %+v, want one, and one that replaces it", slots)
	}

	// Each of them can be changed, and has one caption then.
	for id := range listed {
		if _, err := r.Recaption(t.Context(), id, renamed("anew")); err != nil {
			t.Error(err)
		}
		of := 0
		for _, name := range captionNames(t, store) {
			if strings.Contains(name, "n/"+id.String()) {
				of++
			}
		}
		if b, err := r.Backup(t.Context(), id); err != nil || b.Name != "anew" || of != 1 {
			t.Errorf("renamed: %+v, %v, with %d captions", b, err, of)
		}
	}
	if _, gone, err := r.RotateSlot(t.Context(), layers.ID{}, Key{KeyFile: keyFile + keyFile}, "", keepNothing); err != nil || len(gone) != 2 {
		t.Errorf("rotate: %v, %v", gone, err)
	}
}

func writeCaptions(t *testing.T, file string) {
	hook := &objecttest.Hook{Store: object.NewMem()}
	one := must(Init(t.Context(), hook, goldens[0].keys[0], Params{Label: "captions", cost: cheap}))(t)
	defer one.Close()
	two := must(Open(t.Context(), hook, goldens[0].keys[0]))(t)
	defer two.Close()
	v, parent := newVolume(200_001), layers.ID{}
	v.id = fixedID
	for i, b := range captionsBackups {
		captionsStep(v, i)
		id := captionsID(i)
		must(one.Create(t.Context(), Job{
			ID: id, Volume: v.id, VolumeName: "golden", Name: b.made.Name, Description: b.made.Description, Meta: b.made.Meta,
			Host: "golden", Parent: parent, Source: v.source(), Changes: v.changes(), Created: fixedTime,
		}))(t)
		parent = id
		v.forget()
		for n, c := range b.renamed {
			one.now = func() time.Time { return fixedTime.Add(time.Duration(n+1) * time.Hour) }
			must(one.Recaption(t.Context(), id, func(to *Caption) error { *to = c; return nil }))(t)
		}
		if b.rival.Name != "" {
			addRival(t, hook.Store, two, id, b.rival)
		}
		if b.gone {
			if err := one.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	hook.Before = func(op, name string) error {
		if op == "delete" {
			return errStopped
		}
		return nil
	}
	if _, _, err := one.RotateSlot(t.Context(), layers.ID{}, captionsKey, "2027", keepNothing); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	writeZip(t, file, contents(t, hook.Store))
}

// addRival puts a caption beside the only one of a backup, of the same number
// and with a lesser ID.
func addRival(t *testing.T, store object.Store, r *Repo, id layers.ID, text Caption) {
	var there captionName
	for _, name := range captionNames(t, store) {
		if n, ok := parseVolumeName(name); ok {
			if c, ok := n.caption(); ok && c.backup == id {
				there = c
			}
		}
	}
	rival := caption{name: there, text: text, created: fixedTime, host: "golden"}
	for rival.name.id = newObjectID(id); bytes.Compare(rival.name.id[:], there.id[:]) >= 0; {
		rival.name.id = newObjectID(id)
	}
	if err := store.Put(t.Context(), rival.name.String(), r.sealBody(kindCaption, id, rival.body())); err != nil {
		t.Fatal(err)
	}
}
