package repo

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestRecoveryKeyIsReadAsItIsTyped(t *testing.T) {
	k := NewRecoveryKey()
	text := k.String()
	if len(text) != 47 {
		t.Fatalf("%q", text)
	}
	look := strings.NewReplacer("0", "o", "1", "l")
	for _, typed := range []string{
		text, strings.ToLower(text), strings.ReplaceAll(text, "-", ""), strings.ReplaceAll(text, "-", "  "), look.Replace(text),
		" " + text + "\n", "# Recovery key of a repository\n# 2026\n" + text[:24] + "\r\n" + text[24:] + "\r\n",
	} {
		if got, err := ParseRecoveryKey(typed); err != nil || got != k {
			t.Errorf("%q reads as %s, %v; want %s", typed, got, err, k)
		}
	}
	for _, other := range []string{"", secret, text[1:2], text + "-AAAAA", "# " + text, strings.Repeat("é", 40), strings.Repeat(text, 2000)} {
		if _, err := ParseRecoveryKey(other); !errors.Is(err, errNoRecoveryKey) {
			t.Errorf("%.60q: %v, want errNoRecoveryKey", other, err)
		}
	}
	if (RecoveryKey{}).String() == (RecoveryKey{19: 1}).String() {
		t.Error("two keys have one text")
	}
}

// Every wrong digit, every two digits that change places in a group, and every
// two groups that do are found, and the error says where.
func TestRecoveryKeyFindsTypos(t *testing.T) {
	text := NewRecoveryKey().String()
	check := func(typed []byte, group int) {
		t.Helper()
		_, err := ParseRecoveryKey(string(typed))
		if err == nil || !strings.Contains(err.Error(), "group "+string(rune('1'+group))) {
			t.Errorf("%s typed as %s: %v, want group %d named", text, typed, err, group+1)
		}
		if err != nil && strings.Contains(err.Error(), string(typed[:5])) {
			t.Errorf("the error quotes the key: %v", err)
		}
	}
	for i := range text {
		if text[i] == '-' {
			continue
		}
		group := i / 6
		for _, d := range []byte(recoveryDigits) {
			if d != text[i] {
				typed := []byte(text)
				typed[i] = d
				check(typed, group)
			}
		}
		for j := i + 1; j < 6*group+5; j++ {
			if text[i] != text[j] {
				typed := []byte(text)
				typed[i], typed[j] = typed[j], typed[i]
				check(typed, group)
			}
		}
	}
	groups := strings.Split(text, "-")
	for i := range groups {
		for j := range i {
			swapped := slices.Clone(groups)
			swapped[i], swapped[j] = swapped[j], swapped[i]
			check([]byte(strings.Join(swapped, "-")), j)
		}
		short := slices.Clone(groups)
		short[i] = short[i][:4]
		check([]byte(strings.Join(short, "-")), i)
	}
}

// FuzzRecoveryKey: what reads as a key is written in one form only.
func FuzzRecoveryKey(f *testing.F) {
	f.Add(NewRecoveryKey().String())
	f.Add("# remark\n" + NewRecoveryKey().String())
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseRecoveryKey(text)
		if err != nil {
			return
		}
		if again, err := ParseRecoveryKey(k.String()); err != nil || again != k {
			t.Errorf("%q reads as %s, and that as %s, %v", text, k, again, err)
		}
	})
}
