package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/layers"
)

func open(t testing.TB, dir string) *Catalog {
	t.Helper()
	c, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() }) // Closing twice is harmless.
	return c
}

func update(t testing.TB, c *Catalog, f func(*Tx) error) {
	t.Helper()
	if err := c.Update(f); err != nil {
		t.Fatal(err)
	}
}

// roundTrip puts a record, reads it back through Get and All after the catalog
// was closed and opened, deletes it, and expects it gone.
func roundTrip[T any](t *testing.T, table Table[T], record T) {
	t.Helper()
	dir := t.TempDir()
	c := open(t, dir)
	id := table.id(&record)
	update(t, c, func(tx *Tx) error { return table.Put(tx, record) })
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	update(t, c, func(tx *Tx) error {
		got, err := table.Get(tx, id)
		if err != nil || !reflect.DeepEqual(got, record) {
			t.Errorf("%s: got %+v, %v, want %+v", table.name, got, err, record)
		}
		for got, err := range table.All(tx) {
			if err != nil || !reflect.DeepEqual(got, record) {
				t.Errorf("%s: All: got %+v, %v, want %+v", table.name, got, err, record)
			}
		}
		return table.Delete(tx, id)
	})
	err := c.View(func(tx *Tx) error { _, err := table.Get(tx, id); return err })
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: after Delete: %v, want fs.ErrNotExist", table.name, err)
	}
}

func TestEveryRecordComesBackAsItWas(t *testing.T) {
	when := time.Date(2026, 2, 26, 12, 20, 41, 123456789, time.UTC)
	id := layers.NewID
	roundTrip(t, Volumes, Volume{ID: id(), Name: "v", Description: "d", Size: 1 << 40, Status: BackingUp, PreviousStatus: InUse,
		Type: "default", Bootable: true, Maintenance: true, Properties: map[string]string{"a": "ü"},
		SnapshotID: id(), SourceVolumeID: id(), Origins: []layers.ID{id()}, PreSnapshot: "a", PostSnapshot: "b", HookLimit: time.Hour,
		Quiets: []Quiet{{id(), "s", []string{"/m"}, true}}, Created: when, Updated: when})
	roundTrip(t, Snapshots, Snapshot{ID: id(), VolumeID: id(), Name: "s", Size: 4096, Status: Error, Reason: "why",
		Consistency: Frozen, Note: "n", System: true, Created: when})
	roundTrip(t, Backups, Backup{ID: id(), TargetID: id(), ParentID: id(), Status: Creating, Duration: time.Hour, Created: when})
	roundTrip(t, Targets, Target{ID: id(), RepositoryID: id(), Name: "t", URL: "s3://bucket", Encrypted: true, Created: when,
		MaxUpload: 1, MaxDownload: 2, MaxRequests: 3, CAFile: "/ca.pem", Proxy: "none",
		VerifyEvery: time.Hour, VerifyRate: 4, VerifyBegun: when, Verified: Verification{id(), "deep", when, 1, 2, 2, when, 3}})
	roundTrip(t, Attachments, Attachment{id(), id(), id(), "v@s", true, true, 3, 2, 512, when})
	roundTrip(t, Operations, Operation{ID: id(), Kind: "volume check", Subject: id(), State: Failed, Error: "no", Note: "note", Done: 1, Total: 2,
		Findings: []Finding{{id(), "f.data", 4096, "a", "b", true, []Loss{{id(), "n", "v", 7, []Range{{1, 2}}}}}}, Damage: 3, Started: when, Ended: when})
}

func TestRecordsAreListedByAge(t *testing.T) {
	c := open(t, t.TempDir())
	var want []layers.ID
	for range 50 {
		id := layers.NewID()
		want = append(want, id)
		update(t, c, func(tx *Tx) error { return Volumes.Put(tx, Volume{ID: id}) })
	}
	update(t, c, func(tx *Tx) error { return Snapshots.Put(tx, Snapshot{ID: layers.NewID()}) })
	var got []layers.ID
	c.View(func(tx *Tx) error {
		for v, err := range Volumes.All(tx) {
			if err != nil {
				t.Error(err)
			}
			got = append(got, v.ID)
		}
		return nil
	})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestDamagedRecordHidesNoOther: C3, for the catalog's own entries.
func TestDamagedRecordHidesNoOther(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	good, damaged, swapped := layers.NewID(), layers.NewID(), layers.NewID()
	update(t, c, func(tx *Tx) error {
		return errors.Join(
			Volumes.Put(tx, Volume{ID: good, Name: "good"}),
			tx.put(Volumes.key(damaged), []byte(`{"ID":"`+damaged.String()[:20])),
			tx.put(Volumes.key(swapped), []byte(`{"ID":"`+good.String()+`"}`)),
			tx.put([]byte("volume/no-id"), []byte(`{}`)),
		)
	})
	c.Close()
	c = open(t, dir)
	var names []string
	bad := map[layers.ID]bool{}
	update(t, c, func(tx *Tx) error {
		for v, err := range Volumes.All(tx) {
			var record *RecordError
			if errors.As(err, &record) {
				bad[record.ID] = true
				continue
			}
			names = append(names, v.Name)
		}
		var record *RecordError
		if _, err := Volumes.Get(tx, damaged); !errors.As(err, &record) || record.ID != damaged {
			t.Errorf("Get of the damaged record: %v, want a RecordError with its id", err)
		}
		return Volumes.Delete(tx, damaged)
	})
	if len(names) != 1 || names[0] != "good" {
		t.Errorf("readable records: %q, want good alone", names)
	}
	if want := (map[layers.ID]bool{damaged: true, swapped: true, {}: true}); !reflect.DeepEqual(bad, want) {
		t.Errorf("damaged records: %v, want %v", bad, want)
	}
	err := c.View(func(tx *Tx) error { _, err := Volumes.Get(tx, damaged); return err })
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted damaged record: %v, want fs.ErrNotExist", err)
	}
}

