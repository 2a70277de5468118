package testbed

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A KeystoneServer is an OpenStack Keystone with a Swift behind it: the project
// demo, the user demo, and an application credential and EC2 keys of its.
type KeystoneServer struct {
	URL     string // of the log-in, with /v3
	Swift   *SwiftServer
	Process *Process

	application, ec2 map[string]string
}

const keystonePassword = "secret"

var sharedKeystone shared[*KeystoneServer]

// Keystone starts a Keystone (version 3) and a Swift that asks it.
func Keystone(t testing.TB) *KeystoneServer {
	t.Helper()
	Require(t, swiftTools...)
	Require(t, "keystone-manage", "keystone-wsgi-public", "/usr/lib/python3/dist-packages/keystonemiddleware")
	return sharedKeystone.get(t, startKeystone)
}

// PasswordEnv returns what the user demo logs in with by password.
func (k *KeystoneServer) PasswordEnv() map[string]string {
	return map[string]string{
		"OS_AUTH_URL": k.URL, "OS_USERNAME": "demo", "OS_PASSWORD": keystonePassword, "OS_PROJECT_NAME": "demo",
		"OS_USER_DOMAIN_NAME": "Default", "OS_PROJECT_DOMAIN_NAME": "Default", "OS_REGION_NAME": "RegionOne",
		"OS_IDENTITY_API_VERSION": "3", "OS_INTERFACE": "public",
	}
}

// ApplicationEnv returns what the user demo logs in with by an application
// credential.
func (k *KeystoneServer) ApplicationEnv() map[string]string { return copyEnv(k.application) }

// S3 returns Swift's S3 interface with the EC2 keys of the user demo.
func (k *KeystoneServer) S3() *S3Server {
	return &S3Server{URL: k.Swift.URL, env: k.ec2}
}

func startKeystone(b *bed) (*KeystoneServer, error) {
	folder, err := b.newFolder()
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	base := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	k := &KeystoneServer{URL: base + "/v3"}

	// Swift comes up while the database is made.
	k.Swift, err = startSwift(b, "authtoken s3api s3token keystoneauth", keystoneFilters(base))
	if err != nil {
		return nil, err
	}
	files := map[string]string{
		"policy.yaml": "{}\n",
		"keystone.conf": fmt.Sprintf(`[DEFAULT]
log_file = %[1]s/log
[database]
connection = sqlite:///%[1]s/keystone.db
[token]
provider = fernet
[fernet_tokens]
key_repository = %[1]s/fernet
[fernet_receipts]
key_repository = %[1]s/fernet
[credential]
key_repository = %[1]s/credential
`, folder),
	}
	// What fernet_setup and credential_setup of keystone-manage would make, in
	// four seconds less.
	for _, repository := range []string{"fernet", "credential"} {
		for _, key := range []string{"0", "1"} {
			var random [32]byte
			rand.Read(random[:]) // never fails
			files[repository+"/"+key] = base64.URLEncoding.EncodeToString(random[:])
		}
	}
	if err := writeFiles(folder, files); err != nil {
		return nil, err
	}
	env := []string{"OS_KEYSTONE_CONFIG_DIR=" + folder}
	manage := []string{"keystone-manage", "--config-file", "keystone.conf"}
	if err := run(folder, env, "", append(manage, "db_sync")...); err != nil {
		return nil, err
	}
	k.Process, err = b.start(folder, ports[0], env, "keystone-wsgi-public", "--host", "127.0.0.1", "--port", fmt.Sprint(ports[0]))
	if err != nil {
		return nil, err
	}
	err = run(folder, env, "", append(manage, "bootstrap", "--bootstrap-password", keystonePassword, "--bootstrap-username", "admin",
		"--bootstrap-project-name", "admin", "--bootstrap-role-name", "admin", "--bootstrap-service-name", "keystone",
		"--bootstrap-region-id", "RegionOne", "--bootstrap-public-url", k.URL, "--bootstrap-admin-url", k.URL, "--bootstrap-internal-url", k.URL)...)
	if err != nil {
		return nil, err
	}
	if err := k.Process.ready(); err != nil {
		return nil, err
	}
	if err := k.fill(); err != nil {
		return nil, err
	}
	return k, k.Swift.ready()
}

// keystoneFilters is the proxy's side of the log-in. authtoken must come before
// s3api, or every S3 request ends as SignatureDoesNotMatch; s3token needs a
// log-in of its own, or Keystone does not answer its question.
func keystoneFilters(keystone string) string {
	service := fmt.Sprintf(`auth_url = %s
auth_type = password
project_domain_id = default
user_domain_id = default
project_name = service
username = swift
password = %s
delay_auth_decision = true
`, keystone+"/v3", keystonePassword)
	return fmt.Sprintf(`[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = %[1]s
cache = swift.cache
%[2]s[filter:s3token]
use = egg:swift#s3token
auth_uri = %[1]s/v3
secret_cache_duration = 60
%[2]s[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin,member
`, keystone, service)
}

