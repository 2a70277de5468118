package s3_test

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	amazon "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"varve/agent/object"
	"varve/agent/object/s3"
	"varve/e2e/testbed"
)

// In a bucket with object lock and a default retention everything works: nothing
// is written twice, and what is deleted is hidden, and kept behind a marker.
func TestObjectLock(t *testing.T) {
	server := testbed.S3(t)
	env := server.Env()
	u := bucket(server.URL)
	client := amazon.New(amazon.Options{
		Region: env["AWS_REGION"], BaseEndpoint: &server.URL, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], ""),
	})
	_, err := client.CreateBucket(t.Context(), &amazon.CreateBucketInput{Bucket: &u.Container, ObjectLockEnabledForBucket: aws.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.PutObjectLockConfiguration(t.Context(), &amazon.PutObjectLockConfigurationInput{
		Bucket: &u.Container, ObjectLockConfiguration: &types.ObjectLockConfiguration{
			ObjectLockEnabled: types.ObjectLockEnabledEnabled,
			Rule: &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{
				Days: aws.Int32(1), Mode: types.ObjectLockRetentionModeCompliance,
			}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := s3.Open(t.Context(), u, env)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := s.Put(t.Context(), name, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, names := range [][]string{{"a"}, {"b", "c"}} {
		if err := s.Delete(t.Context(), names...); err != nil {
			t.Errorf("delete %v: %v", names, err)
		}
	}
	for info, err := range s.List(t.Context(), "") {
		t.Errorf("%v is listed, %v", info, err)
	}
	if _, err := s.Get(t.Context(), "a", make([]byte, 1), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a deleted object: %v", err)
	}
	versions, err := client.ListObjectVersions(t.Context(), &amazon.ListObjectVersionsInput{Bucket: &u.Container})
	if err != nil || len(versions.Versions) != 3 {
		t.Fatalf("%d versions are kept, %v; want 3", len(versions.Versions), err)
	}
	_, err = client.DeleteObject(t.Context(), &amazon.DeleteObjectInput{
		Bucket: &u.Container, Key: versions.Versions[0].Key, VersionId: versions.Versions[0].VersionId,
	})
	if err == nil {
		t.Error("a version under compliance was deleted: the server retains nothing, and this test proves nothing")
	}
}

// Where deletions are refused, those that can go go, and the error names the
// others.
func TestDeleteRetained(t *testing.T) {
	const refusal = "<Code>AccessDenied</Code><Message>Access Denied because object protected by object lock.</Message>"
	for _, c := range []struct {
		names []string
		code  int
		body  string
		want  []string
	}{
		{[]string{"a"}, 403, "<Error>" + refusal + "</Error>", []string{"a"}},
		{[]string{"a"}, 409, "<Error><Code>ObjectUnderRetention</Code></Error>", []string{"a"}},
		{[]string{"a"}, 451, "", []string{"a"}},
		{[]string{"a", "b", "c"}, 200, "<DeleteResult><Error><Key>KEY/a</Key>" + refusal + "</Error><Error><Key>KEY/c</Key>" + refusal + "</Error></DeleteResult>", []string{"a", "c"}},
		{[]string{"a"}, 403, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>", nil},
	} {
		s := stub(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(c.code)
			body := c.body
			if strings.Contains(body, "KEY/") {
				request, _ := io.ReadAll(r.Body)
				key := string(request)[bytes.Index(request, []byte("<Key>"))+5:]
				key, _, _ = strings.Cut(key, "</Key>")
				body = strings.ReplaceAll(body, "KEY/a", key)
				body = strings.ReplaceAll(body, "KEY/c", strings.TrimSuffix(key, "a")+"c")
			}
			fmt.Fprint(w, body)
		})
		err := s.Delete(t.Context(), c.names...)
		var held *object.RetainedError
		switch {
		case c.want == nil:
			if errors.As(err, &held) || !errors.Is(err, fs.ErrPermission) {
				t.Errorf("%d %s: got %v, want a refusal", c.code, c.body, err)
			}
		case !errors.As(err, &held) || !slices.Equal(held.Names, c.want):
			t.Errorf("%d %s: got %v, want an error that names %v", c.code, c.body, err, c.want)
		}
	}
}

// A server that wants a Content-MD5 gets one, from its first refusal on.
func TestContentMD5(t *testing.T) {
	data := bytes.Repeat([]byte("x"), 200_000)
	sum := md5.Sum(data)
	want := base64.StdEncoding.EncodeToString(sum[:])
	var sums []string
	s := stub(t, func(w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("the server got %d bytes, %v", len(got), err)
		}
		sums = append(sums, r.Header.Get("Content-MD5"))
		if r.Header.Get("Content-MD5") != want {
			w.WriteHeader(400)
			fmt.Fprint(w, "<Error><Code>InvalidRequest</Code><Message>Content-MD5 OR x-amz-checksum- HTTP header is required for "+
				"Put Object requests with Object Lock parameters</Message></Error>")
		}
	})
	for range 2 {
		if err := s.Put(t.Context(), "a", data); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(sums, []string{"", want, want}) {
		t.Errorf("the sums that were sent: %q", sums)
	}
}

// Large objects get the target's storage class; a session's token goes along.
func TestStorageClassAndToken(t *testing.T) {
	classes := map[string]string{}
	server := stubServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Amz-Security-Token") != "the-token" {
			t.Errorf("%s without the token", r.Method)
		}
		if r.Method == http.MethodPut {
			classes[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/'):]] = r.Header.Get("X-Amz-Storage-Class")
			return
		}
		fmt.Fprint(w, `<ListBucketResult></ListBucketResult>`)
	})
	u := bucket(server)
	u.StorageClass = "STANDARD_IA"
	s, err := s3.Open(t.Context(), u, map[string]string{"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": "the-token"})
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"small": 1000, "large": 128 << 10} {
		if err := s.Put(t.Context(), name, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	if classes["/small"] != "" || classes["/large"] != "STANDARD_IA" {
		t.Errorf("storage classes: %q", classes)
	}
}
