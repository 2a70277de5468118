package e2e

// guestVarve begins the script of a guest that has a daemon of its own: its state
// is in /var/lib/varve, and it is started with serve. Blocks that were written
// are compared by their MD5, since a guest's processor is slow.
const guestVarve = `
export VARVE_PASSPHRASE="correct horse battery staple"
insmod /lib/modules/nbd.ko
serve() {
	rm -f /run/ready
	varve serve >/run/ready 2>>/run/varve.log &
	daemon=$!
	until grep -qs ready /run/ready; do
		sleep 0.05
		kill -0 $daemon || fail "the daemon ended at its start"
	done
}
fail() {
	echo "FAILED: $*"
	tail -n 20 /run/varve.log
	dmesg | tail -n 20
	exit 1
}
# refused TEXT COMMAND...: the command fails and says so
refused() {
	text=$1
	shift
	if "$@" >/run/refused 2>&1; then fail "not refused: $*"; fi
	grep -q "$text" /run/refused || fail "$* says: $(cat /run/refused)"
}
is() { [ "$1" = "$2" ] || fail "$1 is not $2"; }
attach() { varve attach "$@" -o value -c device; }
status() { varve volume show $1 -o value -c status; }
# fill DIR NAME COUNT: files of 64 KiB that differ, and their sums
fill() {
	for i in $(seq $3); do dd if=/dev/urandom of=$1/$2$i bs=64k count=1 2>/dev/null; done
	(cd $1 && md5sum $2*) >/tmp/$2.sums
}
forget() {
	sync
	echo 3 >/proc/sys/vm/drop_caches
}
whole() { (cd $1 && md5sum -c -s /tmp/$2.sums) || fail "files in $1 are not what was written"; }
`

// guestFiles are what such a guest needs.
func guestFiles() map[string]string { return map[string]string{"bin/varve": program} }
