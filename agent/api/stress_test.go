package api

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"varve/agent"
	"varve/layers"
)

var seed = flag.Uint64("seed", 1, "of the random tests")

// refusals are the reasons that a user may meet who asks for anything while
// others ask for anything else. No disk and no target fails meanwhile, so none
// of the others is true.
var refusals = []string{
	string(agent.NotFound), string(agent.Ambiguous), string(agent.Invalid), string(agent.Conflict), string(agent.InUse), string(agent.TooLarge),
}

// Every kind of request, at random and at once: each is answered, done or
// refused for a reason that is true, every operation ends, and nothing is left
// in a status that only an operation may have.
func TestAnythingAtOnce(t *testing.T) {
	t.Logf("-seed %d", *seed)
	h := start(t, panickingMounts{})
	dir := t.TempDir()
	const workers, rounds = 8, 60
	var all sync.WaitGroup
	for i := range workers {
		u := &user{h: h, t: t, dir: dir, random: rand.New(rand.NewPCG(*seed, uint64(i)))}
		all.Go(func() {
			for range rounds {
				u.act()
			}
		})
	}
	all.Wait()
	ctx, c := t.Context(), h.client
	ops, err := c.Operations(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range ops {
		for next, err := range c.WatchOperation(ctx, o.ID) {
			if err != nil {
				t.Fatal(err)
			}
			o = next
		}
		if o.State == "failed" && !slices.Contains(refusals, text(o.Reason)) {
			t.Errorf("operation %s ended with reason %q: %s", o.Kind, text(o.Reason), text(o.Error))
		}
	}
	volumes, err := c.Volumes(ctx, Page{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range volumes {
		if slices.Contains(passing, v.Status) {
			t.Errorf("volume %s stays in status %s", v.Name, v.Status)
		}
	}
	backups, err := c.Backups(ctx, Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backups {
		if slices.Contains(passing, b.Status) || b.TempSnapshotID != nil {
			t.Errorf("backup %s stays in status %s with the temporary snapshot %s", b.Name, b.Status, text(b.TempSnapshotID))
		}
	}
	if strings.Contains(h.log.String(), "panic") {
		t.Errorf("something panicked:\n%s", h.log)
	}
}

// passing are the statuses that only an operation may leave something in.
var passing = []string{"creating", "deleting", "backing-up", "restoring-backup", "restoring"}

// A user asks for one thing after the other.
type user struct {
	h      *harness
	t      *testing.T
	dir    string // of the targets
	random *rand.Rand
}

func (u *user) one(kind string, n int) string { return fmt.Sprint(kind, u.random.IntN(n)) }
func (u *user) volume() string                { return u.one("v", 4) }
func (u *user) snapshot() string              { return u.one("s", 3) }
func (u *user) backup() string                { return u.one("b", 5) }
func (u *user) target() string                { return u.one("t", 3) }
func (u *user) backupChange() BackupChange {
	if protected, name := u.random.IntN(4) == 0, u.backup(); u.maybe() {
		return BackupChange{Protected: &protected}
	} else {
		return BackupChange{Name: &name, SetMetadata: map[string]string{u.one("k", 3): name}, UnsetMetadata: []string{u.one("k", 3)}}
	}
}
func (u *user) maybe() bool { return u.random.IntN(2) == 0 }

// act does one random thing, and looks at how it was refused if it was.
func (u *user) act() {
	i := u.random.IntN(len(acts))
	err := acts[i].do(u, u.t.Context(), u.h.client)
	var e *Error
	switch {
	case err == nil:
	case !errors.As(err, &e):
		u.t.Errorf("%s: %v", acts[i].name, err)
	case !slices.Contains(refusals, string(e.Reason)) || e.Code >= 500 || e.RequestID == "":
		u.t.Errorf("%s: reason %q: %v", acts[i].name, e.Reason, e)
	}
}

// second is the error of a call that returns something else first.
func second[T any](_ T, err error) error { return err }

func third[S, T any](_ S, _ T, err error) error { return err }

// acts are what a user may ask for. What brings something into being is there
// more often than what ends it.
var acts = []struct {
	name string
	do   func(*user, context.Context, *Client) error
}{
	{"volume create", (*user).createVolume},
	{"volume create", (*user).createVolume},
	{"volume clone", func(u *user, ctx context.Context, c *Client) error {
		return second(c.CreateVolume(ctx, NewVolume{Name: u.volume(), SourceVolID: u.volume()}))
	}},
	{"volume clone a snapshot", func(u *user, ctx context.Context, c *Client) error {
		return second(c.CreateVolume(ctx, NewVolume{Name: u.volume(), SnapshotID: u.snapshot()}))
	}},
	{"volume delete", func(u *user, ctx context.Context, c *Client) error { return c.DeleteVolume(ctx, u.volume()) }},
	{"volume grow", func(u *user, ctx context.Context, c *Client) error {
		return second(c.GrowVolume(ctx, u.volume(), 1<<20+u.random.Int64N(64)*4096))
	}},
	{"volume set", func(u *user, ctx context.Context, c *Client) error {
		name := u.volume()
		return second(c.ChangeVolume(ctx, u.volume(), VolumeChange{Name: &name}))
	}},
	{"volume show", func(u *user, ctx context.Context, c *Client) error { return second(c.Volume(ctx, u.volume())) }},
	{"volume list", func(u *user, ctx context.Context, c *Client) error { return second(c.Volumes(ctx, Page{})) }},
	{"volume check", func(u *user, ctx context.Context, c *Client) error {
		return second(c.CheckVolume(ctx, u.volume(), u.maybe()))
	}},
	{"volume revert", func(u *user, ctx context.Context, c *Client) error {
		return third(c.RevertVolume(ctx, u.volume(), u.snapshot()))
	}},
	{"volume adopt", func(u *user, ctx context.Context, c *Client) error {
		target := u.target()
		return second(c.AdoptVolume(ctx, u.volume(), NewClaim{Container: &target}))
	}},
	{"volume maintenance", func(u *user, ctx context.Context, c *Client) error {
		return second(c.BeginMaintenance(ctx, u.volume()))
	}},
	{"volume maintenance end", func(u *user, ctx context.Context, c *Client) error {
		return second(c.EndMaintenance(ctx, u.volume()))
	}},
	{"volume maintenance end", func(u *user, ctx context.Context, c *Client) error {
		return second(c.EndMaintenance(ctx, u.volume()))
	}},
	{"volume reset-state", func(u *user, ctx context.Context, c *Client) error {
		return c.ResetState(ctx, "volume", u.volume(), "available")
	}},
	{"volume use", (*user).useVolume},
	{"volume use", (*user).useVolume},
	{"volume use", (*user).useVolume},
	{"snapshot create", (*user).createSnapshot},
	{"snapshot create", (*user).createSnapshot},
	{"snapshot delete", func(u *user, ctx context.Context, c *Client) error { return c.DeleteSnapshot(ctx, u.snapshot()) }},
	{"snapshot list", func(u *user, ctx context.Context, c *Client) error {
		return second(c.Snapshots(ctx, u.volume(), u.maybe(), Page{}))
	}},
	{"snapshot diff", func(u *user, ctx context.Context, c *Client) error {
		return lastError(c.DiffSnapshots(ctx, u.snapshot(), u.snapshot()))
	}},
	{"snapshot reset-state", func(u *user, ctx context.Context, c *Client) error {
		return c.ResetState(ctx, "snapshot", u.snapshot(), "available")
	}},
	{"backup create", (*user).createBackup},
	{"backup create", (*user).createBackup},
	{"backup create", (*user).createBackup},
	{"backup delete", func(u *user, ctx context.Context, c *Client) error {
		return second(c.DeleteBackup(ctx, u.backup(), u.maybe()))
	}},
	{"backup restore", func(u *user, ctx context.Context, c *Client) error {
		n := NewRestore{Force: true}
		if volume := u.volume(); u.maybe() {
			n.VolumeID = &volume
		} else {
			n.Name = &volume
		}
		return third(c.RestoreBackup(ctx, u.backup(), n))
	}},
	{"backup verify", func(u *user, ctx context.Context, c *Client) error {
		return second(c.VerifyBackup(ctx, u.backup(), u.maybe()))
	}},
	{"backup set", func(u *user, ctx context.Context, c *Client) error {
		return second(c.ChangeBackup(ctx, u.backup(), u.backupChange()))
	}},
	{"backup reset-state", func(u *user, ctx context.Context, c *Client) error {
		return c.ResetState(ctx, "backup", u.backup(), "available")
	}},
	{"backup diff", func(u *user, ctx context.Context, c *Client) error {
		return lastError(c.DiffBackups(ctx, u.backup(), u.backup()))
	}},
	{"backup cost", func(u *user, ctx context.Context, c *Client) error { return second(c.BackupCost(ctx, u.backup())) }},
	{"backup list", func(u *user, ctx context.Context, c *Client) error { return second(c.Backups(ctx, Filter{})) }},
	{"backup expire", func(u *user, ctx context.Context, c *Client) error {
		return third(c.ExpireBackups(ctx, NewExpiry{KeepLast: 2, VolumeID: u.volume()}))
	}},
	{"target add", (*user).addTarget},
	{"target add", (*user).addTarget},
	{"target add", (*user).addTarget},
	{"target remove", func(u *user, ctx context.Context, c *Client) error { return c.RemoveTarget(ctx, u.target()) }},
	{"target sync", func(u *user, ctx context.Context, c *Client) error { return second(c.SyncTarget(ctx, u.target())) }},
	{"target verify", func(u *user, ctx context.Context, c *Client) error {
		return second(c.VerifyTarget(ctx, u.target(), NewTargetVerify{Mode: "deep", Repair: u.maybe()}))
	}},
	{"target prune", func(u *user, ctx context.Context, c *Client) error {
		return second(c.PruneTarget(ctx, u.target(), NewPrune{DryRun: u.maybe()}))
	}},
	{"target usage", func(u *user, ctx context.Context, c *Client) error { return second(c.TargetUsage(ctx, u.target())) }},
	{"target show", func(u *user, ctx context.Context, c *Client) error { return second(c.DescribeTarget(ctx, u.target())) }},
	{"target set", func(u *user, ctx context.Context, c *Client) error {
		most := int64(1 << 30)
		return second(c.ChangeTarget(ctx, u.target(), TargetChange{MaxUpload: &most}))
	}},
	{"operation cancel", (*user).cancel},
	{"operation set", func(u *user, ctx context.Context, c *Client) error {
		return u.anOperation(ctx, func(id string) error { return second(c.SetFullSpeed(ctx, id, u.maybe())) })
	}},
	{"quota set", func(u *user, ctx context.Context, c *Client) error {
		return second(c.SetQuota(ctx, map[string]int64{"backups": 20 + u.random.Int64N(20), "volumes": 10 + u.random.Int64N(10)}))
	}},
	{"status", func(u *user, ctx context.Context, c *Client) error { return second(c.Status(ctx)) }},
}

func (u *user) createVolume(ctx context.Context, c *Client) error {
	return second(c.CreateVolume(ctx, NewVolume{Name: u.volume(), SizeBytes: 1 << 20}))
}

func (u *user) createSnapshot(ctx context.Context, c *Client) error {
	return second(c.CreateSnapshot(ctx, NewSnapshot{VolumeID: u.volume(), Name: u.snapshot()}))
}

func (u *user) createBackup(ctx context.Context, c *Client) error {
	name, target, snapshot := u.backup(), u.target(), u.snapshot()
	n := NewBackup{VolumeID: u.volume(), Name: &name, Container: &target, Incremental: u.maybe(), Force: u.maybe()}
	if u.random.IntN(4) == 0 {
		n.SnapshotID = &snapshot
	}
	return third(c.CreateBackup(ctx, n))
}

// addTarget adds the place of a target under its name or another's.
func (u *user) addTarget(ctx context.Context, c *Client) error {
	name, place := u.target(), u.target()
	if u.random.IntN(4) > 0 {
		place = name
	}
	return third(c.AddTarget(ctx, NewTarget{Name: name, URL: "file://" + filepath.Join(u.dir, place), NoEncryption: true}))
}

// useVolume opens a volume as an NBD client does, and writes to it.
func (u *user) useVolume(ctx context.Context, c *Client) error {
	e, err := u.h.server.config.Agent.OpenExport(ctx, u.volume())
	if err != nil {
		return u.refusedExport(err)
	}
	data := make([]byte, 64<<10)
	for i := range data {
		data[i] = byte(u.random.Uint32())
	}
	if _, err := e.Layer.(*layers.Volume).WriteAt(data, u.random.Int64N(240)*4096); err != nil {
		u.t.Errorf("write: %v", err)
	}
	return e.Close()
}

// refusedExport gives the error of an export the form of an answer.
func (u *user) refusedExport(err error) error {
	f := answerFor(err).(fault)
	return &Error{Code: f.GetStatus(), Reason: agent.ReasonOf(err), Message: err.Error(), RequestID: "none"}
}

// anOperation calls f with one of the newest operations, if there is any.
func (u *user) anOperation(ctx context.Context, f func(id string) error) error {
	ops, err := u.h.client.Operations(ctx)
	if err != nil || len(ops) == 0 {
		return err
	}
	return f(ops[u.random.IntN(min(len(ops), 4))].ID)
}

func (u *user) cancel(ctx context.Context, c *Client) error {
	return u.anOperation(ctx, func(id string) error { return second(c.CancelOperation(ctx, id)) })
}

// lastError goes through a diff to its end.
func lastError(extents func(func(Extent, error) bool)) error {
	for _, err := range extents {
		if err != nil {
			return err
		}
	}
	return nil
}