// fill makes the project, the users and their credentials.
func (k *KeystoneServer) fill() error {
	admin := &keystoneClient{url: k.URL}
	if err := admin.login("admin", "admin"); err != nil {
		return err
	}
	service := admin.post("/services", "service", map[string]any{"type": "object-store", "name": "swift"})
	admin.post("/endpoints", "endpoint", map[string]any{
		"service_id": service, "interface": "public", "region_id": "RegionOne", "url": k.Swift.URL + "/v1/AUTH_%(tenant_id)s",
	})
	admins, members := admin.role("admin"), admin.role("member")
	var project, user string
	for _, account := range []struct{ user, project, role string }{{"swift", "service", admins}, {"demo", "demo", members}} {
		project = admin.post("/projects", "project", map[string]any{"name": account.project, "domain_id": "default"})
		user = admin.post("/users", "user", map[string]any{"name": account.user, "password": keystonePassword, "domain_id": "default"})
		admin.call("PUT", fmt.Sprintf("/projects/%s/users/%s/roles/%s", project, user, account.role), nil, nil)
	}
	if admin.err != nil {
		return admin.err
	}
	demo := &keystoneClient{url: k.URL}
	if err := demo.login("demo", "demo"); err != nil {
		return err
	}
	var application struct {
		Credential struct{ ID, Secret string } `json:"application_credential"`
	}
	demo.call("POST", "/users/"+user+"/application_credentials",
		map[string]any{"application_credential": map[string]any{"name": "varve"}}, &application)
	var ec2 struct {
		Credential struct{ Access, Secret string }
	}
	demo.call("POST", "/users/"+user+"/credentials/OS-EC2", map[string]any{"tenant_id": project}, &ec2)
	k.application = map[string]string{
		"OS_AUTH_URL": k.URL, "OS_AUTH_TYPE": "v3applicationcredential",
		"OS_APPLICATION_CREDENTIAL_ID": application.Credential.ID, "OS_APPLICATION_CREDENTIAL_SECRET": application.Credential.Secret,
	}
	k.ec2 = map[string]string{
		"AWS_ACCESS_KEY_ID": ec2.Credential.Access, "AWS_SECRET_ACCESS_KEY": ec2.Credential.Secret, "AWS_REGION": "us-east-1",
	}
	return demo.err
}

// A keystoneClient makes calls and keeps the first error.
type keystoneClient struct {
	url, token string
	err        error
}

func (c *keystoneClient) login(user, project string) error {
	domain := map[string]any{"id": "default"}
	c.call("POST", "/auth/tokens", map[string]any{"auth": map[string]any{
		"identity": map[string]any{
			"methods":  []string{"password"},
			"password": map[string]any{"user": map[string]any{"name": user, "domain": domain, "password": keystonePassword}},
		},
		"scope": map[string]any{"project": map[string]any{"name": project, "domain": domain}},
	}}, nil)
	return c.err
}

// post makes a thing and returns its id.
func (c *keystoneClient) post(path, kind string, thing map[string]any) string {
	var made map[string]struct{ ID string }
	c.call("POST", path, map[string]any{kind: thing}, &made)
	return made[kind].ID
}

func (c *keystoneClient) role(name string) string {
	var found struct{ Roles []struct{ ID string } }
	c.call("GET", "/roles?name="+name, nil, &found)
	if c.err == nil && len(found.Roles) != 1 {
		c.err = fmt.Errorf("keystone has %d roles %q", len(found.Roles), name)
	}
	if c.err != nil {
		return ""
	}
	return found.Roles[0].ID
}

var keystoneHTTP = &http.Client{Timeout: time.Minute}

func (c *keystoneClient) call(method, path string, in, out any) {
	if c.err != nil {
		return
	}
	c.err = func() error {
		body, err := json.Marshal(in)
		if err != nil {
			return err
		}
		if in == nil {
			body = nil
		}
		request, err := http.NewRequest(method, c.url+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("X-Auth-Token", c.token)
		response, err := keystoneHTTP.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		answer, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
		if err != nil {
			return err
		}
		if response.StatusCode >= 300 {
			return fmt.Errorf("keystone: %s %s: %s: %s", method, path, response.Status, strings.TrimSpace(string(answer)))
		}
		if token := response.Header.Get("X-Subject-Token"); token != "" {
			c.token = token
		}
		if out == nil || len(answer) == 0 {
			return nil
		}
		return json.Unmarshal(answer, out)
	}()
}

// Token returns a fresh token of the user demo.
func (k *KeystoneServer) Token(t testing.TB) string {
	t.Helper()
	demo := &keystoneClient{url: k.URL}
	if err := demo.login("demo", "demo"); err != nil {
		t.Fatalf("testbed: %v", err)
	}
	return demo.token
}
