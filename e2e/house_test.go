package e2e

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "varve/"

// house is the table of docs/design.md, section 2: what each package may
// import of ours. Test files are not held to it: they may also import the
// suites, the test bed and the peers.
var house = map[string][]string{
	"layers":             {},
	"layers/layertest":   {"layers"},
	"layers/qcow2":       {"layers"},
	"nbd":                {"layers"},
	"nbd/nbdtest":        {"layers", "nbd"},
	"nbd/kernel":         {},
	"fuse":               {"layers"},
	"fuse/fusetest":      {"layers", "fuse"},
	"catalog":            {"layers"},
	"agent":              {"layers", "catalog", "agent/freeze", "agent/repo", "agent/object"},
	"agent/api":          {"layers", "catalog", "agent"},
	"agent/repo":         {"layers", "agent/object"},
	"agent/freeze":       {},
	"agent/object":       {},
	"agent/object/swift": {"agent/object"},
	"agent/object/s3":    {"agent/object"},
	"agent/object/objecttest": {
		"agent/object",
	},
	"cmd/varve": {
		"layers", "layers/qcow2", "nbd", "nbd/kernel", "fuse", "catalog", "agent", "agent/api", "agent/freeze", "agent/repo",
		"agent/object", "agent/object/swift", "agent/object/s3",
	},
	"e2e":         {},
	"e2e/testbed": {},
	"e2e/bench":   {},
	"e2e/bench/bareserver": {
		"layers", "nbd",
	},
}

// shared are the libraries that more than one package imports, with those that
// may: two formats say zstd, and each owns what it does with it; go-nbd is also
// a peer that is measured.
var shared = map[string][]string{
	"github.com/klauspost/compress": {"agent/repo", "layers/qcow2"},
	"github.com/pojntfx/go-nbd":     {"e2e/bench/bareserver", "nbd"},
}

// TestHouse holds docs/design.md, section 2, to the code: packages import only
// downward, each package stands in the table, and a third-party library is
// imported by one package only.
func TestHouse(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	users := map[string]map[string]bool{} // library -> packages that import it
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || path == filepath.Join(root, "e2e", "tools")) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		rel, _ := filepath.Rel(root, filepath.Dir(path))
		allowed, ok := house[rel]
		if !ok {
			t.Errorf("%s: package %s does not stand in the table of docs/design.md, section 2", path, rel)
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			name, _ := strconv.Unquote(spec.Path.Value)
			switch {
			case strings.HasPrefix(name, module):
				if ours := strings.TrimPrefix(name, module); !slices.Contains(allowed, ours) {
					t.Errorf("%s imports %s; package %s may import only %v", path, ours, rel, allowed)
				}
			case strings.Contains(name, ".") && !strings.HasPrefix(name, "golang.org/x/"):
				lib := library(name)
				if users[lib] == nil {
					users[lib] = map[string]bool{}
				}
				users[lib][rel] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(users) == 0 {
		t.Fatal("no import of any library found: the test looks at the wrong place")
	}
	for lib, pkgs := range users {
		if names := slices.Sorted(maps.Keys(pkgs)); len(pkgs) > 1 && !slices.Equal(names, shared[lib]) {
			t.Errorf("%s is imported by %v; one package should own it", lib, slices.Sorted(maps.Keys(pkgs)))
		}
	}
}

// library is the part of an import path that names the project: host, owner
// and name.
func library(path string) string {
	parts := strings.SplitN(path, "/", 4)
	return strings.Join(parts[:min(3, len(parts))], "/")
}