func TestPutRefusesWhatCannotBeKept(t *testing.T) {
	c := open(t, t.TempDir())
	for name, v := range map[string]Volume{
		"without an id": {Name: "x"},
		"at most":       {ID: layers.NewID(), Description: strings.Repeat("x", MaxRecord)},
	} {
		err := c.Update(func(tx *Tx) error { return Volumes.Put(tx, v) })
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want an error that says %q", err, name)
		}
	}
}

func TestUpdateIsWholeOrNothing(t *testing.T) {
	c := open(t, t.TempDir())
	id, boom := layers.NewID(), errors.New("boom")
	err := c.Update(func(tx *Tx) error {
		if err := Volumes.Put(tx, Volume{ID: id}); err != nil {
			return err
		}
		return boom
	})
	if err != boom {
		t.Errorf("Update: %v, want the function's own error", err)
	}
	err = c.View(func(tx *Tx) error { _, err := Volumes.Get(tx, id); return err })
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the error: %v, want fs.ErrNotExist", err)
	}
	if err := c.View(func(tx *Tx) error { return Volumes.Put(tx, Volume{ID: id}) }); err == nil {
		t.Error("View lets its transaction write")
	}
}

// Changes that read what another one writes are run again: none is lost.
func TestChangesThatMeetAreAllMade(t *testing.T) {
	c := open(t, t.TempDir())
	id := layers.NewID()
	update(t, c, func(tx *Tx) error { return Operations.Put(tx, Operation{ID: id}) })
	const workers, each = 8, 20
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				err := c.Update(func(tx *Tx) error {
					o, err := Operations.Get(tx, id)
					if err != nil {
						return err
					}
					o.Done++
					return Operations.Put(tx, o)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	c.View(func(tx *Tx) error {
		if o, _ := Operations.Get(tx, id); o.Done != workers*each {
			t.Errorf("%d changes were kept, want %d", o.Done, workers*each)
		}
		return nil
	})
}

func TestClosedCatalogSaysSo(t *testing.T) {
	c := open(t, t.TempDir())
	c.Close()
	nothing := func(*Tx) error { return nil }
	if err := c.View(nothing); !errors.Is(err, ErrClosed) {
		t.Errorf("View: %v, want ErrClosed", err)
	}
	if err := c.Update(nothing); !errors.Is(err, ErrClosed) {
		t.Errorf("Update: %v, want ErrClosed", err)
	}
}

func TestNewerFormatIsRefusedAndLeftAlone(t *testing.T) {
	for _, test := range []struct {
		text  string
		newer bool
	}{{fmt.Sprint(Version + 1), true}, {"99999", true}, {"0", false}, {"-1", false}, {"", false}, {"one", false}} {
		dir := t.TempDir()
		c := open(t, dir)
		update(t, c, func(tx *Tx) error { return tx.put(formatKey, []byte(test.text)) })
		c.Close()
		for range 2 {
			_, err := Open(dir, nil)
			if err == nil || errors.Is(err, ErrVersion) != test.newer {
				t.Errorf("format %q: %v, want an error, ErrVersion %v", test.text, err, test.newer)
			}
		}
	}
}

func TestFolderIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "catalog")
	open(t, dir)
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v, want 0700", info.Mode(), err)
	}
}

// TestSecondProcessIsRefused opens the catalog from a second process, then
// kills the process that has it: the lock goes with it.
func TestSecondProcessIsRefused(t *testing.T) {
	if dir := os.Getenv("CATALOG_TEST_HOLD"); dir != "" {
		open(t, dir)
		fmt.Println("held")
		select {}
	}
	dir := t.TempDir()
	holder := exec.Command(os.Args[0], "-test.run=^TestSecondProcessIsRefused$")
	holder.Env = append(os.Environ(), "CATALOG_TEST_HOLD="+dir)
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer holder.Wait() // It was killed: that is its error.
	defer holder.Process.Kill()
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, nil); !errors.Is(err, ErrLocked) {
		t.Errorf("second process: %v, want ErrLocked", err)
	}
	holder.Process.Kill()
	holder.Wait()
	open(t, dir)
}

// FuzzDecode: whatever stands in a record, decoding it neither panics nor takes
// it for another record.
func FuzzDecode(f *testing.F) {
	id := layers.NewID()
	f.Add("volume/"+id.String(), []byte(`{"ID":"`+id.String()+`","Size":1}`))
	f.Add("volume/", []byte(`{}`))
	f.Add("volume/"+layers.ID{}.String(), []byte(`null`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if !strings.HasPrefix(key, "volume/") {
			return
		}
		v, err := Volumes.decode([]byte(key), value)
		if err == nil && !strings.EqualFold(key, string(Volumes.key(v.ID))) {
			t.Errorf("key %q gave the record of %s", key, v.ID)
		}
	})
}
