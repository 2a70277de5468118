package fuse

import "testing"

func TestParseMount(t *testing.T) {
	tests := []struct {
		line string
		want mount
		ok   bool
	}{
		{"36 35 0:52 / /mnt ro,nosuid shared:7 master:2 - fuse.varve varve ro,user_id=0\n",
			mount{36, "0:52", "/mnt", "fuse.varve", "varve"}, true},
		{`36 35 0:52 / /a\040b\134\011c rw - ext4 /dev/sda\0401 rw`,
			mount{36, "0:52", "/a b\\\tc", "ext4", "/dev/sda 1"}, true},
		{`36 35 0:52 / /a\04 rw - ext4 none`, mount{36, "0:52", `/a\04`, "ext4", "none"}, true},
		{`36 35 0:52 / /a\999 rw - ext4 none`, mount{36, "0:52", `/a\999`, "ext4", "none"}, true},
		{"36 35 0:52 / /mnt rw shared:7 ext4 none rw", mount{}, false},
		{"36 35 0:52 / /mnt - ext4 none rw", mount{}, false},
		{"x 35 0:52 / /mnt rw - ext4 none rw", mount{}, false},
		{"36 35 0:52 / /mnt rw - ext4", mount{}, false},
		{"", mount{}, false},
	}
	for _, test := range tests {
		if got, ok := parseMount(test.line); got != test.want || ok != test.ok {
			t.Errorf("%q: %+v, %v, want %+v, %v", test.line, got, ok, test.want, test.ok)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`36 35 0:52 / /a\040b rw shared:7 - fuse.varve varve ro`)
	f.Fuzz(func(t *testing.T, line string) {
		if m, ok := parseMount(line); !ok && m != (mount{}) {
			t.Errorf("%q is refused, and yet it is %+v", line, m)
		}
	})
}
