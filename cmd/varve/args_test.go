package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

// B2: flags are accepted after the arguments as well as before.
func TestArrange(t *testing.T) {
	tests := []struct{ line, want string }{
		{"volume list", "volume list"},
		{"volume show db1 --long", "volume show --long -- db1"},
		{"volume show --long db1", "volume show --long -- db1"},
		{"volume create db1 --size 10G", "volume create --size=10G -- db1"},
		{"volume create --size=10G db1", "volume create --size=10G -- db1"},
		{"backup create db1 --name n --force --incremental", "backup create --name=n --force --incremental -- db1"},
		{"backup create --force db1 --name n", "backup create --force --name=n -- db1"},
		{"backup create db1 --force=false", "backup create --force=false -- db1"},
		{"volume list --state /s", "--state=/s volume list"},
		{"--state /s volume list", "--state=/s volume list"},
		{"volume --state /s list", "--state=/s volume list"},
		// The command's own flag wins over the program's.
		{"backup create db1 --target t", "backup create --container=t -- db1"},
		{"backup list --target file:///t", "--target=file:///t backup list"},
		{"volume list -o json -c ID -c Name", "volume list --output=json --column=ID --column=Name"},
		{"volume show -- --long", "volume show -- --long"},
		{"volume show -- -", "volume show -- -"},
		{"volume create db1 --description=-x --size 1", "volume create --description=-x --size=1 -- db1"},
		{"volume create db1 --description -x --size 1", "volume create --description=-x --size=1 -- db1"},
		{"volume show list", "volume show -- list"},
		{"volume show --help", "volume show --help"},
		{"volume show db1 --help --long", "volume show --help"},
		{"--help", "--help"},
		{"help", "--help"},
		{"help backup create", "backup create --help"},
		{"backup help create", "backup create --help"},
		{"volume show help", "volume show -- help"},
		{"volume -h", "volume --help"},
		{"__complete volume create --si", "__complete volume create --si"},
	}
	app := new(program).app()
	for _, tt := range tests {
		got, err := arrange(app, strings.Fields("varve "+tt.line))
		if want := strings.Fields("varve " + tt.want); err != nil || !slices.Equal(got, want) {
			t.Errorf("arrange(%q) = %q, %v; want %q", tt.line, got, err, want)
		}
	}
}

func TestArrangeRefuses(t *testing.T) {
	tests := []struct{ line, want string }{
		{"bakup list", "did you mean backup?"},
		{"volume lst", "did you mean list?"},
		{"volume create db1 --siz 1", "did you mean --size?"},
		{"volume create db1 --size", "--size needs a value"},
		{"snapshot create v --name --description x", "--name needs a value, and --description is a flag"},
		{"volume show -l", "unknown flag"},
		{"volume show db1 --passphrase=hunter2", "unknown flag"},
	}
	app := new(program).app()
	for _, tt := range tests {
		_, err := arrange(app, strings.Fields("varve "+tt.line))
		var usage usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("arrange(%q): %v; want a usage error with %q", tt.line, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("arrange(%q) repeats the value of an unknown flag: %v", tt.line, err)
		}
	}
}

// What arrange has put into order stays as it is; nothing panics.
func FuzzArrange(f *testing.F) {
	f.Add("volume\x00create\x00a\x00--size=1G\x00--\x00-x")
	f.Add("--state\x00/s\x00backup\x00list\x00-o\x00json")
	app := new(program).app()
	f.Fuzz(func(t *testing.T, line string) {
		once, err := arrange(app, append([]string{"varve"}, strings.Split(line, "\x00")...))
		if err != nil {
			return
		}
		twice, err := arrange(app, once)
		if err != nil || !slices.Equal(once, twice) {
			t.Errorf("%q becomes %q, and that %q, %v", line, once, twice, err)
		}
	})
}

// A passphrase on the command line could be read by every process.
func TestNoFlagTakesAPassphrase(t *testing.T) {
	for _, f := range new(program).app().Flags {
		if slices.Contains(f.Names(), "passphrase") {
			t.Errorf("there is a flag %q", f.Names())
		}
	}
}

func TestCheckArgs(t *testing.T) {
	tests := []struct {
		usage string
		args  []string
		want  string // of the error
	}{
		{"", nil, ""},
		{"", []string{"a"}, `unexpected argument "a"`},
		{"VOLUME", []string{"a"}, ""},
		{"VOLUME", nil, "VOLUME is missing"},
		{"VOLUME", []string{""}, "empty"},
		{"VOLUME SIZE", []string{"a"}, "SIZE is missing"},
		{"[VOLUME]", nil, ""},
		{"[VOLUME]", []string{"a", "b"}, `unexpected argument "b"`},
		{"BACKUP [TO]", []string{"a", "b"}, ""},
		{"BACKUP...", []string{"a", "b", "c"}, ""},
		{"BACKUP...", nil, "BACKUP is missing"},
	}
	for _, tt := range tests {
		err := checkArgs(tt.usage, tt.args)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("checkArgs(%q, %q) = %v, want %q", tt.usage, tt.args, err, tt.want)
		}
	}
}

// Every command's usage error has exit code 2 and goes to stderr only.
func TestUsageErrors(t *testing.T) {
	for _, line := range []string{"volume", "volume show", "volume show a b", "volume create a", "volume create a --size 0",
		"volume list -o xml", "nonsense", "volume list --no-such-flag", "completion tcsh", "serve --listen 0.0.0.0:10809",
		"serve --listen :10809", "serve --listen 127.0.0.1", "--target file:///t volume list", "backup list --force"} {
		var stdout, stderr bytes.Buffer
		p := &program{stdout: &stdout, stderr: &stderr}
		code := p.run(t.Context(), strings.Fields("varve "+line))
		if code != exitUsage || stdout.Len() > 0 || !strings.HasPrefix(stderr.String(), "varve: ") {
			t.Errorf("varve %s: exit code %d, stdout %q, stderr %q; want %d and a message on stderr",
				line, code, stdout.String(), stderr.String(), exitUsage)
		}
	}
}
