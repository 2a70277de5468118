package agent

import (
	"os"
	"os/exec"
	"testing"

	"varve/catalog"
)

// A client that has ended is waited for until its connection has: who starts a
// backup after it needs no force. One that lives is in the way at once. A3
func TestBackupAfterItsClientHasEnded(t *testing.T) {
	_, a := startWithTarget(t)
	a.leaveWithin = patience // However late it is told that the connection has ended.
	createVolume(t, a, "v", mib)
	living := must(a.OpenExport(WithPeer(t.Context(), os.Getpid()), "v"))(t)
	_, _, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v"})
	wantError(t, err, InUse, "in use", "--force")
	if err := living.Close(); err != nil {
		t.Fatal(err)
	}

	client := exec.Command("true")
	if err := client.Run(); err != nil {
		t.Fatal(err)
	}
	ended := must(a.OpenExport(WithPeer(t.Context(), client.Process.Pid), "v"))(t)
	_, v, err := a.findVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	var op catalog.Operation
	made := make(chan error, 1)
	go func() {
		var err error
		_, op, err = a.CreateBackup(t.Context(), NewBackup{Volume: "v"})
		made <- err
	}()
	until(t, "that the backup waits for its client", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return v.left != nil
	})
	if err := ended.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-made; err != nil {
		t.Fatalf("a backup after its client has left: %v", err)
	}
	succeed(t, a, op)
	nothingTemporary(t, a)
}
