package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

// A Fork is a place where the lineage of a volume goes on in several ways.
type Fork struct {
	repo.Fork
	names map[layers.ID]string // of backups
}

// forksOf finds the forks in the targets, by the backups that are on their
// sides.
func forksOf(backups []catalog.Backup, claims []catalog.Claim) map[layers.ID][]*Fork {
	byTarget := map[layers.ID]*inTarget{}
	of := func(id layers.ID) *inTarget {
		if byTarget[id] == nil {
			byTarget[id] = &inTarget{names: map[layers.ID]string{}}
		}
		return byTarget[id]
	}
	for _, b := range backups {
		t := of(b.TargetID)
		t.names[b.ID] = b.Name
		if whole(b) {
			t.backups = append(t.backups, repo.Backup{
				ID: b.ID, Volume: b.VolumeID, Parent: b.ParentID, Epoch: b.Epoch, Number: b.Number, Claim: b.ClaimID, Host: b.Host,
			})
		}
	}
	for _, c := range claims {
		t := of(c.TargetID)
		t.claims = append(t.claims, repo.Claim{
			ID: c.ID, Volume: c.VolumeID, Epoch: c.Epoch, Host: c.Host, After: repo.Position{Backup: c.After, Epoch: c.AfterEpoch, Number: c.AfterNumber},
		})
	}
	forks := map[layers.ID][]*Fork{}
	for _, t := range byTarget {
		for id, of := range ForksOf(t.backups, t.claims, t.names) {
			forks[id] = append(forks[id], of...)
		}
	}
	return forks
}

type inTarget struct {
	backups []repo.Backup
	claims  []repo.Claim
	names   map[layers.ID]string
}

// ForksOf finds the forks of one target's backups, by the backups that are on
// their sides. names has the names of backups, of damaged ones too.
func ForksOf(backups []repo.Backup, claims []repo.Claim, names map[layers.ID]string) map[layers.ID][]*Fork {
	forks := map[layers.ID][]*Fork{}
	for _, found := range repo.Forks(backups, claims) {
		f := &Fork{Fork: found, names: names}
		for _, s := range f.Sides {
			for _, b := range s.Backups {
				forks[b] = append(forks[b], f)
			}
		}
	}
	return forks
}

// namedMost is how many backups of a side are named in a text.
const namedMost = 3

// Text says who went on from where and made what, for people.
func (f *Fork) Text() string {
	sides := make([]string, len(f.Sides))
	for i, s := range f.Sides {
		made := make([]string, 0, namedMost)
		for _, b := range s.Backups[:min(namedMost, len(s.Backups))] {
			made = append(made, f.name(b))
		}
		sides[i] = hostsText(s.Hosts) + " made " + strings.Join(made, ", ")
		if more := len(s.Backups) - len(made); more > 0 {
			sides[i] += fmt.Sprintf(" and %d more", more)
		}
	}
	return fmt.Sprintf("forked after backup %s: %s", f.name(f.After), strings.Join(sides, "; "))
}

// side tells the sides of forks apart but for the last, which is of the latest
// claim and goes with what was before the fork.
func (b BackupView) side() string {
	for _, f := range b.Forks {
		for i, s := range f.Sides[:len(f.Sides)-1] {
			if slices.Contains(s.Backups, b.ID) {
				return fmt.Sprint(f.After, i)
			}
		}
	}
	return ""
}

// hostsText names hosts, of which one may not be known.
func hostsText(hosts []string) string {
	names := make([]string, len(hosts))
	for i, host := range hosts {
		names[i] = cmp.Or(host, "of no name")
	}
	if len(names) == 1 {
		return "host " + names[0]
	}
	return "hosts " + strings.Join(names, " and ")
}

// name is the name of a backup, or the id of one that is gone.
func (f *Fork) name(id layers.ID) string {
	if name := f.names[id]; name != "" {
		return name
	}
	return id.String()
}
