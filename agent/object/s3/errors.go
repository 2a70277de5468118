package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"varve/agent/object"
)

// client sends one request. It follows no redirect: the signature covers the
// host, and the error for it names the right region.
type client struct {
	transport *object.Transport
}

func (c *client) Do(request *http.Request) (*http.Response, error) {
	return (&http.Client{
		Transport:     c.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}).Do(request)
}

// An answer is what a server said instead of doing what it was asked.
type answer struct {
	code    string // S3's, such as NoSuchKey; may be empty
	message string
	status  int // HTTP's; 0 in the list of a multi-object delete
	header  http.Header
}

// readAnswer finds the server's answer in an error of the SDK. found is false
// if there was none.
func readAnswer(err error) (a answer, found bool) {
	var response *smithyhttp.ResponseError
	// Without an answer the SDK makes up an empty one.
	if errors.As(err, &response) && response.Response != nil && response.Response.Response != nil && response.HTTPStatusCode() != 0 {
		found = true
		a.status = response.HTTPStatusCode()
		a.header = response.Response.Header
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		found = true
		a.code, a.message = api.ErrorCode(), api.ErrorMessage()
	}
	return a, found
}

// The codes that S3 explains by more than their HTTP status: Amazon S3 API
// reference, "Error responses", and what other servers say in their place.
var (
	missingCodes   = []string{"NoSuchKey", "NotFound"}
	retainedCodes  = []string{"ObjectLocked", "ObjectUnderRetention", "ObjectInRetentionPeriod"}
	refusedCodes   = []string{"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed", "AccountProblem", "AllAccessDisabled"}
	fullCodes      = []string{"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "StorageFull", "EntityTooLarge"}
	temporaryCodes = []string{"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted"}
)

// fail makes an object.Error of an error of the SDK.
func (s *store) fail(ctx context.Context, op, name string, err error) error {
	out := &object.Error{Op: op, Name: name, Store: s.where, Err: err}
	if cause := object.NetworkCause(ctx, err); ctx.Err() != nil {
		out.Err = cause
	} else if a, found := readAnswer(err); found && a.status != http.StatusOK {
		out.Err = s.explain(op, a)
		out.Temporary = a.temporary()
		out.Busy = a.code == "SlowDown" || object.BusyStatus(a.status)
		out.RetryAfter = object.RetryAfter(a.header, time.Now())
	} else if cause != nil {
		out.Err = cause
		out.Temporary = object.TemporaryNetwork(cause)
	}
	return out
}

func (a answer) temporary() bool {
	if slices.Contains(refusedCodes, a.code) || slices.Contains(fullCodes, a.code) {
		return false
	}
	return slices.Contains(temporaryCodes, a.code) || object.TemporaryStatus(a.status)
}

// wantsMD5 says whether a Put was refused for want of a Content-MD5.
func (a answer) wantsMD5() bool {
	return a.status == http.StatusBadRequest && strings.Contains(strings.ToLower(a.message), "content-md5")
}

// retained says whether a deletion was refused because the object is held. Most
// servers say AccessDenied for it, as for what is no matter of time, and explain
// it in words.
func (a answer) retained() bool {
	if slices.Contains(retainedCodes, a.code) || a.status == http.StatusUnavailableForLegalReasons {
		return true
	}
	text := strings.ToLower(a.message)
	return slices.ContainsFunc([]string{"object lock", "objectlock", "retention", "worm", "legal hold"}, func(word string) bool {
		return strings.Contains(text, word)
	})
}

func (s *store) explain(op string, a answer) error {
	switch {
	case a.code == "NoSuchBucket", a.status == http.StatusNotFound && op != "get":
		return errBucket
	case slices.Contains(missingCodes, a.code), a.status == http.StatusNotFound:
		return fs.ErrNotExist
	case a.code == "RequestTimeTooSkewed":
		return &refusal{"the server refuses requests signed at this time; is this machine's clock right?"}
	case slices.Contains(fullCodes, a.code), a.status == http.StatusInsufficientStorage:
		return object.Full("the server answers " + a.String())
	case slices.Contains(refusedCodes, a.code), a.status == http.StatusUnauthorized, a.status == http.StatusForbidden:
		return &refusal{"the server forbids it: " + a.String() + a.hint()}
	case a.status >= 300 && a.status < 400:
		region := a.header.Get("X-Amz-Bucket-Region")
		if region == "" {
			return errors.New("the bucket is in another region or at another endpoint: " + a.String())
		}
		return fmt.Errorf("the bucket is in region %s; add region=%s to the target", region, region)
	}
	return errors.New("the server answers " + a.String())
}

// credentialCodes are the refusals that other credentials would end.
var credentialCodes = []string{"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}

// hint says what to look at after a refusal.
func (a answer) hint() string {
	if slices.Contains(credentialCodes, a.code) {
		return "; look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
	}
	return ""
}

// String is the answer in one short line, whatever the server wrote.
func (a answer) String() string {
	parts := []string{}
	if a.status != 0 {
		parts = append(parts, fmt.Sprint(a.status))
	}
	for _, part := range []string{a.code, a.message} {
		if part = strings.Join(strings.Fields(part), " "); part != "" {
			parts = append(parts, part)
		}
	}
	const limit = 300
	text := strings.Join(parts, " ")
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}

var errBucket = fmt.Errorf("the bucket does not exist (any more): %w", object.ErrNoContainer)

// A refusal is an answer that is fs.ErrPermission.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return fs.ErrPermission }
