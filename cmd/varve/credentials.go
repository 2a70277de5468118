package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/term"

	"varve/agent/object/swift"
	"varve/agent/repo"
)

// maxSecretFile bounds the files that credentials and passphrases are read
// from, in bytes.
const maxSecretFile = 64 << 10

// credentialFamilies are the beginnings of the names of the variables that a
// kind of target logs in with: OpenStack's v2 and v3 and Swift's v1, and S3's.
var credentialFamilies = map[string][]string{
	"swift": {"OS_", "ST_"},
	"s3":    {"AWS_"},
}

// proxyVariables may stand in a file of credentials, since they may hold a
// password. They are not taken from the environment: that of the daemon counts.
var proxyVariables = []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}

// credentialPaths are the variables that name a file.
var credentialPaths = []string{"OS_CACERT", "AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"}

// credentials are the variables that the target at url logs in with: those of
// the flag --credentials' file, if there is one, over those of the environment;
// or the cloud in clouds.yaml that they or the flag --cloud name. They are
// secret. Paths in them are made absolute: the daemon works in another folder.
func (c *call) credentials(url string) (map[string]string, error) {
	env, err := credentials(url, c.environ, c.String("credentials"), c.stderr)
	if err != nil {
		return nil, err
	}
	if cloud := c.String("cloud"); cloud != "" {
		if !strings.HasPrefix(url, "swift:") {
			return nil, usagef("--cloud %s: clouds of clouds.yaml are for swift:// targets", cloud)
		}
		env["OS_CLOUD"] = cloud
	}
	if env, err = swift.Cloud(env); err != nil {
		return nil, usagef("%v", err)
	}
	return env, absolutePaths(env)
}

// credentials is call.credentials without clouds.
func credentials(url string, environ []string, file string, warnings io.Writer) (map[string]string, error) {
	scheme, _, _ := strings.Cut(url, "://")
	env := credentialsIn(scheme, environ)
	if file != "" {
		data, err := readSecretFile("credentials", file, warnings)
		if err != nil {
			return nil, err
		}
		vars, err := parseCredentials(data)
		if err != nil {
			return nil, usagef("credentials file %s: %v", file, err)
		}
		if vars["OS_CLOUD"] == "" && (vars["OS_AUTH_URL"] != "" || vars["ST_AUTH"] != "") {
			delete(env, "OS_CLOUD") // the file says all that is needed
		}
		for name, value := range vars {
			if isCredential(scheme, name) || slices.Contains(proxyVariables, name) {
				env[name] = value
			}
		}
	}
	return env, absolutePaths(env)
}

func absolutePaths(env map[string]string) error {
	for _, name := range credentialPaths {
		if env[name] == "" {
			continue
		}
		path, err := filepath.Abs(env[name])
		if err != nil {
			return fmt.Errorf("%s=%s: %w", name, env[name], err)
		}
		env[name] = path
	}
	return nil
}

// credentialsIn are the variables of environ, NAME=VALUE each, that targets of
// this scheme log in with.
func credentialsIn(scheme string, environ []string) map[string]string {
	env := map[string]string{}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if isCredential(scheme, name) {
			env[name] = value
		}
	}
	return env
}

