package swift

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// maxCloudFile bounds the files that clouds are read from, in bytes.
const maxCloudFile = 1 << 20

// Cloud returns env with what clouds.yaml says of the cloud OS_CLOUD in the
// place of its log-in: OpenStack SDK documentation, "Configuring OpenStack SDK
// Applications". Without OS_CLOUD it returns env itself. Of env's own log-in only
// OS_REGION_NAME and OS_INTERFACE count, over those of the cloud, and secrets
// that the cloud leaves out.
//
// The files are clouds.yaml, secure.yaml over it, and clouds-public.yaml for
// profiles; each the first that is found of OS_CLIENT_CONFIG_FILE
// (OS_CLIENT_SECURE_FILE), the working directory, ~/.config/openstack and
// /etc/openstack, with .yaml, .yml or .json behind its name. Errors name file and
// field and never a value of auth.
func Cloud(env map[string]string) (map[string]string, error) {
	name := env["OS_CLOUD"]
	if name == "" {
		return env, nil
	}
	s, err := readCloud(env, name)
	if err != nil {
		return nil, fmt.Errorf("cloud %q: %w", name, err)
	}
	out, err := s.environment(env["OS_REGION_NAME"])
	if err != nil {
		return nil, fmt.Errorf("cloud %q: %w", name, err)
	}
	for _, own := range []string{"OS_REGION_NAME", "OS_INTERFACE"} {
		if env[own] != "" {
			out[own] = env[own]
		}
	}
	for _, secret := range []string{"OS_PASSWORD", "OS_TOKEN", "OS_APPLICATION_CREDENTIAL_SECRET"} {
		if out[secret] == "" && env[secret] != "" {
			out[secret] = env[secret]
		}
	}
	for name, value := range env { // What is no log-in: by which proxy to go.
		if !strings.HasPrefix(name, "OS_") && !strings.HasPrefix(name, "ST_") {
			out[name] = value
		}
	}
	return out, nil
}

// A fields is one cloud, or its auth, as its file has it.
type fields map[string]any

// readCloud puts together what the files say of a cloud.
func readCloud(env map[string]string, name string) (fields, error) {
	file, clouds, err := findClouds("clouds", "clouds", env["OS_CLIENT_CONFIG_FILE"])
	if err != nil {
		return nil, err
	}
	secureFile, secrets, err := findClouds("secure", "clouds", env["OS_CLIENT_SECURE_FILE"])
	if err != nil {
		return nil, err
	}
	if file == "" && secureFile == "" {
		return nil, fmt.Errorf("there is no clouds.yaml in %s; or name one with OS_CLIENT_CONFIG_FILE", strings.Join(cloudFolders(), ", "))
	}
	cloud := fields{}
	cloud.merge(clouds[name])
	cloud.merge(secrets[name])
	if len(cloud) == 0 {
		known := slices.Sorted(maps.Keys(clouds))
		return nil, fmt.Errorf("%s has no such cloud; it has %s", file, strings.Join(known, ", "))
	}
	profile := cloud.text("profile")
	if profile == "" && cloud.text("cloud") != name {
		profile = cloud.text("cloud") // its older name
	}
	if profile == "" {
		return cloud, nil
	}
	_, public, err := findClouds("clouds-public", "public-clouds", "")
	if err != nil {
		return nil, err
	}
	whole := fields{}
	whole.merge(public[profile])
	whole.merge(cloud)
	if whole.auth("auth_url") == "" {
		return nil, fmt.Errorf("no clouds-public.yaml has its profile %q, and the cloud has no auth_url: the vendors that OpenStack's own client knows are not "+
			"known here, put auth_url into clouds.yaml", profile)
	}
	return whole, nil
}

// cloudFolders are the places where clouds.yaml may be.
func cloudFolders() []string {
	folders := []string{"."}
	if dir := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		folders = append(folders, filepath.Join(dir, "openstack"))
	}
	if home, err := os.UserHomeDir(); err == nil {
		folders = append(folders, filepath.Join(home, ".config", "openstack"))
	}
	return append(folders, "/etc/openstack")
}

