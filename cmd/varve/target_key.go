package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"varve/agent"
	"varve/agent/api"
	"varve/agent/repo"
	"varve/layers"
)

func (p *program) targetKeyCommand() *cli.Command {
	fresh := []cli.Flag{
		&cli.StringFlag{Name: "new-passphrase-file", Usage: "`FILE` with the new passphrase; VARVE_NEW_PASSPHRASE is the other way"},
		&cli.StringFlag{Name: "new-key-file", Usage: "`FILE` of 32 or more random bytes, instead of a passphrase"},
		&cli.StringFlag{Name: "label", Usage: "`TEXT` for people"},
	}
	command := noun("key", "what opens a target: passphrases, key files, recovery keys",
		p.verb("list", "[TARGET]", "list the key slots, oldest first", outputFlags(), (*call).keyList),
		p.verb("add", "[TARGET]", "let another passphrase or key file open the target too", outputFlags(fresh...), (*call).keyAdd),
		p.verb("export", "[TARGET]", "make a recovery key, and print it once",
			outputFlags(recoveryFileFlag(), &cli.StringFlag{Name: "label", Usage: "`TEXT` for people"}), (*call).keyExport),
		p.verb("rotate", "[TARGET] [SLOT]", "replace a key, that of the daemon if no SLOT is named; or, with --volume, what seals a volume's backups",
			outputFlags(append(fresh, recoveryFileFlag(),
				&cli.StringFlag{Name: "volume", Usage: "give this `VOLUME` a new key of its own, for the backups to come"})...),
			(*call).keyRotate),
		p.verb("use", "TARGET", "let the daemon open the target with another of its keys", outputFlags(), (*call).keyUse),
		p.verb("remove", "[TARGET] SLOT", "remove a key slot: its key opens nothing any more", nil, (*call).keyRemove))
	command.Description = "With --target URL in the place of TARGET they work without a daemon. SLOT is an id or a label. " +
		"Whoever had a key may have read the repository's master key, which no removal changes."
	return command
}

// A keyKeeper is where key slots are: a target of the daemon's, or the
// repository at a URL.
type keyKeeper interface {
	list() ([]api.TargetKey, error)
	add(api.NewTargetKey) (k api.TargetKey, recovery string, err error)
	rotate(slot string, n api.NewTargetKey) (api.RotatedKey, error)
	remove(slot string) error
	rotateVolume(volume string) (epoch uint32, err error)
}

// withKeys opens the keeper and hands it over with the arguments after TARGET,
// of which there may be at most most.
func (c *call) withKeys(most int, do func(k keyKeeper, rest []string) error) error {
	rest := c.args
	if c.directURL() == "" {
		if len(rest) == 0 {
			return usagef("%s: TARGET is missing", commandName(c.Context))
		}
		rest = rest[1:]
	}
	if len(rest) > most {
		return usagef("%s: unexpected argument %q", commandName(c.Context), rest[most])
	}
	if c.directURL() != "" {
		t, err := c.openDirect()
		if err != nil {
			return err
		}
		return errors.Join(do(directKeys{c, t}, rest), t.Close())
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	return do(daemonKeys{c, client, c.args[0]}, rest)
}

// keyTarget is what messages call the target.
func (c *call) keyTarget() string {
	if url := c.directURL(); url != "" {
		return url
	}
	return c.args[0]
}

func (c *call) keyList() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	return c.withKeys(0, func(k keyKeeper, _ []string) error {
		keys, err := k.list()
		if err != nil {
			return err
		}
		var rows []row
		for _, key := range keys {
			status := "available"
			switch {
			case key.Problem != nil:
				status = "error"
				fmt.Fprintf(c.stderr, "key slot %s: %s\n", key.ID, printable(*key.Problem))
			case key.ReplacedBy != nil:
				status = "not removed"
				fmt.Fprintf(c.stderr, "key slot %s: its rotation was cut off: slot %s is there in its place, and both open the target. To end it, rotate it again; if %[2]s is in use, removing it will do.\n",
					key.ID, *key.ReplacedBy)
			}
			rows = append(rows, row{key.ID, key.Kind, key.Label, formatTime(key.CreatedAt.Time), key.InUse, status})
		}
		return out.list(c.stdout, []string{"ID", "Kind", "Label", "Created At", "In Use", "Status"}, rows)
	})
}

func (c *call) keyAdd() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	return c.withKeys(0, func(k keyKeeper, _ []string) error {
		n, err := c.newKey()
		if err != nil {
			return err
		}
		key, _, err := k.add(n)
		if err != nil {
			return err
		}
		return out.show(c.stdout, keyFields(key))
	})
}

func (c *call) keyExport() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	return c.withKeys(0, func(k keyKeeper, _ []string) error {
		key, err := c.exportKey(func() (api.TargetKey, string, error) {
			return k.add(api.NewTargetKey{Recovery: true, Label: c.String("label")})
		})
		if err != nil {
			return err
		}
		return out.show(c.stdout, keyFields(key))
	})
}

