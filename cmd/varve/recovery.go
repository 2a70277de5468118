package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"
)

func recoveryFileFlag() cli.Flag {
	return &cli.StringFlag{Name: "recovery-key-file", Usage: "new `FILE` for the recovery key, which is printed otherwise"}
}

// A recoveryPaper is where a recovery key goes, which is told once: a file of
// its own, or the terminal.
type recoveryPaper struct {
	target, url string
	file        *os.File // nil: print it
	out         io.Writer
}

// recoveryPaper makes the file, if one is asked for, before there is a key to
// lose.
func (c *call) recoveryPaper(target, url string) (recoveryPaper, error) {
	paper := recoveryPaper{target: target, url: url, out: c.stderr}
	path := c.String("recovery-key-file")
	if path == "" {
		return paper, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return paper, usagef("recovery key file: %v", err)
	}
	paper.file = f
	return paper, nil
}

const recoveryWarning = `Keep it on paper or in a safe, away from this machine and from the target. It opens the target wherever a
passphrase is asked for. Without it and without a passphrase or key file all backups there are lost: nobody can help.
`

// write keeps the recovery key, or removes the file if there is none. A key
// that cannot be written to the file is printed rather than lost.
func (p recoveryPaper) write(key string) error {
	if p.file == nil {
		if key != "" {
			fmt.Fprintf(p.out, "The recovery key of target %s, shown this once:\n\n    %s\n\n%s", p.target, key, recoveryWarning)
		}
		return nil
	}
	path := p.file.Name()
	if key == "" {
		return errors.Join(p.file.Close(), os.Remove(path))
	}
	_, err := fmt.Fprintf(p.file, "# Recovery key of the Varve target %s\n# %s\n%s\n", p.target, p.url, key)
	if err = errors.Join(err, p.file.Sync(), p.file.Close()); err != nil {
		p.file = nil
		return errors.Join(fmt.Errorf("recovery key file %s: %w", path, err), p.write(key))
	}
	fmt.Fprintf(p.out, "The recovery key of target %s is in %s.\n%s", p.target, path, recoveryWarning)
	return nil
}
