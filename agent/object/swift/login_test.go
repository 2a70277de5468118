package swift_test

import (
	"errors"
	"io/fs"
	"maps"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/agent/object/swift"
	"varve/e2e/testbed"
)

func TestStoreKeystonePassword(t *testing.T) {
	server := testbed.Keystone(t)
	objecttest.RunSmall(t, func(t testing.TB) object.Store { return create(t, server.PasswordEnv()) })
}

// An application credential may do what the password may, with a token of the
// same kind.
func TestStoreKeystoneApplicationCredential(t *testing.T) {
	s := create(t, testbed.Keystone(t).ApplicationEnv())
	if err := s.Put(t.Context(), "p/a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if got, err := object.ReadAll(t.Context(), s, "p/a", 10); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
	count := 0
	for info, err := range s.List(t.Context(), "") {
		if count++; err != nil || info.Name != "p/a" {
			t.Errorf("listed: %v, %v", info, err)
		}
	}
	if err := s.Delete(t.Context(), "p/a"); err != nil || count != 1 {
		t.Errorf("%d objects are listed; delete: %v", count, err)
	}
	if _, err := s.Get(t.Context(), "p/a", nil, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after it was deleted: %v", err)
	}
}

// with returns env with some variables changed; an empty value removes one.
func with(env map[string]string, changes ...string) map[string]string {
	out := maps.Clone(env)
	for i := 0; i < len(changes); i += 2 {
		out[changes[i]] = changes[i+1]
		if changes[i+1] == "" {
			delete(out, changes[i])
		}
	}
	return out
}

// What the usual openrc files hold, and what they leave out.
func TestLogins(t *testing.T) {
	server := testbed.Keystone(t)
	password := server.PasswordEnv()
	for name, env := range map[string]map[string]string{
		"no version in the URL": with(password, "OS_AUTH_URL", strings.TrimSuffix(server.URL, "/v3"), "OS_IDENTITY_API_VERSION", ""),
		"slash behind the URL":  with(password, "OS_AUTH_URL", server.URL+"/"),
		"no domains":            with(password, "OS_USER_DOMAIN_NAME", "", "OS_PROJECT_DOMAIN_NAME", ""),
		"domain ids":            with(password, "OS_USER_DOMAIN_NAME", "", "OS_USER_DOMAIN_ID", "default", "OS_PROJECT_DOMAIN_NAME", "", "OS_PROJECT_DOMAIN_ID", "default"),
		"tenant for project":    with(password, "OS_PROJECT_NAME", "", "OS_TENANT_NAME", "demo"),
		"no region":             with(password, "OS_REGION_NAME", ""),
		"publicURL":             with(password, "OS_INTERFACE", "publicURL"),
		"both kinds":            with(password, "ST_AUTH", "http://127.0.0.1:1/auth/v1.0", "ST_USER", "x", "ST_KEY", "y"),
	} {
		if _, err := swift.Create(t.Context(), container(), env); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLoginErrors(t *testing.T) {
	server := testbed.Keystone(t)
	password, application := server.PasswordEnv(), server.ApplicationEnv()
	first := testbed.Swift(t).Env()
	const secret = "hunter2"
	for _, c := range []struct {
		name    string
		env     map[string]string
		hint    string
		refused bool // is fs.ErrPermission
	}{
		{"nothing", nil, "set OS_AUTH_URL", true},
		{"wrong password", with(password, "OS_PASSWORD", secret), "OS_PASSWORD", true},
		{"wrong project", with(password, "OS_PROJECT_NAME", "nope"), "OS_PROJECT_NAME", true},
		{"wrong secret", with(application, "OS_APPLICATION_CREDENTIAL_SECRET", secret), "refused", true},
		{"wrong key, version 1", with(first, "ST_KEY", secret), "ST_KEY", true},
		{"no password", with(password, "OS_PASSWORD", ""), "password is missing", true},
		{"no project", with(password, "OS_PROJECT_NAME", ""), "OS_PROJECT_NAME", true},
		{"no secret", with(application, "OS_APPLICATION_CREDENTIAL_SECRET", ""), "OS_APPLICATION_CREDENTIAL_SECRET is missing", true},
		{"application credential by name alone", with(application, "OS_APPLICATION_CREDENTIAL_ID", "", "OS_APPLICATION_CREDENTIAL_NAME", "x"), "OS_USER_ID", false},
		{"other region", with(password, "OS_REGION_NAME", "Mars"), "region Mars", false},
		{"no log-in there", with(password, "OS_AUTH_URL", server.URL+"/nowhere/v3"), "no log-in at this address", false},
		{"not a URL", with(password, "OS_AUTH_URL", "keystone:5000"), "must be http", false},
		{"password in the URL", with(password, "OS_AUTH_URL", "http://u:"+secret+"@127.0.0.1:1/v3"), "variables of their own", false},
		{"unknown version", with(password, "OS_AUTH_URL", strings.TrimSuffix(server.URL, "/v3"), "OS_IDENTITY_API_VERSION", "4"), `"4"`, false},
		{"server is down", with(password, "OS_AUTH_URL", "http://127.0.0.1:1/v3"), "refused", false},
		{"no such file", with(password, "OS_CACERT", "/nowhere/ca.pem"), "/nowhere/ca.pem", false},
		{"bad token", map[string]string{"OS_AUTH_TOKEN": secret, "OS_STORAGE_URL": server.Swift.URL + "/v1/AUTH_x"}, "token", true},
	} {
		_, err := swift.Open(t.Context(), container(), c.env)
		if err == nil || !strings.Contains(err.Error(), c.hint) || errors.Is(err, fs.ErrPermission) != c.refused {
			t.Errorf("%s: got %v; want an error that says %q, permission: %v", c.name, err, c.hint, c.refused)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error tells the secret: %v", c.name, err)
		}
	}
}

// A token that the server has forgotten is replaced in the middle of things,
// also when many notice at once. Some see a closed connection in place of the
// 401, because Swift does not wait for the rest of an upload that it refuses.
func TestTokenForgotten(t *testing.T) {
	server := testbed.Swift(t)
	s := create(t, server.Env())
	for _, size := range []int{0, 100_000, 1 << 20} {
		data := objecttest.Bytes(1, size)
		if err := server.ForgetTokens(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		for i := range 8 {
			go func() { done <- s.Put(t.Context(), string(rune('a'+i)), data) }()
		}
		for range 8 {
			if err := <-done; err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	}
}
