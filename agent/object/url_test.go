package object_test

import (
	"strings"
	"testing"

	"varve/agent/object"
)

func TestParseURL(t *testing.T) {
	for _, c := range []struct {
		text string
		want object.URL
	}{
		{"file:///srv/backups", object.URL{Scheme: "file", Path: "/srv/backups"}},
		{"file:///srv//my%20backups/", object.URL{Scheme: "file", Path: "/srv/my backups"}},
		{"swift://backups", object.URL{Scheme: "swift", Container: "backups"}},
		{"swift://backups/", object.URL{Scheme: "swift", Container: "backups"}},
		{"swift://Backups_1/host/A", object.URL{Scheme: "swift", Container: "Backups_1", Prefix: "host/A"}},
		{"s3://bucket/varve", object.URL{Scheme: "s3", Container: "bucket", Prefix: "varve"}},
		{"s3://bucket?endpoint=https://s3.example.org:9000/&region=eu-1&path-style=1",
			object.URL{Scheme: "s3", Container: "bucket", Endpoint: "https://s3.example.org:9000", Region: "eu-1", PathStyle: "true"}},
		{"s3://bucket/p?path-style=false", object.URL{Scheme: "s3", Container: "bucket", Prefix: "p", PathStyle: "false"}},
		{"s3://bucket?storage-class=STANDARD_IA", object.URL{Scheme: "s3", Container: "bucket", StorageClass: "STANDARD_IA"}},
	} {
		got, err := object.ParseURL(c.text)
		if err != nil || got != c.want {
			t.Errorf("ParseURL(%q): got %+v, %v; want %+v", c.text, got, err, c.want)
			continue
		}
		if again, err := object.ParseURL(got.String()); err != nil || again != got {
			t.Errorf("%q is written as %q, and read back as %+v, %v", c.text, got, again, err)
		}
	}
}

// TestURLReadable: what a user typed is shown as it was typed.
func TestURLReadable(t *testing.T) {
	const text = "s3://bucket/p?endpoint=https://s3.example.org:9000&region=eu-1"
	u, err := object.ParseURL(text)
	if err != nil || u.String() != text {
		t.Errorf("%q is shown as %q, %v", text, u, err)
	}
}

func TestParseURLRefuses(t *testing.T) {
	for _, c := range []struct{ text, hint string }{
		{"", "file:///folder"},
		{"/srv/backups", "file:///srv/backups"},
		{"backups", "file:///folder"},
		{"ftp://host/x", `"ftp"`},
		{"S3://bucket", "s3://bucket/prefix"},
		{"file://srv/backups", "file:///srv/backups"},
		{"file:///", "root folder"},
		{"file://", "no folder"},
		{"file:///x?y=z", `"y"`},
		{"file:///x%00", "zero bytes"},
		{"s3://b?storage-class=", "STANDARD_IA"},
		{"s3://b?storage-class=cold%20one", "STANDARD_IA"},
		{"s3://b?storage-class=DEEP_ARCHIVE", "GLACIER_IR"},
		{"swift://", "no container"},
		{"swift:///prefix", "no container"},
		{"swift://c?region=x", `"region"`},
		{"swift://host:8080/c", "OS_AUTH_URL"},
		{"swift://c/a//b", "empty"},
		{"swift://c/../b", `".."`},
		{"swift://c/a b", `' '`},
		{"swift://c/p#frag", "#"},
		{"s3://b?bogus=1", "endpoint, region, path-style and storage-class"},
		{"s3://b?endpoint=host:9000", "http://host:port"},
		{"s3://b?endpoint=ftp://h", "http://host:port"},
		{"s3://b?endpoint=http://h?x=y", "nothing may follow"},
		{"s3://b?region=", "region is empty"},
		{"s3://b?path-style=maybe", `"maybe"`},
		{"s3://b?region=a&region=b", "2 times"},
		{"s3://b/" + strings.Repeat("x", 501), "longer"},
		{"s3://b/%zz", "invalid URL escape"},
	} {
		_, err := object.ParseURL(c.text)
		if err == nil || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("ParseURL(%.60q): got %v, want an error that says %s", c.text, err, c.hint)
		}
	}
}

func TestParseURLKeepsSecrets(t *testing.T) {
	for _, text := range []string{
		"swift://user:hunter2@container/x",
		"s3://AKIA:hunter2@bucket",
		"s3://AKIA:hun%ter2@bucket",
		"s3://b?endpoint=http://AKIA:hunter2@host",
		"s3://b?secret=hunter2",
		"hunter2@host",
		"ftp://u:hunter2@h/x",
		"file://u:hunter2@/x",
	} {
		_, err := object.ParseURL(text)
		if err == nil {
			t.Errorf("ParseURL(%q) took a secret", text)
		} else if strings.Contains(err.Error(), "ter2") {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("file:///srv/backups")
	f.Add("swift://c/p")
	f.Add("s3://b/p?endpoint=http://[::1]:9000&region=r&path-style=true")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := object.ParseURL(text)
		if err != nil {
			return
		}
		if again, err := object.ParseURL(u.String()); err != nil || again != u {
			t.Errorf("%q is written as %q, and read back as %+v, %v", text, u, again, err)
		}
	})
}