// findClouds reads the first file of that name and returns the clouds below
// section; none if there is no such file. One that is named must be there.
func findClouds(name, section, named string) (file string, clouds map[string]fields, err error) {
	var files []string
	for _, folder := range cloudFolders() {
		for _, suffix := range []string{".yaml", ".yml", ".json"} {
			files = append(files, filepath.Join(folder, name+suffix))
		}
	}
	if named != "" {
		files = []string{named}
	}
	for _, file := range files {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) && named == "" {
			continue
		} else if err != nil {
			return "", nil, err
		}
		clouds, err := parseClouds(f, section)
		f.Close() // only read from
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", file, err)
		}
		return file, clouds, nil
	}
	return "", nil, nil
}

// parseClouds reads the clouds below section. Its errors tell the line and no
// more: the text holds passwords.
func parseClouds(r io.Reader, section string) (map[string]fields, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxCloudFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxCloudFile {
		return nil, fmt.Errorf("larger than %d bytes", maxCloudFile)
	}
	var all map[string]any
	if err := yaml.Unmarshal(data, &all); err != nil {
		var at yaml.Error
		if errors.As(err, &at) && at.GetToken() != nil && at.GetToken().Position != nil {
			return nil, fmt.Errorf("not the YAML of a clouds.yaml, near line %d", at.GetToken().Position.Line)
		}
		return nil, errors.New("not the YAML of a clouds.yaml")
	}
	clouds := map[string]fields{}
	below, _ := all[section].(map[string]any)
	for name, value := range below {
		cloud, ok := value.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("cloud %q has no fields", name)
		}
		clouds[name] = normal(cloud)
	}
	return clouds, nil
}

// normal writes the names of fields in one way: with _ for -.
func normal(in map[string]any) fields {
	out := fields{}
	for name, value := range in {
		if inner, ok := value.(map[string]any); ok {
			value = map[string]any(normal(inner))
		}
		out[strings.ReplaceAll(name, "-", "_")] = value
	}
	return out
}

// merge puts over over f, and within auth field by field.
func (f fields) merge(over fields) {
	for name, value := range over {
		old, _ := f[name].(map[string]any)
		inner, ok := value.(map[string]any)
		if ok {
			merged := fields{}
			merged.merge(old)
			merged.merge(inner)
			value = map[string]any(merged)
		}
		f[name] = value
	}
}

// text is a field as a string: numbers and booleans may stand without quotes.
func (f fields) text(name string) string {
	switch v := f[name].(type) {
	case nil, map[string]any, []any:
		return ""
	case string:
		return v
	default:
		return fmt.Sprint(v)
	}
}

// auth is a field of auth; one that stands beside it counts as well.
func (f fields) auth(name string) string {
	if inner, ok := f["auth"].(map[string]any); ok {
		if text := fields(inner).text(name); text != "" {
			return text
		}
	}
	return f.text(name)
}

// cloudAuth are the fields of auth and the variables that say the same.
var cloudAuth = map[string]string{
	"auth_url": "OS_AUTH_URL", "username": "OS_USERNAME", "user_id": "OS_USER_ID", "password": "OS_PASSWORD", "token": "OS_TOKEN",
	"project_name": "OS_PROJECT_NAME", "project_id": "OS_PROJECT_ID", "tenant_name": "OS_TENANT_NAME", "tenant_id": "OS_TENANT_ID",
	"user_domain_name": "OS_USER_DOMAIN_NAME", "user_domain_id": "OS_USER_DOMAIN_ID",
	"project_domain_name": "OS_PROJECT_DOMAIN_NAME", "project_domain_id": "OS_PROJECT_DOMAIN_ID", "trust_id": "OS_TRUST_ID",
	"application_credential_id": "OS_APPLICATION_CREDENTIAL_ID", "application_credential_name": "OS_APPLICATION_CREDENTIAL_NAME",
	"application_credential_secret": "OS_APPLICATION_CREDENTIAL_SECRET",
}

