package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"varve/layers"
)

// secrets are what opens a target. They are kept in a file of their own that
// only the owner of the state folder can read, as JSON.
type secrets struct {
	Passphrase string            `json:"passphrase,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
}

func (a *Agent) secretsPath(target layers.ID) string {
	return filepath.Join(a.config.State, "secrets", target.String())
}

// writeSecrets keeps a target's secrets, durable when it returns.
func (a *Agent) writeSecrets(target layers.ID, s secrets) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := a.secretsPath(target)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		os.Remove(path) // The first error says more.
	}
	return err
}

// readSecrets returns a target's secrets. Its errors never quote them.
func (a *Agent) readSecrets(target layers.ID) (secrets, error) {
	data, err := os.ReadFile(a.secretsPath(target))
	if err != nil {
		return secrets{}, fail(Unavailable, "read its secrets: %w: remove the target and add it again", err)
	}
	var s secrets
	if json.Unmarshal(data, &s) != nil {
		return secrets{}, fail(Corrupt, "its secrets in %s are damaged: remove the target and add it again", a.secretsPath(target))
	}
	return s, nil
}

// removeSecrets forgets a target's secrets. None is no error.
func (a *Agent) removeSecrets(target layers.ID) error {
	if err := os.Remove(a.secretsPath(target)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the secrets: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