// exportKey puts the recovery key that act makes where it is to be kept.
func (c *call) exportKey(act func() (api.TargetKey, string, error)) (api.TargetKey, error) {
	paper, err := c.recoveryPaper(c.keyTarget(), c.directURL())
	if err != nil {
		return api.TargetKey{}, err
	}
	key, recovery, err := act()
	return key, errors.Join(err, paper.write(recovery))
}

func (c *call) keyRotate() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	return c.withKeys(1, func(k keyKeeper, rest []string) error {
		if volume := c.String("volume"); volume != "" {
			if len(rest) > 0 {
				return usagef("target key rotate: --volume gives a volume a new key, and %s is a key slot: do one of them", rest[0])
			}
			epoch, err := k.rotateVolume(volume)
			if err != nil {
				return err
			}
			return out.show(c.stdout, []field{{"epoch", int64(epoch)}, {"volume", volume}})
		}
		old, err := slotToRotate(k, rest)
		if err != nil {
			return err
		}
		key, err := c.rotated(k, old)
		if err != nil {
			return err
		}
		if n := len(key.Replaced); n > 1 {
			fmt.Fprintf(c.stderr, "An earlier rotation was cut off. It is ended too: %d key slots are removed.\n", n)
		}
		return out.show(c.stdout, append(keyFields(key.TargetKey), field{"replaced", key.Replaced}))
	})
}

// rotated replaces a key: a recovery key by another, unless something else is
// given, all others by what is given.
func (c *call) rotated(k keyKeeper, old api.TargetKey) (key api.RotatedKey, err error) {
	if old.Kind == repo.SlotRecovery.String() && !old.InUse && !c.newSecrets().given() {
		_, err = c.exportKey(func() (api.TargetKey, string, error) {
			key, err = k.rotate(old.ID, api.NewTargetKey{Recovery: true, Label: c.String("label")})
			return key.TargetKey, key.Recovery, err
		})
		return key, err
	}
	n, err := c.newKey()
	if err != nil {
		return key, err
	}
	return k.rotate(old.ID, n)
}

func (c *call) keyUse() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	secret, err := c.secrets().read(c.args[0], false)
	if err != nil {
		return err
	}
	key, err := client.UseTargetKey(c.ctx, c.args[0], api.NewTargetKey{Passphrase: secret.passphrase, KeyFile: secret.keyFile})
	if err != nil {
		return err
	}
	return out.show(c.stdout, keyFields(key))
}

func (c *call) keyRemove() error {
	return c.withKeys(1, func(k keyKeeper, rest []string) error {
		if len(rest) == 0 {
			return usagef("target key remove: SLOT is missing")
		}
		slot, err := slotNamed(k, rest)
		if err != nil {
			return err
		}
		return k.remove(slot.ID)
	})
}

// newSecrets is where the secret of a new key comes from.
func (c *call) newSecrets() secretSource {
	s := c.secrets()
	s.flags, s.keyFile, s.file = "new-", c.String("new-key-file"), c.String("new-passphrase-file")
	return s
}

func (c *call) newKey() (api.NewTargetKey, error) {
	secret, err := c.newSecrets().read(c.keyTarget(), true)
	return api.NewTargetKey{Passphrase: secret.passphrase, KeyFile: secret.keyFile, Label: c.String("label")}, err
}

// slotNamed is the slot that the one word of names means, an id or a label; or,
// without any, the one in use.
func slotNamed(k keyKeeper, names []string) (api.TargetKey, error) {
	found, name, err := slotsNamed(k, names)
	if err != nil {
		return api.TargetKey{}, err
	}
	return oneSlot(found, name)
}

// slotToRotate is slotNamed for a rotation, which removes what an earlier one has
// left of those that it replaces: so it makes no difference which of them is
// meant, and they often have one label.
func slotToRotate(k keyKeeper, names []string) (api.TargetKey, error) {
	found, name, err := slotsNamed(k, names)
	if err != nil {
		return api.TargetKey{}, err
	}
	there := func(id *string) bool {
		return id != nil && slices.ContainsFunc(found, func(key api.TargetKey) bool { return key.ID == *id })
	}
	return oneSlot(slices.DeleteFunc(slices.Clone(found), func(key api.TargetKey) bool { return there(key.ReplacedBy) }), name)
}

// slotsNamed are the slots that slotNamed may mean, and what they are called.
func slotsNamed(k keyKeeper, names []string) (found []api.TargetKey, name string, err error) {
	keys, err := k.list()
	if err != nil {
		return nil, "", err
	}
	name = "in use"
	for _, key := range keys {
		named := key.InUse
		if len(names) > 0 {
			name = names[0]
			named = strings.EqualFold(key.ID, name) || key.Label == name
		}
		if named {
			found = append(found, key)
		}
	}
	return found, name, nil
}

