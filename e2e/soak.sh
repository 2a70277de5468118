#!/bin/bash
# soak.sh [SEEDS]: the random tests with many seeds, and the ways to crash, one after the other; see docs/testing.md.
#
# Each part goes on when another has failed. Ends with a summary, and with the
# command that runs each failing seed again; status 1 if there is one.
set -uo pipefail
cd "$(dirname "$0")/.."
export SEEDS=${1:-20} KILLS=${KILLS:-100}
logs=$(mktemp -d "${TMPDIR:-/tmp}/varve-soak-XXXXXX")
summary=() again=()

# part PACKAGE PATTERN [FLAG...]: run the tests that match, and keep what they say.
part() {
	local package=$1 pattern=$2 log="$logs/${#summary[@]}.log" start=$SECONDS result=passed tests seeds
	shift 2
	echo "soak: $package -run '$pattern' with SEEDS=$SEEDS KILLS=$KILLS, log in $log"
	go test "$package" -run "$pattern" -v -count 1 -timeout 0 "$@" >"$log" 2>&1 || result=FAILED
	tests=$(grep -c '^--- ' "$log")
	seeds=$(grep -cE '^ *--- [A-Z]+: .*/seed_[0-9]+ ' "$log")
	grep -ohE '[0-9]+ (cuts in a log|crashes|kills).*' "$log" | awk '{n[$2]+=$1} END {for (w in n) print "soak:   " n[w], w}'
	summary+=("$result  $package $pattern: $tests tests, $seeds seeds, $((SECONDS - start)) s")
	[ $result = passed ] && return
	grep -E '^ *--- FAIL|replay with -seed' "$log"
	local test seed
	while read -r test; do
		for seed in $(grep -oE 'replay with -seed [0-9]+' "$log" | grep -oE '[0-9]+$' | sort -u); do
			again+=("go test $package -run '^$test\$' -count 1 -seed $seed")
		done
	done < <(sed -nE 's/^--- FAIL: ([A-Za-z0-9_]+) .*/\1/p' "$log")
}

part ./layers .
part ./layers 'TestConcurrent|TestModel' -race
part ./agent 'TestDaemonDies|TestStartEnds|TestCloseStops'
part ./agent/repo 'TestHosts'
part ./e2e 'TestPowerLoss|TestRandom|TestBrokenDisk|TestFullDisk'
part ./e2e 'TestKill$|TestKillDuring'
part ./e2e 'TestKillCopies'
ROUNDS=$SEEDS part ./e2e 'TestTwoHosts$'
part ./agent/repo 'TestResume|TestRestoreGoesOn' -count 20

echo
printf 'soak: %s\n' "${summary[@]}"
[ ${#again[@]} = 0 ] && [[ ! "${summary[*]}" == *FAILED* ]] && { rm -rf "$logs"; exit 0; }
echo "soak: what failed can be run again with:"
printf '    %s\n' "${again[@]}"
echo "soak: the logs are in $logs"
exit 1
