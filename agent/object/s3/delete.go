package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"varve/agent/object"
)

// Delete removes up to a thousand objects by one request, or each by its own
// where the server has no such request: Google's has none.
func (s *store) Delete(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := s.check(ctx, "delete", name); err != nil {
			return err
		}
	}
	if len(names) > 1 && !s.oneByOne.Load() {
		if err := s.deleteInBulk(ctx, names); err != errNoBulk {
			return s.retains(err)
		}
		s.oneByOne.Store(true)
	}
	return s.retains(object.DeleteEach(ctx, names, s.deleteOne))
}

// retains says where it was that objects were retained.
func (s *store) retains(err error) error {
	if held, is := err.(*object.RetainedError); is {
		return &object.Error{Op: "delete", Store: s.where, Err: held}
	}
	return err
}

func (s *store) deleteOne(ctx context.Context, name string) error {
	_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: aws.String(s.key(name))})
	a, found := readAnswer(err)
	switch {
	case err == nil, found && a.code == "NoSuchKey":
		return nil
	case found && a.retained():
		return &object.RetainedError{Names: []string{name}, Said: a.String()}
	}
	return s.fail(ctx, "delete", name, err)
}

// errNoBulk says that a server knows no DeleteObjects.
var errNoBulk = errors.New("the server deletes one object at a time")

// deleteInBulk deletes a page of objects by each request.
func (s *store) deleteInBulk(ctx context.Context, names []string) error {
	var held object.RetainedError
	for batch := range slices.Chunk(names, pageSize) {
		left, err := s.deletePage(ctx, batch, &held)
		if e := new(object.Error); errors.As(err, &e) {
			e.Left = slices.Concat(held.Names, left, names[len(batch):])
		}
		if err != nil {
			return err
		}
		names = names[len(batch):]
	}
	if len(held.Names) > 0 {
		return &held
	}
	return nil
}

// deletePage deletes objects by one request. What is retained it adds to held;
// left is what else remains after an error.
func (s *store) deletePage(ctx context.Context, names []string, held *object.RetainedError) (left []string, err error) {
	objects := make([]types.ObjectIdentifier, len(names))
	for i, name := range names {
		objects[i].Key = aws.String(s.key(name))
	}
	out, err := s.client.DeleteObjects(ctx,
		&s3.DeleteObjectsInput{Bucket: &s.bucket, Delete: &types.Delete{Objects: objects, Quiet: aws.Bool(true)}},
		// The MD5 that older servers insist on here: Swift's s3api does.
		func(o *s3.Options) { o.APIOptions = append(o.APIOptions, smithyhttp.AddContentChecksumMiddleware) })
	if a, found := readAnswer(err); found && a.unknownRequest() {
		return names, errNoBulk
	}
	if err != nil {
		return names, s.fail(ctx, "delete", fmt.Sprintf("%s and %d more", names[0], len(names)-1), err)
	}
	var failed *object.Error // the first, or the first that is final
	for _, e := range out.Errors {
		a := answer{code: aws.ToString(e.Code), message: aws.ToString(e.Message)}
		name := strings.TrimPrefix(aws.ToString(e.Key), s.key(""))
		switch {
		case a.code == "NoSuchKey":
			continue
		case a.retained():
			hold(held, name, a)
			continue
		}
		left = append(left, name)
		if failed == nil || failed.Temporary && !a.temporary() {
			failed = &object.Error{
				Op: "delete", Name: name, Store: s.where, Err: s.explain("delete", a),
				Temporary: a.temporary(), Busy: a.code == "SlowDown" || failed != nil && failed.Busy,
			}
		}
	}
	if failed != nil {
		return left, failed
	}
	return nil, nil
}

func hold(held *object.RetainedError, name string, a answer) {
	if len(held.Names) == 0 {
		held.Said = a.String()
	}
	held.Names = append(held.Names, name)
}

// unknownRequest says whether a server has no such request at all. Google's
// said InvalidArgument to DeleteObjects before it said NotImplemented.
func (a answer) unknownRequest() bool {
	return slices.Contains([]string{"NotImplemented", "MethodNotAllowed", "InvalidArgument"}, a.code) ||
		a.status == http.StatusNotImplemented || a.status == http.StatusMethodNotAllowed
}
