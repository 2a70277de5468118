package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"varve/agent/repo"
	"varve/layers"
)

// secrets are what opens a target. They are kept in a file of their own that
// only the owner of the state folder can read, as JSON.
type secrets struct {
	Passphrase string            `json:"passphrase,omitempty"`
	KeyFile    []byte            `json:"key_file,omitempty"` // its content
	Slot       string            `json:"slot,omitempty"`     // ID of the key slot that these open
	Env        map[string]string `json:"env,omitempty"`
}

// halfSecrets is what the names of files begin with that are being written.
const halfSecrets = ".new-"

// removeHalfSecrets removes what a crash left. What stays does no harm.
func removeHalfSecrets(state string) {
	names, _ := filepath.Glob(filepath.Join(state, "secrets", halfSecrets+"*")) // the pattern is good
	for _, name := range names {
		os.Remove(name)
	}
}

// guardSecrets takes from everybody else the right to read the secrets, whoever
// gave it, and says so: they may have been read.
func guardSecrets(state string, log *slog.Logger) {
	folder := filepath.Join(state, "secrets")
	names, _ := filepath.Glob(filepath.Join(folder, "*")) // the pattern is good
	for _, name := range append(names, folder) {
		info, err := os.Lstat(name)
		if err != nil || info.Mode()&0o077 == 0 || info.Mode()&fs.ModeSymlink != 0 {
			continue
		}
		if err := os.Chmod(name, info.Mode().Perm()&0o700); err != nil {
			log.Error("others can read secrets of targets, and that cannot be changed", "path", name, "mode", info.Mode(), "error", err)
			continue
		}
		log.Warn("others could read secrets of targets: they cannot any more; consider new credentials and keys", "path", name, "mode", info.Mode())
	}
}

// key is what opens the target's repository.
func (s secrets) key() repo.Key {
	slot, _ := layers.ParseID(s.Slot) // Without it all are tried.
	return repo.Key{Passphrase: s.Passphrase, KeyFile: string(s.KeyFile), Slot: slot}
}

func (a *Agent) secretsPath(target layers.ID) string {
	return filepath.Join(a.config.State, "secrets", target.String())
}

// writeSecrets keeps a target's secrets, durable when it returns; those that it
// had stay until then.
func (a *Agent) writeSecrets(target layers.ID, s secrets) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := a.secretsPath(target)
	f, err := os.CreateTemp(filepath.Dir(path), halfSecrets) // has mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name()) // The first error says more.
		return err
	}
	return syncDir(filepath.Dir(path))
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
