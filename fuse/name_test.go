package fuse

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"varve/layers"
)

// id returns an ID that differs in its last byte.
func id(n byte) layers.ID { return layers.ID{15: n} }

func TestShownNames(t *testing.T) {
	const one, two = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
	long := strings.Repeat("x", 256)
	tests := []struct {
		name string
		want string
	}{
		{"daily", "daily"},
		{"Zoë ✓", "Zoë ✓"},
		{"new\nline \xff", "new\nline \xff"},
		{"...", "..."},
		{"-rf", "-rf"},
		{"", one},
		{".", "_-" + one},
		{"..", "__-" + one},
		{"a/b", "a_b-" + one},
		{"/", "_-" + one},
		{"a\x00b", "a_b-" + one},
		{long[:255], long[:255]},
		{long, long[:218] + "-" + one},
		{strings.Repeat("é", 200), strings.Repeat("é", 109) + "-" + one},
		{long[:217] + "ééééééééééééééééééééé", long[:217] + "-" + one},
	}
	for _, test := range tests {
		if got := shownNames([]named{{test.name, id(1)}})[0]; got != test.want {
			t.Errorf("%q is shown as %q, want %q", test.name, got, test.want)
		}
	}

	groups := []struct {
		names, want []string
	}{
		{[]string{"a", "b"}, []string{"a", "b"}},
		{[]string{"a", "a"}, []string{"a-" + one, "a-" + two}},
		// What the first becomes is what the second is called.
		{[]string{"a/b", "a_b-" + one}, []string{"a_b-" + one, "a_b-" + one + "-" + two}},
		{[]string{"a/b", "a_b"}, []string{"a_b-" + one, "a_b"}},
	}
	for _, g := range groups {
		things := make([]named, len(g.names))
		for i, name := range g.names {
			things[i] = named{name, id(byte(i + 1))}
		}
		if got := shownNames(things); !slices.Equal(got, g.want) {
			t.Errorf("%q are shown as %q, want %q", g.names, got, g.want)
		}
	}
}

// Whatever the names are, they are shown as distinct path elements.
func FuzzShownNames(f *testing.F) {
	f.Add("a", "a", "a/b")
	f.Add("", ".", "..")
	f.Add("a/b", "a_b-"+id(1).String(), "a_b-"+id(1).String()+"-"+id(2).String())
	f.Add(strings.Repeat("é", 300), strings.Repeat("\xa9", 300), "\x00")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		shown := shownNames([]named{{a, id(1)}, {b, id(2)}, {c, id(3)}, {a, id(4)}})
		for i, s := range shown {
			if s == "" || s == "." || s == ".." || len(s) > maxName || strings.ContainsAny(s, "/\x00") {
				t.Errorf("%q is no path element", s)
			}
			if slices.Contains(shown[:i], s) {
				t.Errorf("%q is shown twice: %q", s, shown)
			}
		}
		if utf8.ValidString(a) && !utf8.ValidString(shown[0]) {
			t.Errorf("%q is shown as %q: a character is cut in two", a, shown[0])
		}
	})
}

// newTestTree makes a tree, and numbers from 2 on.
func newTestTree(images []Image, prev *tree, last *uint64) *tree {
	return newTree(images, prev, func() uint64 { *last++; return *last })
}

// paths returns the shown paths, in order.
func (t *tree) paths() []string {
	var all []string
	for _, f := range t.folders {
		for _, e := range f.entries {
			all = append(all, f.name+"/"+e.name)
		}
	}
	return all
}

