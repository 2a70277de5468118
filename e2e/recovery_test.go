package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"varve/e2e/testbed"
)

// recoverySteps are the blocks of the manual's section 1, in their order: what
// each has, and what a reader does by hand before and after it.
var recoverySteps = []struct{ has, before, then string }{
	{has: "backup restore monday db1.raw", before: `varve nbd --nbd-listen unix:$PWD/x.sock spare >server.out &
server=$!
until [ -S x.sock ]; do kill -0 $server; done
`, then: `kill $server
wait $server || true
`},
	{has: "mount /tmp/browse", then: `mounted=$!
until mountpoint -q browse; do kill -0 $mounted; done
`},
	{has: "umount /media", then: `kill $mounted
wait $mounted || true
`},
	{has: "varve serve", then: `kill $daemon
wait $daemon
`},
}

// TestManualRecovery pastes section 1 of docs/manual.md into a shell on a host
// that has nothing but the program, the address of the target, what logs in
// there, and one of its keys: each command works as it is printed, and gives
// back what was backed up, byte for byte. B1, B15
func TestManualRecovery(t *testing.T) {
	testbed.RequireRoot(t)
	testbed.Require(t, "mkfs.ext4", "nbdcopy", "qemu-img", "debugfs", "mountpoint")
	t.Run("swift with the passphrase", func(t *testing.T) {
		testRecovery(t, "swift://recovery/host1", testbed.Swift(t).Env(), func(string) string { return passphrase })
	})
	t.Run("s3 with the recovery key", func(t *testing.T) {
		s := testbed.S3(t)
		testRecovery(t, "s3://recovery/host1?endpoint="+s.URL+"&region="+s.Env()["AWS_REGION"], s.Env(), func(paper string) string {
			lines := strings.Split(strings.TrimSpace(string(readFile(t, paper))), "\n")
			return lines[len(lines)-1]
		})
	})
}

// testRecovery backs up a volume, loses its host, and follows the manual. key
// is what the reader still has, of which the recovery key is in the file paper.
func testRecovery(t *testing.T, target string, env map[string]string, key func(paper string) string) {
	d := startDaemon(t, words(env)...)
	dir := t.TempDir()
	image, paper := filepath.Join(dir, "image"), filepath.Join(dir, "paper")
	letter := bytes.Repeat([]byte("what was lost\n"), 5000)
	files := map[string][]byte{"tree/letter": letter, "openrc.sh": []byte(exports(env)), "spare": bytes.Repeat([]byte{0xee}, 40*MiB), "disk": bytes.Repeat([]byte{0xee}, 40*MiB)}
	for _, folder := range []string{"tree", "browse", "media", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client(t, "mkfs.ext4", "-q", "-d", filepath.Join(dir, "tree"), image, "32M")
	d.varve("volume", "create", "db1", "--size", "32M")
	d.varve("target", "add", "offsite", target, "--recovery-key-file", paper)
	d.varve("backup", "create", "db1", "--name", "sunday")
	client(t, "nbdcopy", "--flush", image, d.uri("db1"))
	d.varve("backup", "create", "db1", "--name", "monday", "--incremental")
	d.destroy()

	script := recoveryScript(t, strings.NewReplacer(
		". openrc.sh", ". ./openrc.sh", // a POSIX shell looks for it in PATH alone
		"VARVE_PASSPHRASE=…", "VARVE_PASSPHRASE='"+key(paper)+"'",
		"swift://backups/host1", target,
		"/dev/sdx", "disk",
		"'nbd+unix:///disk?socket=/run/x.sock'", `"nbd+unix:///disk?socket=$PWD/x.sock"`,
		"mkdir /tmp/browse\n", "", "mount /tmp/browse ", "mount $PWD/browse & ", "/tmp/browse", "browse", "/media", "media",
		"varve serve &", "varve serve >ready 2>serve.log &\ndaemon=$!\nuntil grep -qs ready ready; do kill -0 $daemon; done",
	))
	if err := os.Symlink(program, filepath.Join(dir, "bin/varve")); err != nil {
		t.Fatal(err)
	}
	shell := exec.Command("sh", "-eux", "-c", script)
	shell.Dir = dir
	shell.Env = []string{"PATH=" + filepath.Join(dir, "bin") + ":" + os.Getenv("PATH"), "HOME=" + dir, "VARVE_STATE=" + d.state}
	t.Cleanup(func() { clearMounts(dir) })
	output, err := os.Create(filepath.Join(dir, "output")) // no pipe, which what the shell leaves behind would hold open
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	shell.Stdout, shell.Stderr = output, output
	err = shell.Run()
	shown := readFile(t, output.Name())
	if err != nil {
		t.Fatalf("the manual's way back: %v\n%s", err, shown)
	}
	if !strings.Contains(string(shown), "\nletter\n") {
		t.Errorf("the mounted backup does not show its file:\n%s", shown)
	}
	want := readFile(t, image)
	for _, name := range []string{"db1.raw", "disk", "spare"} {
		if got := readFile(t, filepath.Join(dir, name)); len(got) < len(want) || !bytes.Equal(got[:len(want)], want) {
			t.Errorf("%s differs from what was backed up", name)
		}
	}
	client(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, filepath.Join(dir, "db1.qcow2"))
	d.start()
	restored := filepath.Join(dir, "restored")
	client(t, "nbdcopy", d.uri("db1"), restored)
	if !bytes.Equal(readFile(t, restored), want) {
		t.Error("the restored volume differs from what was backed up")
	}
}

// recoveryScript is section 1 of the manual for this machine.
func recoveryScript(t *testing.T, here *strings.Replacer) string {
	t.Helper()
	_, section, _ := strings.Cut(string(readFile(t, "../docs/manual.md")), "\n## 1. The machine is gone\n")
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := shellBlocks(section)
	if len(blocks) != len(recoverySteps) {
		t.Fatalf("section 1 of docs/manual.md has %d blocks of shell commands, want %d", len(blocks), len(recoverySteps))
	}
	script := "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" // if a command fails
	for i, step := range recoverySteps {
		if !strings.Contains(blocks[i], step.has) {
			t.Fatalf("block %d of section 1 of docs/manual.md lacks %q:\n%s", i+1, step.has, blocks[i])
		}
		script += step.before + here.Replace(blocks[i]) + step.then
	}
	return script
}

// exports are the lines of a shell that set an environment.
func exports(env map[string]string) string {
	var lines strings.Builder
	for name, value := range env {
		lines.WriteString("export " + name + "='" + value + "'\n")
	}
	return lines.String()
}
