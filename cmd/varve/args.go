package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// usageError is a command line that says something Varve does not understand.
// Its exit code is exitUsage.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return usageError{fmt.Sprintf(format, args...)}
}

// arrange puts the words of a command line into the order that urfave/cli
// understands: the flags of the program, the command, the flags of the command,
// "--", the arguments. People write flags before and after the arguments; the
// library would take those after for arguments.
//
// words[0] is the program's name. A flag that belongs to the command and to the
// program is the command's. Words after "--" are arguments whatever they look
// like, and so is a lone "-". Unknown flags and commands are usage errors that
// name what is nearest.
func arrange(app *cli.App, words []string) ([]string, error) {
	line := commandLine{app: app}
	for i := 1; i < len(words); i++ {
		word := words[i]
		switch {
		case line.verbatim(word):
			line.args = append(line.args, word)
		case word == "--":
			line.args = append(line.args, words[i+1:]...)
			i = len(words)
		case len(word) > 1 && word[0] == '-':
			used, err := line.flag(words[i:])
			if err != nil {
				return nil, err
			}
			i += used - 1
		case line.takesCommand() && word == "help": // varve help backup create
			line.help = true
		case line.takesCommand():
			if err := line.enter(word); err != nil {
				return nil, err
			}
		default:
			line.args = append(line.args, word)
		}
	}
	return line.join(words[0]), nil
}

// A commandLine is what arrange has read so far.
type commandLine struct {
	app     *cli.App
	path    []*cli.Command // from the noun to the verb
	globals []string       // flags of the program, each as one word
	locals  []string       // flags of the last command of path, each as one word
	args    []string
	help    bool // asked for as a word; as a flag it is among locals
}

// verbatim reports whether the command takes its words as they stand.
func (l *commandLine) verbatim(string) bool {
	return len(l.path) > 0 && l.path[len(l.path)-1].SkipFlagParsing
}

func (l *commandLine) takesCommand() bool { return len(l.commands()) > 0 }

// commands are those that may come next.
func (l *commandLine) commands() []*cli.Command {
	if len(l.path) == 0 {
		return l.app.Commands
	}
	return l.path[len(l.path)-1].Subcommands
}

func (l *commandLine) enter(name string) error {
	for _, c := range l.commands() {
		if c.HasName(name) {
			if len(l.locals) > 0 {
				return l.failf("%s belongs after the verb", flagWord(l.locals[0]))
			}
			l.path = append(l.path, c)
			return nil
		}
	}
	return l.failf("unknown command %q%s; %s", name,
		didYouMean(name, commandNames(l.commands())), l.helpHint())
}

// flag reads the flag at words[0] and its value, and returns how many words
// they are.
func (l *commandLine) flag(words []string) (int, error) {
	name, value, hasValue := strings.Cut(strings.TrimLeft(words[0], "-"), "=")
	f, local := l.find(name)
	if f == nil {
		return 0, l.failf("unknown flag %q%s; %s. An argument that begins with a dash goes after --",
			flagWord(words[0]), didYouMean(name, l.flagNames()), l.helpHint())
	}
	used := 1
	if !hasValue && !isBool(f) {
		if len(words) < 2 {
			return 0, l.failf("flag %s needs a value", flagWord(words[0]))
		}
		value, used = words[1], 2
		if other, _ := l.find(strings.TrimLeft(value, "-")); other != nil && strings.HasPrefix(value, "-") {
			return 0, l.failf("flag %s needs a value, and %s is a flag; write %s=%s if it is meant as the value",
				flagWord(words[0]), value, flagWord(words[0]), value)
		}
		hasValue = true
	}
	word := "--" + f.Names()[0]
	if hasValue {
		word += "=" + value
	}
	if local {
		l.locals = append(l.locals, word)
	} else {
		l.globals = append(l.globals, word)
	}
	return used, nil
}

