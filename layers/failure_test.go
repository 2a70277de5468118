package layers

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
)

// A sync that failed makes the volume read-only until it is reopened: reads go
// on, and nothing that was acknowledged before is lost.
func TestFailedSync(t *testing.T) {
	for _, name := range []string{".data", ".map", journalName, chainTemp, "."} {
		t.Run(name, func(t *testing.T) {
			d := newMemDisk()
			m := newModel(t, d, rand.New(rand.NewPCG(1, 1)), 64*BlockSize, smallTuning)
			m.write()
			m.flush()
			want := slices.Clone(m.live)
			d.fail = func(op, file string) error {
				if op == "sync" && (file == name || len(name) < 6 && len(file) > 36 && file[36:] == name) {
					return syscall.EIO
				}
				return nil
			}
			p := bytes.Repeat([]byte{7}, BlockSize)
			m.v.WriteAt(p, 0)
			err := errors.Join(m.v.Flush(), m.v.checkpoint(), m.v.Snapshot(NewID()))
			if !errors.Is(err, ErrReadOnly) || !errors.Is(err, syscall.EIO) {
				t.Fatalf("got %v, want %v with the cause", err, ErrReadOnly)
			}
			d.fail = nil
			if _, err := m.v.WriteAt(p, 0); !errors.Is(err, ErrReadOnly) {
				t.Errorf("write after a failed sync: %v, want %v", err, ErrReadOnly)
			}
			if err := m.v.Flush(); !errors.Is(err, ErrReadOnly) {
				t.Errorf("flush after a failed sync: %v, want %v", err, ErrReadOnly)
			}
			got := make([]byte, len(want))
			if _, err := m.v.ReadAt(got, 0); err != nil {
				t.Errorf("read after a failed sync: %v", err)
			}
			if err := m.v.Close(); !errors.Is(err, ErrReadOnly) {
				t.Errorf("close after a failed sync: %v, want %v", err, ErrReadOnly)
			}
			m.open()
			if _, err := m.v.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			for b := range int64(64) {
				if have := blockOf(got, b); !bytes.Equal(have, blockOf(want, b)) && (b > 0 || !bytes.Equal(have, p)) {
					t.Errorf("block %d is neither old nor new", b)
				}
			}
			if err := m.v.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A full disk is ENOSPC to the caller; nothing is corrupted, and writes go on
// when there is space again.
func TestFullDisk(t *testing.T) {
	d := newMemDisk()
	m := newModel(t, d, rand.New(rand.NewPCG(1, 1)), 64*BlockSize, smallTuning)
	m.write()
	m.snapshot()
	for _, name := range []string{".data", ".map", chainTemp} {
		m.write()
		d.fail = func(op, file string) error {
			if op == "write" && (file == name || len(file) > 36 && file[36:] == name) {
				return syscall.ENOSPC
			}
			return nil
		}
		p := bytes.Repeat([]byte{9}, 3*BlockSize)
		n, werr := m.v.WriteAt(p, 0)
		copy(m.live, p[:n])
		m.dirty = true
		id := NewID()
		serr := m.v.Snapshot(id)
		if err := errors.Join(werr, m.v.checkpoint(), serr); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: got %v, want %v", name, err, syscall.ENOSPC)
		}
		if serr == nil {
			m.sealed(id)
		}
		d.fail = nil
		m.checkLive()
		m.write()
		m.flush()
		m.snapshot()
		m.tidy()
		m.checkAll()
	}
	m.reopen()
	m.checkAll()
}
