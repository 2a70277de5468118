package main

import (
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseCredentials(t *testing.T) {
	got, err := parseCredentials([]byte("# openrc\n\nexport OS_USERNAME=demo\nOS_PASSWORD='pa ss$word'\n  export  OS_REGION_NAME=\"eu\"\nST_KEY=\nAWS_SECRET_ACCESS_KEY=a/b+c=\r\n"))
	want := map[string]string{"OS_USERNAME": "demo", "OS_PASSWORD": "pa ss$word", "OS_REGION_NAME": "eu", "ST_KEY": "", "AWS_SECRET_ACCESS_KEY": "a/b+c="}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func TestParseCredentialsRefuses(t *testing.T) {
	for _, text := range []string{
		"OS_PASSWORD", "OS_PASSWORD='s3cret", "OS_PASSWORD=\"s3cret$X\"", "OS_PASSWORD=s3cret word", "OS_PASSWORD=$(s3cret)",
		"1OS=s3cret", "PATH=s3cret", "export OS PASSWORD=s3cret", "OS_PASSWORD='s3'cret'", "=s3cret",
	} {
		_, err := parseCredentials([]byte("OS_USERNAME=u\n" + text + "\n"))
		if err == nil || !strings.Contains(err.Error(), "line 2") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v; want an error that names the line and not the value", text, err)
		}
	}
}

func FuzzParseCredentials(f *testing.F) {
	f.Add([]byte("export OS_PASSWORD='x'\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		vars, err := parseCredentials(data)
		if err != nil && vars != nil {
			t.Errorf("both variables and the error %v", err)
		}
	})
}

func TestCredentialsOfATarget(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rc")
	if err := os.WriteFile(file, []byte("export OS_PASSWORD=file\nAWS_REGION=file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := []string{"OS_PASSWORD=env", "OS_USERNAME=env", "ST_KEY=env", "AWS_ACCESS_KEY_ID=env", "HOME=/h"}
	tests := []struct {
		url  string
		want map[string]string
	}{
		{"swift://c", map[string]string{"OS_PASSWORD": "file", "OS_USERNAME": "env", "ST_KEY": "env"}},
		{"s3://b/p", map[string]string{"AWS_ACCESS_KEY_ID": "env", "AWS_REGION": "file"}},
		{"file:///t", map[string]string{}},
	}
	for _, tt := range tests {
		got, err := credentials(tt.url, environ, file, io.Discard)
		if err != nil || !maps.Equal(got, tt.want) {
			t.Errorf("credentials(%s) = %v, %v; want %v", tt.url, got, err, tt.want)
		}
	}

	// The daemon works in another folder than the user.
	dir := t.TempDir()
	t.Chdir(dir)
	got, err := credentials("swift://c", []string{"OS_CACERT=ca.pem"}, "", io.Discard)
	if want := filepath.Join(dir, "ca.pem"); err != nil || got["OS_CACERT"] != want {
		t.Errorf("a relative path became %q, %v; want %q", got["OS_CACERT"], err, want)
	}
}

func TestSecretSources(t *testing.T) {
	dir := t.TempDir()
	file, empty := filepath.Join(dir, "pass"), filepath.Join(dir, "empty")
	if os.WriteFile(file, []byte("from the file\n"), 0o600) != nil || os.WriteFile(empty, []byte("\n"), 0o600) != nil {
		t.Fatal("write the files")
	}
	env := func(string) string { return "from the environment" }
	none := func(string) string { return "" }
	tests := []struct {
		name       string
		source     secretSource
		want, fail string
	}{
		{"file first", secretSource{file: file, getenv: env}, "from the file", ""},
		{"environment", secretSource{getenv: env}, "from the environment", ""},
		{"empty file", secretSource{file: empty, getenv: env}, "", "is empty"},
		{"missing file", secretSource{file: file + "x", getenv: env}, "", "no such file"},
		{"nothing, no terminal", secretSource{getenv: none}, "", "--passphrase-file"},
		{"key file first", secretSource{keyFile: file, getenv: env}, "from the file\n", ""},
		{"both files", secretSource{keyFile: file, file: file, getenv: env}, "", "give one of them"},
		{"large key file", secretSource{keyFile: "/dev/zero", getenv: env}, "", "larger than"},
	}
	for _, tt := range tests {
		got, err := tt.source.read("t", true)
		if got.passphrase+string(got.keyFile) != tt.want || (err != nil) != (tt.fail != "") || err != nil && !strings.Contains(err.Error(), tt.fail) {
			t.Errorf("%s: %q, %v; want %q, %q", tt.name, got, err, tt.want, tt.fail)
		}
	}
}
