package e2e

import (
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"varve/e2e/testbed"
)

// TestKill kills the daemon with SIGKILL while clients that are not ours write
// and flush and while snapshots come and go, and starts it again, KILLS times.
// Whatever was answered is there, since the machine has not failed, and so are
// all acts that were; fio finds each of its blocks whole. V9, S1, S3, V4
func TestKill(t *testing.T) {
	testbed.Require(t, "fio")
	seed := newSeed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	var moment atomic.Int64
	d := startDaemon(t)
	h := newHistory(t, d, t.TempDir(), seed, true, func() int { return int(moment.Add(1)) })
	d.varve("volume", "create", "fio", "--size", "32M")
	runFio(t, d, "--rw=write", "--do_verify=0", "--end_fsync=1") // so that each block can be verified from now on
	for life := range setting(t, "KILLS", 4) {
		load := fio(d, "--rw=randwrite", "--do_verify=0", "--iodepth=16", "--fsync=32", "--time_based", "--runtime=600", "--randseed="+seedText(seed+uint64(life)))
		load.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := load.Start(); err != nil {
			t.Fatal(err)
		}
		if err := h.write(); err != nil {
			t.Fatal(err)
		}
		end, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- actUntil(h, r, end) }()
		want := h.promised() + 1 + rand.New(rand.NewPCG(seed, uint64(life))).IntN(300)
		await(t, "the writer goes on", func() bool { return h.promised() >= want })
		close(end)
		d.kill()
		load.Wait() // it lost its server: the error says so
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		h.rest()
		crashed := h.now()
		d.start()
		if err := h.check(d, crashed); err != nil {
			t.Fatalf("life %d, killed at %d: %v\n%v", life, crashed, err, h)
		}
		if err := h.settle(); err != nil {
			t.Fatal(err)
		}
		runFio(t, d, "--rw=read", "--verify_fatal=1")
	}
}

// actUntil acts until the channel is closed. Then an act that fails is none.
func actUntil(h *history, r *rand.Rand, end <-chan struct{}) error {
	for {
		err := h.act(r)
		select {
		case <-end:
			return nil
		default:
		}
		if err != nil {
			return err
		}
	}
}

// fio is fio on the volume "fio", with a checksum in each block.
func fio(d *daemon, args ...string) *exec.Cmd {
	return exec.Command("fio", append([]string{"--name=kill", "--ioengine=nbd", "--uri=" + d.uri("fio"), "--bs=4k", "--size=32M",
		"--verify=crc32c", "--verify_state_save=0", "--minimal"}, args...)...)
}

func runFio(t *testing.T, d *daemon, args ...string) {
	t.Helper()
	cmd := fio(d, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
}
