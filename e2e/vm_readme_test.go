package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"varve/e2e/testbed"
)

// readmeSteps are the blocks of README.md that a reader pastes into a shell, in
// their order: a line that each has, and what the machine checks after it.
// What no machine of ours can run does nothing there: see readmeGuest.
var readmeSteps = []struct{ has, then string }{
	{has: "make demo"}, // TestMain builds, and the demo is a run of its own
	{has: "varve serve", then: `daemon=$!
until varve status >/dev/null 2>&1; do sleep 0.1; done`},
	{has: "varve attach db1", then: `fill /srv early 8`},
	{has: "qemu-system-x86_64", then: `is $(status vm1) available`},
	{has: "varve snapshot create", then: `whole /srv early
is $(varve snapshot show before-upgrade -o value -c consistency) frozen
is $(status try) available`},
	{has: "varve target add offsite", then: `is "$(varve target list -o value -c Name | tr '\n' ' ')" "offsite s3 usb "
fill /srv sunday 8`},
	{has: "varve backup create db1", then: `is "$(varve backup list -o value -c Name | tr '\n' ' ')" "monday sunday "
is $(varve backup show monday -o value -c is_incremental) True
varve backup create db1 --target s3 --force >/dev/null
varve backup create db1 --target usb --force >/dev/null`},
	{has: "varve backup expire", then: `is "$(varve backup list --target offsite -o value -c Name | tr '\n' ' ')" "monday sunday "
is $(varve backup list -o value -c ID | wc -l) 4`},
	{has: "varve mount /tmp/browse", then: `is $(status db1-restored) available
umount /srv
varve detach db1 >/dev/null
kill $daemon
wait $daemon || fail "the daemon does not end well"
rm -rf /var/lib/varve`},
	{has: "varve --target swift:", then: `mount -o ro,loop,noload db1.raw /mnt
whole /mnt early
whole /mnt sunday`},
}

// readmeGuest stands for what a reader has and a guest has not.
const readmeGuest = guestVarve + `
unset VARVE_PASSPHRASE
rmmod nbd
modprobe() { insmod /lib/modules/$1.ko; }
make() { :; }
sudo() { :; }
printf '#!/bin/sh\n' >/bin/qemu-system-x86_64
chmod 755 /bin/qemu-system-x86_64
mkdir -p /srv /media/usb /var/log
cd /root
`

// TestVMReadme pastes README.md, block by block, into the shell of a machine
// with a kernel of its own. The addresses of Swift and S3 are those of servers
// here; the last block runs when nothing is left but the target.
func TestVMReadme(t *testing.T) {
	testbed.RequireVM(t)
	swift, s3 := testbed.Swift(t), testbed.S3(t)
	blocks := shellBlocks(string(readFile(t, "../README.md")))
	if len(blocks) != len(readmeSteps) {
		t.Fatalf("README.md has %d blocks of shell commands, want %d", len(blocks), len(readmeSteps))
	}
	openrc := exports(swift.EnvVia(fromGuest(swift.URL)))
	here := strings.NewReplacer(
		"https://s3.example.org&region=eu-1", "http://"+fromGuest(s3.URL)+"&region="+s3.Env()["AWS_REGION"],
		"AWS_ACCESS_KEY_ID=…", "AWS_ACCESS_KEY_ID="+s3.Env()["AWS_ACCESS_KEY_ID"],
		"AWS_SECRET_ACCESS_KEY=…", "AWS_SECRET_ACCESS_KEY="+s3.Env()["AWS_SECRET_ACCESS_KEY"],
		"swift://backups/", "swift://readme/",
		"s3://bucket/", "s3://readme-test/",
		". openrc.sh", ". ./openrc.sh", // a POSIX shell looks for it in PATH alone
	)
	script := strings.Replace(readmeGuest, "/run/varve.log", "/var/log/varve.log", 1) + "cat >openrc.sh <<'EOF'\n" + openrc + "EOF\n"
	for i, step := range readmeSteps {
		if !strings.Contains(blocks[i], step.has) {
			t.Fatalf("block %d of README.md lacks %q:\n%s", i+1, step.has, blocks[i])
		}
		if step.then == "" {
			continue
		}
		script += fmt.Sprintf("echo README block %d\n%s\n%s\n", i+1, here.Replace(blocks[i]), step.then)
	}
	shown := testbed.RunVM(t, script, testbed.VMOptions{Files: guestFiles(), Network: true, Memory: 1024})
	if !strings.Contains(shown, "sunday8") {
		t.Errorf("the files of the mounted backup are not listed:\n%s", shown)
	}
}

var shellBlock = regexp.MustCompile("(?s)\n```sh\n(.*?)```\n")

// shellBlocks returns the blocks of shell commands of a Markdown text.
func shellBlocks(text string) []string {
	var blocks []string
	for _, m := range shellBlock.FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

// fromGuest is host:port of a server on this machine's loopback interface, as a
// guest reaches it.
func fromGuest(url string) string {
	return strings.Replace(strings.TrimPrefix(url, "http://"), "127.0.0.1", "10.0.2.2", 1)
}