// find looks name up among the flags of the command, then of the program.
func (l *commandLine) find(name string) (f cli.Flag, local bool) {
	if len(l.path) > 0 {
		if f := findFlag(l.path[len(l.path)-1].Flags, name); f != nil {
			return f, true
		}
		if name == "help" || name == "h" {
			return cli.HelpFlag, true
		}
	}
	for _, f := range append([]cli.Flag{cli.HelpFlag, cli.VersionFlag}, l.app.Flags...) {
		if findFlag([]cli.Flag{f}, name) != nil {
			return f, false
		}
	}
	return nil, false
}

func (l *commandLine) flagNames() []string {
	flags := l.app.Flags
	if len(l.path) > 0 {
		flags = append(append([]cli.Flag{}, l.path[len(l.path)-1].Flags...), flags...)
	}
	var names []string
	for _, f := range flags {
		names = append(names, "--"+f.Names()[0])
	}
	return names
}

// name is the command as far as it is known, for error messages.
func (l *commandLine) name() string {
	names := []string{}
	for _, c := range l.path {
		names = append(names, c.Name)
	}
	return strings.Join(names, " ")
}

// failf is a usage error that begins with the command.
func (l *commandLine) failf(format string, args ...any) error {
	if len(l.path) > 0 {
		format = l.name() + ": " + format
	}
	return usagef(format, args...)
}

func (l *commandLine) helpHint() string {
	if len(l.path) == 0 {
		return fmt.Sprintf("%q lists the commands", l.app.Name+" --help")
	}
	return fmt.Sprintf("see %q", l.app.Name+" "+l.name()+" --help")
}

func (l *commandLine) join(program string) []string {
	words := append([]string{program}, l.globals...)
	for _, c := range l.path {
		words = append(words, c.Name)
	}
	if l.help || slices.Contains(l.locals, "--help") {
		return append(words, "--help") // to which arguments would be topics
	}
	words = append(words, l.locals...)
	if len(l.args) > 0 {
		if !l.verbatim("") {
			words = append(words, "--")
		}
		words = append(words, l.args...)
	}
	return words
}

func findFlag(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				return f
			}
		}
	}
	return nil
}

func isBool(f cli.Flag) bool {
	_, is := f.(*cli.BoolFlag)
	return is
}

// flagWord is the flag without its value, which may be long or private.
func flagWord(word string) string {
	name, _, _ := strings.Cut(word, "=")
	return name
}

func commandNames(commands []*cli.Command) []string {
	var names []string
	for _, c := range commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return names
}

// didYouMean is a phrase that names the candidate nearest to name, or nothing
// if none is near.
func didYouMean(name string, candidates []string) string {
	best, bestDistance := "", max(2, len(name)/3)+1
	for _, c := range candidates {
		plain := strings.TrimLeft(c, "-")
		d := editDistance(name, plain)
		if len(name) > 1 && strings.HasPrefix(plain, name) {
			d = min(d, 1)
		}
		if d < bestDistance && d < len(plain) {
			best, bestDistance = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", best)
}

// editDistance is the number of bytes to insert, delete or replace to make b
// from a (Levenshtein). Long words are cut, since only near ones matter.
func editDistance(a, b string) int {
	a, b = a[:min(len(a), 40)], b[:min(len(b), 40)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// checkArgs holds the arguments to what ArgsUsage announces: upper case words,
// in [] if they may be left out, with ... if they may repeat.
func checkArgs(usage string, args []string) error {
	least, most := 0, 0
	var missing string
	for _, word := range strings.Fields(usage) {
		if strings.HasSuffix(strings.TrimSuffix(word, "]"), "...") {
			most = 1 << 20
		}
		most++
		if !strings.HasPrefix(word, "[") {
			least++
			if least == len(args)+1 {
				missing = strings.TrimSuffix(word, "...")
			}
		}
	}
	if len(args) < least {
		return usagef("%s is missing", missing)
	}
	if len(args) > most {
		return usagef("unexpected argument %q", args[most])
	}
	for _, a := range args {
		if a == "" {
			return usagef("an argument is empty")
		}
	}
	return nil
}
