package repo

import (
	"errors"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// A backup is removed only if its tombstone says, sealed, that it is of that
// root: what else lies under its name hides it, and is told. A store that does
// not answer ends the run. // B17
func TestTombstonesOfWhatIsRemoved(t *testing.T) {
	root := rootName{volume: layers.ID{1}, epoch: 1, seq: 4, backup: layers.ID{2}}
	another, older := root, root
	another.backup = layers.ID{3}
	older.seq--
	hook := &objecttest.Hook{Store: object.NewMem()}
	r := testRepo(t, hook, true)
	sealed := func(kind objectKind, text string) []byte {
		f := make(fields)
		f.setID(bodyBackup, root.backup)
		f.setText(bodyRoot, text)
		return r.sealBody(kind, root.backup, f)
	}
	flipped := sealed(kindTombstone, root.String())
	flipped[len(flipped)-30] ^= 1
	for _, c := range []struct {
		what string
		body []byte // nil: none
		away bool
		dead bool
		kept int
	}{
		{what: "its own", body: sealed(kindTombstone, root.String()), dead: true},
		{what: "none, another run removed it"},
		{what: "of another backup", body: sealed(kindTombstone, another.String()), kept: 1},
		{what: "of another root of the backup", body: sealed(kindTombstone, older.String())},
		{what: "of no root", body: sealed(kindTombstone, "a letter"), kept: 1},
		{what: "another kind of object", body: sealed(kindHold, root.String()), kept: 1},
		{what: "damaged", body: flipped, kept: 1},
		{what: "too long", body: make([]byte, maxBody+1), kept: 1},
		{what: "empty", body: []byte{}, kept: 1},
		{what: "the store does not answer", body: sealed(kindTombstone, root.String()), away: true},
	} {
		stone := listedStone{volume: root.volume, backup: root.backup}
		hook.Store.Delete(t.Context(), stone.name())
		if c.body != nil {
			if err := hook.Store.Put(t.Context(), stone.name(), c.body); err != nil {
				t.Fatal(err)
			}
		}
		if hook.Before = nil; c.away {
			hook.Before = func(op, name string) error { return errStopped }
		}
		p := newPrune(r, PruneOptions{})
		p.survey = &survey{stones: map[layers.ID]listedStone{root.backup: stone}}
		p.live, p.dead = make(rootsOf), []listedRoot{{name: root}}
		err := p.checkStones(t.Context())
		if c.away {
			if !errors.Is(err, errStopped) || len(p.dead) != 1 || len(p.live) != 0 {
				t.Errorf("%s: %v", c.what, err)
			}
			continue
		}
		if dead := len(p.dead) == 1; err != nil || dead != c.dead || len(p.live[root.volume]) == 1 == c.dead || len(p.report.Kept) != c.kept {
			t.Errorf("%s: %v, to be removed %v, staying %v; kept: %v", c.what, err, p.dead, p.live, p.report.Kept)
		}
	}
}
