package repo

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

func TestInitAndOpen(t *testing.T) {
	store := object.NewMem()
	if _, err := Open(t.Context(), store, Key{Passphrase: secret}); !errors.Is(err, ErrNoRepository) {
		t.Errorf("open an empty store: %v", err)
	}
	made, err := Init(t.Context(), store, Key{Passphrase: secret}, Params{Label: "nächtlich", cost: cheap})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), store, Key{Passphrase: "other"}, Params{cost: cheap}); !errors.Is(err, ErrExists) {
		t.Errorf("a second Init: %v", err)
	}
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	if r.ID() != made.ID() || !r.Encrypted() || r.Label() != "nächtlich" {
		t.Errorf("opened %s, encrypted %t, label %q", r.ID(), r.Encrypted(), r.Label())
	}
	for _, passphrase := range []string{"", "hunter2", secret + " "} {
		_, err := Open(t.Context(), store, Key{Passphrase: passphrase})
		if !errors.Is(err, ErrKey) {
			t.Errorf("open with %q: %v", passphrase, err)
		}
		if err != nil && passphrase != "" && strings.Contains(err.Error(), passphrase) {
			t.Errorf("the error tells the passphrase: %v", err)
		}
	}
}

func TestInitNeedsADecision(t *testing.T) {
	if _, err := Init(t.Context(), object.NewMem(), Key{}, Params{}); !errors.Is(err, ErrKey) {
		t.Errorf("neither a passphrase nor NoEncryption: %v", err)
	}
	if _, err := Init(t.Context(), object.NewMem(), Key{Passphrase: secret}, Params{NoEncryption: true}); !errors.Is(err, ErrKey) {
		t.Errorf("both: %v", err)
	}
	if _, err := Init(t.Context(), object.NewMem(), Key{}, Params{NoEncryption: true, Label: strings.Repeat("x", 256)}); err == nil {
		t.Error("a label of 256 bytes is taken")
	}
}

func TestInitRefusesWhatIsLeft(t *testing.T) {
	// A store whose head was lost is no empty store.
	store := object.NewMem()
	r := testRepo(t, store, false)
	if _, err := newVolume(8192).backup(t.Context(), r, layers.ID{}); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(t.Context(), headName); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), store, Key{}, Params{NoEncryption: true}); !errors.Is(err, ErrExists) {
		t.Errorf("init over backups without a head: %v", err)
	}
}

func TestEncryptionCannotBeSwitchedOff(t *testing.T) {
	// Whoever can write to the store puts an open repository in its place.
	store := object.NewMem()
	testRepo(t, store, false)
	if _, err := Open(t.Context(), store, Key{Passphrase: secret}); !errors.Is(err, ErrKey) {
		t.Errorf("open an open repository with a passphrase: %v", err)
	}
	// Or changes the head, with a checksum that fits.
	sealed := object.NewMem()
	r := testRepo(t, sealed, true)
	forged := *r.head
	forged.level = Default
	if err := sealed.Put(t.Context(), headName, forged.append(nil, [32]byte{})); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), sealed, Key{Passphrase: secret}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("open with a forged head: %v", err)
	}
}

