package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"sync"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

var errSource = errors.New("disk on fire")

// broken is a source that fails where it is told to.
type broken struct {
	layers.Layer
	readAt    int64 // reads that touch it fail
	extentsAt int64 // extents end with an error there
}

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off <= b.readAt && b.readAt < off+int64(len(p)) {
		return 0, errSource
	}
	return b.Layer.ReadAt(p, off)
}

func (b broken) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for e, err := range b.Layer.Extents(off, n) {
			if b.extentsAt > 0 && e.End() > b.extentsAt {
				yield(layers.Extent{}, errSource)
				return
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// short is a source that ends before its size.
type short struct{ layers.Layer }

func (s short) ReadAt(p []byte, off int64) (int, error) { return 0, io.EOF }

func TestSourceErrors(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	v := newVolume(1 << 20)
	v.write(0, bytes.Repeat([]byte("data"), 1<<18))
	before := contents(t, store)
	for name, c := range map[string]struct {
		source layers.Layer
		want   error
	}{
		"read":    {broken{v.source(), 700_000, 0}, errSource},
		"extents": {broken{v.source(), -1, 500_000}, errSource},
		"short":   {short{v.source()}, io.ErrUnexpectedEOF},
	} {
		_, err := r.Create(t.Context(), Job{ID: layers.NewID(), Volume: v.id, Source: c.source})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for name := range contents(t, store) {
		if _, old := before[name]; !old && !strings.Contains(name, "/k/") {
			t.Errorf("%s is left", name)
		}
	}
}

func TestJobIsChecked(t *testing.T) {
	r := testRepo(t, object.NewMem(), false)
	v := newVolume(8192)
	full, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	good := Job{ID: layers.NewID(), Volume: v.id, Source: v.source()}
	for name, change := range map[string]func(j *Job){
		"no ID":             func(j *Job) { j.ID = layers.ID{} },
		"no volume":         func(j *Job) { j.Volume = layers.ID{} },
		"no source":         func(j *Job) { j.Source = nil },
		"an empty source":   func(j *Job) { j.Source = newVolume(0).source() },
		"a long text":       func(j *Job) { j.Description = strings.Repeat("x", 64<<10) },
		"much metadata":     func(j *Job) { j.Meta = map[string]string{"k": strings.Repeat("x", 64<<10)} },
		"a shrunken volume": func(j *Job) { j.Parent, j.Source = full.ID, newVolume(4096).source() },
		"another volume's parent": func(j *Job) {
			j.Parent, j.Volume = full.ID, layers.NewID()
		},
	} {
		j := good
		change(&j)
		if _, err := r.Create(t.Context(), j); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	// Long is no sin by itself.
	good.Description, good.Meta = strings.Repeat("x", 30<<10), map[string]string{"k": strings.Repeat("y", 20<<10)}
	b, err := r.Create(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Backup(t.Context(), b.ID); err != nil || again.Description != good.Description || again.Meta["k"] != good.Meta["k"] {
		t.Errorf("a backup with long texts: %v", err)
	}
}

// full is a Writer without room.
type full struct{}

func (full) WriteAt([]byte, int64) (int, error) { return 0, errSource }
func (full) WriteZeroes(int64, int64) error     { return nil }

func TestRestoreReportsItsWriter(t *testing.T) {
	s := newSample(t, false)
	r, err := Open(t.Context(), storeOf(t, s.objects), Key{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Restore(t.Context(), s.last, full{}, RestoreOptions{}); !errors.Is(err, errSource) {
		t.Errorf("restore to a full disk: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Restore(ctx, s.last, newDisk(len(s.image)), RestoreOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a restore that was cancelled: %v", err)
	}
}

func TestParentIsFoundThoughTheListLags(t *testing.T) {
	lag := ""
	hook := &lagging{Store: object.NewMem(), hidden: func(name string) bool { return lag != "" && strings.HasSuffix(name, lag) }}
	r := testRepo(t, hook, true)
	v := newVolume(1 << 20)
	v.write(0, []byte("one"))
	first, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	lag = first.ID.String()
	v.forget()
	v.write(100_000, []byte("two"))
	second, err := v.backup(t.Context(), r, first.ID)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, r, second.ID, v.bytes)

	// Deleted by another host, it is gone all the same.
	other, err := Open(t.Context(), hook.Store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Delete(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := v.backup(t.Context(), r, first.ID); !errors.Is(err, ErrParentGone) {
		t.Errorf("a parent that another host deleted: %v", err)
	}
}

// lagging hides names from listings.
type lagging struct {
	object.Store
	hidden func(name string) bool
}

func (l *lagging) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		for info, err := range l.Store.List(ctx, prefix) {
			if !l.hidden(info.Name) && !yield(info, err) {
				return
			}
		}
	}
}

func TestManyWritersShareAStore(t *testing.T) {
	// C5: several hosts, some with the same volume, and no lock.
	store := object.NewMem()
	testRepo(t, store, true)
	shared := layers.NewID()
	var mu sync.Mutex
	images := make(map[layers.ID][]byte)
	var wg sync.WaitGroup
	for host := range 4 {
		wg.Go(func() {
			r, err := Open(t.Context(), store, Key{Passphrase: secret})
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			r.packTarget = 64 << 10
			v := newVolume(256 << 10)
			if host < 2 {
				v.id = shared
			}
			var parent layers.ID
			for i := range 4 {
				v.write(int64(i)*50_000, bytes.Repeat([]byte(fmt.Sprint(host, i)), 9000))
				b, err := v.backup(t.Context(), r, parent)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				images[b.ID] = bytes.Clone(v.bytes)
				mu.Unlock()
				parent = b.ID
				v.forget()
			}
		})
	}
	wg.Wait()
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if len(images) != 16 {
		t.Fatalf("%d backups were made, want 16", len(images))
	}
	for id, want := range images {
		compare(t, r, id, want)
	}
}

func TestLevelsOfVerify(t *testing.T) {
	s := newSample(t, true)
	r, err := Open(t.Context(), storeOf(t, s.objects), Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := r.Layer(t.Context(), s.ids[0])
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	leaf, err := l.leaf(&l.root.spans.rows[0], 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	pack := packName(inData, leaf.packs[0].id)
	whole := s.objects[pack]
	h, err := parseHeader(whole)
	if err != nil {
		t.Fatal(err)
	}
	trailer := len(whole) - footerSize - int(h.inner)
	flip := func(at int) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	for _, c := range []struct {
		name  string
		bytes []byte // nil: missing
		level Level  // from which on it is found
	}{
		{"missing", nil, Presence},
		{"cut", whole[:len(whole)-1], Presence},
		{"another header", flip(20), Presence},
		{"another footer", flip(len(whole) - 20), Presence},
		{"another trailer", flip(trailer + 5), Map},
		{"another frame", flip(headerSize + 5), Deep},
	} {
		for level := Presence; level <= Deep; level++ {
			store := storeOf(t, s.objects)
			if store.Delete(t.Context(), pack); c.bytes != nil {
				store.Put(t.Context(), pack, c.bytes)
			}
			hook := &objecttest.Hook{Store: store}
			r, err := Open(t.Context(), hook, Key{Passphrase: secret})
			if err != nil {
				t.Fatal(err)
			}
			report, err := r.Verify(t.Context(), s.ids[0], VerifyOptions{Level: level})
			if found := err != nil; found != (level >= c.level) {
				t.Errorf("%s at level %d: %v", c.name, level, err)
			}
			if err != nil && (!errors.Is(err, ErrCorrupt) || errors.Is(err, fs.ErrNotExist) || len(report.Damage) == 0 || !strings.Contains(report.Damage[0].Error(), pack)) {
				t.Errorf("%s at level %d: %v, report %v", c.name, level, err, report.Damage)
			}
			if err == nil && (report.Packs == 0 || level == Deep && report.Frames != int64(len(leaf.frames))) {
				t.Errorf("%s at level %d: report %+v, want %d frames", c.name, level, report, len(leaf.frames))
			}
			r.Close()
		}
	}
	// A store that is away is no damage.
	away := &objecttest.Hook{Store: storeOf(t, s.objects)}
	r2, err := Open(t.Context(), away, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r2.Close()
	away.Before = func(op, name string) error {
		if strings.HasPrefix(name, "p/") {
			return errSource
		}
		return nil
	}
	if report, err := r2.Verify(t.Context(), s.ids[0], VerifyOptions{Level: Deep}); !errors.Is(err, errSource) || errors.Is(err, ErrCorrupt) || len(report.Damage) > 0 {
		t.Errorf("verify while the store is away: %v, %v", err, report.Damage)
	}
}
