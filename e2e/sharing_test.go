package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/e2e/testbed"
)

// A sharing is a target of two hosts, and what a test does to it behind their
// backs.
type sharing struct {
	url  [2]string // as each host has it
	env  [2][]string
	put  func(object string, data []byte) // writes over an object
	away func()                           // from host 1
	back func()
	age  func(time.Duration) // makes all that is there older; nil: nobody can
}

func sharedFolder(t *testing.T) sharing {
	dir := filepath.Join(t.TempDir(), "target")
	move := func(from, to string) func() {
		return func() {
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return sharing{
		url: [2]string{"file://" + dir, "file://" + dir},
		put: func(object string, data []byte) {
			path := filepath.Join(dir, object)
			if _, err := os.Stat(path); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		away: move(dir, dir+".away"), back: move(dir+".away", dir),
		age: func(by time.Duration) {
			if err := ageFiles(dir, by); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// ageFiles gives all files below a folder an earlier time: it is what the store
// in a folder says of its objects.
func ageFiles(dir string, by time.Duration) error {
	return filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		then := info.ModTime().Add(-by)
		return os.Chtimes(path, then, then)
	})
}

func sharedS3(t *testing.T) sharing {
	s := testbed.S3(t)
	proxy := testbed.NewProxy(t, s.URL)
	bucket := fmt.Sprintf("varve-two-%d", time.Now().UnixNano())
	env := s.Env()
	return sharing{
		url: [2]string{"s3://" + bucket + "/x?endpoint=" + s.URL, "s3://" + bucket + "/x?endpoint=http://" + proxy.Address},
		env: [2][]string{words(env), words(env)},
		put: func(object string, data []byte) {
			upload(t, s.URL+"/"+bucket+"/x/"+object, data, "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD",
				"--aws-sigv4", "aws:amz:"+env["AWS_REGION"]+":s3", "--user", env["AWS_ACCESS_KEY_ID"]+":"+env["AWS_SECRET_ACCESS_KEY"])
		},
		away: proxy.Hang, back: proxy.Heal,
	}
}

func sharedSwift(t *testing.T) sharing {
	s := testbed.Swift(t)
	proxy := testbed.NewProxy(t, s.URL)
	container := fmt.Sprintf("varve-two-%d", time.Now().UnixNano())
	url := "swift://" + container + "/x"
	return sharing{
		url: [2]string{url, url},
		env: [2][]string{words(s.Env()), words(s.EnvVia(proxy.Address))},
		put: func(object string, data []byte) {
			env := s.Env()
			head := client(t, "curl", "-fsS", "-o", "/dev/null", "-D", "-", "-H", "X-Auth-User: "+env["ST_USER"], "-H", "X-Auth-Key: "+env["ST_KEY"], env["ST_AUTH"])
			upload(t, header(head, "X-Storage-Url")+"/"+container+"/x/"+object, data, "-H", "X-Auth-Token: "+header(head, "X-Auth-Token"))
		},
		away: proxy.Hang, back: proxy.Heal,
	}
}

// upload puts an object with curl.
func upload(t *testing.T, url string, data []byte, args ...string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "object")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	client(t, "curl", append(args, "-fsS", "-o", "/dev/null", "-T", path, url)...)
}

// header is the value of a field of an answer's head.
func header(head, name string) string {
	for line := range strings.Lines(head) {
		if field, value, _ := strings.Cut(line, ":"); strings.EqualFold(field, name) {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