func TestTreeNames(t *testing.T) {
	s := func(n byte) string { return "-" + id(n).String() }
	tests := []struct {
		what   string
		images []Image
		want   []string
	}{
		{"nothing", nil, nil},
		{"two volumes", []Image{
			{ID: id(1), Volume: "v", Name: "a"}, {ID: id(2), Volume: "v", Name: "b"}, {ID: id(3), Volume: "w", Name: "a"},
		}, []string{"v/a", "v/b", "w/a"}},
		{"a snapshot and a backup of one name", []Image{
			{ID: id(1), VolumeID: id(9), Volume: "v", Name: "a"}, {ID: id(2), VolumeID: id(9), Volume: "v", Name: "a"},
		}, []string{"v/a" + s(1), "v/a" + s(2)}},
		{"two volumes of one name", []Image{
			{ID: id(1), VolumeID: id(8), Volume: "v", Name: "a"}, {ID: id(2), VolumeID: id(9), Volume: "v", Name: "a"},
		}, []string{"v" + s(8) + "/a", "v" + s(9) + "/a"}},
		{"a renamed volume", []Image{
			{ID: id(1), VolumeID: id(8), Volume: "old", Name: "a"}, {ID: id(2), VolumeID: id(8), Volume: "new", Name: "a"},
		}, []string{"new/a", "old/a"}},
		{"volumes without an ID that would be shown alike", []Image{
			{ID: id(1), Volume: "v/w", Name: "a"}, {ID: id(2), Volume: "v\x00w", Name: "a"},
		}, []string{"v_w" + s(0) + "/a" + s(1), "v_w" + s(0) + "/a" + s(2)}},
		{"one ID twice", []Image{
			{ID: id(1), Volume: "v", Name: "a"}, {ID: id(1), Volume: "v", Name: "b"},
		}, []string{"v/a"}},
	}
	for _, test := range tests {
		var last uint64 = 1
		if got := newTestTree(test.images, &tree{}, &last).paths(); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.what, got, test.want)
		}
	}
}

// Model: random lists one after the other. Each image is found under its path,
// inode numbers are distinct and stay, and the order of a list does not matter.
func TestTreeModel(t *testing.T) {
	for seed := range uint64(10) {
		testTreeModel(t, seed)
	}
}

func testTreeModel(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	names := []string{"a", "b", "", ".", "a/b", "a_b", "a_b-" + id(3).String()}
	prev, last := &tree{}, uint64(rootIno)
	owner := map[uint64]string{rootIno: "root"}
	for range 200 {
		var images []Image
		for n := range byte(12) {
			if rng.IntN(2) == 0 {
				images = append(images, Image{
					ID: id(n), VolumeID: id(n % 2), Volume: names[rng.IntN(2)], Name: names[rng.IntN(len(names))],
					Size: int64(rng.IntN(3)-1) * 5000, Time: time.Unix(int64(n), 0),
				})
			}
		}
		next := newTestTree(images, prev, &last)
		rng.Shuffle(len(images), func(i, j int) { images[i], images[j] = images[j], images[i] })
		again := newTestTree(images, next, &last)
		if !slices.Equal(next.paths(), again.paths()) {
			t.Fatalf("seed %d: the order of the list changes the tree:\n%q\n%q", seed, next.paths(), again.paths())
		}
		seen := map[uint64]bool{}
		number := func(ino uint64, what string, isNew bool) {
			if seen[ino] || ino <= rootIno || !isNew && owner[ino] != what || isNew && owner[ino] != "" {
				t.Fatalf("seed %d: inode %d of %s, was of %q", seed, ino, what, owner[ino])
			}
			seen[ino], owner[ino] = true, what
		}
		count := 0
		for _, f := range next.folders {
			number(f.ino, "folder "+f.name, prev.folder(f.name) == nil)
			for _, e := range f.entries {
				count++
				if next.folder(f.name).entry(e.name) != e {
					t.Fatalf("seed %d: %s/%s is not found", seed, f.name, e.name)
				}
				isNew := prev.images[e.ID] == nil
				number(e.ino, "image "+e.ID.String(), isNew)
				number(e.diskIno, "disk "+e.ID.String(), isNew)
				if e.Size < 0 || e.Time.After(f.time) || f.time.After(next.time) {
					t.Fatalf("seed %d: size or time of %s/%s", seed, f.name, e.name)
				}
			}
		}
		if count != len(images) {
			t.Fatalf("seed %d: %d images are shown, want %d", seed, count, len(images))
		}
		prev = again
	}
}