func TestNothingLeaksIntoAnEncryptedStore(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	v := newVolume(1 << 20)
	v.write(5000, bytes.Repeat([]byte("plain text of the guest "), 1000))
	_, err := r.Create(t.Context(), Job{
		ID: layers.NewID(), Volume: v.id, VolumeName: "payroll", Name: "before audit", Source: v.source(),
		Meta: map[string]string{"mail": "root@example.org"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range contents(t, store) {
		for _, text := range []string{"plain text", "payroll", "before audit", "example.org", secret} {
			if bytes.Contains(b, []byte(text)) {
				t.Errorf("%s contains %q", name, text)
			}
		}
	}
}

func TestListAndDelete(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	v := newVolume(1 << 20)
	var parent layers.ID
	var made []Backup
	images := make(map[layers.ID][]byte)
	for i := range 4 {
		v.write(int64(i)*10000, []byte(fmt.Sprint("generation ", i)))
		j := Job{
			ID: layers.NewID(), Volume: v.id, VolumeName: "data", Name: fmt.Sprint("b", i), Description: "d",
			Parent: parent, Source: v.source(), Boundary: layers.NewID(), Snapshot: layers.NewID(),
			Meta: map[string]string{"type": "ssd", "": "empty key"},
		}
		if i > 0 {
			j.Changes = v.changes()
		}
		b, err := r.Create(t.Context(), j)
		if err != nil {
			t.Fatal(err)
		}
		made, parent, images[b.ID] = append(made, b), b.ID, bytes.Clone(v.bytes)
		v.forget()
	}
	again, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for b, err := range again.Backups(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprintf("%+v", b), fmt.Sprintf("%+v", made[i]); got != want {
			t.Errorf("backup %d is listed as\n%s, made as\n%s", i, got, want)
		}
		one, err := again.Backup(t.Context(), b.ID)
		if err != nil || fmt.Sprint(one) != fmt.Sprint(b) {
			t.Errorf("backup %d alone: %v, %v", i, one, err)
		}
		i++
	}
	if i != len(made) {
		t.Fatalf("%d backups are listed, %d were made", i, len(made))
	}
	if made[0].Incremental || !made[1].Incremental || made[1].Parent != made[0].ID {
		t.Errorf("kinds: %+v, %+v", made[0], made[1])
	}

	// B9: one in the middle goes, and all others stay whole.
	if err := r.Delete(t.Context(), made[1].ID); err != nil {
		t.Fatal(err)
	}
	for _, repo := range []*Repo{r, again} { // again knew it before: its index is stale
		if _, err := repo.Backup(t.Context(), made[1].ID); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a deleted backup: %v", err)
		}
		if _, err := repo.Layer(t.Context(), made[1].ID); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("layer of a deleted backup: %v", err)
		}
		if err := repo.Delete(t.Context(), made[1].ID); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("delete twice: %v", err)
		}
		for b, err := range repo.Backups(t.Context()) {
			if err != nil || b.ID == made[1].ID {
				t.Errorf("listed after delete: %v, %v", b.ID, err)
			}
		}
	}
	for _, i := range []int{0, 2, 3} {
		compare(t, r, made[i].ID, images[made[i].ID])
	}

	// An increment on it is refused in words that help.
	_, err = v.backup(t.Context(), r, made[1].ID)
	if !errors.Is(err, ErrParentGone) || !strings.Contains(err.Error(), "full") {
		t.Errorf("increment on a deleted parent: %v", err)
	}
	_, err = r.Backup(t.Context(), layers.NewID())
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unknown backup: %v", err)
	}
	b := made[3]
	_, err = r.Create(t.Context(), Job{ID: b.ID, Volume: b.Volume, Source: v.source()})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("the same ID again: %v", err)
	}
}

func TestDamagedEntryHidesNoOther(t *testing.T) {
	// C3. B17: and it can be deleted.
	store := object.NewMem()
	r := testRepo(t, store, true)
	v := newVolume(1 << 16)
	var ids []layers.ID
	for range 3 {
		v.write(0, []byte{byte(len(ids) + 1)})
		b, err := v.backup(t.Context(), r, layers.ID{})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, b.ID)
	}
	for name, b := range contents(t, store) {
		if strings.HasSuffix(name, ids[1].String()) {
			b[len(b)/2] ^= 1
			store.Put(t.Context(), name, b[:200])
		}
	}
	store.Put(t.Context(), volumePrefix(v.id)+"b/junk", []byte("junk")) // not a backup: see TestForeignObjectsHideNothing
	var good, bad int
	for b, err := range r.Backups(t.Context()) {
		switch {
		case err == nil:
			good++
		case !errors.Is(err, ErrCorrupt):
			t.Errorf("a damaged root: %v", err)
		case b.ID == ids[1] && b.Volume == v.id && strings.Contains(err.Error(), ids[1].String()):
			bad++
		default:
			t.Errorf("%v: %v", b.ID, err)
		}
	}
	if good != 2 || bad != 1 {
		t.Errorf("%d good and %d damaged entries are listed, want 2 and 1", good, bad)
	}
	if err := r.Delete(t.Context(), ids[1]); err != nil {
		t.Errorf("delete a damaged backup: %v", err)
	}
}

func TestListFailureIsReported(t *testing.T) {
	away := errors.New("away")
	hook := &objecttest.Hook{Store: object.NewMem()}
	r := testRepo(t, hook, false)
	if _, err := newVolume(4096).backup(t.Context(), r, layers.ID{}); err != nil {
		t.Fatal(err)
	}
	hook.Before = func(op, _ string) error {
		if op == "list" {
			return away
		}
		return nil
	}
	for _, err := range r.Backups(t.Context()) {
		if !errors.Is(err, away) {
			t.Errorf("list while the store is away: %v", err)
		}
	}
}
