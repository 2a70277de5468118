package swift_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"varve/agent/object/swift"
)

// keystone2 is a server for the log-in of version 2, which no release of
// Keystone has any more: OpenStack Identity API v2.0, "Authenticate". Its
// catalog has two regions with two interfaces each; used are the paths under
// which the object store is asked.
func keystone2(t *testing.T, password string) (url string, used *[]string) {
	used = new([]string)
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2.0/tokens" {
			*used = append(*used, r.Method+" "+r.URL.Path)
			if r.Header.Get("X-Auth-Token") != "token" {
				w.WriteHeader(http.StatusUnauthorized)
			}
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var in struct {
			Auth struct {
				PasswordCredentials struct{ Username, Password string }
				TenantName          string
				TenantID            string `json:"tenantId"`
			}
		}
		if err := json.Unmarshal(body, &in); err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("log-in by %s with %s, %s", r.Method, r.Header.Get("Content-Type"), err)
		}
		a := in.Auth
		if a.PasswordCredentials.Username != "demo" || a.PasswordCredentials.Password != password || a.TenantName != "shop" && a.TenantID != "4711" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"error": {"message": "The request you have made requires authentication.", "code": 401, "title": "Unauthorized"}}`)
			return
		}
		fmt.Fprintf(w, `{"access": {
			"token": {"id": "token", "expires": "2099-01-01T00:00:00Z", "tenant": {"id": "4711", "name": "shop"}},
			"serviceCatalog": [
				{"type": "compute", "name": "nova", "endpoints": [{"region": "one", "publicURL": "%[1]s/nova"}]},
				{"type": "object-store", "name": "swift", "endpoints": [
					{"region": "one", "publicURL": "%[1]s/one/public", "internalURL": "%[1]s/one/internal", "adminURL": "%[1]s/one/admin"},
					{"region": "two", "publicURL": "%[1]s/two/public", "internalURL": "%[1]s/two/internal", "adminURL": "%[1]s/two/admin"}]}],
			"user": {"id": "1", "name": "demo", "roles": [{"name": "member"}]}}}`, server.URL)
	}))
	t.Cleanup(server.Close)
	return server.URL, used
}

func TestLoginVersion2(t *testing.T) {
	for _, password := range []string{"secret", strings.Repeat("long", 10)} { // a long one may be an API key to some servers
		url, used := keystone2(t, password)
		base := map[string]string{
			"OS_AUTH_URL": url + "/v2.0", "OS_USERNAME": "demo", "OS_PASSWORD": password, "OS_TENANT_NAME": "shop", "OS_REGION_NAME": "one",
		}
		for _, c := range []struct {
			env  map[string]string
			path string
		}{
			{base, "/one/public"},
			{with(base, "OS_TENANT_NAME", "", "OS_TENANT_ID", "4711"), "/one/public"},
			{with(base, "OS_TENANT_NAME", "", "OS_PROJECT_NAME", "shop"), "/one/public"},
			{with(base, "OS_REGION_NAME", "two"), "/two/public"},
			{with(base, "OS_REGION_NAME", ""), "/one/public"},
			{with(base, "OS_REGION_NAME", "two", "OS_INTERFACE", "internal"), "/two/internal"},
			{with(base, "OS_ENDPOINT_TYPE", "adminURL"), "/one/admin"},
			{with(base, "OS_AUTH_URL", url, "OS_IDENTITY_API_VERSION", "2.0"), "/one/public"},
		} {
			*used = nil
			u := container()
			if _, err := swift.Open(t.Context(), u, c.env); err != nil {
				t.Errorf("%v: %v", c.env, err)
				continue
			}
			if want := "GET " + c.path + "/" + u.Container; len(*used) != 1 || (*used)[0] != want {
				t.Errorf("%v: asked %v, want %s", c.env, *used, want)
			}
		}
		_, err := swift.Open(t.Context(), container(), with(base, "OS_PASSWORD", "hunter2"))
		if err == nil || !strings.Contains(err.Error(), "OS_PASSWORD") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a wrong password: %v", err)
		}
		_, err = swift.Open(t.Context(), container(), with(base, "OS_REGION_NAME", "three"))
		if err == nil || !strings.Contains(err.Error(), "region three") {
			t.Errorf("an unknown region: %v", err)
		}
	}
}
