package testbed

import (
	"bufio"
	_ "embed"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

// swiftTools is what Swift needs of the machine.
var swiftTools = []string{
	"swift-proxy-server", "swift-account-server", "swift-container-server", "swift-object-server", "memcached",
	"/usr/bin/python3", "/etc/swift/swift.conf",
}

//go:embed rings.py
var rings string

// A SwiftServer is an OpenStack Swift of one node, with s3api.
type SwiftServer struct {
	URL string // http://127.0.0.1:port

	// The parts, for tests that break one: with the container server down,
	// objects are stored and listings lag. Who breaks a shared server mends
	// it with Restart.
	Proxy, Account, Container, Object *Process

	cache *Process // memcached, which holds the tokens
	env   map[string]string
}

var sharedSwift shared[*SwiftServer]

// Swift starts a Swift with its own log-in (tempauth, version 1).
func Swift(t testing.TB) *SwiftServer {
	t.Helper()
	Require(t, swiftTools...)
	return sharedSwift.get(t, func(b *bed) (*SwiftServer, error) {
		s, err := startSwift(b, "s3api tempauth", `
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = tester-s3cret .admin
user_test_reader = testing3
`)
		if err != nil {
			return nil, err
		}
		s.env = map[string]string{"ST_AUTH": s.URL + "/auth/v1.0", "ST_USER": "test:tester", "ST_KEY": "tester-s3cret"}
		return s, s.ready()
	})
}

// Env returns what a client needs to log in, in the variables it is usually
// read from.
func (s *SwiftServer) Env() map[string]string {
	return copyEnv(s.env)
}

// EnvVia returns Env for a client that comes through a proxy at address
// (host:port). What Swift says of itself follows the way the client came.
func (s *SwiftServer) EnvVia(address string) map[string]string {
	env := copyEnv(s.env)
	env["ST_AUTH"] = "http://" + address + "/auth/v1.0"
	return env
}

// S3 returns the endpoint and the credentials of Swift's S3 interface.
func (s *SwiftServer) S3() *S3Server {
	return &S3Server{URL: s.URL, env: map[string]string{
		"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "tester-s3cret", "AWS_REGION": "us-east-1",
	}}
}

// ForgetTokens makes all tokens invalid that have been given out.
func (s *SwiftServer) ForgetTokens() error {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.cache.port))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "flush_all\r\n"); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && answer != "OK\r\n" {
		err = fmt.Errorf("memcached answers %q", answer)
	}
	return err
}

// ready waits for all parts.
func (s *SwiftServer) ready() error {
	for _, p := range []*Process{s.cache, s.Account, s.Container, s.Object, s.Proxy} {
		if err := p.ready(); err != nil {
			return err
		}
	}
	return nil
}

// startSwift starts the processes without waiting for them. auth is the middle
// of the proxy's pipeline, filters its configuration.
func startSwift(b *bed, auth, filters string) (*SwiftServer, error) {
	folder, err := b.newFolder()
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(5)
	if err != nil {
		return nil, err
	}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	kinds := []string{"account", "container", "object"}
	proxyPort, cachePort := ports[3], ports[4]
	files := map[string]string{"rings.py": rings, "dev/d1/.keep": ""}
	ringArgs := []string{"/usr/bin/python3", "rings.py", folder}
	for i, kind := range kinds {
		files[kind+"-server.conf"] = swiftDefaults(folder, me.Username, ports[i]) + partConfig(folder, kind)
		ringArgs = append(ringArgs, fmt.Sprintf("%s:%d", kind, ports[i]))
	}
	files["proxy-server.conf"] = swiftDefaults(folder, me.Username, proxyPort) + proxyConfig(cachePort, auth) + filters
	if err := writeFiles(folder, files); err != nil {
		return nil, err
	}
	if err := run(folder, nil, "", ringArgs...); err != nil {
		return nil, err
	}
	s := &SwiftServer{URL: fmt.Sprintf("http://127.0.0.1:%d", proxyPort)}
	s.cache, err = b.start(folder, cachePort, nil, "memcached", "-u", me.Username, "-l", "127.0.0.1", "-p", fmt.Sprint(cachePort), "-m", "64")
	if err != nil {
		return nil, err
	}
	for i, part := range []struct {
		kind string
		p    **Process
	}{{"account", &s.Account}, {"container", &s.Container}, {"object", &s.Object}, {"proxy", &s.Proxy}} {
		// -v: the log goes to the console, which is a file of ours.
		*part.p, err = b.start(folder, ports[i], nil, "swift-"+part.kind+"-server", filepath.Join(folder, part.kind+"-server.conf"), "-v")
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// swiftDefaults is what all parts have. Swift waits a fraction of a second for
// its parts, and then answers 503, or lets a listing lag: on a busy machine that
// would be an answer to it and not to the test.
func swiftDefaults(folder, user string, port int) string {
	return fmt.Sprintf(`[DEFAULT]
conn_timeout = 60
node_timeout = 60
bind_ip = 127.0.0.1
bind_port = %d
swift_dir = %s
user = %s
workers = 0
log_level = WARNING
log_requests = false
client_chunk_size = 1048576
object_chunk_size = 1048576
network_chunk_size = 1048576
disk_chunk_size = 1048576
`, port, folder, user)
}

func partConfig(folder, kind string) string {
	return fmt.Sprintf(`devices = %[1]s/dev
mount_check = false
disable_fallocate = true
container_update_timeout = 60
[pipeline:main]
pipeline = %[2]s-server
[app:%[2]s-server]
use = egg:swift#%[2]s
fallocate_reserve = 0
[%[2]s-updater]
recon_cache_path = %[1]s
`, folder, kind)
}

// proxyConfig is the proxy's configuration. With its usual limits the proxy asks a
// node that failed ten times no more for a minute, also if it has come back, and
// there is no other; nor the memory of its tokens.
func proxyConfig(cachePort int, auth string) string {
	filters := []string{"catch_errors", "gatekeeper", "listing_formats", "bulk", "copy", "slo", "dlo", "symlink"}
	var out strings.Builder
	fmt.Fprintf(&out, `[pipeline:main]
pipeline = catch_errors gatekeeper cache listing_formats bulk %s copy slo dlo symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
recoverable_node_timeout = 60
error_suppression_limit = 1000000
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:%d
memcache_max_connections = 64
connect_timeout = 60
pool_timeout = 60
io_timeout = 60
error_suppression_limit = 1000000
[filter:s3api]
use = egg:swift#s3api
s3_acl = no
check_bucket_owner = no
location = us-east-1
`, auth, cachePort)
	for _, filter := range filters {
		fmt.Fprintf(&out, "[filter:%[1]s]\nuse = egg:swift#%[1]s\n", filter)
	}
	return out.String()
}

func copyEnv(env map[string]string) map[string]string {
	out := make(map[string]string, len(env))
	for name, value := range env {
		out[name] = value
	}
	return out
}

// Environ returns env as a process takes it, behind the test's own.
func Environ(env map[string]string) []string {
	out := os.Environ()
	for name, value := range env {
		out = append(out, name+"="+value)
	}
	return out
}