func oneSlot(found []api.TargetKey, name string) (api.TargetKey, error) {
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return api.TargetKey{}, &agent.Error{Reason: agent.NotFound,
			Message: fmt.Sprintf("no key slot has the label or id %q: target key list shows those there are", name)}
	}
	ids := make([]string, len(found))
	for i, key := range found {
		ids[i] = key.ID
	}
	return api.TargetKey{}, &agent.Error{Reason: agent.Ambiguous,
		Message: fmt.Sprintf("%d key slots have the label %q: give one of their ids: %s", len(found), name, strings.Join(ids, ", "))}
}

func keyFields(k api.TargetKey) []field {
	return []field{
		{"created_at", formatTime(k.CreatedAt.Time)},
		{"id", k.ID},
		{"in_use", k.InUse},
		{"kind", k.Kind},
		{"label", k.Label},
	}
}

// daemonKeys are the key slots of a target of the daemon's.
type daemonKeys struct {
	call   *call
	client *api.Client
	target string
}

func (k daemonKeys) list() ([]api.TargetKey, error) { return k.client.TargetKeys(k.call.ctx, k.target) }

func (k daemonKeys) add(n api.NewTargetKey) (api.TargetKey, string, error) {
	return k.client.AddTargetKey(k.call.ctx, k.target, n)
}

func (k daemonKeys) rotate(slot string, n api.NewTargetKey) (api.RotatedKey, error) {
	return k.client.RotateTargetKey(k.call.ctx, k.target, slot, n)
}

func (k daemonKeys) remove(slot string) error {
	return k.client.RemoveTargetKey(k.call.ctx, k.target, slot)
}

func (k daemonKeys) rotateVolume(volume string) (uint32, error) {
	return k.client.RotateVolumeKey(k.call.ctx, k.target, volume)
}

// directKeys are the key slots of the repository at a URL.
type directKeys struct {
	call *call
	repo *bareTarget
}

func (k directKeys) list() ([]api.TargetKey, error) {
	slots, err := k.repo.Slots(k.call.ctx)
	keys := make([]api.TargetKey, len(slots))
	for i, s := range slots {
		keys[i] = api.DescribeSlot(s)
	}
	return keys, err
}

func (k directKeys) add(n api.NewTargetKey) (api.TargetKey, string, error) {
	key, recovery := drawKey(n)
	s, err := k.repo.AddSlot(k.call.ctx, key, n.Label)
	if err != nil {
		return api.TargetKey{}, "", err
	}
	return api.DescribeSlot(s), recovery, nil
}

func (k directKeys) rotate(slot string, n api.NewTargetKey) (api.RotatedKey, error) {
	id, err := layers.ParseID(slot)
	if err != nil {
		return api.RotatedKey{}, err
	}
	key, recovery := drawKey(n)
	s, gone, err := k.repo.RotateSlot(k.call.ctx, id, key, n.Label, func(repo.Slot) error { return nil })
	if err != nil {
		return api.RotatedKey{}, err
	}
	rotated := api.RotatedKey{TargetKey: api.DescribeSlot(s), Recovery: recovery}
	for _, id := range gone {
		rotated.Replaced = append(rotated.Replaced, id.String())
	}
	return rotated, nil
}

func (k directKeys) remove(slot string) error {
	id, err := layers.ParseID(slot)
	if err != nil {
		return err
	}
	return k.repo.RemoveSlot(k.call.ctx, id)
}

// rotateVolume takes a volume's id, or its name among the backups there.
func (k directKeys) rotateVolume(volume string) (uint32, error) {
	id, err := layers.ParseID(volume)
	if err != nil {
		if id, err = k.volumeNamed(volume); err != nil {
			return 0, err
		}
	}
	return k.repo.RotateVolumeKey(k.call.ctx, id)
}

func (k directKeys) volumeNamed(name string) (layers.ID, error) {
	all, err := k.repo.backups(k.call)
	if err != nil {
		return layers.ID{}, err
	}
	ids := map[string]bool{}
	for _, b := range all {
		if b.VolumeName == name {
			ids[b.VolumeID] = true
		}
	}
	found := slices.Sorted(maps.Keys(ids))
	switch len(found) {
	case 1:
		return layers.ParseID(found[0])
	case 0:
		return layers.ID{}, &agent.Error{Reason: agent.NotFound, Message: fmt.Sprintf("%s has no backup of a volume %q", k.repo.url, name)}
	}
	return layers.ID{}, &agent.Error{Reason: agent.Ambiguous,
		Message: fmt.Sprintf("%d volumes have the name %q: give one of their ids: %s", len(found), name, strings.Join(found, ", "))}
}

// drawKey returns the key to be added, and its text if it is drawn here.
func drawKey(n api.NewTargetKey) (key repo.Key, recovery string) {
	if n.Recovery {
		recovery = repo.NewRecoveryKey().String()
		return repo.Key{Passphrase: recovery}, recovery
	}
	return repo.Key{Passphrase: n.Passphrase, KeyFile: string(n.KeyFile)}, ""
}