func isCredential(scheme, name string) bool {
	for _, prefix := range credentialFamilies[scheme] {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// parseCredentials reads lines of NAME=VALUE, as an openrc file has them:
// "export" may stand before, quotes around the value, # begins a comment line.
// Nothing is expanded. Errors name the line and never the value.
func parseCredentials(data []byte) (map[string]string, error) {
	vars := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxSecretFile+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if rest, cut := strings.CutPrefix(line, "export "); cut {
			line = strings.TrimSpace(rest)
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || !isVariable(name) {
			return nil, fmt.Errorf("line %d is not NAME=VALUE", n)
		}
		value, err := unquote(value)
		if err != nil {
			return nil, fmt.Errorf("line %d (%s): %w", n, name, err)
		}
		if !isCredential("swift", name) && !isCredential("s3", name) && !slices.Contains(proxyVariables, name) {
			return nil, fmt.Errorf("line %d: %s is not a credential: names begin with OS_, ST_ or AWS_", n, name)
		}
		vars[name] = value
	}
	return vars, lines.Err()
}

func isVariable(name string) bool {
	for i, r := range name {
		letter := r == '_' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return name != ""
}

// unquote takes the quotes off a value as a shell would. A value that a shell
// would expand is refused, since it would not mean here what it means there.
func unquote(value string) (string, error) {
	if value == "" {
		return "", nil
	}
	quote := value[0]
	switch {
	case quote == '\'' || quote == '"':
		if len(value) < 2 || value[len(value)-1] != quote {
			return "", fmt.Errorf("the quote is not closed")
		}
		value = value[1 : len(value)-1]
		if strings.IndexByte(value, quote) >= 0 {
			return "", fmt.Errorf("a quote inside quotes")
		}
		if quote == '"' && strings.ContainsAny(value, "$`\\") {
			return "", fmt.Errorf("$, ` and \\ are not expanded here: use single quotes")
		}
	case strings.ContainsAny(value, "$`'\" \t"):
		return "", fmt.Errorf("a value with spaces, quotes, $ or ` goes into single quotes")
	}
	return value, nil
}

// A secret is what opens a target: a passphrase, or the content of a key file.
type secret struct {
	passphrase string
	keyFile    []byte
}

// key is what opens a repository with the secret.
func (s secret) key() repo.Key { return repo.Key{Passphrase: s.passphrase, KeyFile: string(s.keyFile)} }

// A secretSource is where the secret of a target comes from. Never from the
// command line, which every process of the machine can read.
type secretSource struct {
	ctx     context.Context
	keyFile string // of --key-file
	file    string // of --passphrase-file
	flags   string // what comes before the flags' names: "", or "new-"
	getenv  func(string) string
	stdin   *os.File // asked if it is a terminal
	stderr  io.Writer
}

// given reports whether there is a secret without asking for one.
func (p secretSource) given() bool {
	return p.keyFile != "" || p.file != "" || p.getenv(p.variable()) != ""
}

// read returns the key file if one is named, else the passphrase.
func (p secretSource) read(target string, isNew bool) (s secret, err error) {
	if p.keyFile == "" {
		s.passphrase, err = p.passphrase(target, isNew)
		return s, err
	}
	if p.file != "" {
		return s, usagef("--%skey-file and --%spassphrase-file: give one of them", p.flags, p.flags)
	}
	s.keyFile, err = readSecretFile("key", p.keyFile, p.stderr)
	if err == nil && len(s.keyFile) == 0 {
		err = usagef("key file %s is empty", p.keyFile)
	}
	return s, err
}

// variable is the name of the environment's variable with the passphrase.
func (p secretSource) variable() string {
	return "VARVE_" + strings.ToUpper(strings.ReplaceAll(p.flags, "-", "_")) + "PASSPHRASE"
}

// passphrase returns that of the file, of VARVE_PASSPHRASE, or typed without an
// echo, twice if it is a new one. A target that is not encrypted needs none, so
// it is called only when one is needed.
func (p secretSource) passphrase(target string, isNew bool) (string, error) {
	if p.file != "" {
		data, err := readSecretFile("passphrase", p.file, p.stderr)
		if err != nil {
			return "", err
		}
		secret := strings.TrimRight(string(data), "\r\n")
		if secret == "" {
			return "", usagef("passphrase file %s is empty", p.file)
		}
		return secret, nil
	}
	if secret := p.getenv(p.variable()); secret != "" {
		return secret, nil
	}
	if p.stdin == nil || !term.IsTerminal(int(p.stdin.Fd())) {
		or := ""
		if isNew && p.flags == "" {
			or = "; or ask for --no-encryption"
		}
		return "", usagef("target %s needs a %spassphrase or key file: give --%spassphrase-file FILE or --%skey-file FILE, or set %s%s",
			target, strings.ReplaceAll(p.flags, "-", " "), p.flags, p.flags, p.variable(), or)
	}
	return p.ask(target, isNew)
}

func (p secretSource) ask(target string, isNew bool) (string, error) {
	what := "Passphrase"
	if p.flags != "" {
		what = "New passphrase"
	}
	secret, err := p.prompt(fmt.Sprintf("%s of target %s: ", what, target))
	if err != nil {
		return "", err
	}
	if secret == "" {
		return "", usagef("the passphrase is empty")
	}
	if !isNew {
		return secret, nil
	}
	again, err := p.prompt("Once more: ")
	if err != nil {
		return "", err
	}
	if again != secret {
		return "", usagef("the two passphrases differ")
	}
	return secret, nil
}

// prompt reads a line from the terminal without an echo. Ctrl-C, which ends
// ctx, gives the terminal its echo back; the read itself ends with the process.
func (p secretSource) prompt(text string) (string, error) {
	fd := int(p.stdin.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("read passphrase: %w", err)
	}
	type answer struct {
		secret []byte
		err    error
	}
	typed := make(chan answer, 1)
	defer fmt.Fprintln(p.stderr)
	go func() {
		fmt.Fprint(p.stderr, text)
		secret, err := term.ReadPassword(fd)
		typed <- answer{secret, err}
	}()
	select {
	case a := <-typed:
		if a.err != nil {
			return "", fmt.Errorf("read passphrase: %w", a.err)
		}
		return string(a.secret), nil
	case <-p.ctx.Done():
		return "", errors.Join(p.ctx.Err(), term.Restore(fd, before))
	}
}

// checkMode refuses a file of secrets that any user can write: it may be
// anybody's. It warns of one that any user can read. A pipe is its ends'.
func checkMode(what string, f *os.File, warnings io.Writer) error {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	mode := info.Mode().Perm()
	switch {
	case mode&0o002 != 0:
		return usagef("%s file %s: every user of this machine can change it (mode %04o): look into it, then: chmod 600 %s", what, f.Name(), mode, f.Name())
	case mode&0o004 != 0:
		fmt.Fprintf(warnings, "warning: every user of this machine can read the %s file %s (mode %04o): chmod 600 %s\n", what, printable(f.Name()), mode, printable(f.Name()))
	}
	return nil
}

// readSecretFile reads a small regular file; a pipe will do as well.
func readSecretFile(what, path string, warnings io.Writer) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usagef("%s file: %v", what, err)
	}
	defer f.Close()
	if err := checkMode(what, f, warnings); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return nil, usagef("%s file: %v", what, err)
	}
	if len(data) > maxSecretFile {
		return nil, usagef("%s file %s is larger than %d bytes", what, path, maxSecretFile)
	}
	return data, nil
}
