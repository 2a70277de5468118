package swift_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/agent/object/swift"
	"varve/e2e/testbed"
)

// home makes folders in which clouds.yaml is searched: a working directory and a
// home, both empty.
func home(t *testing.T) (work, config string) {
	t.Helper()
	work = t.TempDir()
	t.Chdir(work)
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", "")
	return work, filepath.Join(os.Getenv("HOME"), ".config", "openstack")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Every kind of log-in that a clouds.yaml may describe, at a real Keystone.
func TestCloudLogins(t *testing.T) {
	server := testbed.Keystone(t)
	application := server.ApplicationEnv()
	work, config := home(t)
	write(t, filepath.Join(config, "clouds.yaml"), fmt.Sprintf(`
clouds:
  whole:
    region_name: RegionOne
    interface: public
    identity_api_version: 3
    auth: {auth_url: %[1]q, username: demo, password: secret, project_name: demo, user_domain_name: Default, project_domain_name: Default}
  split:
    auth: {auth_url: %[1]q, username: demo, project_name: demo, default_domain: default}
  regions:
    auth-type: v3password
    regions: [RegionOne]
    auth: {auth-url: %[1]q, username: demo, password: secret, project-name: demo}
  per-region:
    regions:
    - name: Mars
    - name: RegionOne
      values: {interface: publicURL}
    auth: {auth_url: %[1]q, username: demo, password: secret, project_name: demo}
  beside:
    auth_url: %[1]q
    username: demo
    password: secret
    project_name: demo
  application:
    auth_type: v3applicationcredential
    auth: {auth_url: %[1]q, application_credential_id: %[2]q, application_credential_secret: %[3]q}
  token:
    auth_type: v3token
    auth: {auth_url: %[1]q, token: %[4]q, project_name: demo, project_domain_id: default}
  vendor:
    profile: ours
    auth: {username: demo, password: secret, project_name: demo}
`, server.URL, application["OS_APPLICATION_CREDENTIAL_ID"], application["OS_APPLICATION_CREDENTIAL_SECRET"], server.Token(t)))
	write(t, filepath.Join(config, "secure.yaml"), "clouds:\n  split:\n    auth:\n      password: secret\n")
	write(t, filepath.Join(work, "clouds-public.yml"), fmt.Sprintf("public-clouds:\n  ours:\n    region_name: RegionOne\n    auth: {auth_url: %q}\n", server.URL))
	for _, env := range []map[string]string{
		{"OS_CLOUD": "whole", "OS_PASSWORD": "of another cloud", "OS_PROJECT_NAME": "of another"},
		{"OS_CLOUD": "split"},
		{"OS_CLOUD": "regions"},
		{"OS_CLOUD": "per-region", "OS_REGION_NAME": "RegionOne"},
		{"OS_CLOUD": "beside"},
		{"OS_CLOUD": "application"},
		{"OS_CLOUD": "token"},
		{"OS_CLOUD": "vendor"},
	} {
		s, err := swift.Create(t.Context(), container(), env)
		if err != nil {
			t.Errorf("%s: %v", env["OS_CLOUD"], err)
			continue
		}
		if err := s.Put(t.Context(), "a", nil); err != nil {
			t.Errorf("%s: %v", env["OS_CLOUD"], err)
		}
	}
	// The token of OS_TOKEN, without clouds.yaml.
	env := map[string]string{"OS_AUTH_URL": server.URL, "OS_TOKEN": server.Token(t), "OS_PROJECT_NAME": "demo"}
	if _, err := swift.Create(t.Context(), container(), env); err != nil {
		t.Errorf("token: %v", err)
	}
}

// Where the files are looked for, and which comes first.
func TestCloudPlaces(t *testing.T) {
	cloud := func(user string) string {
		return "clouds:\n  c: {auth: {auth_url: http://h, username: " + user + "}}\n"
	}
	work, config := home(t)
	named := filepath.Join(t.TempDir(), "any.name")
	for _, place := range []struct{ file, user string }{
		{filepath.Join(config, "clouds.json"), "json"},
		{filepath.Join(config, "clouds.yml"), "yml"},
		{filepath.Join(config, "clouds.yaml"), "home"},
		{filepath.Join(work, "clouds.yaml"), "work"},
		{named, "named"},
	} {
		text := cloud(place.user)
		if place.user == "json" {
			text = `{"clouds": {"c": {"auth": {"auth_url": "http://h", "username": "json"}}}}`
		}
		write(t, place.file, text)
		env := map[string]string{"OS_CLOUD": "c"}
		if place.user == "named" {
			env["OS_CLIENT_CONFIG_FILE"] = named
		}
		got, err := swift.Cloud(env)
		if err != nil || got["OS_USERNAME"] != place.user {
			t.Errorf("with %s: got %v, %v; want the user %s", place.file, got, err, place.user)
		}
	}
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	os.Remove(filepath.Join(work, "clouds.yaml"))
	write(t, filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "openstack", "clouds.yaml"), cloud("xdg"))
	if got, err := swift.Cloud(map[string]string{"OS_CLOUD": "c"}); err != nil || got["OS_USERNAME"] != "xdg" {
		t.Errorf("with XDG_CONFIG_HOME: got %v, %v", got, err)
	}
}

