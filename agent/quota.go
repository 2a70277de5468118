package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"varve/catalog"
)

// resources are what a quota can limit, in the order of their names.
var resources = []catalog.Resource{
	catalog.BackupGigabytes, catalog.BackupCount, catalog.VolumeGigabytes, catalog.SnapshotCount, catalog.VolumeCount,
}

// NoLimit is the limit of a resource that has none.
const NoLimit = -1

// An Allowance is how much of a resource there is and may be.
type Allowance struct {
	Resource catalog.Resource
	InUse    int64
	Limit    int64 // NoLimit if there is none
}

// A demand is what somebody wants to add of a resource.
type demand struct {
	resource catalog.Resource
	amount   int64
}

// Quota returns what there is and may be of each resource, in the order of their
// names. Backups of other hosts in the same targets count.
func (a *Agent) Quota(ctx context.Context) ([]Allowance, error) {
	var allowances []Allowance
	err := a.view(func(tx *catalog.Tx) error {
		quota, err := catalog.Quotas.Get(tx)
		if err != nil {
			return err
		}
		for _, r := range resources {
			limit, limited := quota[r]
			if !limited {
				limit = NoLimit
			}
			allowances = append(allowances, Allowance{r, a.inUse(tx, r), limit})
		}
		return nil
	})
	return allowances, err
}

// SetQuota changes the limits that are named. One that is below what there is
// already takes nothing away and refuses what would be added.
func (a *Agent) SetQuota(ctx context.Context, limits map[catalog.Resource]int64) error {
	for r, limit := range limits {
		switch {
		case !slices.Contains(resources, r):
			return fail(Invalid, "there is no quota of %q: there are %s", r, resourceNames())
		case limit < NoLimit:
			return fail(Invalid, "the quota of %s cannot be %d: it is 0 or more, or %d for no limit", r, limit, NoLimit)
		}
	}
	return a.update(func(tx *catalog.Tx) error {
		quota, err := catalog.Quotas.Get(tx)
		if err != nil {
			return err
		}
		if quota == nil {
			quota = catalog.Quota{}
		}
		for r, limit := range limits {
			if limit == NoLimit {
				delete(quota, r)
			} else {
				quota[r] = limit
			}
		}
		return catalog.Quotas.Put(tx, quota)
	})
}

func resourceNames() string {
	names := make([]string, len(resources))
	for i, r := range resources {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

// admit refuses what the quota has no room for, in the transaction that records
// it: two that add at once are counted one after the other.
func (a *Agent) admit(tx *catalog.Tx, demands ...demand) error {
	quota, err := catalog.Quotas.Get(tx)
	if err != nil || len(quota) == 0 {
		return err
	}
	for _, d := range demands {
		limit, limited := quota[d.resource]
		if !limited || d.amount <= 0 {
			continue
		}
		if used := a.inUse(tx, d.resource); used+d.amount > limit {
			return overQuota(d, limit, used)
		}
	}
	return catalog.Quotas.Put(tx, quota)
}

// inUse counts a resource. What is being made counts, and so does what failed
// until it is deleted.
func (a *Agent) inUse(tx *catalog.Tx, r catalog.Resource) int64 {
	var n int64
	switch r {
	case catalog.VolumeCount:
		n = int64(len(all(a, tx, catalog.Volumes)))
	case catalog.VolumeGigabytes:
		for _, v := range all(a, tx, catalog.Volumes) {
			n += gigabytes(v.Size)
		}
	case catalog.SnapshotCount:
		for _, s := range all(a, tx, catalog.Snapshots) {
			if !s.System {
				n++
			}
		}
	case catalog.BackupCount:
		n = int64(len(all(a, tx, catalog.Backups)))
	case catalog.BackupGigabytes:
		for _, b := range all(a, tx, catalog.Backups) {
			n += gigabytes(b.Size)
		}
	}
	return n
}

// gigabytes is a size as quotas count it: in GiB, rounded up.
func gigabytes(bytes int64) int64 { return (bytes + 1<<30 - 1) >> 30 }

// overQuota says what was refused in the words of Cinder, whose clients look for
// them, and what to do.
func overQuota(d demand, limit, used int64) error {
	var what string
	switch d.resource {
	case catalog.VolumeCount:
		what = fmt.Sprintf("VolumeLimitExceeded: Maximum number of volumes allowed (%d) exceeded for quota 'volumes'.", limit)
	case catalog.SnapshotCount:
		what = fmt.Sprintf("SnapshotLimitExceeded: Maximum number of snapshots allowed (%d) exceeded for quota 'snapshots'.", limit)
	case catalog.BackupCount:
		what = fmt.Sprintf("VolumeBackupLimitExceeded: Maximum number of backups allowed (%d) exceeded for quota 'backups'.", limit)
	case catalog.BackupGigabytes:
		what = fmt.Sprintf("VolumeBackupSizeExceedsAvailableQuota: Requested backup exceeds allowed Backup gigabytes quota. "+
			"Requested %dG, quota is %dG and %dG has been consumed.", d.amount, limit, used)
	default:
		what = fmt.Sprintf("VolumeSizeExceedsAvailableQuota: Requested volume exceeds allowed gigabytes quota. "+
			"Requested %dG, quota is %dG and %dG has been consumed.", d.amount, limit, used)
	}
	flag := strings.ReplaceAll(string(d.resource), "_", "-")
	return fail(TooLarge, "%s Delete what is not needed, or raise the limit with: varve quota set --%s N", what, flag)
}
