package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

// completeWithin bounds the question to the daemon while somebody waits for a
// completion.
const completeWithin = 2 * time.Second

// completeName is the hidden command that the shells' scripts call with the
// words so far; it prints what the last of them may become, a line each.
const completeName = "__complete"

var completionScripts = map[string]string{
	"bash": `_varve() {
	local IFS=$'\n'
	COMPREPLY=($(varve ` + completeName + ` "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _varve varve
`,
	"zsh": `#compdef varve
_varve() {
	local -a found
	found=("${(@f)$(varve ` + completeName + ` "${(@)words[2,CURRENT]}" 2>/dev/null)}")
	if [[ -n "$found" ]]; then compadd -a found; else _files; fi
}
compdef _varve varve
`,
	"fish": `function __varve_complete
	set -l words (commandline -opc) (commandline -ct)
	varve ` + completeName + ` $words[2..-1] 2>/dev/null
end
complete -c varve -a '(__varve_complete)'
`,
}

func (p *program) completionCommand() *cli.Command {
	return p.verb("completion", "SHELL", "print the completion script of bash, zsh or fish; in bash: eval \"$(varve completion bash)\"", nil,
		func(c *call) error {
			script, known := completionScripts[c.args[0]]
			if !known {
				return usagef("completion: unknown shell %q: there are bash, zsh and fish", c.args[0])
			}
			_, err := fmt.Fprint(c.stdout, script)
			return err
		})
}

func (p *program) completeCommand() *cli.Command {
	return &cli.Command{
		Name:            completeName,
		Hidden:          true,
		SkipFlagParsing: true,
		HideHelp:        true,
		Action: func(c *cli.Context) error {
			for _, word := range p.complete(c) {
				fmt.Fprintln(p.stdout, word)
			}
			return nil
		},
	}
}

// complete returns what the last word may become.
func (p *program) complete(c *cli.Context) []string {
	words := c.Args().Slice()
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	line := commandLine{app: c.App}
	var pending cli.Flag // a flag that waits for its value
	state := c.String("state")
	for _, word := range words[:len(words)-1] {
		switch {
		case pending != nil:
			if pending.Names()[0] == "state" {
				state = word
			}
			pending = nil
		case strings.HasPrefix(word, "-") && len(word) > 1:
			name, value, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
			f, _ := line.find(name)
			if f != nil && !hasValue && !isBool(f) {
				pending = f
			}
			if hasValue && name == "state" {
				state = value
			}
		case line.takesCommand():
			if line.enter(word) != nil {
				return nil
			}
		default:
			line.args = append(line.args, word)
		}
	}
	return startingWith(last, p.candidates(c, &line, pending, last, state))
}

func (p *program) candidates(c *cli.Context, line *commandLine, pending cli.Flag, last, state string) []string {
	switch {
	case pending != nil:
		return p.values(c, state, map[string]string{
			"output": "OUTPUT", "container": "TARGET", "snapshot": "SNAPSHOT", "source": "VOLUME", "target": "TARGET", "volume": "VOLUME",
		}[pending.Names()[0]])
	case strings.HasPrefix(last, "-"):
		return line.flagNames()
	case line.takesCommand():
		return commandNames(line.commands())
	}
	words := strings.Fields(line.path[len(line.path)-1].ArgsUsage)
	if len(words) == 0 {
		return nil
	}
	word := words[min(len(line.args), len(words)-1)]
	if len(line.args) >= len(words) && !strings.HasSuffix(word, "...") {
		return nil
	}
	place, _, _ := strings.Cut(strings.Trim(word, "[]."), "[@") // of VOLUME[@SNAPSHOT] the volume
	return p.values(c, state, place)
}

// values are the words that a place of that name in ArgsUsage may hold, asked
// from the daemon. Without a daemon there are none.
func (p *program) values(c *cli.Context, state, place string) []string {
	if state == "" {
		state = defaultState(p.getenv)
	}
	ctx, cancel := context.WithTimeout(c.Context, completeWithin)
	defer cancel()
	client := api.NewClient(state + "/" + api.SocketName)
	switch place {
	case "OUTPUT":
		return outputFormats
	case "SHELL":
		return []string{"bash", "zsh", "fish"}
	case "VOLUME", "TO":
		return names(client.Volumes(ctx, api.Page{}))(func(v api.Volume) string { return v.Name })
	case "SNAPSHOT":
		return names(client.Snapshots(ctx, "", false, api.Page{}))(func(s api.Snapshot) string { return s.Name })
	case "BACKUP":
		return names(client.Backups(ctx, api.Filter{}))(func(b api.Backup) string { return b.Name })
	case "TARGET":
		return names(client.Targets(ctx))(func(t api.Target) string { return t.Name })
	case "OPERATION":
		return names(client.Operations(ctx))(func(o api.Operation) string { return o.ID })
	}
	return nil
}

// names takes the answer of a list call; the second call says what to show of
// each. Errors are no use to who waits for a completion.
func names[T any](all []T, _ error) func(func(T) string) []string {
	return func(name func(T) string) []string {
		var out []string
		for _, t := range all {
			out = append(out, name(t))
		}
		return out
	}
}

func startingWith(prefix string, words []string) []string {
	var out []string
	for _, w := range words {
		if strings.HasPrefix(w, prefix) {
			out = append(out, w)
		}
	}
	return out
}
