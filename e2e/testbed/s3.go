package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// An S3Server speaks S3 at URL, with buckets in the path, or in front of
// S3Domain.
type S3Server struct {
	URL     string   // http://127.0.0.1:port; https where there is a CAFile
	CAFile  string   // PEM; empty: the server speaks no TLS
	Process *Process // nil for Swift's S3 interface

	env map[string]string
}

// Env returns the credentials and the region, in the variables they are
// usually read from. The endpoint is URL.
func (s *S3Server) Env() map[string]string {
	return copyEnv(s.env)
}

var sharedS3, sharedS3TLS shared[*S3Server]

// S3 starts versitygw, an S3 server over a folder.
func S3(t testing.TB) *S3Server {
	t.Helper()
	return sharedS3.get(t, func(b *bed) (*S3Server, error) { return startS3(b, false) })
}

// S3TLS is S3 with a certificate that CAFile's authority has signed.
func S3TLS(t testing.TB) *S3Server {
	t.Helper()
	return sharedS3TLS.get(t, func(b *bed) (*S3Server, error) { return startS3(b, true) })
}

func startS3(b *bed, tls bool) (*S3Server, error) {
	program, err := versitygw()
	if err != nil {
		return nil, err
	}
	folder, err := b.newFolder()
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	if err := writeFiles(folder, map[string]string{"iam/.keep": "", "versions/.keep": "", "data/.keep": ""}); err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", ports[0])
	s := &S3Server{
		URL: "http://" + address,
		env: map[string]string{"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "tester-s3cret", "AWS_REGION": "us-east-1"},
	}
	args := []string{program, "--keep-alive", "--quiet", "--port", address, "--iam-dir", filepath.Join(folder, "iam"), "--virtual-domain", S3Domain}
	if tls {
		if err := writeCertificates(folder, S3Domain, "*."+S3Domain); err != nil {
			return nil, err
		}
		s.URL, s.CAFile = "https://"+address, filepath.Join(folder, "ca.pem")
		args = append(args, "--cert", filepath.Join(folder, "cert.pem"), "--key", filepath.Join(folder, "key.pem"))
	}
	args = append(args, "posix", "--versioning-dir", filepath.Join(folder, "versions"), filepath.Join(folder, "data"))
	s.Process, err = b.start(folder, ports[0], []string{"ROOT_ACCESS_KEY=testkey", "ROOT_SECRET_KEY=tester-s3cret"}, args...)
	if err != nil {
		return nil, err
	}
	return s, s.Process.ready()
}

// versitygw returns the path of the server. It is a tool of the module
// e2e/tools, so that what it depends on stays out of ours, and is built into
// the folder .tools when it is not there or of another version.
func versitygw() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "install", "tool")
	build.Dir = filepath.Join(root, "e2e", "tools")
	build.Env = append(os.Environ(), "GOBIN="+filepath.Join(root, ".tools"), "GOFLAGS=-mod=readonly", "GOWORK=off", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build of e2e/tools: %w\n%s", err, lastBytes(out))
	}
	return filepath.Join(root, ".tools", "versitygw"), nil
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	file := strings.TrimSpace(string(out))
	if file == "" || file == os.DevNull {
		return "", fmt.Errorf("the test does not run inside the source tree")
	}
	return filepath.Dir(file), nil
}
