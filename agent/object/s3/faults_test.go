package s3_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/agent/object/s3"
	"varve/e2e/testbed"
)

const secret = "hunter2"

func with(env map[string]string, changes ...string) map[string]string {
	out := maps.Clone(env)
	for i := 0; i < len(changes); i += 2 {
		out[changes[i]] = changes[i+1]
	}
	return out
}

// file writes a file of the AWS command line's.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCredentialFiles(t *testing.T) {
	server := testbed.S3(t)
	env := server.Env()
	keys := fmt.Sprintf("[backup]\naws_access_key_id = %s\naws_secret_access_key = %s\n", env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"])
	u := bucket("")
	_, err := s3.Create(t.Context(), u, map[string]string{
		"AWS_PROFILE":                 "backup",
		"AWS_SHARED_CREDENTIALS_FILE": file(t, keys),
		"AWS_CONFIG_FILE":             file(t, "[profile backup]\nregion = us-east-1\nendpoint_url = "+server.URL+"\n"),
	})
	if err != nil {
		t.Error(err)
	}
}

func TestOpenErrors(t *testing.T) {
	server := testbed.S3(t)
	env := server.Env()
	for _, c := range []struct {
		name    string
		u       object.URL
		env     map[string]string
		hint    string
		refused bool // is fs.ErrPermission
	}{
		{"nothing", bucket(server.URL), nil, "set AWS_ACCESS_KEY_ID", true},
		{"no secret", bucket(server.URL), with(env, "AWS_SECRET_ACCESS_KEY", ""), "AWS_SECRET_ACCESS_KEY is missing", true},
		{"no key", bucket(server.URL), with(env, "AWS_ACCESS_KEY_ID", ""), "AWS_ACCESS_KEY_ID is missing", true},
		{"wrong secret", bucket(server.URL), with(env, "AWS_SECRET_ACCESS_KEY", secret), "SignatureDoesNotMatch", true},
		{"unknown key", bucket(server.URL), with(env, "AWS_ACCESS_KEY_ID", "nobody"), "InvalidAccessKeyId", true},
		{"no region", bucket(""), with(env, "AWS_REGION", ""), "AWS_REGION", false},
		{"bad endpoint", bucket(""), with(env, "AWS_ENDPOINT_URL", "u:"+secret+"@host"), "AWS_ENDPOINT_URL", false},
		{"password in the endpoint", bucket(""), with(env, "AWS_ENDPOINT_URL", "http://u:"+secret+"@host"), "AWS_ENDPOINT_URL", false},
		{"server is down", bucket("http://127.0.0.1:1"), env, "refused", false},
		{"no such file", bucket(server.URL), with(env, "AWS_CA_BUNDLE", "/nowhere/ca.pem"), "/nowhere/ca.pem", false},
		{"no certificate", bucket(server.URL), with(env, "AWS_CA_BUNDLE", file(t, secret)), "no certificate", false},
		{"no such profile", bucket(server.URL), map[string]string{"AWS_PROFILE": "nope", "AWS_CONFIG_FILE": file(t, "")}, `"nope"`, false},
		{"a profile that runs a program", bucket(server.URL),
			map[string]string{"AWS_CONFIG_FILE": file(t, "[default]\ncredential_process = touch /nowhere\n")}, "not supported", false},
	} {
		_, err := s3.Open(t.Context(), c.u, c.env)
		if err == nil || !strings.Contains(err.Error(), c.hint) || errors.Is(err, fs.ErrPermission) != c.refused {
			t.Errorf("%s: got %v; want an error that says %q, permission: %v", c.name, err, c.hint, c.refused)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error tells the secret: %v", c.name, err)
		}
	}
}

// stubServer starts a server that answers as it likes.
func stubServer(t *testing.T, answer http.HandlerFunc) (url string) {
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return server.URL
}

