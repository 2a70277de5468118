package object

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// NoProxy in place of a proxy's address means that there is none, whatever the
// environment says.
const NoProxy = "none"

// CheckProxy says what is wrong with the address of a proxy; empty is none. Its
// errors do not repeat it: it may hold a password.
func CheckProxy(text string) error {
	if text == "" || text == NoProxy {
		return nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) || u.Hostname() == "":
		return errors.New("a proxy is http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT")
	case u.User != nil:
		return errors.New("no user or password may stand in a proxy's address, which is shown; set HTTPS_PROXY in the credentials file instead")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("a proxy's address ends with its port")
	}
	return nil
}

// proxyVariables are the variables that say which proxy to use.
var proxyVariables = []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}

// WithProxy adds to env that the proxy is to be used; empty adds nothing.
func WithProxy(env map[string]string, proxy string) {
	switch proxy {
	case "":
	case NoProxy:
		env["NO_PROXY"] = "*"
	default:
		env["HTTP_PROXY"], env["HTTPS_PROXY"], env["NO_PROXY"] = proxy, proxy, ""
	}
}

// proxies returns what chooses the proxy of a request: as env says or, if it
// has none of the variables, the process's environment.
func proxies(env map[string]string) func(*http.Request) (*url.URL, error) {
	if !slices.ContainsFunc(proxyVariables, func(name string) bool { return env[name] != "" }) {
		return http.ProxyFromEnvironment
	}
	choose := (&httpproxy.Config{HTTPProxy: env["HTTP_PROXY"], HTTPSProxy: env["HTTPS_PROXY"], NoProxy: env["NO_PROXY"]}).ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
}
