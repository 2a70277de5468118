package catalog

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"varve/layers"
)

// filled returns a catalog with a record of each table that a copy holds, and
// one of a table that it does not.
func filled(t testing.TB) *Catalog {
	c := open(t, t.TempDir())
	now := time.Now().UTC()
	v := Volume{ID: layers.NewID(), Name: "v\n\"<", Properties: map[string]string{"a": "b"}, Created: now}
	update(t, c, func(tx *Tx) error {
		return errors.Join(
			Volumes.Put(tx, v),
			Snapshots.Put(tx, Snapshot{ID: layers.NewID(), VolumeID: v.ID, Name: "s", Created: now}),
			Targets.Put(tx, Target{ID: layers.NewID(), Name: "t", URL: "file:///t"}),
			Attachments.Put(tx, Attachment{ID: layers.NewID(), VolumeID: v.ID}),
			Quotas.Put(tx, Quota{BackupCount: 5}),
			Backups.Put(tx, Backup{ID: layers.NewID(), Name: "b"}))
	})
	return c
}

func copyOf(t testing.TB, c *Catalog) []byte {
	t.Helper()
	var text bytes.Buffer
	if err := c.Copy(&text); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

// C4: a copy brings back what it was made of, and nothing of the target's.
func TestCopy(t *testing.T) {
	text := copyOf(t, filled(t))
	c := open(t, t.TempDir())
	if n, err := c.Load(bytes.NewReader(text)); n != 5 || err != nil {
		t.Errorf("%d records, %v, want 5", n, err)
	}
	if again := copyOf(t, c); !bytes.Equal(again, text) {
		t.Errorf("the copy of what was loaded is\n%s\nwant\n%s", again, text)
	}
	err := c.View(func(tx *Tx) error {
		for b := range Backups.All(tx) {
			t.Errorf("a backup was copied: %+v", b)
		}
		quota, err := Quotas.Get(tx)
		if !reflect.DeepEqual(quota, Quota{BackupCount: 5}) {
			t.Errorf("quota %v", quota)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A copy that ends anywhere says so, and what is before the end is loaded.
func TestCopyCut(t *testing.T) {
	text := copyOf(t, filled(t))
	lines := strings.SplitAfter(string(text), "\n")
	header := len(lines[0])
	for cut := 0; cut < len(text)-1; cut += 41 {
		c := open(t, t.TempDir())
		n, err := c.Load(bytes.NewReader(text[:cut]))
		switch {
		case cut < header-1 && (err == nil || n != 0):
			t.Errorf("cut at %d, in the header: %d records, %v", cut, n, err)
		case cut >= header && !errors.Is(err, ErrCopyCut):
			t.Errorf("cut at %d: %v, want ErrCopyCut", cut, err)
		}
		if whole := strings.Count(string(text[:cut]), "\n") - 1; cut >= header && n < min(whole, 5) {
			t.Errorf("cut at %d: %d records of %d", cut, n, whole)
		}
		c.Close()
	}
	_, err := open(t, t.TempDir()).Load(strings.NewReader(`{"varve":"catalog copy","version":2}`))
	if !errors.Is(err, ErrVersion) {
		t.Errorf("version 2: %v, want ErrVersion", err)
	}
}

// A catalog is fresh until somebody says that it is not.
func TestFresh(t *testing.T) {
	dir := t.TempDir()
	for _, settled := range []bool{false, false, true, true} {
		c := open(t, dir)
		if settled {
			if err := c.Settle(); err != nil {
				t.Fatal(err)
			}
		}
		if fresh, err := c.Fresh(); fresh == settled || err != nil {
			t.Errorf("settled %v: fresh %v, %v", settled, fresh, err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever a copy holds, loading it ends without a panic, and only what a copy
// may hold gets in.
func FuzzLoad(f *testing.F) {
	f.Add(copyOf(f, filled(f)))
	f.Add([]byte("{\"varve\":\"catalog copy\",\"version\":1}\n{\"key\":\"format\",\"value\":9}\n{\"key\":\"volume/x\"}\n{\"end\":1}\n"))
	c := open(f, f.TempDir())
	f.Fuzz(func(t *testing.T, text []byte) {
		c.Load(bytes.NewReader(text)) // Its error is looked at elsewhere.
		if err := c.checkFormat(); err != nil {
			t.Fatal(err)
		}
		for _, err := range volumes(t, c) {
			var damaged *RecordError
			if err != nil && !errors.As(err, &damaged) {
				t.Error(err)
			}
		}
	})
}

func volumes(t *testing.T, c *Catalog) (errs []error) {
	t.Helper()
	err := c.View(func(tx *Tx) error {
		for _, err := range Volumes.All(tx) {
			errs = append(errs, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return errs
}