// stub opens a store whose server answers as it likes once it is open.
func stub(t *testing.T, answer http.HandlerFunc) object.Store {
	t.Helper()
	opened := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !opened {
			opened = true
			fmt.Fprint(w, `<ListBucketResult></ListBucketResult>`)
			return
		}
		answer(w, r)
	}))
	t.Cleanup(server.Close)
	s, err := s3.Open(t.Context(), bucket(server.URL), map[string]string{"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": secret})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestServerAnswers(t *testing.T) {
	for _, c := range []struct {
		code      int
		body      string
		temporary bool
		is        error
	}{
		{503, "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>", true, nil},
		{500, "", true, nil},
		{503, "<html>not S3 at all", true, nil},
		{400, "<Error><Code>RequestTimeout</Code></Error>", true, nil},
		{400, "<Error><Code>BadDigest</Code></Error>", true, nil},
		{400, "<Error><Code>InvalidRequest</Code><Message>" + strings.Repeat("x\n", 9000) + "</Message></Error>", false, nil},
		{400, "<Error><Code>ExpiredToken</Code></Error>", false, fs.ErrPermission},
		{403, "<Error><Code>RequestTimeTooSkewed</Code></Error>", false, fs.ErrPermission},
		{403, "", false, fs.ErrPermission},
		{501, "<Error><Code>NotImplemented</Code></Error>", false, nil},
		{404, "<Error><Code>NoSuchBucket</Code></Error>", false, object.ErrNoContainer},
		{301, "<Error><Code>PermanentRedirect</Code></Error>", false, nil},
	} {
		calls := 0
		s := stub(t, func(w http.ResponseWriter, r *http.Request) {
			calls++
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(c.code)
			fmt.Fprint(w, c.body)
		})
		err := s.Put(t.Context(), "a", []byte("x"))
		var e *object.Error
		if !errors.As(err, &e) || e.Temporary != c.temporary || e.RetryAfter != 7*time.Second || calls != 1 {
			t.Errorf("%d %.50s: got %v after %d requests; want temporary %v, Retry-After 7s, 1 request", c.code, c.body, err, calls, c.temporary)
			continue
		}
		if c.is != nil && !errors.Is(err, c.is) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d %.50s: got %v, want it to be %v", c.code, c.body, err, c.is)
		}
		if len(err.Error()) > 500 || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%d %.50s: the error is not for people: %v", c.code, c.body, err)
		}
	}
}

// Whatever a server says about ranges, Get never passes other bytes off as
// those that were asked for.
func TestGetWrongAnswers(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"ignores the range": func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 100)) },
		"another range": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-9/100")
			w.WriteHeader(206)
			w.Write(make([]byte, 10))
		},
	} {
		n, err := stub(t, answer).Get(t.Context(), "a", make([]byte, 10), 10)
		if e := new(object.Error); !errors.As(err, &e) || n != 0 {
			t.Errorf("%s: got %d bytes, %v; want none and an error", name, n, err)
		}
	}
}

// A listing that goes in circles ends.
func TestListInCircles(t *testing.T) {
	for name, page := range map[string]string{
		"the same page again": `<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken><Contents><Key>a</Key><Size>1</Size></Contents></ListBucketResult>`,
		"no way on":           `<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>a</Key><Size>1</Size></Contents></ListBucketResult>`,
		"empty pages":         `<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></ListBucketResult>`,
	} {
		s := stub(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, page) })
		count := 0
		var last error
		for _, err := range s.List(t.Context(), "") {
			count++
			last = err
		}
		if count > 2 || last == nil {
			t.Errorf("%s: List ended after %d with %v", name, count, last)
		}
	}
}

// A multi-object delete says of each object what became of it.
func TestDeleteSomeRefused(t *testing.T) {
	s := stub(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `<DeleteResult><Error><Key>a</Key><Code>NoSuchKey</Code></Error>`+
			`<Error><Key>b</Key><Code>AccessDenied</Code><Message>retained</Message></Error></DeleteResult>`)
	})
	err := s.Delete(t.Context(), "a", "b")
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "delete b") || !strings.Contains(err.Error(), "retained") {
		t.Errorf("got %v", err)
	}
}

func TestHostileServer(t *testing.T) { objecttest.RunHostile(t, stub) }
