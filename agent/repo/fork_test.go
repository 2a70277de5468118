package repo

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"varve/layers"
)

// C5: where a lineage forks is found from what roots and claims say, and
// what is no fork is not called one.
func TestForks(t *testing.T) {
	id := func(s string) (id layers.ID) { copy(id[:], s); return id }
	volume := id("volume")
	for _, c := range []struct {
		name    string
		backups string // NAME HOST EPOCH NUMBER CLAIM PARENT; - is none
		claims  string // NAME HOST EPOCH AFTER, a backup that may be gone, as NAME:EPOCH:NUMBER
		want    string // AFTER: HOST=NAME+NAME HOST=…; the sides in order
	}{
		{"one host", "a1 A 1 1 - -, a2 A 1 2 - a1, a3 A 1 3 - a2", "", ""},
		{"one host, with backups of older snapshots, and after a restore in place", "a1 A 1 1 - -, a2 A 1 2 - a1, a3 A 1 3 - a1, a4 A 1 4 - a1", "", ""},
		{"taken over, and the host before is gone", "a1 A 1 1 - -, a2 A 1 2 - a1, b3 B 2 3 b a2, b4 B 2 4 b b3", "b B 2 a2:1:2", ""},
		{"taken over, and nothing made yet", "a1 A 1 1 - -, a2 A 1 2 - a1", "b B 2 a1:1:1", ""},
		{"the host before goes on", "a1 A 1 1 - -, b2 B 2 2 b a1, a3 A 1 3 - a1, a4 A 1 4 - a3", "b B 2 a1:1:1", "a1: A=a3+a4 B=b2"},
		{"it goes on with full backups", "a1 A 1 1 - -, b2 B 2 2 b a1, a3 A 1 3 - -", "b B 2 a1:1:1", "a1: A=a3 B=b2"},
		{"its first one after the fork is deleted, and the base", "b3 B 2 3 b b2, a4 A 1 4 - a3", "b B 2 a1:1:1", "a1: A=a4 B=b3"},
		{"all of one side is deleted", "a1 A 1 1 - -, b3 B 2 3 b b2", "b B 2 a1:1:1", ""},
		{"taken over from an older one by intent", "a1 A 1 1 - -, a2 A 1 2 - a1, b3 B 2 3 b a1", "b B 2 a1:1:1", "a1: A=a2 B=b3"},
		{"two take over from one at once", "a1 A 1 1 - -, b2 B 2 2 b a1, c2 C 2 2 c a1", "b B 2 a1:1:1, c C 2 a1:1:1", "a1: B=b2 C=c2"},
		{"two, one after the other, from the same", "a1 A 1 1 - -, b2 B 2 2 b a1, c3 C 3 3 c a1, a4 A 1 4 - a1", "b B 2 a1:1:1, c C 3 a1:1:1", "a1: A=a4 B=b2 C=c3"},
		{"two, one after the other, from what is behind", "a1 A 1 1 - -, b2 B 2 2 b a1, a3 A 1 3 - a1, c4 C 3 4 c a3", "b B 2 a1:1:1, c C 3 a3:1:3", "a1: A+C=a3+c4 B=b2"},
		{"two forks, one after the other", "a1 A 1 1 - -, b2 B 2 2 b a1, a3 A 1 3 - a1, b4 B 2 4 b b2, c5 C 3 5 c b2", "b B 2 a1:1:1, c C 3 b2:2:2", "a1: A=a3 B+C=b2+b4+c5, b2: B=b4 C=c5"},
		{"there and back", "a1 A 1 1 - -, b2 B 2 2 b a1, a3 A 3 3 c b2", "b B 2 a1:1:1, c A 3 b2:2:2", ""},
		{"a fork, then both sides are left for one", "a1 A 1 1 - -, b2 B 2 2 b a1, a3 A 1 3 - a1, c4 C 3 4 c b2", "b B 2 a1:1:1, c C 3 b2:2:2", "a1: A=a3 B+C=b2+c4"},
		{"the side that was taken over further is told by its heir", "a1 A 1 1 - -, a3 A 1 3 - a1, c4 C 3 4 c b2", "b B 2 a1:1:1, c C 3 b2:2:2", "a1: A=a3 C=c4"},
		{"a copied volume, and nobody took it over", "a1 A 1 1 - -, a2 A 1 2 - a1, x2 X 1 2 - a1, x3 X 1 3 - x2", "", "a1: A=a2 X=x2+x3"},
		{"two that took over at once, and one of them is taken over", "a1 A 1 1 - -, b2 B 2 2 b a1, c2 C 2 2 c a1, d3 D 3 3 d c2", "b B 2 a1:1:1, c C 2 a1:1:1, d D 3 c2:2:2", "a1: B=b2 C+D=c2+d3"},
		{"full backups by two hosts, and nobody took it over", "a1 A 1 1 - -, x1 X 1 1 - -", "", ""},
		{"a copied volume, and one of the hosts goes back", "a1 A 1 1 - -, a2 A 1 2 - a1, a3 A 1 3 - a1, x2 X 1 2 - a1", "", "a1: A=a2+a3 X=x2"},
		{"a host that got another name", "a1 A 1 1 - -, a2 B 1 2 - a1, a3 B 1 3 - a2", "", ""},
		{"the root that was taken over from cannot be read", "a1 A 1 1 - -, ?2 - 0 0 - -, a3 A 1 3 - a1, c4 C 3 4 c ?2", "b B 2 a1:1:1, c C 3 ?2:2:2", "a1: A=a3 C=c4"},
		{"a backup that says it is of the claim that goes on from it", "a1 A 1 1 - -, b2 B 1 2 b a1, b3 B 2 3 b b2", "b B 2 b2:1:2", ""},
		{"a root that cannot be read", "a1 A 1 1 - -, ?2 - 0 0 - -, b3 B 2 3 b a1", "b B 2 a1:1:1", ""},
	} {
		names := map[layers.ID]string{}
		name := func(s string) layers.ID {
			if s == "-" {
				return layers.ID{}
			}
			names[id(s)] = s
			return id(s)
		}
		var backups []Backup
		var claims []Claim
		for line := range strings.SplitSeq(c.backups, ", ") {
			var b, host, claim, parent string
			at := Backup{Volume: volume}
			if _, err := fmt.Sscan(line, &b, &host, &at.Epoch, &at.Number, &claim, &parent); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			at.ID, at.Host, at.Claim, at.Parent = name(b), host, name(claim), name(parent)
			backups = append(backups, at)
		}
		for line := range strings.SplitSeq(c.claims, ", ") {
			if line == "" {
				continue
			}
			var n, after string
			at := Claim{Volume: volume}
			if _, err := fmt.Sscan(strings.ReplaceAll(line, ":", " "), &n, &at.Host, &at.Epoch, &after, &at.After.Epoch, &at.After.Number); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			at.ID, at.After.Backup = name(n), name(after)
			claims = append(claims, at)
		}
		other := Backup{ID: id("other"), Volume: id("another volume"), Epoch: 1, Number: 9, Host: "Z"}
		for seed := range uint64(5) { // in any order
			rnd := rand.New(rand.NewPCG(seed, 1))
			all := append(slices.Clone(backups), other)
			rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			rnd.Shuffle(len(claims), func(i, j int) { claims[i], claims[j] = claims[j], claims[i] })
			var texts []string
			for _, f := range Forks(all, claims) {
				if f.Volume != volume {
					t.Errorf("%s: a fork of volume %s", c.name, f.Volume)
				}
				text := names[f.After] + ":"
				for _, s := range f.Sides {
					var made []string
					for _, b := range s.Backups {
						made = append(made, names[b])
					}
					text += " " + strings.Join(s.Hosts, "+") + "=" + strings.Join(made, "+")
				}
				texts = append(texts, text)
			}
			if got := strings.Join(texts, ", "); got != c.want {
				t.Errorf("%s: forks %q, want %q", c.name, got, c.want)
			}
		}
	}
}
