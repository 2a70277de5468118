package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"varve/catalog"
)

// A hookKind is when a hook runs.
type hookKind string

const (
	preSnapshot  hookKind = "pre-snapshot"
	postSnapshot hookKind = "post-snapshot"
)

const (
	maxHookCommand = 4096 // bytes
	maxHookOutput  = 1024 // bytes of the end of what it says that are kept
	hookWait       = time.Second
)

// hookInherits are the variables of the daemon that a hook sees. The others may
// be secrets.
var hookInherits = []string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR"}

func checkHook(command string) error {
	if len(command) > maxHookCommand || !utf8.ValidString(command) || strings.ContainsRune(command, 0) {
		return fail(Invalid, "a hook is a shell command of at most %d bytes of text", maxHookCommand)
	}
	return nil
}

// runHook runs a hook of a volume with /bin/sh and waits for its end, at most
// for its limit; then it and all that it started in its process group is
// killed. The error has the end of what it said.
func (a *Agent) runHook(ctx context.Context, kind hookKind, v catalog.Volume, q catalog.Quiet, outcome string) error {
	command := v.PreSnapshot
	if kind == postSnapshot {
		command = v.PostSnapshot
	}
	limit := hookLimit(v)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	said := &tail{}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = hookWait // What it left running may keep its output open.
	for _, name := range hookInherits {
		if value, there := os.LookupEnv(name); there {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Env = append(cmd.Env,
		"VARVE_STATE="+a.config.State, "VARVE_HOOK="+string(kind),
		"VARVE_VOLUME="+v.Name, "VARVE_VOLUME_ID="+v.ID.String(),
		"VARVE_SNAPSHOT="+q.SnapshotName, "VARVE_SNAPSHOT_ID="+q.SnapshotID.String())
	if outcome != "" {
		cmd.Env = append(cmd.Env, "VARVE_OUTCOME="+outcome)
	}
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrWaitDelay):
		return nil // It succeeded, and left something running.
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("it was ended at its limit of %s", limit)
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	if text := said.String(); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return hookError(kind, command, err)
}

// A tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(0, len(p)-maxHookOutput):]...)
	t.b = t.b[max(0, len(t.b)-maxHookOutput):]
	return len(p), nil
}

func (t *tail) String() string {
	return strings.ToValidUTF8(string(bytes.TrimSpace(t.b)), "�")
}
