package main

import (
	"fmt"
	"strings"

	"varve/agent"
	"varve/agent/api"
)

// backupClient is the way to the daemon for commands on backups, among which
// --target NAME chooses.
func (c *call) backupClient() (*api.Client, error) {
	if url := c.directURL(); url != "" {
		return nil, c.needsDaemon(url)
	}
	return c.daemonClient()
}

// chosen is the id of the backup that ref means in the target of --target NAME,
// or ref itself if no target is named.
func (c *call) chosen(client *api.Client, ref string) (string, error) {
	if c.global("target") == "" {
		return ref, nil
	}
	all, err := c.backups(api.Filter{})
	if err != nil {
		return "", err
	}
	b, err := pickBackup(all, ref, "target "+c.global("target"))
	return b.ID, err
}

// eachBackup is each for commands on the backups that are chosen.
func (c *call) eachBackup(client *api.Client, act string, try func(ref string) error) error {
	return c.each("backup", act, func(name string) error {
		ref, err := c.chosen(client, name)
		if err != nil {
			return err
		}
		return try(ref)
	})
}

// pickBackup is the backup that ref, an id or a name, means among all of where.
func pickBackup(all []api.Backup, ref, where string) (api.Backup, error) {
	var found []api.Backup
	var ids strings.Builder
	for _, b := range all {
		if strings.EqualFold(b.ID, ref) {
			return b, nil
		}
		if b.Name == ref {
			found = append(found, b)
			fmt.Fprintf(&ids, "\n  %s  of volume %s, created %s", b.ID, b.VolumeName, b.CreatedAt.UTC().Format("2006-01-02 15:04:05"))
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return api.Backup{}, &agent.Error{Reason: agent.NotFound,
			Message: fmt.Sprintf("no backup has the name or id %q in %s: \"backup list\" shows what is there", ref, where)}
	}
	return api.Backup{}, &agent.Error{Reason: agent.Ambiguous,
		Message: fmt.Sprintf("%d backups are named %q in %s: give the id of one of them%s", len(found), ref, where, ids.String())}
}
