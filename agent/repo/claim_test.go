package repo

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// must ends the test if a call failed, and returns what it gave.
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// backupAs is volume.backup by a host under its claim.
func (v *volume) backupAs(ctx context.Context, r *Repo, parent layers.ID, c Claim, host string) (Backup, error) {
	j := Job{ID: layers.NewID(), Volume: v.id, Claim: c, Host: host, Parent: parent, Source: v.source()}
	if !parent.IsZero() {
		j.Changes = v.changes()
	}
	return r.Create(ctx, j)
}

// twin is the volume restored on another host.
func (v *volume) twin() *volume {
	w := newVolume(int64(len(v.bytes)))
	w.id = v.id
	copy(w.bytes, v.bytes)
	return w
}

// hostOf opens the repository as one more host.
func hostOf(t *testing.T, store object.Store) *Repo {
	t.Helper()
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// C5: a host takes a lineage over and goes on from a backup; the host before
// goes on too. Every backup is whole, and each says where it stands.
func TestTakeOver(t *testing.T) {
	store, ctx := object.NewMem(), t.Context()
	here := testRepo(t, store, true)
	v := newVolume(1 << 20)
	v.write(0, []byte("base"))
	base := must(v.backupAs(ctx, here, layers.ID{}, Claim{}, "alpha"))(t)
	if base.Epoch != 1 || base.Number != 1 || !base.Claim.IsZero() || base.Host != "alpha" {
		t.Errorf("before any claim: %+v", base)
	}
	v.forget()
	moved := v.twin()

	there, id := hostOf(t, store), layers.NewID()
	claim := must(there.TakeOver(ctx, id, base.ID, "beta"))(t)
	want := Claim{ID: id, Volume: v.id, Epoch: 2, After: Position{base.ID, 1, 1}, Host: "beta", Created: claim.Created}
	if claim != want || claim.Created.IsZero() {
		t.Errorf("claim %+v, want %+v", claim, want)
	}
	if again := must(there.TakeOver(ctx, id, base.ID, "beta"))(t); again != claim {
		t.Errorf("asked again: %+v", again)
	}
	v.write(4096, []byte("stale"))
	stale := must(v.backupAs(ctx, here, base.ID, Claim{}, "alpha"))(t)
	moved.write(8192, []byte("new"))
	next := must(moved.backupAs(ctx, there, base.ID, claim, "beta"))(t)
	moved.forget()
	if stale.Epoch != 1 || next.Epoch != 2 || next.Claim != id || next.Number <= base.Number || stale.Number <= base.Number {
		t.Errorf("the fork: %+v and %+v", stale, next)
	}
	// Who does not know of the claim under which the parent was made is of it.
	moved.write(12288, []byte("later"))
	later := must(moved.backupAs(ctx, hostOf(t, store), next.ID, Claim{}, "gamma"))(t)
	if later.Epoch != 2 || later.Claim != id || later.Host != "gamma" || later.Number <= next.Number {
		t.Errorf("without a claim of its own: %+v", later)
	}

	// The host before learns of the claim by its next backup, a new one by its
	// list.
	if got := must(here.Claims(ctx))(t); len(got) != 1 || got[0] != claim {
		t.Errorf("the host before knows %+v", got)
	}
	fresh := hostOf(t, store)
	for b, err := range fresh.Backups(ctx) {
		if err != nil {
			t.Error(err)
		}
		for _, want := range []Backup{base, stale, next, later} {
			if b.ID == want.ID && (b.Epoch != want.Epoch || b.Number != want.Number || b.Claim != want.Claim || b.Host != want.Host) {
				t.Errorf("listed %+v, made %+v", b, want)
			}
		}
	}
	if got := must(fresh.Claims(ctx))(t); len(got) != 1 || got[0] != claim {
		t.Errorf("a new host knows %+v", got)
	}
	compare(t, fresh, stale.ID, v.bytes)
	compare(t, fresh, later.ID, moved.bytes)

	// One claim comes after all others, wherever its host goes on from.
	third := must(fresh.TakeOver(ctx, layers.NewID(), stale.ID, "delta"))(t)
	if third.Epoch != 3 || third.After != (Position{stale.ID, 1, stale.Number}) {
		t.Errorf("the third: %+v", third)
	}
	if _, err := fresh.TakeOver(ctx, layers.NewID(), layers.NewID(), "delta"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("from a backup that never was: %v", err)
	}
}

// B15: a claim that is damaged, renamed or forged is none, and an audit names it.
func TestBadClaims(t *testing.T) {
	store, ctx := object.NewMem(), t.Context()
	r := testRepo(t, store, true)
	v := newVolume(1 << 20)
	base := must(v.backup(ctx, r, layers.ID{}))(t)
	claim := must(r.TakeOver(ctx, layers.NewID(), base.ID, "beta"))(t)
	good := contents(t, store)[claim.name().String()]
	renamed := claimName{claim.Volume, 1 << 60, claim.ID}
	flipped := claimName{claim.Volume, 7, layers.NewID()}
	long := claimName{claim.Volume, 8, layers.NewID()}
	bad := bytes.Clone(good)
	bad[len(bad)-20] ^= 1
	// Nobody goes on from a backup of the same epoch, or of a later one.
	same, later := claim, claim
	same.ID, same.Epoch, same.After.Epoch = layers.NewID(), 9, 9
	later.ID, later.Epoch, later.After.Epoch = layers.NewID(), 10, 11
	// Its words on the backup that it goes on from agree with one another.
	astray := Claim{ID: layers.NewID(), Volume: v.id, Epoch: 12, After: claim.After}
	body := astray.body()
	body.setText(bodyParentRoot, rootName{v.id, 1, 1, layers.NewID()}.String())
	elsewhere := Claim{ID: layers.NewID(), Volume: v.id, Epoch: 13, After: claim.After}
	other := elsewhere.body()
	other.setText(bodyParentRoot, rootName{layers.NewID(), 1, 1, claim.After.Backup}.String())
	for name, b := range map[claimName][]byte{
		renamed: good, flipped: bad, long: make([]byte, maxBody+1), same.name(): r.sealClaim(&same), later.name(): r.sealClaim(&later),
		astray.name(): r.sealBody(kindClaim, astray.ID, body), elsewhere.name(): r.sealBody(kindClaim, elsewhere.ID, other),
	} {
		if err := store.Put(ctx, name.String(), b); err != nil {
			t.Fatal(err)
		}
	}
	host := hostOf(t, store)
	for _, err := range host.Backups(ctx) {
		if err != nil {
			t.Error(err)
		}
	}
	if got := must(host.Claims(ctx))(t); len(got) != 1 || got[0] != claim {
		t.Errorf("claims %+v, want the one that is whole", got)
	}
	if next := must(host.TakeOver(ctx, layers.NewID(), base.ID, "gamma"))(t); next.Epoch != 3 {
		t.Errorf("the next has epoch %d, want 3", next.Epoch)
	}
	named := make(map[string]bool)
	report, err := host.Audit(ctx, AuditOptions{Level: Map})
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("audit: %v", err)
	}
	for _, f := range report.Findings {
		named[f.Object] = true
	}
	for _, name := range []claimName{renamed, flipped, long, same.name(), later.name(), astray.name(), elsewhere.name()} {
		if !named[name.String()] {
			t.Errorf("an audit does not name %s", name)
		}
	}
	if len(named) != 7 {
		t.Errorf("an audit names %v", named)
	}
}
