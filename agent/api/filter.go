package api

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"varve/agent"
)

// A Page says what of a list is wanted, with the words of Cinder's queries. What
// is empty leaves nothing out.
type Page struct {
	Name   string `query:"name" doc:"exactly this name"`
	Status string `query:"status"`
	Marker string `query:"marker" doc:"id or name: the list begins after it"`
	Limit  int    `query:"limit" minimum:"0" doc:"the most that are listed; 0: all"`
}

// A Filter says which backups are wanted.
type Filter struct {
	Page
	Volume   string `query:"volume_id" doc:"id or name of the volume, also if it is gone"`
	Snapshot string `query:"snapshot_id" doc:"id of the snapshot that was backed up"`
	Target   string `query:"container" doc:"id or name of the target"`
}

func (p Page) values() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{"name": p.Name, "status": p.Status, "marker": p.Marker} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if p.Limit != 0 {
		q.Set("limit", strconv.Itoa(p.Limit))
	}
	return q
}

func (f Filter) values() url.Values {
	q := f.Page.values()
	for name, value := range map[string]string{"volume_id": f.Volume, "snapshot_id": f.Snapshot, "container": f.Target} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q
}

// FilterBackups returns the backups of a list that are wanted. A marker that is
// not among them is refused.
func FilterBackups(all []Backup, f Filter) ([]Backup, error) {
	wanted := slices.DeleteFunc(slices.Clone(all), func(b Backup) bool {
		return !f.is(b.Name, b.Status) || !means(f.Volume, b.VolumeID, b.VolumeName) ||
			!means(f.Target, b.TargetID, b.Container) || !means(f.Snapshot, orEmpty(b.SnapshotID), "")
	})
	return page(f.Page, "backup", wanted, func(b Backup) (string, string) { return b.ID, b.Name })
}

func filterVolumes(all []Volume, p Page) ([]Volume, error) {
	wanted := slices.DeleteFunc(all, func(v Volume) bool { return !p.is(v.Name, v.Status) })
	return page(p, "volume", wanted, func(v Volume) (string, string) { return v.ID, v.Name })
}

func filterSnapshots(all []Snapshot, p Page) ([]Snapshot, error) {
	wanted := slices.DeleteFunc(all, func(s Snapshot) bool { return !p.is(s.Name, s.Status) })
	return page(p, "snapshot", wanted, func(s Snapshot) (string, string) { return s.ID, s.Name })
}

// is reports whether something of that name and status is wanted.
func (p Page) is(name, status string) bool {
	return (p.Name == "" || p.Name == name) && (p.Status == "" || p.Status == status)
}

// means reports whether ref, if there is one, means what has that id and name.
func means(ref, id, name string) bool {
	return ref == "" || strings.EqualFold(ref, id) || name != "" && ref == name
}

// page cuts out what comes after the marker, as much as the limit allows.
func page[T any](p Page, kind string, wanted []T, of func(T) (id, name string)) ([]T, error) {
	if p.Marker != "" {
		at := slices.IndexFunc(wanted, func(t T) bool {
			id, name := of(t)
			return means(p.Marker, id, name)
		})
		if at < 0 {
			return nil, &agent.Error{Reason: agent.NotFound, Message: fmt.Sprintf("the marker %q is no %s of the list", p.Marker, kind)}
		}
		wanted = wanted[at+1:]
	}
	if p.Limit > 0 && len(wanted) > p.Limit {
		wanted = wanted[:p.Limit]
	}
	return wanted, nil
}
