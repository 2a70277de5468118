package swift

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/ncw/swift/v2"
)

// A session is a log-in: a connection with a token, which the library cannot
// renew by itself. (It would hold a lock meanwhile, for which callers wait
// whose context has ended.)
type session struct {
	conn    *swift.Connection
	renewal time.Time // log in again from here on; zero is never
}

// renewBefore is how long before its end a token is no longer used. An upload
// begun with it must come to its end.
const renewBefore = 2 * time.Minute

// forever keeps the library's own time limits from firing: one of them leaves
// a goroutine behind that writes to the caller's buffer. object.NewTransport
// limits the silence, the context the rest.
const forever = 10 * 365 * 24 * time.Hour

// login returns the session to use. One caller at a time logs in, the others
// wait for it.
func (s *store) login(ctx context.Context) (*session, error) {
	if current := s.session.Load(); current.usable() {
		return current, nil
	}
	select {
	case s.gate <- struct{}{}:
		defer func() { <-s.gate }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if current := s.session.Load(); current.usable() {
		return current, nil
	}
	fresh, err := s.config.connect(ctx, s.transport)
	if err != nil {
		return nil, &loginError{s.config.address(), err}
	}
	s.session.Store(fresh)
	return fresh, nil
}

// A loginError says that it was the log-in that failed.
type loginError struct {
	address string
	err     error
}

func (e *loginError) Error() string { return fmt.Sprintf("log-in at %s: %v", e.address, e.err) }
func (e *loginError) Unwrap() error { return e.err }

func (s *session) usable() bool {
	return s != nil && (s.renewal.IsZero() || time.Now().Before(s.renewal))
}

// A config is how to log in.
type config struct {
	conn    func() *swift.Connection // without transport and limits
	url     string                   // of the log-in
	storage string                   // URL of the object store in place of the catalog's; may be empty
	caFile  string                   // may be empty
}

// address returns the URL of the log-in as it may be shown.
func (c config) address() string {
	u, err := url.Parse(c.url)
	if err != nil {
		return "its server"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

func (c config) connect(ctx context.Context, transport *answers) (*session, error) {
	conn := c.conn()
	conn.Transport = transport
	conn.UserAgent = "varve"
	conn.Retries = -1 // 0 would be the library's default
	conn.ConnectTimeout, conn.Timeout = forever, forever
	out := &session{conn: conn}
	if conn.AuthToken != "" {
		return out, nil // a token that was given to us
	}
	if err := conn.Authenticate(ctx); err != nil {
		return nil, explainLogin(err, conn)
	}
	if c.storage != "" {
		conn.StorageUrl = strings.TrimSuffix(c.storage, "/")
	}
	if !conn.Expires.IsZero() {
		// A short-lived token is used for half of its life.
		life := time.Until(conn.Expires)
		out.renewal = conn.Expires.Add(-min(renewBefore, life/2))
		conn.Expires = time.Time{} // renewing is up to us
	}
	return out, nil
}

// explainLogin says what to do about an error of the log-in.
func explainLogin(err error, conn *swift.Connection) error {
	var e *swift.Error
	switch {
	case !errors.As(err, &e):
		return err
	case e.StatusCode == 401:
		return &refusal{"the user name, the password or the project is refused; look at OS_USERNAME, OS_PASSWORD, OS_PROJECT_NAME, " +
			"OS_USER_DOMAIN_NAME or the application credential (version 1: ST_USER, ST_KEY)"}
	case e.StatusCode == 404:
		return errors.New("there is no log-in at this address; look at OS_AUTH_URL (or ST_AUTH)")
	case e.StatusCode == 0 && strings.Contains(e.Text, "storage url"):
		region := "any region"
		if conn.Region != "" {
			region = "region " + conn.Region
		}
		return fmt.Errorf("the log-in works, but the catalog shows no object store in %s for this project; look at OS_REGION_NAME, OS_INTERFACE and OS_PROJECT_NAME", region)
	}
	return err
}

// A refusal is an answer that is fs.ErrPermission.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return fs.ErrPermission }

// variables are what a log-in needs, for error messages.
const variables = "set OS_AUTH_URL, OS_USERNAME, OS_PASSWORD and OS_PROJECT_NAME; or OS_AUTH_URL, OS_APPLICATION_CREDENTIAL_ID and " +
	"OS_APPLICATION_CREDENTIAL_SECRET; or OS_CLOUD (--cloud NAME), a cloud of clouds.yaml; or ST_AUTH, ST_USER and ST_KEY; or OS_STORAGE_URL and OS_AUTH_TOKEN"

// readEnv finds out from the usual variables how to log in. They are those of
// the OpenStack command line client ("openrc"), and of the older swift client
// (ST_*), which count if no OS_AUTH_URL is given.
// OS_CLOUD puts a cloud of clouds.yaml in their place, see Cloud.
func readEnv(env map[string]string) (config, error) {
	env, err := Cloud(env)
	if err != nil {
		return config{}, err
	}
	get := func(names ...string) string {
		for _, name := range names {
			if value := env[name]; value != "" {
				return value
			}
		}
		return ""
	}
	token, storage := get("OS_AUTH_TOKEN", "OS_TOKEN"), get("OS_STORAGE_URL")
	if token != "" && storage != "" {
		return config{caFile: env["OS_CACERT"], url: storage, conn: func() *swift.Connection {
			return &swift.Connection{AuthToken: token, StorageUrl: strings.TrimSuffix(storage, "/")}
		}}, nil
	}
	base := swift.Connection{
		AuthUrl:  get("OS_AUTH_URL"),
		UserName: get("OS_USERNAME"),
		UserId:   get("OS_USER_ID"),
		ApiKey:   get("OS_PASSWORD"),
		Domain:   get("OS_USER_DOMAIN_NAME"),
		DomainId: get("OS_USER_DOMAIN_ID"),
		Tenant:   get("OS_PROJECT_NAME", "OS_TENANT_NAME"),
		TenantId: get("OS_PROJECT_ID", "OS_TENANT_ID"),
		TrustId:  get("OS_TRUST_ID"),
		Region:   get("OS_REGION_NAME"),
		EndpointType: swift.EndpointType(strings.TrimSuffix(
			get("OS_INTERFACE", "OS_ENDPOINT_TYPE"), "URL")), // "publicURL" is "public"
		TenantDomain:                get("OS_PROJECT_DOMAIN_NAME"),
		TenantDomainId:              get("OS_PROJECT_DOMAIN_ID"),
		ApplicationCredentialId:     get("OS_APPLICATION_CREDENTIAL_ID"),
		ApplicationCredentialName:   get("OS_APPLICATION_CREDENTIAL_NAME"),
		ApplicationCredentialSecret: get("OS_APPLICATION_CREDENTIAL_SECRET"),
	}
	wanted := get("OS_IDENTITY_API_VERSION", "OS_AUTH_VERSION", "ST_AUTH_VERSION")
	if base.AuthUrl == "" {
		base.AuthUrl, base.UserName, base.ApiKey = get("ST_AUTH"), get("ST_USER"), get("ST_KEY")
		wanted = cmp.Or(get("ST_AUTH_VERSION"), "1")
	}
	if base.AuthUrl == "" {
		return config{}, &refusal{"no credentials; " + variables}
	}
	if err := setVersion(&base, wanted); err != nil {
		return config{}, err
	}
	if base.UserName == "" && base.UserId == "" {
		base.Token = token
	}
	if err := complete(&base); err != nil {
		return config{}, err
	}
	return config{caFile: env["OS_CACERT"], storage: storage, url: base.AuthUrl, conn: func() *swift.Connection { return settings(&base) }}, nil
}

// settings returns a connection with the same settings. A swift.Connection holds
// a lock, so it is not copied whole.
func settings(c *swift.Connection) *swift.Connection {
	return &swift.Connection{
		AuthUrl: c.AuthUrl, AuthVersion: c.AuthVersion, Region: c.Region, EndpointType: c.EndpointType,
		UserName: c.UserName, UserId: c.UserId, ApiKey: c.ApiKey, Token: c.Token, Domain: c.Domain, DomainId: c.DomainId,
		Tenant: c.Tenant, TenantId: c.TenantId, TenantDomain: c.TenantDomain, TenantDomainId: c.TenantDomainId, TrustId: c.TrustId,
		ApplicationCredentialId: c.ApplicationCredentialId, ApplicationCredentialName: c.ApplicationCredentialName,
		ApplicationCredentialSecret: c.ApplicationCredentialSecret,
	}
}

// inPath finds the version at the end of a log-in URL: /v3, /v2.0, /auth/v1.0.
var inPath = regexp.MustCompile(`/v([123])(?:\.[0-9]+)?$`)

// setVersion finds the version of the log-in: from the URL, from what the
// environment wants ("3", "v2.0"), else 3, and puts it in a URL that has none.
func setVersion(c *swift.Connection, wanted string) error {
	u, err := url.Parse(c.AuthUrl)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return errors.New("the address of the log-in (OS_AUTH_URL or ST_AUTH) must be http://host… or https://host…")
	}
	if u.User != nil {
		return errors.New("no user or password may stand in OS_AUTH_URL or ST_AUTH; they have variables of their own")
	}
	c.AuthUrl = strings.TrimSuffix(c.AuthUrl, "/")
	if found := inPath.FindStringSubmatch(strings.TrimSuffix(u.Path, "/")); found != nil {
		c.AuthVersion, err = strconv.Atoi(found[1])
		return err
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(cmp.Or(wanted, "3"), "v"), ".")
	switch major {
	case "1":
		c.AuthVersion = 1 // its URL is what it is
	case "2":
		c.AuthVersion = 2
		c.AuthUrl += "/v2.0"
	case "3":
		c.AuthVersion = 3
		c.AuthUrl += "/v3"
	default:
		return fmt.Errorf("version %q of the log-in is not known; there are 1, 2 and 3 (OS_IDENTITY_API_VERSION or ST_AUTH_VERSION)", wanted)
	}
	return nil
}

// complete says what is missing, and puts in what everybody takes for granted:
// users live in the domain "default" unless something else is said.
func complete(c *swift.Connection) error {
	if c.ApplicationCredentialId != "" || c.ApplicationCredentialName != "" {
		switch {
		case c.ApplicationCredentialSecret == "":
			return &refusal{"OS_APPLICATION_CREDENTIAL_SECRET is missing"}
		case c.AuthVersion != 3:
			return fmt.Errorf("application credentials need version 3 of the log-in, and OS_AUTH_URL or OS_IDENTITY_API_VERSION says %d", c.AuthVersion)
		case c.ApplicationCredentialId == "" && c.UserId == "" && c.UserName == "":
			return errors.New("OS_APPLICATION_CREDENTIAL_NAME needs OS_USERNAME or OS_USER_ID beside it; OS_APPLICATION_CREDENTIAL_ID does not")
		}
		if c.UserId == "" && c.Domain == "" && c.DomainId == "" {
			c.DomainId = "default"
		}
		return nil
	}
	if c.Token == "" && (c.UserName == "" && c.UserId == "" || c.ApiKey == "") {
		return &refusal{"the user or the password is missing; " + variables}
	}
	switch {
	case c.Token != "" && c.AuthVersion != 3:
		return fmt.Errorf("a token (OS_TOKEN) logs in with version 3 only, and OS_AUTH_URL or OS_IDENTITY_API_VERSION says %d", c.AuthVersion)
	case c.AuthVersion != 3:
		return nil
	}
	if c.Tenant == "" && c.TenantId == "" && c.TrustId == "" {
		return &refusal{"the project is missing; set OS_PROJECT_NAME or OS_PROJECT_ID"}
	}
	if c.Token == "" && c.UserId == "" && c.Domain == "" && c.DomainId == "" {
		c.DomainId = "default"
	}
	if c.TenantId == "" && c.TenantDomain == "" && c.TenantDomainId == "" && c.Domain == "" && c.DomainId == "" {
		c.TenantDomainId = "default"
	}
	return nil
}
