package agent

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"varve/catalog"
)

var seed = flag.Uint64("seed", 0, "of the random tests; 0: 1, and a new one if SEEDS is set")

// Many things at once never meet in a way that nobody thought of: each is
// done or refused for a reason that a user can understand, nothing temporary
// stays, and every backup is what it should be. A1, A6, A10, S7.
func TestManyThingsAtOnce(t *testing.T) {
	if *seed == 0 {
		*seed = 1
		if os.Getenv("SEEDS") != "" { // make soak
			*seed = rand.Uint64()
		}
	}
	t.Logf("-seed %d", *seed)
	_, a := startWithTarget(t)
	const volumes, workers, rounds = 3, 6, 25
	for i := range volumes {
		createVolume(t, a, fmt.Sprint("v", i), mib)
	}
	var wg sync.WaitGroup
	for i := range workers {
		random := rand.New(rand.NewPCG(*seed, uint64(i)))
		wg.Go(func() {
			for range rounds {
				if err := anything(t, a, random, fmt.Sprint("v", random.IntN(volumes))); err != nil && !refusal(err) {
					t.Errorf("%s: %v", ReasonOf(err), err)
				}
			}
		})
	}
	wg.Wait()
	for _, op := range must(a.Operations(t.Context()))(t) {
		if last := finish(t, a, op); last.State == catalog.Failed {
			t.Errorf("%s: %s", last.Kind, last.Error)
		}
	}
	nothingTemporary(t, a)
	for _, v := range must(a.Volumes(t.Context()))(t) {
		if v.Status != catalog.Available || v.PreviousStatus != "" {
			t.Errorf("volume %s is %s, previous %q: %s", v.Name, v.Status, v.PreviousStatus, v.Reason)
		}
	}
	for _, b := range must(a.Backups(t.Context()))(t) {
		if b.Status != catalog.Available {
			t.Errorf("backup %s is %s: %s", b.Name, b.Status, b.FailReason)
			continue
		}
		succeed(t, a, must(a.VerifyBackup(t.Context(), b.ID.String(), true))(t))
	}
}

// refusal reports whether an error is one that a user can expect.
func refusal(err error) bool {
	return slices.Contains([]Reason{NotFound, Ambiguous, Invalid, Conflict, InUse}, ReasonOf(err))
}

// anything does one random thing to a volume.
func anything(t *testing.T, a *Agent, random *rand.Rand, volume string) error {
	ctx := t.Context()
	name := fmt.Sprint("n", random.IntN(4))
	switch random.IntN(9) {
	case 0:
		e, err := a.OpenExport(ctx, volume)
		if err != nil {
			return err
		}
		d := disk{t, e}
		d.write(random.Uint64(), random.Int64N(240)*4096, 65536)
		return e.Close()
	case 1:
		_, err := a.CreateSnapshot(ctx, volume, NewSnapshot{Name: name})
		return err
	case 2:
		return a.DeleteSnapshot(ctx, volume+"@"+name)
	case 3, 4:
		_, op, err := a.CreateBackup(ctx, NewBackup{Volume: volume, Name: name, Incremental: random.IntN(2) == 0, Force: random.IntN(2) == 0})
		if err == nil && random.IntN(3) == 0 {
			err = a.CancelOperation(ctx, op.ID)
		}
		return err
	case 5:
		_, err := a.DeleteBackup(ctx, name, random.IntN(2) == 0)
		return err
	case 6:
		_, _, err := a.RestoreBackup(ctx, name, RestoreRequest{Volume: volume, Force: true})
		return err
	case 7:
		_, err := a.GrowVolume(ctx, volume, mib+random.Int64N(64)*4096)
		return err
	}
	if _, err := a.Volumes(ctx); err != nil {
		return err
	}
	if _, err := a.Exports(ctx); err != nil {
		return err
	}
	return a.SyncTarget(ctx, "t1")
}
