package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestStatementsAreProved holds the table of docs/testing.md to the tests: each
// statement on backups, on the catalog and on maintenance has a row, what a row
// names is there, and the file that it is in names the statement.
func TestStatementsAreProved(t *testing.T) {
	files := testFiles(t)
	rows := map[string][]string{} // by id: what its row names
	for _, m := range regexp.MustCompile(`(?m)^\| ([ABCM]\d+) \|.*\| (.*) \|$`).FindAllStringSubmatch(string(readFile(t, "../docs/testing.md")), -1) {
		for _, name := range regexp.MustCompile("`(Test\\w+|[a-z_]+)`").FindAllStringSubmatch(m[2], -1) {
			rows[m[1]] = append(rows[m[1]], name[1])
		}
	}
	for series, count := range map[string]int{"A": 10, "B": 20, "C": 5, "M": 1} {
		for i := range count {
			id := fmt.Sprint(series, i+1)
			if len(rows[id]) == 0 {
				t.Errorf("docs/testing.md names nothing that proves %s", id)
			}
			for _, name := range rows[id] {
				if !proves(files, name, id) {
					t.Errorf("docs/testing.md says that %s proves %s: no file has a test or script of that name and names %s", name, id, id)
				}
			}
		}
	}
}

// proves reports whether a file names the statement and is the script of that
// name, or has the test.
func proves(files map[string]string, name, id string) bool {
	statement := regexp.MustCompile(`\b` + id + `\b`)
	for path, text := range files {
		is := filepath.Base(path) == name+".txtar" || strings.Contains(text, "\nfunc "+name+"(")
		if is && statement.MatchString(text) {
			return true
		}
	}
	return false
}

// testFiles are the sources of all tests and scripts, by their path.
func testFiles(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".txtar") {
			text, err := os.ReadFile(path)
			files[path] = string(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
