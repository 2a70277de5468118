// Varve keeps block volumes as stacks of layers, serves them over NBD and backs
// them up into an object store. This is its one program: the daemon (varve
// serve), the command line that talks to it, and the way back from a backup
// target without any daemon (varve --target URL …).
//
// The command line is a tree of commands, a noun and then a verb, one file for
// each noun. Its definitions are the one source for parsing, help, completion
// and the order in which flags may stand: see arrange.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"varve/agent/api"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // A second Ctrl-C ends the program at once.
	p := &program{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ()}
	code := p.run(ctx, os.Args)
	stop()
	os.Exit(code)
}

// A program is the command line with what it reads and writes.
type program struct {
	stdin          *os.File
	stdout, stderr io.Writer
	environ        []string
}

// run carries out one command line and returns its exit code.
func (p *program) run(ctx context.Context, words []string) int {
	app := p.app()
	help := &keptError{w: p.stdout}
	app.Writer = help
	words, err := arrange(app, words)
	if err == nil {
		err = app.RunContext(ctx, words)
	}
	if err == nil && help.err != nil {
		err = fmt.Errorf("write to standard output: %w", help.err)
	}
	return p.report(err)
}

// A keptError is a writer that keeps its first error. The library prints helps
// and versions to it, and looks at no error.
type keptError struct {
	w   io.Writer
	err error
}

func (k *keptError) Write(b []byte) (int, error) {
	if k.err != nil {
		return 0, k.err
	}
	n, err := k.w.Write(b)
	k.err = err
	return n, err
}

// app is the command line: global flags and the tree of commands.
func (p *program) app() *cli.App {
	app := &cli.App{
		Name:      "varve",
		Usage:     "copy-on-write block volumes with backup built in",
		UsageText: "varve [global flags] NOUN VERB [arguments and flags, in any order]",
		Version:   version(),
		Description: "The daemon (varve serve) owns a state folder with its volumes; all other commands talk to it. " +
			"With --target URL, backup list, show, diff, restore and verify, target show, usage, verify, prune and key, and mount work on the target itself, without a daemon. " +
			"With --target NAME the commands on backups look in that target of the daemon only.\n\n" +
			exitCodeHelp,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "state", EnvVars: []string{"VARVE_STATE"}, DefaultText: defaultState(p.getenv),
				Usage: "the daemon's state `FOLDER`"},
			&cli.StringFlag{Name: "target", Usage: "`URL` of a backup target to work on without a daemon, or the name of one of the daemon's"},
			&cli.StringFlag{Name: "passphrase-file", Usage: "`FILE` with the passphrase or recovery key of a target; VARVE_PASSPHRASE is the other way"},
			&cli.StringFlag{Name: "key-file", Usage: "`FILE` of random bytes that opens a target, instead of a passphrase"},
			&cli.StringFlag{Name: "credentials", Usage: "`FILE` of NAME=VALUE lines (OS_…, ST_…, AWS_…) that override the environment"},
			&cli.StringFlag{Name: "cloud", Usage: "log in to Swift as clouds.yaml says of the cloud `NAME`; OS_CLOUD is the other way"},
		},
		Writer:         p.stdout,
		ErrWriter:      p.stderr,
		ExitErrHandler: func(*cli.Context, error) {}, // run reports errors
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return usagef("%v", err) },
		HideHelp:       false,
		Commands: []*cli.Command{
			p.serveCommand(),
			p.nbdCommand(),
			p.statusCommand(),
			p.volumeCommand(),
			p.snapshotCommand(),
			p.backupCommand(),
			p.targetCommand(),
			p.attachVerb(),
			p.detachVerb(),
			p.attachmentCommand(),
			p.mountCommand(),
			p.unmountCommand(),
			p.operationCommand(),
			p.quotaCommand(),
			p.catalogCommand(),
			p.completionCommand(),
			p.completeCommand(),
			p.freezeHelperCommand(),
		},
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true,
	}
	app.Action = func(c *cli.Context) error { return cli.ShowAppHelp(c) }
	plainSwitches(app.Commands)
	return app
}

// plainSwitches keeps "(default: false)" out of the help of flags that have no
// value.
func plainSwitches(commands []*cli.Command) {
	for _, c := range commands {
		for _, f := range c.Flags {
			if b, ok := f.(*cli.BoolFlag); ok {
				b.DisableDefaultText = true
			}
		}
		plainSwitches(c.Subcommands)
	}
}

// version is the program's version as the Go tool recorded it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

// getenv is os.Getenv on the program's own environment.
func (p *program) getenv(name string) string {
	for _, e := range p.environ {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

// defaultState is the state folder where none is named: the XDG base directory
// specification's state folder, or the system's for root. It is empty for a
// user without a home.
func defaultState(getenv func(string) string) string {
	if os.Geteuid() == 0 {
		return "/var/lib/varve"
	}
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "varve")
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local/state/varve")
	}
	return ""
}

