# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Runs a long script part by part: says at the start what the parts are and how long each took the last time, and at the
# end how long each took now. Sourced by tests/run and .ci/run at the top of the tree.
# shellcheck shell=bash

in_minutes() { # SECONDS
    echo "$(($1 / 60)) min $(($1 % 60)) s"
}

# A PART is `FUNCTION TEXT`. The first that fails ends the script with its exit code. FIRST says how long all take where
# no last time is known.
run_parts() { # NAME FIRST PART...
    local name=$1 first=$2 part text seconds start=$SECONDS before status=0
    shift 2
    local times=${CARGO_TARGET_DIR:-target}/times/$name
    mkdir -p "${times%/*}"
    if [ -f "$times" ]; then
        first="the last time they took $(in_minutes "$(awk '{ all += $1 } END { print all }' "$times")")"
    fi
    echo "$name: $# parts; $first"
    for part; do
        text=${part#* }
        printf '%s: %5s s  %s\n' "$name" "$(sed -n "s/^\([0-9]*\) $text\$/\1/p" "$times" 2>/dev/null)" "$text"
    done
    : >"$times.new"
    for part; do
        text=${part#* } before=$SECONDS
        echo "$name: --- $text"
        # A subshell of its own, not in a condition: there `set -e` would be ignored in the part.
        set +e
        (set -e; "${part%% *}")
        status=$?
        set -e
        echo "$((SECONDS - before)) $text" >>"$times.new"
        [ $status = 0 ] || break
    done
    echo "$name: $(in_minutes $((SECONDS - start))) in all:"
    while read -r seconds text; do
        printf '%s: %5s s  %s\n' "$name" "$seconds" "$text"
    done <"$times.new"
    [ $status = 0 ] || { echo "FAIL: $name: ${part#* }"; exit $status; }
    mv "$times.new" "$times"
    echo "PASS: $name: all parts"
}