// environment is the cloud as the variables that readEnv reads. region, if not
// empty, is the one that is wanted.
func (f fields) environment(region string) (map[string]string, error) {
	if err := f.setRegion(region); err != nil {
		return nil, err
	}
	out := map[string]string{
		"OS_REGION_NAME": f.text("region_name"), "OS_IDENTITY_API_VERSION": f.text("identity_api_version"), "OS_CACERT": f.text("cacert"),
	}
	if below, ok := strings.CutPrefix(out["OS_CACERT"], "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			out["OS_CACERT"] = filepath.Join(home, below)
		}
	}
	for _, name := range []string{"interface", "endpoint_type"} {
		if out["OS_INTERFACE"] == "" {
			out["OS_INTERFACE"] = f.text(name)
		}
	}
	for field, variable := range cloudAuth {
		out[variable] = f.auth(field)
	}
	for _, of := range []string{"USER", "PROJECT"} { // what stands for both domains
		if out["OS_"+of+"_DOMAIN_NAME"] == "" && out["OS_"+of+"_DOMAIN_ID"] == "" {
			out["OS_"+of+"_DOMAIN_ID"], out["OS_"+of+"_DOMAIN_NAME"] = f.auth("default_domain"), f.auth("default_domain_name")
			if id := f.auth("default_domain_id"); id != "" {
				out["OS_"+of+"_DOMAIN_ID"] = id
			}
		}
	}
	if url := f.text("object_store_endpoint_override"); url != "" {
		out["OS_STORAGE_URL"] = url
	}
	switch {
	case strings.EqualFold(f.text("verify"), "false"), strings.EqualFold(f.text("insecure"), "true"):
		return nil, errors.New("verify: false is not supported, since whoever stands between could read the credentials: name the authority in cacert")
	case f.text("cert") != "":
		return nil, errors.New("client certificates (cert, key) are not supported")
	case out["OS_AUTH_URL"] == "":
		return nil, errors.New("auth has no auth_url")
	}
	if err := chooseKind(f.text("auth_type"), out); err != nil {
		return nil, err
	}
	maps.DeleteFunc(out, func(_, value string) bool { return value == "" })
	return out, nil
}

// chooseKind keeps of a log-in what its kind, the auth_type, goes by.
func chooseKind(kind string, out map[string]string) error {
	switch kind {
	case "v2password":
		out["OS_IDENTITY_API_VERSION"] = "2"
		fallthrough
	case "", "password", "v3password":
		if kind != "" {
			out["OS_APPLICATION_CREDENTIAL_ID"], out["OS_APPLICATION_CREDENTIAL_NAME"], out["OS_TOKEN"] = "", "", ""
		}
	case "token", "v3token":
		out["OS_USERNAME"], out["OS_USER_ID"], out["OS_APPLICATION_CREDENTIAL_ID"], out["OS_APPLICATION_CREDENTIAL_NAME"] = "", "", "", ""
	case "v3applicationcredential":
		out["OS_PASSWORD"], out["OS_TOKEN"] = "", ""
	default:
		return fmt.Errorf("auth_type %q is not supported; there are password, v3applicationcredential and token", kind)
	}
	return nil
}

// setRegion chooses among the cloud's regions. They may be names, or have a name
// and values of their own.
func (f fields) setRegion(wanted string) error {
	if wanted == "" {
		wanted = f.text("region_name")
	}
	regions, _ := f["regions"].([]any)
	var names []string
	for _, r := range regions {
		name, values := fmt.Sprint(r), fields(nil)
		if inner, ok := r.(map[string]any); ok {
			name = fields(inner).text("name")
			v, _ := inner["values"].(map[string]any)
			values = normal(v)
		}
		names = append(names, name)
		if name == wanted || wanted == "" && len(regions) == 1 {
			f.merge(values)
			f["region_name"] = name
			return nil
		}
	}
	switch {
	case len(names) == 0:
		return nil
	case wanted == "":
		return fmt.Errorf("it has several regions; choose one with OS_REGION_NAME: %s", strings.Join(names, ", "))
	}
	return fmt.Errorf("it has no region %q; there are %s", wanted, strings.Join(names, ", "))
}