// A call is one command being carried out.
type call struct {
	*program
	*cli.Context
	ctx  context.Context
	args []string // of the command, as many as its ArgsUsage says
}

// verb makes a command of a function. args is its ArgsUsage, which the
// arguments are held to.
func (p *program) verb(name, args, usage string, flags []cli.Flag, run func(*call) error) *cli.Command {
	return &cli.Command{
		Name:            name,
		Usage:           usage,
		ArgsUsage:       args,
		Flags:           flags,
		HideHelpCommand: true,
		CustomHelpTemplate: cli.CommandHelpTemplate + "\nGLOBAL OPTIONS:\n" +
			"   --state, --target, --passphrase-file, --key-file, --credentials and --cloud may stand here too; see \"varve --help\"\n",
		OnUsageError: func(c *cli.Context, err error, _ bool) error { return usagef("%s: %v", commandName(c), err) },
		Action: func(c *cli.Context) error {
			if err := checkArgs(args, c.Args().Slice()); err != nil {
				return usagef("%s: %v; usage: %s", commandName(c), err, strings.TrimSpace(c.Command.HelpName+" "+args))
			}
			return run(&call{program: p, Context: c, ctx: c.Context, args: c.Args().Slice()})
		},
	}
}

// noun makes a command that only has verbs.
func noun(name, usage string, verbs ...*cli.Command) *cli.Command {
	return &cli.Command{
		Name:            name,
		Usage:           usage,
		ArgsUsage:       "VERB",
		Subcommands:     verbs,
		HideHelpCommand: true,
		Action: func(c *cli.Context) error {
			return usagef("%s: a verb is missing: %s", name, strings.Join(commandNames(verbs), ", "))
		},
	}
}

// commandName is the words of the command: "volume create".
func commandName(c *cli.Context) string {
	return strings.TrimPrefix(c.Command.HelpName, c.App.Name+" ")
}

// global is the value of a flag of the program, not of one of the command with
// that name.
func (c *call) global(name string) string {
	outer := c.Context
	for _, ctx := range c.Lineage() {
		if ctx.Command != nil { // The last one holds no flags, only a context.Context.
			outer = ctx
		}
	}
	return outer.String(name)
}

// state is the absolute path of the state folder.
func (c *call) state() (string, error) {
	dir := c.global("state")
	if dir == "" {
		dir = defaultState(c.getenv)
	}
	if dir == "" {
		return "", usagef("no state folder: HOME is not set; name one with --state or VARVE_STATE")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("state folder %s: %w", dir, err)
	}
	return abs, nil
}

// client is the way to the daemon for commands that have no use for --target.
func (c *call) client() (*api.Client, error) {
	if target := c.global("target"); target != "" {
		return nil, c.needsDaemon(target)
	}
	return c.backupClient()
}

// daemonClient is the way to the daemon.
func (c *call) daemonClient() (*api.Client, error) {
	dir, err := c.state()
	if err != nil {
		return nil, err
	}
	return api.NewClient(filepath.Join(dir, api.SocketName)), nil
}

func (c *call) needsDaemon(target string) error {
	if strings.Contains(target, ":") {
		return usagef("%s: works through the daemon and not on a target: leave out --target %s", commandName(c.Context), target)
	}
	return usagef("%s: --target chooses among backups, and means nothing here: leave out --target %s", commandName(c.Context), target)
}

// directURL is the URL of --target, if it is one: with a name it only chooses
// among the daemon's targets.
func (c *call) directURL() string {
	for _, target := range []string{c.global("target"), c.String("target")} {
		if strings.Contains(target, ":") {
			return target
		}
	}
	return ""
}

// The flags of commands that print objects.
func outputFlags(more ...cli.Flag) []cli.Flag {
	return append(more,
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table",
			Usage: "`FORMAT`: " + strings.Join(outputFormats, ", ")},
		&cli.StringSliceFlag{Name: "column", Aliases: []string{"c"}, Usage: "print only this `COLUMN` or row; may repeat"})
}

// output is the format that the flags ask for.
func (c *call) output() (format, error) {
	kind := c.String("output")
	for _, f := range outputFormats {
		if kind == f {
			return format{kind: kind, columns: c.StringSlice("column")}, nil
		}
	}
	return format{}, usagef("%s: unknown output format %q: there are %s", commandName(c.Context), kind, strings.Join(outputFormats, ", "))
}

// secrets is where the secret that opens a target comes from.
func (c *call) secrets() secretSource {
	return secretSource{
		ctx: c.ctx, keyFile: c.String("key-file"), file: c.String("passphrase-file"), getenv: c.getenv, stdin: c.stdin, stderr: c.stderr,
	}
}

// onTerminal reports whether messages go to a terminal.
func (p *program) onTerminal() bool {
	f, is := p.stderr.(*os.File)
	return is && term.IsTerminal(int(f.Fd()))
}
