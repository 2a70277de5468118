package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"varve/agent"
	"varve/agent/api"
	"varve/agent/freeze"
)

// freezeHelperName is the hidden command that the daemon starts to freeze file
// systems: a process that thaws them when the daemon dies.
const freezeHelperName = "__freeze"

func (p *program) freezeHelperCommand() *cli.Command {
	return &cli.Command{
		Name:            freezeHelperName,
		Hidden:          true,
		SkipFlagParsing: true,
		HideHelp:        true,
		Action: func(c *cli.Context) error {
			if code := freeze.Main(c.Args().Slice(), p.stdin, p.stdout); code != 0 {
				return quietError{code}
			}
			return nil
		},
	}
}

// withPeer tells the agent which process of this host a connection is of.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	u, is := conn.(*net.UnixConn)
	if !is {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	})
	return agent.WithPeer(ctx, pid)
}

// quiesceFlags are those of commands that make snapshots.
func quiesceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "freeze", Usage: "freeze the file system at this `MOUNTPOINT` too, for the instant of the snapshot; may repeat"},
		&cli.BoolFlag{Name: "no-freeze", Usage: "freeze no file system; those on the volume that are mounted here are found otherwise"},
		&cli.DurationFlag{Name: "freeze-limit", Usage: "`TIME` that a file system is frozen at most, such as 5s", DefaultText: "10s"},
		&cli.BoolFlag{Name: "no-hooks", Usage: "do not run the volume's hooks"},
	}
}

// quiesce reads quiesceFlags.
func (c *call) quiesce() (api.Quiesce, error) {
	q := api.Quiesce{NoFreeze: c.Bool("no-freeze"), NoHooks: c.Bool("no-hooks"), FreezeLimit: c.Duration("freeze-limit").Seconds()}
	if c.IsSet("freeze-limit") && (q.FreezeLimit < 0.001 || q.FreezeLimit > (5*time.Minute).Seconds()) {
		return q, usagef("%s: --freeze-limit is from 1ms to 5m", commandName(c.Context))
	}
	if q.NoFreeze && c.IsSet("freeze") {
		return q, usagef("%s: --freeze and --no-freeze contradict each other", commandName(c.Context))
	}
	for _, point := range c.StringSlice("freeze") {
		abs, err := filepath.Abs(point)
		if err != nil {
			return q, fmt.Errorf("mount point %s: %w", point, err)
		}
		q.Freeze = append(q.Freeze, abs)
	}
	return q, nil
}
