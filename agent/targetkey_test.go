package agent

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/agent/repo"
	"varve/layers"
)

var keyFile = bytes.Repeat([]byte("0123456789abcdef"), 2)

// secretsOf returns the file where a target's secrets are.
func secretsOf(t *testing.T, dir string, target layers.ID) string {
	data, err := os.ReadFile(filepath.Join(dir, "secrets", target.String()))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// The recovery key is told once, kept nowhere, and opens the target on a
// machine that has nothing else.
func TestRecoveryKeyOpensOnABareMachine(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	added := must(a.AddTarget(t.Context(), NewTarget{Name: "t", URL: url("t"), Passphrase: secretWord}))(t)
	if _, err := repo.ParseRecoveryKey(added.RecoveryKey); err != nil {
		t.Fatalf("recovery key %q: %v", added.RecoveryKey, err)
	}
	if strings.Contains(secretsOf(t, dir, added.ID), added.RecoveryKey) || strings.Contains(w.logged(), added.RecoveryKey) {
		t.Error("the recovery key is kept")
	}
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	b := backUp(t, a, NewBackup{Volume: "v"})

	bare := w.start(t.TempDir())
	again := must(bare.AddTarget(t.Context(), NewTarget{Name: "t", URL: url("t"), Passphrase: added.RecoveryKey}))(t)
	if again.RecoveryKey != "" {
		t.Error("a repository that was there has a new recovery key")
	}
	same(t, "backup", imageContent(t, bare, b.ID), pattern(1, mib))
}

// A rotation goes on through the daemon's own secret, other daemons need the
// new key, and what was open stays open.
func TestRotationOfADaemonsKey(t *testing.T) {
	w := newWorld(t)
	dir, otherDir := t.TempDir(), t.TempDir()
	a, other := w.start(dir), w.start(otherDir)
	n := NewTarget{Name: "t", URL: url("t"), Passphrase: secretWord, Env: map[string]string{"AWS_REGION": "r"}}
	target := must(a.AddTarget(t.Context(), n))(t)
	theirs := must(other.AddTarget(t.Context(), n))(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	b := backUp(t, a, NewBackup{Volume: "v"})
	if err := other.SyncTarget(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	slots := must(a.TargetKeys(t.Context(), "t"))(t)
	if len(slots) != 2 || !slots[0].InUse || slots[1].Kind != repo.SlotRecovery {
		t.Fatalf("slots %+v", slots)
	}
	wantError(t, a.RemoveTargetKey(t.Context(), "t", slots[0].ID), InUse, "rotate")
	wantError(t, a.RemoveTargetKey(t.Context(), "t", layers.NewID()), NotFound)
	_, err := a.RotateTargetKey(t.Context(), "t", layers.ID{}, NewKey{Recovery: true})
	wantError(t, err, Invalid, "elsewhere")
	_, err = a.RotateTargetKey(t.Context(), "t", layers.ID{}, NewKey{Passphrase: "x", KeyFile: keyFile})
	wantError(t, err, Invalid)

	made := must(a.RotateTargetKey(t.Context(), "t", layers.ID{}, NewKey{KeyFile: keyFile, Label: "2027"}))(t)
	if !made.InUse || made.Kind != repo.SlotKeyFile || made.Label != "2027" || made.RecoveryKey != "" {
		t.Errorf("made %+v", made)
	}
	if s := secretsOf(t, dir, target.ID); strings.Contains(s, secretWord) || !strings.Contains(s, made.ID.String()) || !strings.Contains(s, "AWS_REGION") {
		t.Error("the daemon's secrets did not follow")
	}
	a.Close()
	a = w.start(dir)
	same(t, "backup", imageContent(t, a, b.ID), pattern(1, mib))

	// The other daemon had it open, and goes on; once started again it needs the
	// new key.
	same(t, "backup", imageContent(t, other, b.ID), pattern(1, mib))
	other.Close()
	other = w.start(otherDir)
	_, err = other.OpenImage(t.Context(), b.ID)
	wantError(t, err, Denied)
	_, err = other.UseTargetKey(t.Context(), "t", NewKey{Passphrase: secretWord})
	wantError(t, err, Denied)
	used := must(other.UseTargetKey(t.Context(), "t", NewKey{KeyFile: keyFile}))(t)
	if used.ID != made.ID || strings.Contains(secretsOf(t, otherDir, theirs.ID), secretWord) {
		t.Errorf("used %+v", used)
	}
	same(t, "backup", imageContent(t, other, b.ID), pattern(1, mib))

	// A key besides, and a new recovery key; the old one opens nothing then.
	must(a.AddTargetKey(t.Context(), "t", NewKey{Passphrase: "second"}))(t)
	fresh := must(a.RotateTargetKey(t.Context(), "t", slots[1].ID, NewKey{Recovery: true}))(t)
	if fresh.InUse || fresh.Kind != repo.SlotRecovery {
		t.Errorf("recovery %+v", fresh)
	}
	bare := w.start(t.TempDir())
	_, err = bare.AddTarget(t.Context(), NewTarget{Name: "t", URL: url("t"), Passphrase: target.RecoveryKey})
	wantError(t, err, Denied)
	must(bare.AddTarget(t.Context(), NewTarget{Name: "t", URL: url("t"), Passphrase: fresh.RecoveryKey}))(t)
	if n := len(must(a.TargetKeys(t.Context(), "t"))(t)); n != 3 {
		t.Errorf("%d slots, want 3", n)
	}
}

// A secret that cannot be kept stops the rotation before the old key goes.
func TestRotationThatCannotKeepTheSecret(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	target := must(a.AddTarget(t.Context(), NewTarget{Name: "t", URL: url("t"), Passphrase: secretWord}))(t)
	path := filepath.Join(dir, "secrets", target.ID.String())
	away := func() {
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
	}
	w.store(url("t")).on(func(_ context.Context, op, _ string) error {
		if op == "put" {
			away()
		}
		return nil
	})
	_, err := a.RotateTargetKey(t.Context(), "t", layers.ID{}, NewKey{Passphrase: "new"})
	wantError(t, err, Unavailable, "beside the old one")
	w.store(url("t")).on(nil)
	_, err = a.RotateTargetKey(t.Context(), "t", layers.ID{}, NewKey{Passphrase: "newer"})
	wantError(t, err, Unavailable, "read its secrets")
	a.Close()
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	a = w.start(dir)
	if slots := must(a.TargetKeys(t.Context(), "t"))(t); len(slots) != 3 || !slots[0].InUse {
		t.Errorf("slots %+v", slots)
	}
}

func TestKeysOfAVolume(t *testing.T) {
	w := newWorld(t)
	a := w.start(t.TempDir())
	must(a.AddTarget(t.Context(), NewTarget{Name: "t", URL: url("t"), Passphrase: secretWord}))(t)
	v := createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	_, err := a.RotateVolumeKey(t.Context(), "t", "v")
	wantError(t, err, NotFound, "no backup")
	_, err = a.RotateVolumeKey(t.Context(), "t", v.ID.String())
	wantError(t, err, NotFound, "no backup")
	b := backUp(t, a, NewBackup{Volume: "v"})
	for _, ref := range []string{"v", v.ID.String()} {
		must(a.RotateVolumeKey(t.Context(), "t", ref))(t)
	}
	write(t, a, "v", 2, 0, mib/2)
	c := backUp(t, a, NewBackup{Volume: "v", Incremental: true})
	same(t, "before", imageContent(t, a, b.ID), pattern(1, mib))
	same(t, "after", imageContent(t, a, c.ID), content(t, a, "v"))

	addTarget(t, a, "open")
	_, err = a.TargetKeys(t.Context(), "open")
	wantError(t, err, Conflict, "not encrypted")
	_, err = a.AddTargetKey(t.Context(), "open", NewKey{Passphrase: "x"})
	wantError(t, err, Conflict, "not encrypted")
}