// What a cloud says becomes these variables and no others.
func TestCloudFields(t *testing.T) {
	work, _ := home(t)
	write(t, filepath.Join(work, "ca.pem"), "")
	write(t, filepath.Join(work, "clouds.yaml"), `
clouds:
  all:
    region_name: r
    endpoint_type: internalURL
    cacert: ~/ca.pem
    identity_api_version: 2.0
    volume_api_version: 3
    object_store_endpoint_override: https://o/v1/AUTH_x
    auth: {auth_url: https://h:5000, username: u, password: p, tenant_name: t, tenant_id: 610275}
  leftover:
    auth_type: v3applicationcredential
    auth: {auth_url: https://h, username: u, password: p, application_credential_id: i, application_credential_secret: s}
`)
	want := map[string]string{
		"OS_AUTH_URL": "https://h:5000", "OS_USERNAME": "u", "OS_PASSWORD": "p", "OS_TENANT_NAME": "t", "OS_TENANT_ID": "610275", "OS_REGION_NAME": "other",
		"OS_INTERFACE": "internalURL", "OS_CACERT": filepath.Join(os.Getenv("HOME"), "ca.pem"), "OS_IDENTITY_API_VERSION": "2",
		"OS_STORAGE_URL": "https://o/v1/AUTH_x", "HTTPS_PROXY": "http://p:1",
	}
	got, err := swift.Cloud(map[string]string{"OS_CLOUD": "all", "OS_REGION_NAME": "other", "HTTPS_PROXY": "http://p:1", "ST_USER": "x"})
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got  %v, %v\nwant %v", got, err, want)
	}
	got, err = swift.Cloud(map[string]string{"OS_CLOUD": "leftover"})
	if err != nil || got["OS_PASSWORD"] != "" || got["OS_APPLICATION_CREDENTIAL_SECRET"] != "s" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestCloudErrors(t *testing.T) {
	work, _ := home(t)
	env := map[string]string{"OS_CLOUD": "c"}
	if _, err := swift.Cloud(env); err == nil || !strings.Contains(err.Error(), "OS_CLIENT_CONFIG_FILE") {
		t.Errorf("without a file: %v", err)
	}
	const secret = "hunter2"
	for _, c := range []struct{ text, hint string }{
		{"clouds:\n  a: {auth: {password: hunter2}}\n", "it has a"},
		{"clouds:\n  c: {auth: {username: u, password: hunter2}}\n", "no auth_url"},
		{"clouds:\n  c: {verify: False, auth: {auth_url: http://h, password: hunter2}}\n", "cacert"},
		{"clouds:\n  c: {insecure: true, auth: {auth_url: http://h}}\n", "cacert"},
		{"clouds:\n  c: {cert: /x, auth: {auth_url: http://h}}\n", "client certificates"},
		{"clouds:\n  c: {auth_type: v3oidcpassword, auth: {auth_url: http://h}}\n", "v3oidcpassword"},
		{"clouds:\n  c: {profile: rackspace, auth: {password: hunter2}}\n", "clouds-public.yaml"},
		{"clouds:\n  c: {regions: [a, b], auth: {auth_url: http://h}}\n", "OS_REGION_NAME: a, b"},
		{"clouds:\n  c: {region_name: z, regions: [a, b], auth: {auth_url: http://h}}\n", `no region "z"`},
		{"clouds:\n  c: hunter2\n", "has no fields"},
		{"clouds:\n  c:\n    auth: {password: hunter2\n  x: [", "line"},
		{"- hunter2\n", "YAML"},
		{strings.Repeat("#", 1<<20+1), "larger"},
	} {
		write(t, filepath.Join(work, "clouds.yaml"), c.text)
		_, err := swift.Cloud(env)
		if err == nil || !strings.Contains(err.Error(), c.hint) || strings.Contains(err.Error(), secret) {
			t.Errorf("%.60q: got %v; want an error that says %q and no secret", c.text, err, c.hint)
		}
	}
}

// Whatever stands in the file, reading it ends, and no error shows it.
func FuzzCloud(f *testing.F) {
	for _, seed := range []string{
		"clouds: {c: {auth: {auth_url: http://h, password: hunter2}, regions: [a]}}",
		"clouds:\n  c: &x {auth: *x}\n", "clouds: {c: {auth: [1], regions: [{name: a, values: {b: 1}}]}}", "{",
	} {
		f.Add([]byte(seed))
	}
	path := filepath.Join(f.TempDir(), "clouds.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := swift.Cloud(map[string]string{"OS_CLOUD": "c", "OS_CLIENT_CONFIG_FILE": path, "OS_CLIENT_SECURE_FILE": path})
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the password: %v", err)
		}
	})
}
