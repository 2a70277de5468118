package object

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A URL says where a backup target is, without any secret. See [ParseURL].
type URL struct {
	Scheme string // "file", "swift" or "s3"

	Path string // file: the absolute folder

	Container string // swift: the container; s3: the bucket
	Prefix    string // swift, s3: in front of all names; may be empty

	Endpoint string // s3: the server as http(s)://host[:port]; empty is what the environment says, or AWS
	Region   string // s3: empty is what the environment says
	// StorageClass is what s3 keeps large objects in; empty is the bucket's own.
	StorageClass string

	PathStyle string // s3: "true" (bucket in the path), "false" (in the host name) or "" (as fits the endpoint)
}

// ParseURL reads a target's URL:
//
//	file:///folder
//	swift://container[/prefix]
//	s3://bucket[/prefix][?endpoint=http(s)://host[:port]][&region=…][&path-style=true|false][&storage-class=…]
//
// Names and passwords in it are refused: command lines are seen by everybody on
// the machine, and URLs are logged.
func ParseURL(text string) (URL, error) {
	u, err := parseURL(text)
	if err != nil {
		return URL{}, fmt.Errorf("target %s: %w", redact(text), err)
	}
	return u, nil
}

var errScheme = errors.New("a target is file:///folder, swift://container/prefix or s3://bucket/prefix")

func parseURL(text string) (URL, error) {
	scheme, _, found := strings.Cut(text, "://")
	if !found {
		if strings.HasPrefix(text, "/") {
			return URL{}, fmt.Errorf("%w; for the folder write file://%s", errScheme, text)
		}
		return URL{}, errScheme
	}
	if !slices.Contains([]string{"file", "swift", "s3"}, scheme) {
		return URL{}, fmt.Errorf("unknown kind %q; %w", scheme, errScheme)
	}
	raw, err := url.Parse(text)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err // the rest would repeat the text, perhaps with a password
		}
		return URL{}, err
	}
	switch {
	case raw.User != nil:
		return URL{}, fmt.Errorf("no user or password may stand in it; they come from the environment or a credentials file")
	case raw.Fragment != "" || strings.HasSuffix(text, "#"):
		return URL{}, fmt.Errorf("a part after # means nothing here (write # as %%23)")
	}
	query, err := url.ParseQuery(raw.RawQuery)
	if err != nil {
		return URL{}, err
	}
	u := URL{Scheme: scheme}
	if scheme == "file" {
		return u, errors.Join(u.setFolder(raw), noParameters(scheme, query))
	}
	if err := u.setContainer(raw); err != nil {
		return URL{}, err
	}
	if scheme == "swift" {
		return u, noParameters(scheme, query)
	}
	return u, u.setParameters(query)
}

func (u *URL) setFolder(raw *url.URL) error {
	switch {
	case raw.Host != "":
		return fmt.Errorf("a folder needs three slashes: file:///%s%s", raw.Host, raw.Path)
	case !strings.HasPrefix(raw.Path, "/"):
		return errors.New("no folder is given: file:///folder")
	case strings.ContainsRune(raw.Path, 0):
		return errors.New("a folder's name has no zero bytes")
	}
	u.Path = filepath.Clean(raw.Path)
	if u.Path == "/" {
		return errors.New("the root folder cannot be a target")
	}
	return nil
}

func (u *URL) setContainer(raw *url.URL) error {
	u.Container = raw.Host
	u.Prefix = strings.TrimSuffix(strings.TrimPrefix(raw.Path, "/"), "/")
	if u.Container == "" {
		return fmt.Errorf("no container is given: %s://container/prefix", u.Scheme)
	}
	if strings.ContainsAny(u.Container, ":/\\\x00") {
		return fmt.Errorf("%q cannot be a container's name; a server's address goes elsewhere (s3: ?endpoint=…, swift: OS_AUTH_URL)", u.Container)
	}
	return CheckPrefix(u.Prefix)
}

func (u *URL) setParameters(query url.Values) error {
	for name, values := range query {
		if len(values) > 1 {
			return fmt.Errorf("parameter %s is given %d times", name, len(values))
		}
		value := values[0]
		switch name {
		case "endpoint":
			if err := checkEndpoint(value); err != nil {
				return fmt.Errorf("endpoint %s: %w", redact(value), err)
			}
			u.Endpoint = strings.TrimSuffix(value, "/")
		case "region":
			if value == "" {
				return errors.New("region is empty")
			}
			u.Region = value
		case "path-style":
			yes, err := strconv.ParseBool(value)
			if err != nil {
				return fmt.Errorf("path-style is true or false, not %q", value)
			}
			u.PathStyle = strconv.FormatBool(yes)
		case "storage-class":
			if err := checkClass(value); err != nil {
				return err
			}
			u.StorageClass = value
		default:
			return fmt.Errorf("unknown parameter %q; s3 has endpoint, region, path-style and storage-class", name)
		}
	}
	return nil
}

// archives are the storage classes whose objects cannot be read before they have
// been asked for hours ahead: Amazon S3 user guide, "Understanding storage
// classes".
var archives = []string{"GLACIER", "DEEP_ARCHIVE"}

// checkClass refuses what is no storage class. Servers have names of their own.
func checkClass(class string) error {
	switch {
	case class == "" || len(class) > 64 || strings.Trim(class, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "":
		return fmt.Errorf("storage-class is a name such as STANDARD_IA, not %q", class)
	case slices.Contains(archives, class):
		return fmt.Errorf("objects of storage-class %s cannot be read at once, and a backup must be: use GLACIER_IR or STANDARD_IA", class)
	}
	return nil
}

func checkEndpoint(text string) error {
	e, err := url.Parse(text)
	if err != nil || e.Scheme != "http" && e.Scheme != "https" || e.Host == "" {
		return errors.New("an endpoint is http://host:port or https://host:port")
	}
	if e.User != nil {
		return errors.New("no user or password may stand in it")
	}
	if e.RawQuery != "" || e.Fragment != "" {
		return errors.New("nothing may follow the path")
	}
	return nil
}

func noParameters(scheme string, query url.Values) error {
	for name := range query {
		return fmt.Errorf("unknown parameter %q; %s has none", name, scheme)
	}
	return nil
}

// String returns the URL in the form that ParseURL reads; equal targets give
// equal strings.
func (u URL) String() string {
	if u.Scheme == "file" {
		return (&url.URL{Scheme: u.Scheme, Path: u.Path}).String()
	}
	out := url.URL{Scheme: u.Scheme, Host: u.Container}
	if u.Prefix != "" {
		out.Path = "/" + u.Prefix
	}
	query := url.Values{}
	for name, value := range map[string]string{"endpoint": u.Endpoint, "region": u.Region, "path-style": u.PathStyle, "storage-class": u.StorageClass} {
		if value != "" {
			query.Set(name, value)
		}
	}
	// RFC 3986, 3.4: a query may have both as they are, and people read this.
	out.RawQuery = strings.NewReplacer("%3A", ":", "%2F", "/").Replace(query.Encode())
	return out.String()
}

// redact shortens what a user gave as a URL to what may be shown: without
// anything before an @ or behind a ?, which may be a secret.
func redact(text string) string {
	if i := strings.LastIndexByte(text, '@'); i >= 0 {
		scheme, _, found := strings.Cut(text[:i], "://")
		if !found {
			scheme = ""
		} else {
			scheme += "://"
		}
		text = scheme + "…" + text[i:]
	}
	if address, _, found := strings.Cut(text, "?"); found {
		text = address + "?…"
	}
	const limit = 200
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return strconv.Quote(text)
}
