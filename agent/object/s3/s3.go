// Package s3 keeps objects in a bucket of Amazon S3 or of a server that speaks
// its protocol: MinIO, Ceph, versitygw, Swift's s3api.
//
// The data of an object is one S3 object of the same name behind the prefix,
// sent by one request: no multipart uploads, no metadata, no versions. Only
// calls are used that all of these servers know.
package s3

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"varve/agent/object"
)

// pageSize is how many names are listed or deleted by one request: S3's limit
// for both.
const pageSize = 1000

// Open returns the Store in a bucket that exists. env holds the credentials in
// the usual variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
// AWS_SESSION_TOKEN, or AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE and
// AWS_CONFIG_FILE; AWS_REGION, AWS_ENDPOINT_URL_S3 and AWS_CA_BUNDLE count
// too. The process's own environment is not looked at, and no metadata service
// is asked.
func Open(ctx context.Context, u object.URL, env map[string]string) (object.Store, error) {
	return open(ctx, u, env, false)
}

// Create is Open, but makes the bucket if it is not there.
func Create(ctx context.Context, u object.URL, env map[string]string) (object.Store, error) {
	return open(ctx, u, env, true)
}

type store struct {
	client         *s3.Client
	bucket, prefix string
	where          string // for errors
	class          types.StorageClass
	sums           atomic.Bool // the bucket wants a Content-MD5 with each object
	oneByOne       atomic.Bool // the server has no request that deletes several objects
}

func open(ctx context.Context, u object.URL, env map[string]string, create bool) (object.Store, error) {
	fail := func(err error) error { return &object.Error{Op: "open", Store: u.String(), Err: err} }
	settings, err := readSettings(ctx, u, env)
	if err != nil {
		return nil, fail(err)
	}
	c, err := settings.client()
	if err != nil {
		return nil, fail(err)
	}
	s := &store{client: c, bucket: u.Container, prefix: u.Prefix, where: u.String(), class: types.StorageClass(u.StorageClass)}
	err = s.probe(ctx)
	if errors.Is(err, errBucket) && create {
		err = s.createBucket(ctx, settings)
	}
	if errors.Is(err, errBucket) {
		err = fail(fmt.Errorf("there is no bucket %q at this endpoint: %w", s.bucket, object.ErrNoContainer))
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// probe finds out whether the bucket is there and may be listed. HeadBucket
// would be shorter, but has no body to say what is wrong.
func (s *store) probe(ctx context.Context) error {
	_, err := s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: aws.String(s.key("")), MaxKeys: aws.Int32(1)})
	if err != nil {
		return s.fail(ctx, "open", "", err)
	}
	return nil
}

func (s *store) createBucket(ctx context.Context, settings settings) error {
	input := &s3.CreateBucketInput{Bucket: &s.bucket}
	if settings.region != "us-east-1" { // which S3 wants left out
		input.CreateBucketConfiguration = &types.CreateBucketConfiguration{
			LocationConstraint: types.BucketLocationConstraint(settings.region),
		}
	}
	_, err := s.client.CreateBucket(ctx, input)
	var ours *types.BucketAlreadyOwnedByYou // somebody was quicker
	if err != nil && !errors.As(err, &ours) {
		return s.fail(ctx, "create the bucket", "", err)
	}
	return nil
}

// key returns the name of the object in the bucket.
func (s *store) key(name string) string { return object.Join(s.prefix, name) }

func (s *store) Put(ctx context.Context, name string, data []byte) error {
	if err := s.check(ctx, "put", name); err != nil {
		return err
	}
	body := object.NewUpload(data)
	defer body.Release()
	input := &s3.PutObjectInput{
		Bucket: &s.bucket, Key: aws.String(s.key(name)), Body: body, ContentLength: aws.Int64(int64(len(data))),
		ContentType: aws.String("application/octet-stream"),
	}
	if len(data) >= leastClassed {
		input.StorageClass = s.class
	}
	if s.sums.Load() {
		addMD5(input, data)
	}
	_, err := s.client.PutObject(ctx, input)
	if a, found := readAnswer(err); found && a.wantsMD5() && input.ContentMD5 == nil {
		// A bucket with a default retention takes no object without it: Amazon S3
		// user guide, "Object Lock considerations".
		s.sums.Store(true)
		addMD5(input, data)
		if _, err := body.Seek(0, io.SeekStart); err != nil {
			return s.fail(ctx, "put", name, err)
		}
		_, err = s.client.PutObject(ctx, input)
	}
	if err != nil {
		return s.fail(ctx, "put", name, err)
	}
	return nil
}

// leastClassed is the size of the smallest objects that get the target's storage
// class, in bytes. The classes for what is seldom read bill smaller ones as if
// they had it: Amazon S3 user guide, "Understanding storage classes".
const leastClassed = 128 << 10

func addMD5(input *s3.PutObjectInput, data []byte) {
	sum := md5.Sum(data)
	input.ContentMD5 = aws.String(base64.StdEncoding.EncodeToString(sum[:]))
}

func (s *store) Get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := s.check(ctx, "get", name); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, s.fail(ctx, "get", name, errors.New("negative offset"))
	}
	if len(p) == 0 {
		// One byte tells whether the object is there, and goes on to off.
		n, err := s.Get(ctx, name, make([]byte, 1), off)
		if n == 1 {
			return 0, nil
		}
		return 0, err
	}
	n, err := s.get(ctx, name, p, off)
	if err != nil && err != io.EOF {
		return n, s.fail(ctx, "get", name, err)
	}
	return n, err
}

func (s *store) get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	// Ends a body that is not read to its end.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{
		Bucket: &s.bucket, Key: aws.String(s.key(name)), Range: aws.String(object.Range(off, len(p))),
	})
	if a, found := readAnswer(err); found && (a.code == "InvalidRange" || a.status == http.StatusRequestedRangeNotSatisfiable) {
		return 0, io.EOF
	}
	if err != nil {
		return 0, err
	}
	defer out.Body.Close() // read as far as it matters
	length := int64(-1)
	if out.ContentLength != nil {
		length = *out.ContentLength
	}
	return object.ReadRange(p, off, out.Body, length, aws.ToString(out.ContentRange))
}

func (s *store) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		input := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: aws.String(s.key(prefix)), MaxKeys: aws.Int32(pageSize)}
		last := ""
		for {
			page, err := s.client.ListObjectsV2(ctx, input)
			if err != nil {
				yield(object.Info{}, s.fail(ctx, "list", prefix, err))
				return
			}
			for _, o := range page.Contents {
				key := aws.ToString(o.Key)
				if key <= last {
					yield(object.Info{}, s.fail(ctx, "list", prefix, fmt.Errorf("the server lists %q behind %q", key, last)))
					return
				}
				last = key
				name, ours := strings.CutPrefix(key, s.key(""))
				if !ours || object.CheckName(name) != nil {
					continue // something else in the same bucket
				}
				if !yield(object.Info{Name: name, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}, nil) {
					return
				}
			}
			if !aws.ToBool(page.IsTruncated) {
				return
			}
			if input.ContinuationToken = page.NextContinuationToken; input.ContinuationToken == nil || len(page.Contents) == 0 {
				yield(object.Info{}, s.fail(ctx, "list", prefix, errors.New("the server says that there is more, but not how to go on")))
				return
			}
		}
	}
}

// check is what every operation on names begins with.
func (s *store) check(ctx context.Context, op, name string) error {
	if err := ctx.Err(); err != nil {
		return s.fail(ctx, op, name, err)
	}
	if err := object.CheckName(name); err != nil {
		return s.fail(ctx, op, name, err)
	}
	return nil
}
